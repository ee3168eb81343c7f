"""The benchmarks of the paper's tables: the split, each method's batches, the paper's mistakes, and one trial whole."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from paper import codes as codes_module
from paper import methods as methods_module
from paper import paper_code, running, small_images, trials
from tables import rows as rows_module
from torch.utils.data import random_split

from latent_mixup import LatentBank
from latent_mixup.bundled import BundledImages
from latent_mixup.classifiers import PaperCNN
from latent_mixup.demo.comparison import Budget, Codes, Data, Run, paper_points
from latent_mixup.generators import DCGAN, CompactGenerator
from latent_mixup.sampling import draw_lam, keyed_generator

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

BUDGET = Budget(epochs=1, batch_size=16, deepfool_images=2)


@pytest.fixture(scope="module")
def fashion():
    """320 images in torchvision's form."""
    images = BundledImages("fashion-mnist")
    order = torch.randperm(len(images.data), generator=torch.Generator().manual_seed(0))[:320]
    return SimpleNamespace(data=images.data[order, 0], targets=images.targets[order])


@pytest.fixture
def images(fashion, monkeypatch):
    """The first 240 to train on, 80 to choose on; the test images are the training images."""
    monkeypatch.setattr(trials, "VALIDATION", 80)
    return trials.split("fashion-mnist", fashion, fashion)


@pytest.fixture(scope="module")
def some_codes(fashion):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = CompactGenerator(z_dim=8, decoder_widths=(16,), encoder_widths=(16,))
    latents = generator.sample_latents(320, torch.Generator().manual_seed(1))
    mse = torch.linspace(0, 0.05, 320)
    return Codes(generator, LatentBank(latents, fashion.targets, source_index=torch.arange(320), mse=mse))


def view(images: Data, codes: Codes | None, seed: int = 0) -> Run:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PaperCNN()
    return Run(images, codes, BUDGET, seed, model, paper_points(model))


# ---- the split -------------------------------------------------------------------------------------


def test_the_split_is_the_papers(fashion, images):
    train, held_out = random_split(range(320), [240, 80], generator=torch.Generator().manual_seed(42))
    assert images.rows.tolist() == list(train)
    assert images.train.train_labels.equal(fashion.targets[images.rows])
    assert images.validation.test_labels.equal(fashion.targets[torch.tensor(list(held_out))])
    assert images.train.train_images.equal(fashion.data[images.rows][:, None].float() / 127.5 - 1)
    assert len(images.train.test_images) == 320


def test_a_limit_takes_the_first_images_of_the_data_set(images, fashion):
    fewer = trials.split("fashion-mnist", fashion, fashion, limit=100)
    assert sorted(fewer.rows.tolist()) == sorted(row for row in images.rows.tolist() if row < 100)


def test_codes_of_the_training_images_alone(images, some_codes):
    ours = codes_module.of_rows(some_codes, images.rows)
    assert sorted(ours.bank.source_index.tolist()) == sorted(images.rows.tolist())


# ---- methods ---------------------------------------------------------------------------------------

ALL_METHODS = methods_module.methods(0.5)


@pytest.mark.parametrize("method", ALL_METHODS)
def test_every_method_gives_whole_batches_the_same_for_the_same_seed(images, some_codes, method):
    how, codes = ALL_METHODS[method]
    used = some_codes if codes else None
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    one, two, other = (list(how(view(images.train, used, seed))[0]) for seed in (5, 5, 6))
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert torch.get_rng_state().equal(torch_state)
    assert len(one) == 240 // 16
    for (batch, targets), (same, same_targets) in zip(one, two, strict=True):
        assert batch.equal(same)
        assert targets.equal(same_targets)
        assert batch.shape == (16, 1, 28, 28)
        assert batch.abs().max() <= 1 + 1e-6
        if targets.is_floating_point():
            torch.testing.assert_close(targets.sum(1), torch.ones(16))
    assert not all(batch.equal(another) for (batch, _), (another, _) in zip(one, other, strict=True))


