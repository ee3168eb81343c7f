import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import v2

from latent_mixup.augment import LatentMixupCollate, SplitWarning


@pytest.fixture
def collate(linear_generator, toy_bank, toy_dataset):
    def make(**settings):
        return LatentMixupCollate(linear_generator, toy_bank, **{"dataset": toy_dataset, "seed": 0, **settings})

    return make


def pull(dataset, collate, **options):
    batches = list(DataLoader(dataset, 8, collate_fn=collate, **options))
    return torch.cat([images for images, _ in batches]), torch.cat([targets for _, targets in batches])


def test_half_of_each_batch_is_real(collate, toy_dataset):
    images, _ = next(iter(DataLoader(toy_dataset, 8, collate_fn=collate(prob=0.5))))
    assert (images == toy_dataset.images[:8]).flatten(1).all(1).sum() == 4


def test_pair(collate, toy_dataset):
    _, (y_a, y_b, lam) = next(iter(DataLoader(toy_dataset, 8, collate_fn=collate(target_format="pair"))))
    assert y_a.shape == y_b.shape == lam.shape == (8,)


def test_batches_epochs_ranks_and_seeds_differ(collate, toy_dataset, monkeypatch):
    samples = [[toy_dataset[i] for i in range(start, start + 8)] for start in (0, 8)]
    mixup = collate()
    draws = [mixup(samples[0])[1], mixup(samples[1])[1], collate(seed=1)(samples[0])[1]]
    mixup.set_epoch(1)
    draws.append(mixup(samples[0])[1])
    mixup.set_epoch(1)
    monkeypatch.setenv("RANK", "1")
    draws.append(mixup(samples[0])[1])
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 5
    monkeypatch.delenv("RANK")
    mixup.set_epoch(0)
    assert torch.equal(mixup(samples[0])[1], draws[0])


def test_set_epoch_reaches_persistent_workers(collate, toy_dataset):
    mixup = collate()
    loader = DataLoader(toy_dataset, 8, collate_fn=mixup, num_workers=1, persistent_workers=True)
    for epoch in (0, 3, 0):
        mixup.set_epoch(epoch)
        found = torch.cat([targets for _, targets in loader])
        mixup.set_epoch(epoch)
        assert torch.equal(found, pull(toy_dataset, mixup)[1])


def test_after_another_mixup(collate, toy_dataset):
    def mixup(samples):
        return v2.MixUp(num_classes=3)(*default_collate(samples))

    with torch.random.fork_rng(devices=[]):
        _, targets = pull(toy_dataset, collate(collate_fn=mixup, prob=0.5))
    torch.testing.assert_close(targets.sum(1), torch.ones(50))


def test_bad_batches(collate, toy_dataset):
    with pytest.raises(TypeError, match=r"sample 0 needs images and labels: got a dict of \['image'\]"):
        collate()([{"image": torch.zeros(1, 4, 4)}])
    with pytest.raises(TypeError, match=r"a label needs to be an int, or soft, .*: got str"):
        collate()([(torch.zeros(1, 4, 4), "shirt")])
    with pytest.raises(ValueError, match=r"sample 0: a soft label needs numbers from 0 that sum to 1: it sums to 1.1"):
        collate()([(torch.zeros(1, 4, 4), [0.5, 0.6, 0.0])])
    with pytest.raises(ValueError, match="label 3 is outside num_classes=3"):
        collate()([(torch.zeros(1, 4, 4), 3)])


@pytest.mark.parametrize("count", [1, 3, 5])  # as many samples as classes among them
@pytest.mark.filterwarnings("ignore::latent_mixup.images.RangeMismatchWarning")
def test_labels_in_lists_are_those_of_the_samples_after_torchs_collate_as_well(collate, count):
    labels = [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.25, 0.0, 0.75], [1.0, 0.0, 0.0], [0.0, 0.5, 0.5]][:count]
    samples = [(torch.zeros(1, 4, 4), label) for label in labels]
    for collate_fn in (None, default_collate):
        assert collate(collate_fn=collate_fn, prob=0.0)(samples)[1].tolist() == labels


class Own:
    """A sample of somebody's own class."""

    def __init__(self, image, label) -> None:
        self.image, self.label = image, label


def test_a_collate_function_of_the_users_gets_samples_of_any_class(collate, toy_dataset):
    samples = [Own(*toy_dataset[index]) for index in range(8)]

    def stack(samples):
        return torch.stack([each.image for each in samples]), torch.tensor([each.label for each in samples])

    assert collate(collate_fn=stack, prob=0.0)(samples)[0].equal(toy_dataset.images[:8])


