"""Training frameworks run as they are, with the bundled bank: torchvision, Lightning, Trainer, Accelerate, torchrun."""

from __future__ import annotations

import itertools
import json
import re
import runpy
import subprocess
import sys
import warnings
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import v2

import latent_mixup as lm
from latent_mixup.bundled import BundledImages

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundled():
    return lm.load("fashion-mnist")


@pytest.fixture(scope="module")
def images():
    return torch.utils.data.Subset(BundledImages("fashion-mnist"), range(0, 10_000, 50))


@pytest.fixture(autouse=True)
def keep_random_state():
    with torch.random.fork_rng(devices=[]):
        yield


def example(name: str, needs: str | None = None) -> Namespace:
    """What a script of ``examples/`` defines; a library may warn while it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if needs is not None:
            pytest.importorskip(needs)
        return Namespace(**runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name=name))


@pytest.mark.parametrize(
    "name", ["torchvision_v2", "lightning_module", "hf_trainer", "accelerate_loop", "ddp_torchrun"]
)
def test_the_lines_of_the_page_are_those_of_the_example(name):
    page = (ROOT / "docs" / "integrations.md").read_text().split(f"(../examples/{name}.py)")[1]
    diff = re.findall(r"^```diff\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[0]
    lines = re.findall(r"^\+ *(.*)$", diff, re.MULTILINE)
    assert lines
    script = (ROOT / "examples" / f"{name}.py").read_text()
    for line in lines:
        assert re.search(rf"^ *{re.escape(line)}(  #.*)?$", script, re.MULTILINE), line


# ---- torchvision -----------------------------------------------------------------------------------


def test_in_the_collate_fn_and_after_the_loader_are_one(bundled, images):
    mixup = lm.LatentMixupCollate(*bundled, dataset=images, prob=0.5, seed=0)
    inside, outside = DataLoader(images, 33, collate_fn=mixup), DataLoader(images, 33)
    inside = list(inside)
    mixup.set_epoch(0)
    for (found, targets), batch in zip(inside, outside, strict=True):
        expected = mixup(*batch)
        assert torch.equal(found, expected[0])
        assert torch.equal(targets, expected[1])


@pytest.mark.parametrize("other", [v2.CutMix(num_classes=10), v2.MixUp(num_classes=10)], ids=lambda other: type(other))
def test_chained_with_its_mixing(bundled, images, other):
    mixup = lm.LatentMixupCollate(*bundled, dataset=images, prob=0.5, seed=0)
    for number, batch in enumerate(DataLoader(images, 33)):
        mixup.set_epoch(number)
        for found, targets in (other(*mixup(*batch)), mixup(*other(*batch))):
            assert found.shape == batch[0].shape
            assert targets.shape == (len(found), 10)
            torch.testing.assert_close(targets.sum(1), torch.ones(len(found)))
    assert (other(*mixup(*batch))[1] > 0).sum(1).max() > 2


def test_its_transforms_take_decoded_images(bundled, images):
    flip = lm.LatentMixupCollate(*bundled, dataset=images, seed=0, transform=v2.RandomHorizontalFlip(1.0))
    plain = lm.LatentMixupCollate(*bundled, dataset=images, seed=0)
    batch = default_collate([images[i] for i in range(8)])
    found, targets = v2.RandomHorizontalFlip(1.0)(*flip(*batch))  # an image and its soft target
    unflipped, expected = plain(*batch)
    torch.testing.assert_close(found, unflipped)
    assert torch.equal(targets, expected)


def test_the_switch_reaches_persistent_workers(bundled, images):
    mixup = lm.LatentMixupCollate(*bundled, dataset=images, seed=0)
    loader = DataLoader(images, 100, collate_fn=mixup, num_workers=1, persistent_workers=True)
    for enabled in (True, False):
        mixup.mixup_enabled = enabled
        whole = torch.cat([targets for _, targets in loader])
        assert (whole.max(1).values == 1).float().mean() == pytest.approx(1.0 if not enabled else 0.1, abs=0.08)


@pytest.mark.parametrize("where", ["collate", "after"])
def test_torchvision_example(where, capsys):
    assert example("torchvision_v2").main(where, epochs=1, max_batches=10) > 0.15
    assert "targets [64, 10]" in capsys.readouterr().out


# ---- Lightning -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_lightning_example():
    assert example("lightning_module", needs="lightning").main(epochs=1, max_batches=20) > 0.4


# ---- Hugging Face ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_trainer_example():
    assert example("hf_trainer", needs="transformers").main(count=640, epochs=2)["eval_accuracy"] > 0.2


@pytest.mark.filterwarnings("ignore")
def test_accelerate_example():
    assert example("accelerate_loop", needs="accelerate").main(epochs=1, max_batches=20) > 0.3


@pytest.mark.filterwarnings("ignore")
def test_accelerate_goes_on_in_the_middle_of_an_epoch(bundled, images):
    accelerate = pytest.importorskip("accelerate")
    mixup = lm.LatentMixupCollate(*bundled, dataset=images, prob=0.5, seed=0)
    loader = accelerate.Accelerator(cpu=True).prepare(DataLoader(images, 33, collate_fn=mixup))
    whole = list(loader)
    mixup.set_epoch(0)
    rest = list(accelerate.skip_first_batches(loader, 4))
    assert len(whole) == 7
    for (found, targets), expected in zip(rest, whole[4:], strict=True):
        assert torch.equal(found, expected[0])
        assert torch.equal(targets, expected[1])


# ---- several processes -----------------------------------------------------------------------------

RANKS = """
import json, runpy, sys
from itertools import islice
from pathlib import Path
import torch
import torch.distributed as dist
import latent_mixup as lm
from latent_mixup.bundled import BundledImages

