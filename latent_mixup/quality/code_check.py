"""What to expect of mixes of a generator's codes, before anything is trained on them: a check that says go or no-go.

Four questions: does an image keep its class when it is decoded; do codes know more of the class than pixels; do prior
samples and mixes look like the data; and does PCA with as many numbers do as well.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latent_mixup.bank import LatentBank
from latent_mixup.classifiers import FeatureCNN
from latent_mixup.functional import mix_latents, path_named
from latent_mixup.generators.base import Generator
from latent_mixup.generators.linear import Linear
from latent_mixup.images import from_uint8, to_uint8
from latent_mixup.inversion.bank_images import compare_mse
from latent_mixup.inversion.samples import SampleFormat, check_arguments, probe, read_samples, stated_format
from latent_mixup.labels import hard_labels
from latent_mixup.losses.base import pixel_mse
from latent_mixup.quality.info import multiply_adds
from latent_mixup.quality.probe import probe as linear_probe
from latent_mixup.quality.verdict import verdict
from latent_mixup.runs import Progress
from latent_mixup.sampling import keyed_generator
from latent_mixup.training.frechet import frechet_distance, moments, train_judge

MIN_ROWS = 100  # of the examined images, and of the others: a covariance of fewer is mostly noise
JUDGE_STEPS, LEAST_JUDGE_STEPS = 1_000, 250  # of 128 images: a minute or two on one core up to 32 px, fewer above
JUDGE_SIZE = 32  # px up to which all steps are taken
PCA_NUMBERS = 50_000_000  # pixel values that PCA is fitted to: 0.4 GB in float64
QUANTILES = (0.05, 0.5, 0.95)
PROJECTED_TO = 0.4  # time that ``generator.project`` brings mixes back from
BATCH = 250  # images decoded at a time
KINDS = ("reconstructions", "prior", "mixes_between", "mixes_within", "mixes", "mixes_projected")  # of made images


@dataclass(frozen=True)
class _Images:
    """Images ``[N, C, H, W]`` uint8 on the CPU and their classes, ``[N]`` int64, -1 for none."""

    pixels: Tensor
    labels: Tensor

    def floats(self, count: int | None = None) -> Iterator[Tensor]:
        """Batches of the first images, in [-1, 1]."""
        return (from_uint8(part) for part in self.pixels[:count].split(BATCH))


@dataclass(frozen=True)
class _Look:
    """What the judge sees in some images: moments of its features, and the class that it says, ``[N]``."""

    moments: tuple[Tensor, Tensor]
    guesses: Tensor


@torch.no_grad()
def check_codes(
    bank: LatentBank,
    dataset: Any,
    generator: Generator,
    *,
    others: Any = None,
    draws: int = 5,
    limit: int = 5_000,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure what mixes of a bank's codes can be expected to give, beside PCA and pixels, and judge it.

    The judge is a small classifier, trained on *other* images than those examined; so is PCA, with as many numbers as a
    code has (or as many as these images allow). Without labels, or with one class, the judge tells the four rotations
    of an image apart, and everything that needs a class is None. Rows without a label are left out where others have
    one, as are classes with too few rows to be mixed within themselves. Images are compared in 8 bits.

    Args:
        bank: In any latent space.
        dataset: The data set the bank was made from, or one whose rows the bank can find (``bank.rows_of_data``).
        generator: The generator of the codes. Where it has a prior, mixes are also projected.
        others: Other images of the same kind, of every class; at most ``limit`` are read. None: half of the bank's
            rows, of each class, are the others, and the other half is examined.
        draws: Draws of the labels that the linear probe sees.
        limit: Most images examined, and most others.
        seed: Decides every draw.
        progress: Show progress.

    Returns:
        JSON values. ``rows``, ``judge`` (its ``accuracy`` on images it has not seen), ``numbers`` (in a code);
        ``reconstruction`` (``mse`` in [-1, 1] squared; ``kept``, the share whose class stays the same for the judge);
        ``probe``, see :func:`latent_mixup.quality.probe.probe`; ``frechet``, squared distances in the judge's features
        between the examined images and as many of each kind; ``neither``, the share of half-way mixes between classes
        in which the judge sees neither class; ``decode_multiply_adds``; ``verdict``, see
        :func:`latent_mixup.quality.verdict.verdict`. Below each kind: ``ours``, ``pca``, and ``pixels`` for mixes.
        ``frechet["other_images"]`` compares real images with real ones, most of which the judge was trained on.

    Raises:
        ValueError: Bank, data set and generator do not belong together, there are too few rows, or ``others`` lacks a
            class.
        TypeError: An argument is something else.
    """
    if not isinstance(bank, LatentBank):
        raise TypeError(f"the bank comes first, check_codes(bank, dataset, generator): got {type(bank).__name__}")
    check_arguments(dataset, generator)
    if draws < 1 or limit < MIN_ROWS:
        raise ValueError(f"draws needs to be from 1, limit from {MIN_ROWS}: got {draws} and {limit}")
    if others is dataset:
        raise ValueError("others needs to be other images than those of the bank: leave it out to halve the bank")
    real, other, ours, labelled = _examined(bank, dataset, generator, others, limit, seed)
    errors = ours.errors(real)
    judge, about = _trained_judge(other, labelled, seed, progress)
    pca = _fitted_pca(other.pixels, ours.numbers, real.pixels)
    makers, partners = {"ours": ours, "pca": pca}, _drawn_partners(real.labels if labelled else None, len(errors), seed)
    looks = _looks(judge, _image_sets(real, other, makers, partners, seed), progress)
    features = {"codes": ours.latents.flatten(1), "pixels": real.pixels.flatten(1), "pca": pca.latents}
    record = {
        "rows": {
            "examined": len(errors),
            "others": len(other.labels),
            "classes": len(real.labels.unique()) if labelled else 0,
        },
        "judge": about,
        "numbers": {"ours": ours.numbers, "pca": pca.numbers, "pixels": real.pixels[0].numel()},
        "reconstruction": {
            name: {"mse": _spread(found), "kept": _kept(looks, name) if labelled else None}
            for name, found in (("ours", errors), ("pca", pca.errors(real)))
        },
        "probe": linear_probe(features, real.labels, draws=draws, seed=seed, progress=progress) if labelled else None,
        "frechet": _distances(looks),
        "neither": _neither(looks, real.labels, partners["mixes_between"]) if labelled else None,
        "decode_multiply_adds": {
            name: multiply_adds(maker.generator.decode, maker.batch(slice(1))) for name, maker in makers.items()
        },
        "draws": draws,
        "seed": seed,
    }
    return {**record, "verdict": verdict(record)}