def test_a_batch_that_comes_twice_is_drawn_anew_or_it_is_said(collate, toy_dataset):
    batch = toy_dataset.images[:8], toy_dataset.labels[:8]
    anew, named = collate(seed=None), collate()
    assert not torch.equal(anew(*batch)[0], anew(*batch)[0])
    first = named(*batch)[0]
    with pytest.warns(UserWarning, match="epoch 0 is drawn a second time.*call set_epoch") as caught:
        assert torch.equal(named(*batch)[0], first)
    assert caught[0].filename == __file__
    named(*batch)  # once
    named.set_epoch(1)
    assert not torch.equal(named(*batch)[0], first)


def test_without_a_data_set_any_row_is_mixed_and_it_is_said_once(linear_generator, toy_bank, toy_dataset):
    with pytest.warns(SplitWarning, match=r"dataset=train_set, or bank.subset\(bank.rows_for\(train_set\)\)"):
        mixup = LatentMixupCollate(linear_generator, toy_bank)
    for start in (0, 8):
        mixup(toy_dataset.images[start : start + 8], toy_dataset.labels[start : start + 8])


# ---- a transform of torchvision's ------------------------------------------------------------------


def batch_of(toy_dataset):
    return toy_dataset.images[:8], toy_dataset.labels[:8]


CONTAINERS = {
    "v2.Compose": lambda mixup: v2.Compose([mixup]),
    "v2.RandomApply": lambda mixup: v2.RandomApply([mixup], p=1.0),
    "v2.RandomChoice": lambda mixup: v2.RandomChoice([v2.CutMix(num_classes=3), mixup], p=[0, 1]),
    "nn.Sequential": lambda mixup: nn.Sequential(mixup),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers_give_what_it_gives(collate, toy_dataset, container):
    batch = batch_of(toy_dataset)
    expected = collate(prob=0.5)(*batch)
    calls = [lambda mixup: CONTAINERS[container](mixup)(batch)]  # one argument, which nn.Sequential alone takes
    if container != "nn.Sequential":
        calls.append(lambda mixup: CONTAINERS[container](mixup)(*batch))
    for call in calls:
        found = call(collate(prob=0.5))
        assert all(map(torch.equal, found, expected))
    if container != "nn.Sequential":
        *found, index = CONTAINERS[container](collate(prob=0.5))(*batch, 3)
        assert all(map(torch.equal, found, expected))
        assert index == 3
    named = {"image": batch[0], "label": batch[1], "id": 3}
    found = CONTAINERS[container](collate(prob=0.5))(named)
    assert torch.equal(found["image"], expected[0])
    assert torch.equal(found["label"], expected[1])
    assert found["id"] == 3


def test_a_random_choice_beside_cutmix(collate, toy_dataset):
    choice, seen = v2.RandomChoice([v2.CutMix(num_classes=3), collate(seed=None)]), set()
    for _ in range(20):
        _, targets = choice(*batch_of(toy_dataset))
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        seen.add(len(targets.unique(dim=0)) > 6)  # CutMix has one lam, and two classes a sample of three
    assert seen == {True, False}


def test_it_is_a_module_without_weights(collate):
    mixup = collate()
    assert isinstance(mixup, nn.Module)
    assert not [*mixup.parameters(), *mixup.buffers(), *mixup.state_dict()]
    model = nn.Sequential(mixup, nn.Flatten()).train()
    assert not mixup._mixer.decoder.generator.training
    assert "LatentMixupCollate(LinearGenerator, 50 rows of 3 classes, seed=0)" in repr(model)


def test_a_device_reaches_the_generator_and_a_dtype_does_not(collate):
    mixup = collate()
    generator = mixup._mixer.decoder.generator
    assert mixup.to("cpu") is mixup
    nn.Sequential(mixup).half()
    assert generator.basis.dtype == torch.float32
    nn.Sequential(mixup).to(torch.device("meta"), torch.float64)
    assert (generator.device.type, generator.basis.dtype) == ("meta", torch.float32)


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda mixup: pickle.loads(pickle.dumps(mixup))])  # noqa: S301
def test_a_copy_draws_alike_and_is_on_its_own(collate, toy_dataset, twin):
    mixup = collate()
    other = twin(mixup)
    mixup.set_epoch(5)
    loader = DataLoader(toy_dataset, 8, collate_fn=other, num_workers=1, persistent_workers=True)
    for epoch in (0, 3):
        other.set_epoch(epoch)
        found = torch.cat([targets for _, targets in loader])
        mixup.set_epoch(epoch)
        assert torch.equal(found, pull(toy_dataset, mixup)[1])
