"""What several commands share: errors in one sentence, JSON, data sets, and this process's part of the work."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import click

from latent_mixup.cli import config, hub_data

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from latent_mixup import LatentBank
    from latent_mixup.generators import Generator
    from latent_mixup.losses.base import Loss

NEW_FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
TORCHVISION_CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}
IMAGE_FOLDER = "imagefolder"
PLACE = ("--out", "--shard", "--device", "--threads", "--data-root")  # options that do not change the result
TYPED = "latent_mixup.typed"  # key of click's context: the words behind the program's name
AS_JSON = "latent_mixup.as_json"  # another: whether --json was given


def several(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Options that belong together, as one decorator; ``--help`` shows them in this order."""

    def decorate(command: Any) -> Any:
        return functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)

    return decorate


DATA_HELP = (
    "mnist, fashion-mnist, cifar10, hf:NAME[@split] of Hugging Face datasets, a CSV file of path,label lines, or a "
    "folder of images, flat or with a folder for each class"
)
root_option = click.option("--data-root", type=FOLDER, help="Folder where torchvision finds its data sets, or data.")
download_option = click.option("--download", is_flag=True, help="Download a data set of torchvision or hf: if missing.")
key_options = several(
    click.option(
        "--image-key", metavar="KEY", help="Column of the images in hf:NAME or a CSV file. Default: the usual names."
    ),
    click.option(
        "--label-key", metavar="KEY", help="Column of the labels; none: leave them out. Default: the usual names."
    ),
)
data_options = several(
    click.option(
        "--dataset", metavar="DATA", required=True, help=f"{DATA_HELP}; imagefolder: the folder that --data-root names."
    ),
    root_option,
    click.option("--test", is_flag=True, help="Use the test images instead of the training images."),
    download_option,
    key_options,
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
    "--generator",
    required=True,
    help="Generator of the codes: folder, bundled name, Hub id, or module:function of your own.",
)


def _chosen_device(context: click.Context, _option: click.Parameter, device: str) -> str:
    if device != "auto" or context.resilient_parsing:  # a shell completes a word
        return device
    import torch

    from latent_mixup.networks import best_device

    chosen = best_device()
    if torch.accelerator.is_available():
        there = str(torch.accelerator.current_accelerator())
        other = "" if there == chosen else f"; this machine has {there} as well, --device {there}"
        click.echo(f"device: {chosen}{other}", err=True)
    return chosen


device_option = click.option(
    "--device",
    default="auto",
    callback=_chosen_device,
    help="Where to compute: auto (cuda, else cpu), cpu, cuda, mps, xpu.",
)


def pixels(context: click.Context, option: click.Parameter, value: Any) -> int | tuple[int, int] | None:
    """``64`` as a number, ``96x160`` as height and width."""
    if value is None:
        return None
    numbers = str(value).lower().split("x")
    if len(numbers) > 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise click.BadParameter(
            f"{value!r} is no size in pixels: expected 64, or height and width, 96x160", context, option
        )
    return int(numbers[0]) if len(numbers) == 1 else (int(numbers[0]), int(numbers[1]))


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
    device_option,
    threads_option,
)


def optimizer_options(restarts: int | None) -> Callable[[Any], Any]:
    """Options of the optimiser, named as the arguments of ``invert`` and ``refine``."""
    return several(
        click.option("--restarts", type=click.IntRange(0), default=restarts, help="Random restarts after convergence."),
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


def _ask_for_json(context: click.Context, _option: click.Parameter, asked: bool) -> None:
    context.meta[AS_JSON] = asked


json_option = click.Option(
    ["--json"],
    is_flag=True,
    expose_value=False,
    callback=_ask_for_json,
    help="Print the result as one JSON object; words and progress go to stderr.",
)


def as_json() -> bool:
    """Whether the command that is running prints JSON."""
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get(AS_JSON))


def say(text: str) -> None:
    """Print words on the way to a result; where the result is JSON, on stderr."""
    click.echo(text, err=as_json())