# --------------------------------------------------------------------------------------------------
# Rows and images
# --------------------------------------------------------------------------------------------------


def _examined(
    bank: LatentBank, dataset: Any, generator: Generator, others: Any, limit: int, seed: int
) -> tuple[_Images, _Images, _Maker, bool]:
    """The examined images, the others, the codes of the former, and whether their classes are used.

    Raises:
        ValueError: See :func:`check_codes`.
    """
    bank.check(generator)
    samples, labels = _samples_of(bank, dataset, generator), bank.hard_labels
    rows, rest, labelled = _chosen(bank, samples, others is None, limit, seed)
    format = stated_format(bank.metadata, dataset, generator)
    real = _Images(_read(dataset, samples[rows], generator, format), labels[rows])
    ours = _Maker(generator, bank[rows][0])
    if bank.mse is not None:
        told = bank.mse[rows].isfinite()
        compare_mse(bank.mse[rows][told], ours.errors(real)[told])
    if others is None:
        return real, _Images(_read(dataset, samples[rest], generator, format), labels[rest]), ours, labelled
    needed = real.labels if labelled else None
    return real, _other_images(others, generator, format, needed, limit, seed), ours, labelled


def _samples_of(bank: LatentBank, dataset: Any, generator: Generator) -> Tensor:
    """The index in ``dataset`` of each row's image, ``[len(bank)]``, -1 for none."""
    found = bank.rows_of_data(dataset, generator)
    if found is None:
        bank.check(dataset)
        return bank.source_index
    samples = torch.full((len(bank),), -1, dtype=torch.int64, device="cpu")
    coded = (found >= 0).nonzero()[:, 0]
    samples[found[coded]] = coded
    return samples


