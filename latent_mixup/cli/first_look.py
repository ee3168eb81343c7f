"""``demo``, ``preview`` and ``list``: the method in a few minutes or in a picture, and what comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from latent_mixup.cli import shared


@click.command()
@click.option("--out", type=shared.FOLDER, default=Path("latent-mixup-demo"), help="Folder for results.")
@click.option("--seed", type=int, default=0, help="Seed of all draws.")
@shared.one_sentence
def demo(out: Path, seed: int) -> None:
    """Train a classifier in seven ways on the bundled data: a table and a picture, in a few minutes."""
    from latent_mixup.demo.demo import demo_table, run_demo

    record = run_demo(out, seed=seed)
    written = f"{out / 'demo.json'} and {out / 'mixes.png'} written; {record['seconds']:.0f} seconds"
    shared.answer(f"{demo_table(record)}\n\n{written}", record)


@click.command()
@click.argument("name")
@click.option("--bank", help="Folder, bundled name or Hub id of the bank. Default: NAME.")
@click.option(
    "--pairs",
    multiple=True,
    required=True,
    metavar="CLASS,CLASS",
    help="Two classes, each by name (in any case) or number; repeatable.",
)
@click.option("--rows", type=click.IntRange(1), default=4, help="Rows for each pair of classes.")
@click.option("--out", type=shared.NEW_FILE, default=Path("preview.png"), help="PNG to write.")
@click.option("--overwrite", is_flag=True, help="Replace --out where it exists.")
@click.option("--seed", type=int, default=0, help="Seed of the choice of codes.")
@shared.one_sentence
def preview(
    name: str, bank: str | None, pairs: tuple[str, ...], rows: int, out: Path, overwrite: bool, seed: int
) -> None:
    """Draw mixes of chosen classes with the generator NAME (folder, bundled name, Hub id or module:function)."""
    from latent_mixup import LatentBank
    from latent_mixup.demo.preview import preview_sheet

    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists: choose another --out, or replace it with --overwrite")
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out needs a name that ends in .png: got {out.name!r}")
    chosen = []
    for pair in pairs:
        first, comma, second = pair.partition(",")
        if not comma or "," in second:
            raise ValueError(
                f"--pairs needs two classes with a comma between them: got {pair!r}; "
                "a class whose name has a comma goes by its number"
            )
        chosen.append((first, second))
    sheet = preview_sheet(
        shared.generator_named(name), LatentBank.from_pretrained(bank or name), chosen, rows=rows, seed=seed
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(sheet)
    shared.answer(f"{out} written", {"out": str(out)})


@click.command("list")
@shared.one_sentence
def list_command() -> None:
    """List the names that come with the package: each stands for a generator and a bank, as in lm.load(NAME)."""
    from latent_mixup import list_pretrained, load
    from latent_mixup.pictures import text_table

    found, rows = list[dict[str, Any]](), [["name", "images", "codes"]]
    for name in list_pretrained():
        generator, bank = load(name)
        shape = list(generator.image_shape)
        classes = bank.metadata.get("classes")
        found.append({"name": name, "img_shape": shape, "codes": len(bank), "classes": classes})
        rows.append([name, " x ".join(map(str, shape)), f"{len(bank):,}"])
    shared.answer(text_table(rows), {"pretrained": found})
