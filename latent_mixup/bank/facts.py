"""What the card of a bank says: its columns and metadata => facts."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latent_mixup import cards
from latent_mixup.hub.terms import DATA_SETS, known_data_set
from latent_mixup.labels import hard_labels

_USAGE = """import latent_mixup as lm

bank = lm.LatentBank.from_pretrained({here})
dataset = lm.LatentMixupDataset(None, lm.load_generator({generator}), bank)
image, soft_target = dataset[0]  # a mix that starts at row 0; or wrap your loader with lm.LatentMixupLoader"""
_QUANTILES = {"median": 0.5, "95 %": 0.95}
_MAX_NAMED = 20  # classes
_THRESHOLDS = (0.02, 0.025)  # the paper refines codes above them
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def bank_facts(
    labels: Tensor,
    latent_shape: tuple[int, ...],
    dtype: torch.dtype,
    num_classes: int,
    metadata: Mapping[str, Any],
    mse: Tensor | None,
    status: Tensor | None,
) -> cards.Facts:
    """The facts of a bank with these columns, whose codes are stored as ``dtype``."""
    num_rows, generator = len(labels), metadata.get("generator") or {}
    multi_label = metadata.get("multi_label", False)
    known = known_data_set(metadata.get("dataset"))
    title = f"Latent bank of {DATA_SETS[known].title if known else 'images'}"
    megabytes = num_rows * prod(latent_shape) * dtype.itemsize / 1e6
    facts = {
        "rows": f"{num_rows:,}, one per image",
        "classes": _classes(
            (labels >= 0.5).nonzero()[:, 1] if multi_label else hard_labels(labels),
            num_classes,
            metadata.get("classes"),
        ),
        "latent codes": f"{list(latent_shape)} in {cards.text(metadata.get('latent_space') or 'an unnamed space')}, "
        f"{str(dtype).removeprefix('torch.')}, {megabytes:,.1f} MB",
        "labels": _labels(labels, multi_label),
        "errors": _failures(status, metadata.get("set_aside")),
    }
    return cards.Facts(
        kind="dataset",
        title=f"{title}, for latent-mixup",
        summary="For each image of a data set the latent code from which a generator decodes it: latent-mixup mixes "
        "codes, decodes the mixes, and trains classifiers on them. Row shards of safetensors, read by mmap.",
        usage=_USAGE,
        facts={name: fact for name, fact in facts.items() if fact},
        metadata=metadata,
        header={
            "pretty_name": title,
            "task_categories": ["image-classification"],
            "size_categories": [next((size for limit, size in _SIZES if num_rows < limit), "n>1T")],
            "viewer": False,
        },
        generator=cards.generator_name(generator, generator),
        generator_digest=generator.get("digest"),
        num_rows=num_rows,
        quality=_error_table(mse),
    )


def _classes(labels: Tensor, num_classes: int, names: object) -> str:
    found, counts = labels[labels >= 0].unique(return_counts=True)
    known = isinstance(names, list) and len(names) == num_classes
    shown = [
        f"{cards.text(names[label]) if known and isinstance(names, list) else label} ({count:,})"
        for label, count in zip(found[:_MAX_NAMED].tolist(), counts[:_MAX_NAMED].tolist(), strict=True)
    ]
    return f"{num_classes:,}: {', '.join(shown)}{' ...' if len(found) > _MAX_NAMED else ''}" if shown else "none"


def _labels(labels: Tensor, multi_label: bool) -> str:
    if labels.ndim == 2:
        return (
            f"multi-label, {labels.shape[1]} numbers in [0, 1]" if multi_label else f"soft, {labels.shape[1]} numbers"
        )
    missing = int((labels < 0).sum())
    return "a class index" + (f", missing in {missing:,} rows" if missing else "")


def _failures(status: Tensor | None, set_aside: object) -> str:
    failed = 0 if status is None else int((status != 0).sum())
    left_out = len(set_aside) if isinstance(set_aside, dict) else 0
    facts = [f"{failed:,} rows without a good code (status)"] if failed else []
    return "; ".join([*facts, f"{left_out:,} images left out"] if left_out else facts)


def _error_table(mse: Tensor | None) -> str:
    """Mean and quantiles of the reconstruction errors, and the share of large ones."""
    errors = np.empty(0) if mse is None else mse[mse.isfinite()].double().numpy()
    if not len(errors):
        return ""
    facts = {"mean": f"{errors.mean():.4f}"}
    facts |= {name: f"{np.quantile(errors, share):.4f}" for name, share in _QUANTILES.items()}
    facts |= {f"{limit:g} or above": f"{(errors >= limit).mean():.1%}" for limit in _THRESHOLDS}
    lead = f"MSE of the reconstructions, {len(errors):,} images, in units of [-1, 1] squared:"
    return f"{lead}\n\n{cards.table(facts)}"
