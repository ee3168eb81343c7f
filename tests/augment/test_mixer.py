import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import LinearGenerator, one_hot_bank
from reference import mix_one_by_one
from torch import nn
from torchvision import transforms as v1
from torchvision.transforms import v2

from latent_mixup.augment.base import Decoder, Mixer, MixSettings
from latent_mixup.bank import LatentBank
from latent_mixup.functional import mixup_criterion
from latent_mixup.images import RangeMismatchWarning, to_unit
from latent_mixup.policies import NAMED, Beta, Draw, LowPass, Policy

KEY = (1, 2, 3)


@pytest.fixture
def mixer(linear_generator, toy_bank):
    return lambda **settings: Mixer(linear_generator, toy_bank, MixSettings(**{"seed": 0, **settings}))


@pytest.fixture
def batch(toy_dataset):
    return toy_dataset.images[:12].clone(), toy_dataset.labels[:12].clone()


# ---- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, "alpha needs to be above 0 and finite: got 0.0"),
        ({"prob": -0.1}, r"prob needs to be in \[0, 1\]: got -0.1"),
        ({"mode": "half"}, 'mode needs to be "elem" or "batch": got \'half\''),
        ({"path": "arc"}, 'path needs to be "lerp" or "slerp": got \'arc\''),
        ({"num_classes": 0}, "num_classes needs to be at least 1: got 0"),
        ({"label_smoothing": 1.0}, r"label_smoothing needs to be in \[0, 1\): got 1.0"),
        ({"transform": 3}, "transform needs to be a callable on one image: got 3"),
        ({"target_format": "hard"}, 'target_format needs to be "soft" or "pair": got \'hard\''),
        ({"target_format": "pair", "label_smoothing": 0.1}, r"CrossEntropyLoss\(label_smoothing=0.1\)"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        MixSettings(**settings)


def test_bad_banks(linear_generator, toy_bank):
    with pytest.raises(ValueError, match=r"shape \(7,\)"):
        Mixer(linear_generator, LatentBank(torch.zeros(3, 7), [0, 1, 2]), MixSettings())
    with pytest.raises(ValueError, match="label 2 is outside num_classes=2"):
        Mixer(linear_generator, toy_bank, MixSettings(num_classes=2))
    with pytest.raises(ValueError, match=r"soft labels need shape \[B, 7\]: got torch.float32 \[50, 3\]"):
        Mixer(linear_generator, one_hot_bank(toy_bank), MixSettings(num_classes=7))


def test_rows_without_a_label_are_refused(linear_generator, unlabelled_bank):
    message = r"2 of the bank's 50 rows have no label \(-1\), the first is row 7: .*bank.subset\(bank.labels >= 0\)"
    for prob in (0.0, 1.0):
        with pytest.raises(ValueError, match=message):
            Mixer(linear_generator, unlabelled_bank, MixSettings(prob=prob))
    with pytest.raises(ValueError, match="none of the bank's 2 rows has a label"):
        Mixer(linear_generator, unlabelled_bank.subset([7, 9]), MixSettings(num_classes=3))
    Mixer(linear_generator, unlabelled_bank.subset(unlabelled_bank.labels >= 0), MixSettings())


def test_nan_codes_are_refused(linear_generator):
    codes = torch.zeros(3, 16)
    codes[1, 4] = torch.nan
    with pytest.raises(ValueError, match=r"(?i)nan"):
        LatentBank(codes, [0, 1, 2])
    bank = LatentBank(torch.zeros(3, 16), [0, 1, 2])
    bank._codes[1, 4] = torch.nan  # as from a damaged file
    rows = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="NaN or infinite"):
        Mixer(linear_generator, bank, MixSettings()).decode(Draw.alone(rows))


# ---- the method ------------------------------------------------------------------------------------


def test_equals_the_slow_reference(mixer, linear_generator, toy_bank, batch):
    mixer = mixer()
    images, targets = mixer.blend(*batch, KEY)
    draw = mixer.draw(12, KEY)
    latents, labels = toy_bank[:]
    wanted = torch.cat([latents[draw.rows], latents[draw.partners]])
    classes = torch.cat([labels[draw.rows], labels[draw.partners]])
    partners = list(range(12, 24))
    expected = mix_one_by_one(linear_generator.decode, wanted, classes, partners, draw.lam.tolist(), 3)
    torch.testing.assert_close(images, expected[0])
    torch.testing.assert_close(targets, expected[1])


