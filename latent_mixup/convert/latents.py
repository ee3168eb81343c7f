"""Latents of others => a bank: the authors' ``grad_latents_*.npy``, and ``projected_w.npz`` of NVIDIA's projector."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from latent_mixup.bank import LatentBank
from latent_mixup.convert.assemble import brief
from latent_mixup.convert.pickles import reading
from latent_mixup.convert.tensors import StoredArray, read_numpy_object, read_numpy_zip
from latent_mixup.files import FormatError

FORMAT = "grad_latents (pickled dict in .npy)"
PROJECTED_FORMAT = "projected_w (array w in .npz)"
LATENTS_LICENCE = (
    "The codes come from the file of latents named above. The terms of whoever computed them, and those of the "
    "data set and of the generator they were computed with, apply to this copy as well."
)
_KEY = re.compile(r"(\d{5})_(\d)\.png", re.ASCII)


def read_latents(path: str | Path) -> LatentBank:
    """The codes in an ``.npy`` that holds one pickled dict; nothing in the file is executed.

    Each key, such as ``"00000_6.png"``, is the index of an image in its data set and its label. Rows are ordered by
    that index, whatever the order of the dict.

    Args:
        path: The file.

    Returns:
        A bank of float32 codes ``[N, num_ws, w_dim]`` (or ``[N, w_dim]``), with the file's SHA-256 in its metadata.

    Raises:
        FileNotFoundError: There is no such file.
        FormatError: A key or an array is not what it should be; as ``UnsafeCheckpointError``, the file is damaged
            or holds what such a file does not.
    """
    with reading(path) as (data, source):
        codes = _check(read_numpy_object(data), len(data))
        indices = sorted(codes)
        first = codes[indices[0]][1]
        latents = torch.empty(len(indices), *first.shape)
        for row, index in enumerate(indices):
            latents[row] = torch.from_numpy(codes[index][1].numpy().astype("float32"))
            if not latents[row].isfinite().all():
                raise FormatError(f"the code of image {index} has a value that is not finite")
        return LatentBank(
            latents,
            [codes[index][0] for index in indices],
            source_index=indices,
            metadata={
                "num_classes": 10,  # one digit a key
                "latent_space": "w+" if len(first.shape) == 2 else "w",
                "inversion": {"source": {**source, "format": FORMAT}, "licence": LATENTS_LICENCE},
            },
        )


def read_projected(path: str | Path) -> LatentBank:
    """The codes in a ``projected_w.npz`` of NVIDIA's ``projector.py``: an array ``w``, ``[N, num_ws, w_dim]``.

    Args:
        path: The file.

    Returns:
        A bank of float32 codes without labels, with the file's SHA-256 in its metadata.

    Raises:
        FileNotFoundError: There is no such file.
        FormatError: It holds something else; as ``UnsafeCheckpointError``, it is damaged.
    """
    with reading(path) as (data, source):
        codes = read_numpy_zip(data, "w")
        if codes.ndim != 3 or codes.dtype.kind != "f" or not len(codes):
            raise FormatError(f"its array 'w' is {codes.dtype} {list(codes.shape)}: expected floats [N, num_ws, w_dim]")
        metadata = {
            "latent_space": "w+",
            "inversion": {"source": {**source, "format": PROJECTED_FORMAT}, "licence": LATENTS_LICENCE},
        }
        return LatentBank(torch.from_numpy(codes.astype("float32")), [-1] * len(codes), metadata=metadata)


def _check(root: Any, size: int) -> dict[int, tuple[int, StoredArray]]:
    """Index => label and array, after keys, shapes and sizes were found to be right."""
    if type(root) is not dict or not root:
        raise FormatError(f"it holds {brief(root)}: expected a dict of codes, by the name of an image")
    codes: dict[int, tuple[int, StoredArray]] = {}
    shape: tuple[int, ...] | None = None
    for key, array in root.items():
        match = _KEY.fullmatch(key) if type(key) is str else None
        if match is None:
            raise FormatError(f"its key {brief(key)} is not an index and a label, such as '00000_6.png'")
        index = int(match[1])
        if index in codes:
            raise FormatError(f"it has two codes of image {index}")
        if type(array) is not StoredArray:
            raise FormatError(f"the code of image {index} is {brief(array)}: expected an array")
        shape = array.shape if shape is None else shape
        if array.shape != shape or len(shape) not in (1, 2) or not array.is_float:
            raise FormatError(
                f"the code of image {index} is {array.code} {array.shape}: expected floats of one shape, as {shape}"
            )
        codes[index] = int(match[2]), array
    if sum(array.nbytes for _, array in codes.values()) > size:
        raise FormatError("its codes share their bytes: expected each to have its own")
    return codes
