"""What a bank refuses: columns, codes and metadata that a user gives, and the same laws for what a file says."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latent_mixup import hub
from latent_mixup.bank.files import (
    COLUMN_DTYPES,
    STORED_DTYPES,
    BankFormatError,
    Columns,
    Index,
    first_not_finite,
    least_version,
)
from latent_mixup.generators.base import Generator
from latent_mixup.labels import (
    as_labels,
    count_classes,
    describe_label,
    differing,
    labels_of,
    targets_of,
)

if TYPE_CHECKING:
    from latent_mixup.bank.bank import LatentBank

_PROBES = 16
_NAMED = 10  # classes in a warning


def check_latents(latents: Tensor) -> Tensor:
    """Codes as a bank keeps them, ``[N, *latent_shape]`` on the CPU; raises ``ValueError`` for what is none."""
    if latents.ndim < 2:
        raise ValueError(f"latents need shape [N, *latent_shape]: got {list(latents.shape)}")
    if not len(latents):
        raise ValueError("empty bank: latents have no row, give at least one")
    if not latents.numel():
        raise ValueError(f"latents need at least one number a row: got {list(latents.shape)}")
    if not latents.is_floating_point():
        raise ValueError(f"latents need a floating dtype: got {latents.dtype}")
    latents = latents.detach().cpu()
    if latents.dtype not in STORED_DTYPES.values():
        latents = latents.float()
    if (row := first_not_finite(latents)) is not None:
        raise ValueError(f"latents need finite numbers: row {row} has NaN or infinity, leave it out")
    return latents


def check_column(name: str, values: Any, num_rows: int) -> Tensor:
    """One value per row, in the column's dtype, without a silent change of a value; else ``ValueError``."""
    if name == "labels":
        return as_labels(values, num_rows)
    column = torch.as_tensor(values).detach().cpu()
    dtype = COLUMN_DTYPES[name]
    if tuple(column.shape) != (num_rows,):
        raise ValueError(f"{name} needs one entry per row, [{num_rows}]: got {list(column.shape)}")
    if not dtype.is_floating_point and (column.is_floating_point() or column.is_complex()):
        raise ValueError(f"{name} needs integers: got {column.dtype}")
    bad = column.isnan() | (column < 0) if column.is_floating_point() else column < 0
    if dtype == torch.uint8:
        bad |= column > 255
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(f"{name} needs numbers from 0: row {row} has {column[row].item()}")
    if name == "source_index" and (repeated := first_repeated(column)) is not None:
        raise ValueError(f"source_index needs one row per sample: {repeated} is there twice")
    return column.to(dtype)


def first_repeated(values: Tensor) -> int | None:
    """The least value that is there twice; None: there is none."""
    ordered = values.sort().values
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    return int(repeated[0]) if len(repeated) else None


def check_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A copy as JSON would give it back, with the known keys checked; else ``ValueError``."""
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as cause:
        raise ValueError(f"metadata needs to be what JSON can say: {cause}") from cause
    generator = copy.get("generator", {})
    if not isinstance(generator, dict) or not isinstance(generator.get("digest", ""), str | None):
        raise ValueError(f"metadata['generator'] needs to be a dict with a digest: got {generator!r:.200}")
    for key in ("repo", "commit"):
        if not isinstance(generator.get(key), str | None):
            raise ValueError(f"metadata['generator']['{key}'] needs to be a string: got {generator[key]!r:.100}")
    if not isinstance(space := copy.get("latent_space"), str | None):
        raise ValueError(f"metadata['latent_space'] needs to be a string: got {space!r}")
    return copy


# --------------------------------------------------------------------------------------------------
# Belonging together
# --------------------------------------------------------------------------------------------------


def check_generator(bank: LatentBank, generator: Generator) -> None:
    """Raise ``ValueError`` unless the generator decodes the bank's codes."""
    if tuple(generator.latent_shape) != bank.latent_shape:
        raise ValueError(
            f"the bank's codes have shape {bank.latent_shape}, the generator takes "
            f"{tuple(generator.latent_shape)}: load the generator the bank was made with"
        )
    if bank.latent_space not in (None, generator.latent_space):
        raise ValueError(
            f"the bank's codes lie in {bank.latent_space!r}, the generator decodes "
            f"{generator.latent_space!r}: load the generator the bank was made with"
        )
    if bank.generator_digest is not None and bank.generator_digest != (digest := generator.digest()):
        stated, origin = bank.metadata["generator"], hub.stated_origin(generator.metadata)
        wanted = place_of(stated) or stated.get("name") or "the one it was made with"
        this = f"this one ({place_of(origin)})" if origin else "this one"
        raise ValueError(
            f"the bank belongs to a generator with digest {bank.generator_digest[:12]} ({wanted}), "
            f"{this} has {digest[:12]}: load that generator, or invert the data set with this one"
        )


def place_of(generator: Mapping[str, Any]) -> str | None:
    """Where a generator is on the Hub, as ``load_generator`` takes it: ``org/repo@commit``; None for nowhere."""
    repo, commit = generator.get("repo"), generator.get("commit")
    return f"{repo}@{commit}" if repo and commit else None


