"""Classifiers and the compact generator: batches are permutations, mixes and losses are the formulas."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from reference import mix_one_by_one
from torch import nn
from trainings import KINDS, seeded

from latent_mixup.classifiers import PaperCNN
from latent_mixup.generators import CompactGenerator
from latent_mixup.images import from_uint8, to_uint8
from latent_mixup.interpolation import slerp
from latent_mixup.pictures import CAPTION_WIDTH
from latent_mixup.sampling import draw_lam, keyed_generator
from latent_mixup.training import shuffled_batches, train_classifier, train_features
from latent_mixup.training.captured import CapturedSteps
from latent_mixup.training.classifier import CrossEntropy, cross_entropy
from latent_mixup.training.compact import add_noise, critic_loss
from latent_mixup.training.mixup import ManifoldMixup, mixup_batches


def small_net() -> nn.Sequential:
    """4 x 4 grey images to three logits, through a hidden layer of five."""
    return seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 3)))


# ---- batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 5, 7, 20])
def test_each_epoch_is_a_permutation(batch_size):
    rows, per_epoch = torch.arange(20), 20 // batch_size
    batches = list(shuffled_batches(rows, rows + 100, batch_size, 3 * per_epoch, seed=0))
    assert all(labels.equal(images + 100) for images, labels in batches)
    epochs = [torch.cat([images for images, _ in batches[e * per_epoch :][:per_epoch]]) for e in range(3)]
    for epoch in epochs:
        assert len(epoch.unique()) == len(epoch) == per_epoch * batch_size
    assert not epochs[0].equal(epochs[1])
    assert not epochs[1].equal(epochs[2])


def test_the_order_depends_on_seed_and_epoch_alone():
    rows, before = torch.arange(20), torch.get_rng_state()
    once, longer, other = (
        torch.cat([images for images, _ in shuffled_batches(rows, rows, 5, steps, seed=seed)])
        for steps, seed in ((8, 0), (12, 0), (8, 1))
    )
    assert longer[:40].equal(once)
    assert not other.equal(once)
    assert torch.get_rng_state().equal(before)


def test_no_steps_no_batches():
    assert list(shuffled_batches(torch.arange(4), torch.arange(4), 2, 0, seed=0)) == []


@pytest.mark.parametrize("batch_size", [0, -1, 5])
def test_a_batch_larger_than_the_data(batch_size):
    with pytest.raises(ValueError, match=rf"batch_size needs to be in \[1, 4\], the number .*: got {batch_size}"):
        next(shuffled_batches(torch.arange(4), torch.arange(4), batch_size, 1, seed=0))


# ---- the loop --------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay_every", [None, 1, 3])
def test_the_loop_is_adam_with_a_decaying_rate(toy_dataset, decay_every):
    model, expected, steps = small_net(), small_net(), []
    images, labels = toy_dataset.images, toy_dataset.labels
    batches = list(shuffled_batches(images, labels, 8, 7, seed=0))
    train_classifier(
        model, iter(batches), lr=0.01, decay=0.5, decay_every=decay_every, on_step=lambda: steps.append(model.training)
    )
    optimizer = torch.optim.Adam(expected.parameters(), lr=0.01)
    for step, (x, y) in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 0.01 * 0.5 ** (step // decay_every if decay_every else 0)
        optimizer.zero_grad()
        F.cross_entropy(expected(x), y).backward()
        optimizer.step()
    for one, two in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)  # fused Adam rounds otherwise
    assert steps == [True] * 7
    assert not model.training


def test_soft_targets_and_another_loss(toy_dataset):
    hard, soft = small_net(), small_net()
    seen = []

    class Watched(CrossEntropy):
        def of(self, model, variant, *tensors):
            seen.append(len(tensors[0]))
            return super().of(model, variant, *tensors)

    labels = toy_dataset.labels
    train_classifier(hard, shuffled_batches(toy_dataset.images, labels, 10, 5, seed=0))
    targets = F.one_hot(labels, 3).float()
    train_classifier(soft, shuffled_batches(toy_dataset.images, targets, 10, 5, seed=0), loss=Watched())
    assert seen == [10] * 5
    torch.testing.assert_close(soft.state_dict(), hard.state_dict())


def test_features_are_the_papers_and_depend_on_the_seed_alone():
    images = torch.rand(130, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels, before = torch.arange(130) % 4, torch.get_rng_state()
    one, two, other = (train_features(images, labels, steps=1, seed=seed) for seed in (0, 0, 1))
    assert torch.get_rng_state().equal(before)
    PaperCNN().features.load_state_dict(one.state_dict())
    assert not any(parameter.requires_grad for parameter in one.parameters())
    assert not one.training
    assert one(images[:2]).equal(two(images[:2]))
    assert not one(images[:2]).equal(other(images[:2]))


def test_the_papers_classifier_has_596042_parameters():
    assert sum(parameter.numel() for parameter in PaperCNN().parameters()) == 596_042


def test_pooling_before_the_second_relu_changes_neither_outputs_nor_gradients():
    features = PaperCNN().features
    papers = nn.Sequential(*(features[i] for i in (0, 1, 2, 4, 3)))  # conv, ReLU, conv, ReLU, pool
    images = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    outputs = [network(images) for network in (features, papers)]
    assert outputs[0].equal(outputs[1])
    weights = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.autograd.grad((output * weights).sum(), [*features.parameters()]) for output in outputs)
    assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True))


# ---- mixup and manifold mixup ----------------------------------------------------------------------


def pairing(seed: int, number: int, size: int) -> tuple[list[int], list[float]]:
    draw = keyed_generator("pixel-mix", seed, number)
    return torch.randperm(size, generator=draw).tolist(), draw_lam(size, 1.0, draw).tolist()


def test_mixup_is_the_formula(toy_dataset):
    images, labels = toy_dataset.images, toy_dataset.labels
    batches = list(mixup_batches(shuffled_batches(images, labels, 9, 3, seed=1), 4, seed=2))
    for number, (x, y) in enumerate(shuffled_batches(images, labels, 9, 3, seed=1)):
        mixed, targets = mix_one_by_one(lambda image: image, x, y, *pairing(2, number, 9), 4)
        torch.testing.assert_close(batches[number][0], mixed)
        torch.testing.assert_close(batches[number][1], targets)
    assert len(batches) == 3


def test_at_the_input_manifold_mixup_is_mixup(toy_dataset):
    model, loss = small_net(), ManifoldMixup([None], 3, seed=5)
    real = list(shuffled_batches(toy_dataset.images, toy_dataset.labels, 10, 4, seed=0))
    mixed = list(mixup_batches(iter(real), 3, seed=5))
    for (images, labels), (mixed_images, targets) in zip(real, mixed, strict=True):
        assert loss(model, images, labels).equal(cross_entropy(model, mixed_images, targets))


def test_in_a_hidden_layer_the_hidden_values_are_mixed(toy_dataset):
    model = small_net()
    images, labels = toy_dataset.images[:8], toy_dataset.labels[:8]
    hidden = model[:3](images)
    mixed, targets = mix_one_by_one(model[3], hidden, labels, *pairing(0, 0, 8), 3)
    loss = ManifoldMixup([model[2]], 3, seed=0)(model, images, labels)
    torch.testing.assert_close(loss, F.cross_entropy(mixed, targets))
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize("layer", [None, 0, 2, 3])
def test_with_lam_one_or_one_image_nothing_is_mixed(monkeypatch, toy_dataset, layer):
    model = small_net()
    point = None if layer is None else model[layer]
    images, labels = toy_dataset.images[:8], toy_dataset.labels[:8]
    alone = ManifoldMixup([point], 3)(model, images[:1], labels[:1])
    torch.testing.assert_close(alone, cross_entropy(model, images[:1], labels[:1]))
    monkeypatch.setattr("latent_mixup.training.mixup.draw_lam", lambda size, *_: torch.ones(size))
    loss = ManifoldMixup([point], 3)(model, images, labels)
    torch.testing.assert_close(loss, cross_entropy(model, images, labels))


def test_every_point_gets_its_turn_and_each_batch_its_own_draws(toy_dataset):
    model = small_net()
    images, labels = toy_dataset.images[:8], toy_dataset.labels[:8]

    def values(points):
        loss = ManifoldMixup(points, 3)
        return [loss(model, images, labels).item() for _ in range(20)]

    at_input, hidden, either = values([None]), values([model[2]]), values([None, model[2]])
    from_input = [value == own for value, own in zip(either, at_input, strict=True)]
    from_hidden = [value == own for value, own in zip(either, hidden, strict=True)]
    assert all(one != two for one, two in zip(from_input, from_hidden, strict=True))
    assert {*from_input} == {True, False}
    assert len(set(either)) == 20
    assert either == values([None, model[2]])


def test_the_hook_is_gone_afterwards(toy_dataset):
    model = small_net()
    images, labels = toy_dataset.images[:8], toy_dataset.labels[:8]
    before = model(images)
    ManifoldMixup([model[2]], 3)(model, images, labels)
    assert not model[2]._forward_hooks
    with pytest.raises(RuntimeError):
        ManifoldMixup([model[2]], 3)(model, torch.zeros(8, 1, 9, 9), labels)
    with pytest.raises(ValueError, match="label 2 is outside num_classes=2"):
        ManifoldMixup([model[2]], 2)(model, images, labels)
    assert not model[2]._forward_hooks
    assert model(images).equal(before)


# ---- the compact generator -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run, its generator and its images."""
    out, kind = tmp_path_factory.mktemp("trained"), KINDS["compact"]
    return out, kind.train(out), from_uint8(kind.data()[0])


