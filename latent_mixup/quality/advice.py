"""What to do with a generator, by what was measured: ``latent-mixup advise``."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from latent_mixup import files
from latent_mixup.bank import LatentBank, load
from latent_mixup.generators import Generator

Aim: TypeAlias = Literal["robust", "small-model", "balance", "accuracy"]
AIMS: tuple[Aim, ...] = get_args(Aim)
QUALITY_FILE = "quality.json"
FAR = 5  # times as many labelled images as were measured: beyond that the measurement says nothing


@dataclass(frozen=True)
class Advice:
    """What the measurements say for an aim.

    Attributes:
        aim: What it is for.
        use: Whether to use the generator.
        why: Sentences, each with the figures that it rests on.
        lines: Lines to paste; "" where it says not to.
    """

    aim: Aim
    use: bool
    why: tuple[str, ...]
    lines: str

    def __str__(self) -> str:
        """For a terminal."""
        head = f"{self.aim}: {'use it' if self.use else 'do not'}"
        return "\n".join(
            [head, *(f"- {each}" for each in self.why), *([""] if self.lines else []), self.lines]
        ).rstrip()


def advise(run: str | Path, aim: Aim) -> Advice:
    """The recipe with the best evidence for an aim, or why there is none.

    The evidence is that of ``benchmarks/``, on Fashion-MNIST and CIFAR-10: a recipe is advised where its interval is
    above 0 against the best that needs no generator, on every data set where it was measured.

    Args:
        run: A folder that ``fit`` made, a bundled name, or a Hub id.
        aim: ``"robust"``: accuracy under attack; ``"small-model"``: a small classifier taught by a large one, without
            its images; ``"balance"``: rare classes; ``"accuracy"``: of clean images.

    Raises:
        ValueError: The aim is another.
        FileNotFoundError: There is nothing of that name.

    Example:
        >>> advise("fashion-mnist", "accuracy").use
        False
    """
    if aim not in AIMS:
        raise ValueError(f"aim needs to be one of {', '.join(AIMS)}: got {aim!r}")
    generator, bank = load(run)
    found = [each for each in evidence() if each["aim"] == aim]
    against = _against(generator, bank, run, aim, found)
    use = bool(found) and not against and all(each["interval"][0] > 0 for each in found)
    why = (*against, *(_said(each) for each in found)) or ("nothing was measured for this aim yet",)
    return Advice(aim, use, why, textwrap.dedent(LINES[aim]).strip().format(run=run) if use else "")


def evidence() -> list[dict[str, Any]]:
    """What ``benchmarks/robust/evidence.py`` found in the results: differences with 95 % intervals."""
    path = Path(str(resources.files("latent_mixup"))) / "quality" / "evidence.json"
    found: list[dict[str, Any]] = files.read_json(path)["findings"]
    return found


def _against(
    generator: Generator, bank: LatentBank, run: str | Path, aim: Aim, found: list[dict[str, Any]]
) -> list[str]:
    """What speaks against this generator in particular."""
    against = []
    if aim in ("robust", "small-model") and not generator.has_prior:
        against.append(f"{type(generator).__name__} has no learnt prior to draw fresh samples from")
    labelled = int((bank.labels >= 0).sum()) if bank.labels.ndim == 1 else len(bank)
    most = max((each.get("labelled", 0) for each in found), default=0)
    if aim == "robust" and most and labelled > FAR * most:
        against.append(
            f"you have {labelled:,} labelled images: what was measured, with up to {most:,}, says nothing of it"
        )
    quality = Path(run) / QUALITY_FILE
    if aim == "balance" and quality.is_file():
        record = files.read_json(quality)
        if not record.get("verdict", {"go": True})["go"]:
            against.append(f"its check says {record['verdict']['text']}")
    return against


def _said(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    where = found["dataset"] + (f" with {found['labelled']:,} labelled images" if found.get("labelled") else "")
    points = f"{100 * found['mean']:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"{where}: {found['what']}, {points} of {found['score']} against {found['against']}, {found['seeds']} seeds"


LINES: dict[Aim, str] = {
    "robust": """
        import torch.nn.functional as F
        from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
        import latent_mixup as lm
        from latent_mixup.policies import Prior, Teacher

        teacher = Teacher(classifier)  # trained on your labelled images as usual, for images in [-1, 1]
        loader = lm.LatentMixupLoader(loader, "{run}", prob=0.5, policy=Prior(labels=teacher))
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.995))  # the one to keep
        for images, targets in loader:
            images = lm.robustness.adversarial(model, images, targets, eps=16 / 255, steps=3)
            loss = F.cross_entropy(model(images), targets)
            # ... your step
            averaged.update_parameters(model)
    """,
    "small-model": """
        import torch
        import torch.nn.functional as F
        import latent_mixup as lm
        from latent_mixup.policies import Teacher

        generator, teacher = lm.load_generator("{run}"), Teacher(large_model)
        with torch.no_grad():
            images = generator.decode(generator.sample_latents(64))
        loss = F.cross_entropy(small_model(images), teacher(images))
    """,
    "balance": """
        import latent_mixup as lm
        from latent_mixup.policies import Policy, SameClass

        # with a sampler that draws classes evenly
        loader = lm.LatentMixupLoader(loader, "{run}", balance="batch", policy=Policy(partners=SameClass(nearest=5)))
    """,
    "accuracy": "",
}