def _chosen(bank: LatentBank, samples: Tensor, halve: bool, limit: int, seed: int) -> tuple[Tensor, Tensor, bool]:
    """Rows to examine, rows of the other half (none unless ``halve``), and whether their classes are used.

    Raises:
        ValueError: There are too few.
    """
    usable = samples >= 0
    if bank.status is not None:
        usable &= bank.status == 0
    order = torch.randperm(len(bank), generator=keyed_generator("check-rows", seed), device="cpu")
    order = order[usable[order]]
    labels = bank.hard_labels[order]
    groups = [order[labels == label] for label in labels[labels >= 0].unique()]
    parts = [_parts(group, halve) for group in groups]
    labelled = sum(len(part[0]) >= 2 for part in parts) >= 2  # of one row alone there is no mix within its class
    if not labelled:
        parts = [_parts(order, halve)]
    examined, rest = (_first(torch.cat([part[i] for part in parts]), order, limit) for i in (0, 1))
    if labelled:
        classes, counts = bank.hard_labels[examined].unique(return_counts=True)
        kept = classes[counts >= 2]
        examined, rest = (part[torch.isin(bank.hard_labels[part], kept)] for part in (examined, rest))
    if len(examined) < MIN_ROWS or (halve and len(rest) < MIN_ROWS):
        wanted = 2 * MIN_ROWS if halve else MIN_ROWS
        raise ValueError(
            f"a check needs {wanted} rows with status 0, an image and two or more of their class: got "
            f"{len(examined) + len(rest)} of {len(bank)}; invert more images"
            f"{', or pass others=, images that the judge may learn from' if halve else ''}"
        )
    return examined, rest, labelled


def _parts(rows: Tensor, halve: bool) -> tuple[Tensor, Tensor]:
    """Rows to examine and others."""
    return (rows[::2], rows[1::2]) if halve else (rows, rows[:0])


def _first(rows: Tensor, order: Tensor, limit: int) -> Tensor:
    """At most ``limit`` of the rows, as they come in ``order``."""
    return order[torch.isin(order, rows)][:limit]


def _read(dataset: Any, indices: Tensor, generator: Generator, format: SampleFormat) -> Tensor:
    """Images of some samples, ``[N, C, H, W]`` uint8 on the CPU; raises where one cannot be read."""
    found = []
    for part in indices.split(BATCH):
        samples = read_samples(dataset, part.tolist(), generator, format)
        for index, error in samples.errors.items():
            raise ValueError(f"the bank has a code of image {index}, which cannot be read: {error}")
        found.append(to_uint8(samples.images).cpu())
    return torch.cat(found)


def _other_images(
    others: Any, generator: Generator, like: SampleFormat, needed: Tensor | None, limit: int, seed: int
) -> _Images:
    """At most ``limit`` images of a data set; of those with a class of ``needed``, where it is given."""
    check_arguments(others, generator)
    format = _format_of_others(others, generator, like)
    order = torch.randperm(len(others), generator=keyed_generator("check-others", seed), device="cpu")[:limit]
    parts = [read_samples(others, part.tolist(), generator, format) for part in order.split(BATCH)]
    images = torch.cat([to_uint8(part.images).cpu() for part in parts])
    read = _Images(images, hard_labels(torch.cat([part.labels for part in parts])))
    if needed is not None:
        wanted = torch.isin(read.labels, needed.unique())
        read = _Images(read.pixels[wanted], read.labels[wanted])
        missing = needed.unique()[~torch.isin(needed.unique(), read.labels)].tolist()
        if missing:
            raise ValueError(
                f"others needs images of every class of the bank: got none of class {missing[0]} among {len(order)}"
            )
    if len(read.labels) < MIN_ROWS:
        raise ValueError(f"others needs {MIN_ROWS} readable images or more: got {len(read.labels)}; leave it out")
    return read


def _format_of_others(others: Any, generator: Generator, like: SampleFormat) -> SampleFormat:
    """The form of samples, with image and label where the bank's data set has them if these are names."""
    if isinstance(like.image_key, str):
        with contextlib.suppress(ValueError):  # they are elsewhere
            return probe(
                others, generator, image_key=like.image_key, label_key=like.label_key, multi_label=like.multi_label
            )[0]
    return probe(others, generator, multi_label=like.multi_label)[0]


def _drawn_partners(labels: Tensor | None, count: int, seed: int) -> dict[str, Tensor]:
    """Kind of mix => a random partner for each row: of another class and of its own; without labels any other row."""
    u_all = torch.rand(2, count, generator=keyed_generator("check-partners", seed), dtype=torch.float64, device="cpu")
    if labels is None:
        return {"mixes": _of_same_group(torch.zeros(count, dtype=torch.int64, device="cpu"), u_all[0])}
    group = labels.unique(return_inverse=True)[1]
    return {"mixes_between": _of_other_group(group, u_all[0]), "mixes_within": _of_same_group(group, u_all[1])}


