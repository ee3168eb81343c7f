"""Any file of others => one of our folders; its content decides how it is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from latent_mixup.bank import LatentBank
from latent_mixup.convert.latents import read_latents, read_projected
from latent_mixup.convert.nvidia import read_nvidia
from latent_mixup.generators.stylegan2 import StyleGAN2


def convert(path: str | Path, out: str | Path, *, command: Sequence[str] = ()) -> StyleGAN2 | LatentBank:
    """Read somebody else's file and write it as one of our folders, with a card that says where it comes from.

    Args:
        path: A StyleGAN2 network (see ``read_nvidia``), latents in an ``.npy`` (see ``read_latents``), or
            those of an ``.npz`` (see ``read_projected``). Its content decides which, and the suffix ``.npz``.
        out: Folder, made where it is missing. It is written after the whole file was understood: a generator
            in float32, a bank in float16 (float32 where a code is too large for that).
        command: The words of the command line that asks for it, for the metadata; empty: there is none.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: There is no such file.
        FormatError: The file was refused (see the two functions above); nothing was written.
        OSError: The folder cannot be written to.
    """
    first = _first_bytes(path)
    if first == b"\x93NUMPY":
        result: StyleGAN2 | LatentBank = read_latents(path)
    elif first.startswith(b"PK\x03\x04") and Path(path).suffix == ".npz":
        result = read_projected(path)
    else:
        result = read_nvidia(path)
    if command:
        result.metadata["command"] = list(command)
    if isinstance(result, LatentBank):
        result.save_pretrained(out, dtype=_bank_dtype(result))
    else:
        result.save_pretrained(out)
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