def answer(text: str, record: dict[str, Any]) -> None:
    """Print a result: its text, or with ``--json`` the record, in which no number is NaN or infinite."""
    click.echo(json.dumps(record, indent=2, allow_nan=False, default=str) if as_json() else text)


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

    An absolute path is cut down to its last part: metadata are published. Options that a file of ``--config`` gave are
    there as if they had been typed.

    Args:
        without: Options with a value to leave out, such as ``--out``, since they do not change the result.
    """
    context = click.get_current_context(silent=True)
    typed: list[str] = context.meta.get(TYPED, []) if context else []
    if context and typed:
        typed = [*typed[:1], *config.words(context), *(word for word in typed[1:] if word != "--json")]
    without, kept = {*without, f"--{config.CONFIG}"}, list[str]()
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


def generator_named(text: str, device: str = "cpu") -> Generator:
    """The generator that the user typed: a name that ``load_generator`` takes, or ``module:name`` of Python code.

    The module is imported, as uvicorn imports an application, because somebody typed it: call this with words of the
    command line alone, never with what a file says. Its ``metadata["name"]`` is the typed text.

    Args:
        text: A folder, a bundled name, a Hub id; or ``module:name``, where the name is a ``Generator``, or is called
            without arguments and returns one. Modules are looked for in the current folder first.
        device: Where to decode.

    Raises:
        FileNotFoundError: There is no generator of that name.
        ImportError: There is no such module, or it has no such name.
        TypeError: It is not a ``Generator``, and does not return one.
    """
    from latent_mixup import load_generator

    return (_imported_generator(text) if is_python_name(text) else load_generator(text)).to(device)


def is_python_name(text: str | Path) -> bool:
    """Whether this is ``module:name``: it has a colon, and is not a path."""
    return isinstance(text, str) and ":" in text and not {"/", "\\"} & {*text} and not os.path.exists(text)


def _imported_generator(text: str) -> Generator:
    from torch import nn

    from latent_mixup.generators import Generator

    made = imported(text)
    if callable(made) and not isinstance(made, nn.Module):
        made = made()
    if not isinstance(made, Generator):
        advice = "; wrap it: latent_mixup.generators.wrap(module, latent_shape=...)" if callable(made) else ""
        raise TypeError(
            f"{text} needs to be a Generator, or a function without arguments that returns one: "
            f"got {type(made).__name__}{advice}"
        )
    made.metadata["name"] = text
    return made


def imported(text: str) -> Any:
    """What ``module:name`` is, from the current folder or an installed package."""
    module_name, _, name = text.partition(":")
    if not name or not all(module_name.split(".")):
        raise ImportError(f"code of your own is module:name, such as my_package.my_module:make: got {text!r}")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as cause:
        if not f"{module_name}.".startswith(f"{cause.name}."):
            raise  # a module that theirs imports
        raise ModuleNotFoundError(
            f"there is no module {cause.name!r}, for {text}: looked in the current folder, {folder}, and among the "
            "installed packages"
        ) from cause
    if not hasattr(module, name):
        names = [each for each in vars(module) if not each.startswith("_")]
        near = difflib.get_close_matches(name, names) or names[:5]
        mend = f"did you mean {' or '.join(map(repr, near))}?" if near else "it has no public names"
        raise ImportError(f"{module_name} ({module.__file__}) has no {name!r}: {mend}")
    return getattr(module, name)


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


def part_of(shard: str | None, device: str) -> Part:
    """The part that ``--shard i/n`` names; or, under ``torch.distributed.run``, that of this rank, on its device."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        if shard is not None:
            raise ValueError(f"torch.distributed.run shares the work out by itself: leave out --shard {shard}")
        return Part((rank, world), f"{device}:{local}" if device in ("cuda", "xpu") else device, local == 0)
    index, slash, count = ("0/1" if shard is None else shard).partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"--shard needs i/n with i from 0 to n - 1, such as 0/4: got {shard!r}")
    return Part((int(index), int(count)), device, True)


class Columns(TypedDict, total=False):
    """Where images and labels are in ``hf:NAME`` or a CSV file: ``--image-key`` and ``--label-key``; None: found."""

    image_key: str | None
    label_key: str | None


class Where(Columns, total=False):
    """Which part of a data set, and its columns; see :func:`open_data`."""

    test: bool
    download: bool


def image_dataset(name: str, root: Path | None, **where: Unpack[Where]) -> Any:
    """The data set of ``--dataset`` and ``--data-root``: see :func:`open_data`."""
    if name != IMAGE_FOLDER:
        return open_data(name, root, **where)
    if root is None:
        raise ValueError(f"--dataset {IMAGE_FOLDER} needs --data-root, the folder of images")
    return _data_files(root, where)


def keys_in_samples(text: str, columns: Columns) -> Columns:
    """Where images and labels are in the samples that :func:`open_data` gives; None: found."""
    if not text.startswith(hub_data.PREFIX):
        return {"image_key": None, "label_key": None}
    label_key = columns["label_key"]
    return {
        "image_key": columns["image_key"],
        "label_key": None if label_key == hub_data.NO_LABELS else label_key,
    }


