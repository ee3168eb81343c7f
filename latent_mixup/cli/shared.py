"""What several commands share: errors in one sentence, data sets, and this process's part of the work."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from latent_mixup.generators import Generator
    from latent_mixup.losses.base import Loss

NEW_FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
TORCHVISION_CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}
IMAGE_FOLDER = "imagefolder"
PLACE = ("--out", "--shard", "--device", "--threads", "--data-root")  # options that do not change the result
TYPED = "latent_mixup.typed"  # key of click's context: the words behind the program's name


def several(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Options that belong together, as one decorator; ``--help`` shows them in this order."""

    def decorate(command: Any) -> Any:
        return functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)

    return decorate


data_options = several(
    click.option(
        "--dataset", type=click.Choice([*TORCHVISION_CLASSES, IMAGE_FOLDER]), required=True, help="Data set to read."
    ),
    click.option(
        "--data-root",
        type=FOLDER,
        required=True,
        help="Folder where torchvision finds the data set; for imagefolder, one with a folder of images per class.",
    ),
    click.option("--test", is_flag=True, help="Use the test images instead of the training images."),
)
lpips_options = several(
    click.option(
        "--lpips-weights",
        help="Weights of vgg16 for lpips: a .pth or .safetensors, a folder, or a Hub id. Default: torch's cache.",
    ),
    click.option("--download-lpips", is_flag=True, help="Download missing weights of vgg16 (528 MB) and check them."),
)
loss_options = several(
    click.option(
        "--loss",
        type=click.Choice(["lpips", "features", "pixels"]),
        help="Loss. Default: lpips (0.9 LPIPS + 0.1 MSE) for RGB, else features (the generator's features + MSE).",
    ),
    lpips_options,
)
generator_option = click.option(
    "--generator", required=True, help="Folder, bundled name or Hub id of the generator of the codes."
)
device_option = click.option("--device", default="cpu", help="Where to decode, e.g. cuda.")


def _use_threads(_context: click.Context, _option: click.Parameter, threads: int | None) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)


threads_option = click.option(
    "--threads",
    type=click.IntRange(1),
    expose_value=False,
    callback=_use_threads,
    help="CPU threads. Default: all cores.",
)
part_options = several(
    click.option("--shard", metavar="i/n", help="Do every n-th chunk from the i-th, for job arrays. Default: all."),
    click.option("--device", help="Where to decode, e.g. cuda. Default: cpu."),
    threads_option,
)


def optimizer_options(restarts: int) -> Callable[[Any], Any]:
    """Options of the optimiser, named as the arguments of ``invert`` and ``refine``."""
    return several(
        click.option(
            "--restarts", type=click.IntRange(0), default=restarts, help="Random restarts per image after convergence."
        ),
        click.option(
            "--optimizer",
            type=click.Choice(["lbfgs", "adam"]),
            default="lbfgs",
            help="Optimizer; adam for a loss that is random.",
        ),
        click.option("--lr", type=float, default=0.03, help="Length of the first step."),
        click.option(
            "--tolerance",
            type=float,
            default=1e-3,
            help="lbfgs: relative decrease of the loss in ten evaluations below which an image has converged.",
        ),
        click.option("--draws", type=click.IntRange(1), default=1024, help="Generated images used for initialisation."),
        click.option("--batch-size", type=click.IntRange(1), default=64, help="Images decoded at a time."),
        click.option("--seed", type=int, default=0, help="Seed of the draws and the restarts."),
    )


def one_sentence(command: Callable[..., None]) -> Callable[..., None]:
    """Show an error that a user can mend as one sentence and exit with 1; show the package's warnings as notes.

    A run that was stopped says what is done, and exits with 143 after SIGTERM, 130 after Ctrl-C, as shells do.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            with _warnings_as_notes():
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


@contextlib.contextmanager
def _warnings_as_notes() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning, module="latent_mixup")
        show = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], filename: str, *rest: Any, **more: Any) -> None:
            if issubclass(category, UserWarning) and Path(filename).is_relative_to(Path(__file__).parents[1]):
                click.echo(f"note: {message}", err=True)
            else:
                show(message, category, filename, *rest, **more)

        warnings.showwarning = note
        yield


def typed_command(without: Collection[str] = ()) -> list[str]:
    """The command that is running, word for word, for ``metadata["command"]``; empty outside the command line.

    An absolute path is cut down to its last part: metadata are published.

    Args:
        without: Options with a value to leave out, such as ``--out``, since they do not change the result.
    """
    context = click.get_current_context(silent=True)
    typed: list[str] = context.meta.get(TYPED, []) if context else []
    kept: list[str] = []
    for number, word in enumerate(typed):
        is_value = number > 0 and typed[number - 1] in without
        if not is_value and word.partition("=")[0] not in without:
            kept.append(_without_folders(word))
    return ["latent-mixup", *kept] if typed else []


def _without_folders(word: str) -> str:
    option, equals, path = word.rpartition("=") if word.startswith("--") else ("", "", word)
    return f"{option}{equals}{Path(path).name or path}" if Path(path).is_absolute() else word


def pop_loss(generator: Generator, settings: dict[str, Any]) -> Loss | None:
    """The loss that ``--loss``, ``--lpips-weights`` and ``--download-lpips`` name; None: the default.

    Takes these three out of the ``settings`` of a command with ``loss_options``.

    Raises:
        FileNotFoundError: The weights of LPIPS are not there.
        ValueError: The generator or another option does not go with it.
    """
    from latent_mixup.losses.chosen import named_loss

    name, lpips_weights, download = (settings.pop(key) for key in ("loss", "lpips_weights", "download_lpips"))
    if lpips_weights is not None or download:
        if name not in (None, "lpips"):
            raise ValueError(f"--lpips-weights and --download-lpips go with --loss lpips: got --loss {name}")
        name = "lpips"
    return name and named_loss(generator, name, lpips_weights=lpips_weights, download=download)


def given(**settings: Any) -> dict[str, Any]:
    """The settings that are not None."""
    return {name: value for name, value in settings.items() if value is not None}


@dataclass(frozen=True)
class Part:
    """The part of this process in a run.

    Attributes:
        shard: ``(i, n)``.
        device: Where to decode.
        shows: Whether to show a progress bar: one of several processes on a terminal does.
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
    """A data set of images and labels: torchvision's under ``root``, or a folder with a folder of images per class.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: Test images of a folder were asked for.
    """
    if name != IMAGE_FOLDER:
        return torchvision_dataset(name, root, train=not test)
    if test:
        raise ValueError("--test is for torchvision's data sets: for a folder of images pass the folder itself")
    from torchvision.datasets import ImageFolder

    from latent_mixup.images import open_image

    return ImageFolder(root, loader=open_image)


def torchvision_dataset(name: str, root: Path, *, train: bool) -> Any:
    """A torchvision data set under ``root``; nothing is downloaded.

    Raises:
        FileNotFoundError: It is not there.
    """
    import torchvision.datasets

    kind = getattr(torchvision.datasets, TORCHVISION_CLASSES[name])
    try:
        return kind(root, train=train, download=False)
    except RuntimeError as cause:
        folder = root / getattr(kind, "base_folder", f"{kind.__name__}/raw")
        raise FileNotFoundError(
            f"{root} has no {kind.__name__} as torchvision lays it out: expected {folder}; pass --data-root"
        ) from cause


def uint8_images(dataset: Any) -> Any:
    """All images of a torchvision data set: ``[N, C, H, W]`` uint8."""
    import torch

    images = torch.as_tensor(dataset.data)
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