def test_real_samples_stay(mixer, batch):
    mixer = mixer(prob=0.5)
    images, targets = mixer.blend(*batch, KEY)
    slots = mixer.draw(12, KEY).slots
    real = [i for i in range(12) if i not in slots.tolist()]
    assert len(slots) == 6
    assert torch.equal(images[real], batch[0][real])
    assert torch.equal(targets[real], torch.nn.functional.one_hot(batch[1][real], 3).float())
    assert (images[slots] != batch[0][slots]).flatten(1).any(1).all()


def test_nothing_is_mixed(mixer, batch):
    images, targets = mixer(prob=0.0, label_smoothing=0.3).blend(*batch, KEY)
    assert torch.equal(images, batch[0])
    torch.testing.assert_close(targets[0], torch.tensor([0.8, 0.1, 0.1]))


@pytest.mark.parametrize("prob", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("size", [1, 2, 5, 12])
@pytest.mark.parametrize("mode", ["elem", "batch"])
def test_shapes_sums_and_the_callers_tensors(mixer, batch, prob, size, mode):
    images, labels = batch[0][:size], batch[1][:size]
    kept = images.clone(), labels.clone()
    mixed, targets = mixer(prob=prob, mode=mode, label_smoothing=0.1).blend(images, labels, KEY)
    assert mixed.shape == images.shape
    torch.testing.assert_close(targets.sum(1), torch.ones(size))
    assert torch.equal(images, kept[0])
    assert torch.equal(labels, kept[1])


def test_one_lam_for_the_batch(mixer, batch):
    _, (_, _, lam) = mixer(mode="batch", target_format="pair").blend(*batch, KEY)
    assert torch.equal(lam, lam[:1].expand(12))


@pytest.mark.parametrize("prob", [0.0, 0.5, 1.0])
def test_pair_and_soft_are_one_loss(mixer, batch, prob):
    images, soft = mixer(prob=prob).blend(*batch, KEY)
    same, (y_a, y_b, lam) = mixer(prob=prob, target_format="pair").blend(*batch, KEY)
    logits = images.flatten(1)[:, :3]
    assert torch.equal(images, same)
    assert (y_a.dtype, y_b.dtype, lam.dtype) == (torch.int64, torch.int64, torch.float32)
    loss = mixup_criterion(torch.nn.functional.cross_entropy, logits, y_a, y_b, lam)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, soft))


def test_path_comes_from_the_generator(linear_generator, toy_bank):
    own = Mixer(linear_generator, toy_bank, MixSettings())
    linear_generator.preferred_path = "slerp"
    half = Draw.of_pairs(torch.tensor([0]), torch.tensor([1]), torch.tensor([0.5]))
    slerped = Mixer(linear_generator, toy_bank, MixSettings()).decode(half)[0]
    lerped = Mixer(linear_generator, toy_bank, MixSettings(path="lerp")).decode(half)[0]
    assert torch.equal(own.decode(half)[0], lerped)
    assert not torch.allclose(slerped, lerped)


def test_soft_labels_from_an_earlier_mixup(mixer, batch):
    with torch.random.fork_rng(devices=[]):
        images, soft = v2.MixUp(num_classes=3)(*batch)
    _, targets = mixer(prob=0.5).blend(images, soft, KEY)
    slots = mixer(prob=0.5).draw(12, KEY).slots
    real = [i for i in range(12) if i not in slots.tolist()]
    torch.testing.assert_close(targets[real], soft[real])
    _, (y_a, y_b, lam) = mixer(prob=0.5, target_format="pair").blend(images, soft, KEY)
    torch.testing.assert_close(lam[:, None] * y_a + (1 - lam[:, None]) * y_b, targets)
    assert torch.equal(y_a[real], soft[real])


# ---- soft labels -----------------------------------------------------------------------------------


def says_the_same(found, expected):
    """Whether two targets of one format agree, class indices counting as one-hot rows."""
    if isinstance(expected, torch.Tensor):
        return torch.equal(found, expected)
    one, two = (
        [y if y.is_floating_point() else F.one_hot(y, 3).float() for y in pair[:2]] + [pair[2]]
        for pair in (found, expected)
    )
    return all(map(torch.equal, one, two))


