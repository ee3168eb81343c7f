"""LatentBank: the inverted codes of a data set, with labels, errors and their origin."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, cast

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from latent_mixup import cards, hub
from latent_mixup.bank.columns import (
    STORED_DTYPES,
    Columns,
    check_columns,
    check_latents,
    check_metadata,
    first_repeated,
)
from latent_mixup.bank.datasets import Source, image_probes, kind_of, shows
from latent_mixup.bank.facts import bank_facts
from latent_mixup.bank.files import CodeFiles, Content, Shards, digest_of, needed_shards, write_bank
from latent_mixup.bank.looks import draw_pairs, find_generator
from latent_mixup.bank.matching import CHUNK, rows_by_image
from latent_mixup.generators.base import Generator, check_generator
from latent_mixup.labels import MISSING, Key, count_classes, hard_labels, on_cpu
from latent_mixup.pictures import notebook_png, opened, strip_sheet
from latent_mixup.sampling import keyed_generator

if TYPE_CHECKING:
    from typing_extensions import Unpack

RowIndex: TypeAlias = int | slice | Sequence[int] | Tensor

_NAMED = 10  # classes in a warning
_NAME_LENGTH = 30  # of a class in a picture
_SHOWN_LAMS = (1.0, 0.75, 0.5, 0.25, 0.0)
_DERIVED = ("labels", "_table", "_source")  # found again from the columns and the codes


class LatentBank(hub.Published):
    """The latent codes of a data set: one row a sample, on the CPU.

    The codes of a bank in a folder are read by mmap when they are asked for; such a bank pickles as the folder's name.

    Args:
        latents: ``[N, *latent_shape]``, floating and finite; float16 and float32 stay as they are.
        labels: Class of each row, ``[N]``, integers from 0, or -1 for a row without a label; or soft: floats
            ``[N, num_classes]`` from 0, each row summing to 1. With ``metadata={"multi_label": True}``, where a row may
            have several classes or none: ``[N, num_classes]`` in [0, 1], of any dtype and sum.
        source_index: Each row's index in the data set, ``[N]``, all different; None: ``0 .. N - 1``.
        mse: Reconstruction error of each row, ``[N]``, from 0 (infinity: none was found).
        lpips: Perceptual error of each row, ``[N]``, from 0.
        status: ``[N]``, 0 ok, 1 failed, 2 skipped.
        metadata: JSON values. Known keys: ``num_classes``; ``multi_label``; ``latent_space``; ``generator``, a dict
            with ``name``, ``digest`` and, for a generator from the Hub, ``repo`` and ``commit``; ``dataset``, as
            :func:`fingerprint` gives it, with ``found_by="image"`` where rows are found by their looks;
            ``inversion``; ``versions``; ``hub``, the ``repo`` and ``commit`` of a bank from the Hub.

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
        codes = check_latents(latents)
        if source_index is None:
            source_index = torch.arange(len(codes), device="cpu")
        given = {"labels": labels, "source_index": source_index, "mse": mse, "lpips": lpips, "status": status}
        stated = check_metadata({} if metadata is None else metadata)
        self._fill(codes, check_columns(given, len(codes), stated), stated)

    def _fill(
        self,
        codes: Tensor | Shards | CodeFiles,
        columns: Columns,
        metadata: dict[str, Any],
        *,
        rows: Tensor | None = None,
        num_classes: object = None,
    ) -> LatentBank:
        """Set every attribute to checked values; ``rows`` of the files are shown, None: all."""
        self._codes, self._rows, self.metadata = codes, rows, metadata
        self._cached_columns: Columns | None = columns
        stated = metadata.get("num_classes") if num_classes is None else num_classes
        self.num_classes = count_classes(columns["labels"], stated, metadata.get("classes"))
        return self

    # ---------------------------------------------------------------------------------------------
    # Reading
    # ---------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        missing = int((self.labels < 0).sum())
        soft = ", multi-label" if self.multi_label else ", soft labels" * (self.labels.ndim == 2)
        kind = soft + f", {missing} without a label" * bool(missing)
        return f"LatentBank({len(self)} rows of {self.latent_shape}, {self.num_classes} classes{kind})"

    def __getitem__(self, rows: RowIndex) -> tuple[Tensor, Tensor]:
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
        in_files = wanted if self._rows is None else self._rows[wanted]
        table = self._table
        latents = cast("Shards", self._codes).latents(in_files) if table is None else table[in_files].float()
        labels = self.labels[wanted]
        if isinstance(rows, int) or getattr(rows, "ndim", 1) == 0:
            return latents[0], labels[0]
        return latents, labels

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one code."""
        return tuple(self._codes.shape[1:])

    @property
    def folder(self) -> Path | None:
        """The folder that the codes are read from; None: they are in memory."""
        return None if isinstance(self._codes, Tensor) else self._codes.folder

    @property
    def dtype(self) -> torch.dtype:
        """How the codes are stored; they are read as float32."""
        return self._codes.dtype

    @property
    def latent_space(self) -> str | None:
        """``"z"``, ``"w"``, ``"w+"`` or ``"vae"``, from the metadata."""
        return cast("str | None", self.metadata.get("latent_space"))

    @property
    def generator_digest(self) -> str | None:
        """``Generator.digest()`` of the generator the codes belong to, from the metadata."""
        return cast("str | None", (self.metadata.get("generator") or {}).get("digest"))

    @cached_property
    def labels(self) -> Tensor:
        """Class of each row, ``[N]`` int64, -1 for none; or soft labels, ``[N, num_classes]`` float32."""
        return self._columns["labels"]

    @property
    def multi_label(self) -> bool:
        """Whether a row may have several classes or none, from the metadata; labels then need not sum to 1."""
        return bool(self.metadata.get("multi_label", False))

    @property
    def hard_labels(self) -> Tensor:
        """Class of each row, ``[N]`` int64, -1 for none; of a soft label the first of the most probable classes.

        In a :attr:`multi_label` bank no row has one class: all are -1.
        """
        return torch.full((len(self),), MISSING, device="cpu") if self.multi_label else hard_labels(self.labels)

    @property
    def class_names(self) -> list[str]:
        """The names of the classes; their numbers where the metadata does not name them all."""
        named = self.metadata.get("classes")
        if isinstance(named, list) and len(named) == self.num_classes and all(isinstance(name, str) for name in named):
            return named
        return [str(number) for number in range(self.num_classes)]

    @property
    def class_counts(self) -> Tensor:
        """Number of rows of each class, ``[num_classes]`` int64; a soft label counts for its most probable class.

        A :attr:`multi_label` row counts for each class that it has with 0.5 or more.
        """
        if self.multi_label:
            return (self.labels >= 0.5).sum(0)
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
        return self._source.rows_of(on_cpu(indices).to(torch.int64).reshape(-1))

    def digest(self) -> str:
        """SHA-256 over shape, columns and the float32 values of all codes (not the metadata)."""
        if isinstance(self._codes, Shards) and self._rows is None:
            return self._codes.index.digest
        return digest_of(self._content(), self.dtype)

    @property
    def _columns(self) -> Columns:
        if self._cached_columns is None:  # this process got the bank as the name of its folder
            self._cached_columns = _select(cast("Shards", self._codes).columns, self._rows)
        return self._cached_columns

    @cached_property
    def _table(self) -> Tensor | None:
        """All codes, in memory or mmapped from one file, where a row number finds its code; else None."""
        if isinstance(self._codes, Shards):
            return self._codes.parts[0]["latents"] if len(self._codes.parts) == 1 else None
        return self._codes if isinstance(self._codes, Tensor) else None

    def _content(self) -> Content:
        return Content(self.latent_shape, self._columns, lambda rows: self[rows][0])

    def _row_numbers(self, rows: RowIndex) -> Tensor:
        """Any way of naming rows => int64 ``[B]`` in ``[0, N)``."""
        size = self.labels.shape[0]
        if isinstance(rows, slice):
            return torch.arange(*rows.indices(size), device="cpu")
        numbers = rows if isinstance(rows, Tensor) and rows.is_cpu else on_cpu(rows)
        if numbers.dtype == torch.bool and numbers.shape == (size,):
            return numbers.nonzero()[:, 0]
        if numbers.numel() and (numbers.is_floating_point() or numbers.dtype == torch.bool):
            raise TypeError(f"bank[rows] needs integers, or one bool per row: got {numbers.dtype}")
        if numbers.ndim > 1:
            raise TypeError(f"bank[rows] needs rows of shape [B]: got {list(numbers.shape)}")
        numbers = numbers.to(torch.int64).reshape(-1)
        outside = (numbers < -size) | (numbers >= size)
        if outside.any():
            raise IndexError(f"row {int(numbers[outside][0])} is out of range for a bank of {size} rows")
        return torch.where(numbers < 0, numbers + size, numbers)

    def __getstate__(self) -> dict[str, Any]:
        """A bank in a folder is sent as the folder: the other process opens it when it first reads."""
        state = {name: value for name, value in self.__dict__.items() if name not in _DERIVED}
        return state | ({"_cached_columns": None} if isinstance(self._codes, Shards) else {})

    # ---------------------------------------------------------------------------------------------
    # Looking
    # ---------------------------------------------------------------------------------------------

    def show(self, generator: Generator | None = None, *, pairs: int = 8, seed: int = 0) -> Image.Image:
        """A picture of some rows and their mixes: a line for each pair, of two classes where there are any.

        Args:
            generator: The bank's; None: loaded by what the bank says of it, from the Hub as well.
            pairs: Number of lines.
            seed: Of the choice of rows.

        Returns:
            From the decode of a row, on the left, to that of its partner, ``lam`` above each column. Notebooks show it,
            ``save(path)`` writes it.

        Raises:
            TypeError: ``generator`` is something else.
            ValueError: ``pairs`` is below 1, the generator is another bank's, or its images are neither grey nor RGB.
            FileNotFoundError: The bank does not say where its generator is.

        Example:
            >>> LatentBank.from_pretrained("fashion-mnist").show(pairs=4).mode
            'RGB'
        """
        if pairs < 1:
            raise ValueError(f"pairs needs to be at least 1: got {pairs}")
        if generator is None:
            generator = find_generator(self.metadata.get("generator") or {}, self.folder)
        check_generator(generator)
        self.check(generator)
        labels, names = self.hard_labels, self.class_names
        own, other = draw_pairs(labels, pairs, keyed_generator("bank-show", seed))

        def name(row: int) -> str:
            shown = f"row {row}" if labels[row] < 0 else names[int(labels[row])]
            return textwrap.shorten(shown, _NAME_LENGTH, placeholder=" ...")

        captions = [f"{name(int(row))} to {name(int(partner))}" for row, partner in zip(own, other, strict=True)]
        return opened(strip_sheet(generator, self[own][0], self[other][0], captions, _SHOWN_LAMS))

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: :meth:`show`, where that needs no network."""
        stated = self.metadata.get("generator") or {}
        return notebook_png(lambda: self.show(find_generator(stated, self.folder, local_files_only=True)))

    # ---------------------------------------------------------------------------------------------
    # Choosing rows
    # ---------------------------------------------------------------------------------------------

    def subset(self, rows: RowIndex) -> LatentBank:
        """The bank of some rows, in the order given; the number of classes stays, and :attr:`is_part` is true.

        Raises:
            ValueError: No row is left, or a row is there twice.
        """
        part = self._choose(rows)
        part.metadata["part_of"] = self.metadata.get("part_of", len(self))
        return part

    @property
    def is_part(self) -> bool:
        """Whether rows were chosen by :meth:`subset`: the wrappers then mix all of them, whatever is trained on."""
        return "part_of" in self.metadata

    def _choose(self, rows: RowIndex) -> LatentBank:
        wanted = self._row_numbers(rows)
        if not len(wanted):
            raise ValueError("empty bank: no row was chosen, give at least one")
        if (repeated := first_repeated(wanted)) is not None:
            raise ValueError(f"subset needs each row once: row {repeated} is there twice")
        columns, metadata = _select(self._columns, wanted), self.metadata.copy()
        bank = LatentBank.__new__(LatentBank)
        if isinstance(self._codes, Tensor):
            return bank._fill(self._codes[wanted], columns, metadata, num_classes=self.num_classes)
        in_files = wanted if self._rows is None else self._rows[wanted]
        return bank._fill(self._codes, columns, metadata, rows=in_files, num_classes=self.num_classes)

    def filter(self, max_mse: float | None = None, keep: float | None = None, *, per_class: bool = False) -> LatentBank:
        """The well inverted rows, in their old order; the settings are appended to ``metadata["filtered"]``.

        A mix draws its rows uniformly, so a class with few rows left is seldom seen: compare :attr:`class_counts`.

        Args:
            max_mse: Keep rows with ``mse <= max_mse``. The paper's for MNIST is 0.1657, the median of its codes.
            keep: Then keep the best fraction by ``mse``, in ``(0, 1]``; at least one row.
            per_class: Apply ``keep`` to each class, at least one row of it.

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
            raise ValueError("per_class needs keep, the fraction of each class: got keep=None")
        if per_class and self.multi_label:
            raise ValueError("per_class needs one class a row: this bank is multi-label, leave it out")
        rows = self.mse.argsort(stable=True)
        if max_mse is not None:
            rows = rows[self.mse[rows] <= max_mse]
        if not len(rows):
            raise ValueError(f"empty bank: no row has mse <= {max_mse}, the best has {float(self.mse.min()):.4g}")
        if keep is not None:
            labels = self.hard_labels[rows]
            groups = [rows[labels == label] for label in labels.unique()] if per_class else [rows]
            rows = torch.cat([group[: max(1, round(keep * len(group)))] for group in groups])
        kept = self._choose(rows.sort().values)
        how = {"max_mse": max_mse, "keep": keep, "per_class": per_class, "rows": len(self)}
        kept.metadata["filtered"] = [*self.metadata.get("filtered", []), how]
        self._warn_of_emptied(kept)
        return kept

    def _warn_of_emptied(self, kept: LatentBank) -> None:
        emptied = ((self.class_counts > 0) & (kept.class_counts == 0)).nonzero()[:, 0].tolist()
        if not emptied:
            return
        names = self.metadata.get("classes") or []
        shown = [f"{label} ({names[label]})" if label < len(names) else str(label) for label in emptied[:_NAMED]]
        more = f" and {len(emptied) - _NAMED} more" if len(emptied) > _NAMED else ""
        warnings.warn(
            f"no row is left of class {', '.join(shown)}{more}, so no mix will have it: filter(keep=..., "
            "per_class=True) keeps the best of each class",
            stacklevel=3,
        )

    @staticmethod
    def concat(banks: Iterable[LatentBank]) -> LatentBank:
        """One bank, in memory, of the rows of several, in order; metadata they agree on stays.

        Raises:
            ValueError: They differ in shape, space, generator, columns or kind of labels, or share a
                ``source_index``.
        """
        banks = list(banks)
        if not banks:
            raise ValueError("concat needs at least one bank: got none")
        for number, bank in enumerate(banks):
            banks[0]._check_same_kind(bank, number)
        columns = {name: torch.cat([bank._columns[name] for bank in banks]) for name in banks[0]._columns}
        dtype = banks[0].dtype if len({bank.dtype for bank in banks}) == 1 else torch.float32
        latents = torch.empty(len(columns["labels"]), *banks[0].latent_shape, dtype=dtype, device="cpu")
        filled = 0
        for bank in banks:
            for start, codes in bank._content().chunks():
                latents[filled + start : filled + start + len(codes)] = codes
            filled += len(bank)
        metadata = {
            key: value
            for key, value in banks[0].metadata.items()
            if all(key in bank.metadata and bank.metadata[key] == value for bank in banks)
        }
        metadata["num_classes"] = max(bank.num_classes for bank in banks)
        if any(bank.set_aside for bank in banks):
            metadata["set_aside"] = {k: v for bank in banks for k, v in bank.metadata.get("set_aside", {}).items()}
        return LatentBank(latents, columns.pop("labels"), **columns, metadata=metadata)

    def _check_same_kind(self, bank: LatentBank, number: int) -> None:
        for what in ("latent_shape", "latent_space", "generator_digest", "multi_label"):
            expected, found = getattr(self, what), getattr(bank, what)
            if expected != found:
                raise ValueError(f"concat needs banks of one {what}: bank 0 has {expected!r}, bank {number} {found!r}")
        if self._columns.keys() != bank._columns.keys():
            raise ValueError(
                f"concat needs the same columns: bank 0 has {sorted(self._columns)}, "
                f"bank {number} {sorted(bank._columns)}"
            )
        if self.labels.shape[1:] != bank.labels.shape[1:]:
            raise ValueError(
                f"concat needs labels of one kind: bank 0 has {kind_of(self.labels)}, bank {number} "
                f"{kind_of(bank.labels)}; F.one_hot(bank.labels, num_classes).float() makes class indices soft labels"
            )

    # ---------------------------------------------------------------------------------------------
    # Belonging together
    # ---------------------------------------------------------------------------------------------

    def check(self, other: object) -> None:
        """Find out, before training starts, whether a generator or a data set belongs to this bank.

        Args:
            other: A ``Generator``: compares latent shape, latent space and, where the bank names one, the
                digest of its weights. Or a data set, whose sample i is the one with source index i: compares its
                length, and its labels as :meth:`rows_of_data` does. A class index equals its one-hot row; a missing
                label is None or -1 in the data set.

        Raises:
            ValueError: They do not belong together.
            TypeError: ``other`` is neither.
        """
        if isinstance(other, Generator):
            self._check_generator(other)
        elif hasattr(other, "__len__") and hasattr(other, "__getitem__"):
            self._source.check(other)
        else:
            raise TypeError(f"check needs a Generator or a data set with len() and [i]: got {type(other).__name__}")

    def rows_for(self, dataset: Any, generator: Generator | None = None) -> Tensor:
        """The rows whose images are in a data set, ascending: ``bank.subset(bank.rows_for(dataset))`` is its bank.

        Args:
            dataset: See :meth:`rows_of_data`, as for ``generator``.
            generator: The bank's.

        Returns:
            int64 ``[B]``, each row once, at least one.

        Raises:
            ValueError: The data set is another one, it cannot be told which rows are in it, or none is.
        """
        rows = self.rows_of_data(dataset, generator)
        if rows is None or not (rows >= 0).any():
            length = self._source.length
            made_from = "" if length is None else f"; the bank was made from a data set of {length} samples"
            what = "cannot be told" if rows is None else "is none"
            raise ValueError(
                f"which rows of the bank have their images in this {type(dataset).__name__} of {len(dataset)} samples "
                f"{what}{made_from}: pass that one or a torch.utils.data.Subset of it, or choose rows yourself, "
                "bank.subset(rows)"
            )
        return cast(Tensor, rows[rows >= 0].unique())

    def rows_of_data(
        self,
        dataset: Any,
        generator: Generator | None = None,
        *,
        image_key: Key | None = None,
        label_key: Key | None = None,
    ) -> Tensor | None:
        """The row of each sample of a data set, or None where that cannot be told.

        It can be told for the data set that the bank was made from (by its length and its labels); for ``Subset`` (also
        of ``random_split``) and ``ConcatDataset`` of it; for a data set that wraps one of these and has its length; and
        for one that states ``source_index``, the index of each of its samples in the bank's data set. No image is read
        where torchvision's or the bundled data sets hold their labels in memory, else some dozen. A bank whose
        ``metadata["dataset"]`` has ``found_by="image"`` reads all images, and finds its own among them.

        Args:
            dataset: With ``len(dataset)`` and ``dataset[i]``.
            generator: The bank's: at most 16 codes are decoded and compared with their images.
            image_key: Place of the image in a sample; None: that of the images the bank was made from.
            label_key: Place of the label, likewise.

        Returns:
            int64 ``[len(dataset)]``, -1 for a sample without a code.

        Raises:
            ValueError: Labels or images are not the bank's: the data set is another one, or its labels were changed.
        """
        image_key = (self.metadata.get("samples") or {}).get("image_key") if image_key is None else image_key
        source = self._source if label_key is None else replace(self._source, label_key=label_key)
        if (self.metadata.get("dataset") or {}).get("found_by") == "image":
            return self._rows_by_image(dataset, generator, image_key, source)
        index = source.find(dataset)
        if index is None:
            return None
        rows = source.rows_of(index)
        if generator is not None:
            self._check_images(dataset, rows, generator, image_key)
        return rows

    @torch.no_grad()
    def _rows_by_image(
        self, dataset: Any, generator: Generator | None, image_key: Key | None, source: Source
    ) -> Tensor:
        """See :meth:`rows_of_data`."""
        if generator is None:
            raise ValueError("the codes of this bank are matched to images: pass its generator as well")
        device = generator.device
        codes = (self[start : start + CHUNK][0] for start in range(0, len(self), CHUNK))
        decodes = (generator.coder.decode(part.to(device)).cpu() for part in codes)
        rows = rows_by_image(dataset, decodes, image_key)
        coded = (rows >= 0).nonzero()[:, 0]
        fault = source.label_fault(dataset, rows[coded], coded) if len(coded) else None
        if fault is not None:
            raise ValueError(fault)
        return rows

    @property
    def set_aside(self) -> dict[int, str]:
        """The images that ``invert`` could not use: source index => error; they have no row."""
        return {int(index): error for index, error in (self.metadata.get("set_aside") or {}).items()}

    def usable(self, dataset: Any) -> Any:
        """A data set without the images that ``invert`` could not use, for a loader that would fail at them.

        Args:
            dataset: See :meth:`rows_of_data`.

        Returns:
            ``dataset`` itself where it has none of them, else a ``Subset`` of it.

        Raises:
            ValueError: It cannot be told which images these are.

        Example:
            >>> DataLoader(bank.usable(ImageFolder("photos")), 64)  # doctest: +SKIP
        """
        aside = self._source.set_aside
        if not len(aside):
            return dataset
        if (index := self._source.find(dataset)) is None:
            raise ValueError(
                f"which images of this {type(dataset).__name__} were set aside cannot be told: pass the data set that "
                "the bank was made from, or a torch.utils.data.Subset of it"
            )
        kept = (~torch.isin(index, aside)).nonzero()[:, 0].tolist()
        return dataset if len(kept) == len(dataset) else Subset(dataset, kept)

    @cached_property
    def _source(self) -> Source:
        """What the bank knows of its data set."""
        length = (self.metadata.get("dataset") or {}).get("length")
        label_key = (self.metadata.get("samples") or {}).get("label_key")
        aside = torch.tensor(list(self.set_aside), dtype=torch.int64, device="cpu")
        return Source(self.source_index, self.labels, length, label_key, aside, self.multi_label)

    def _check_images(self, dataset: Any, rows: Tensor, generator: Generator, image_key: Key | None) -> None:
        coded = (rows >= 0).nonzero()[:, 0]
        if not len(coded):
            return
        probes = coded[image_probes(self.labels[rows[coded]])]
        codes, labels = self[rows[probes]]
        with torch.no_grad():
            decodes = generator.coder.decode(codes.to(generator.device)).cpu()
        apart = (decodes - decodes.flip(0)).square().mean()
        if self.mse is not None and self.mse[rows[probes]].mean() > apart / 2:
            return  # by the bank's own account its codes are no likenesses: such as those of random weights
        if not shows(dataset, probes.tolist(), decodes, labels, image_key):
            raise ValueError(
                f"the images of this {type(dataset).__name__} are not those of the bank, whose codes decode to others: "
                "pass the data set the bank was made from, in its order, or invert this one"
            )

    def _check_generator(self, generator: Generator) -> None:
        if tuple(generator.latent_shape) != self.latent_shape:
            raise ValueError(
                f"the bank's codes have shape {self.latent_shape}, the generator takes "
                f"{tuple(generator.latent_shape)}: load the generator the bank was made with"
            )
        if self.latent_space not in (None, generator.latent_space):
            raise ValueError(
                f"the bank's codes lie in {self.latent_space!r}, the generator decodes "
                f"{generator.latent_space!r}: load the generator the bank was made with"
            )
        if self.generator_digest is not None and self.generator_digest != (digest := generator.coder.digest()):
            stated, origin = self.metadata["generator"], hub.stated_origin(generator.metadata)
            wanted = _place_of(stated) or stated.get("name") or "the one it was made with"
            this = f"this one ({_place_of(origin)})" if origin else "this one"
            raise ValueError(
                f"the bank belongs to a generator with digest {self.generator_digest[:12]} ({wanted}), "
                f"{this} has {digest[:12]}: load that generator, or invert the data set with this one"
            )

    def check_labelled(self) -> None:
        """Raise ``ValueError`` where a row has no label: it can be neither mixed nor trained on."""
        missing = (self.labels < 0).nonzero()[:, 0]
        if len(missing) == len(self):
            raise ValueError(
                f"none of the bank's {len(self)} rows has a label (all are -1): give them labels, "
                "LatentBank(bank[:][0], labels, source_index=bank.source_index)"
            )
        if len(missing):
            raise ValueError(
                f"{len(missing)} of the bank's {len(self)} rows have no label (-1), the first is row "
                f"{int(missing[0])}: go on with those that have one, bank.subset(bank.labels >= 0)"
            )

    # ---------------------------------------------------------------------------------------------
    # Files
    # ---------------------------------------------------------------------------------------------

    def describe(self, *, dtype: torch.dtype | None = None) -> cards.Facts:
        """What the bank's card says.

        Args:
            dtype: Of the codes as they are stored; None: as the bank has them.
        """
        stored = dtype or self.dtype
        return bank_facts(
            self.labels, self.latent_shape, stored, self.num_classes, self.metadata, self.mse, self.status
        )

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
            ValueError: A code does not fit in float16, or the format cannot hold the bank; nothing was written.
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
            beside=cards.card_file(folder, lambda: self.describe(dtype=dtype)),
        )

    @classmethod
    def from_pretrained(cls, name: str | Path, *, verify: bool = False, **where: Unpack[hub.HubOptions]) -> LatentBank:
        """Open a bank: a folder, a bundled name, or a Hub data set ``org/repo[@revision]``.

        Files are opened, their sizes and headers compared with the index; codes are read when asked for. The SHA-256
        of a downloaded file is compared with the index as well.

        Args:
            name: A folder; a bundled name such as ``"fashion-mnist"``; or ``org/repo[@revision]``.
            verify: Read everything once: compare each file's SHA-256 and look for NaN.
            where: ``revision``, ``cache_dir``, ``token``, ``local_files_only``: see :class:`hub.HubOptions`.

        Raises:
            BankFormatError: The folder holds no bank that this version reads.
            FileNotFoundError: There is nothing of this name.
            hub.HubError: The Hub did not give it.
        """
        folder = hub.locate(name, "bank", needed_shards, **where)
        shards = Shards.open(folder.absolute(), verify=verify)
        metadata = hub.with_origin(shards.metadata, shards.folder)
        return cls.__new__(cls)._fill(shards, shards.columns, metadata, num_classes=shards.index.num_classes)

    @classmethod
    def from_files(cls, codes: CodeFiles, metadata: Mapping[str, Any]) -> LatentBank:
        """A bank of codes that lie in several files; they are read when they are asked for.

        Raises:
            ValueError: There is no row, or a column does not fit.
        """
        num_rows = codes.shape[0]
        if not num_rows:
            raise ValueError("empty bank: no file has a row")
        stated = check_metadata(metadata)
        return cls.__new__(cls)._fill(codes, check_columns(codes.columns, num_rows, stated), stated)


def _place_of(generator: Mapping[str, Any]) -> str | None:
    """Where a generator is on the Hub, as ``load_generator`` takes it: ``org/repo@commit``; None for nowhere."""
    repo, commit = generator.get("repo"), generator.get("commit")
    return f"{repo}@{commit}" if repo and commit else None


def _select(columns: Columns, rows: Tensor | None) -> Columns:
    return columns if rows is None else {name: column[rows] for name, column in columns.items()}
