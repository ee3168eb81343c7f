"""``refine`` and ``filter``: better codes for the worst rows of a bank, or a bank without them; ``advise``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from latent_mixup.cli import shared
from latent_mixup.cli.inversion import summary, summary_text

if TYPE_CHECKING:
    from latent_mixup import LatentBank


@click.command("refine")
@click.argument("bank")
@shared.generator_option
@shared.data_options
@click.option(
    "--out", type=shared.FOLDER, required=True, help="Folder of the run and the new bank; started again, it resumes."
)
@click.option("--above", type=float, multiple=True, default=[0.025], help="Refine codes with this mse or more.")
@click.option("--steps", type=click.IntRange(1), multiple=True, default=[4000], help="Maximum gradient steps per code.")
@shared.loss_options
@shared.optimizer_options(restarts=3)
@shared.part_options
@shared.one_sentence
def refine_command(
    bank: str,
    generator: str,
    dataset: str,
    data_root: Path | None,
    test: bool,
    download: bool,
    image_key: str | None,
    label_key: str | None,
    out: Path,
    above: tuple[float, ...],
    steps: tuple[int, ...],
    shard: str | None,
    device: str,
    **settings: Any,
) -> None:
    """Give the worst codes of BANK (folder, bundled name or Hub id) more gradient steps; keep the better ones.

    Several --above are stages, each on the result of the one before, such as the paper's --above 0.025 --above 0.02;
    give --steps once, or once for each stage.
    """
    from latent_mixup import LatentBank, refine
    from latent_mixup.inversion.gains import refined_table

    part = shared.part_of(shard, device)
    keys: shared.Columns = {"image_key": image_key, "label_key": label_key}
    images = shared.image_dataset(dataset, data_root, test=test, download=download, **keys)
    codes = LatentBank.from_pretrained(bank)
    shared.check_keys(codes, dataset, keys)
    decoder = shared.generator_named(generator, part.device)
    refined = refine(
        codes,
        images,
        decoder,
        above=above,
        steps=steps if len(steps) > 1 else steps[0],
        loss=shared.pop_loss(decoder, settings),
        out=out,
        shard=part.shard,
        progress=part.shows,
        command=shared.typed_command(without=shared.PLACE),
        **settings,
    )
    stages, found = refined.metadata["refined"][-len(above) :], summary(refined)
    lines = [refined_table(stages)]
    if part.shard[1] > 1:
        lines.append(f"this is shard {part.shard[0]}/{part.shard[1]} alone; the last shard writes the bank")
    lines.append(f"{out}: {summary_text(found)}")
    shared.answer("\n".join(lines), {"out": str(out), "shard": part.shard, **found, "stages": stages})


@click.command("filter")
@click.argument("bank")
@click.option("--max-mse", type=float, help="Keep the codes with this mse or less.")
@click.option("--keep", type=float, metavar="SHARE", help="Keep the best share of these; 0.5: up to the median.")
@click.option("--per-class", is_flag=True, help="Keep that share of each class, so that none becomes rare.")
@click.option("--out", type=shared.FOLDER, required=True, help="Folder of the new bank.")
@shared.one_sentence
def filter_command(bank: str, max_mse: float | None, keep: float | None, per_class: bool, out: Path) -> None:
    """Keep the well inverted codes of BANK (folder, bundled name or Hub id), and count those of each class.

    The paper keeps MNIST's up to the median: --keep 0.5.
    """
    from latent_mixup import LatentBank, hub
    from latent_mixup.pictures import text_table

    if (out / hub.MAIN_FILE["bank"]).exists():
        raise ValueError(f"{out} holds a bank: choose another --out")
    whole = LatentBank.from_pretrained(bank)
    kept = whole.filter(max_mse, keep, per_class=per_class)
    kept.metadata["filtered"][-1]["command"] = shared.typed_command(without=shared.PLACE)
    kept.save_pretrained(out, dtype=whole.dtype)
    classes, found = class_counts(whole, kept), summary(kept)
    rows = [["class", "before", "kept"]]
    for each in classes:
        before, after = each["before"], each["kept"]
        rows.append([each["class"], f"{before:,}", f"{after:,}", f"{100 * after / before:.1f} %" if before else ""])
    text = f"{text_table(rows)}\n{out}: {summary_text(found)}"
    shared.answer(text, {"out": str(out), **found, "classes": classes})


def class_counts(bank: LatentBank, kept: LatentBank) -> list[dict[str, Any]]:
    """Number of rows of each class in ``bank`` and in ``kept``."""
    names = bank.metadata.get("classes") or []
    counts = enumerate(zip(bank.class_counts.tolist(), kept.class_counts.tolist(), strict=True))
    return [
        {"class": str(names[label] if label < len(names) else label), "before": before, "kept": after}
        for label, (before, after) in counts
    ]


@click.command("advise")
@click.argument("run")
@click.option(
    "--aim",
    type=click.Choice(["robust", "small-model", "balance", "accuracy"]),
    required=True,
    help="Accuracy under attack, a small classifier without the images, rare classes, or clean accuracy.",
)
@shared.one_sentence
def advise_command(run: str, aim: Any) -> None:
    """Say what was measured for an aim, and the lines to paste, or not to.

    RUN is a folder that fit made, a bundled name or a Hub id.
    """
    from dataclasses import asdict

    from latent_mixup.quality.advice import advise

    advice = advise(run, aim)
    shared.answer(str(advice), asdict(advice))