@pytest.mark.parametrize("soft_batch", [False, True])
@pytest.mark.parametrize("soft_bank", [False, True])
@pytest.mark.parametrize("prob", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("form", [{}, {"label_smoothing": 0.1}, {"mode": "batch"}, {"target_format": "pair"}], ids=str)
def test_one_hot_rows_do_what_class_indices_do(linear_generator, toy_bank, batch, soft_batch, soft_bank, prob, form):
    images, labels = batch
    settings = MixSettings(seed=0, prob=prob, **form)
    expected = Mixer(linear_generator, toy_bank, settings)
    mixer = Mixer(linear_generator, one_hot_bank(toy_bank) if soft_bank else toy_bank, settings)
    given = F.one_hot(labels, 3).float() if soft_batch else labels
    for act in (
        lambda mixer, labels: mixer.blend(images, labels, KEY),
        lambda mixer, labels: mixer.unmixed(images, labels),
    ):
        found, wanted = act(mixer, given), act(expected, labels)
        assert torch.equal(found[0], wanted[0])
        assert says_the_same(found[1], wanted[1])
        if "target_format" in form:
            kind = (torch.float32, (12, 3)) if soft_batch or soft_bank else (torch.int64, (12,))
            assert [(y.dtype, tuple(y.shape)) for y in found[1][:2]] == [kind, kind]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_soft_rows_are_mixed_one_by_one(linear_generator, soft_bank, soft_dataset, smoothing):
    mixer = Mixer(linear_generator, soft_bank, MixSettings(seed=0, prob=0.5, label_smoothing=smoothing))
    images, labels = soft_dataset.images[:12], soft_dataset.labels[:12]
    mixed, targets = mixer.blend(images, labels, KEY)
    draw = mixer.draw(12, KEY)
    expected = list(labels)
    for slot, row, partner, lam in zip(
        *(part.tolist() for part in (draw.slots, draw.rows, draw.partners, draw.lam)), strict=True
    ):
        expected[slot] = lam * soft_bank.labels[row] + (1 - lam) * soft_bank.labels[partner]
        code = lam * soft_bank[row][0] + (1 - lam) * soft_bank[partner][0]
        torch.testing.assert_close(mixed[slot], linear_generator.decode(code[None])[0])
    torch.testing.assert_close(targets, (1 - smoothing) * torch.stack(expected) + smoothing / 3)
    real = [i for i in range(12) if i not in draw.slots.tolist()]
    assert torch.equal(mixed[real], images[real])
    if not smoothing:
        assert torch.equal(targets[real], labels[real])


def test_a_soft_pair_is_the_loss_of_soft_targets(linear_generator, soft_bank, soft_dataset):
    images, labels = soft_dataset.images[:12], soft_dataset.labels[:12]
    _, soft = Mixer(linear_generator, soft_bank, MixSettings(seed=0, prob=0.5)).blend(images, labels, KEY)
    mixer = Mixer(linear_generator, soft_bank, MixSettings(seed=0, prob=0.5, target_format="pair"))
    same, (y_a, y_b, lam) = mixer.blend(images, labels, KEY)
    logits = same.flatten(1)[:, :3]
    loss = mixup_criterion(F.cross_entropy, logits, y_a, y_b, lam)
    torch.testing.assert_close(loss, F.cross_entropy(logits, soft))


def test_dtype_of_the_images_stays(mixer, batch):
    assert mixer().blend(batch[0].half(), batch[1], KEY)[0].dtype == torch.float16


def test_autocast_does_not_reach_the_generator(mixer, batch):
    expected = mixer().blend(*batch, KEY)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mixer().blend(*batch, KEY)[0], expected)


def test_a_default_device_does_not_matter(mixer, batch):
    mixer = mixer(prob=0.5)
    expected = mixer.draw(12, KEY), mixer.unmixed(*batch)[1]
    with torch.device("meta"):
        draw, targets = mixer.draw(12, KEY), mixer.unmixed(*batch)[1]
    assert torch.equal(draw.rows, expected[0].rows)
    assert torch.equal(targets, expected[1])


def test_generator_and_global_random_state_are_left_alone(mixer, batch, linear_generator):
    linear_generator.gain = torch.nn.Parameter(torch.ones(()), requires_grad=False)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    images, targets = mixer().blend(*batch, KEY)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()  # noqa: NPY002
    assert not linear_generator.training
    assert not images.requires_grad
    assert not targets.requires_grad
    weight = torch.ones(16, 3, requires_grad=True)
    (images.flatten(1) @ weight).sum().backward()  # no inference tensor: a classifier can train on it


# ---- keys ------------------------------------------------------------------------------------------


def test_seed_epoch_and_rank_name_the_draw(mixer, monkeypatch):
    keys = set()
    for seed in (0, 1):
        for epoch in (0, 1):
            for rank in ("0", "1"):
                monkeypatch.setenv("RANK", rank)
                one = mixer(seed=seed)
                one.epoch = epoch
                keys.add(tuple(one.draw(4, one.key(seed, 7)).lam.tolist()))
    assert len(keys) == 8


