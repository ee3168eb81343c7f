"""A bank and a data set: how a data set is recognised, and whether its labels are the bank's."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from latent_mixup.labels import describe_label, differing, labels_of, targets_of

_PROBES = 16


def fingerprint(dataset: Any) -> dict[str, Any]:
    """What a bank's metadata keep of its data set: ``length``, and ``labels``, the SHA-256 of its targets (or None).

    Soft targets are hashed in float32, as a bank keeps them, together with their shape.
    """
    targets = targets_of(dataset)
    if targets is None:
        return {"length": len(dataset), "labels": None}
    sha = hashlib.sha256(str(list(targets.shape)).encode() if targets.ndim == 2 else b"")
    sha.update(targets.numpy().data)
    return {"length": len(dataset), "labels": sha.hexdigest()}


def check_dataset(dataset: Any, source_index: Tensor, labels: Tensor, label_key: str | int | None = None) -> None:
    """Raise ``ValueError`` unless ``dataset[i]`` has the label that a bank states for source index ``i``.

    Args:
        dataset: Compared by ``dataset.targets`` where it has them, else by at most 16 samples.
        source_index: The bank's, ``[N]``.
        labels: The bank's, ``[N]`` or ``[N, num_classes]``.
        label_key: Where in a sample the label is; None: in the usual places.
    """
    needed = int(source_index.max()) + 1
    if len(dataset) < needed:
        raise ValueError(
            f"the bank has codes of {needed} samples (its largest source_index is {needed - 1}), the "
            f"data set has {len(dataset)}: pass the data set the bank was made from"
        )
    targets = targets_of(dataset)
    if targets is None:
        rows = torch.linspace(0, len(labels) - 1, min(_PROBES, len(labels)), device="cpu").long()
        found = labels_of(dataset, source_index[rows].tolist(), label_key)
    else:
        rows = torch.arange(len(labels), device="cpu")
        found = targets[source_index]
    if found.ndim == 2 and found.shape[1:] != labels.shape[1:]:
        raise ValueError(
            f"the data set has {kind_of(found)}, the bank {kind_of(labels)}: invert the data set again, or keep the "
            "codes, LatentBank(bank[:][0], labels, source_index=bank.source_index)"
        )
    wrong = differing(found, labels[rows]).nonzero()[:, 0]
    if len(wrong):
        row = int(rows[wrong[0]])
        raise ValueError(
            f"sample {int(source_index[row])} has label {describe_label(found[wrong[0]])} in the data set "
            f"and {describe_label(labels[row])} in the bank: pass the data set the bank was made from, in its order"
        )


def kind_of(labels: Tensor) -> str:
    """Class indices or soft labels, in the words of an error."""
    return f"soft labels of {labels.shape[1]} classes" if labels.ndim == 2 else "class indices"
