"""``invert`` and ``report``: codes of real images, and how good they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from latent_mixup.cli import shared

if TYPE_CHECKING:
    from latent_mixup import LatentBank
    from latent_mixup.inversion.chunks import CodeMeter

POOR_MSE = 0.025  # the paper gives such codes more steps


@click.command("invert")
@click.argument("generator")
@shared.data_options
@click.option(
    "--out", type=shared.FOLDER, required=True, help="Folder of the run and the bank; started again, it resumes."
)
@click.option("--encoder", type=shared.FOLDER, help="Folder of an encoder to start from. Default: the generator's own.")
@shared.loss_options
@click.option("--steps", type=click.IntRange(0), help="Gradient steps an image; 0 only encodes. Default: as suits it.")
@shared.optimizer_options(restarts=None)
@shared.part_options
@shared.one_sentence
def invert_command(
    generator: str,
    dataset: str,
    data_root: Path | None,
    test: bool,
    download: bool,
    image_key: str | None,
    label_key: str | None,
    out: Path,
    encoder: str | None,
    batch_size: int,
    shard: str | None,
    device: str,
    **settings: Any,
) -> None:
    """Find a latent code of GENERATOR for every image of a data set.

    GENERATOR is a folder, a bundled name, a Hub id, or module:function of your own: the module is imported, also from
    the current folder, and the function returns a Generator, such as latent_mixup.generators.wrap makes.

    If it is killed, run it again: it resumes, to the same bank. Several processes share the work by --shard, or when
    python -m torch.distributed.run --nproc_per_node=N -m latent_mixup starts them; the last one writes the bank.
    """
    from latent_mixup import invert
    from latent_mixup.encoders import load_encoder
    from latent_mixup.inversion.chunks import CodeMeter
    from latent_mixup.inversion.engine import split_chunks

    part = shared.part_of(shard, device)
    keys: shared.Columns = {"image_key": image_key, "label_key": label_key}
    images = shared.image_dataset(dataset, data_root, test=test, download=download, **keys)
    chunks = len(split_chunks(len(images), batch_size))
    if part.shard[0] >= chunks:
        text = f"shard {part.shard[0]}/{part.shard[1]} has nothing to do: there are {chunks} chunks"
        shared.answer(text, {"out": str(out), "shard": part.shard, "codes": 0, "finished": False})
        return
    decoder = shared.generator_named(generator, part.device)
    meter = CodeMeter(part.shows)
    bank = invert(
        images,
        decoder,
        out=out,
        encoder=load_encoder(encoder, decoder) if encoder else None,
        loss=shared.pop_loss(decoder, settings),
        batch_size=batch_size,
        shard=part.shard,
        progress=meter,
        command=shared.typed_command(without=shared.PLACE),
        **shared.keys_in_samples(dataset, keys),
        **settings,
    )
    say_what_was_done(bank, out, part.shard, meter)


def say_what_was_done(bank: LatentBank, out: Path, shard: tuple[int, int], meter: CodeMeter) -> None:
    """Print the summary at the end of a run.

    Raises:
        ValueError: Rows of the finished bank have status 1.
    """
    from latent_mixup import LatentBank, hub

    name = "" if shard[1] == 1 else f"shard {shard[0]}/{shard[1]}: "
    lines = [f"{name}nothing was left to do"]
    if meter.solved:
        speed = meter.solved / meter.seconds
        lines = [f"{name}{meter.solved:,} images in {meter.seconds:.1f} s, {speed:.2f} images/s"]
    finished = (out / hub.MAIN_FILE["bank"]).is_file()
    if finished:
        bank, name = LatentBank.from_pretrained(out), f"{out}: "
    found = summary(bank)
    lines.append(name + summary_text(found))
    failed = 0 if bank.status is None else int((bank.status != 0).sum())
    if not finished:
        lines.append(f"{failed} failed; the last shard writes the bank")
    run = {"out": str(out), "shard": shard, "finished": finished, "images": meter.solved, "seconds": meter.seconds}
    shared.answer("\n".join(lines), {**run, **found, "failed": failed})
    if finished and failed:
        raise ValueError(f"{failed} images have no finite code: their rows have status 1 in {out}")


def summary(bank: LatentBank) -> dict[str, Any]:
    """Number of codes and their mse; None where none is finite."""
    assert bank.mse is not None
    mse = bank.mse[bank.mse.isfinite()]
    if not len(mse):
        return {"codes": len(bank), "mse": None}
    numbers = {"mean": mse.mean(), "median": mse.median(), "p95": mse.quantile(0.95)}
    numbers["share_poor"] = (mse >= POOR_MSE).float().mean()
    return {"codes": len(bank), "mse": {name: float(number) for name, number in numbers.items()}}


def summary_text(found: dict[str, Any]) -> str:
    """A :func:`summary` in one line."""
    codes, mse = f"{found['codes']:,} codes", found["mse"]
    if mse is None:
        return f"{codes}, none with a finite mse"
    return (
        f"{codes}, mse mean {mse['mean']:.4f}, median {mse['median']:.4f}, 95 % below {mse['p95']:.4f}, "
        f"{mse['share_poor']:.1%} at {POOR_MSE} or above"
    )


@click.command("report")
@click.argument("bank")
@shared.generator_option
@shared.data_options
@click.option(
    "--encoder", type=shared.FOLDER, help="Folder of an encoder to compare with. Default: the generator's own."
)
@click.option("--out", type=shared.FOLDER, required=True, help="Folder for report.png and report.json.")
@click.option("--columns", type=click.IntRange(1), default=5, help="Images per line.")
@click.option("--seed", type=int, default=0, help="Seed of the random rows.")
@click.option("--check", is_flag=True, help="Also check what mixes of the codes can be expected to give; minutes.")
@shared.device_option
@shared.one_sentence
def report_command(
    bank: str,
    generator: str,
    dataset: str,
    data_root: Path | None,
    test: bool,
    download: bool,
    image_key: str | None,
    label_key: str | None,
    encoder: str | None,
    out: Path,
    columns: int,
    seed: int,
    check: bool,
    device: str,
) -> None:
    """Report the quality of the codes in BANK (folder, bundled name or Hub id): a page of figures, and a JSON file."""
    from latent_mixup import LatentBank
    from latent_mixup.encoders import load_encoder
    from latent_mixup.quality import check_text
    from latent_mixup.quality.page import report_sentence, report_table
    from latent_mixup.quality.report import PAGE_FILE, report

    keys: shared.Columns = {"image_key": image_key, "label_key": label_key}
    images = shared.image_dataset(dataset, data_root, test=test, download=download, **keys)
    codes = LatentBank.from_pretrained(bank)
    shared.check_keys(codes, dataset, keys)
    decoder = shared.generator_named(generator, device)
    record = report(
        codes,
        images,
        decoder,
        out,
        encoder=load_encoder(encoder, decoder) if encoder else None,
        columns=columns,
        seed=seed,
        check=check,
    )
    parts = [report_table(record), *([check_text(record["codes"])] if check else [])]
    written = f"{out / PAGE_FILE} and report.json written"
    shared.answer("\n\n".join([*parts, f"{report_sentence(record)}\n{written}"]), record)
