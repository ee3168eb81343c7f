"""Other people's files => ours, without executing anything that is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from latent_mixup import hub
from latent_mixup.bank import LatentBank
from latent_mixup.convert.latents import read_latents
from latent_mixup.convert.nvidia import read_nvidia
from latent_mixup.convert.pickles import UnsafeCheckpointError
from latent_mixup.generators.stylegan2 import StyleGAN2

__all__ = ["UnsafeCheckpointError", "convert", "read_latents", "read_nvidia"]


def convert(path: str | Path, out: str | Path) -> StyleGAN2 | LatentBank:
    """Read somebody else's file and write it as one of our folders, with a card that says where it comes from.

    Args:
        path: A StyleGAN2 network (see :func:`read_nvidia`), or latents in an ``.npy`` (see :func:`read_latents`).
            Its content decides which, not its name.
        out: Folder, made where it is missing. It is written after the whole file was understood: a generator
            in float32, a bank in float16 (float32 where a code is too large for that).

    Returns:
        What was written.

    Raises:
        FileNotFoundError: There is no such file.
        FormatError: The file was refused (see the two functions above); nothing was written.
        OSError: The folder cannot be written to.
    """
    result = read_latents(path) if _first_bytes(path) == b"\x93NUMPY" else read_nvidia(path)
    if isinstance(result, LatentBank):
        result.save_pretrained(out, dtype=_bank_dtype(result))
    else:
        result.save_pretrained(out)
    hub.write_folder(out, {"README.md": card(result).encode("utf-8", "replace")})
    return result


def _bank_dtype(bank: LatentBank) -> torch.dtype:
    """float16, as banks are stored, unless a code is too large for it."""
    largest = max(float(bank[start : start + 4096][0].abs().max()) for start in range(0, len(bank), 4096))
    return torch.float16 if largest <= torch.finfo(torch.float16).max else torch.float32


def _first_bytes(path: str | Path) -> bytes:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is not a file: expected a StyleGAN2 checkpoint or grad_latents_*.npy")
    with Path(path).open("rb") as file:
        return file.read(6)


def card(result: StyleGAN2 | LatentBank) -> str:
    """The model or data-set card of something converted: Markdown, with the Hub's header."""
    if isinstance(result, StyleGAN2):
        title, notes = f"StyleGAN2, converted from {_code(result.metadata['source']['file'])}", result.metadata
        what = (
            f"A StyleGAN2 generator for {result.img_resolution}x{result.img_resolution} images with "
            f"{result.img_channels} channels, {'without classes' if not result.c_dim else f'{result.c_dim} classes'}. "
            "Read it with `latent_mixup.load_generator(folder)`."
        )
    else:
        notes = result.metadata["inversion"]
        title = f"Latent bank, converted from {_code(notes['source']['file'])}"
        what = (
            f"{len(result)} latent codes of shape {list(result.latent_shape)} in {result.num_classes} classes. "
            "Read it with `latent_mixup.LatentBank.from_pretrained(folder)`."
        )
    rows = "\n".join(f"| {key} | {_code(value)} |" for key, value in notes["source"].items())
    return f"""---
library_name: latent-mixup
license: other
tags: [latent-mixup, mixup, gan-inversion, image-classification]
---
# {title}

{what}

## Licence

{notes["licence"]}

## Source

Converted by `latent-mixup convert`, which reads the file as data and executes nothing in it.

| | |
|---|---|
{rows}
"""


def _code(value: Any) -> str:
    """Text from elsewhere as Markdown code: no line break, table bar or backtick gets out of it."""
    return "`" + "".join(char if char.isprintable() and char not in "`|" else "?" for char in str(value)) + "`"