def test_timm_and_torchvision_mix_as_they_say(images):
    """An image of a mix is a mix of two images of the batch, or made of parts of both; its target says how much."""
    for name in ("timm_mixup", "torchvision_mixup", "timm_cutmix", "torchvision_cutmix"):
        run = view(images.train, None)
        mixed = ALL_METHODS[name][0](run)[0]
        for (batch, targets), (real, labels) in zip(mixed, run.real(), strict=True):
            partner = real.flip(0) if name.startswith("timm") else real.roll(1, 0)
            partners = labels.flip(0) if name.startswith("timm") else labels.roll(1, 0)
            own, other = F.one_hot(labels, 10).float(), F.one_hot(partners, 10).float()
            different = (labels != partners).nonzero()[0, 0]
            lam = float(targets[different, labels[different]])
            torch.testing.assert_close(targets, lam * own + (1 - lam) * other, atol=1e-5, rtol=0)
            if name.endswith("mixup"):
                torch.testing.assert_close(batch, lam * real + (1 - lam) * partner, atol=1e-5, rtol=0)
            else:
                from_partner = batch != real
                assert batch[from_partner].equal(partner[from_partner])
                box = (batch == partner) & ~((batch == real) & (batch == partner))
                assert float(box.float().mean()) <= 1 - lam + 1e-6


# ---- the paper's mistakes --------------------------------------------------------------------------


def test_the_mixed_branch_ends_in_two_softmaxes(images):
    run = view(images.train, None)
    loss = paper_code.twice_softmaxed(run, [None])
    batch, labels = next(iter(run.real()))
    run.model.eval()
    found = loss(run.model, batch, labels)
    draw = keyed_generator("pixel-mix", run.seed, 0)
    partner = torch.randperm(16, generator=draw)
    lam = draw_lam(16, 1.0, draw, "batch")[0]
    mixed = lam * batch + (1 - lam) * batch[partner]
    targets = lam * F.one_hot(labels, 10) + (1 - lam) * F.one_hot(labels[partner], 10)
    twice = run.model(mixed).softmax(1).softmax(1)
    torch.testing.assert_close(found, -(targets * twice.log()).sum(1).mean())


def test_the_second_softmax_without_mixing(images):
    run = view(images.train, None)
    batches, loss = paper_code.methods("mnist")["standard_softmax_twice"][0](run)
    run.model.eval()
    batch, labels = next(batches)
    assert batch.equal(next(iter(run.real()))[0])
    twice = run.model(batch).softmax(1).softmax(1)
    torch.testing.assert_close(loss(run.model, batch, labels), -twice[torch.arange(16), labels].log().mean())


def test_hooks_are_gone_after_each_batch(images):
    run = view(images.train, None)
    loss = paper_code.twice_softmaxed(run, run.points)
    for batch, labels in run.real():
        loss(run.model, batch, labels).backward()
    assert not any(module._forward_hooks for module in run.model.modules())


@pytest.mark.parametrize("coin", [True, False])
def test_a_coin_decides_for_the_whole_batch(images, some_codes, coin):
    run = view(images.train, some_codes)
    kinds = []
    for (batch, targets), (real, labels) in zip(paper_code.gan_mixup(coin)(run)[0], run.real(), strict=True):
        same = (batch == real).flatten(1).all(1)
        assert same.all() or not same.any()
        kinds.append(bool(same.all()))
        if kinds[-1]:
            assert targets.argmax(1).equal(labels)
        else:
            assert len({round(float(row.max()), 5) for row in targets if (row > 0).sum() == 2}) == 1  # one lam
    assert any(kinds) == coin
    assert not all(kinds)


def test_in_the_unit_range_decoded_images_are_too(images, some_codes):
    data = paper_code.in_unit_range(images.train)
    torch.testing.assert_close(2 * data.train_images - 1, images.train.train_images)
    for batch, _ in paper_code.gan_mixup(False)(view(data, some_codes))[0]:
        assert 0 <= batch.min() < batch.max() <= 1


