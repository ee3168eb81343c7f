"""LatentBank: the inverted codes of a data set, with labels, quality and where they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, cast

import torch
from torch import Tensor

from latent_mixup import cards, hub
from latent_mixup.bank.columns import (
    check_belong,
    check_column,
    check_dataset,
    check_file_columns,
    check_file_metadata,
    check_generator,
    check_labelled,
    check_latents,
    check_metadata,
    first_repeated,
    warn_of_emptied,
)
from latent_mixup.bank.files import (
    INDEX_FILE,
    STORED_DTYPES,
    BankFormatError,
    Columns,
    Content,
    Parts,
    Shards,
    digest_of,
    needed_shards,
    write_bank,
)
from latent_mixup.generators.base import Generator
from latent_mixup.labels import count_classes, hard_labels, targets_of

__all__ = ["BankFormatError", "LatentBank", "fingerprint"]

Rows: TypeAlias = int | slice | Sequence[int] | Tensor


class LatentBank(hub.Published):
    """The latent codes of a data set: one row a sample, on the CPU.

    A bank from a folder reads its codes by mmap when they are asked for, and pickles as the folder's name.

    Args:
        latents: ``[N, *latent_shape]``, floating and finite; float16 and float32 stay as they are.
        labels: Class of each row, ``[N]``, integers from 0, or -1 where a row has no label; or soft: floats
            ``[N, num_classes]``, each row from 0 and summing to 1.
        source_index: Each row's index in the data set, ``[N]``, no two alike; None: ``0 .. N - 1``.
        mse: Reconstruction error of each row, ``[N]``, from 0 (infinity: none was found).
        lpips: Perceptual error of each row, ``[N]``, from 0.
        status: ``[N]``, 0 ok, 1 failed, 2 skipped.
        metadata: What JSON can say. Known keys: ``num_classes``; ``latent_space``; ``generator``, a dict with
            ``name``, ``digest`` and, of one from the Hub, ``repo`` and ``commit``; ``dataset``, as :func:`fingerprint`
            gives it; ``inversion``; ``versions``; of a bank from the Hub ``hub``, its own ``repo`` and ``commit``.

    Raises:
        ValueError: There is no row, or a column does not fit.

    Example:
        >>> bank = LatentBank(torch.randn(4, 512), torch.tensor([0, 1, 0, 2]))
        >>> bank[[0, 3]][0].shape
        torch.Size([2, 512])
    """

    hub_kind: ClassVar[hub.Kind] = "bank"

    def __init__(
        self,
        latents: Tensor,
        labels: Tensor | Sequence[int] | Sequence[Sequence[float]],
        *,
        source_index: Tensor | Sequence[int] | None = None,
        mse: Tensor | Sequence[float] | None = None,
        lpips: Tensor | Sequence[float] | None = None,
        status: Tensor | Sequence[int] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        codes = check_latents(torch.as_tensor(latents))
        given = {"labels": labels, "source_index": source_index, "mse": mse, "lpips": lpips, "status": status}
        if source_index is None:
            given["source_index"] = torch.arange(len(codes))
        columns = {name: check_column(name, value, len(codes)) for name, value in given.items() if value is not None}
        checked = check_metadata({} if metadata is None else metadata)
        self._fill(codes, None, columns, checked, count_classes(columns["labels"], checked.get("num_classes")))

    def _fill(
        self,
        codes: Tensor | Shards | Parts,
        rows: Tensor | None,
        columns: Columns | None,
        metadata: dict[str, Any],
        num_classes: int,
    ) -> None:
        self._codes = codes
        self._rows = rows  # rows of the shards that this bank shows; None: all
        self._cached_columns = columns
        self._lookup: tuple[Tensor, Tensor] | None = None
        self.metadata = metadata
        self.num_classes = num_classes

    # ---------------------------------------------------------------------------------------------
    # Reading
    # ---------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        missing = int((self.labels < 0).sum())
        kind = ", soft labels" * (self.labels.ndim == 2) + f", {missing} without a label" * bool(missing)
        return f"LatentBank({len(self)} rows of {self.latent_shape}, {self.num_classes} classes{kind})"

    def __getitem__(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Codes and labels of some rows, as on a Python list: negative rows count from the end.

        Args:
            rows: An int64 tensor ``[B]`` or a list, a bool tensor ``[N]``, a slice, or one int.

        Returns:
            Latents ``[B, *latent_shape]`` float32, and labels as in :attr:`labels`, ``[B]`` or
            ``[B, num_classes]``; without the batch for one int.

        Raises:
            IndexError: A row is out of range.
            TypeError: Rows are not integers.
        """
        wanted = self._row_numbers(rows)
        latents, labels = self._latents(wanted), self.labels[wanted]
        if not isinstance(rows, slice) and torch.as_tensor(rows).ndim == 0:
            return latents[0], labels[0]
        return latents, labels

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one code."""
        return tuple(self._codes.shape[1:])

    @property
    def folder(self) -> Path | None:
        """Where the files are that the codes are read from; None: they are in memory."""
        if isinstance(self._codes, Parts):
            return self._codes.files[0].parent
        return self._codes.folder if isinstance(self._codes, Shards) else None

    @property
    def dtype(self) -> torch.dtype:
        """What the codes are kept in; they are handed out as float32."""
        return self._codes.dtype

    @property
    def latent_space(self) -> str | None:
        """``"z"``, ``"w"``, ``"w+"`` or ``"vae"``, from the metadata."""
        return cast("str | None", self.metadata.get("latent_space"))

    @property
    def generator_digest(self) -> str | None:
        """``Generator.digest()`` of the generator the codes belong to, from the metadata."""
        return cast("str | None", (self.metadata.get("generator") or {}).get("digest"))

    @property
    def labels(self) -> Tensor:
        """Class of each row, ``[N]`` int64, -1 for none; or soft labels, ``[N, num_classes]`` float32."""
        return self._columns["labels"]

    @property
    def hard_labels(self) -> Tensor:
        """Class of each row, ``[N]`` int64, -1 for none; of a soft label the likeliest, of equals the first."""
        return hard_labels(self.labels)

    @property
    def class_counts(self) -> Tensor:
        """How many rows each class has, ``[num_classes]`` int64; a soft label counts for its likeliest class."""
        labels = self.hard_labels
        return torch.bincount(labels[labels >= 0], minlength=self.num_classes)

    @property
    def source_index(self) -> Tensor:
        """Each row's index in the data set, ``[N]`` int64."""
        return self._columns["source_index"]

    @property
    def mse(self) -> Tensor | None:
        """Reconstruction error of each row, ``[N]`` float32."""
        return self._columns.get("mse")

    @property
    def lpips(self) -> Tensor | None:
        """Perceptual error of each row, ``[N]`` float32."""
        return self._columns.get("lpips")

    @property
    def status(self) -> Tensor | None:
        """``[N]`` uint8: 0 ok, 1 failed, 2 skipped."""
        return self._columns.get("status")

    def rows_of(self, indices: int | Sequence[int] | Tensor) -> Tensor:
        """The row of each data set index: ``[B]`` int64, -1 where the bank has no code for it."""
        if self._lookup is None:
            ordered, rows = self.source_index.sort()
            self._lookup = (ordered, rows)
        ordered, rows = self._lookup
        wanted = torch.as_tensor(indices, dtype=torch.int64).reshape(-1)
        at = torch.searchsorted(ordered, wanted).clamp_(max=len(ordered) - 1)
        return torch.where(ordered[at] == wanted, rows[at], -1)

    def digest(self) -> str:
        """SHA-256 over shape, columns and the float32 values of all codes (not the metadata)."""
        if isinstance(self._codes, Shards) and self._rows is None:
            return self._codes.index.digest
        return digest_of(self._content(), self.dtype)

    @property
    def _columns(self) -> Columns:
        if self._cached_columns is None:
            columns = cast("Shards | Parts", self._codes).columns
            self._cached_columns = columns if self._rows is None else _select(columns, self._rows)
        return self._cached_columns

    def _latents(self, rows: Tensor) -> Tensor:
        if isinstance(self._codes, Tensor):
            return self._codes[rows].float()
        return self._codes.latents(rows if self._rows is None else self._rows[rows])

    def _content(self) -> Content:
        return Content(self.latent_shape, self._columns, lambda rows: self[rows][0])

    def _row_numbers(self, rows: Rows) -> Tensor:
        """Any way of naming rows => int64 ``[B]`` in ``[0, N)``."""
        if isinstance(rows, slice):
            return torch.arange(*rows.indices(len(self)))
        numbers = torch.as_tensor(rows)
        if numbers.dtype == torch.bool and numbers.shape == (len(self),):
            return numbers.nonzero()[:, 0]
        if numbers.numel() and (numbers.is_floating_point() or numbers.dtype == torch.bool):
            raise TypeError(f"bank[rows] needs integers, or one bool per row: got {numbers.dtype}")
        if numbers.ndim > 1:
            raise TypeError(f"bank[rows] needs rows of shape [B]: got {list(numbers.shape)}")
        numbers = numbers.to("cpu", torch.int64).reshape(-1)
        outside = (numbers < -len(self)) | (numbers >= len(self))
        if outside.any():
            raise IndexError(f"row {int(numbers[outside][0])} is out of range for a bank of {len(self)} rows")
        return torch.where(numbers < 0, numbers + len(self), numbers)

    def __getstate__(self) -> dict[str, Any]:
        """A bank from a folder is sent as the folder: the other process opens it when it first reads."""
        state = self.__dict__.copy()
        state["_lookup"] = None
        if isinstance(self._codes, Shards):
            state["_cached_columns"] = None
        return state

    # ---------------------------------------------------------------------------------------------
    # Choosing rows
    # ---------------------------------------------------------------------------------------------

    def subset(self, rows: Rows) -> LatentBank:
        """The bank of some rows, in the order given; the number of classes stays.

        Raises:
            ValueError: No row is left, or a row is there twice.
        """
        wanted = self._row_numbers(rows)
        if not len(wanted):
            raise ValueError("empty bank: no row was chosen, give at least one")
        if (repeated := first_repeated(wanted)) is not None:
            raise ValueError(f"subset needs each row once: row {repeated} is there twice")
        bank = LatentBank.__new__(LatentBank)
        if isinstance(self._codes, Tensor):
            columns = _select(self._columns, wanted)
            bank._fill(self._codes[wanted], None, columns, self.metadata.copy(), self.num_classes)
        else:
            in_files = wanted if self._rows is None else self._rows[wanted]
            bank._fill(self._codes, in_files, None, self.metadata.copy(), self.num_classes)
        return bank

    def filter(self, max_mse: float | None = None, keep: float | None = None, *, per_class: bool = False) -> LatentBank:
        """The well inverted rows, in their old order; ``metadata["filtered"]`` says how they were chosen.

        A mix draws its rows uniformly, so a class with few rows left is seldom seen: compare :attr:`class_counts`.

        Args:
            max_mse: Rows with ``mse <= max_mse``. The paper's for MNIST is 0.1657, the median of its codes.
            keep: Then the best fraction by ``mse`` of these, in ``(0, 1]``; at least one row.
            per_class: That fraction of each class, at least one row of it.

        Raises:
            ValueError: The bank has no ``mse``, nothing was asked for, or no row is left.

        Warns:
            UserWarning: A class has no row any more.
        """
        if self.mse is None:
            raise ValueError("filter needs the mse of each row: this bank has none, make it with latent_mixup.invert")
        if max_mse is None and keep is None:
            raise ValueError("filter needs max_mse or keep: got neither")
        if keep is not None and not 0 < keep <= 1:
            raise ValueError(f"keep is the best fraction, in (0, 1]: got {keep}")
        if per_class and keep is None:
            raise ValueError("per_class says of what keep is the fraction: give keep as well")
        rows = self.mse.argsort(stable=True)
        if max_mse is not None:
            rows = rows[self.mse[rows] <= max_mse]
        if not len(rows):
            raise ValueError(f"empty bank: no row has mse <= {max_mse}, the best has {float(self.mse.min()):.4g}")
        if keep is not None:
            labels = self.hard_labels[rows]
            groups = [rows[labels == label] for label in labels.unique()] if per_class else [rows]
            rows = torch.cat([group[: max(1, round(keep * len(group)))] for group in groups])
        kept = self.subset(rows.sort().values)
        how = {"max_mse": max_mse, "keep": keep, "per_class": per_class, "rows": len(self)}
        kept.metadata["filtered"] = [*self.metadata.get("filtered", []), how]
        warn_of_emptied(self, kept)
        return kept

    @staticmethod
    def concat(banks: Iterable[LatentBank]) -> LatentBank:
        """One bank of the rows of several, in order; metadata they agree on stays.

        Raises:
            ValueError: They differ in shape, space, generator, columns or kind of labels, or share a
                ``source_index``.
        """
        banks = list(banks)
        if not banks:
            raise ValueError("concat needs at least one bank: got none")
        for number, bank in enumerate(banks):
            check_belong(banks[0], bank, number)
        columns = {name: torch.cat([bank._columns[name] for bank in banks]) for name in banks[0]._columns}
        dtype = banks[0].dtype if len({bank.dtype for bank in banks}) == 1 else torch.float32
        latents = torch.cat([bank[:][0].to(dtype) for bank in banks])
        metadata = {
            key: value
            for key, value in banks[0].metadata.items()
            if all(key in bank.metadata and bank.metadata[key] == value for bank in banks)
        }
        metadata["num_classes"] = max(bank.num_classes for bank in banks)
        return LatentBank(latents, columns.pop("labels"), **columns, metadata=metadata)

    # ---------------------------------------------------------------------------------------------
    # Belonging together
    # ---------------------------------------------------------------------------------------------

    def check(self, other: object) -> None:
        """Say, before training starts, when a generator or a data set does not belong to this bank.

        Args:
            other: A ``Generator``: compares latent shape, latent space and, where the bank names one, the
                digest of its weights. Or a data set of ``(image, label)``: compares its length with the
                source indices, and its labels with the bank's (all of ``dataset.targets`` where it has them,
                else of at most 16 items). Against soft labels of the bank a class index counts as its
                one-hot row; a missing label is None or -1 in the data set.

        Raises:
            ValueError: They do not belong together.
            TypeError: ``other`` is neither.
        """
        if isinstance(other, Generator):
            check_generator(self, other)
        elif hasattr(other, "__len__") and hasattr(other, "__getitem__"):
            check_dataset(self, other)
        else:
            raise TypeError(f"check needs a Generator or a data set with len() and [i]: got {type(other).__name__}")

    def check_labelled(self) -> None:
        """Raise ``ValueError`` where a row has no label, and so cannot be mixed or trained on."""
        check_labelled(self)

    # ---------------------------------------------------------------------------------------------
    # Files
    # ---------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float16,
        max_shard_bytes: int = 2 * 1024**3,
    ) -> None:
        """Write the bank and a card into a folder; what is there stays whole until the new bank is complete.

        The card is ``README.md``; one that somebody wrote or edited stays.

        Args:
            folder: Made where it is missing. It may be the one this bank reads from.
            dtype: ``torch.float16`` or ``torch.float32``.
            max_shard_bytes: Codes and soft labels are split into files of at most this size (one row at least).

        Raises:
            ValueError: A code does not fit in float16.
        """
        if dtype not in STORED_DTYPES.values():
            raise ValueError(f"a bank is stored as torch.float16 or torch.float32: got {dtype}")
        if max_shard_bytes < 1:
            raise ValueError(f"max_shard_bytes needs to be at least 1: got {max_shard_bytes}")
        write_bank(
            Path(folder),
            self._content(),
            self.num_classes,
            check_metadata(self.metadata),
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
            beside=cards.card_file(folder, lambda: cards.bank_card(self, dtype=dtype)),
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        verify: bool = False,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> LatentBank:
        """Open a bank: a folder, a bundled name, or a Hub data set ``org/repo[@revision]``.

        Files are opened, their sizes and headers compared with the index; codes are read when asked for. What is
        downloaded is compared with the index by its SHA-256 as well.

        Args:
            name: See :func:`latent_mixup.hub.locate`, as for the other arguments.
            verify: Read everything once: compare each file's SHA-256 and look for NaN.
            revision: Branch, tag or commit on the Hub.
            cache_dir: The Hub client's cache.
            token: The Hub client's token.
            local_files_only: Use what is in the cache, and no network.

        Raises:
            BankFormatError: What is there is no bank that this version reads.
            FileNotFoundError: There is nothing of this name.
            hub.HubError: The Hub did not give it.
        """
        folder = hub.locate(
            name,
            "bank",
            needed_shards,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        shards = Shards(folder.absolute())
        metadata = hub.with_origin(
            check_file_metadata(shards.folder / INDEX_FILE, shards.index.metadata), shards.folder
        )
        if verify:
            shards.verify()
        shards.open()
        bank = cls.__new__(cls)
        bank._fill(shards, None, None, metadata, shards.index.num_classes)
        check_file_columns(folder, bank._columns, shards.index)
        return bank

    @classmethod
    def from_parts(cls, parts: Parts, metadata: Mapping[str, Any]) -> LatentBank:
        """A bank of codes that lie in several files; they are read when they are asked for.

        Raises:
            ValueError: There is no row, or a column does not fit.
        """
        num_rows = parts.shape[0]
        if not num_rows:
            raise ValueError("empty bank: no file has a row")
        columns = {name: check_column(name, column, num_rows) for name, column in parts.columns.items()}
        checked = check_metadata(metadata)
        bank = cls.__new__(cls)
        num_classes = count_classes(columns["labels"], checked.get("num_classes"))
        bank._fill(replace(parts, columns=columns), None, columns, checked, num_classes)
        return bank


def fingerprint(dataset: Any) -> dict[str, Any]:
    """What a bank says of its data set: ``length``, and ``labels``, the SHA-256 of its targets (or None).

    Soft targets count as a bank keeps them, in float32, with their shape.
    """
    targets = targets_of(dataset)
    if targets is None:
        return {"length": len(dataset), "labels": None}
    sha = hashlib.sha256(str(list(targets.shape)).encode() if targets.ndim == 2 else b"")
    sha.update(targets.numpy().data)
    return {"length": len(dataset), "labels": sha.hexdigest()}


def _select(columns: Columns, rows: Tensor) -> Columns:
    return {name: column[rows] for name, column in columns.items()}
