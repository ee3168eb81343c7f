"""What several commands share: errors in one sentence, data sets, and this process's part of the work."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from latent_mixup.generators import Generator
    from latent_mixup.losses.base import Loss

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
TORCHVISION_CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}
IMAGE_FOLDER = "imagefolder"
TYPED = "latent_mixup.typed"  # key of click's context: the words behind the program's name


def several(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Options that belong together, as one decorator; ``--help`` shows them in this order."""

    def decorate(command: Any) -> Any:
        return functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)

    return decorate


data_options = several(
    click.option(
        "--dataset", type=click.Choice([*TORCHVISION_CLASSES, IMAGE_FOLDER]), required=True, help="What is inverted."
    ),
    click.option(
        "--data-root",
        type=FOLDER,
        required=True,
        help="Where torchvision finds the data set; for imagefolder, a folder with a folder of images for each class.",
    ),
    click.option("--test", is_flag=True, help="The test images; default: the training images."),
)
loss_options = several(
    click.option(
        "--loss",
        type=click.Choice(["lpips", "features", "pixels"]),
        help="Default: 0.9 LPIPS + 0.1 MSE for RGB, else the generator's features + MSE.",
    ),
    click.option(
        "--lpips-weights",
        help="Of vgg16, for lpips: a .pth or .safetensors, a folder, or a Hub id; default: torch's cache.",
    ),
)
part_options = several(
    click.option("--shard", metavar="i/n", help="Every n-th chunk from the i-th, for job arrays; default: all."),
    click.option("--device", help="Where to decode, e.g. cuda; default: the CPU."),
    click.option("--threads", type=click.IntRange(1), help="CPU threads; default: all cores."),
)


def one_sentence(command: Callable[..., None]) -> Callable[..., None]:
    """Show what a user can mend as one sentence and exit with 1, instead of a traceback.

    A run that was stopped says what is done, and exits with 143 after SIGTERM, 130 after Ctrl-C, as shells have it.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
            raise click.ClickException(" ".join(str(error).split())) from error
        except KeyboardInterrupt as stop:
            click.echo(str(stop) or "stopped", err=True)
            raise SystemExit(128 + signal.SIGINT) from None
        except SystemExit as stop:
            if text := getattr(stop, "text", None):
                click.echo(text, err=True)
            raise

    return wrapped


def typed_command() -> list[str]:
    """The command that is running, word for word, for ``metadata["command"]``; empty outside the command line.

    An absolute path is cut down to its last part: metadata are published.
    """
    context = click.get_current_context(silent=True)
    typed: list[str] = context.meta.get(TYPED, []) if context else []
    return ["latent-mixup", *map(_without_folders, typed)] if typed else []


def _without_folders(word: str) -> str:
    option, equals, path = word.rpartition("=") if word.startswith("--") else ("", "", word)
    return f"{option}{equals}{Path(path).name or path}" if Path(path).is_absolute() else word


def loss_for(generator: Generator, name: str | None, lpips_weights: str | None) -> Loss | None:
    """The loss that ``--loss`` and ``--lpips-weights`` name; None: what an inversion takes by itself.

    Raises:
        FileNotFoundError: The weights of LPIPS are not there.
        ValueError: The generator or the other option does not go with it.
    """
    from latent_mixup.inversion import LPIPS, FeatureLoss, PerceptualLoss, pixel_mse

    if name == "lpips" or (name is None and lpips_weights is not None):
        loss = PerceptualLoss(lpips=LPIPS(weights=lpips_weights))
        loss.lpips.check_shape((1, generator.img_channels, generator.img_resolution, generator.img_resolution))
        return loss
    if lpips_weights is not None:
        raise ValueError(f"--lpips-weights goes with --loss lpips: got --loss {name}")
    if name == "features":
        if generator.features is None:
            raise ValueError(f"this {type(generator).__name__} brings no trained features: pass --loss lpips or pixels")
        return FeatureLoss(generator.features)
    return pixel_mse if name == "pixels" else None


def given(**settings: Any) -> dict[str, Any]:
    """Those that are not None: what a recipe does not leave to its defaults."""
    return {name: value for name, value in settings.items() if value is not None}


@dataclass(frozen=True)
class Part:
    """What this process does of a run.

    Attributes:
        shard: ``(i, n)``.
        device: Where to decode.
        shows: Whether it shows a progress bar: one of several on a terminal does.
    """

    shard: tuple[int, int]
    device: str
    shows: bool


def part_of(shard: str | None, device: str | None) -> Part:
    """The part that ``--shard i/n`` names; or, under ``torch.distributed.run``, that of this rank, on its device."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        if shard is not None:
            raise ValueError(f"torch.distributed.run shares the work out by itself: leave out --shard {shard}")
        return Part((rank, world), f"cuda:{local}" if device == "cuda" else device or "cpu", local == 0)
    index, slash, count = ("0/1" if shard is None else shard).partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"--shard needs i/n with i from 0 to n - 1, such as 0/4: got {shard!r}")
    return Part((int(index), int(count)), device or "cpu", True)


def image_dataset(name: str, root: Path, *, test: bool) -> Any:
    """A data set of images and labels: torchvision's under ``root``, or a folder with one of images for each class.

    Raises:
        FileNotFoundError: It does not lie there.
        ValueError: Test images of a folder were asked for.
    """
    if name != IMAGE_FOLDER:
        return torchvision_dataset(name, root, train=not test)
    if test:
        raise ValueError("--test is for torchvision's data sets: of a folder of images pass the folder itself")
    from torchvision.datasets import ImageFolder

    return ImageFolder(root)


def torchvision_dataset(name: str, root: Path, *, train: bool) -> Any:
    """A torchvision data set that lies under ``root``; nothing is downloaded.

    Raises:
        FileNotFoundError: It does not lie there.
    """
    import torchvision.datasets

    try:
        return getattr(torchvision.datasets, TORCHVISION_CLASSES[name])(root, train=train, download=False)
    except RuntimeError as cause:
        raise FileNotFoundError(
            f"{root} has no {TORCHVISION_CLASSES[name]} as torchvision lays it out: "
            f"expected {root / TORCHVISION_CLASSES[name] / 'raw'}; pass --data-root"
        ) from cause


def uint8_images(dataset: Any) -> Any:
    """All images of a torchvision data set: ``[N, C, H, W]`` uint8."""
    import torch

    images = torch.as_tensor(dataset.data)
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