def test_batch_statistics_come_and_go():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = DCGAN(z_dim=6, channels=(8, 6, 4, 4))
    codes = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    before, state = generator.decode(codes), {name: value.clone() for name, value in generator.state_dict().items()}
    with paper_code.batch_statistics(generator):
        in_batch = generator.decode(codes)
        assert not torch.allclose(in_batch[:3], generator.decode(codes[:3]), atol=1e-3)
    assert generator.decode(codes).equal(before)
    assert all(value.equal(state[name]) for name, value in generator.state_dict().items() if "num_batches" not in name)


@pytest.mark.parametrize(("dataset", "kept"), [("mnist", 160), ("fashion-mnist", 213)])
def test_codes_with_a_large_error_are_left_out_as_in_the_paper(some_codes, dataset, kept):
    mse = torch.linspace(0, 0.15, 320)
    bank = LatentBank(*some_codes.bank[:], source_index=torch.arange(320), mse=mse)
    shop = codes_module.Workshop(dataset, None, Path(), codes_module.Effort())
    found = codes_module.kept(lambda shop: Codes(some_codes.generator, bank))(shop)
    assert found.bank.source_index.tolist() == list(range(kept))


def test_a_pool_fills_the_places_that_live_decoding_fills(images, some_codes, tmp_path, monkeypatch):
    from search import pools

    monkeypatch.setattr(pools, "SIZES", (5, 40))
    ways = pools.methods(tmp_path)
    assert list(ways) == ["standard", "live", "pool_5", "pool_40"]
    for size in (5, 40):
        run = view(images.train, some_codes)
        seen = set()
        for (batch, targets), (real, labels, draw) in zip(ways[f"pool_{size}"][0](run)[0], run.draws(0.5), strict=True):
            rest = torch.ones(16, dtype=torch.bool).index_fill(0, draw.slots, False)
            assert batch[rest].equal(real[rest])
            assert targets[rest].argmax(1).equal(labels[rest])
            assert not (batch == real).flatten(1).all(1)[draw.slots].any()
            seen |= {float(image.sum()) for image in batch[draw.slots]}
        assert 2 <= len(seen) <= size


# ---- one trial -------------------------------------------------------------------------------------


@pytest.fixture
def bench(images, some_codes, tmp_path):
    preset = trials.Preset(
        BUDGET,
        methods_module.methods(0.5),
        small_images.PAPER_CNN,
        scores={"deepfool_images": 2, "pgd_images": 2, "pgd_steps": 2, "corruption_images": 2, "severities": (3,)},
    )
    return trials.Benchmark(images, "fixed", preset, lambda name: some_codes, tmp_path / "work", tmp_path / "out")


def test_a_trial_is_trained_once_and_scored_once(bench, monkeypatch):
    trial = bench.trial("gan_mixup", 3)
    bench.run(trial)
    path = bench.out / "fixed" / "gan_mixup-3.json"
    record = json.loads(path.read_text())
    assert (record["dataset"], record["preset"], record["method"], record["seed"]) == (
        "fashion-mnist",
        "fixed",
        "gan_mixup",
        3,
    )
    assert record["train_images"] == 240
    assert record["steps"] == 15
    assert record["budget"]["batch_size"] == 16
    assert record["bank_rows"] == 320
    assert 0 <= record["accuracy"] <= 1
    assert set(record["pgd"]) >= {"linf", "l2"}
    untrained = dataclasses.replace(bench.preset.classifier, train=None)
    bench = dataclasses.replace(bench, preset=dataclasses.replace(bench.preset, classifier=untrained))
    with monkeypatch.context() as patch:
        patch.setattr(trials, "evaluate", None)
        bench.run(trial)  # nothing is left to do
    path.unlink()
    bench.run(trial)  # the classifier is there: only its scores are found again
    again = json.loads(path.read_text())
    for name in ("accuracy", "deepfool_score", "blurred_accuracy", "corruptions", "training_seconds"):
        assert again[name] == record[name]


