"""What a wrapper was given: whether it fits, which samples a loader can give, and which rows of the bank these are."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

from latent_mixup.bank import LatentBank, load
from latent_mixup.generators import load_generator
from latent_mixup.generators.base import Generator, check_generator
from latent_mixup.labels import Key

SHARED_OUT = ("num_replicas", "num_processes", "world_size", "_is_accelerate_prepared")  # said by what shares data out
HOLDERS = ("batch_sampler", "sampler", "dataset", "collate_fn", "loader")  # parts of a loader that may hold others

T = TypeVar("T")
Named: TypeAlias = T | str | Path
"""An object, or its name: a bundled one, a folder, or a Hub id."""


class SplitWarning(UserWarning):
    """It cannot be told which rows of the bank may be mixed, so all of them are."""


def pair_of(generator: Named[Generator], bank: Named[LatentBank] | None) -> tuple[Generator, LatentBank]:
    """A generator and a bank, each given as it is or by its name; one name alone, or one of a generator, names both.

    Raises:
        TypeError: They are something else, or have changed places.
        FileNotFoundError: There is nothing of that name.
        ValueError: The two of one name do not belong together.
    """
    if isinstance(generator, LatentBank) and isinstance(bank, Generator):
        raise TypeError("generator and bank have changed places: pass the generator first, then the bank")
    if isinstance(generator, str | Path) and bank is None:
        return load(generator)
    generator = load_generator(generator) if isinstance(generator, str | Path) else generator
    bank = LatentBank.from_pretrained(bank) if isinstance(bank, str | Path) else bank
    check_generator(generator)
    if not isinstance(bank, LatentBank):
        mend = "latent_mixup.invert makes one of your images, or pass a name in the place of the two"
        raise TypeError(f"bank needs to be a LatentBank: got {_shown(bank)}; {mend}")
    return generator, bank


def check_loader(loader: object) -> None:
    """Raise ``TypeError`` unless this gives batches again and again, as far as its type tells."""
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):  # WebDataset's loader is one of these
        raise TypeError(
            f"a loader is needed: got the data set {type(loader).__name__}; "
            "wrap it first, torch.utils.data.DataLoader(dataset, batch_size=64, shuffle=True)"
        )
    if isinstance(loader, str | Generator | LatentBank | Tensor) or not isinstance(loader, Iterable):
        raise TypeError(f"loader needs to be a DataLoader, or an iterable of (images, labels): got {_shown(loader)}")


def check_dataset(dataset: object) -> None:
    """Raise ``TypeError`` for a loader, or another thing without samples, in the place of a data set."""
    if isinstance(dataset, DataLoader) or hasattr(dataset, "mixup_enabled"):
        raise TypeError(f"a data set is needed: got {_shown(dataset)}; pass its data set, loader.dataset")
    indexed = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if isinstance(dataset, str | Generator | LatentBank | IterableDataset) or not indexed:
        raise TypeError(
            f"dataset needs to be a map-style data set, dataset[i] -> (image, label), or None: got {_shown(dataset)}"
        )


def _shown(value: object) -> str:
    return f"the string {value!r}" if isinstance(value, str) else type(value).__name__


# --------------------------------------------------------------------------------------------------
# Loaders
# --------------------------------------------------------------------------------------------------


def parts_of(loader: object) -> list[Any]:
    """A loader, and the samplers, data sets and collate functions that it is made of, each once."""
    found: dict[int, Any] = {}
    waiting = [loader]
    while waiting:
        part = waiting.pop()
        if part is None or isinstance(part, list | tuple | Tensor) or id(part) in found:
            continue
        found[id(part)] = part
        waiting += [getattr(part, name, None) for name in HOLDERS]
        waiting += part.datasets if isinstance(part, ConcatDataset) else []
    return list(found.values())


def is_shared_out(loader: object) -> bool:
    """Whether ranks get different samples, as far as it can be told: not of iterables without a sampler."""
    parts = parts_of(loader)
    can_be_told = hasattr(loader, "sampler") and not any(isinstance(part, IterableDataset) for part in parts)
    return not can_be_told or any(hasattr(part, name) for part in parts for name in SHARED_OUT)


def given_indices(loader: object) -> Tensor | None:
    """Samples that a loader's sampler can give, int64; None: all, as far as it can be told."""
    sampler: Any = loader
    while (inner := _inner_sampler(sampler)) is not None:
        sampler = inner
    if sampler is loader:
        return None
    try:
        if hasattr(sampler, "weights"):
            return torch.as_tensor(sampler.weights, device="cpu").nonzero()[:, 0]
        chosen = sampler if isinstance(sampler, list | tuple | range | Tensor) else list(sampler.indices)
        if len(chosen) and isinstance(chosen[0], list | tuple | range):
            chosen = list(chain(*chosen))
        return torch.as_tensor(chosen, dtype=torch.int64, device="cpu").reshape(-1)
    except (AttributeError, TypeError, ValueError, RuntimeError):  # no indices, or another meaning of the word
        return None


