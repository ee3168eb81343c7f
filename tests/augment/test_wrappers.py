"""Laws that hold for the data set, the collate function and the loader alike."""

from __future__ import annotations

import inspect
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import LabelledImages, LinearGenerator, SoftImages, one_hot_bank, with_labels
from speed.calls import count_calls
from systems import WORKERS
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset, default_collate, random_split

import latent_mixup as lm
from latent_mixup import LatentMixupCollate, LatentMixupDataset, LatentMixupLoader, mixup_criterion
from latent_mixup.augment.base import DEFAULTS
from latent_mixup.bundled import BundledImages
from latent_mixup.images import RangeMismatchWarning, from_uint8
from latent_mixup.policies import Nearest, Policy, SameClass

WRAPPERS = ["dataset", "collate", "loader"]
NEAR = Policy(partners=Nearest(2, SameClass(nearest=4)))


@pytest.fixture(params=WRAPPERS)
def wrap(request, toy_dataset, linear_generator, toy_bank):
    """Batches of one of the three wrappers around a data set."""

    def make(data=None, bank=None, batch_size=8, workers=0, generator=None, **settings):
        data, bank, settings = data or toy_dataset, bank or toy_bank, {"seed": 0, **settings}
        generator = generator or linear_generator
        options = {"num_workers": workers, "multiprocessing_context": WORKERS if workers else None}
        if request.param == "dataset":
            return DataLoader(LatentMixupDataset(data, generator, bank, **settings), batch_size, **options)
        if request.param == "collate":
            collate = LatentMixupCollate(generator, bank, dataset=data, **settings)
            return DataLoader(data, batch_size, collate_fn=collate, **options)
        return LatentMixupLoader(DataLoader(data, batch_size, **options), generator, bank, **settings)

    return make


def pull(batches):
    """Images and targets of a pass, each in one tensor."""
    images, targets = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(targets)


def of_class(dataset, label):
    """The samples of one class, as a ``Subset``."""
    return Subset(dataset, (dataset.labels == label).nonzero()[:, 0].tolist())


# ---- the method ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_batches_of_any_size(wrap, batch_size):
    for images, targets in wrap(batch_size=batch_size, prob=0.5, label_smoothing=0.1):
        assert images.shape[1:] == (1, 4, 4)
        assert (targets.shape, targets.dtype) == ((len(images), 3), torch.float32)
        torch.testing.assert_close(targets.sum(1), torch.ones(len(images)))


def test_prob_zero_is_the_data_set(wrap, toy_dataset):
    images, targets = pull(wrap(prob=0.0, label_smoothing=0.3))
    assert torch.equal(images, toy_dataset.images)
    torch.testing.assert_close(targets, F.one_hot(toy_dataset.labels, 3) * 0.7 + 0.1)


def test_pair_and_soft_are_one_loss(wrap):
    for (images, soft), (same, (y_a, y_b, lam)) in zip(
        wrap(prob=0.5), wrap(prob=0.5, target_format="pair"), strict=True
    ):
        logits = images.flatten(1)[:, :3]
        assert torch.equal(images, same)
        assert lam.dtype == torch.float32
        loss = mixup_criterion(F.cross_entropy, logits, y_a, y_b, lam)
        torch.testing.assert_close(loss, F.cross_entropy(logits, soft))


@pytest.mark.parametrize("soft_rows", [False, True])
@pytest.mark.parametrize("settings", [{}, {"prob": 0.5, "label_smoothing": 0.1}], ids=str)
def test_one_hot_rows_do_what_class_indices_do(wrap, toy_dataset, toy_bank, soft_rows, settings):
    rows = SoftImages(toy_dataset.images, F.one_hot(toy_dataset.labels, 3).float())
    found = pull(wrap(rows if soft_rows else toy_dataset, one_hot_bank(toy_bank), **settings))
    assert all(map(torch.equal, found, pull(wrap(**settings))))


def test_soft_samples_are_mixed_or_come_through_as_they_are(wrap, soft_dataset, soft_bank):
    soft, pairs = (wrap(soft_dataset, soft_bank, prob=0.5, target_format=form) for form in ("soft", "pair"))
    kept = 0
    for (images, targets), (_, (y_a, y_b, lam)), real, labels in zip(
        soft, pairs, soft_dataset.images.split(8), soft_dataset.labels.split(8), strict=True
    ):
        own = (images == real).flatten(1).all(1)
        kept += int(own.sum())
        assert torch.equal(targets[own], labels[own])
        torch.testing.assert_close(lam[:, None] * y_a + (1 - lam[:, None]) * y_b, targets)
    assert 15 < kept < 35


