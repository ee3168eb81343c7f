"""The benchmark of CIFAR-10: images from either form, the network, its training, and the codes it is given."""

from __future__ import annotations

import json

import cifar10
import click
import numpy as np
import pytest
import torch
from paper import resnet, trials
from paper.codes import Effort, given_codes
from paper.running import Order
from PIL import Image
from torch import nn

from latent_mixup import LatentBank
from latent_mixup.demo.comparison import (
    Budget,
    Codes,
    Run,
    decoded,
    decoded_mixes,
    manifold_mixup,
    mixup,
    pixel_mix_of_decoded,
    standard,
)
from latent_mixup.generators import CompactGenerator
from latent_mixup.images import from_uint8, to_uint8
from latent_mixup.robustness import accuracy, blur_sweep, blurred_accuracy

BUDGET = Budget(epochs=2, batch_size=8, lr=0.05)
SMALL = resnet.Plan(width=8, plateau=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """60 training and 20 test images as JPEGs, two classes: bright above or below."""
    folder = tmp_path_factory.mktemp("data")
    draw = torch.Generator().manual_seed(0)
    for part, number in (("train", 60), ("test", 20)):
        for row in range(number):
            pixels = torch.randint(0, 80, (32, 32, 3), generator=draw, dtype=torch.uint8)
            pixels[16 * (row % 2) :][:16] += 150
            path = folder / "cifar10-jpeg" / part / f"class{row % 2}" / f"{row:03}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.numpy()).save(path, quality=95)
    return folder


@pytest.fixture
def images(root, monkeypatch):
    monkeypatch.setattr(trials, "VALIDATION", 20)
    return split(root)


def split(root, limit=None):
    return trials.split("cifar10", *(resnet.cifar10(root, train=part) for part in (True, False)), limit)


def test_jpegs_are_read_in_torchvisions_form(root):
    data = resnet.cifar10(root, train=True)
    assert data.data.shape == (60, 32, 32, 3)
    assert data.data.dtype == torch.uint8
    assert torch.bincount(data.targets).tolist() == [30, 30]
    assert data.targets.tolist() == [0, 1] * 30, "the first so many are of all classes"
    image, label = data[41]
    assert (image == data.data[41].numpy()).all()
    assert label == int(data.targets[41]) == 1
    for row in (0, 1, 40):
        with Image.open(root / f"cifar10-jpeg/train/class{row % 2}/{row:03}.jpg") as file:
            assert (np.asarray(file) == image_of(data, row)).all()


def image_of(data, row):
    return data.data[row].numpy()


def test_neither_form(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no CIFAR-10: expected .*cifar-10-batches-py or .*cifar10-jpeg"):
        resnet.cifar10(tmp_path, train=True)


def test_the_split(images, root):
    order = torch.randperm(60, generator=torch.Generator().manual_seed(42))
    assert images.rows.equal(order[:40])
    data = resnet.cifar10(root, train=True)
    assert images.train.train_labels.equal(data.targets[order[:40]])
    assert images.validation.test_labels.equal(data.targets[order[40:]])
    assert images.train.train_images.abs().max() <= 1
    fewer = split(root, limit=30)
    assert fewer.rows.tolist() == [row for row in order[:40].tolist() if row < 30]


def test_the_network_is_resnet18_with_a_small_stem():
    model = resnet.resnet18(10, resnet.Plan())
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_173_962
    assert (model.conv1.kernel_size, model.conv1.stride) == ((3, 3), (1, 1))
    assert model.layer1(model.maxpool(model.act1(model.bn1(model.conv1(torch.zeros(2, 3, 32, 32)))))).shape[-1] == 16


@pytest.mark.parametrize("augment", [False, True])
def test_hidden_layers_are_mixed_in_the_network_itself(images, augment):
    plan = resnet.Plan(width=8, augment=augment)
    model = resnet.resnet18(2, plan).eval()
    points = resnet.resnet_points(model)
    shapes = []
    for point in points[1:]:
        point.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape[1:])))
    model(images.train.train_images[:2])
    sizes = [(14, 14), (14, 14), (7, 7), (4, 4)] if augment else [(16, 16), (16, 16), (8, 8), (4, 4)]
    assert points[0] is None
    assert [shape[1:] for shape in shapes] == sizes


