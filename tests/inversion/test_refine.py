"""Refining: the worst rows get more steps, none gets worse, and the others stay as they are."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import Killer, LabelledImages, LinearGenerator
from reference import invert_one_image
from systems import link, needs_fork

import latent_mixup as lm
from latent_mixup import LatentBank, invert, refine
from latent_mixup.generators import CompactGenerator, wrap
from latent_mixup.inversion import FeatureLoss, pixel_mse
from latent_mixup.inversion.gains import Stage, refined_table
from latent_mixup.inversion.refine import refine_codes

BETAS = (0.95, 0.999)
QUICK = {
    "loss": pixel_mse,
    "above": 0.1,
    "steps": 5,
    "optimizer": "adam",
    "lr": 0.05,
    "batch_size": 7,
    "progress": False,
}


class Counted:
    """``pixel_mse`` that counts its calls, and raises at one of them."""

    __name__ = "pixel_mse"

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls, self.stop_at = 0, stop_at

    def __call__(self, images, targets):
        self.calls += 1
        if self.calls == self.stop_at:
            raise StopError
        return pixel_mse(images, targets)


class StopError(Exception):
    """Stands for anything that ends a run."""


class MirroredGenerator(LinearGenerator):
    """The same shapes, other weights."""

    def __init__(self) -> None:
        super().__init__()
        self.basis.neg_()


def contents(folder: Path) -> dict[str, bytes]:
    """The bank's files of an ``out`` folder."""
    return {path.name: path.read_bytes() for path in folder.glob("bank*")}


