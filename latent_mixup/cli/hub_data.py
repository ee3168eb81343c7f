"""``hf:NAME[@split]``: data sets of Hugging Face ``datasets``, from its cache or, on request, the Hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PREFIX = "hf:"
NO_LABELS = "none"  # as a key of labels


def hub_dataset(
    text: str,
    *,
    test: bool = False,
    download: bool = False,
    image_key: str | None = None,
    label_key: str | None = None,
) -> Any:
    """A data set of ``datasets``, whose samples are dictionaries with an image and a label.

    Args:
        text: ``hf:NAME[@split]``: a name on the Hub, a folder that ``save_to_disk`` wrote, or one that ``load_dataset``
            takes.
        test: Its split ``test``; False: ``train``, unless the text names one.
        download: Whether it may be fetched from the Hub.
        image_key: Column of the images; None: one of the usual names.
        label_key: Column of the labels, likewise; ``"none"``: samples are images alone.

    Raises:
        ImportError: ``datasets`` is not installed.
        FileNotFoundError: It is not there, or not in the cache and ``download`` is False.
        ValueError: It has no such split or column, or the text names a split beside ``test``.
    """
    found = _opened(text, test, download)
    columns = getattr(found, "column_names", [])
    for option, key in (("--image-key", image_key), ("--label-key", label_key)):
        if key not in (None, *columns) and (option, key) != ("--label-key", NO_LABELS):
            raise ValueError(f"{option} {key}: {text} has no such column, choose from {', '.join(columns)}")
    if label_key == NO_LABELS and NO_LABELS not in columns:
        from latent_mixup.images import image_key_of

        return found.select_columns([image_key or image_key_of(dict.fromkeys(columns))])
    return found


def _opened(text: str, test: bool, download: bool) -> Any:
    """See :func:`hub_dataset`."""
    name, _, split = text.removeprefix(PREFIX).partition("@")
    if not name or (split and test):
        wrong = f"leave out --test beside @{split}" if name else "the name is missing"
        raise ValueError(f"a data set of the Hub is {PREFIX}NAME[@split], such as {PREFIX}cifar10@test: {wrong}")
    try:
        import datasets
    except ImportError as cause:
        raise ImportError(f'{text} needs the library datasets: pip install "latent-mixup[datasets]"') from cause
    split = split or ("test" if test else "train")
    saved = [Path(name) / file for file in ("dataset_dict.json", "dataset_info.json")]
    if any(file.is_file() for file in saved):
        found = datasets.load_from_disk(name)
        if not isinstance(found, datasets.DatasetDict):
            if split != "train":
                raise ValueError(f"{name} holds one data set without splits: leave out the split {split}")
            return found
        if split not in found:
            raise ValueError(f"{name} has no split {split!r}: choose from {', '.join(found)}")
        return found[split]
    try:
        with contextlib.nullcontext() if download else _offline(datasets):
            return datasets.load_dataset(name, split=split)
    except OSError as cause:
        mend = "" if download else "; pass --download to fetch it from the Hub"
        where = "on the Hub" if download else "in the cache of datasets"
        raise FileNotFoundError(f"{name} is not {where}: {cause}{mend}") from cause


@contextlib.contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """Inside, ``datasets`` asks no server."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