def check_dataset(bank: LatentBank, dataset: Any) -> None:
    """Raise ``ValueError`` unless the data set has the samples and the labels that the bank says."""
    needed = int(bank.source_index.max()) + 1
    if len(dataset) < needed:
        raise ValueError(
            f"the bank has codes of {needed} samples (its largest source_index is {needed - 1}), the "
            f"data set has {len(dataset)}: pass the data set the bank was made from"
        )
    targets = targets_of(dataset)
    if targets is None:
        rows = torch.linspace(0, len(bank) - 1, min(_PROBES, len(bank))).long()
        key = (bank.metadata.get("samples") or {}).get("label_key")
        labels = labels_of(dataset, bank.source_index[rows].tolist(), key)
    else:
        rows = torch.arange(len(bank))
        labels = targets[bank.source_index]
    if labels.ndim == 2 and labels.shape[1:] != bank.labels.shape[1:]:
        raise ValueError(
            f"the data set has {_kind(labels)}, the bank {_kind(bank.labels)}: invert the data set again, or keep the "
            "codes, LatentBank(bank[:][0], labels, source_index=bank.source_index)"
        )
    wrong = differing(labels, bank.labels[rows]).nonzero()
    if len(wrong):
        row = int(rows[wrong[0, 0]])
        raise ValueError(
            f"sample {int(bank.source_index[row])} has label {describe_label(labels[wrong[0, 0]])} in the data set "
            f"and {describe_label(bank.labels[row])} in the bank: pass the data set the bank was made from, "
            "in its order"
        )


def check_labelled(bank: LatentBank) -> None:
    """Raise ``ValueError`` where a row has no label, and so cannot be mixed or trained on."""
    missing = (bank.labels < 0).nonzero()[:, 0]
    if not len(missing):
        return
    if len(missing) == len(bank):
        raise ValueError(
            f"none of the bank's {len(bank)} rows has a label (-1 says so): give them labels, "
            "LatentBank(bank[:][0], labels, source_index=bank.source_index)"
        )
    raise ValueError(
        f"{len(missing)} of the bank's {len(bank)} rows have no label (-1), the first is row {int(missing[0])}: "
        "go on with those that have one, bank.subset(bank.labels >= 0)"
    )


def warn_of_emptied(bank: LatentBank, kept: LatentBank) -> None:
    """Warn where a class of ``bank`` has no row in ``kept``, a choice of its rows."""
    emptied = ((bank.class_counts > 0) & (kept.class_counts == 0)).nonzero()[:, 0].tolist()
    if not emptied:
        return
    names = bank.metadata.get("classes") or []
    shown = [f"{label} ({names[label]})" if label < len(names) else str(label) for label in emptied[:_NAMED]]
    more = f" and {len(emptied) - _NAMED} more" if len(emptied) > _NAMED else ""
    warnings.warn(
        f"no row is left of class {', '.join(shown)}{more}, so no mix will have it: filter(keep=..., per_class=True) "
        "keeps the best of each class",
        stacklevel=3,
    )


def check_belong(first: LatentBank, bank: LatentBank, number: int) -> None:
    """Raise unless ``bank`` may be appended to ``first``."""
    for what in ("latent_shape", "latent_space", "generator_digest"):
        expected, found = getattr(first, what), getattr(bank, what)
        if expected != found:
            raise ValueError(f"concat needs banks of one {what}: bank 0 has {expected!r}, bank {number} {found!r}")
    if first._columns.keys() != bank._columns.keys():
        raise ValueError(
            f"concat needs the same columns: bank 0 has {sorted(first._columns)}, bank {number} {sorted(bank._columns)}"
        )
    if first.labels.shape[1:] != bank.labels.shape[1:]:
        raise ValueError(
            f"concat needs labels of one kind: bank 0 has {_kind(first.labels)}, bank {number} {_kind(bank.labels)}; "
            "F.one_hot(bank.labels, num_classes).float() says class indices as soft labels"
        )


def _kind(labels: Tensor) -> str:
    return f"soft labels of {labels.shape[1]} classes" if labels.ndim == 2 else "class indices"


# --------------------------------------------------------------------------------------------------
# The same laws for what a file says
# --------------------------------------------------------------------------------------------------


def check_file_metadata(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """:func:`check_metadata` of an index; raises ``BankFormatError``."""
    try:
        return check_metadata(metadata)
    except ValueError as cause:
        raise BankFormatError(f"{path}: {cause}") from cause


def check_file_columns(folder: Path, columns: Columns, index: Index) -> None:
    """Raise ``BankFormatError`` unless the columns of a folder are those of a bank, and what its index says."""
    try:
        for name, column in columns.items():
            check_column(name, column, index.num_rows)
        if (needed := least_version(columns["labels"])) > index.format_version:
            row = int((columns["labels"] < 0).nonzero()[0])
            raise ValueError(f"labels needs numbers from 0 before format_version {needed}: row {row} has -1")
        count_classes(columns["labels"], index.num_classes)
    except ValueError as cause:
        raise BankFormatError(f"{folder}: {cause}") from cause