def test_codes_that_refining_left_as_they_were_are_not_trained_on_again(bench, some_codes, monkeypatch):
    trained = []
    monkeypatch.setattr(
        trials.Benchmark, "trained", lambda bench, trial: trained.append(trial.method) or (None, {"budget": {}})
    )
    monkeypatch.setattr(trials, "evaluate", lambda *_, **more: {"accuracy": len(trained) / 10})
    monkeypatch.setattr(trials.Trial, "read", lambda trial, path: json.loads(path.read_text()))
    bench.run(bench.trial("gan_mixup_0.020", 0))
    assert trained == ["gan_mixup"]
    found = {path.stem: json.loads(path.read_text()) for path in (bench.out / "fixed").iterdir()}
    assert {name: (record["method"], record["accuracy"]) for name, record in found.items()} == {
        "gan_mixup-0": ("gan_mixup", 0.1),
        "gan_mixup_0.025-0": ("gan_mixup_0.025", 0.1),
        "gan_mixup_0.020-0": ("gan_mixup_0.020", 0.1),
    }
    assert [found[f"gan_mixup_{above}-0"]["same_as"] for above in ("0.025", "0.020")] == [
        "gan_mixup",
        "gan_mixup_0.025",
    ]
    better = Codes(some_codes.generator, some_codes.bank.subset(range(300)))
    other = dataclasses.replace(bench, codes_named=lambda name: better if name == "gan_0.025" else some_codes)
    assert other.twin(other.trial("gan_mixup_0.025", 1)) is None
    assert other.twin(other.trial("gan_mixup_0.020", 1)) is None
    assert other.twin(other.trial("decoded", 1)) is None