def compact() -> CompactGenerator:
    """A compact generator of 6x6 images with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CompactGenerator(z_dim=8, img_resolution=6, decoder_widths=(16,), encoder_widths=(12,))


def own_images(generator: CompactGenerator, n: int = 20) -> LabelledImages:
    """Images that the generator can make, so that an exact code of each exists."""
    latents = generator.sample_latents(n, torch.Generator().manual_seed(1))
    return LabelledImages(generator.decode(latents), torch.arange(n) % 3)


def half(images: torch.Tensor) -> torch.Tensor:
    """An encoder that goes half the way, so that each row has an mse of its own around 0.08."""
    return LinearGenerator().encode(images) / 2


@pytest.fixture
def bank(linear_generator, toy_dataset) -> LatentBank:
    """Half-way codes of ``toy_dataset``, of which some 10 of 50 have ``mse >= 0.1``."""
    toy_dataset.targets = toy_dataset.labels
    return invert(toy_dataset, linear_generator, encoder=half, loss=pixel_mse, steps=0, progress=False)


def changed(bank: LatentBank, **columns) -> LatentBank:
    """A bank with other columns or metadata."""
    kept = {name: getattr(bank, name) for name in ("source_index", "mse", "lpips", "status", "metadata")}
    return LatentBank(columns.pop("latents", bank[:][0]), bank.labels, **{**kept, **columns})


def moved(one: LatentBank, two: LatentBank) -> torch.Tensor:
    """Which rows have another code, ``[N]``."""
    return (one[:][0] != two[:][0]).any(1)


# ---- laws ------------------------------------------------------------------------------------------


def test_the_worst_rows_get_better_and_the_others_stay(bank, linear_generator, toy_dataset):
    refined = lm.refine(bank, toy_dataset, linear_generator, **QUICK)
    worst = bank.mse >= 0.1
    assert 5 < worst.sum() < 20
    assert moved(bank, refined).equal(worst)
    assert (refined.mse[worst] < bank.mse[worst]).all()
    assert refined.mse[~worst].equal(bank.mse[~worst])
    torch.testing.assert_close(refined.mse, pixel_mse(linear_generator.decode(refined[:][0]), toy_dataset.images))
    for name in ("labels", "source_index", "status", "hard_labels", "class_counts"):
        assert getattr(refined, name).equal(getattr(bank, name))
    kept = {key: value for key, value in refined.metadata.items() if key not in ("refined", "num_classes")}
    assert kept == bank.metadata
    refined.check(linear_generator)
    refined.check(toy_dataset)


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("lr", [0.05, 3.0])
@pytest.mark.parametrize("loss", [pixel_mse, FeatureLoss(torch.nn.MaxPool2d(3, 1), 0.0)], ids=["pixels", "features"])
def test_no_row_is_ever_worse(steps, lr, loss, optimizer):
    generator = compact()
    dataset = own_images(generator)
    before = invert(dataset, generator, loss=pixel_mse, steps=5, progress=False)
    how = {"steps": steps, "lr": lr, "loss": loss, "optimizer": optimizer}
    after = refine(before, dataset, generator, above=0.0, progress=False, **how)
    assert (after.mse <= before.mse).all()
    assert moved(before, after).equal(after.mse < before.mse)
    torch.testing.assert_close(after.mse, pixel_mse(generator.decode(after[:][0]), dataset.images))


def refine_one_by_one(bank, dataset, generator, above, steps, lr):
    """Refining as a loop over stages and rows: codes and mse."""
    codes, mse = bank[:][0].clone(), bank.mse.clone()
    for threshold, count in zip(above, steps, strict=True):
        for row in range(len(bank)):
            if mse[row] < threshold:
                continue
            image = dataset[int(bank.source_index[row])][0]
            code, error = invert_one_image(generator.decode, image, codes[row], pixel_mse, count, lr, BETAS)
            if error < mse[row]:
                codes[row], mse[row] = code, error
    return codes, mse


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize(("above", "steps"), [((0.1,), (6,)), ((0.1, 0.06), (3, 5)), ((0.05, 0.08, 0.05), (1, 2, 3))])
def test_it_is_one_row_at_a_time(bank, linear_generator, toy_dataset, above, steps, batch_size):
    rows = torch.randperm(50, generator=torch.Generator().manual_seed(1))[:30]
    bank = bank.subset(rows)
    codes, mse = refine_one_by_one(bank, toy_dataset, linear_generator, above, steps, 0.05)
    changes = {"above": above, "steps": steps, "batch_size": batch_size}
    refined = refine(bank, toy_dataset, linear_generator, **{**QUICK, **changes})
    torch.testing.assert_close(refined[:][0], codes, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(refined.mse, mse, rtol=1e-3, atol=1e-6)
    assert refined.source_index.equal(rows)


def test_a_stage_sees_what_the_one_before_left(bank, linear_generator, toy_dataset):
    both = refine(bank, toy_dataset, linear_generator, **{**QUICK, "above": (0.1, 0.08), "steps": (5, 3)})
    first = refine(bank, toy_dataset, linear_generator, **QUICK)
    second = refine(first, toy_dataset, linear_generator, **{**QUICK, "above": 0.08, "steps": 3})
    torch.testing.assert_close(both[:][0], second[:][0], rtol=1e-4, atol=1e-5)
    left = (first.mse >= 0.08).sum()
    assert both.metadata["refined"][1]["tried"] == left < (bank.mse >= 0.08).sum()
    for key in ("above", "steps", "tried", "improved"):
        assert [stage[key] for stage in both.metadata["refined"]] == [
            stage[key] for stage in second.metadata["refined"]
        ]


def test_rows_end_early_unless_they_have_to_take_all_steps(bank, linear_generator, toy_dataset):
    early, whole = Counted(), Counted()
    arguments = {**QUICK, "optimizer": "lbfgs", "steps": 100, "restarts": 0, "batch_size": 50}
    one = refine(bank, toy_dataset, linear_generator, **{**arguments, "loss": early})
    two = refine(bank, toy_dataset, linear_generator, **{**arguments, "loss": whole}, tolerance=0.0)
    assert early.calls < whole.calls
    assert one.metadata["refined"][0]["tolerance"] == 1e-3
    for refined in (one, two):
        assert (refined.mse[bank.mse >= 0.1] < 1e-4).all()


def test_the_input_bank_is_not_changed(bank, linear_generator, toy_dataset, tmp_path):
    for dtype in (torch.float32, torch.float16):
        bank.save_pretrained(tmp_path / str(dtype), dtype=dtype)
        before, opened = contents(tmp_path / str(dtype)), LatentBank.from_pretrained(tmp_path / str(dtype))
        refined = refine(opened, toy_dataset, linear_generator, **QUICK)
        assert contents(tmp_path / str(dtype)) == before
        assert opened.metadata == bank.metadata
        rest = opened.mse < 0.1
        assert refined[rest][0].equal(opened[rest][0])
        assert refined.dtype == torch.float32
    digest = bank.digest()
    refine(bank, toy_dataset, linear_generator, **QUICK)
    assert bank.digest() == digest


def test_no_global_random_number_is_drawn(bank, linear_generator, toy_dataset):
    before = torch.get_rng_state()
    one, two = (refine(bank, toy_dataset, linear_generator, **QUICK) for _ in range(2))
    assert torch.get_rng_state().equal(before)
    assert one.digest() == two.digest()
    assert one.metadata == two.metadata


# ---- what was gained -------------------------------------------------------------------------------


def test_what_was_gained_is_told(bank, linear_generator, toy_dataset):
    refined = refine(bank, toy_dataset, linear_generator, **{**QUICK, "above": [0.1, 0.08], "steps": [5, 3]})
    first, second = refined.metadata["refined"]
    assert first["tried"] == first["improved"] == (bank.mse >= 0.1).sum()
    assert first["before"] == pytest.approx(
        {
            "mean": bank.mse.mean().item(),
            "median": bank.mse.quantile(0.5).item(),
            "p95": bank.mse.quantile(0.95).item(),
            "mean_tried": bank.mse[bank.mse >= 0.1].mean().item(),
            "share": (bank.mse >= 0.1).float().mean().item(),
        }
    )
    assert first["after"]["mean_tried"] < first["before"]["mean_tried"]
    assert second["after"]["mean"] == pytest.approx(refined.mse.mean().item())
    assert first["after"]["share"] < first["before"]["share"]
    assert first["after"]["mean"] == second["before"]["mean"]
    settings = {"loss": "pixel_mse", "optimizer": "adam", "lr": 0.05, "betas": [0.95, 0.999], "batch_size": 7}
    for stage, (above, steps) in zip((first, second), ((0.1, 5), (0.08, 3)), strict=True):
        assert stage.items() >= {"above": above, "steps": steps, **settings, "set_aside": {}}.items()
    again = refine(refined, toy_dataset, linear_generator, **{**QUICK, "above": 0.07})
    assert again.metadata["refined"][:2] == [first, second]
    assert len(again.metadata["refined"]) == 3


def test_the_table_has_a_line_for_each_stage():
    before = {"mean": 0.03, "median": 0.02, "p95": 0.2, "mean_tried": 0.04, "share": 0.25}
    after = {"mean": 0.01, "median": 0.0042, "p95": 0.1, "mean_tried": 0.02, "share": 0.0}
    none = dict.fromkeys(before) | {"share": 0.0}
    stage = {"above": 0.025, "steps": 4000, "tried": 1500, "improved": 1499, "before": before, "after": after}
    idle = {"above": 0.02, "steps": 5, "tried": 0, "improved": 0, "before": none, "after": none}
    assert [line.split("  ") for line in re.sub(" {2,}", "  ", refined_table([stage, idle])).splitlines()] == [
        ["mse of all rows", "mean", "median", "95 % below", "rows >= above", "mean of those tried"],
        ["before", "0.03000", "0.02000", "0.20000"],
        [
            ">= 0.025, 4,000 steps: 1,499 of 1,500 better",
            *("0.01000", "0.00420", "0.10000", "25.00 % to 0.00 %", "0.04000 to 0.02000"),
        ],
        [">= 0.02, 5 steps: 0 of 0 better", "0.00 % to 0.00 %"],
    ]


def test_nothing_to_do_is_said(bank, linear_generator, toy_dataset, tmp_path):
    with pytest.warns(UserWarning, match=r"no row has mse >= 0.5, the largest is 0.1\d+: nothing to refine"):
        refined = refine(bank, toy_dataset, linear_generator, **{**QUICK, "above": 0.5}, out=tmp_path)
    assert refined.digest() == bank.digest() == LatentBank.from_pretrained(tmp_path, verify=True).digest()
    stage = refined.metadata["refined"][0]
    assert (stage["tried"], stage["improved"]) == (0, 0)
    assert stage["before"] == stage["after"]


def test_a_row_without_a_finite_mse(bank, linear_generator, toy_dataset):
    mse, status = bank.mse.clone(), torch.zeros(50)
    best = int(bank.mse.argmin())
    mse[[3, 8, 5]], status[[3, 8, best]], status[5] = torch.inf, 1.0, 2.0
    failed = changed(bank, mse=mse, status=status.to(torch.uint8))
    special = toy_dataset.images[8, 0, 0, 0]

    def loss(images, targets):
        return pixel_mse(images, targets) * torch.where(targets[:, 0, 0, 0] == special, torch.nan, 1.0)

    refined = refine(failed, toy_dataset, linear_generator, **{**QUICK, "loss": loss})
    assert refined.mse[3] < bank.mse[3]
    assert refined.mse[8].isinf()  # its loss never was a number
    assert refined[8][0].equal(bank[8][0])
    assert refined.status.nonzero()[:, 0].tolist() == sorted([5, 8, best])  # which is below the threshold
    assert refined.status[5] == 2
    assert refined.mse[5] < bank.mse[5]
    stage = refined.metadata["refined"][0]
    assert (stage["tried"], stage["improved"]) == ((mse >= 0.1).sum(), (mse >= 0.1).sum() - 1)
    assert stage["before"]["mean"] == pytest.approx(mse[mse.isfinite()].mean().item())
    assert stage["before"]["mean_tried"] == pytest.approx(mse[(mse >= 0.1) & mse.isfinite()].mean().item())
    assert stage["before"]["share"] == pytest.approx((mse >= 0.1).float().mean().item())


def test_an_lpips_that_was_not_measured_again(bank, linear_generator, toy_dataset):
    refined = refine(changed(bank, lpips=torch.full((50,), 0.25)), toy_dataset, linear_generator, **QUICK)
    worst = bank.mse >= 0.1
    assert refined.lpips[worst].isinf().all()
    assert (refined.lpips[~worst] == 0.25).all()


def test_a_bank_without_mse_gets_one(bank, linear_generator, toy_dataset):
    without = changed(bank, mse=None, status=None, metadata={})
    refined = refine(without, toy_dataset, linear_generator, **QUICK)
    torch.testing.assert_close(refined[:][0], refine(bank, toy_dataset, linear_generator, **QUICK)[:][0])
    torch.testing.assert_close(refined.mse[bank.mse < 0.1], bank.mse[bank.mse < 0.1])
    assert refined.status is None
    assert refined.latent_space is None


def test_rounding_is_no_improvement(linear_generator, toy_dataset, toy_bank):
    """The stored mse is a hair above what the exact codes decode to, and no step finds better ones."""
    bank = changed(toy_bank, mse=torch.full((50,), 1e-4))
    refined = refine(bank, toy_dataset, linear_generator, **{**QUICK, "above": 0.0, "lr": 1e-12})
    assert refined.digest() == bank.digest()
    assert refined.metadata["refined"][0]["improved"] == 0


def test_soft_labels_and_free_metadata(linear_generator, soft_dataset, tmp_path):
    rough = invert(soft_dataset, linear_generator, encoder=half, loss=pixel_mse, steps=0, progress=False)
    rough = changed(rough, metadata={"maker": "mine"})
    refined = refine(rough, soft_dataset, linear_generator, **QUICK, out=tmp_path)
    assert refined.labels.equal(soft_dataset.labels)
    assert refined.mse.mean() < rough.mse.mean()


def test_an_mse_that_was_stored_too_low_is_no_reason_to_write_a_higher_one(bank, linear_generator, toy_dataset):
    low = changed(bank, mse=bank.mse * 0.95)
    refined = refine(low, toy_dataset, linear_generator, **{**QUICK, "above": 0.0, "lr": 1e-4})
    assert refined.digest() == low.digest()


def test_a_row_at_the_threshold_is_tried(bank, linear_generator, toy_dataset):
    refined = refine(bank, toy_dataset, linear_generator, **{**QUICK, "above": float(bank.mse.max())})
    assert moved(bank, refined).nonzero().tolist() == [[int(bank.mse.argmax())]]


def test_a_code_that_is_not_finite_is_not_better(monkeypatch):
    """Whatever the steps come to: here to infinite codes of exact images."""
    targets = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)).sign()
    generator = wrap(lambda latents: latents.tanh().view(-1, 1, 4, 4), latent_shape=(16,))
    found = targets.flatten(1) * torch.tensor([torch.inf, 9.0, torch.inf, 9.0, 9.0, 9.0])[:, None]
    module = sys.modules["latent_mixup.inversion.refine"]
    monkeypatch.setattr(module, "optimise_codes", lambda *given, **settings: (found, torch.zeros(6)))
    start, mse = torch.full((6, 16), 0.01), torch.ones(6)
    codes, after = refine_codes(generator, targets, start, mse, pixel_mse, [Stage(0.0, 1)])
    assert (after[0] == 1).nonzero()[:, 0].tolist() == [0, 2]
    assert codes.equal(torch.where(after[0, :, None] == 1, start, found))


def test_rows_that_one_stage_takes_share_their_batches(bank, linear_generator, toy_dataset):
    loss, above = Counted(), (0.1, 0.075)
    few, many = (-(-int((bank.mse >= threshold).sum()) // 7) for threshold in above)
    assert few < many - 1
    refine(bank, toy_dataset, linear_generator, **{**QUICK, "loss": loss, "above": above, "steps": (20, 1)})
    assert few * 21 < loss.calls <= few * 21 + many * 2


def test_the_number_of_classes_stays(bank, linear_generator, toy_dataset):
    some = bank.subset(bank.labels < 2)
    assert refine(some, toy_dataset, linear_generator, **QUICK).num_classes == some.num_classes == 3


# ---- what belongs together -------------------------------------------------------------------------


def test_another_generator_is_refused(bank, toy_dataset, tmp_path):
    with pytest.raises(ValueError, match=r"belongs to a generator with digest .* load that generator"):
        refine(bank, toy_dataset, MirroredGenerator(), **QUICK, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "shift", "sign", "message"),
    [
        (40, 0, 1, r"the data set has 40: pass the data set the bank was made from"),
        (50, 1, 1, r"sample 0 has label 1 in the data set and 0 in the bank"),
        (50, 0, -1, r"the bank's mse is not what its codes decode to: of \d+ rows looked at, \d+ differ"),
        (51, 0, 1, r"a data set with length 50, this one has 51: pass the data set the bank was made from, in its"),
    ],
    ids=["shorter", "labels", "images", "longer"],
)
def test_another_data_set_is_refused(bank, linear_generator, toy_dataset, tmp_path, rows, shift, sign, message):
    images, labels = torch.cat([toy_dataset.images, toy_dataset.images]), torch.arange(100) % 3
    labels[50:] = torch.arange(50) % 3
    other = LabelledImages(sign * images[:rows], (labels[:rows] + shift) % 3)
    other.targets = other.labels
    with pytest.raises(ValueError, match=message):
        refine(bank, other, linear_generator, **QUICK, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_labels_of_the_same_rows_are_noticed_by_the_fingerprint(bank, linear_generator, toy_dataset):
    some = bank.subset(range(30))
    other = LabelledImages(toy_dataset.images, torch.cat([toy_dataset.labels[:30], torch.zeros(20, dtype=torch.int64)]))
    other.targets = other.labels
    with pytest.raises(ValueError, match=r"with labels '[0-9a-f]{13}, this one has '[0-9a-f]{13}: pass the data set"):
        refine(some, other, linear_generator, **QUICK)


def test_samples_are_read_as_the_bank_says():
    """Without the bank's word, the first image, or images normalised in some way, would be taken for others."""
    generator = compact()
    images = own_images(generator).images
    mean, std = 0.3, 0.2
    dataset = [{"mask": image * 0, "photo": (image / 2 + 0.5 - mean) / std, "which": 2} for image in images]
    keys = {"image_key": "photo", "label_key": "which", "mean": mean, "std": std}
    bank = invert(dataset, generator, loss=pixel_mse, steps=1, progress=False, **keys)
    refined = refine(bank, dataset, generator, **{**QUICK, "above": 0.0})
    assert (refined.mse < bank.mse).all()
    torch.testing.assert_close(refined.mse, pixel_mse(generator.decode(refined[:][0]), images))