dist.init_process_group("gloo")
out, rank = Path(sys.argv[1]), dist.get_rank()
main = runpy.run_path(sys.argv[2], run_name="example")["main"]
for name, stop in (("whole", None), ("part", 7), ("part", None)):
    main(epochs=2, max_batches=5, checkpoint=out / f"{name}.pt", stop_after=stop)

generator, bank = lm.load("fashion-mnist")
images = torch.utils.data.Subset(BundledImages("fashion-mnist"), range(64))
draws = {}
for name, settings in (("own", {}), ("same", {"rank": 0})):
    loader = torch.utils.data.DataLoader(images, 32)
    ahead = lm.LatentMixupLoader(loader, generator, bank, seed=0, **settings)
    collate = lm.LatentMixupCollate(generator, bank, dataset=images, seed=0, **settings)
    inside = torch.utils.data.DataLoader(images, 32, collate_fn=collate)
    draws[name] = [[targets.sum(0).tolist() for _, targets in batches] for batches in (ahead, inside)]
(out / f"{rank}.json").write_text(json.dumps(draws))
dist.destroy_process_group()
"""


def test_torchrun(tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(tmp_path / "ranks.py"), str(tmp_path), str(ROOT / "examples" / "ddp_torchrun.py")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert found.returncode == 0, found.stderr
    printed = re.findall(r"2 ranks, step (\d+): accuracy on real test images ([\d.]+)", found.stdout)
    assert [int(step) for step, _ in printed] == [10, 7, 10]
    whole, part = (torch.load(tmp_path / f"{name}.pt", weights_only=True)["model"] for name in ("whole", "part"))
    assert all(torch.equal(whole[key], part[key]) for key in whole)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0]["same"] == ranks[1]["same"] == ranks[0]["own"]
    for one, other in zip(*(itertools.chain(*rank["own"]) for rank in ranks), strict=True):
        assert one != other


def test_a_loader_that_starts_in_the_middle(bundled, images):
    whole = lm.LatentMixupLoader(DataLoader(images, 32), *bundled, prob=0.5, seed=0)
    whole.set_epoch(3)
    expected = list(whole)[4:]
    rest = torch.utils.data.Subset(images, range(128, 200))
    resumed = lm.LatentMixupLoader(DataLoader(rest, 32), *bundled, dataset=images, prob=0.5, seed=0)
    resumed.set_epoch(3, first_batch=4)
    for found, wanted in zip(resumed, expected, strict=True):
        torch.testing.assert_close(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])
    resumed.set_epoch(3)  # starts at the first batch again
    assert not torch.equal(next(iter(resumed))[1], expected[0][1])


def test_the_epoch_is_that_of_the_first_batch(bundled, images):
    loader = lm.LatentMixupLoader(DataLoader(images, 32), *bundled, seed=0)
    loader.set_epoch(0)
    batches = iter(loader)  # before the epoch is named, as Lightning does it
    loader.set_epoch(5)
    first = next(batches)[1]
    assert torch.equal(first, next(iter(loader))[1])