def test_images_can_be_trained_on(wrap):
    images, targets = next(iter(wrap()))
    weight = torch.zeros(16, 3, requires_grad=True)
    F.cross_entropy(images.flatten(1) @ weight, targets).backward()
    assert weight.grad.abs().sum() > 0


# ---- random draws ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{"prob": 0.7}, {"prob": {0: 0.9, 2: 0.5}, "policy": NEAR}], ids=["plain", "named"]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_seed_names_the_draws(wrap, workers, settings, monkeypatch):
    first = pull(wrap(**settings))
    assert all(map(torch.equal, pull(wrap(**settings, workers=workers)), first))
    assert not torch.equal(pull(wrap(**settings, seed=1, workers=workers))[0], first[0])
    monkeypatch.setenv("RANK", "1")
    assert not torch.equal(pull(wrap(**settings, workers=workers))[0], first[0])
    assert torch.equal(pull(wrap(**settings, rank=0, workers=workers))[0], first[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_without_a_seed_every_pass_draws_anew_and_manual_seed_repeats_it(wrap, workers):
    batches = wrap(seed=None, workers=workers)
    torch.manual_seed(7)
    passes = [pull(batches)[1] for _ in range(3)]
    assert not any(torch.equal(passes[i], passes[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    again = wrap(seed=None, workers=workers)
    torch.manual_seed(7)
    assert torch.equal(pull(again)[1], passes[0])


def test_ranks_without_a_seed_differ(wrap, monkeypatch):
    draws = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        batches = wrap(seed=None)
        torch.manual_seed(7)
        draws.append(pull(batches)[1])
    assert not torch.equal(*draws)


def test_with_a_seed_global_random_states_are_untouched(wrap, toy_dataset):
    before = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    torch.manual_seed(3)
    pull(DataLoader(toy_dataset, 8))  # a DataLoader draws a seed for its workers
    expected = torch.get_rng_state()
    torch.manual_seed(3)
    pull(wrap(prob=0.5))
    assert torch.equal(torch.get_rng_state(), expected)
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


# ---- only images that are trained on are mixed -----------------------------------------------------


SPLITS = {
    "a subset": lambda data: of_class(data, 0),
    "a subset of a subset": lambda data: Subset(Subset(data, range(0, 45)), range(0, 45, 3)),
    "parts of two": lambda data: ConcatDataset([Subset(data, range(0, 21, 3)), Subset(data, range(21, 50, 3))]),
    "a random split": lambda data: random_split(of_class(data, 0), [10, 7], torch.Generator().manual_seed(0))[0],
}


@pytest.mark.parametrize("split", SPLITS)
def test_images_outside_of_a_split_are_never_mixed(wrap, toy_dataset, split):
    data = SPLITS[split](toy_dataset)
    for settings in ({}, {"prob": 0.5}, {"seed": None}, {"prob": {0: 0.5}}, {"policy": NEAR}):
        _, targets = pull(wrap(data, **settings))
        assert torch.equal(targets, F.one_hot(torch.zeros(len(data), dtype=torch.int64), 3).float())
    inside = torch.stack([image for image, _ in data]).flatten(1)
    if len(data) < 16:  # fewer than dimensions: their mixes are no others'
        mixes = pull(wrap(data))[0].flatten(1)
        weights = torch.linalg.lstsq(inside.T.double(), mixes.T.double()).solution
        torch.testing.assert_close(inside.T.double() @ weights, mixes.T.double(), atol=1e-5, rtol=0)
        torch.testing.assert_close(weights.sum(0), torch.ones(len(mixes), dtype=torch.float64), atol=1e-4, rtol=0)


def test_other_labels_than_the_banks_are_an_error(wrap, toy_dataset):
    for labels in ((toy_dataset.labels + 1) % 3, toy_dataset.labels.clamp(max=1)):
        with pytest.raises(ValueError, match=r"has label \d in the data set and \d in the bank"):
            wrap(LabelledImages(toy_dataset.images, labels))


def test_images_of_another_data_set_are_an_error(wrap, toy_dataset):
    others = torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(9)) * 2 - 1
    with pytest.raises(ValueError, match="image"):
        wrap(LabelledImages(others, toy_dataset.labels))


def test_a_part_without_codes_is_an_error(wrap, toy_dataset, toy_bank):
    with pytest.raises(ValueError, match="bank"):
        wrap(Subset(toy_dataset, range(40, 50)), toy_bank.subset(range(40)))


# ---- what is refused or said -----------------------------------------------------------------------


def test_rows_without_a_label_are_refused(wrap, toy_dataset, unlabelled_bank):
    with pytest.raises(ValueError, match=r"rows have no label.*bank.subset\(bank.labels >= 0\)"):
        wrap(LabelledImages(toy_dataset.images, unlabelled_bank.labels), unlabelled_bank)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_another_range_is_said_once(wrap, toy_dataset, batch_size):
    unit = LabelledImages((toy_dataset.images + 1) / 2, toy_dataset.labels)
    batches = wrap(unit, batch_size=batch_size, prob=0.5)
    with pytest.warns(RangeMismatchWarning, match=r"transform=v2.Normalize\(mean=\[-1\], std=\[2\]\)") as caught:
        pull(batches)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"aplha": 0.4}, TypeError, "there is no keyword 'aplha': did you mean 'alpha'?"),
        ({"prob": "0.5"}, TypeError, "prob needs to be a number: got '0.5'"),
        ({"seed": 1.5}, TypeError, "seed needs to be an integer: got 1.5"),
        ({"seed": "1"}, TypeError, "seed needs to be an integer: got '1'"),
        ({"policy": 3}, TypeError, "policy needs to be a Policy or the name of one: got int"),
        ({"label_smoothing": None}, TypeError, "label_smoothing needs to be a number: got None"),
    ],
)
def test_settings_of_another_type(wrap, settings, error, message):
    with pytest.raises(error, match=message.replace("?", r"\?")):
        wrap(**settings)


