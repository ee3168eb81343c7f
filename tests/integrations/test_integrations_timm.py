"""timm's own parts around the wrappers, and its train.py where there is one, with the bundled bank."""

from __future__ import annotations

import os
import re
import runpy
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import one_hot_bank
from timm.data import FastCollateMixup, create_loader
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy

import latent_mixup as lm
from latent_mixup.integrations.timm import use_latent_mixup

ROOT = Path(__file__).parents[2]
MEAN, STD = (0.286,), (0.353,)
EXAMPLE = Namespace(**runpy.run_path(str(ROOT / "examples" / "timm_train.py")))


@pytest.fixture(scope="module")
def bundled():
    return lm.load("fashion-mnist")


@pytest.fixture
def timm_loader():
    """timm's loader over real images; with its defaults for training an odd last batch would be dropped."""

    def make(count=130, batch_size=64, **options):
        settings = {"mean": MEAN, "std": STD, "num_workers": 0, "device": torch.device("cpu"), **options}
        return create_loader(EXAMPLE.Pictures(True, count), (1, 28, 28), batch_size, **settings)

    return make


@pytest.mark.parametrize("prefetcher", [True, False])
def test_odd_last_batches_of_timms_loader(bundled, timm_loader, prefetcher):
    plain = list(timm_loader(use_prefetcher=prefetcher))
    mixed = lm.LatentMixupLoader(
        timm_loader(use_prefetcher=prefetcher), *bundled, prob=0.5, normalize=(MEAN, STD), label_smoothing=0.1
    )
    assert (len(mixed), mixed.batch_sampler.batch_size, len(mixed.dataset)) == (3, 64, 130)  # as train.py asks
    for (images, targets), (real, labels) in zip(mixed, plain, strict=True):  # in the same range, or it would warn
        kept = (images == real).flatten(1).all(1)
        assert targets.shape == (len(real), 10)
        assert targets.min() >= 0.01 - 1e-6
        torch.testing.assert_close(targets.sum(1), torch.ones(len(real)))
        if len(real) == 64:
            assert kept.sum() == 32
        expected = F.one_hot(labels, 10) * 0.9 + 0.01
        torch.testing.assert_close(targets[kept], expected[kept])


def test_its_own_mixing_goes_into_ours_and_both_are_switched_off(bundled, timm_loader):
    own = FastCollateMixup(mixup_alpha=1.0, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=10)
    mixed = lm.LatentMixupLoader(timm_loader(128, collate_fn=own), *bundled, prob=0.5, normalize=(MEAN, STD))
    _, targets = next(iter(mixed))
    assert (targets > 0).sum(1).max() == 2
    assert mixed.mixup_enabled
    mixed.mixup_enabled = False  # what --mixup-off-epoch does
    assert not own.mixup_enabled
    for _, targets in mixed:
        assert (targets > 0).sum(1).max() == 1


def test_its_losses_take_our_targets(bundled, timm_loader):
    _, targets = next(iter(lm.LatentMixupLoader(timm_loader(64), *bundled, normalize=(MEAN, STD))))
    logits = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(SoftTargetCrossEntropy()(logits, targets), F.cross_entropy(logits, targets))
    expected = F.binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(BinaryCrossEntropy()(logits, targets), expected)
    hard = F.binary_cross_entropy_with_logits(logits, (targets > 0.2).float())
    torch.testing.assert_close(BinaryCrossEntropy(target_threshold=0.2)(logits, targets), hard)


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({}, [45, 45]),  # of 50 % mixes, a tenth has two codes of one class
        ({"mixup_off_epoch": 1, "smoothing": 0.0, "model": "test_efficientnet"}, [45, 0]),
        ({"mixup_off_epoch": 1, "no_prefetcher": True, "loss": "bce", "batch_size": 63}, [45, 0]),
    ],
    ids=["prefetcher", "off", "no-prefetcher"],
)
def test_the_example(options, shares, capsys):
    usual = {"model": "test_resnet", "epochs": 2, "batch_size": 64, "workers": 0, "smoothing": 0.1, "loss": "ce"}
    usual |= {"no_prefetcher": False, "mixup_off_epoch": 0, "count": 640}
    usual |= {"device": "cpu", "mixup": 0.0, "cutmix": 0.0, "cutmix_minmax": None}
    with torch.random.fork_rng(devices=[]):
        EXAMPLE.main(Namespace(**usual | options))
    found = [int(share) for share in re.findall(r"of two classes (\d+)%", capsys.readouterr().out)]
    assert found == pytest.approx(shares, abs=5)


# ---- timm's train.py -------------------------------------------------------------------------------


def our_lines() -> tuple[str, str]:
    """The lines of docs/integrations.md: the one among the imports, and the one before the loss."""
    page = (ROOT / "docs" / "integrations.md").read_text().split("**timm's train.py**")[1]
    first, second = re.findall(r"^\+(.*)$", page, re.MULTILINE)[:2]
    return first, second


def arguments_of(prefetcher=True, smoothing=0.1, mixup=0.0):
    own = {"mixup": mixup, "cutmix": 0.0, "cutmix_minmax": None}
    return Namespace(prefetcher=prefetcher, smoothing=smoothing, device="cpu", **own)


