"""``fit``: any images in; a generator, a bank and a check out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset

import latent_mixup as lm
from latent_mixup.fitting import stages
from latent_mixup.fitting.images import MIN_IMAGES, look, prepare
from latent_mixup.images import from_uint8
from latent_mixup.quality import code_check
from latent_mixup.sampling import keyed_generator

QUICK = {"steps": 3, "inversion_steps": 2, "progress": False}


class Photos(Dataset):
    """Colour photos of two kinds, wide ones: a bright half to the left, or above."""

    classes = ("left", "above")

    def __init__(self, n=MIN_IMAGES, size=(20, 26), *, grey=False, labelled=True, seed=0):
        draw = keyed_generator("test-photos", seed)
        self.data = torch.randint(0, 60, (n, *size, 3), generator=draw, dtype=torch.uint8)
        self.targets = (torch.arange(n) % 2).tolist() if labelled else [-1] * n
        for k, image in enumerate(self.data):
            half = image[:, : size[1] // 2] if k % 2 == 0 else image[: size[0] // 2]
            half += torch.randint(100, 190, (1 if grey else 3,), generator=draw, dtype=torch.uint8)
        if grey:
            self.data = self.data[..., :1].expand(-1, -1, -1, 3)
        self.broken = set()

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        if index in self.broken:
            raise OSError("cannot identify image file")
        return Image.fromarray(self.data[index].contiguous().numpy()), self.targets[index]


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    with pytest.MonkeyPatch.context() as patch:
        small = {128: {"z_dim": 8, "width": 8, "detail": 4, "flow_width": 16}}
        patch.setattr(stages, "NETWORKS", {1: small, 3: small})
        patch.setattr(code_check, "JUDGE_STEPS", 4)
        patch.setattr(code_check, "LEAST_JUDGE_STEPS", 4)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out, said = tmp_path_factory.mktemp("fit") / "run", []
    generator, bank = lm.fit(Photos(), out, tell=said.append, **QUICK)
    return out, generator, bank, "\n".join(said)


def test_a_run_gives_a_generator_and_a_bank_of_all_images(run):
    out, generator, bank, _ = run
    assert (generator.img_channels, generator.img_resolution) == (3, 16)
    assert bank.labels.tolist() == Photos().targets
    assert bank.source_index.tolist() == list(range(MIN_IMAGES))
    again, codes = lm.load(out)
    assert again.digest() == generator.digest()
    assert codes.digest() == bank.digest()
    assert lm.load_generator(str(out)).digest() == generator.digest()


def test_labels_of_several_classes_are_kept_and_the_check_does_without(tmp_path):
    photos, said = Photos(), []
    photos.targets = [[1, index % 2, index % 3 == 0, 0] for index in range(len(photos))]
    photos.classes = ("a", "b", "c", "d")
    _, bank = lm.fit(photos, tmp_path / "run", multi_label=True, tell=said.append, **QUICK)
    assert bank.multi_label
    assert torch.equal(bank.labels, torch.tensor(photos.targets).float())
    assert json.loads((tmp_path / "run" / "quality.json").read_text()).get("probe") is None
    assert "LatentMixupLoader(loader, generator, bank, prob=0.5, multi_label=True)" in "\n".join(said)


def test_it_says_what_it_did_and_what_to_paste(run):
    out, _, _, said = run
    assert "500 images, RGB, 16 x 16 px (they were 20 to 20 x 26 to 26 px: resized, and cropped" in said
    assert f'generator, bank = lm.load("{out}")' in said
    assert json.loads((out / "quality.json").read_text())
    with Image.open(out / "fit.png") as page:
        assert page.height > 10 * 2 * 16


@pytest.mark.filterwarnings("ignore::latent_mixup.images.RangeMismatchWarning")  # three steps of training
def test_the_lines_to_paste_run(run):
    out, *_ = run
    images = [(from_uint8(image), label) for image, label in prepared(Photos(), out)]
    generator, bank = lm.load(out)
    loader = torch.utils.data.DataLoader(images, batch_size=8)
    mixed, targets = next(iter(lm.LatentMixupLoader(loader, generator, bank.subset(slice(None)), prob=0.5)))
    assert mixed.shape == (8, 3, 16, 16)
    assert torch.allclose(targets.sum(1), torch.ones(8))


def prepared(dataset, out):
    return prepare(dataset, look(dataset), Path(out) / "images", progress=False)


def test_a_second_call_changes_nothing(run):
    out, generator, bank, _ = run
    before = content(out)
    again, codes = lm.fit(Photos(), out, **QUICK)
    assert (again.digest(), codes.digest()) == (generator.digest(), bank.digest())
    assert content(out) == before


def test_images_are_read_as_invert_reads_them(tmp_path):
    photos = Photos(size=(16, 16))
    images = prepared(photos, tmp_path)
    assert torch.equal(images.images, photos.data.permute(0, 3, 1, 2))
    assert not look(photos).changes


def test_torchs_random_state_stays(tmp_path):
    before = torch.get_rng_state()
    lm.fit(Photos(), tmp_path / "run", **QUICK)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_settings_are_not_guessed(run, tmp_path):
    (tmp_path / "fit.json").write_text('{"size": 16, "wrong": 1}')
    with pytest.raises(ValueError, match="is not the settings of a run"):
        lm.fit(Photos(), tmp_path, **QUICK)


def test_grey_photos_need_no_colours(tmp_path):
    photos = Photos(grey=True, size=(28, 28))
    images = prepared(photos, tmp_path)
    assert images.images.shape == (MIN_IMAGES, 1, 28, 28)


@pytest.mark.parametrize(("shape", "size"), [((28, 28), 28), ((40, 33), 32), ((500, 300), 64), ((12, 12), 16)])
def test_the_size_comes_from_the_images(shape, size):
    assert look(Photos(size=shape)).size == size
    assert look(Photos(size=shape), 128).size == 128


def test_unreadable_images_are_left_out_and_named(tmp_path):
    photos = Photos()
    photos.broken = {3, 77}
    with pytest.warns(
        UserWarning, match=r"2 of 500 images cannot be read; the first, image 3: OSError: cannot identify"
    ):
        _, bank = lm.fit(photos, tmp_path / "run", **QUICK)
    assert bank.source_index.tolist() == [k for k in range(MIN_IMAGES) if k not in (3, 77)]


def test_without_labels_it_works_as_well(tmp_path):
    said = []
    _, bank = lm.fit(Photos(labelled=False), tmp_path / "run", tell=said.append, **QUICK)
    assert set(bank.labels.tolist()) == {-1}
    assert "sample_latents" in "\n".join(said)


def one_colour(photos):
    photos.data[:] = 200


def mostly_broken(photos):
    photos.broken = set(range(0, MIN_IMAGES - 1))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (one_colour, "every image is of one colour, 200 of 255"),
        (mostly_broken, r"none of .* can be read|more than half"),
    ],
)
def test_images_that_nothing_can_be_learnt_from(tmp_path, spoil, message):
    photos = Photos()
    spoil(photos)
    with pytest.raises(ValueError, match=message):
        lm.fit(photos, tmp_path / "run", **QUICK)


def test_too_few_images_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="a generator needs 500 images or more to learn from: got 499"):
        lm.fit(Subset(Photos(), range(499)), tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dataset": Photos(seed=1)}, "holds a run with other settings"),
        ({"dataset": Photos(n=501)}, "holds a run with other settings"),
        ({"steps": 4}, "holds a run with steps 3, now 4"),
        ({"seed": 5}, "holds a run with seed 0, now 5"),
        ({"size": 28}, "holds a run with other settings"),
        ({"minutes": 3.0}, "minutes needs to be above 0, without steps"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(run, changed, message):
    with pytest.raises(ValueError, match=message):
        lm.fit(**{"dataset": Photos(), "out": run[0], **QUICK, **changed})


def test_minutes_decide_the_steps_once(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "train_conv", stop_before_training)
    monkeypatch.setattr(stages, "_seconds", lambda step: 1 / 600)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            lm.fit(Photos(), tmp_path / "run", minutes=0.5, progress=False)
        first = json.loads((tmp_path / "run" / "fit.json").read_text())
        monkeypatch.setattr(stages, "_seconds", None)  # it is not measured again
    assert (first["steps"], first["prior_steps"]) == (210 * 60 - 200, 200)  # 21 seconds at 1/600 second a step


def stop_before_training(*_, **__):
    raise KeyboardInterrupt


def test_codes_that_cannot_be_checked_are_kept(tmp_path):
    """Two classes of three images each: too few to examine, and the others have no label."""
    photos, said = Photos(labelled=False), []
    photos.targets[:6] = [0, 0, 0, 1, 1, 1]
    _, bank = lm.fit(photos, tmp_path / "run", tell=said.append, **QUICK)
    assert len(bank) == len(photos)
    assert "these codes could not be checked: a check needs 200 rows" in said[-1]
    assert "could not be checked" in json.loads((tmp_path / "run" / "quality.json").read_text())["error"]


@pytest.mark.parametrize(("images", "steps"), [(500, 1_500), (2_000, 2_343), (50_000, 6_000)])
def test_steps_follow_the_number_of_images(images, steps):
    assert stages.steps_for(images) == steps


def test_few_images_are_inverted_and_many_are_encoded():
    assert stages.inversion_steps_for(2_000, 30_000_000) > 20
    assert stages.inversion_steps_for(1_000_000, 30_000_000) == 0


@pytest.mark.parametrize("stage", ["prepare", "train_conv", "invert", "check_codes", "draw_page"])
def test_a_run_stopped_after_any_stage_gives_the_same_bytes(run, tmp_path, monkeypatch, stage):
    out = tmp_path / run[0].name
    real = getattr(stages, stage)

    def stops(*args, **kwargs):
        real(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, stage, stops)
    with pytest.raises(KeyboardInterrupt):
        lm.fit(Photos(), out, **QUICK)
    monkeypatch.setattr(stages, stage, real)
    lm.fit(Photos(), out, **QUICK)
    assert content(out) == content(run[0])


def content(out):
    """Name => bytes of all files but the log, which has seconds."""
    found = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if path.name != "log.json"}
