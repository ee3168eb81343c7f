"""What each row of the paper's tables is: ranges, losses, layers, shares, optimisers, codes and their inversion."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import cifar10
import click
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from paper import codes as codes_module
from paper import paper_code, resnet, running, small_images, trials
from paper.running import Order
from record import RESULTS, read
from tables import rows as rows_module
from torch import nn

from latent_mixup import LatentBank
from latent_mixup.bundled import BundledImages
from latent_mixup.classifiers import PaperCNN
from latent_mixup.demo import comparison
from latent_mixup.demo.comparison import Budget, Codes, Data, Run, paper_points
from latent_mixup.generators import DCGAN, CompactGenerator
from latent_mixup.images import from_uint8
from latent_mixup.policies import Policy
from latent_mixup.robustness import deepfool_score
from latent_mixup.sampling import keyed_generator
from latent_mixup.training.classifier import cross_entropy

BUDGET = Budget(epochs=4, batch_size=16)


@pytest.fixture(scope="module")
def data():
    """240 real images, balanced, as training and test images."""
    source = BundledImages("fashion-mnist", train=False)
    rows = torch.cat([(source.targets == label).nonzero()[:24, 0] for label in range(10)])
    rows = rows[torch.randperm(240, generator=torch.Generator().manual_seed(0))]
    images, labels = from_uint8(source.data[rows]), source.targets[rows]
    return Data(images, labels, images, labels)


@pytest.fixture(scope="module")
def codes(data):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = CompactGenerator(z_dim=8, decoder_widths=(16,), encoder_widths=(16,))
    latents = generator.sample_latents(240, torch.Generator().manual_seed(1))
    return Codes(generator, LatentBank(latents, data.train_labels, metadata={"num_classes": 10}))


@pytest.fixture(scope="module")
def gan():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DCGAN(z_dim=6, channels=(8, 6, 4, 4))


def run_of(data, codes=None) -> Run:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PaperCNN()
    return Run(data, codes, BUDGET, 0, model, paper_points(model))


def real_share(method, run: Run) -> list[float]:
    """Of each batch, the share of images that are the data set's own."""
    return [
        float((batch == real).flatten(1).all(1).float().mean())
        for (batch, _), (real, _) in zip(method(run)[0], run.real(), strict=True)
    ]


# ---- how much of a batch is real, and in what range


@pytest.mark.parametrize(("dataset", "share"), [("mnist", 0.0), ("fashion-mnist", 0.5)])
@pytest.mark.parametrize("name", ["gan_mixup", "decoded", "pixel_mix_of_decoded", "vae_mixup", "gan_mixup_dcgan"])
def test_the_share_of_real_images_is_the_papers(dataset, share, name, data, codes):
    method, _ = small_images.preset("fixed", dataset).methods[name]
    assert set(real_share(method, run_of(data, codes))) == {share}


def test_on_cifar10_gan_mixup_sees_no_real_image(data, codes):
    for name in ("gan_mixup", "decoded", "gan_mixup_0.025", "gan_mixup_0.020"):
        assert set(real_share(cifar10.METHODS[name][0], run_of(data, codes))) == {0.0}


@pytest.mark.parametrize("name", ["gan_mixup", "gan_mixup_dcgan", "gan_mixup_as_published"])
def test_paper_code_tosses_a_coin_on_fashion_mnist_alone(name, data, codes):
    with_coin, without = (paper_code.methods(dataset)[name][0] for dataset in ("fashion-mnist", "mnist"))
    assert set(real_share(with_coin, run_of(data, codes))) == {0.0, 1.0}
    assert set(real_share(without, run_of(data, codes))) == {0.0}


def test_paper_code_has_fashion_mnist_in_the_unit_range_and_mnist_not():
    assert small_images.preset("paper_code", "fashion-mnist").unit_range
    assert not small_images.preset("paper_code", "mnist").unit_range
    assert not any(small_images.preset("fixed", dataset).unit_range for dataset in ("mnist", "fashion-mnist"))


