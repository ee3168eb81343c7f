"""Pictures of mixes: what is shown is what comes next, and nothing moves."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from test_resuming import LOADERS, same
from torch.utils.data import DataLoader
from torchvision.transforms.functional import pil_to_tensor

from latent_mixup.augment import LatentMixupCollate, LatentMixupDataset, LatentMixupLoader, showing
from latent_mixup.augment import loader as loader_module
from latent_mixup.generators import wrap
from latent_mixup.images import RangeMismatchWarning, moments_of, normalized, to_uint8

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata calls it

ALL = {
    **LOADERS,
    "shuffled": lambda dataset: DataLoader(dataset, 4, shuffle=True),
    "its own generator": lambda dataset: DataLoader(
        dataset, 4, shuffle=True, generator=torch.Generator().manual_seed(5)
    ),
    "persistent workers": lambda dataset: DataLoader(dataset, 4, shuffle=True, num_workers=2, persistent_workers=True),
}


@pytest.fixture(params=ALL)
def make(request, toy_dataset, linear_generator, toy_bank):
    def make(**settings):
        inner = ALL[request.param](toy_dataset)
        return LatentMixupLoader(inner, linear_generator, toy_bank, dataset=toy_dataset, **{"prob": 0.5, **settings})

    return make


@pytest.fixture
def shown(monkeypatch):
    """``show`` gives the batch in the place of its picture."""
    monkeypatch.setattr(loader_module, "show_batch", lambda mixer, images, targets, caption: (images, targets))


def pixels(picture: Image.Image) -> torch.Tensor:
    return pil_to_tensor(picture.convert("RGB"))


# ---- loaders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("settings", [{"prefetch": 0}, {"prefetch": 4, "decode_batches": 2}], ids=str)
@pytest.mark.usefixtures("shown")
def test_showing_moves_nothing(make, seed, settings):
    def two_passes(show):
        torch.manual_seed(3)
        loader, given = make(seed=seed, **settings), []
        for epoch in range(2):
            if seed is not None:
                loader.set_epoch(epoch)
            for number, batch in enumerate(loader):
                if show and number in (0, 5):
                    before = loader.state_dict(), torch.get_rng_state()
                    loader.show()
                    assert loader.state_dict() == before[0]
                    assert torch.get_rng_state().equal(before[1])
                given.append(batch)
            if show:
                loader.show()
        return given

    same(two_passes(True), two_passes(False))


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.usefixtures("shown")
def test_the_batch_that_is_shown_is_the_next(make, seed):
    loader = make(seed=seed, prefetch=0, decode_batches=1)
    kept = getattr(loader.loader, "persistent_workers", False)  # torch then draws one number less from pass to pass
    for _ in range(1 if kept else 2):
        found = loader.show()
        same([found], [next(iter(loader))])


@pytest.mark.usefixtures("shown")
def test_a_loaded_state_is_gone_on_with(make):
    loader = make(seed=0)
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    resumed = make(seed=0)
    resumed.load_state_dict(loader.state_dict())
    found = resumed.show()
    same([found], [next(iter(resumed))])


def test_the_range_of_the_images_does_not_show(toy_dataset, linear_generator, toy_bank):
    def picture(images, **settings):
        batch = (images, toy_dataset.labels)
        loader = LatentMixupLoader([batch], linear_generator, toy_bank, dataset=toy_dataset, prob=0, seed=0, **settings)
        return pixels(loader.show()).int()

    images, normalize = toy_dataset.images, (0.3, 0.2)
    expected = picture(images)
    assert (picture(to_uint8(images)) - expected).abs().max() <= 1
    assert (picture(normalized(images, moments_of(normalize)), normalize=normalize) - expected).abs().max() <= 1
    wide = torch.cat([images[:1] * 0 + 3, images[:1] * 0 - 3, images[2:]])
    assert picture(wide).float().std() < expected.float().std()


def test_a_warning_is_left_to_the_training(toy_dataset, linear_generator, toy_bank):
    batch = (toy_dataset.images + 1) / 2, toy_dataset.labels
    loader = LatentMixupLoader([batch], linear_generator, toy_bank, dataset=toy_dataset, prob=0.5, prefetch=0)
    loader.show()
    with pytest.warns(RangeMismatchWarning):
        next(iter(loader))


def test_a_loader_in_other_forms_has_the_same_picture(toy_dataset, linear_generator, toy_bank):
    def picture(batch, **settings):
        loader = LatentMixupLoader([batch], linear_generator, toy_bank, dataset=toy_dataset, seed=0, **settings)
        return pixels(loader.show())

    images, labels = toy_dataset.images, toy_dataset.labels
    expected = picture((images, labels))
    assert picture({"image": images, "label": labels, "name": ["x"] * 50}).equal(expected)
    assert picture((images, labels), target_format="pair").equal(expected)
    assert not picture((images, labels), alpha=0.1).equal(expected)


def test_a_stream_that_can_be_read_only_once_is_left_alone(toy_dataset, linear_generator, toy_bank):
    batches = iter([(toy_dataset.images, toy_dataset.labels)])
    loader = LatentMixupLoader(batches, linear_generator, toy_bank, dataset=toy_dataset)
    with pytest.raises(TypeError, match="would use up a batch of this list_iterator"):
        loader.show()
    assert loader._repr_png_() is None
    assert len(list(loader)) == 1
    with pytest.raises(ValueError, match="the wrapped loader gives none"):
        LatentMixupLoader([], linear_generator, toy_bank, dataset=toy_dataset).show()


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (5, 5, 1), (12, 8, 1), (50, 8, 2)])
def test_small_batches_fit(toy_dataset, linear_generator, toy_bank, count, columns, rows):
    batch = toy_dataset.images[:count], toy_dataset.labels[:count]
    loader = LatentMixupLoader([batch], linear_generator, toy_bank, dataset=toy_dataset, prob=0)
    width, height = loader.show().size
    assert width // showing.IMAGE_WIDTH == columns + 1  # the caption takes as much
    assert height // showing.IMAGE_WIDTH == rows


# ---- classes below the images ----------------------------------------------------------------------


def test_notes_name_the_classes_by_weight(toy_dataset, linear_generator, toy_bank):
    toy_bank.metadata["classes"] = ["ant", "bee", "cat"]
    mixer = LatentMixupCollate(linear_generator, toy_bank, dataset=toy_dataset)._mixer
    targets = torch.tensor([[0.0, 1.0, 0.0], [0.3, 0.7, 0.0], [0.2, 0.3, 0.5]])
    assert showing._notes(mixer, targets) == ["bee", "0.70 bee\n0.30 ant", "0.50 cat\n0.30 bee\n0.20 ant"]
    smooth = LatentMixupCollate(linear_generator, toy_bank, dataset=toy_dataset, label_smoothing=0.3)._mixer
    assert showing._notes(smooth, torch.tensor([[0.1, 0.8, 0.1]])) == ["bee"]


# ---- the other wrappers ----------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", ["collate", "dataset"])
def test_mixes_come_from_a_stream_of_their_own(toy_dataset, linear_generator, toy_bank, wrapper):
    def make(**settings):
        if wrapper == "collate":
            return LatentMixupCollate(linear_generator, toy_bank, dataset=toy_dataset, **settings)
        return LatentMixupDataset(toy_dataset, linear_generator, toy_bank, **settings)

    mixes, before = make(), torch.get_rng_state()
    picture = pixels(mixes.show())
    assert torch.get_rng_state().equal(before)
    torch.rand(1)
    assert pixels(mixes.show()).equal(picture)
    assert pixels(Image.open(io.BytesIO(mixes._repr_png_()))).equal(picture)
    assert not pixels(make(alpha=0.1).show()).equal(picture)
    noisy = make(transform=lambda image: image + torch.rand_like(image))  # from torch's random state
    before = torch.get_rng_state()
    noisy.show()
    assert torch.get_rng_state().equal(before)


def test_odd_channels_have_no_picture(toy_bank):
    odd = wrap(lambda codes: codes.view(-1, 4, 2, 2).tanh(), latent_shape=(16,))
    mixes = LatentMixupCollate(odd, toy_bank.subset(slice(None)))
    with pytest.raises(ValueError, match="grey or RGB images: got 4 channels"):
        mixes.show()
    assert mixes._repr_png_() is None
    batch = torch.zeros(8, 4, 2, 2), torch.zeros(8, dtype=torch.int64)
    assert LatentMixupLoader([batch], odd, toy_bank.subset(slice(None)))._repr_png_() is None
