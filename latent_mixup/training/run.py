"""One loop for every training: resume, step, log, sheet, checkpoint, and the finished network."""

from __future__ import annotations

import contextlib
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypedDict, TypeVar

import torch
from torch import Tensor

from latent_mixup import files
from latent_mixup.images import from_uint8
from latent_mixup.networks import SavedNetwork
from latent_mixup.pictures import mixes, png
from latent_mixup.policies.settings import Setting
from latent_mixup.runs import Progress, stoppable
from latent_mixup.training import checkpoints

COUNTS = ("steps", "epochs", "batch_size", "r1_every", "ema_images", "ada_images")
RATES = ("lr", "critic_lr", "ema_ramp")

N = TypeVar("N", bound=SavedNetwork)


class RunOptions(TypedDict, total=False):
    """Keywords of every training: see :class:`Run`."""

    facts: Mapping[str, Any] | None
    checkpoint_every: int
    device: torch.device | str
    progress: bool


@dataclass(frozen=True)
class TrainingRecipe(Setting):
    """Settings that decide the result of a training; kept in its checkpoint, and compared when it is resumed.

    Raises:
        ValueError: A setting has another type than its field, a count is below 1, or a rate is not above 0.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in vars(self).items():
            if (name in COUNTS and value < 1) or (name in RATES and value <= 0):
                raise ValueError(f"{name} needs to be {'1 or more' if name in COUNTS else 'above 0'}: got {value!r}")


class Training(ABC):
    """Networks, optimisers and the step counter of one training: everything that a checkpoint holds.

    Args:
        network: The network that is kept in the end.
        recipe: Settings that decide the result.
        images_uint8: ``[N, C, H, W]`` uint8; None: no images.
        labels: ``[N]`` int64; None: no labels.

    Attributes:
        step: Number of steps taken.
        stateful: Names of the attributes that have a ``state_dict``.
        counters: Names of the attributes that are numbers.
    """

    stateful: ClassVar[tuple[str, ...]]
    counters: ClassVar[tuple[str, ...]] = ("step",)

    def __init__(
        self, network: SavedNetwork, recipe: Any, images_uint8: Tensor | None, labels: Tensor | None = None
    ) -> None:
        self.network, self.recipe, self.images, self.labels, self.step = network, recipe, images_uint8, labels, 0

    @property
    def steps(self) -> int:
        """The last step."""
        return int(self.recipe.steps)

    @abstractmethod
    def advance(self) -> dict[str, float]:
        """Take one step; returns its losses."""

    @abstractmethod
    def sheet(self) -> bytes:
        """A PNG that shows what the networks do at this step."""

    def prepare(self, show: bool) -> None:  # noqa: B027 - most have nothing to prepare
        """Called before the first step of a new training, not of a resumed one; ``show``: show progress."""

    def measure(self) -> dict[str, float]:
        """More numbers for the log, at a checkpoint."""
        return {}

    def finish(self) -> dict[str, Any]:
        """Called after the last step; returns facts for the network's metadata."""
        return {}

    def identity(self) -> dict[str, Any]:
        """Everything that decides the result, for :func:`~latent_mixup.training.checkpoints.read_checkpoint`."""
        return {
            "recipe": asdict(self.recipe),
            "network": self.network.arguments(),
            "data set": fingerprint(self.images, self.labels),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        numbers = {name: getattr(self, name) for name in self.counters}
        return {**numbers, **{name: getattr(self, name).state_dict() for name in self.stateful}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a training where :meth:`state_dict` left it."""
        for name in self.counters:
            setattr(self, name, state[name])
        for name in self.stateful:
            getattr(self, name).load_state_dict(state[name])


@dataclass(frozen=True)
class Run:
    """The folder of a training, and how it is run there.

    With every checkpoint the folder gets ``checkpoint.pt``, a sheet of images ``sheet-STEP.png``, and ``log.json``, a
    row of losses and seconds for each checkpoint; in the end it gets the network. A killed run goes on from its last
    checkpoint when it is started again.

    Attributes:
        out: The folder.
        facts: What to add to the network's metadata, such as its name and the data set's.
        checkpoint_every: Steps between two checkpoints; the last step has one as well.
        device: Where to train.
        progress: Show a bar on a terminal, elsewhere a line a minute.
    """

    out: str | Path
    facts: Mapping[str, Any] | None = None
    checkpoint_every: int = 1_000
    device: torch.device | str = "cpu"
    progress: bool = True

    def __post_init__(self) -> None:
        if not files.is_count(self.checkpoint_every):
            raise ValueError(f"checkpoint_every needs to be an integer from 1: got {self.checkpoint_every!r}")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError, TypeError) as cause:
            raise ValueError(
                f"device {str(self.device)!r} cannot be used here ({str(cause).splitlines()[0]})"
            ) from cause

    def train(
        self,
        kind: type[N],
        arguments: Mapping[str, Any],
        start: Callable[[N, Any], Training],
        recipe: Any,
        *given: Any,
        dtype: torch.dtype = torch.float32,
    ) -> N:
        """Build a network, train it, and write it with metadata that say how it came to be.

        Args:
            kind: Class of the network; its first weights depend on the recipe's seed alone.
            arguments: What it is made with.
            start: The training of a network by a recipe.
            recipe: Settings that decide the result.
            given: What its constructor and its ``from_pretrained`` take before the rest, such as a generator.
            dtype: Of the weights in the file.

        Returns:
            The network as its files hold it.

        Raises:
            ValueError: The folder holds a training with other settings or data, or a broken checkpoint.
            RuntimeError: A loss or a weight is no longer finite; the last checkpoint is kept.
            OSError: The folder cannot be written to; the last checkpoint is kept.
        """
        with plain_defaults():
            with first_weights(recipe.seed):
                network = kind(*given, **arguments).to(self.device)
            training = start(network, recipe)
            self._take_steps(training)
            network.requires_grad_(False).eval()
            facts, versions = {**(self.facts or {}), **training.finish()}, {"torch": torch.__version__}
            network.metadata = {**facts, "recipe": asdict(recipe), "versions": versions}
            network.save_pretrained(self.out, dtype=dtype)
        return kind.from_pretrained(self.out, *given)

    def _take_steps(self, training: Training) -> None:
        out, identity = Path(self.out), training.identity()
        state, log = checkpoints.read_checkpoint(out, identity), list[dict[str, float]]()
        checkpoints.check_writable(out)
        if state is None:
            training.prepare(self.progress)
        else:
            try:
                training.load_state_dict(state)
            except checkpoints.BROKEN as cause:
                path, problem = out / checkpoints.CHECKPOINT_FILE, f"{type(cause).__name__}: {cause}"
                raise ValueError(f"{path} does not fit its training: remove it ({problem})") from cause
            log = checkpoints.read_log(out, training.step)
        before, kept = log[-1].get("seconds", 0.0) if log else 0.0, training.step

        def what_is_kept() -> str:
            if not kept:
                return f"{out} has no checkpoint yet, the first is due at step {self.checkpoint_every:,}"
            return f"{out} keeps step {kept:,} of {training.steps:,}, where the same call goes on"

        with (
            stoppable(what_is_kept),
            Progress(training.steps, "train", "steps", done=training.step, show=self.progress) as bar,
        ):
            while training.step < training.steps:
                losses = training.advance()
                bar.advance(1, ", ".join(f"{name} {value:.4g}" for name, value in losses.items()))
                due = training.step % self.checkpoint_every == 0 or training.step == training.steps
                state = training.state_dict() if due else {}
                if not (all(map(math.isfinite, losses.values())) and is_finite(state)):
                    raise RuntimeError(
                        f"training diverged at step {training.step:,}, with losses {losses}: start again in another "
                        f"folder with a lower learning rate; {what_is_kept()}"
                    )
                if due:
                    row = {"step": training.step, **losses, **training.measure()}
                    log.append({**row, "seconds": round(before + bar.seconds, 1)})
                    content = {"identity": identity, **state}
                    checkpoints.write_checkpoint(out, content, training.sheet(), log)
                    kept = training.step


@contextlib.contextmanager
def plain_defaults() -> Iterator[None]:
    """Inside, new tensors are float32, on the CPU, and take gradients, whatever the caller has set."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextlib.contextmanager
def first_weights(seed: int) -> Iterator[None]:
    """Inside, new layers draw their weights from ``seed``; afterwards torch's random state is as it was."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU as well
    try:
        yield
    finally:
        torch.set_rng_state(state)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of an optimiser; networks that are not its own get no gradient."""
    optimizer.zero_grad()
    loss.backward(inputs=[parameter for group in optimizer.param_groups for parameter in group["params"]])
    optimizer.step()


def fingerprint(images_uint8: Tensor | None, labels: Tensor | None = None) -> str | None:
    """One line that tells a data set from any other: number and size of its images, SHA-256 of images and labels."""
    if images_uint8 is None:
        return None
    sha = hashlib.sha256(images_uint8.cpu().contiguous().numpy().data)
    if labels is not None:
        sha.update(labels.cpu().contiguous().numpy().data)
    return f"{len(images_uint8):,} images of {list(images_uint8.shape[1:])}, SHA-256 {sha.hexdigest()[:24]}"


@torch.no_grad()
def code_sheet(
    autoencoder: Any, images_uint8: Tensor, changes: Mapping[str, Callable[[Tensor], Tensor]] | None = None
) -> bytes:
    """A PNG of real images, decoded ones, decodes of changed codes, mixes with a partner, and the partner decoded."""
    images = from_uint8(images_uint8[: min(32, len(images_uint8) // 2 * 2)])
    own, other = autoencoder.encode(images).chunk(2)
    rows = {
        "real a": images[: len(own)],
        "a decoded": autoencoder.decode(own),
        **{caption: autoencoder.decode(change(own)) for caption, change in (changes or {}).items()},
        **{f"mix, lam {lam}": mixes(autoencoder, own, other, lam) for lam in (0.75, 0.5, 0.25)},
        "b decoded": autoencoder.decode(other),
    }
    return png(list(rows.values()), list(rows))


def is_finite(state: Any) -> bool:
    """Whether no tensor in nested containers has a NaN or an infinity."""
    if isinstance(state, Mapping):
        return all(map(is_finite, state.values()))
    if isinstance(state, list | tuple):
        return all(map(is_finite, state))
    return bool(state.isfinite().all()) if isinstance(state, Tensor) else True


def check_images(images_uint8: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
    """The ``img_channels`` and ``img_resolution`` of two images or more, ``[N, C, H, W]`` uint8.

    Whether they need to be square, their generator says.

    Raises:
        ValueError: They are something else, or ``labels`` is not an int64 tensor with one label from 0 an image.
    """
    if not isinstance(images_uint8, Tensor) or images_uint8.ndim != 4 or images_uint8.dtype != torch.uint8:
        raise ValueError(
            f"training needs its images in one tensor of shape [N, C, H, W] and dtype uint8: got {_told(images_uint8)}"
        )
    num_images, channels, height, width = images_uint8.shape
    if num_images < 2:
        raise ValueError(f"training needs two images or more: got {num_images}")
    if labels is not None:
        if not isinstance(labels, Tensor) or list(labels.shape) != [num_images] or labels.dtype != torch.int64:
            raise ValueError(f"labels need shape [{num_images}], one an image, and dtype int64: got {_told(labels)}")
        if labels.min() < 0:
            raise ValueError(f"labels need to be from 0: got {int(labels.min())}")
    return {"img_channels": channels, "img_resolution": height if height == width else (height, width)}


def _told(value: object) -> str:
    return f"{list(value.shape)} {value.dtype}" if isinstance(value, Tensor) else f"{value!r:.80}"