def test_what_another_process_is_doing_is_left_to_it(bench):
    lock = bench.work / "models" / "fixed" / "standard-0.lock"
    holder = (
        f"import sys, time; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import pathlib; from record import claimed\n"
        f"with claimed(pathlib.Path({str(lock)!r})): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        bench.run(bench.trial("standard", 0))
        assert not (bench.out / "fixed").exists()
        process.kill()
    bench.run(bench.trial("standard", 0))  # who was killed has let go of it
    assert (bench.out / "fixed" / "standard-0.json").is_file()


def test_the_grid_chooses_by_validation(bench, monkeypatch):
    scores = {0.2: 0.1, 0.5: 0.4, 1.0: 0.3, 2.0: 0.4}
    tried = []

    def trained(_bench, trial):
        tried.append(trial.budget.alpha)
        return trial.budget.alpha, {}

    monkeypatch.setattr(trials.Benchmark, "trained", trained)
    monkeypatch.setattr(trials, "accuracy", lambda model, loader: scores[model])
    assert bench.best_alpha(bench.trial("mixup", 0)) == 0.5
    assert bench.best_alpha(bench.trial("mixup", 0)) == 0.5
    assert tried == [0.2, 0.5, 1.0, 2.0]
    assert json.loads((bench.out / "fixed" / "grid-mixup.json").read_text())["validation_accuracy"]["1.0"] == 0.3


def test_a_method_that_is_not_there(bench):
    with pytest.raises(click.BadParameter, match="no method is called 'mixupp': expected some of standard, mixup, "):
        running.run_all(bench, "standard,mixupp", "0")
    assert not bench.out.exists()


@pytest.mark.parametrize("left", ["standard-0.json", "standard-0.training.json"])
def test_what_another_budget_made_is_not_taken(bench, left):
    bench.run(bench.trial("standard", 0))
    if left == "standard-0.training.json":
        (bench.out / "fixed" / "standard-0.json").unlink()
    budget = dataclasses.replace(BUDGET, epochs=2)
    longer = dataclasses.replace(bench, preset=dataclasses.replace(bench.preset, budget=budget))
    trial = longer.trial("standard", 0)
    with pytest.raises(ValueError, match=rf"{left} has another budget: expected .*'epochs': 2.* found .*'epochs': 1"):
        longer.run(trial)


def test_the_90_epoch_row_is_in_the_unit_range():
    preset = small_images.preset("paper_code", "mnist")
    bench = trials.Benchmark(None, "paper_code", preset, None, Path(), Path())
    row, other = bench.trial("standard_90_epochs", 0), bench.trial("standard", 0)
    assert (row.budget.epochs, row.bounds) == (90, (0.0, 1.0))
    assert (other.budget.epochs, other.budget.batch_size, other.bounds) == (50, 16, (-1.0, 1.0))
    assert "standard_90_epochs" not in paper_code.methods("fashion-mnist")


def test_the_command_line_says_what_there_is():
    shown = CliRunner().invoke(small_images.command("mnist"), ["--help"]).output
    for word in ("--data-root", "--preset", "--grid", "gan_mixup_0.025", "runs/mnist"):
        assert word in shown


# ---- codes -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:no row is left of class")  # of twenty images half are kept
def test_the_workshop_makes_every_kind_of_codes_once(fashion, tmp_path, monkeypatch):
    class Small:
        data, targets = fashion.data[:48], fashion.targets[:48]

        def __len__(self):
            return 48

        def __getitem__(self, index):
            return self.data[index].numpy(), int(self.targets[index])

    recipe = codes_module.DCGANRecipe
    monkeypatch.setattr(codes_module, "DCGANRecipe", lambda epochs: recipe(epochs=epochs, batch_size=16))
    monkeypatch.setattr(
        codes_module, "train_encoder", lambda generator, out, arch: lambda images: torch.zeros(len(images), 1024)
    )
    effort = codes_module.Effort(
        compact_steps=2,
        feature_steps=2,
        vae_steps=2,
        dcgan_epochs=1,
        steps=2,
        refine_steps=2,
        paper_steps=2,
        paper_images=20,
        paper_pairs=16,
    )
    shop = codes_module.Workshop("garments", Small(), tmp_path / "work", effort)
    made = {name: shop.codes(name) for name in codes_module.MAKERS}
    assert {name: len(codes.bank) for name, codes in made.items()} == {
        **dict.fromkeys(codes_module.MAKERS, 48),
        "dcgan": 20,
        "dcgan_kept": 10,
        "dcgan_as_published": 20,
        "dcgan_as_published_kept": 10,
    }
    assert made["vae"].generator.digest() == made["vae_sharpened"].generator.digest()
    assert made["vae_sharpened"].generator.sharpen == 1.0
    for better, worse in (("gan_0.025", "gan"), ("gan_0.020", "gan_0.025")):
        assert (made[better].bank.mse <= made[worse].bank.mse).all()
    facts = codes_module.described(made["gan"])
    assert facts["rows"] == 48
    assert facts["mse_percentiles"] == sorted(facts["mse_percentiles"])
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    for trainer in ("train_compact", "train_vae", "train_dcgan", "invert", "refine"):
        monkeypatch.setattr(codes_module, trainer, None)
    again = {name: shop.codes(name) for name in codes_module.MAKERS}
    assert {name: codes.bank.digest() for name, codes in again.items()} == {
        name: codes.bank.digest() for name, codes in made.items()
    }

    def wanted_anew(*_, **__):
        raise RuntimeError("wanted anew")

    monkeypatch.setattr(codes_module, "train_features", wanted_anew)
    everything = dataclasses.replace(shop, effort=dataclasses.replace(effort, paper_images=None))
    with pytest.raises(RuntimeError, match="wanted anew"):  # a bank of twenty images is not taken for one of all
        everything.codes("dcgan")


@pytest.mark.parametrize("dataset", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("name", small_images.EFFORTS)
def test_every_method_has_a_name_and_its_codes_a_maker(name, dataset):
    methods = small_images.preset(name, dataset).methods
    assert set(methods) <= set(rows_module.NAMES)
    assert {codes for _, codes in methods.values() if codes} <= set(codes_module.MAKERS)
