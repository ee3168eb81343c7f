"""``invert`` and ``report``: codes of real images, and how good they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

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
    from latent_mixup.inversion.optimise import Optimizer
    from latent_mixup.inversion.runs import Meter

POOR_MSE = 0.025  # the paper gives such codes more steps


@click.command("invert")
@click.argument("generator")
@data_options
@click.option("--out", type=FOLDER, required=True, help="Folder of the run and the bank; started again, it resumes.")
@click.option("--encoder", type=FOLDER, help="Folder of an encoder to start from; default: the generator's own.")
@loss_options
@click.option(
    "--steps",
    type=click.IntRange(0),
    default=200,
    show_default=True,
    help="Gradients an image, at most; 0 only encodes.",
)
@click.option("--restarts", type=click.IntRange(0), default=1, show_default=True, help="Jumps out of a settled place.")
@click.option("--optimizer", type=click.Choice(["lbfgs", "adam"]), default="lbfgs", show_default=True)
@click.option("--lr", type=float, default=0.03, show_default=True, help="Length of the first step.")
@click.option("--tolerance", type=float, default=1e-3, show_default=True, help="lbfgs: a smaller gain is none.")
@click.option("--draws", type=click.IntRange(1), default=1024, show_default=True, help="Own images to learn from.")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws, and of the jumps.")
@part_options
@one_sentence
def invert_command(
    generator: str,
    dataset: str,
    data_root: Path,
    test: bool,
    out: Path,
    encoder: str | None,
    loss: str | None,
    lpips_weights: str | None,
    steps: int,
    restarts: int,
    optimizer: Optimizer,
    lr: float,
    tolerance: float,
    draws: int,
    batch_size: int,
    seed: int,
    shard: str | None,
    device: str | None,
    threads: int | None,
) -> None:
    """Find a latent code of GENERATOR (folder, bundled name or Hub id) for every image of a data set.

    Killed at any moment, it goes on where it was, to the same bank, when it is run again. Several processes share
    the work by --shard, or when python -m torch.distributed.run --nproc_per_node=N -m latent_mixup starts them;
    whoever is last writes the bank.
    """
    import torch

    from latent_mixup import invert, load_generator
    from latent_mixup.encoders import load_encoder
    from latent_mixup.inversion.engine import split_chunks
    from latent_mixup.inversion.runs import Meter

    part = part_of(shard, device)
    if threads:
        torch.set_num_threads(threads)
    images = image_dataset(dataset, data_root, test=test)
    chunks = len(split_chunks(len(images), batch_size))
    if part.shard[0] >= chunks:
        click.echo(f"shard {part.shard[0]}/{part.shard[1]} has nothing to do: there are {chunks} chunks")
        return
    decoder = load_generator(generator).to(part.device)
    meter = Meter(part.shows)
    bank = invert(
        images,
        decoder,
        out=out,
        encoder=load_encoder(encoder, decoder) if encoder else None,
        loss=loss_for(decoder, loss, lpips_weights),
        steps=steps,
        restarts=restarts,
        optimizer=optimizer,
        lr=lr,
        tolerance=tolerance,
        draws=draws,
        batch_size=batch_size,
        shard=part.shard,
        seed=seed,
        progress=meter,
    )
    say_what_was_done(bank, out, part.shard, meter)


def say_what_was_done(bank: LatentBank, out: Path, shard: tuple[int, int], meter: Meter) -> None:
    """The summary at the end of a run.

    Raises:
        ValueError: Rows of the finished bank have status 1.
    """
    from latent_mixup import LatentBank, hub

    name = "" if shard[1] == 1 else f"shard {shard[0]}/{shard[1]}: "
    if meter.solved:
        speed = meter.solved / meter.seconds
        click.echo(f"{name}{meter.solved:,} images in {meter.seconds:.1f} s, {speed:.2f} images/s")
    else:
        click.echo(f"{name}nothing was left to do")
    finished = (out / hub.MAIN_FILE["bank"]).is_file()
    if finished:
        bank, name = LatentBank.from_pretrained(out), f"{out}: "
    click.echo(name + summary(bank))
    set_aside = bank.metadata["set_aside"]
    if set_aside:
        index, error = next(iter(set_aside.items()))
        click.echo(f"{len(set_aside):,} images could not be used and have no row; image {index}: {error}")
    failed = 0 if bank.status is None else int((bank.status != 0).sum())
    if not finished:
        click.echo(f"{failed} failed; the bank is written by the shard that is last")
    elif failed:
        raise ValueError(f"{failed} images have no finite code: their rows have status 1 in {out}")


def summary(bank: LatentBank) -> str:
    """How many codes, and how good: one line."""
    assert bank.mse is not None
    mse = bank.mse[bank.mse.isfinite()]
    if not len(mse):
        return f"{len(bank):,} codes, none with a finite mse"
    return (
        f"{len(bank):,} codes, mse mean {mse.mean():.4f}, median {mse.median():.4f}, 95 % below "
        f"{mse.quantile(0.95):.4f}, {(mse >= POOR_MSE).float().mean():.1%} at {POOR_MSE} or above"
    )


@click.command("report")
@click.argument("bank")
@click.option("--generator", required=True, help="Folder, bundled name or Hub id of the generator of the codes.")
@data_options
@click.option("--out", type=FOLDER, required=True, help="Folder for report.png and report.json.")
@click.option("--columns", type=click.IntRange(1), default=5, show_default=True, help="Rows of the bank in a line.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random rows.")
@click.option("--device", help="Where to decode, e.g. cuda; default: the CPU.")
@one_sentence
def report_command(
    bank: str,
    generator: str,
    dataset: str,
    data_root: Path,
    test: bool,
    out: Path,
    columns: int,
    seed: int,
    device: str | None,
) -> None:
    """Say how good the codes of BANK (folder, bundled name or Hub id) are: a page of figures, and their numbers."""
    from latent_mixup import LatentBank, load_generator
    from latent_mixup.quality.page import report_sentence, report_table
    from latent_mixup.quality.report import PAGE_FILE, report

    images = image_dataset(dataset, data_root, test=test)
    decoder = load_generator(generator).to(device or "cpu")
    record = report(LatentBank.from_pretrained(bank), images, decoder, out, columns=columns, seed=seed)
    click.echo(report_table(record))
    click.echo(f"\n{report_sentence(record)}\n{out / PAGE_FILE} and report.json written")