def test_a_pickled_mixer_keeps_the_rank_it_was_sent_from(mixer, monkeypatch):
    monkeypatch.setenv("RANK", "5")
    sent = pickle.dumps(mixer())
    monkeypatch.delenv("RANK")
    assert pickle.loads(sent).key(0, 7) == (0, 0, 5, 7)  # noqa: S301


# ---- transform, size and range ---------------------------------------------------------------------


def test_transform_gets_one_image_at_a_time(mixer, batch):
    seen = []

    def keep(image):
        seen.append((image.shape, image.dtype))
        return image

    mixer(transform=keep).blend(*batch, KEY)
    assert seen == [((1, 4, 4), torch.float32)] * 12


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (v2.Resize((8, 8)), r"got \[C, H, W\] = \[1, 8, 8\] for \[1, 4, 4\].*v2.Resize\(\(4, 4\)\)"),
        (lambda image: image.repeat(3, 1, 1), r"\[3, 4, 4\] for \[1, 4, 4\].*v2.Grayscale\(1\)"),
        (lambda image: image.numpy(), r"float tensor \[C, H, W\]: got ndarray"),
        (lambda image: image.byte(), r"float tensor \[C, H, W\]: got torch.uint8 \[1, 4, 4\]"),
        (lambda image: image[0], r"float tensor \[C, H, W\]: got torch.float32 \[4, 4\]"),
        (lambda image: image[:, : 2 + int(image.sum() > 0)], "one size for all images"),
    ],
)
def test_bad_transforms(mixer, batch, transform, message):
    with pytest.raises(ValueError, match=message):
        mixer(transform=transform).blend(*batch, KEY)


@pytest.fixture
def called(monkeypatch):
    """Shapes that ``v2.Normalize`` was called with."""
    monkeypatch.setattr(Mixer, "check_range", lambda *_: None)
    shapes, plain = [], v2.Normalize.forward
    monkeypatch.setattr(
        v2.Normalize, "forward", lambda self, images: shapes.append(tuple(images.shape)) or plain(self, images)
    )
    return shapes


NORMALIZE = v2.Normalize([0.5], [0.5])


@pytest.mark.parametrize(
    "transform",
    [
        NORMALIZE,
        v2.Compose([to_unit, v2.Resize(4), NORMALIZE, v2.CenterCrop(4)]),
        nn.Sequential(v2.Pad(1), v2.Resize((4, 4)), NORMALIZE),
        v2.Compose([v2.RGB(), v2.Grayscale(), v2.ToDtype(torch.float32), v2.Identity(), NORMALIZE]),
        v1.Compose([v1.Pad(1), v1.CenterCrop(4), v1.Resize(4), v1.ConvertImageDtype(torch.float32), NORMALIZE]),
    ],
    ids=lambda transform: type(transform).__module__,
)
def test_a_transform_that_draws_nothing_is_called_once_a_batch(mixer, batch, transform, called):
    found, _ = mixer(transform=transform).blend(*batch, KEY)
    assert called == [(12, 1, 4, 4)]
    one_by_one, _ = mixer(transform=lambda image: transform(image)).blend(*batch, KEY)
    torch.testing.assert_close(found, one_by_one)


class Shifted(v2.Normalize):
    """A user's own, which may do anything."""


