"""Banks and data sets that the tests of the bank share."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from latent_mixup import LatentBank

INDEX = "bank.index.json"
COLUMNS = ("labels", "source_index", "mse", "lpips", "status")


def make_bank(
    rows: int = 10, shape: tuple[int, ...] = (3, 4), seed: int = 0, labels: torch.Tensor | None = None
) -> LatentBank:
    """A bank with every column; its codes fit in float16 exactly."""
    draw = torch.Generator().manual_seed(seed)
    return LatentBank(
        torch.randn(rows, *shape, generator=draw).half().float(),
        torch.arange(rows) % 3 if labels is None else labels,
        source_index=torch.randperm(rows, generator=draw) + 5,
        mse=torch.rand(rows, generator=draw),
        lpips=torch.rand(rows, generator=draw),
        status=torch.arange(rows) % 2,
        metadata={
            "latent_space": "w+",
            "num_classes": 4,
            "generator": {"name": "toy", "digest": "d" * 64, "commit": None},
        },
    )


def soft_rows(rows: int = 10, num_classes: int = 4) -> torch.Tensor:
    """Soft labels whose float32 values float16 cannot hold."""
    return torch.randn(rows, num_classes, generator=torch.Generator().manual_seed(1)).softmax(1)


def some_missing(rows: int = 10) -> torch.Tensor:
    """The labels of ``make_bank``, every third of them missing."""
    labels = torch.arange(rows) % 3
    return labels.where(labels != 1, -1)


KINDS = {"classes": None, "soft": soft_rows(), "some missing": some_missing(), "all missing": torch.full((10,), -1)}


def assert_same(one: LatentBank, two: LatentBank) -> None:
    assert torch.equal(one[:][0], two[:][0])
    for name in COLUMNS:
        column, other = getattr(one, name), getattr(two, name)
        assert (column is None) == (other is None)
        assert column is None or (torch.equal(column, other) and column.dtype == other.dtype)
    assert {**one.metadata, "part_of": 0} == {**two.metadata, "part_of": 0}
    assert (len(one), one.latent_shape, one.num_classes) == (len(two), two.latent_shape, two.num_classes)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("bank-*"))


def read_index(folder: Path) -> dict[str, object]:
    return json.loads((folder / INDEX).read_text())


def edit_index(folder: Path, **changes: object) -> None:
    (folder / INDEX).write_text(json.dumps({**read_index(folder), **changes}))
