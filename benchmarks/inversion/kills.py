"""Does an inversion survive kill -9 and SIGTERM at random moments, and the loss of one of several processes?

The command line inverts real Fashion-MNIST images with the bundled generator. After a kill the run is started again;
the finished bank, and the chunks that lie there after a kill, are compared byte by byte with those of an undisturbed
run. Then: the peak memory of runs in W+, with out= and without, for two numbers of images. Needs Linux.

    export OMP_NUM_THREADS=1
    python benchmarks/inversion/kills.py --data-root data --out benchmarks/results/inversion_kills.json
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from latent_mixup import invert
from latent_mixup.cli.shared import torchvision_dataset
from latent_mixup.generators import wrap
from latent_mixup.inversion import pixel_mse

sys.path.insert(0, str(Path(__file__).parents[1]))

from record import circumstances, data_option, out_option, peak_mib, publish

KILLS_A_RUN = 4
POLL = 0.01  # seconds
MEMORY_IMAGES, W_PLUS = (8_000, 24_000), (18, 512)


class Runs:
    """Runs of the command line on the same images, each into its own folder.

    Args:
        folder: For data and results.
        images: Number of images.
        steps: Gradient steps an image.
    """

    def __init__(self, folder: Path, data_root: Path, images: int, steps: int, batch_size: int) -> None:
        self.folder = folder
        data = torchvision_dataset("fashion-mnist", data_root, train=True)
        raw = folder / "data" / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        for prefix in ("train", "t10k"):
            _write_idx(raw / f"{prefix}-images-idx3-ubyte", data.data[:images])
            _write_idx(raw / f"{prefix}-labels-idx1-ubyte", data.targets[:images].to(torch.uint8))
        self.arguments = [
            *("-m", "latent_mixup", "invert", "fashion-mnist", "--dataset", "fashion-mnist"),
            *("--data-root", str(folder / "data"), "--steps", str(steps), "--batch-size", str(batch_size)),
        ]

    def start(self, name: str, *more: str, processes: int = 1) -> subprocess.Popen[bytes]:
        """Start a run; its output is not shown."""
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "--max-restarts=3"]
        command = [sys.executable, *(launch if processes > 1 else []), *self.arguments, "--out", self.out(name), *more]
        return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def finish(self, name: str, *more: str, processes: int = 1) -> None:
        """One run from start to end."""
        code = self.start(name, *more, processes=processes).wait()
        if code:
            raise RuntimeError(f"the run in {self.out(name)} ended with {code}")

    def out(self, name: str) -> Path:
        """The folder of a run."""
        return self.folder / name

    def files(self, name: str) -> dict[str, bytes]:
        """All files of a run by their names, temporary ones included."""
        out = self.out(name)
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def chunks(self, name: str) -> int:
        """How many chunks of a run are finished."""
        return len(list(self.out(name).glob("chunks/chunk-*")))

    def wait_for_start(self, name: str, run: subprocess.Popen[bytes]) -> None:
        """Until the run has looked at its images."""
        while not (self.out(name) / "inversion.json").exists() and run.poll() is None:
            time.sleep(POLL)


def _write_idx(path: Path, values: Tensor) -> None:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.numpy().tobytes())


def undisturbed(runs: Runs) -> dict[str, float]:
    """Seconds of an undisturbed run until its work starts, until its end, and a chunk."""
    started = time.perf_counter()
    run = runs.start("one")
    runs.wait_for_start("one", run)
    begun = time.perf_counter() - started
    if run.wait():
        raise RuntimeError("the undisturbed run failed")
    end = time.perf_counter() - started
    return {"start": begun, "end": end, "a_chunk": (end - begun) / runs.chunks("one")}


def kill_single(runs: Runs, kills: int, number: signal.Signals, seconds: dict[str, float], draw: random.Random) -> Any:
    """Kill runs up to ``KILLS_A_RUN`` times each and let them finish, until there were ``kills`` kills."""
    whole = runs.files("one")
    records: list[dict[str, Any]] = []
    for name in (f"{number.name} {run}" for run in itertools.count()):
        of_this_run: list[dict[str, Any]] = []
        while len(of_this_run) < min(KILLS_A_RUN, kills - len(records)):
            before = runs.chunks(name)
            if not kill_once(runs, name, number, seconds, draw):
                break
            left = runs.files(name)
            chunks = {path: content for path, content in left.items() if path.startswith("chunks/chunk-")}
            of_this_run.append(
                {
                    "chunks_before": before,
                    "chunks_after": len(chunks),
                    "chunks_whole": all(whole[path] == content for path, content in chunks.items()),
                    "temporary_files": len(left.keys() - whole.keys()),
                }
            )
        runs.finish(name)
        same = runs.files(name) == whole
        records += [{**record, "bank_is_the_same": same} for record in of_this_run]
        if len(records) == kills:
            break
    return records


def kill_once(runs: Runs, name: str, number: signal.Signals, seconds: dict[str, float], draw: random.Random) -> bool:
    """Start a run and kill it a few chunks later; False where it finished before."""
    run, before = runs.start(name), runs.chunks(name)
    more = draw.randrange(runs.chunks("one") // KILLS_A_RUN)
    while runs.chunks(name) < before + more and run.poll() is None:
        time.sleep(POLL)
    time.sleep(draw.uniform(0, 2 * seconds["a_chunk"] + (0 if more else seconds["start"])))
    run.send_signal(number)
    return run.wait() in (-number, 128 + number)


def share(runs: Runs, processes: int, seconds: dict[str, float], draw: random.Random) -> dict[str, Any]:
    """A run by several processes, one of which is killed, and the same run by shards in random order."""
    name = f"{processes} processes"
    run, wanted = runs.start(name, processes=processes), draw.randrange(1, runs.chunks("one") // 2)
    while runs.chunks(name) < wanted and run.poll() is None:
        time.sleep(POLL)
    time.sleep(draw.uniform(0, seconds["a_chunk"]))
    workers = _children(run.pid)
    os.kill(draw.choice(workers), signal.SIGKILL)
    code = run.wait()
    order = draw.sample(range(processes), processes)
    for shard in order:
        runs.finish(f"{processes} shards", "--shard", f"{shard}/{processes}")
    return {
        "processes": processes,
        "killed_one_of": len(workers),
        "chunks_before_the_kill": wanted,
        "exit": code,
        "bank_is_the_same": runs.files(name) == runs.files("one"),
        "shard_order": order,
        "shards_are_the_same": runs.files(f"{processes} shards") == runs.files("one"),
    }


def _children(pid: int) -> list[int]:
    """Process ids of the children of a process, on Linux."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]


