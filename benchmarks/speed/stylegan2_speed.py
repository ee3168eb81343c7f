"""How close does a StyleGAN2 of the CIFAR-10 size come to the speed of its convolutions on a CPU?

Random weights, 32 px, 512 channels at every resolution, z and w of 512 numbers. Beside it run plain convolutions with
the network's weights: the same channels, kernels and multiply-adds, and nothing else (a layer that doubles the
resolution multiplies as often as a plain convolution at the lower one). The two take turns, forward, and forward and
backward down to ws (for the convolutions: to their input); the share is taken turn by turn, so that a machine whose
speed drifts does not decide. Target: a share of 0.85 forward.

At batches of 1 and 4 part of the time goes into memory that glibc hands back to the system and takes again, page by
page. MALLOC_TRIM_THRESHOLD_=2000000000 and MALLOC_MMAP_THRESHOLD_=1000000000 stop it; a record holds their values.

    python benchmarks/speed/stylegan2_speed.py --out benchmarks/results/stylegan2_speed.json
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from latent_mixup.generators.stylegan2 import Block, StyleGAN2
from latent_mixup.sampling import keyed_generator

sys.path.insert(0, str(Path(__file__).parents[1]))

from record import circumstances, out_option, publish, quick_option, threads_option

BATCHES = (1, 4, 16, 32)
MALLOC = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")  # glibc's; they change the shares at small batches
SMALL: dict[str, Any] = {"z_dim": 16, "w_dim": 16, "channel_max": 16}  # --quick


def convolutions(generator: StyleGAN2, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Input ``[B, I, R, R]`` and weight ``[O, I, 3, 3]`` of the plain convolution in each styled one's place."""
    found = []
    draw = keyed_generator("speed-inputs")
    for resolution in generator.synthesis.resolutions:
        block = generator.synthesis.get_submodule(f"b{resolution}")
        assert isinstance(block, Block)
        sides = {"conv1": resolution} if resolution == 4 else {"conv0": resolution // 2, "conv1": resolution}
        for name, side in sides.items():
            weight = block.get_parameter(f"{name}.weight")
            weight = weight / weight[0].numel() ** 0.5
            found.append((torch.randn(batch_size, weight.shape[1], side, side, generator=draw), weight))
    return found


def multiply_adds(layers: list[tuple[Tensor, Tensor]]) -> int:
    """Multiply-adds of the convolutions for one image."""
    return sum(weight.numel() * x[0, 0].numel() for x, weight in layers)


def works(generator: StyleGAN2, batch_size: int) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """For each direction the call of the network, and that of the convolutions alone."""
    ws = generator.mapping(torch.randn(batch_size, generator.z_dim, generator=keyed_generator("speed-z")))
    layers = convolutions(generator, batch_size)

    def forward() -> None:
        with torch.no_grad():
            generator.synthesis(ws)

    def plain_forward() -> None:
        with torch.no_grad():
            for x, weight in layers:
                F.conv2d(x, weight, padding=1)

    def both_ways() -> None:
        leaf = ws.detach().requires_grad_(True)
        torch.autograd.grad(generator.synthesis(leaf).sum(), leaf)

    def plain_both_ways() -> None:
        for x, weight in layers:
            leaf = x.detach().requires_grad_(True)
            out = F.conv2d(leaf, weight, padding=1)
            torch.autograd.grad(out, leaf, out.detach())

    return {"forward": (forward, plain_forward), "forward_backward": (both_ways, plain_both_ways)}


def seconds(work: Callable[[], Any]) -> float:
    """Duration of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(network: Callable[[], Any], plain: Callable[[], Any], turns: int, batch_size: int) -> dict[str, float]:
    """Median seconds an image of both, and the median share of the convolutions' speed."""
    network(), plain()  # warm up
    times = [(seconds(network), seconds(plain)) for _ in range(turns)]
    ours, theirs = zip(*times, strict=True)
    return {
        "seconds_an_image": round(statistics.median(ours) / batch_size, 5),
        "convolutions_seconds_an_image": round(statistics.median(theirs) / batch_size, 5),
        "share_of_their_speed": round(statistics.median(b / a for a, b in times), 3),
    }


@click.command()
@out_option
@click.option("--images", type=click.IntRange(1), default=160, show_default=True, help="Images a batch size, about.")
@threads_option
@quick_option
def main(out: Path, images: int, quick: bool) -> None:
    """Time the network and its convolutions in turn; print and write medians and shares."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = StyleGAN2(**SMALL) if quick else StyleGAN2()
    rows: list[dict[str, Any]] = []
    for batch_size in tqdm(BATCHES[:2] if quick else BATCHES, unit="batch size", disable=None):
        turns = 3 if quick else max(5, images // batch_size)
        measured = {name: compare(*pair, turns, batch_size) for name, pair in works(generator, batch_size).items()}
        rows.append({"batch_size": batch_size, "n": turns, **measured})
    here = circumstances()
    record = {
        "network": generator.arguments(),
        "convolutions_multiply_adds_an_image": multiply_adds(convolutions(generator, 1)),
        "rows": rows,
        "quick": quick,
        **here,
        "hardware": {**here["hardware"], "malloc": {name: os.environ.get(name) for name in MALLOC}},
    }
    publish(out, record)


if __name__ == "__main__":
    main()