def refusals(generator, bank, data):
    loader = DataLoader(data, 8)
    mixed = LatentMixupLoader(loader, generator, bank)
    yield lambda: LatentMixupCollate(bank, generator), "generator and bank have changed places"
    yield (
        lambda: LatentMixupCollate(generator),
        "bank needs to be a LatentBank: got NoneType; .* a name in the place of",
    )
    yield lambda: LatentMixupCollate(torch.nn.Linear(2, 2), bank), r"got Linear; wrap it: .*generators.wrap\("
    yield lambda: LatentMixupCollate(None, bank), "a Generator is wanted: got NoneType"
    yield (
        lambda: LatentMixupCollate(generator, [1]),
        "bank needs to be a LatentBank: got list; latent_mixup.invert makes",
    )
    yield (
        lambda: LatentMixupCollate(generator, bank, dataset=loader),
        "got DataLoader; pass its data set, loader.dataset",
    )
    yield lambda: LatentMixupDataset(loader, generator, bank), "got DataLoader; pass its data set, loader.dataset"
    yield lambda: LatentMixupDataset(mixed, generator, bank), "got LatentMixupLoader; pass its data set, loader.dataset"
    yield lambda: LatentMixupDataset("mnist", generator, bank), "got the string 'mnist'"
    yield lambda: LatentMixupDataset(generator, bank, data), "a Generator is wanted: got LatentBank"
    yield lambda: LatentMixupLoader(data, generator, bank), r"got the data set LabelledImages; wrap it .*DataLoader\("
    yield lambda: LatentMixupLoader("mnist", generator, bank), "got the string 'mnist'"
    yield lambda: LatentMixupLoader(generator, bank, loader), "loader needs to be a DataLoader.*: got "
    yield lambda: LatentMixupLoader(loader, bank, generator), "generator and bank have changed places"


def test_arguments_of_another_kind_are_told_apart(linear_generator, toy_bank, toy_dataset):
    for call, message in refusals(linear_generator, toy_bank, toy_dataset):
        with pytest.raises(TypeError, match=message):
            call()


class Accelerated(LinearGenerator):
    """Says, once it is moved, that it lives on an accelerator."""

    moved = False

    @property
    def device(self):
        return torch.device("meta" if self.moved else "cpu")


@pytest.mark.parametrize("kind", ["dataset", "collate"])
def test_a_worker_does_not_decode_on_an_accelerator(kind, toy_dataset, toy_bank):
    generator = Accelerated()
    if kind == "dataset":
        loader = DataLoader(LatentMixupDataset(toy_dataset, generator, toy_bank), 8, num_workers=1)
    else:
        collate = LatentMixupCollate(generator, toy_bank, dataset=toy_dataset)
        loader = DataLoader(toy_dataset, 8, collate_fn=collate, num_workers=1)
    generator.moved = True
    with pytest.raises(RuntimeError, match="a DataLoader worker cannot decode on meta: use LatentMixupLoader"):
        list(loader)