def _inner_sampler(sampler: Any) -> Any:
    shared_out = getattr(sampler, "dataset", None)  # of Lightning's DistributedSamplerWrapper: a sampler as a data set
    for holder, name in ((sampler, "batch_sampler"), (sampler, "sampler"), (shared_out, "_sampler")):
        if (found := getattr(holder, name, None)) is not None:
            return found
    return None


def data_of(loader: Any) -> Any:
    """The samples that a loader can give, as a data set; None: it does not tell."""
    dataset, indices = getattr(loader, "dataset", None), given_indices(loader)
    if dataset is None or isinstance(dataset, IterableDataset):
        return None
    return dataset if indices is None else Subset(dataset, indices.tolist())


# --------------------------------------------------------------------------------------------------
# Rows of the bank
# --------------------------------------------------------------------------------------------------


def _without_mixing(dataset: Any) -> Any:
    """A data set in which others that mix labels are replaced by those that they mix; None: it is not known."""
    if type(dataset) is Subset:
        inner = _without_mixing(dataset.dataset)
        return None if inner is None else Subset(inner, dataset.indices)
    if type(dataset) is ConcatDataset:
        parts = [_without_mixing(part) for part in dataset.datasets]
        return None if None in parts else ConcatDataset(parts)
    return _without_mixing(dataset.dataset) if hasattr(dataset, "mixes_labels") else dataset


def rows_to_mix(
    bank: LatentBank,
    generator: Generator,
    dataset: object | None,
    indices: Tensor | None = None,
    *,
    image_key: Key | None = None,
    label_key: Key | None = None,
) -> Tensor | None:
    """Rows of the bank whose images are trained on, int64, ascending; None: all.

    Args:
        bank: Codes and labels.
        generator: The bank's.
        dataset: The data set that is trained on; None: it is not known.
        indices: The samples of it that are; None: all.
        image_key: Place of the image in a sample; None: as the bank says.
        label_key: Place of the label, likewise.

    Raises:
        ValueError: The bank has no code of these samples, or it can be told that they are not the bank's.

    Warns:
        SplitWarning: It cannot be told, and the bank was not restricted by ``bank.subset``.
    """
    plain = _without_mixing(dataset)
    rows = None if plain is None else bank.rows_of_data(plain, generator, image_key=image_key, label_key=label_key)
    if rows is None:
        if not getattr(bank, "is_part", False):
            what = "a data set that was not given" if dataset is None else f"this {type(dataset).__name__}"
            warnings.warn(
                f"it cannot be told which rows of the bank are the images of {what}, so mixes are drawn from all of "
                "them, held-out images included: pass dataset=train_set, or bank.subset(bank.rows_for(train_set)), or "
                "bank.subset(slice(None)) where all may be mixed",
                SplitWarning,
                stacklevel=3,
            )
        return None
    if indices is not None:
        rows = rows[indices]
    rows = rows[rows >= 0].unique()
    if not len(rows):
        raise ValueError(
            "the bank has no code of any image that is trained on: pass the bank that was made of this data set, or "
            "invert it, latent_mixup.invert(dataset, generator)"
        )
    return rows if len(rows) < len(bank) else None