def test_the_range_of_a_trial_reaches_training_and_scores(data, tmp_path, monkeypatch):
    seen = {}

    def train(how, data, *_, **__):
        seen["trained on"] = float(data.train_images.min())
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

    def evaluate(model, images, labels, bounds, **_):
        seen["scored on"] = float(images.min()), bounds
        return {"accuracy": 0.5}

    monkeypatch.setattr(trials, "evaluate", evaluate)
    preset = small_images.preset("paper_code", "fashion-mnist")
    preset = dataclasses.replace(preset, classifier=trials.Classifier(nn.Identity, train))
    images = trials.Images("fashion-mnist", data, data, torch.arange(240))
    bench = trials.Benchmark(images, "paper_code", preset, {}.get, tmp_path / "w", tmp_path / "o")
    bench.run(bench.trial("standard", 0))
    assert seen == {"trained on": 0.0, "scored on": (0.0, (0.0, 1.0))}


def test_decoded_mixes_follow_their_policy(data, codes):
    alone, mixed = (
        [targets for _, targets in comparison.decoded_mixes(1.0, policy)(run_of(data, codes))[0]]
        for policy in (Policy(unmixed=1.0), None)
    )
    assert all((targets.amax(1) == 1).all() for targets in alone)
    assert not any((targets.amax(1) == 1).all() for targets in mixed)


# ---- losses and layers


@pytest.mark.parametrize("name", ["standard", "gan_mixup"])
def test_paper_codes_plain_branch_has_one_softmax(name, data, codes):
    method, needs = paper_code.methods("fashion-mnist")[name]
    assert method(run_of(data, codes if needs else None))[1] is cross_entropy


def test_paper_codes_mixup_mixes_the_input_alone(data):
    run = run_of(data)
    loss = paper_code.methods("mnist")["mixup"][0](run)[1]
    assert loss.points == [None]
    assert (loss._mode, loss.criterion) == ("batch", paper_code.cross_entropy_of_softmax)
    hidden = paper_code.methods("mnist")["manifold_mixup"][0](run)[1]
    assert hidden.points is run.points
    assert (hidden._mode, hidden.criterion) == ("batch", paper_code.cross_entropy_of_softmax)


def test_the_small_network_is_mixed_where_the_paper_mixes(data):
    """The input; conv 1; the pool; fc 1: each after its ReLU."""
    run = run_of(data)
    shapes, first = [], run.model
    for point in run.points[1:]:
        point.register_forward_hook(lambda _module, _inputs, output: shapes.append((tuple(output.shape[1:]), output)))
    first(data.train_images[:2])
    assert run.points[0] is None
    assert [shape for shape, _ in shapes] == [(16, 26, 26), (32, 12, 12), (128,)]
    assert all((output >= 0).all() for _, output in shapes)


def test_the_resnet_is_mixed_where_the_paper_mixes():
    model = resnet.resnet18(10, resnet.Plan(width=8))
    points = resnet.resnet_points(model)
    assert points == [None, model.maxpool, model.layer1, model.layer2, model.layer3]