# ---- the caller's modes ----------------------------------------------------------------------------


def test_made_or_used_in_inference_mode(wrap):
    expected = pull(wrap())
    with torch.inference_mode():
        made = wrap()
        inside = pull(wrap())
    for found in (inside, pull(made)):
        assert all(map(torch.equal, found, expected))
    weight = torch.zeros(16, 3, requires_grad=True)
    F.cross_entropy(next(iter(made))[0].flatten(1) @ weight, torch.zeros(8, dtype=torch.int64)).backward()


@pytest.mark.parametrize("settings", [{}, {"prob": 0.5}, {"target_format": "pair", "prob": 0.5}], ids=str)
@pytest.mark.parametrize("kind", WRAPPERS)
def test_default_device_and_dtype_change_nothing(kind, toy_dataset, linear_generator, toy_bank, settings):
    def batch():
        options = {"seed": 0, **settings}
        if kind == "dataset":
            return default_collate(
                LatentMixupDataset(toy_dataset, linear_generator, toy_bank, **options).__getitems__(range(12))
            )
        given = toy_dataset.images[:12], toy_dataset.labels[:12]
        if kind == "collate":
            return LatentMixupCollate(linear_generator, toy_bank, dataset=toy_dataset, **options)(*given)
        return next(iter(LatentMixupLoader([given], linear_generator, toy_bank, dataset=toy_dataset, **options)))

    expected, found = flat(batch()), []
    for dtype in (torch.float64, torch.float16):
        torch.set_default_dtype(dtype)
        try:
            found.append(flat(batch()))
        finally:
            torch.set_default_dtype(torch.float32)
    with torch.device("meta"):  # stands for an accelerator
        found.append(flat(batch()))
    for parts in found:
        assert [part.dtype for part in parts] == [part.dtype for part in expected]
        assert all(map(torch.equal, parts, expected))


def flat(batch):
    """Images and targets, the parts of a pair one by one."""
    return [batch[0], *(batch[1] if isinstance(batch[1], tuple | list) else [batch[1]])]


def test_labels_of_a_tensor_data_set(wrap, toy_dataset, toy_bank):
    found = pull(wrap(TensorDataset(toy_dataset.images, toy_dataset.labels), with_labels(toy_bank, toy_bank.labels)))
    assert all(map(torch.equal, found, pull(wrap())))


# ---- how far it is from a wrapper to a batch -------------------------------------------------------


@pytest.mark.parametrize("wrapper", [LatentMixupDataset, LatentMixupCollate, LatentMixupLoader])
def test_help_shows_every_shared_keyword_with_its_default(wrapper):
    shown = inspect.signature(wrapper).parameters
    for name, default in DEFAULTS.items():
        assert shown[name].default == default
        assert f"        {name}: " in wrapper.__doc__
    assert "shared" not in shown


def test_one_name_stands_for_generator_and_bank():
    images = BundledImages("mnist")
    batch = [images[i] for i in range(8)]
    loader = DataLoader(images, 8)
    wrapped = {
        "by name": ("mnist",),
        "by two": ("mnist", "mnist"),
        "objects": lm.load("mnist"),
    }
    for make in (
        lambda *pair: LatentMixupCollate(*pair, dataset=images, seed=0)(batch)[0],
        lambda *pair: LatentMixupDataset(images, *pair, seed=0)[3][0],
        lambda *pair: next(iter(LatentMixupLoader(loader, *pair, seed=0)))[0],
    ):
        found = {how: make(*pair) for how, pair in wrapped.items()}
        assert torch.equal(found["by name"], found["objects"])
        assert torch.equal(found["by two"], found["objects"])


def test_a_name_of_another_pair_is_refused(toy_bank):
    with pytest.raises(ValueError, match="codes"):
        LatentMixupCollate("mnist", toy_bank.subset(slice(None)))
    with pytest.raises(FileNotFoundError, match="no bank is called 'mnits'"):
        LatentMixupCollate("mnits")


def test_a_batch_goes_through_few_files_and_calls():
    generator, bank = lm.load("fashion-mnist")
    images = BundledImages("fashion-mnist")
    batch = from_uint8(images.data[:64]), images.targets[:64]
    settings = {"prob": 0.5, "seed": 0, "prefetch": 0, "decode_batches": 1}
    found = count_calls(LatentMixupLoader([batch, batch], generator, bank, dataset=images, **settings))
    assert len(found) <= 8
    assert sum(sum(functions.values()) for functions in found.values()) <= 60
