"""Several processes by torchrun: each rank draws its own mixes; a run that was stopped goes on as if it had not been.

torchrun --standalone --nproc_per_node 2 examples/ddp_torchrun.py
torchrun --standalone --nproc_per_node 2 examples/ddp_torchrun.py --checkpoint run.pt --stop-after 100
torchrun --standalone --nproc_per_node 2 examples/ddp_torchrun.py --checkpoint run.pt
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import latent_mixup as lm
from latent_mixup.bundled import BundledImages

BATCH_SIZE = 64


class Resumable(DistributedSampler[Any]):
    """Skips the samples of the batches that were done."""

    first_batch = 0

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(super().__iter__(), self.first_batch * BATCH_SIZE, None)


def main(epochs: int = 2, max_batches: int = 60, checkpoint: Path | None = None, stop_after: int | None = None) -> None:
    """One run, in a process group."""
    torch.manual_seed(0)
    images = BundledImages("fashion-mnist")
    sampler = Resumable(images, seed=0)
    loader = DataLoader(images, BATCH_SIZE, sampler=sampler)
    generator, bank = lm.load("fashion-mnist")
    batches = lm.LatentMixupLoader(loader, generator, bank, prob=0.5, seed=0)  # the line that changes

    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)
    )
    model = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step = 0
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    last = epochs * max_batches if stop_after is None else stop_after
    while step < last:
        epoch, sampler.first_batch = divmod(step, max_batches)
        batches.set_epoch(epoch, first_batch=sampler.first_batch)  # reaches the sampler as well
        for batch, targets in itertools.islice(batches, min(max_batches - sampler.first_batch, last - step)):
            loss = F.cross_entropy(model(batch), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    if dist.get_rank() == 0:
        if checkpoint is not None:
            torch.save({"model": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, checkpoint)
        accuracy = lm.robustness.accuracy(network, DataLoader(BundledImages("fashion-mnist", train=False), 500))
        print(f"{dist.get_world_size()} ranks, step {step}: accuracy on real test images {accuracy:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-batches", type=int, default=60, help="batches of a rank in an epoch")
    parser.add_argument("--checkpoint", type=Path, help="resumed from where it exists, and written at the end")
    parser.add_argument("--stop-after", type=int, help="stop after so many steps")
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    main(arguments.epochs, arguments.max_batches, arguments.checkpoint, arguments.stop_after)
    dist.destroy_process_group()