def test_an_image_that_cannot_be_read_any_more(bank, linear_generator, toy_dataset):
    worst = int(bank.mse.argmax())
    bad = {worst}

    class Damaged(LabelledImages):
        def __getitem__(self, index):
            if index in bad:
                raise OSError("image file is truncated")
            return super().__getitem__(index)

    damaged = Damaged(toy_dataset.images, toy_dataset.labels)
    damaged.targets = damaged.labels
    with pytest.warns(
        UserWarning, match=r"1 of \d+ images cannot be used; .* truncated; their codes stay as they were"
    ):
        refined = refine(bank, damaged, linear_generator, **QUICK)
    expected = (bank.mse >= 0.1).index_fill(0, torch.tensor([worst]), False)
    assert moved(bank, refined).equal(expected)
    stage = refined.metadata["refined"][0]
    assert stage["set_aside"] == {str(worst): "OSError: image file is truncated"}
    assert stage["tried"] == expected.sum()
    bad.update(range(50))
    with pytest.raises((ValueError, OSError), match="image file is truncated"):
        refine(bank, damaged, linear_generator, **QUICK)


def test_an_image_that_can_be_read_again_is_done_again(bank, linear_generator, toy_dataset, tmp_path):
    class Away(LabelledImages):
        def __getitem__(self, index):
            if index == int(bank.mse.argmax()):
                raise OSError("not there")
            return super().__getitem__(index)

    away = Away(toy_dataset.images, toy_dataset.labels)
    away.targets = away.labels
    with pytest.warns(UserWarning, match="OSError: not there; their codes stay as they were"):
        partial = refine(bank, away, linear_generator, **QUICK, out=tmp_path / "out")
    assert partial.metadata["refined"][0]["set_aside"]
    refine(bank, toy_dataset, linear_generator, **QUICK, out=tmp_path / "out")
    refine(bank, toy_dataset, linear_generator, **QUICK, out=tmp_path / "one")
    assert (
        LatentBank.from_pretrained(tmp_path / "out").digest() == LatentBank.from_pretrained(tmp_path / "one").digest()
    )
    assert (
        LatentBank.from_pretrained(tmp_path / "out").metadata == LatentBank.from_pretrained(tmp_path / "one").metadata
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"above": ()}, r"steps needs one number, or one for each of 0 thresholds: got 5"),
        ({"steps": (5, 5)}, r"one for each of 1 thresholds: got \(5, 5\)"),
        ({"above": (0.1, 0.05), "steps": (5,)}, r"one for each of 2 thresholds: got \(5,\)"),
        ({"above": -0.1}, r"above needs numbers from 0, steps from 1: got -0.1 and 5"),
        ({"above": float("nan")}, r"above needs numbers from 0, steps from 1: got nan and 5"),
        ({"steps": 0}, r"above needs numbers from 0, steps from 1: got 0.1 and 0"),
        ({"batch_size": 0}, "are needed: got 0, 0.05, 0.001"),
        ({"lr": 0.0}, "are needed: got 7, 0.0, 0.001"),
        ({"tolerance": -1.0}, "are needed: got 7, 0.05, -1.0"),
        ({"optimizer": "sgd"}, "optimizer needs one of lbfgs, adam: got 'sgd'"),
        ({"shard": (2, 2)}, r"shard needs \(i, n\) with 0 <= i < n: got \(2, 2\)"),
        ({"shard": (0, 2), "resume": False}, r"resume=False with several shards would empty the folder"),
    ],
)
def test_bad_arguments(bank, linear_generator, toy_dataset, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        refine(bank, toy_dataset, linear_generator, **{**QUICK, "out": tmp_path / "out", **options})
    assert not (tmp_path / "out").exists()


def test_without_features_the_error_says_what_to_pass(bank, linear_generator, toy_dataset):
    with pytest.raises(ValueError, match=r"has no trained features for its 1-channel images: pass loss="):
        refine(bank, toy_dataset, linear_generator, **{**QUICK, "loss": None})


# ---- the folder ------------------------------------------------------------------------------------


def test_out_gets_the_bank(bank, linear_generator, toy_dataset, tmp_path):
    refined = refine(bank, toy_dataset, linear_generator, **QUICK, out=tmp_path / "a" / "b")
    read = LatentBank.from_pretrained(tmp_path / "a" / "b", verify=True)
    assert read.digest() == refined.digest()
    assert read.metadata == refined.metadata
    assert read.dtype == torch.float32


@pytest.mark.parametrize("resume", [True, False])
def test_the_banks_own_folder_is_refused(bank, linear_generator, toy_dataset, tmp_path, resume):
    arguments = {"encoder": half, "loss": pixel_mse, "steps": 0, "batch_size": 5, "progress": False}
    part = invert(toy_dataset, linear_generator, **arguments, out=tmp_path / "bank", shard=(0, 2))
    returned = invert(toy_dataset, linear_generator, **arguments, out=tmp_path / "bank")
    before = contents(tmp_path / "bank")
    link(tmp_path / "link", tmp_path / "bank")
    opened = LatentBank.from_pretrained(tmp_path / "bank")
    for of_folder in (opened, opened.subset(range(40)), returned, part):
        for out in (tmp_path / "bank", tmp_path / "link"):
            with pytest.raises(ValueError, match=r"is the folder of the bank itself, which stays as it is"):
                refine(of_folder, toy_dataset, linear_generator, **QUICK, out=out, resume=resume)
    assert contents(tmp_path / "bank") == before
    assert (tmp_path / "bank" / "chunks").is_dir()


def test_a_stopped_run_goes_on_where_it_was(bank, linear_generator, toy_dataset, tmp_path):
    arguments = {**QUICK, "above": (0.1, 0.08), "batch_size": 4}
    whole = Counted()
    refine(bank, toy_dataset, linear_generator, **{**arguments, "loss": whole}, out=tmp_path / "one")
    with pytest.raises(StopError):
        refine(
            bank,
            toy_dataset,
            linear_generator,
            **{**arguments, "loss": Counted(whole.calls - 3)},
            out=tmp_path / "out",
        )
    assert not contents(tmp_path / "out")
    rest = Counted()
    refine(bank, toy_dataset, linear_generator, **{**arguments, "loss": rest}, out=tmp_path / "out")
    assert 0 < rest.calls < whole.calls / 2
    assert contents(tmp_path / "out") == contents(tmp_path / "one")
    again = Counted()
    refine(bank, toy_dataset, linear_generator, **{**arguments, "loss": again}, out=tmp_path / "out")
    assert again.calls == 0
    refine(bank, toy_dataset, linear_generator, **{**arguments, "loss": again}, out=tmp_path / "out", resume=False)
    assert again.calls == whole.calls
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


@pytest.mark.parametrize("order", [[0, 1], [2, 0, 1]])
def test_shards_make_the_bank_of_one_run(bank, linear_generator, toy_dataset, tmp_path, order):
    arguments = {**QUICK, "above": (0.1, 0.08), "batch_size": 4}
    whole = refine(bank, toy_dataset, linear_generator, **arguments, out=tmp_path / "one")
    parts = []
    for rank in order:
        assert not contents(tmp_path / "out")
        shard = (rank, len(order))
        parts.append(refine(bank, toy_dataset, linear_generator, **arguments, out=tmp_path / "out", shard=shard))
    assert contents(tmp_path / "out") == contents(tmp_path / "one")
    assert torch.stack([moved(bank, part) for part in parts]).sum(0).equal(moved(bank, whole).long())
    for stage in range(2):
        for key in ("tried", "improved"):
            counts = [part.metadata["refined"][stage][key] for part in parts]
            assert sum(counts) == whole.metadata["refined"][stage][key]


def test_a_shard_without_rows(bank, linear_generator, toy_dataset, tmp_path):
    arguments = {**QUICK, "batch_size": 50, "out": tmp_path}
    none = refine(bank, toy_dataset, linear_generator, **arguments, shard=(1, 2))
    assert none.digest() == bank.digest()
    assert not contents(tmp_path)
    refine(bank, toy_dataset, linear_generator, **arguments, shard=(0, 2))
    alone = refine(bank, toy_dataset, linear_generator, **{**QUICK, "batch_size": 50})
    assert LatentBank.from_pretrained(tmp_path).digest() == alone.digest()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"steps": 6}, "refine.steps"),
        ({"above": (0.1, 0.08)}, "refine.above"),
        ({"lr": 0.06}, "refine.lr"),
        ({"loss": FeatureLoss(torch.nn.Identity())}, "refine.loss"),
        ({"optimizer": "lbfgs"}, "refine.optimizer"),
        ({"bank": slice(0, 49)}, "bank"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_with_something_else_is_refused(bank, linear_generator, toy_dataset, tmp_path, changes, key):
    refine(bank, toy_dataset, linear_generator, **QUICK, out=tmp_path)
    before = contents(tmp_path)
    other = bank.subset(changes.pop("bank", slice(None)))
    with pytest.raises(ValueError, match=rf"holds a run with other settings \(.*{key}: .* there, .* here"):
        refine(other, toy_dataset, linear_generator, **{**QUICK, **changes}, out=tmp_path)
    assert contents(tmp_path) == before


# ---- killed ----------------------------------------------------------------------------------------


def killed_bank() -> tuple[LatentBank, LabelledImages]:
    images = torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    dataset = LabelledImages(images, torch.arange(50) % 3)
    return invert(dataset, LinearGenerator(), encoder=half, loss=pixel_mse, steps=0, progress=False), dataset


STAGES = {**QUICK, "above": (0.1, 0.08), "steps": (3, 2), "batch_size": 6}


def run_until_killed(out: Path, at: int, number: int) -> None:
    """Refine into ``out`` and send this process a signal at its ``at``-th loss or renamed file."""
    killer = Killer(at, number)

    class Watched(Counted):
        def __call__(self, images, targets):
            killer.event()
            return super().__call__(images, targets)

    bank, dataset = killed_bank()
    with killer.watching_files():
        refine(bank, dataset, LinearGenerator(), **{**STAGES, "loss": Watched()}, out=out)


@needs_fork
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path):
    """SIGKILL in the steps of a chunk, before a file is renamed into place, and after it."""
    script = f"""
        import os, signal, sys
        from pathlib import Path
        sys.path[:0] = [{str(Path(__file__).parents[0])!r}, {str(Path(__file__).parents[1])!r}]
        import torch
        torch.set_num_threads(1)
        from test_refine import run_until_killed
        for at in range(1, 200, 7):
            if not (child := os.fork()):
                run_until_killed(Path(sys.argv[1], str(at)), at, signal.SIGKILL)
                os._exit(0)
            signalled = os.WTERMSIG(os.waitpid(child, 0)[1])
            if not signalled: break
            print(at, signalled)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], capture_output=True, text=True, check=True
    )
    ends = dict(map(int, line.split()) for line in run.stdout.splitlines())
    assert set(ends.values()) == {9}
    assert len(ends) > 4
    bank, dataset = killed_bank()
    refine(bank, dataset, LinearGenerator(), **STAGES, out=tmp_path / "one")
    for at in ends:
        refine(bank, dataset, LinearGenerator(), **STAGES, out=tmp_path / str(at))
        assert contents(tmp_path / str(at)) == contents(tmp_path / "one"), f"killed at event {at}"