@pytest.mark.parametrize("prefetcher", [True, False])
def test_our_lines_at_their_places(timm_loader, prefetcher):
    imported, line = our_lines()
    loader = timm_loader(use_prefetcher=prefetcher)
    here = {"args": arguments_of(prefetcher), "loader_train": loader, "data_config": {"mean": MEAN, "std": STD}}
    exec(f"{imported}\n{line.strip()}", here)
    assert here["mixup_active"]
    assert here["args"].mixup > 0  # by which train.py of timm 1.0.31 chooses its loss
    assert (here["mixup_fn"] is None) == prefetcher
    for images, targets in here["loader_train"]:
        if not prefetcher:
            images, targets = here["mixup_fn"](images, targets)
        assert targets.shape == (len(images), 10)
        assert targets.min() == pytest.approx(0.01)


def test_it_is_the_wrapper_with_timms_settings(bundled, timm_loader):
    shared = {"prob": 0.5, "seed": 0}
    moments = {"mean": MEAN, "std": STD}
    mixed, _, _ = use_latent_mixup(timm_loader(), arguments_of(), moments, *bundled, **shared)
    expected = lm.LatentMixupLoader(timm_loader(), *bundled, normalize=(MEAN, STD), label_smoothing=0.1, **shared)
    for found, wanted in zip(mixed, expected, strict=True):
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("prefetcher", [True, False])
def test_its_multi_label_task_is_ours(bundled, timm_loader, prefetcher):
    arguments = arguments_of(prefetcher, 0.0)
    arguments.task = "multilabel"
    generator, bank = bundled
    loader, mixup_fn, _ = use_latent_mixup(
        timm_loader(use_prefetcher=prefetcher),
        arguments,
        {"mean": MEAN, "std": STD},
        generator,
        one_hot_bank(bank),
    )
    assert "multi_label=True" in repr(loader if prefetcher else mixup_fn)


@pytest.mark.parametrize(("prefetcher", "smoothing"), [(True, 0.1), (False, 0.0)])
def test_its_own_mixing_is_neither_smoothed_twice_nor_dropped(bundled, timm_loader, prefetcher, smoothing):
    arguments = arguments_of(prefetcher, smoothing, mixup=0.2)
    with pytest.raises(ValueError, match="--smoothing 0 and keep the prefetcher"):
        use_latent_mixup(timm_loader(use_prefetcher=prefetcher), arguments, {"mean": MEAN, "std": STD}, *bundled)


def with_our_lines(script: str) -> str:
    """timm's train.py with these lines at the places that the page names."""
    imported, line = our_lines()
    (place,) = re.findall("^    # setup loss function.*$", script, re.MULTILINE)
    script = script.replace(place, f"{line}\n{place}")
    return script.replace("\nimport torch\n", f"\nimport torch\n{imported}\n", 1)


@pytest.mark.skipif(
    "TIMM_TRAIN" not in os.environ,
    reason="neither timm's wheel nor its sdist has train.py: let $TIMM_TRAIN name that of a clone of its repository",
)
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("options", "loss"),
    [
        (["--mixup-off-epoch", "1"], SoftTargetCrossEntropy),
        (["--no-prefetcher", "--mixup-off-epoch", "1", "--batch-size", "63"], SoftTargetCrossEntropy),
        (["--bce-loss", "--bce-target-thresh", "0.2"], BinaryCrossEntropy),
        (["--mixup", "0.2", "--cutmix", "1.0", "--mixup-off-epoch", "1", "--smoothing", "0"], SoftTargetCrossEntropy),
    ],
    ids=["prefetcher", "no-prefetcher", "bce", "with timm's mixup"],
)
def test_train_py(options, loss, bundled_root, monkeypatch):
    taken, forward = [], loss.forward
    monkeypatch.setattr(loss, "forward", lambda self, x, target: taken.append(target) or forward(self, x, target))
    script = bundled_root / "train.py"
    script.write_text(with_our_lines(Path(os.environ["TIMM_TRAIN"]).read_text()))
    command = ["train.py", "--data-dir", str(bundled_root), "--dataset", "torch/fashion_mnist", "--num-classes", "10"]
    command += ["--input-size", "1", "28", "28", "--mean", "0.286", "--std", "0.353", "--model", "test_resnet"]
    command += ["--epochs", "2", "--warmup-epochs", "0", "--cooldown-epochs", "0", "--workers", "0"]
    command += ["--opt", "adamw", "--lr", "2e-3", "--device", "cpu", "--batch-size", "128", "--no-aug"]
    command += ["--output", str(bundled_root), "--experiment", "run", *options]
    monkeypatch.setattr(sys, "argv", command)
    with torch.random.fork_rng(devices=[]):
        runpy.run_path(str(script), run_name="__main__")
    summary = (bundled_root / "run" / "summary.csv").read_text().splitlines()
    assert len(summary) == 3
    assert all(targets.shape[1] == 10 for targets in taken)
    assert len(taken) == 2 * (10_000 // (63 if "63" in options else 128))
    accuracy = dict(zip(summary[0].split(","), summary[-1].split(","), strict=True))["eval_top1"]
    assert float(accuracy) > 60
