"""``refine`` and ``filter``: better codes for the worst rows of a bank, or a bank without them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from latent_mixup.cli.inversion import summary
from latent_mixup.cli.shared import (
    FOLDER,
    data_options,
    image_dataset,
    loss_for,
    loss_options,
    one_sentence,
    part_of,
    part_options,
)

if TYPE_CHECKING:
    from latent_mixup import LatentBank


@click.command("refine")
@click.argument("bank")
@click.option("--generator", required=True, help="Folder, bundled name or Hub id of the generator of the codes.")
@data_options
@click.option(
    "--out", type=FOLDER, required=True, help="Folder of the run and the new bank; started again, it resumes."
)
@click.option(
    "--above", type=float, multiple=True, default=[0.025], show_default=True, help="Codes with this mse or more."
)
@click.option("--steps", type=click.IntRange(1), multiple=True, default=[4000], show_default=True, help="At most.")
@loss_options
@click.option("--restarts", type=click.IntRange(0), default=3, show_default=True, help="Jumps out of a settled place.")
@click.option("--lr", type=float, default=0.03, show_default=True, help="Length of the first step.")
@click.option(
    "--tolerance", type=float, default=1e-3, show_default=True, help="A code that gains a smaller share is done."
)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@part_options
@one_sentence
def refine_command(
    bank: str,
    generator: str,
    dataset: str,
    data_root: Path,
    test: bool,
    out: Path,
    above: tuple[float, ...],
    steps: tuple[int, ...],
    restarts: int,
    loss: str | None,
    lpips_weights: str | None,
    lr: float,
    tolerance: float,
    batch_size: int,
    shard: str | None,
    device: str | None,
    threads: int | None,
) -> None:
    """Give the worst codes of BANK (folder, bundled name or Hub id) more gradient steps; keep what is better.

    --above may be given several times: stages, each of which works on what the one before left, such as the paper's
    --above 0.025 --above 0.02; --steps once, or once for each of them.
    """
    import torch

    from latent_mixup import LatentBank, load_generator, refine
    from latent_mixup.inversion.gains import refined_table

    part = part_of(shard, device)
    if threads:
        torch.set_num_threads(threads)
    decoder = load_generator(generator).to(part.device)
    with said_as_notes():
        refined = refine(
            LatentBank.from_pretrained(bank),
            image_dataset(dataset, data_root, test=test),
            decoder,
            above=above,
            steps=steps if len(steps) > 1 else steps[0],
            loss=loss_for(decoder, loss, lpips_weights),
            restarts=restarts,
            lr=lr,
            tolerance=tolerance,
            batch_size=batch_size,
            out=out,
            shard=part.shard,
            progress=part.shows,
        )
    stages = refined.metadata["refined"][-len(above) :]
    click.echo(refined_table(stages))
    if part.shard[1] > 1:
        click.echo(
            f"this is shard {part.shard[0]}/{part.shard[1]} alone; the bank is written by the shard that is last"
        )
    for index, error in stages[-1]["set_aside"].items():
        click.echo(f"image {index} could not be used, its code stays as it was: {error}")
    click.echo(f"{out}: {summary(refined)}")


@click.command("filter")
@click.argument("bank")
@click.option("--max-mse", type=float, help="Keep the codes with this mse or less.")
@click.option("--keep", type=float, metavar="SHARE", help="Of these, keep the best share; 0.5: up to the median.")
@click.option("--per-class", is_flag=True, help="That share of each class, so that none becomes rare.")
@click.option("--out", type=FOLDER, required=True, help="Folder of the new bank.")
@one_sentence
def filter_command(bank: str, max_mse: float | None, keep: float | None, per_class: bool, out: Path) -> None:
    """Keep the well inverted codes of BANK (folder, bundled name or Hub id), and say how many each class has left.

    The paper's for MNIST are those up to the median: --keep 0.5.
    """
    from latent_mixup import LatentBank, hub

    if (out / hub.MAIN_FILE["bank"]).exists():
        raise ValueError(f"{out} holds a bank: choose another --out")
    whole = LatentBank.from_pretrained(bank)
    with said_as_notes():
        kept = whole.filter(max_mse, keep, per_class=per_class)
    kept.save_pretrained(out, dtype=whole.dtype)
    click.echo(class_table(whole, kept))
    click.echo(f"{out}: {summary(kept)}")


def class_table(bank: LatentBank, kept: LatentBank) -> str:
    """How many rows of each class ``kept`` has, beside ``bank``, as a table of text."""
    names = bank.metadata.get("classes") or []
    lines = [f"{'class':24}{'before':>10}{'kept':>10}"]
    for label, (before, after) in enumerate(zip(bank.class_counts.tolist(), kept.class_counts.tolist(), strict=True)):
        name = names[label] if label < len(names) else label
        share = f"{100 * after / before:.1f} %" if before else ""
        lines.append(f"{name!s:24}{before:>10,}{after:>10,}{share:>10}")
    return "\n".join(lines)


@contextlib.contextmanager
def said_as_notes() -> Iterator[None]:
    """Show the package's warnings as a sentence each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", category=UserWarning, module="latent_mixup")
        yield
    for warning in caught:
        click.echo(f"note: {warning.message}", err=True)