def _of_other_group(group: Tensor, u: Tensor) -> Tensor:
    """For each row one of another group, by ``u`` uniform in [0, 1): ``[N]`` int64; groups are numbered from 0."""
    sizes = torch.bincount(group)
    size, start = sizes[group], (sizes.cumsum(0) - sizes)[group]
    at = (u * (len(group) - size)).long()
    return group.argsort(stable=True)[torch.where(at >= start, at + size, at)]


def _of_same_group(group: Tensor, u: Tensor) -> Tensor:
    """For each row another one of its group, by ``u`` uniform in [0, 1): ``[N]`` int64."""
    sizes, order = torch.bincount(group), group.argsort(stable=True)
    own = order.argsort()
    at = (sizes.cumsum(0) - sizes)[group] + (u * (sizes[group] - 1)).long()
    return order[torch.where(at >= own, at + 1, at)]


# --------------------------------------------------------------------------------------------------
# Images made from codes
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Maker:
    """A generator with the codes of the examined images, ``[N, *latent_shape]`` on the CPU."""

    generator: Generator
    latents: Tensor

    @property
    def numbers(self) -> int:
        """Of a code."""
        return self.latents[0].numel()

    def batch(self, rows: Tensor | slice) -> Tensor:
        """Codes on the generator's device."""
        return self.latents[rows].to(self.generator.device)

    def reconstructions(self) -> Iterator[Tensor]:
        """Batches of decoded codes."""
        for rows in _batches(len(self.latents)):
            yield self.generator.decode(self.batch(rows)).cpu()

    def errors(self, real: _Images) -> Tensor:
        """Pixel MSE of each reconstruction, ``[N]``."""
        return torch.cat([pixel_mse(*pair) for pair in zip(self.reconstructions(), real.floats(), strict=True)])

    def samples(self, seed: int) -> Iterator[Tensor]:
        """As many draws from the prior."""
        stream = keyed_generator("check-prior", seed)
        for rows in _batches(len(self.latents)):
            yield self.generator.decode(self.generator.sample_latents(len(rows), stream)).cpu()

    def mixes(self, partner: Tensor, change: Callable[[Tensor], Tensor] | None = None) -> Iterator[Tensor]:
        """Half-way mixes along the generator's path; ``change`` is applied to the mixed codes."""
        path = path_named(self.generator.preferred_path)
        for rows in _batches(len(self.latents)):
            own = self.batch(rows)
            mixed = mix_latents(own, self.batch(partner[rows]), own.new_full((len(rows),), 0.5), path)
            yield self.generator.decode(mixed if change is None else change(mixed)).cpu()

    def projected(self, partner: Tensor, seed: int) -> Iterator[Tensor]:
        """The same, brought back to the prior by ``generator.project``."""
        stream = keyed_generator("check-project", seed)
        return self.mixes(partner, lambda codes: self.generator.project(codes, PROJECTED_TO, generator=stream))


def _batches(count: int) -> tuple[Tensor, ...]:
    rows: tuple[Tensor, ...] = torch.arange(count, device="cpu").split(BATCH)
    return rows


def _pixel_mixes(pixels: Tensor, partner: Tensor) -> Iterator[Tensor]:
    for rows in _batches(len(pixels)):
        yield (from_uint8(pixels[rows]) + from_uint8(pixels[partner[rows]])) / 2


