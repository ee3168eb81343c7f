"""``fit``: look at the images, train a generator and its prior, invert, check, and say how to use the result."""

from __future__ import annotations

import copy
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_mixup import files
from latent_mixup.bank import LatentBank
from latent_mixup.fitting.images import Look, Prepared, look, prepare
from latent_mixup.fitting.page import draw_page
from latent_mixup.generators.base import Generator
from latent_mixup.generators.conv import ConvGenerator
from latent_mixup.images import open_folder
from latent_mixup.inversion import invert
from latent_mixup.labels import Key
from latent_mixup.networks import best_device
from latent_mixup.quality import check_codes, check_text
from latent_mixup.quality.info import multiply_adds
from latent_mixup.training.conv import BATCH_SIZE, ConvRecipe, ConvTraining, train_conv
from latent_mixup.training.run import first_weights

IMAGES, GENERATOR, BANK = "images", "generator", "bank"  # folders of a run
SETTINGS_FILE, QUALITY_FILE, PAGE_FILE = "fit.json", "quality.json", "fit.png"
STEPS, LEAST_STEPS, EPOCHS = 6_000, 1_500, 150  # unless minutes are given: so many passes, within these two
PRIOR_STEPS = 4_000  # at most; else as many as the others
TRAINING_SHARE = 0.7  # of the minutes; the rest is for reading, inverting and checking
TIMED_STEPS = 5
INVERSION_BUDGET = 5e13  # multiply-adds: a quarter of an hour on two cores; see `inversion_steps_for`
MIN_INVERSION = 3  # gradient steps an image that are worth their price
STEP = 3  # multiply-adds of a gradient step, in decodes
NETWORKS: dict[int, dict[int, dict[str, int]]] = {  # channels => greatest size => arguments of the generator
    1: {32: {"z_dim": 128, "width": 24, "detail": 8}, 128: {"z_dim": 128, "width": 16, "detail": 8}},
    3: {32: {"z_dim": 256, "width": 32, "detail": 16}, 64: {"z_dim": 256, "width": 24, "detail": 16},
        128: {"z_dim": 256, "width": 16, "detail": 16}},
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What a run was decided to do, at its first call; kept in ``fit.json``.

    Attributes:
        size: Height and width of the images.
        channels: 1 or 3.
        steps: Training steps of encoder and decoder.
        prior_steps: Training steps of the prior.
        flip: Whether a mirrored image counts as the same thing.
        inversion_steps: Gradient steps an image.
        seed: Of everything that is drawn.
    """

    size: int
    channels: int
    steps: int
    prior_steps: int
    flip: bool
    inversion_steps: int
    seed: int


def fit(
    dataset: Any,
    out: str | Path,
    *,
    size: int | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    inversion_steps: int | None = None,
    flip: bool | None = None,
    device: torch.device | str = "auto",
    seed: int = 0,
    image_key: Key | None = None,
    label_key: Key | None = None,
    multi_label: bool = False,
    progress: bool = True,
    tell: Callable[[str], object] | None = None,
) -> tuple[Generator, LatentBank]:
    """Train a generator for any images, invert them, and check the result.

    ``out`` gets ``generator/``, ``bank/``, ``quality.json``, ``fit.png`` and the images at their new size;
    ``latent_mixup.load(out)`` reads it. Each stage resumes: a killed run goes on when the same call is made again. No
    label is used in training or inversion, only in the check.

    Args:
        dataset: A data set with ``len(dataset)`` and ``dataset[i]``, as :func:`latent_mixup.invert` takes them, grey or
            RGB, with or without labels, of 500 images or more; or the path of a folder of images, flat or with a folder
            for each class. Images of other sizes are resized and cropped to a square.
        out: Folder of the run.
        size: Height and width of the generator's images: 16, 28, 32, 48, 64, 96 or 128. None: the largest of these that
            most images have, at most 64.
        minutes: Time for the whole run; decides ``steps`` by the speed of the first ones. None: ``steps``.
        steps: Training steps of encoder and decoder, 128 images each; the prior has as many, at most 4,000. None: 150
            passes over the images, at least 1,500 steps and at most 6,000.
        inversion_steps: Gradient steps an image; 0: the encoder alone. None: as many as a few minutes allow.
        flip: Whether a mirrored image is still the same thing: for photos, not for digits and text. None: for RGB.
        device: Where to train. ``"auto"``: CUDA where there is one, else the CPU.
        seed: Of everything that is drawn.
        image_key: Place of the image in a sample; None: found.
        label_key: Place of the label.
        multi_label: See :func:`latent_mixup.invert`; the check then looks at images alone.
        progress: Show progress.
        tell: Called with each line of the report; None: nothing is said.

    Returns:
        The generator, on the CPU, and the bank.

    Raises:
        ValueError: Too few images, images that cannot be read or have one colour, or a folder with another run.
        RuntimeError: Training diverged; the last checkpoint is kept.
        OSError: ``out`` cannot be written to or has no room; what is finished stays.
    """
    if minutes is not None and (steps is not None or not minutes > 0):
        raise ValueError(f"minutes needs to be above 0, without steps: got minutes={minutes}, steps={steps}")
    say, out = tell or (lambda line: None), Path(out)
    dataset = open_folder(dataset) if isinstance(dataset, str | Path) else dataset
    device = torch.device(best_device() if device == "auto" else device)
    started = time.perf_counter()
    found = look(dataset, size, image_key=image_key, label_key=label_key, multi_label=multi_label)
    say(_about(dataset, found))
    images = prepare(dataset, found, out / IMAGES, progress=progress)
    settings = _settings(out, images, found, minutes, steps, inversion_steps, flip, device, seed, say)

    generator = train_conv(
        images.images,
        out / GENERATOR,
        recipe=_recipe(settings),
        network=network_for(found.channels, found.size),
        facts={"name": out.resolve().name, "dataset": {"images": len(images.images)}},
        device=device,
        progress=progress,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*cannot be used")  # said once, when they were read
        bank = invert(
            images,
            generator.to(device),
            out=out / BANK,
            loss="pixels",
            steps=settings.inversion_steps,
            restarts=0,
            seed=seed,
            multi_label=multi_label,
            progress=progress,
        )
    generator = generator.to("cpu")
    record = _checked(bank, images, generator, seed, progress)
    files.write_folder(
        out,
        {PAGE_FILE: draw_page(generator, bank, images), QUALITY_FILE: (json.dumps(record, indent=2) + "\n").encode()},
    )
    say(closing(out, found, bank, record, time.perf_counter() - started))
    return generator, bank


def steps_for(num_images: int) -> int:
    """Training steps unless somebody says: see :func:`fit`."""
    return min(STEPS, max(LEAST_STEPS, EPOCHS * num_images // BATCH_SIZE))


def network_for(channels: int, size: int) -> dict[str, int]:
    """Arguments of the generator for images of this kind."""
    return next(arguments for largest, arguments in NETWORKS[channels].items() if size <= largest)


def inversion_steps_for(num_images: int, decode_multiply_adds: int) -> int:
    """Gradient steps an image that ``INVERSION_BUDGET`` allows; 0 where they are too few to help."""
    steps = int(INVERSION_BUDGET / (STEP * decode_multiply_adds * num_images))
    return min(steps, int(ConvGenerator.preferred_inversion["steps"])) if steps >= MIN_INVERSION else 0


def _settings(
    out: Path,
    images: Prepared,
    found: Look,
    minutes: float | None,
    steps: int | None,
    inversion_steps: int | None,
    flip: bool | None,
    device: torch.device,
    seed: int,
    say: Callable[[str], object],
) -> Settings:
    """The settings of this run: those of its first call where there was one.

    Raises:
        ValueError: This call asks for others.
    """
    asked = {"steps": steps, "inversion_steps": inversion_steps, "flip": flip, "seed": seed}
    path = out / SETTINGS_FILE
    if path.is_file():
        earlier = _read_settings(path)
        wrong = [
            f"{name} {getattr(earlier, name)}, now {value}"
            for name, value in asked.items()
            if value is not None and value != getattr(earlier, name)
        ]
        if wrong:
            raise ValueError(f"{out} holds a run with {'; '.join(wrong)}: choose another out=, or the same settings")
        return earlier
    mirror = found.channels == 3 if flip is None else flip
    network = network_for(found.channels, found.size)
    with first_weights(seed):
        generator = ConvGenerator(img_channels=found.channels, img_resolution=found.size, **network)
    cost = multiply_adds(generator.decode, torch.ones(1, *generator.latent_shape))
    wanted = steps or steps_for(len(images.images))
    first = Settings(
        found.size,
        found.channels,
        wanted,
        min(wanted, PRIOR_STEPS),
        mirror,
        inversion_steps_for(len(images.images), cost) if inversion_steps is None else inversion_steps,
        seed,
    )
    if minutes is not None:
        first = _within(minutes, first, generator, images.images, device)
        say(f"{minutes:g} minutes allow {first.steps:,} training steps and {first.prior_steps:,} of the prior")
    files.write_folder(out, {SETTINGS_FILE: (json.dumps(asdict(first), indent=2) + "\n").encode()})
    return first


def _read_settings(path: Path) -> Settings:
    try:
        return Settings(**files.read_json(path))
    except TypeError as cause:
        raise ValueError(f"{path} is not the settings of a run ({cause}): choose another out=") from cause


def _within(
    minutes: float, settings: Settings, generator: ConvGenerator, images: Tensor, device: torch.device
) -> Settings:
    """The settings with as many steps as the minutes allow, by the speed of a few on a copy."""
    seconds = minutes * 60 * TRAINING_SHARE
    training = ConvTraining(copy.deepcopy(generator).to(device), _recipe(settings), images)
    prior_steps = min(PRIOR_STEPS, max(200, round(PRIOR_STEPS * minutes / 30)))
    a_step, a_prior_step = _seconds(training.rebuild), _seconds(lambda: training.learn_prior(0))
    steps = max(100, int((seconds - prior_steps * a_prior_step) / a_step))
    return Settings(**{**asdict(settings), "steps": steps, "prior_steps": prior_steps})


def _seconds(step: Callable[[], object]) -> float:
    """Duration of one call, after the first."""
    step()
    started = time.perf_counter()
    for _ in range(TIMED_STEPS):
        step()
    return (time.perf_counter() - started) / TIMED_STEPS


def _recipe(settings: Settings) -> ConvRecipe:
    return ConvRecipe(steps=settings.steps, prior_steps=settings.prior_steps, flip=settings.flip, seed=settings.seed)


def _checked(bank: LatentBank, images: Prepared, generator: Generator, seed: int, progress: bool) -> dict[str, Any]:
    """The check, or why there is none: the generator and the bank are whole without it."""
    try:
        return check_codes(bank, images, generator, seed=seed, progress=progress)
    except ValueError as cause:
        return {"error": f"these codes could not be checked: {cause}"}


def _about(dataset: Any, found: Look) -> str:
    low_height, high_height, low_width, high_width = found.shapes
    was = f"{low_height} to {high_height} x {low_width} to {high_width} px"
    kind = "grey" if found.channels == 1 else "RGB"
    changed = f" (they were {was}: resized, and cropped to the middle)" if found.changes else ""
    labels = "labels are used in the check alone" if found.format.label_key is not None else "no labels"
    return f"{len(dataset):,} images, {kind}, {found.size} x {found.size} px{changed}; {labels}"


def closing(out: Path, found: Look, bank: LatentBank, record: dict[str, Any], seconds: float) -> str:
    """What a run says at its end: the check, where the files are, and the lines to paste."""
    labelled = bool((bank.labels >= 0).any())
    advised = record.get("verdict", {"go": True})["go"]
    multi_label = ", multi_label=True" if bank.multi_label else ""
    lines = [
        record.get("error") or check_text(record),
        "",
        f"{out / PAGE_FILE}: real images, decoded ones, mixes, samples; {out / QUALITY_FILE}: the numbers above",
        f"this call took {seconds / 60:.1f} minutes",
        "",
        f"To train on mixes{'' if advised else ' all the same'}, paste into your script:",
        "",
        "    import latent_mixup as lm",
        f'    generator, bank = lm.load("{out}")',
    ]
    if labelled:
        lines.append(
            f"    loader = lm.LatentMixupLoader(loader, generator, bank, prob=0.5{multi_label})  # your own loader"
        )
    else:
        lines.append("    images = generator.decode(generator.sample_latents(64))  # without labels: fresh samples")
    if found.changes:
        lines.append(
            f"    # decodes are {found.size} x {found.size} px: for images of another size, transform=v2.Resize(...)"
        )
    return "\n".join(lines)
