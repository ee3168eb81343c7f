"""``latent-mixup info``: what a generator is, and whether it works."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from latent_mixup import hub
from latent_mixup.generators.base import Generator
from latent_mixup.networks import WEIGHTS_FILE
from latent_mixup.pictures import png
from latent_mixup.quality.self_test import DRAWS, SelfTest, self_test_table
from latent_mixup.sampling import keyed_generator

BUDGET = 2e12  # multiply-adds of a self test: a minute or two on a CPU
MIN_IMAGES, MAX_IMAGES = 2, 4
MIN_STEPS, MAX_STEPS = 60, 100
STEP = 3  # multiply-adds of a gradient step, in decodes
SHEET_COLUMNS = 8
LABEL_WIDTH, LINE_WIDTH = 16, 100


@dataclass(frozen=True)
class GeneratorInfo:
    """The facts of a generator.

    Attributes:
        name: As its metadata says; else its architecture.
        architecture: Its class.
        img_channels: Channels of an image.
        img_resolution: Height and width in pixels.
        latent_space: ``"z"``, ``"w"``, ``"w+"`` or ``"vae"``.
        latent_shape: Of one code.
        preferred_path: How codes are mixed when nobody says.
        has_encoder: Whether images can be encoded.
        has_features: Whether a feature network for its images comes with it.
        num_classes: Classes that it can be asked for; 0: none.
        parameters: Numbers in the parameters of each part of the network.
        file_bytes: Of the file of weights; None where it does not come from a folder.
        decode_multiply_adds: To decode one code.
        encode_multiply_adds: To encode one image; None without an encoder.
        digest: SHA-256 of the weights.
        commit: On the Hugging Face Hub, where it comes from there.
        metadata: How it came to be: source, licence, data set, recipe.
    """

    name: str
    architecture: str
    img_channels: int
    img_resolution: int
    latent_space: str
    latent_shape: tuple[int, ...]
    preferred_path: str
    has_encoder: bool
    has_features: bool
    num_classes: int
    parameters: dict[str, int]
    file_bytes: int | None
    decode_multiply_adds: int
    encode_multiply_adds: int | None
    digest: str
    commit: str | None
    metadata: dict[str, Any]


def generator_info(generator: Generator, folder: Path | None = None) -> GeneratorInfo:
    """The facts of a generator; ``folder`` is where it was read from, if it was.

    Example:
        >>> generator_info(load_generator("fashion-mnist")).latent_shape
        (128,)
    """
    code = generator.sample_latents(1, keyed_generator("effort"))
    image = torch.zeros(1, generator.img_channels, *[generator.img_resolution] * 2, device=generator.device)
    counts = {name: sum(weight.numel() for weight in part.parameters()) for name, part in generator.named_children()}
    return GeneratorInfo(
        name=str(generator.metadata.get("name") or type(generator).__name__),
        architecture=type(generator).__name__,
        img_channels=generator.img_channels,
        img_resolution=generator.img_resolution,
        latent_space=generator.latent_space,
        latent_shape=generator.latent_shape,
        preferred_path=generator.preferred_path,
        has_encoder=generator.has_encoder,
        has_features=generator.features is not None,
        num_classes=int(getattr(generator, "c_dim", 0)),
        parameters={name: count for name, count in counts.items() if count},
        file_bytes=(folder / WEIGHTS_FILE).stat().st_size if folder else None,
        decode_multiply_adds=multiply_adds(generator.decode, code),
        encode_multiply_adds=multiply_adds(generator.encode, image) if generator.has_encoder else None,
        digest=generator.digest(),
        commit=hub.commit_of(folder) if folder else None,
        metadata=generator.metadata,
    )


@torch.no_grad()
def multiply_adds(network: Callable[[Tensor], Tensor], example: Tensor) -> int:
    """Multiply-adds of matrix products and convolutions in one call, as torch's own counter says (it counts two)."""
    with FlopCounterMode(display=False) as counter:
        network(example)
    return int(counter.get_total_flops()) // 2


def effort(decode_multiply_adds: int) -> dict[str, int]:
    """As many ``images`` and ``steps`` of a self test as fit into ``BUDGET``.

    Steps are saved first, then images. With fewer than the least of both, a generator that works may fail, so one that
    is too large for them takes longer.

    Example:
        >>> effort(4_000_000_000)
        {'images': 2, 'steps': 72}
    """
    decodes = BUDGET / max(1, decode_multiply_adds) - DRAWS
    image_steps = decodes / STEP
    images = _between(MIN_IMAGES, image_steps / MIN_STEPS, MAX_IMAGES)
    return {"images": images, "steps": _between(MIN_STEPS, image_steps / images, MAX_STEPS)}