def test_the_weights_are_those_of_float16_and_the_prior_fits_the_codes(trained):
    _, generator, images = trained
    assert all(tensor.equal(tensor.half().float()) for tensor in generator.state_dict().values())
    torch.testing.assert_close(generator.mean_latent(), generator.encode(images).mean(0), atol=5e-3, rtol=0)


def test_images_without_the_papers_features_train_on_pixels(tmp_path):
    images = torch.randint(0, 256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    generator = KINDS["compact"].train(tmp_path, (images, torch.zeros(40, dtype=torch.long)))
    assert generator.features is None
    assert generator.decode(generator.encode(from_uint8(images))).shape == images.shape


def test_the_sheet_shows_the_rows_it_says(trained):
    """Real, decoded, with noise on the code, three mixes, and the partner: sixteen columns of 56 pixels."""
    out, _, images = trained
    sheet = Image.open(out / "sheet-000006.png")
    assert (sheet.format, sheet.size) == ("PNG", (CAPTION_WIDTH + 16 * 58 + 2, 7 * 58 + 2))
    generator = CompactGenerator(8)
    generator.load_state_dict(torch.load(out / "checkpoint.pt", weights_only=True)["network"])
    own, other = generator.encode(images[:32]).chunk(2)
    mixes = [slerp(own, other, torch.full((16,), lam)) for lam in (0.75, 0.5, 0.25)]
    rows = {0: images[:16], 1: generator.decode(own), 6: generator.decode(other)}
    rows |= {row: generator.decode(codes) for row, codes in enumerate(mixes, start=3)}
    pixels = torch.frombuffer(bytearray(sheet.convert("L").tobytes()), dtype=torch.uint8).view(sheet.height, -1)
    for row, expected in rows.items():
        for column in (0, 9, 15):
            tile = pixels[2 + 58 * row :, CAPTION_WIDTH + 2 + 58 * column :][:56:2, :56:2].int()
            assert (tile - to_uint8(expected[column, 0]).int()).abs().max() <= 1


def test_the_noise_spares_every_other_code():
    latents = F.normalize(torch.randn(10, 8, generator=keyed_generator("test", 0)), dim=1) * 8**0.5
    noisy = add_noise(latents, 0.3, keyed_generator("test", 1))
    torch.testing.assert_close(noisy[::2], latents[::2])
    assert (noisy[1::2] - latents[1::2]).norm(dim=1).min() > 0
    torch.testing.assert_close(noisy.norm(dim=1), torch.full((10,), 8**0.5))


def test_the_critic_is_content_beyond_its_margin():
    assert critic_loss(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -5.0])) == 0
    assert critic_loss(torch.tensor([0.0, 2.0]), torch.tensor([1.0, -1.0])) == 0.5 + 1.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("manifold", [False, True])
