"""``report``: the paper's figures 1 to 6 for any bank, as one PNG page and one JSON file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latent_mixup import files
from latent_mixup.bank import LatentBank, fingerprint
from latent_mixup.generators.base import Generator
from latent_mixup.images import to_uint8
from latent_mixup.inversion.bank_images import CHECKED_ROWS, BankImages, compare_mse
from latent_mixup.inversion.samples import check_arguments, stated_format
from latent_mixup.losses.base import callable_id, pixel_mse
from latent_mixup.quality.code_check import check_codes
from latent_mixup.quality.page import QUANTILES, THRESHOLDS, Look, draw_page, need_matplotlib
from latent_mixup.runs import Progress
from latent_mixup.sampling import keyed_generator

PAGE_FILE, NUMBERS_FILE = "report.png", "report.json"
STATUS_NAMES = {0: "ok", 1: "failed", 2: "skipped"}
RANDOM_LINES = 3
BATCH_SIZE = 32  # images in memory at a time

Encoder: TypeAlias = Callable[[Tensor], Tensor]


def report(
    bank: LatentBank,
    dataset: Any,
    generator: Generator,
    out: str | Path,
    *,
    encoder: Encoder | None = None,
    columns: int = 5,
    seed: int = 0,
    check: bool = False,
) -> dict[str, Any]:
    """Quality of a bank's codes: the paper's figures 1 to 6 on one page, and their numbers.

    ``report.png`` has the sorted MSE, histograms of MSE and LPIPS, the MSE of each class, and best, median, worst
    and random rows as original | inverted | encoded. ``report.json`` has the returned record. The same
    input gives the same bytes. Only the rows shown and a sample are decoded.

    Args:
        bank: In any latent space. Where it has no ``mse``, that of every row is computed.
        dataset: The data set the bank was made from; the bank may be a subset of it.
        generator: The generator the bank was made with.
        out: Folder for the two files; created where it is missing.
        encoder: Images ``[B, C, H, W]`` in [-1, 1] to codes. None: the generator's own; without one, the page shows
            original | inverted.
        columns: Triptychs in a line.
        seed: Seed of the random rows and of the checked sample.
        check: Add what :func:`latent_mixup.quality.check_codes` finds under ``codes``; it takes minutes.

    Returns:
        The content of ``report.json``. Quantiles, means and shares are over the rows with status 0 and a finite mse.
        ``check`` compares stored and recomputed mse on a sample.

    Raises:
        ImportError: matplotlib (the extra ``plot``) is not installed.
        ValueError: Bank, data set and generator do not belong together, by their labels, the generator's digest,
            or a stored mse that is not that of the decoded codes; or the bank has no row to report on, or a row
            whose image cannot be read.
        TypeError: An argument is something else.

    Reference: Latent-Mixup, figures 1 to 6; thresholds: section 2.1.2.2.
    """
    need_matplotlib()
    if not isinstance(bank, LatentBank):
        raise TypeError(f"the bank comes first, report(bank, dataset, generator, out): got {type(bank).__name__}")
    check_arguments(dataset, generator)
    if columns < 1:
        raise ValueError(f"columns needs to be at least 1: got {columns}")
    bank.check(generator)
    bank.check(dataset)
    generator = generator.coder
    if encoder is None and generator.has_encoder:
        encoder = generator.encode
    source = BankImages(bank, dataset, generator, stated_format(bank.metadata, dataset, generator))
    ok = torch.arange(len(bank), device="cpu") if bank.status is None else (bank.status == 0).nonzero()[:, 0]
    mse = bank.mse if bank.mse is not None else _computed_mse(source, ok)
    rows = ok[mse[ok].isfinite()]
    if not len(rows):
        raise ValueError(f"none of the bank's {len(bank)} rows has status 0 and a finite mse: invert them again")
    sample = _random_rows(rows, CHECKED_ROWS, keyed_generator("report-check", seed))
    sampled = torch.cat([_errors(batch) for batch in _batches(source, encoder, sample)])
    record = {
        **_provenance(source),
        "units": "pixel mse in [-1, 1] squared",
        "rows": {"all": len(bank), "reported": len(rows), "status": _status_counts(bank)},
        "mse": {"source": "computed" if bank.mse is None else "stored", **_summary(mse[rows])},
        "lpips": None if bank.lpips is None else _summary(bank.lpips[rows], limits=()),
        "classes": _class_summaries(bank, mse, rows),
        "check": None if bank.mse is None else _check(mse[sample], sampled[:, 0]),
        "encoded": None if encoder is None else _encoded_summary(encoder, sampled),
        "seed": seed,
    }
    looks = {name: _look(source, encoder, chosen) for name, chosen in _chosen_rows(mse, rows, columns, seed).items()}
    if check:
        record["codes"] = check_codes(bank, dataset, generator, seed=seed)
    record["shown"] = {name: _shown(look, bank, mse) for name, look in looks.items()}
    page = draw_page(record, _finite_values(mse, bank.lpips, rows), looks, columns)
    numbers = (json.dumps(record, indent=2, allow_nan=False) + "\n").encode()
    files.write_folder(out, {PAGE_FILE: page, NUMBERS_FILE: numbers})
    return record


@torch.no_grad()
def _batches(source: BankImages, encoder: Encoder | None, rows: Tensor) -> Iterator[list[Tensor]]:
    """Original, inverted and, where there is an encoder, encoded images of some rows."""
    for chunk in rows.split(BATCH_SIZE):
        originals = source.originals(chunk)
        encoded = [source.generator.decode(encoder(originals))] if encoder else []
        yield [originals, source.generator.decode(source.codes(chunk)), *encoded]


def _look(source: BankImages, encoder: Encoder | None, rows: Tensor) -> Look:
    images, errors = [], []
    for batch in _batches(source, encoder, rows):
        images.append(torch.stack([_thumbnails(part) for part in batch], dim=1))
        errors.append(_errors(batch))
    return Look(rows, torch.cat(images), torch.cat(errors))


def _thumbnails(images: Tensor, size: int = 192) -> Tensor:
    """``[B, C, H, W]`` in [-1, 1] to uint8 ``[B, h, w, 3]``, the longer side about ``size``; small ones zoomed in."""
    if images.shape[1] not in (1, 3):
        raise ValueError(f"the page shows images of 1 or 3 channels: got {images.shape[1]}")
    longer = max(images.shape[2:])
    if longer > size:
        reduced = [max(1, round(side * size / longer)) for side in images.shape[2:]]
        scaled = F.interpolate(images, size=reduced, mode="bilinear", antialias=True)
    else:
        scaled = F.interpolate(images, scale_factor=size // longer, mode="nearest")
    return to_uint8(scaled).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu()


@torch.no_grad()
def _computed_mse(source: BankImages, rows: Tensor) -> Tensor:
    """The pixel MSE of some rows, in a vector of all rows that is infinite elsewhere, ``[N]``."""
    mse = torch.full((len(source.bank),), torch.inf, dtype=torch.float32, device="cpu")
    with Progress(len(rows), "report", "rows") as bar:
        for chunk in rows.split(BATCH_SIZE):
            mse[chunk] = _errors([source.originals(chunk), source.generator.decode(source.codes(chunk))])[:, 0]
            bar.advance(len(chunk))
    return mse


def _errors(batch: list[Tensor]) -> Tensor:
    """Pixel MSE of the later images to the first, ``[B, k - 1]``; infinite in the place of NaN."""
    errors = torch.stack([pixel_mse(images, batch[0]).cpu() for images in batch[1:]], dim=1)
    return errors.nan_to_num(nan=torch.inf)


def _random_rows(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most ``count`` of the rows, in their order."""
    return rows[torch.randperm(len(rows), generator=generator, device="cpu")[:count].sort().values]


