"""``latent-mixup info``: facts about a generator, and its self-test, as text and as JSON."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from latent_mixup import hub
from latent_mixup.generators.base import Generator, check_generator, sides
from latent_mixup.networks import weights_path
from latent_mixup.quality.self_test import DRAWS, SelfTest, self_test_table
from latent_mixup.sampling import keyed_generator

BUDGET = 2e12  # multiply-adds of a self-test: a minute or two on a CPU
MIN_IMAGES, MAX_IMAGES = 2, 4
MIN_STEPS, MAX_STEPS = 60, 100
STEP = 3  # multiply-adds of a gradient step, in decodes
LABEL_WIDTH, LINE_WIDTH = 16, 100


def generator_info(generator: Generator, folder: Path | None = None) -> dict[str, Any]:
    """The facts of a generator, ready for JSON.

    Args:
        generator: Any.
        folder: Where it was read from; None: it comes from no folder.

    Returns:
        The generator's own attributes (``latent_shape`` and others); ``name`` and ``metadata``; ``num_classes`` of a
        conditional one, else 0; ``parameters`` of each part of the network; ``decode_multiply_adds`` per code and
        ``encode_multiply_adds`` per image, None without an encoder; ``digest`` (SHA-256 of the weights); ``file_bytes``
        of the weights' file and ``commit`` on the Hugging Face Hub, None where it comes from no folder or not from
        the Hub.

    Example:
        >>> generator_info(load_generator("fashion-mnist"))["latent_shape"]
        (128,)
    """
    check_generator(generator)
    code = generator.sample_latents(1, keyed_generator("effort"))
    image = torch.zeros((1, *generator.image_shape), dtype=torch.float32, device=generator.device)
    counts = {name: sum(weight.numel() for weight in part.parameters()) for name, part in generator.named_children()}
    names = ("img_channels", "img_resolution", "latent_space", "latent_shape", "preferred_path", "has_encoder")
    return {
        "name": str(generator.metadata.get("name") or type(generator).__name__),
        "architecture": type(generator).__name__,
        **{name: getattr(generator, name) for name in names},
        "has_features": generator.features is not None,
        "num_classes": int(getattr(generator, "c_dim", 0)),
        "parameters": {name: count for name, count in counts.items() if count},
        "file_bytes": weights_path(folder).stat().st_size if folder else None,
        "decode_multiply_adds": multiply_adds(generator.decode, code),
        "encode_multiply_adds": multiply_adds(generator.encode, image) if generator.has_encoder else None,
        "digest": generator.digest(),
        "commit": hub.commit_of(folder) if folder else None,
        "metadata": generator.metadata,
    }


@torch.no_grad()
def multiply_adds(network: Callable[[Tensor], Tensor], example: Tensor) -> int:
    """Multiply-adds of the matrix products and convolutions in one call, by torch's counter (which counts two)."""
    with FlopCounterMode(display=False) as counter:
        network(example)
    return int(counter.get_total_flops()) // 2


def effort(decode_multiply_adds: int) -> dict[str, int]:
    """The most ``images`` and ``steps`` of a self-test that fit into ``BUDGET``.

    Steps are reduced first, then images, but to no less than both minima, with fewer of which a working generator may
    fail; a very large one takes longer.

    Example:
        >>> effort(4_000_000_000)
        {'images': 2, 'steps': 72}
    """
    image_steps = (BUDGET / max(1, decode_multiply_adds) - DRAWS) / STEP
    images = _between(MIN_IMAGES, image_steps / MIN_STEPS, MAX_IMAGES)
    return {"images": images, "steps": _between(MIN_STEPS, image_steps / images, MAX_STEPS)}


def _between(low: int, wanted: float, high: int) -> int:
    return int(min(max(wanted, low), high))


# ---- text and JSON ---------------------------------------------------------------------------------


def info_text(info: dict[str, Any]) -> str:
    """:func:`generator_info`, one fact per line; control characters in the file's metadata are removed."""
    metadata, parameters = info["metadata"], info["parameters"]
    size = " x ".join(map(str, sides(info["img_resolution"])))
    channels = {1: "grey", 3: "RGB"}.get(info["img_channels"], f"{info['img_channels']} channels")
    shape = " x ".join(map(str, info["latent_shape"]))
    parts = [name for name, there in (("an encoder", info["has_encoder"]), ("features", info["has_features"])) if there]
    counts = ", ".join(f"{name} {count:,}" for name, count in parameters.items()) or "none that are trained"
    stored = f"; {info['file_bytes'] / 1e6:,.1f} MB on disk" if info["file_bytes"] is not None else ""
    encoding = f", {short_number(info['encode_multiply_adds'])} to encode" if info["has_encoder"] else ""
    facts = {
        "architecture": info["architecture"],
        "images": f"{size}, {channels}",
        "latents": f"{shape} in {info['latent_space']}, mixed by {info['preferred_path']}",
        "comes with": " and ".join(parts) or "no encoder, no features",
        "classes": f"{info['num_classes']:,}" if info["num_classes"] else "none",
        "parameters": f"{sum(parameters.values()):,} ({counts}){stored}",
        "multiply-adds": f"{short_number(info['decode_multiply_adds'])} to decode an image{encoding}",
        "digest": info["digest"],
        "commit": info["commit"],
        "data set": _one_line(metadata.get("dataset")),
        **{name: _one_line(metadata.get(name)) for name in ("recipe", "source", "licence")},
    }
    lines = [_plain(info["name"])]
    for label, fact in facts.items():
        if fact is not None:
            wrapped = textwrap.wrap(fact, LINE_WIDTH - LABEL_WIDTH - 2, break_on_hyphens=False)
            lines += [f"  {label if not number else '':<{LABEL_WIDTH}}{line}" for number, line in enumerate(wrapped)]
    return "\n".join(lines)


def short_number(number: int) -> str:
    """1.49 M for 1,492,992."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _one_line(value: Any) -> str | None:
    """A metadata entry as one line; None for a missing or empty one."""
    if isinstance(value, dict):
        return ", ".join(f"{_plain(key)} {_plain(entry)}" for key, entry in value.items() if entry is not None) or None
    return None if value is None else _plain(value)


def _plain(value: Any) -> str:
    """Text without control characters."""
    return "".join(char if char.isprintable() else " " for char in str(value)[:2000])


def self_test_text(result: SelfTest) -> str:
    """The self-test, one check per line, and its verdict."""
    title = f"self test: {result.images} images, {result.steps} steps, seed {result.seed}, {result.seconds:.1f} seconds"
    verdict = "passed" if result.passed else f"FAILED: {result.verdict}"
    return f"{title}\n{textwrap.indent(self_test_table(result), '  ')}\n{verdict}"


def info_record(info: dict[str, Any], result: SelfTest | None, codes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Facts, self-test and, where there is one, the check of codes for JSON; a number that is not finite is None."""
    record = None
    if result is not None:
        record = {"passed": result.passed, "verdict": result.verdict, **asdict(result)}
        if result.mse is not None:
            errors = {**asdict(result.mse), "ratio": result.mse.ratio}
            record["mse"] = {name: error if math.isfinite(error) else None for name, error in errors.items()}
    return {"generator": info, "self_test": record, **({} if codes is None else {"codes": codes})}