def test_captured_steps_are_the_steps(monkeypatch, manifold):
    """On a GPU a step is captured and replayed: the weights are those of steps that are not."""
    images, labels = torch.rand(320, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(320) % 10
    trained = []
    for eager_steps in (3, 10**6):
        monkeypatch.setattr("latent_mixup.training.captured.EAGER_STEPS", eager_steps)
        torch.manual_seed(0)
        model = PaperCNN().cuda()
        model.head[3].p = 0.0
        loss = ManifoldMixup([None, model.features[1]], 10) if manifold else None
        batches = shuffled_batches(images.cuda(), labels, 32, 40, seed=0)
        train_classifier(model, batches, loss=loss, decay_every=10)
        trained.append(model.state_dict())
    torch.testing.assert_close(*trained)


def test_a_capture_leaves_other_threads_alone(monkeypatch):
    """A loader decodes in another thread meanwhile; torch's default mode would make that an error."""
    asked = []

    @contextlib.contextmanager
    def graph(_graph, **options):
        asked.append(options)
        yield

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=bool))
    seen = []
    steps = CapturedSteps(lambda variant, tensors: seen.append(tensors[0].shape), torch.device("cpu"))
    for _ in range(5):
        steps(0, (torch.zeros(2),))
    assert len(seen) == 4  # three eager steps and the captured one; the fifth is a replay
    assert asked == [{"stream": None, "capture_error_mode": "thread_local"}]