def _chosen_rows(mse: Tensor, rows: Tensor, columns: int, seed: int) -> dict[str, Tensor]:
    """The rows to show: a line each of the best, the middle and the worst, and lines of random ones."""
    ordered = rows[mse[rows].argsort(stable=True)]
    middle = max(0, (len(ordered) - columns) // 2)
    return {
        "best": ordered[:columns],
        "median": ordered[middle : middle + columns],
        "worst": ordered.flip(0)[:columns],
        "random": _random_rows(rows, RANDOM_LINES * columns, keyed_generator("report-show", seed)),
    }


def _summary(values: Tensor, limits: Sequence[float] = THRESHOLDS) -> dict[str, Any]:
    """Mean, quantiles and the shares at or above each limit, of the finite values."""
    numbers = values[values.isfinite()].double().numpy()
    if not len(numbers):
        return {"n": 0}
    quantiles = np.quantile(numbers, [per_cent / 100 for per_cent in QUANTILES]).tolist()
    return {
        "n": len(numbers),
        "mean": float(numbers.mean()),
        "quantiles": dict(zip(map(str, QUANTILES), quantiles, strict=True)),
        "above": {f"{limit:g}": float((numbers >= limit).mean()) for limit in limits},
    }


def _finite_values(mse: Tensor, lpips: Tensor | None, rows: Tensor) -> dict[str, Tensor]:
    """The MSE of some rows and, where there is any, their LPIPS."""
    found = {"MSE": mse[rows]}
    if lpips is not None and lpips[rows].isfinite().any():
        found["LPIPS"] = lpips[rows][lpips[rows].isfinite()]
    return found


def _check(stored: Tensor, decoded: Tensor) -> dict[str, Any]:
    """Stored and recomputed mse of the sample; raises where they do not belong together."""
    return {
        "rows": len(stored),
        "disagreeing": compare_mse(stored, decoded),
        "stored_mean": float(stored.double().mean()),
        "recomputed_mean": _number(decoded.double().mean()),
        "largest_difference": _number((stored - decoded).abs().max()),
    }


def _encoded_summary(encoder: Encoder, sampled: Tensor) -> dict[str, Any]:
    """The encoder's MSE on a sample ``[n, 2]``, beside the mean of the same rows' inverted codes."""
    finite = sampled.isfinite().all(1)
    if not finite.any():
        raise ValueError(f"none of {len(sampled)} encoded images is finite: pass another encoder=")
    inverted, encoded = sampled[finite].unbind(1)
    return {"encoder": callable_id(encoder), **_summary(encoded), "inverted_mean": float(inverted.double().mean())}


def _number(value: Tensor | float) -> float | None:
    """A number for JSON: None for infinity."""
    return float(value) if np.isfinite(float(value)) else None


def _class_summaries(bank: LatentBank, mse: Tensor, rows: Tensor) -> list[dict[str, Any]]:
    """The summary of each class that has a row; label -1 and no name for rows without one."""
    labels = bank.hard_labels[rows]
    names = bank.metadata.get("classes")
    names = names if isinstance(names, list) else []
    found = []
    for label in labels.unique().tolist():
        name = None if label < 0 else str(names[label] if label < len(names) else label)
        found.append({"label": label, "name": name, **_summary(mse[rows[labels == label]])})
    return found


def _status_counts(bank: LatentBank) -> dict[str, int] | None:
    if bank.status is None:
        return None
    counts = Counter(STATUS_NAMES.get(status, str(status)) for status in bank.status.tolist())
    return {name: counts[name] for name in [*STATUS_NAMES.values(), *sorted(set(counts) - set(STATUS_NAMES.values()))]}


def _shown(look: Look, bank: LatentBank, mse: Tensor) -> list[dict[str, Any]]:
    labels = bank.hard_labels
    return [
        {
            "row": row,
            "source_index": int(bank.source_index[row]),
            "label": int(labels[row]),
            "mse": float(mse[row]),
            "decoded_mse": _number(errors[0]),
            "encoded_mse": _number(errors[1]) if len(errors) > 1 else None,
        }
        for row, errors in zip(look.rows.tolist(), look.mse.tolist(), strict=True)
    ]


def _provenance(source: BankImages) -> dict[str, Any]:
    """Names and digests of bank, generator and data set."""
    bank, generator, dataset = source.bank, source.generator, source.dataset
    stated = bank.metadata.get("dataset")
    name = (stated.get("name") if isinstance(stated, dict) else None) or type(dataset).__name__
    return {
        "bank": {
            "digest": bank.digest(),
            "latent_shape": list(bank.latent_shape),
            "inversion": bank.metadata.get("inversion"),
        },
        "generator": {
            "name": generator.metadata.get("name") or type(generator).__name__,
            "architecture": type(generator).__name__,
            "latent_space": generator.latent_space,
            "digest": generator.digest(),
        },
        "dataset": {"name": str(name), **fingerprint(dataset, multi_label=bank.multi_label)},
        "versions": {name: metadata.version(name) for name in ("latent-mixup", "torch", "matplotlib")},
    }
