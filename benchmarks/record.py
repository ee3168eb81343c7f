"""Result files: where they lie, what each carries with it, and how one is written; work that processes share."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import torch
from filelock import FileLock, Timeout

from latent_mixup import files
from latent_mixup.cli.shared import FOLDER

RESULTS = Path(__file__).parent / "results"
SEARCHED = "fashion-mnist"  # the data set that a policy was searched on, for all
SEARCH_FILE, LABEL_TRUTH = "search.json", "label-truth.json"  # in the folder of a data set's results


def _set_threads(_context: click.Context, _parameter: click.Parameter, threads: int | None) -> None:
    if threads:
        torch.set_num_threads(threads)


data_option = click.option("--data-root", type=FOLDER, required=True, help="Folder with torchvision's files.")
out_option = click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="JSON file.")
threads_option = click.option(
    "--threads",
    type=click.IntRange(1),
    callback=_set_threads,
    expose_value=False,
    help="CPU threads; default: all cores.",
)
quick_option = click.option("--quick", is_flag=True, help="A small case, to see that it runs.")


def circumstances(*packages: str) -> dict[str, Any]:
    """Versions and the machine's kind; ``packages``: beside ours, torch and torchvision."""
    return {
        "versions": {name: metadata.version(name) for name in ("latent-mixup", "torch", "torchvision", *packages)},
        "python": platform.python_version(),
        "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()},
    }


def peak_mib() -> float:
    """The most memory that this process has had, in MiB; Windows does not tell (``ModuleNotFoundError``)."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def as_json(record: dict[str, Any]) -> bytes:
    """A record as a file's bytes."""
    return (json.dumps(record, indent=2) + "\n").encode()


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record, whole or not at all."""
    files.write_folder(path.parent, {path.name: as_json(record)})


def publish(path: Path, record: dict[str, Any]) -> None:
    """Write a record and print it."""
    write(path, record)
    click.echo(as_json(record))


def read(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def claimed(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone has the work that the lock file ``path`` stands for; a dead process loses it.

    Args:
        path: Made where it is missing.
        wait: Until the process that has it is done.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