@pytest.mark.parametrize("method", [standard, manifold_mixup], ids=["standard", "manifold_mixup"])
@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("plateau", [False, True])
def test_training_depends_on_its_seed_alone(images, method, augment, plateau):
    plan = resnet.Plan(width=8, augment=augment, plateau=plateau)

    def train(seed):
        before = torch.get_rng_state()
        model = resnet.train_resnet(
            method, images.train, None, BUDGET, seed=seed, plan=plan, validation=images.validation
        )
        assert torch.get_rng_state().equal(before)
        assert not model.training
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    one, two, other = train(1), train(1), train(2)
    assert one.equal(two)
    assert not one.equal(other)


def test_it_learns(images):
    model = resnet.train_resnet(
        standard,
        images.train,
        None,
        Budget(epochs=8, batch_size=8, lr=0.05),
        seed=0,
        plan=SMALL,
        validation=images.train,
    )
    with torch.no_grad():
        right = model(images.train.test_images).argmax(1) == images.train.test_labels
    assert float(right.float().mean()) > 0.9


def test_the_learning_rate_falls_when_validation_stalls(images, monkeypatch):
    monkeypatch.setattr(resnet, "validation_loss", lambda *_: 1.0)
    rates, sgd = [], torch.optim.SGD

    class Watched(sgd):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "SGD", Watched)
    budget = Budget(epochs=14, batch_size=20, lr=0.1)
    resnet.train_resnet(
        standard, images.train, None, budget, seed=0, plan=resnet.Plan(width=8), validation=images.validation
    )
    assert rates[:24] == [0.1] * 24  # an epoch has two steps; the first loss is the best, eleven more are not better
    assert rates[24:] == pytest.approx([0.01] * 4)


def test_validation_goes_back_to_training(images):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3072, 2)).train()
    one = resnet.validation_loss(model, images.validation, "cpu")
    assert model.training
    logits = model.eval()(images.validation.test_images)
    expected = nn.functional.cross_entropy(logits, images.validation.test_labels)
    assert one == pytest.approx(expected.item(), rel=1e-5)


def test_each_image_is_augmented_by_itself(images):
    image = images.train.train_images[0]

    def changed(seed):
        augment = resnet.Augmentation(seed)
        return torch.stack([augment(image) for _ in range(12)])

    one = changed(0)
    assert one.shape == (12, 3, 28, 28)
    assert one.abs().max() <= 1
    assert one.equal(changed(0))
    assert not one.equal(changed(1))
    assert len({image.sum().item() for image in one}) > 6


def test_auto_augment_flip_and_crop_are_all_there(monkeypatch):
    """Without AutoAugment an image is one of 25 crops or their mirror images; with it, other colours appear too."""
    image = torch.linspace(-1, 1, 3 * 32 * 32).view(3, 32, 32)
    augment = resnet.Augmentation(0)
    crops = {mirror: image.flip(-1) if mirror else image for mirror in (False, True)}
    rounded = {mirror: from_uint8(to_uint8(whole[None]))[0] for mirror, whole in crops.items()}
    windows = {
        mirror: [whole[:, y : y + 28, x : x + 28] for y in range(5) for x in range(5)]
        for mirror, whole in rounded.items()
    }
    seen = [augment(image) for _ in range(60)]
    recoloured = [one for one in seen if not any(one.equal(w) for both in windows.values() for w in both)]
    assert len(recoloured) > 20, "AutoAugment"
    monkeypatch.setattr(resnet.v2, "AutoAugment", lambda _policy: torch.nn.Identity())
    plain = resnet.Augmentation(0)
    places = {
        (mirror, index)
        for one in (plain(image) for _ in range(60))
        for mirror, both in windows.items()
        for index, window in enumerate(both)
        if one.equal(window)
    }
    assert {mirror for mirror, _ in places} == {False, True}, "flips"
    assert len({index for _, index in places}) > 10, "crops"


@pytest.mark.parametrize(
    ("method", "mixes"), [(standard, False), (mixup, True), (decoded(0.5), False), (pixel_mix_of_decoded(1.0), True)]
)
def test_images_are_augmented_before_they_are_mixed(images, method, mixes):
    """An "augmentation" to white or black pixels: only pixels that were mixed afterwards are grey."""
    codes = trained_codes(images)
    run = Run(images.train, codes, BUDGET, 0, nn.Identity(), [None], lambda image: image.sign()[:, 2:30, 2:30])
    batch, _ = next(method(run)[0])
    assert batch.shape[1:] == (3, 28, 28)
    assert bool((batch.abs() < 0.9).any()) == mixes


