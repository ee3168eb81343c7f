"""A bank's codes beside the images they were inverted from, and whether the two belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latent_mixup.bank import LatentBank
from latent_mixup.generators.base import Generator
from latent_mixup.inversion.optimise import reconstruction_mse
from latent_mixup.inversion.samples import SampleFormat, Samples, read_samples

CHECKED_ROWS = 256
TOLERANCE = (0.1, 2e-4)  # of a stored mse: relative, for another device; absolute, for codes rounded to float16
MAX_DISAGREEING = 0.1  # share of the checked rows


@dataclass(frozen=True)
class BankImages:
    """The images of a bank's rows, and the decodes of their codes."""

    bank: LatentBank
    dataset: Any
    generator: Generator
    format: SampleFormat

    def samples(self, rows: Tensor) -> Samples:
        """Images and labels of some rows."""
        return read_samples(self.dataset, self.bank.source_index[rows].tolist(), self.generator, self.format)

    def originals(self, rows: Tensor) -> Tensor:
        """The images of some rows, ``[B, C, H, W]`` in [-1, 1] on the generator's device.

        Raises:
            ValueError: One of them cannot be read.
        """
        samples = self.samples(rows)
        for index, error in samples.errors.items():
            raise ValueError(f"the bank has a code of image {index}, which cannot be read: {error}")
        return samples.images

    def codes(self, rows: Tensor) -> Tensor:
        """The codes of some rows, on the generator's device."""
        return self.bank[rows][0].to(self.generator.device)

    def decoded_mse(self, rows: Tensor, batch_size: int) -> Tensor:
        """Pixel MSE of each row's decoded code, ``[B]``; infinite where the image cannot be read, or for NaN."""
        found = torch.full((len(self.bank),), torch.inf, dtype=torch.float32, device="cpu")
        for chunk in rows.split(batch_size):
            samples = self.samples(chunk)
            if len(samples.index):
                read = self.bank.rows_of(samples.index)
                mse = reconstruction_mse(self.generator, self.codes(read), samples.images)
                found[read] = mse.cpu().nan_to_num(nan=torch.inf)
        return found[rows]

    def check(self, rows: Tensor, batch_size: int) -> None:
        """Raise ``ValueError`` where the stored, finite ``mse`` of the rows is not the MSE of their decoded codes."""
        assert self.bank.mse is not None
        rows = rows[self.bank.mse[rows].isfinite()]
        if not len(rows):
            return
        sample = rows[torch.linspace(0, len(rows) - 1, min(CHECKED_ROWS, len(rows)), device="cpu").long()]
        decoded = self.decoded_mse(sample, batch_size)
        if not decoded.isfinite().any():
            error = next(iter(self.samples(sample[:1]).errors.values()), "its code decodes to no numbers")
            raise ValueError(
                f"none of {len(sample)} images can be compared with the bank's codes; image "
                f"{int(self.bank.source_index[sample[0]])}: {error}"
            )
        compare_mse(self.bank.mse[sample][decoded.isfinite()], decoded[decoded.isfinite()])


def compare_mse(stored: Tensor, decoded: Tensor) -> int:
    """How many of some rows' stored and recomputed mse, each ``[n]``, disagree.

    Raises:
        ValueError: Too many disagree: they are not of the same images.
    """
    relative, absolute = TOLERANCE
    disagreeing = int(((stored - decoded).abs() > relative * stored + absolute).sum())
    if disagreeing > MAX_DISAGREEING * len(stored):
        raise ValueError(
            f"the bank's mse is not what its codes decode to: of {len(stored)} rows looked at, {disagreeing} differ, "
            f"with a median of {float(stored.median()):.4g} stored and {float(decoded.median()):.4g} recomputed; pass "
            "the generator and the data set the bank was made with, in its order, or a bank without mse"
        )
    return disagreeing
