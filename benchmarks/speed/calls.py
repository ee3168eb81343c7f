"""How far it is from the loader to a batch: Python calls and files of latent_mixup for one batch with ``prob=0.5``.

Counted with ``sys.setprofile`` while the second batch is asked for, with the bundled generator and bank, one batch a
decode, in the caller's thread. Aimed at: at most 8 files and 60 calls.

    python benchmarks/speed/calls.py --out benchmarks/results/calls.json
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import click

import latent_mixup as lm
from latent_mixup.bundled import BundledImages
from latent_mixup.images import from_uint8

PACKAGE = Path(lm.__file__).parent


def count_calls(loader: lm.LatentMixupLoader) -> dict[str, Counter[str]]:
    """Calls of each function of the package, by file, while the loader's second batch is made."""
    batches, found = iter(loader), dict[str, Counter[str]]()
    next(batches)

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            found.setdefault(str(path.relative_to(PACKAGE)), Counter())[_name(frame.f_code)] += 1

    sys.setprofile(note)
    try:
        next(batches)
    finally:
        sys.setprofile(None)
    return found


def _name(code: CodeType) -> str:
    return getattr(code, "co_qualname", code.co_name)  # the first from Python 3.11 on


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="JSON file to write.")
@click.option("--verbose", is_flag=True, help="Print every function and its calls.")
def main(out: Path | None, verbose: bool) -> None:
    """Print the files and calls of one batch."""
    generator, bank = lm.load_generator("fashion-mnist"), lm.LatentBank.from_pretrained("fashion-mnist")
    images = BundledImages("fashion-mnist")
    batch = from_uint8(images.data[:64]), images.targets[:64]
    settings: dict[str, Any] = {"prob": 0.5, "seed": 0, "prefetch": 0, "decode_batches": 1}
    found = count_calls(lm.LatentMixupLoader([batch, batch], generator, bank, dataset=images, **settings))
    calls = sum(sum(functions.values()) for functions in found.values())
    print(f"{len(found)} files, {calls} calls")
    if verbose:
        for path, functions in found.items():
            print(path, sum(functions.values()))
            for name, count in functions.items():
                print(f"    {name} {count}")
    if out is not None:
        by_file = {path: dict(functions) for path, functions in found.items()}
        counted = {"files": len(found), "calls": calls, "by_file": by_file}
        out.write_text(json.dumps(counted, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