def check_keys(bank: LatentBank, text: str, columns: Columns) -> None:
    """Raise ``ValueError`` where a bank was made from other parts of its samples than the columns of ``hf:NAME``."""
    stated = bank.metadata.get("samples") or {}
    for name, key in keys_in_samples(text, columns).items():
        if key is not None and key != stated.get(name):
            option = name.replace("_", "-")
            raise ValueError(f"--{option} {key}: the bank was made with {stated.get(name)!r}; leave --{option} out")


def open_data(text: str, root: Path | None = None, **where: Unpack[Where]) -> Any:
    """A data set by what the user typed.

    A folder with one of torchvision's three names is typed as a path, such as ``./mnist``.

    Args:
        text: ``mnist``, ``fashion-mnist`` or ``cifar10``; ``hf:NAME[@split]``, see
            :func:`latent_mixup.cli.hub_data.hub_dataset`; a CSV file or a folder of images, see
            :func:`latent_mixup.images.open_csv` and :func:`latent_mixup.images.open_folder`.
        root: Where torchvision's three lie as it has them, or CIFAR-10 as ``cifar10-jpeg/{train,test}/CLASS/*.jpg``;
            None: the folder ``data``.
        where: ``test``: the test images of one of the three, or of the Hub's; ``download``: whether one of them may be
            downloaded; ``image_key`` and ``label_key``: columns of the Hub's or of a CSV file, None for the usual ones,
            ``label_key="none"`` for no labels.

    Raises:
        FileNotFoundError: It is not there; says what was looked for.
        ValueError: Test images or a download were asked for of files, or columns of what has none, or they are not as
            they need to be.
        ImportError: The library for it is not installed.
    """
    root = root or Path("data")
    if text.startswith(hub_data.PREFIX):
        return hub_data.hub_dataset(text, **where)
    if text in TORCHVISION_CLASSES:
        _refuse_keys(text, where)
    test, download = where.get("test", False), where.get("download", False)
    jpegs = root / "cifar10-jpeg" / ("test" if test else "train")
    if text == "cifar10" and not (download or (root / "cifar-10-batches-py").exists()):
        if jpegs.is_dir():
            return _data_files(jpegs, {})
        raise FileNotFoundError(
            f"{root} has no CIFAR10: expected {root / 'cifar-10-batches-py'}, as torchvision lays it out, or "
            f"{jpegs}, a folder of images per class; pass --data-root"
        )
    if text in TORCHVISION_CLASSES:
        return torchvision_dataset(text, root, train=not test, **({"download": True} if download else {}))
    if not os.path.exists(text):
        raise FileNotFoundError(
            f"no data set is called {text!r}: expected {', '.join(TORCHVISION_CLASSES)}, or a folder of images, a CSV "
            f"file or hf:NAME, and there is nothing at {os.path.abspath(text)}"
        )
    return _data_files(Path(text), where)


def _data_files(path: Path, where: Where) -> Any:
    from latent_mixup.images import open_csv, open_folder

    if where.get("test") or where.get("download"):
        wrong = "--test" if where.get("test") else "--download"
        raise ValueError(f"{wrong} goes with data sets by name: for a folder of images pass the folder itself")
    if path.suffix.lower() != ".csv" or not path.is_file():
        _refuse_keys(str(path), where)
        return open_folder(path)
    keys: dict[str, Any] = given(image_key=where.get("image_key"), label_key=where.get("label_key"))
    if keys.get("label_key") == hub_data.NO_LABELS:
        keys["label_key"] = None
    return open_csv(path, **keys)


def _refuse_keys(text: str, where: Where) -> None:
    for option, key in (("--image-key", where.get("image_key")), ("--label-key", where.get("label_key"))):
        if key is not None:
            raise ValueError(f"{option} goes with hf:NAME and CSV files, which have columns: got {text}")


def torchvision_dataset(name: str, root: Path, *, train: bool, download: bool = False) -> Any:
    """A torchvision data set under ``root``.

    Raises:
        FileNotFoundError: It is not there, and ``download`` is False.
    """
    import torchvision.datasets

    kind = getattr(torchvision.datasets, TORCHVISION_CLASSES[name])
    try:
        return kind(root, train=train, download=download)
    except RuntimeError as cause:
        folder = root / getattr(kind, "base_folder", f"{kind.__name__}/raw")
        raise FileNotFoundError(
            f"{root} has no {kind.__name__} as torchvision lays it out: expected {folder}; pass --data-root, or "
            "--download"
        ) from cause


def uint8_images(dataset: Any) -> Any:
    """All images of a torchvision data set: ``[N, C, H, W]`` uint8."""
    import torch

    images = torch.as_tensor(dataset.data)
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