@pytest.mark.parametrize(
    "transform",
    [
        v2.Compose([v2.RandomHorizontalFlip(), NORMALIZE]),
        v2.Compose([v2.Compose([v2.RandomCrop(4, padding=1)]), NORMALIZE]),
        nn.Sequential(v2.RandomErasing(1.0), NORMALIZE),
        v2.Compose([lambda image: image + torch.rand(1), NORMALIZE]),
        v2.RandomApply([NORMALIZE], p=1.0),
        Shifted([0.5], [0.5]),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_any_other_is_called_for_each_image_with_draws_of_its_own(mixer, batch, transform, called):
    torch.manual_seed(1)
    found, _ = mixer(transform=transform).blend(*batch, KEY)
    assert called == [(1, 4, 4)] * 12
    plain, _ = mixer().blend(*batch, KEY)
    torch.manual_seed(1)
    torch.testing.assert_close(found, torch.stack([transform(image) for image in plain]))


def test_a_batched_transform_is_checked_as_well(mixer, batch):
    with pytest.raises(ValueError, match=r"float tensor \[C, H, W\]: got torch.uint8"):
        mixer(transform=v2.ToDtype(torch.uint8)).blend(*batch, KEY)
    with pytest.raises(ValueError, match=r"\[3, 4, 4\] for \[1, 4, 4\]"):
        mixer(transform=v2.RGB()).blend(*batch, KEY)


@pytest.mark.parametrize("prob", [0.1, 0.5, 1.0])
def test_another_range_is_said_once(mixer, batch, prob):
    mixer = mixer(prob=prob)
    images = (batch[0] + 1) / 2
    with pytest.warns(RangeMismatchWarning, match=r"transform=v2.Normalize\(mean=\[-1\], std=\[2\]\)"):
        mixer.blend(images, batch[1], KEY)
    mixer.blend(images, batch[1], KEY)


def test_the_named_transform_mends_it(mixer, batch):
    mixer(transform=v2.Normalize(mean=[-1], std=[2])).blend((batch[0] + 1) / 2, batch[1], KEY)


def test_small_batches_wait_for_a_larger_one(mixer, batch):
    mixer = mixer()
    images = (batch[0] + 1) / 2
    mixer.blend(images[:3], batch[1][:3], KEY)
    with pytest.warns(RangeMismatchWarning):
        mixer.blend(images, batch[1], KEY)


# ---- batches that are none -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (torch.rand(4, 1, 4, 4), [0, 1, 2, 0], TypeError, "two tensors: got Tensor and list"),
        (torch.zeros(4, 1, 4, 4).long(), torch.zeros(4).long(), TypeError, "float dtype, or uint8: got torch.int64"),
        (torch.rand(4, 16), torch.zeros(4).long(), ValueError, r"shape \[B, C, H, W\]: got \[4, 16\]"),
        (torch.rand(4, 1, 4, 4), torch.zeros(3).long(), ValueError, "got 3 for 4 images"),
        (torch.rand(4, 1, 4, 4), torch.full((4,), 3), ValueError, "label 3 is outside num_classes=3"),
        (torch.rand(4, 1, 4, 4), torch.full((4,), -1), ValueError, "label -1 .* no label, leave such samples out"),
        (torch.rand(4, 1, 4, 4), torch.full((4, 3), 0.5), ValueError, "row 0 sums to 1.5"),
        (torch.rand(4, 1, 4, 4), torch.rand(4), ValueError, r"soft labels need shape \[B, 3\]"),
    ],
)
def test_bad_batches(mixer, images, labels, error, message):
    with pytest.raises(error, match=message):
        mixer().blend(images, labels, KEY)


def test_more_classes_than_the_bank(mixer, batch):
    assert mixer(num_classes=7).blend(*batch, KEY)[1].shape == (12, 7)


class Accelerated(LinearGenerator):
    """Says that it lives on an accelerator."""

    @property
    def device(self):
        return torch.device("meta")


def test_a_worker_does_not_decode_on_an_accelerator(toy_bank, monkeypatch):
    mixer = Mixer(Accelerated(), toy_bank, MixSettings())
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: object())
    rows = torch.tensor([0])
    with pytest.raises(RuntimeError, match="a DataLoader worker cannot decode on meta: use LatentMixupLoader"):
        mixer.decode(Draw.alone(rows))


def test_a_policy_by_name_brings_its_share():
    robust, paper = MixSettings(policy="robust"), MixSettings(policy="paper")
    assert (robust.policy, robust.prob) == (NAMED["robust"].policy, 0.2)
    assert (paper.policy, paper.prob) == (Policy(weights=Beta(1.0, "batch")), 1.0)
    assert MixSettings(policy="robust", prob=0.7).prob == 0.7
    assert MixSettings(policy=robust.policy).prob == MixSettings().prob == 1.0
    with pytest.raises(ValueError, match="no policy is called 'rebust': expected one of paper, robust, or a Policy"):
        MixSettings(policy="rebust")
    with pytest.raises(ValueError, match="alpha, mode and path are parts of a policy"):
        MixSettings(policy="robust", alpha=0.3)


def test_decoded_images_carry_no_gradient():
    generator = LinearGenerator().requires_grad_(True)  # as its owner may leave it
    latents = torch.zeros(2, *generator.latent_shape, requires_grad=True)
    assert not Decoder(generator)(latents).requires_grad


def test_a_low_pass_is_applied_to_what_is_decoded(mixer, batch):
    low_pass = LowPass(1.0, 1.0)
    plain, same = mixer(policy=Policy(unmixed=1.0)).blend(*batch, KEY)
    images, targets = mixer(policy=Policy(unmixed=1.0, low_pass=low_pass)).blend(*batch, KEY)
    assert targets.equal(same)
    torch.testing.assert_close(images, low_pass(plain, torch.ones(len(plain))))
    assert not torch.allclose(images, plain, atol=1e-3)