def same_folder_twice(runs: Runs) -> dict[str, Any]:
    """Two processes that run the same command at the same time."""
    both = [runs.start("twice") for _ in range(2)]
    codes = [run.wait() for run in both]
    return {"exits": codes, "bank_is_the_same": runs.files("twice") == runs.files("one")}


class Noise(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images of 8 x 8 noise."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(index)) * 2 - 1, 0


def _invert_noise(n: int, out: Path | None, queue: Any) -> None:
    torch.set_num_threads(1)
    decode = nn.Sequential(nn.Flatten(), nn.Linear(W_PLUS[0] * W_PLUS[1], 64), nn.Unflatten(1, (1, 8, 8)))
    generator = wrap(decode, latent_shape=W_PLUS, latent_space="w+")

    def encoder(images: Tensor) -> Tensor:
        return images.flatten(1).repeat(1, W_PLUS[0] * W_PLUS[1] // 64).view(-1, *W_PLUS)

    bank = invert(Noise(n), generator, out=out, encoder=encoder, loss=pixel_mse, steps=0, progress=False)
    queue.put((len(bank), peak_mib()))


def peak_memory(folder: Path) -> list[dict[str, Any]]:
    """Peak RSS of an inversion in W+, in MiB, for few and many images, with ``out=`` and without."""
    context, records = multiprocessing.get_context("spawn"), []
    for stored in (True, False):
        for n in MEMORY_IMAGES:
            with tempfile.TemporaryDirectory(dir=folder) as name:
                queue = context.Queue()
                process = context.Process(target=_invert_noise, args=(n, Path(name) if stored else None, queue))
                process.start()
                process.join()
                if process.exitcode:
                    raise RuntimeError(f"an inversion of {n} images in W+ ended with {process.exitcode}")
                rows, peak = queue.get()
            codes = n * W_PLUS[0] * W_PLUS[1] * 4 / 1024**2
            records.append({"out": stored, "images": rows, "codes_mib": round(codes), "peak_rss_mib": round(peak)})
    return records


@click.command()
@data_option
@out_option
@click.option("--images", type=click.IntRange(64), default=3000, show_default=True)
@click.option("--steps", type=click.IntRange(0), default=10, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=25, show_default=True)
@click.option("--kills", type=click.IntRange(1), default=20, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the moments.")
def main(data_root: Path, out: Path, images: int, steps: int, batch_size: int, kills: int, seed: int) -> None:
    """Kill, resume, compare; print and write the record. Exits with 1 where a bank differs."""
    if sys.platform != "linux":
        raise click.ClickException("kills.py needs Linux: SIGKILL, and /proc to find worker processes")
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        runs = Runs(Path(name), data_root, images, steps, batch_size)
        seconds = undisturbed(runs)
        record: dict[str, Any] = {
            "dataset": "fashion-mnist",
            "settings": {"images": images, "steps": steps, "batch_size": batch_size, "seed": seed},
            "seconds": {key: round(value, 2) for key, value in seconds.items()},
            "chunks": runs.chunks("one"),
            "kill_9": kill_single(runs, kills, signal.SIGKILL, seconds, draw),
            "sigterm": kill_single(runs, KILLS_A_RUN, signal.SIGTERM, seconds, draw),
            "shared": [share(runs, processes, seconds, draw) for processes in (2, 3)],
            "same_folder_twice": same_folder_twice(runs),
            "peak_memory": peak_memory(Path(name)),
            **circumstances(),
        }
    publish(out, record)
    if '_the_same": false' in json.dumps(record):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