def test_the_resnets_optimiser_is_the_papers(data, monkeypatch):
    made, sgd = [], torch.optim.SGD

    class Watched(sgd):
        def __init__(self, *given, **settings):
            super().__init__(*given, **settings)
            made.append(settings)

    monkeypatch.setattr(torch.optim, "SGD", Watched)
    colour = dataclasses.replace(data, train_images=data.train_images.expand(-1, 3, -1, -1))
    budget = Budget(epochs=1, batch_size=120, lr=0.1)
    plan = resnet.Plan(width=8, plateau=False)
    resnet.train_resnet(comparison.standard, colour, None, budget, seed=0, plan=plan, validation=colour)
    assert made == [{"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}]


def test_budgets_are_the_papers():
    assert cifar10.PRESETS["full"][0] == Budget(epochs=270, batch_size=32, lr=0.1)
    assert cifar10.PRESETS["full"][1] == resnet.Plan(width=64, plateau=True)
    assert small_images.BUDGETS["paper_code"] == Budget(epochs=50, batch_size=16, lr=1e-3)
    assert small_images.GAN_EPOCHS == {"mnist": 80, "fashion-mnist": 85}


def test_the_demo_scores_deepfool_over_all_classes(data):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PaperCNN().eval()
    found = comparison.score(model, data, 24)
    loader = [(data.test_images, data.test_labels)]
    every, two = (deepfool_score(model, loader, num_classes=number, max_images=24).score for number in (10, 2))
    assert found["deepfool_score"] == pytest.approx(every)
    assert abs(every - two) > 1e-3 * every


def test_own_rows_belong_to_their_slots():
    """A sample that becomes a mix is mixed from its own row, wherever in the batch it stands."""
    rows = torch.arange(100, 140)
    codes = LatentBank(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 4)
    view = comparison.BankView(codes)
    draw = Policy().draw_batch(40, 0.5, view, keyed_generator("test"), rows=rows)
    assert len(draw.slots) == 20
    assert draw.slots.tolist() != list(range(20))
    assert draw.rows.tolist() == rows[draw.slots].tolist()


# ---- codes: of these images, or refused


def test_the_codes_of_a_bank_belong_to_the_images(tmp_path, data):
    """A bank with other labels, in another order, or of another generator is refused before anything is trained."""
    source = BundledImages("fashion-mnist")
    bank = LatentBank.from_pretrained("fashion-mnist")
    rows = torch.arange(0, 10_000, 25)
    images = SimpleNamespace(data=source.data[rows, 0], targets=source.targets[rows])
    images = _Indexed(images.data, images.targets)
    latents, labels = bank[rows]

    def shop(latents=latents, labels=labels, generator="fashion-mnist"):
        made = LatentBank(latents, labels, source_index=torch.arange(len(rows)))
        made.save_pretrained(tmp_path / "bank")
        return codes_module.Workshop(
            "fashion-mnist", images, tmp_path, codes_module.Effort(), given={"gan": f"{generator}:{tmp_path / 'bank'}"}
        )

    assert len(shop().codes("gan").bank) == len(rows)
    shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="label"):
        shop(labels=labels[shuffled]).codes("gan")
    with pytest.raises(ValueError, match="label"):
        shop(latents[shuffled], labels[shuffled]).codes("gan")
    within = torch.cat([(labels == label).nonzero()[:, 0].roll(1) for label in range(10)])
    order = torch.empty_like(within)
    order[torch.cat([(labels == label).nonzero()[:, 0] for label in range(10)])] = within
    assert labels[order].equal(labels)
    with pytest.raises(
        ValueError, match=r"the codes do not belong to the images: their median MSE is .*, in its order"
    ):
        shop(latents[order]).codes("gan")


class _Indexed:
    def __init__(self, data, targets):
        self.data, self.targets = data, targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.data[index].numpy(), int(self.targets[index])


@pytest.fixture
def cifar_order(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "VALIDATION", 8)
    images = torch.randint(0, 256, (24, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(cifar10, "cifar10", lambda root, train: _Indexed(images, torch.arange(24) % 2))
    return Order(tmp_path, tmp_path / "w", tmp_path / "o", "cpu", "quick", {})


def test_with_given_codes_only_rows_that_have_them_are_left(cifar_order):
    """No row falls back to the compact generator under the same title."""
    everything = cifar10.benchmark(cifar_order).preset.methods
    bench = cifar10.benchmark(cifar_order, codes=("gan=network:bank",))
    assert {codes for _, codes in everything.values()} > {None, "gan", "gan_0.025", "vae"}
    assert {codes for _, codes in bench.preset.methods.values()} == {None, "gan"}
    assert (bench.trial("gan_mixup", 0).codes_from, bench.trial("mixup", 0).codes_from) == ("network:bank", None)
    with pytest.raises(click.BadParameter, match=r"'gan_mixup_0.025'.* expected some of standard, mixup"):
        running.run_all(bench, "gan_mixup_0.025", "0")


def test_a_result_with_other_codes_is_not_taken_for_this_one(cifar_order):
    own, given = cifar10.benchmark(cifar_order), cifar10.benchmark(cifar_order, codes=("gan=network:bank",))
    record = {"budget": dataclasses.asdict(own.preset.budget), "accuracy": 0.5}
    path = own.results / "gan_mixup-0.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))
    own.run(own.trial("gan_mixup", 0))
    with pytest.raises(ValueError, match="has another codes: expected network:bank, found None"):
        given.run(given.trial("gan_mixup", 0))


def test_rows_of_given_codes_are_named_after_them():
    run = {"dataset": "cifar10", "preset": "full", "method": "gan_mixup", "budget": {"epochs": 1}, "train_images": 9}
    run |= {"accuracy": 0.5, "deepfool_score": 1.0, "blurred_accuracy": 0.5, "seed": 0}
    rows = rows_module.aggregated([run, {**run, "codes_from": "org/stylegan2:org/bank"}])
    assert [rows_module.title(row) for row in rows] == [
        "GAN-MIXUP, our generator",
        "GAN-MIXUP, codes of `org/stylegan2:org/bank`",
    ]


@pytest.mark.parametrize("dataset", rows_module.DATASETS)
def test_committed_trials_name_the_codes_that_they_decoded(dataset):
    kinds = [rows_module.codes(RESULTS / dataset, kind) for kind in ("codes", "codes_augmented")]
    known = {(facts["generator_digest"], facts["bank_digest"]) for found in kinds for facts in found.values()}
    for trial in rows_module.records(RESULTS / dataset):
        if trial["generator_digest"]:
            assert (trial["generator_digest"], trial["bank_digest"]) in known, (trial["preset"], trial["method"])


# ---- inversion as published


def test_a_decode_by_batch_statistics_moves_nothing(gan):
    codes = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    before, state, digest = gan.decode(codes), {n: v.clone() for n, v in gan.state_dict().items()}, gan.digest()
    with paper_code.batch_statistics(gan):
        in_batch = gan.decode(codes)
        assert not torch.allclose(in_batch[:3], gan.decode(codes[:3]), atol=1e-3)
    assert gan.decode(codes).equal(before)
    assert all(value.equal(state[name]) for name, value in gan.state_dict().items())
    assert gan.digest() == digest
    with pytest.raises(RuntimeError, match="stop"), paper_code.batch_statistics(gan):
        raise RuntimeError("stop")
    assert gan.decode(codes).equal(before)


def test_codes_are_found_as_published(gan):
    """AdamW at a constant rate with weight decay, statistics of the batch, the last step kept: by hand in float64."""
    gan = DCGAN(**gan.arguments()).double()
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(4, 1, 28, 28, generator=draw, dtype=torch.float64) * 2 - 1
    start = torch.randn(4, 6, generator=draw, dtype=torch.float64)
    features = nn.AvgPool2d(4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gan, "decode", lambda codes: gan.network(codes.view(4, 6, 1, 1))[..., 2:30, 2:30])
        found, mse = paper_code.invert_as_published(gan, images, start, features, steps=7)
        code, mean, square = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
        for step in range(1, 8):
            leaf = code.clone().requires_grad_(True)
            with paper_code.batch_statistics(gan):
                loss = F.mse_loss(features(gan.decode(leaf)), features(images))
            (gradient,) = torch.autograd.grad(loss, leaf)
            mean, square = 0.95 * mean + 0.05 * gradient, 0.999 * square + 0.001 * gradient**2
            way = (mean / (1 - 0.95**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
            code = code * (1 - 0.03 * 0.01) - 0.03 * way
        torch.testing.assert_close(found, code, rtol=1e-9, atol=1e-9)
        with torch.no_grad(), paper_code.batch_statistics(gan):
            torch.testing.assert_close(mse, (gan.decode(code) - images).square().flatten(1).mean(1))


def test_the_published_mlp_sees_every_pair_six_times(gan, monkeypatch):
    seen, forward = [], paper_code.MLPEncoder.forward

    def watched(self, images):
        seen.extend(image.sum().item() for image in images)
        return forward(self, images)

    monkeypatch.setattr(paper_code.MLPEncoder, "forward", watched)
    encoder = paper_code.encoder_as_published(gan, pairs=150)
    assert len(seen) == 6 * 150
    assert all(seen.count(image) == 6 * seen[:150].count(image) for image in set(seen))
    assert seen[:150] != seen[150:300], "another order in each epoch"
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert (paper_code.PAIRS, paper_code.PAIR_EPOCHS, paper_code.INVERSION_BATCH) == (64_000, 6, 16)


def test_each_row_of_the_papers_gan_has_a_title_of_its_own():
    names = {rows_module.NAMES[name] for name in ("gan_mixup", "gan_mixup_dcgan", "gan_mixup_as_published")}
    assert names == {
        "GAN-MIXUP, our generator",
        "GAN-MIXUP, the paper's GAN, inverted our way",
        "GAN-MIXUP, the paper's GAN, inverted as published",
    }
    paper = rows_module.printed("fashion-mnist", "paper_code", "gan_mixup")
    assert rows_module.printed("fashion-mnist", "paper_code", "gan_mixup_as_published") == paper


# ---- the command line


@pytest.fixture
def jpegs(tmp_path):
    from PIL import Image

    for part, number in (("train", 8), ("test", 4)):
        for row in range(number):
            path = tmp_path / "data" / "cifar10-jpeg" / part / f"class{row % 2}" / f"{row}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (row, 0, 0)).save(path)
    return tmp_path / "data"


def test_what_is_there_is_told_and_how_to_run_it_anew(jpegs, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "VALIDATION", 2)
    there = read(RESULTS / "cifar10" / "reduced" / "standard-42.json")
    arguments = ["--data-root", jpegs, "--methods", "standard", "--seeds", "42", "--work", tmp_path]
    found = CliRunner().invoke(cifar10.main, list(map(str, arguments)))
    assert found.exit_code == 0, found.output
    first, *_, last = found.output.strip().splitlines()
    assert first == f"cifar10: reading images from {jpegs}"
    assert last.startswith(f"standard, seed 42: accuracy {there['accuracy']:.4f}, ")
    assert last.endswith(f"read from {RESULTS / 'cifar10/reduced/standard-42.json'}: pass another --out to run it anew")


def test_a_run_tells_its_stages(cifar_order, monkeypatch, capsys):
    monkeypatch.setattr(trials, "evaluate", lambda *_, **__: {"accuracy": 0.25})
    bench = cifar10.benchmark(cifar_order)
    trained = SimpleNamespace(whole=lambda model: model, train=lambda *_, on_step, **__: on_step() or nn.Linear(2, 2))
    bench = dataclasses.replace(bench, preset=dataclasses.replace(bench.preset, classifier=trained))
    running.run_all(bench, "standard", "3")
    lines = capsys.readouterr().out.splitlines()
    path = cifar_order.out / "quick" / "standard-3.json"
    assert lines == [
        "standard, seed 3: training",
        "standard, seed 3: scoring",
        f"standard, seed 3: accuracy 0.2500; written to {path}",
    ]


def test_quick_writes_nothing_into_the_committed_results(jpegs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    orders = []
    monkeypatch.setattr(running, "run_all", lambda bench, *_, **__: orders.append(bench))
    monkeypatch.setattr(trials, "VALIDATION", 2)
    found = CliRunner().invoke(cifar10.main, ["--data-root", str(jpegs), "--preset", "quick"])
    assert found.exit_code == 0, found.output
    assert (orders[0].out, orders[0].work) == (Path("runs/cifar10/quick/results"), Path("runs/cifar10/quick"))


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        (cifar10.main, "cifar-10-batches-py"),
        (small_images.command("mnist"), "MNIST/raw"),
        (small_images.command("fashion-mnist"), "FashionMNIST/raw"),
    ],
)
def test_a_missing_data_set_names_the_folder_that_is_wanted(command, wanted, tmp_path):
    found = CliRunner().invoke(command, ["--data-root", str(tmp_path)])
    assert found.exit_code == 1
    assert "Traceback" not in found.output
    (error,) = [line for line in found.output.splitlines() if line.startswith("Error: ")]
    assert str(tmp_path / wanted) in error