def test_decoded_mixes_are_augmented_after_decoding(images):
    run = Run(images.train, trained_codes(images), BUDGET, 0, nn.Identity(), [None], lambda image: image.sign())
    batch, _ = next(decoded_mixes(0.5)(run)[0])
    assert (batch.abs() == 1).all()


def trained_codes(images):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = CompactGenerator(
            z_dim=8, decoder_widths=(16,), encoder_widths=(16,), img_channels=3, img_resolution=32
        )
    number = len(images.rows)
    latents = torch.randn(number, 8, generator=torch.Generator().manual_seed(1))
    return Codes(generator, LatentBank(latents, images.train.train_labels))


def test_blurred_images_are_not_cropped(images, tmp_path):
    """With --augment the network of the blurred images sees 32x32, that of all others 28x28, as in the paper."""
    plan = resnet.Plan(width=8, augment=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = resnet.resnet18(2, plan).eval()
    classifier = trials.Classifier(lambda _: model, lambda *_, **__: model, resnet.whole)
    scores = {"deepfool_images": 2, "pgd_images": 0, "corruption_images": 0}
    preset = trials.Preset(BUDGET, {"standard": (standard, None)}, classifier, scores=scores)
    bench = trials.Benchmark(images, "reduced_augmented", preset, {}.get, tmp_path / "w", tmp_path / "o")
    sizes = []
    model[-1].register_forward_pre_hook(lambda _module, inputs: sizes.append(inputs[0].shape[-1]))
    found = bench.scores(model, images.train.test_images, images.train.test_labels, (-1.0, 1.0))
    assert set(sizes) == {28, 32}
    loader = [(images.train.test_images, images.train.test_labels)]
    assert found["blurred_accuracy"] == blurred_accuracy(model[-1], loader)
    assert found["blur_sweep"]["accuracy"] == list(blur_sweep(model[-1], loader).values())
    assert found["accuracy"] == accuracy(model, loader)
    assert found["blurred_images"] == "whole, not cropped"


def test_one_trial_from_the_codes_to_the_record(root, monkeypatch, tmp_path):
    monkeypatch.setattr(trials, "VALIDATION", 20)
    small = {"z_dim": 8, "network": {"decoder_widths": (16,), "encoder_widths": (16,)}}
    monkeypatch.setattr(cifar10, "COMPACT", small)
    effort = Effort(compact_steps=2, steps=2, images=50)
    scores = {"deepfool_images": 2, "pgd_images": 2, "pgd_steps": 2, "corruption_images": 0}
    budget = Budget(epochs=1, batch_size=8, lr=0.05)
    monkeypatch.setitem(cifar10.PRESETS, "reduced", (budget, SMALL, effort, scores))
    order = Order(root, tmp_path / "w", tmp_path / "o", "cpu", "reduced", {})
    bench = cifar10.benchmark(order)
    bench.run(bench.trial("gan_mixup", 42))
    path = tmp_path / "o" / "reduced" / "gan_mixup-42.json"
    record = json.loads(path.read_text())
    rows = len(bench.images.rows)
    assert (record["dataset"], record["images"], record["train_images"], record["bank_rows"]) == (
        "cifar10",
        "JPEG",
        rows,
        rows,
    )
    assert record["classifier"] == "ResNet-18, width 8"
    trained_on = json.loads((tmp_path / "w" / "gan" / "config.json").read_text())["metadata"]["dataset"]["trained_on"]
    assert trained_on == 50
    facts = json.loads((tmp_path / "o" / "codes" / "gan.json").read_text())
    assert (facts["rows"], facts["generator_digest"]) == (rows, record["generator_digest"])


@pytest.mark.parametrize("pair", ["gan", "gan=folder", "gan=:bank", "gan=generator:", "dcgan=generator:bank"])
def test_codes_in_another_form(pair):
    with pytest.raises(click.BadParameter, match=r"expected NAME=GENERATOR:BANK with a name of gan, gan_0\.025"):
        given_codes([pair], cifar10.CODES)


def test_codes_that_are_given():
    assert given_codes(["gan=a/b@c:d"], cifar10.CODES) == {"gan": "a/b@c:d"}


def test_the_methods_are_table_ones_and_more():
    table_one = {"standard", "mixup", "manifold_mixup", "gan_mixup", "gan_mixup_0.025", "gan_mixup_0.020"}
    assert table_one <= set(cifar10.METHODS)
    assert "gan_mixup_dcgan" not in cifar10.METHODS