def _fitted_pca(others: Tensor, numbers: int, pixels: Tensor) -> _Maker:
    """PCA of other images, with the codes of the examined ones."""
    images = from_uint8(others[: max(2, PCA_NUMBERS // others[0].numel())])
    fitted = Linear.fit(images, min(numbers, len(images) - 1, images[0].numel()))
    return _Maker(fitted, torch.cat([fitted.encode(from_uint8(part)) for part in pixels.split(BATCH)]))


# --------------------------------------------------------------------------------------------------
# The judge
# --------------------------------------------------------------------------------------------------


def _trained_judge(other: _Images, labelled: bool, seed: int, progress: bool) -> tuple[FeatureCNN, dict[str, Any]]:
    """The judge and what the record says of it."""
    share = JUDGE_SIZE**2 / math.prod(other.pixels.shape[2:])
    steps = round(max(LEAST_JUDGE_STEPS, JUDGE_STEPS * min(1, share)))
    shown = other if labelled else _rotated(other.pixels)
    with Progress(steps, "judge", "steps", show=progress) as bar, torch.enable_grad():
        model, accuracy = train_judge(shown.pixels, shown.labels, steps=steps, seed=seed, on_step=bar.advance)
    return model, {"learns": "classes" if labelled else "rotations", "accuracy": accuracy, "steps": steps}


def _rotated(pixels: Tensor) -> _Images:
    """Every image, or its square middle, in its four rotations, labelled by the number of quarter turns."""
    side = min(pixels.shape[2:])
    top, left = ((each - side) // 2 for each in pixels.shape[2:])
    square = pixels[..., top : top + side, left : left + side]
    turned = torch.stack([square.rot90(turns, (2, 3)) for turns in range(4)], 1)
    return _Images(turned.flatten(0, 1), torch.arange(4, device="cpu").repeat(len(pixels)))


def _image_sets(
    real: _Images, other: _Images, makers: dict[str, _Maker], partners: dict[str, Tensor], seed: int
) -> list[tuple[str, str, Iterator[Tensor]]]:
    """Kind of images, who made them, and the images, which are made when they are asked for."""
    same = min(len(real.pixels), len(other.pixels))
    sets = [
        ("real", "real", real.floats()),
        ("other_images", "real", real.floats(same)),
        ("other_images", "other", other.floats(same)),
    ]
    for who, maker in makers.items():
        sets += [("reconstructions", who, maker.reconstructions()), ("prior", who, maker.samples(seed))]
        sets += [(kind, who, maker.mixes(partner)) for kind, partner in partners.items()]
        if maker.generator.has_prior:
            sets.append(("mixes_projected", who, maker.projected(next(iter(partners.values())), seed)))
    return sets + [(kind, "pixels", _pixel_mixes(real.pixels, partner)) for kind, partner in partners.items()]


def _looks(
    judge: FeatureCNN, sets: list[tuple[str, str, Iterator[Tensor]]], progress: bool
) -> dict[str, dict[str, _Look]]:
    """Kind of images => who made them => what the judge sees."""
    found: dict[str, dict[str, _Look]] = {}
    with Progress(len(sets), "check", "sets of images", show=progress) as bar:
        for kind, who, batches in sets:
            features = torch.cat([judge.features(from_uint8(to_uint8(images))) for images in batches])
            found.setdefault(kind, {})[who] = _Look(moments(features), judge.head(features).argmax(1))
            bar.advance()
    return found


# --------------------------------------------------------------------------------------------------
# Numbers
# --------------------------------------------------------------------------------------------------


def _spread(errors: Tensor) -> dict[str, Any]:
    """Mean and quantiles of ``[N]``."""
    values = errors.double()
    quantiles = values.quantile(values.new_tensor(QUANTILES)).tolist()
    return {"mean": float(values.mean()), "quantiles": dict(zip(map(str, QUANTILES), quantiles, strict=True))}


def _kept(looks: dict[str, dict[str, _Look]], who: str) -> float:
    """Share of images that the judge gives the same class after they are decoded."""
    return _share(looks["reconstructions"][who].guesses == looks["real"]["real"].guesses)


def _neither(looks: dict[str, dict[str, _Look]], labels: Tensor, partner: Tensor) -> dict[str, float]:
    """Share of half-way mixes between classes in which the judge sees neither class, by who made them."""
    found = {who: look.guesses for who, look in looks["mixes_between"].items()}
    if "mixes_projected" in looks:
        found["projected"] = looks["mixes_projected"]["ours"].guesses
    return {who: _share((guesses != labels) & (guesses != labels[partner])) for who, guesses in found.items()}


def _share(which: Tensor) -> float:
    return float(which.double().mean())


def _distances(looks: dict[str, dict[str, _Look]]) -> dict[str, Any]:
    """Distances from the real images, by kind and who made them; None for a kind that was not made."""
    real, other = looks["real"]["real"].moments, looks["other_images"]
    found: dict[str, Any] = {
        kind: {who: frechet_distance(look.moments, real) for who, look in looks[kind].items()}
        if kind in looks
        else None
        for kind in KINDS
    }
    return {**found, "other_images": frechet_distance(other["real"].moments, other["other"].moments)}