def _between(low: int, wanted: float, high: int) -> int:
    return int(min(max(wanted, low), high))


def sample_sheet(generator: Generator, *, seed: int = 0) -> bytes:
    """A PNG of two rows of samples, for the one thing that no self test sees: whether they are what they should be.

    Raises:
        ValueError: The images are neither grey nor RGB.
    """
    if generator.img_channels not in (1, 3):
        raise ValueError(f"a sheet needs grey or RGB images: this generator has {generator.img_channels} channels")
    codes = generator.sample_latents(2 * SHEET_COLUMNS, keyed_generator("sample-sheet", seed))
    with torch.no_grad():
        images = torch.cat([generator.decode(code).cpu() for code in codes.split(1)])
    return png(images.split(SHEET_COLUMNS), zoom=2 if generator.img_resolution <= 128 else 1)


# --------------------------------------------------------------------------------------------------
# What it says
# --------------------------------------------------------------------------------------------------


def info_text(info: GeneratorInfo) -> str:
    """The facts, a line each. What a file says of itself is shown without what a terminal would obey."""
    size = f"{info.img_resolution} x {info.img_resolution}"
    channels = {1: "grey", 3: "RGB"}.get(info.img_channels, f"{info.img_channels} channels")
    shape = " x ".join(map(str, info.latent_shape))
    parts = [name for name, there in (("an encoder", info.has_encoder), ("features", info.has_features)) if there]
    stored = f"; {info.file_bytes / 1e6:,.1f} MB on disk" if info.file_bytes is not None else ""
    encoding = f", {_short(info.encode_multiply_adds)} to encode" if info.encode_multiply_adds is not None else ""
    facts = {
        "architecture": info.architecture,
        "images": f"{size}, {channels}",
        "latents": f"{shape} in {info.latent_space}, mixed by {info.preferred_path}",
        "comes with": " and ".join(parts) or "no encoder, no features",
        "classes": f"{info.num_classes:,}" if info.num_classes else "none",
        "parameters": f"{sum(info.parameters.values()):,} ({_counts(info.parameters)}){stored}",
        "multiply-adds": f"{_short(info.decode_multiply_adds)} to decode an image{encoding}",
        "digest": info.digest,
        "commit": info.commit,
        **{label: _said(info.metadata.get(field)) for label, field in _METADATA.items()},
    }
    lines = [_plain(info.name)]
    for label, fact in facts.items():
        if fact is not None:
            wrapped = textwrap.wrap(fact, LINE_WIDTH - LABEL_WIDTH - 2, break_on_hyphens=False)
            lines += [f"  {label if not number else '':<{LABEL_WIDTH}}{line}" for number, line in enumerate(wrapped)]
    return "\n".join(lines)


_METADATA = {"data set": "dataset", "recipe": "recipe", "source": "source", "licence": "licence"}


def _counts(parameters: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in parameters.items()) or "none that are trained"


def _short(number: int) -> str:
    """1.49 M for 1,492,992."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _said(value: Any) -> str | None:
    """What metadata says, as one line; None where it says nothing."""
    if isinstance(value, dict):
        return ", ".join(f"{_plain(key)} {_plain(entry)}" for key, entry in value.items() if entry is not None) or None
    return None if value is None else _plain(value)


def _plain(value: Any) -> str:
    """Text from a file without control characters."""
    return "".join(char if char.isprintable() else " " for char in str(value)[:2000])


def self_test_text(result: SelfTest) -> str:
    """The self test, a line a check, and its verdict."""
    title = f"self test: {result.images} images, {result.steps} steps, seed {result.seed}, {result.seconds:.1f} seconds"
    verdict = "passed" if result.passed else f"FAILED: {result.verdict}"
    return f"{title}\n{textwrap.indent(self_test_table(result), '  ')}\n{verdict}"


def info_json(info: GeneratorInfo, result: SelfTest | None) -> str:
    """Facts and self test as JSON; a number that is not finite is null."""
    record = None
    if result is not None:
        record = {"passed": result.passed, "verdict": result.verdict, **asdict(result)}
        if result.mse is not None:
            errors = {**asdict(result.mse), "ratio": result.mse.ratio}
            record["mse"] = {name: error if math.isfinite(error) else None for name, error in errors.items()}
    return json.dumps({"generator": asdict(info), "self_test": record}, indent=2, allow_nan=False)
