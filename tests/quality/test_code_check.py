"""The check of codes: generators of which the answer is known, partners, what it refuses, and what it concludes."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import LabelledImages
from torch.utils.data import Subset

from latent_mixup import LatentBank
from latent_mixup.generators import Generator, Linear, wrap
from latent_mixup.images import from_uint8
from latent_mixup.quality import check_codes, check_text
from latent_mixup.quality import code_check as module
from latent_mixup.quality.verdict import verdict

SIZE = 8
QUIET = {"progress": False, "draws": 1}


@pytest.fixture(autouse=True)
def quick_judge(monkeypatch):
    """A few steps tell these classes apart."""
    monkeypatch.setattr(module, "JUDGE_STEPS", 30)
    monkeypatch.setattr(module, "LEAST_JUDGE_STEPS", 30)


def pictures(n: int = 240, noise: float = 0.2) -> LabelledImages:
    """Three classes: a bright left half, a bright upper half, a bright middle; noise beside it; 8 bits."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    shapes = torch.full((3, 1, SIZE, SIZE), -0.4)
    shapes[0, :, :, :4] = shapes[1, :, :4] = shapes[2, :, 2:6, 2:6] = 0.4
    images = (shapes[labels] + noise * torch.randn(n, 1, SIZE, SIZE, generator=draw)).clamp(-1, 1)
    return LabelledImages(from_uint8(((images + 1) * 127.5).round().to(torch.uint8)), labels)


def pixels_as_codes(decode=lambda codes: codes) -> Generator:
    return wrap(
        lambda codes: decode(codes).view(-1, 1, SIZE, SIZE),
        latent_shape=(SIZE * SIZE,),
        latent_space="w",
        encoder=lambda images: images.flatten(1),
    )


def bank_of(dataset: LabelledImages, generator: Generator, **columns) -> LatentBank:
    return LatentBank(generator.encode(dataset.images), **{"labels": dataset.labels, **columns})


@pytest.fixture(scope="module")
def identity() -> dict:
    """The record of a generator whose codes are the pixels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "JUDGE_STEPS", 30)
        patch.setattr(module, "LEAST_JUDGE_STEPS", 30)
        data, generator = pictures(), pixels_as_codes()
        return check_codes(bank_of(data, generator), data, generator, **QUIET)


# ---- generators of which the answer is known -------------------------------------------------------


def test_pixels_as_codes_are_pixels_in_every_line(identity):
    assert identity["rows"] == {"examined": 120, "others": 120, "classes": 3}
    assert identity["judge"] == {"learns": "classes", "accuracy": 1.0, "steps": 30}
    assert identity["numbers"] == {"ours": 64, "pca": 64, "pixels": 64}
    assert identity["reconstruction"]["ours"]["mse"]["mean"] < 1e-10
    assert identity["reconstruction"]["ours"]["kept"] == 1
    assert set(identity["probe"]) == {"20"}
    assert identity["probe"]["20"]["codes_minus_pixels"]["mean"] == pytest.approx(0, abs=1e-9)
    assert identity["frechet"]["reconstructions"]["ours"] == pytest.approx(0, abs=1e-6)
    for kind in ("mixes_between", "mixes_within"):
        made = identity["frechet"][kind]
        assert made["ours"] == pytest.approx(made["pixels"], rel=1e-3)
    assert identity["neither"]["ours"] == identity["neither"]["pixels"]
    assert identity["frechet"]["mixes"] is identity["frechet"]["mixes_projected"] is None
    assert identity["verdict"]["against"] == ["mixes are no nearer to the data than the controls"]
    assert json.loads(json.dumps(identity, allow_nan=False)) == identity


def test_mixes_within_a_class_are_nearer_than_between_classes(identity):
    for who in ("ours", "pixels"):  # not PCA: half-way along the sphere a class's mean is 1.4 times too strong
        assert identity["frechet"]["mixes_within"][who] < identity["frechet"]["mixes_between"][who] / 2
    assert identity["frechet"]["other_images"] < identity["frechet"]["mixes_between"]["ours"] / 10


def test_the_same_seed_gives_the_same_record_and_touches_no_global_state(identity):
    data, generator = pictures(), pixels_as_codes()
    before = torch.get_rng_state()
    again, other = (check_codes(bank_of(data, generator), data, generator, seed=seed, **QUIET) for seed in (0, 1))
    assert torch.get_rng_state().equal(before)
    assert again == identity
    assert other["frechet"] != identity["frechet"]


def test_pca_checked_by_itself_is_as_good_as_the_control():
    data = pictures()
    generator = Linear.fit(data.images, 10)
    found = check_codes(bank_of(data, generator), data, generator, **QUIET)
    ours, pca = (found["reconstruction"][who]["mse"]["mean"] for who in ("ours", "pca"))
    assert ours == pytest.approx(pca, rel=0.3)  # fitted to all images, and to the others
    assert found["decode_multiply_adds"] == {"ours": 640, "pca": 640}
    assert not found["verdict"]["go"]


def test_a_generator_that_makes_one_image_of_all_loses_the_classes():
    data, generator = pictures(), pixels_as_codes(lambda codes: 0 * codes)
    found = check_codes(bank_of(data, generator), data, generator, **QUIET)
    assert found["reconstruction"]["ours"]["kept"] == pytest.approx(1 / 3, abs=0.01)
    assert "too few images keep their class" in found["verdict"]["against"]


def test_codes_that_hold_the_class_know_more_than_noisy_pixels():
    data = pictures(noise=1.5)
    hint = 5 * torch.nn.functional.one_hot(data.labels, 3).float()
    generator = wrap(lambda codes: codes[:, :64].view(-1, 1, SIZE, SIZE), latent_shape=(67,), latent_space="w")
    bank = LatentBank(torch.cat([data.images.flatten(1), hint], 1), data.labels)
    found = check_codes(bank, data, generator, **QUIET)
    assert found["probe"]["20"]["codes_minus_pixels"]["mean"] > 0.05
    assert found["numbers"] == {"ours": 67, "pca": 64, "pixels": 64}
    assert "points more of the class than pixels at 20 labels a class" in found["verdict"]["text"]


class Projecting(Linear):
    """Brings every code to the first one of its bank."""

    def project(self, latents, t, generator=None):
        assert (t, generator.device.type) == (0.4, "cpu")
        return self.target.expand_as(latents)


def test_project_is_tried_where_there_is_one():
    data = pictures()
    generator = Projecting(64, 1, SIZE)
    generator.load_state_dict(Linear.fit(data.images, 64).state_dict())
    generator.target = generator.encode(data.images[:1])  # of class 0
    found = check_codes(bank_of(data, generator), data, generator, **QUIET)
    assert set(found["frechet"]["mixes_projected"]) == {"ours"}
    assert 0.2 < found["neither"]["projected"] < 0.45  # a third of the pairs have no part in class 0
    assert "projected" in check_text(found)


# ---- rows, labels, others --------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [torch.full((240,), -1), torch.zeros(240, dtype=torch.int64)])
def test_without_classes_what_needs_them_is_none(labels):
    data = pictures()
    data.labels = labels
    generator = pixels_as_codes()
    found = check_codes(bank_of(data, generator), data, generator, **QUIET)
    assert found["judge"]["learns"] == "rotations"
    assert found["probe"] is found["neither"] is found["reconstruction"]["ours"]["kept"] is None
    assert found["frechet"]["mixes_between"] is found["frechet"]["mixes_within"] is None
    assert set(found["frechet"]["mixes"]) == {"ours", "pca", "pixels"}
    assert found["rows"]["classes"] == 0
    assert "rotations" in check_text(found)


def test_rows_that_cannot_be_used_are_left_out():
    data, generator = pictures(330), pixels_as_codes()
    data.labels[:30] = -1
    data.labels[30] = 7  # alone in its class
    status = torch.zeros(330, dtype=torch.uint8)
    status[31:40] = 1
    found = check_codes(bank_of(data, generator, status=status), data, generator, **QUIET)
    assert found["rows"]["examined"] + found["rows"]["others"] == 290
    assert found["rows"]["classes"] == 3


def test_a_part_of_the_data_set_finds_its_rows():
    data, generator = pictures(500), pixels_as_codes()
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))[:300].tolist()
    bank = bank_of(data, generator, mse=torch.zeros(500), metadata={"dataset": {"length": 500}})
    found = check_codes(bank, Subset(data, order), generator, **QUIET)
    assert found["rows"]["examined"] + found["rows"]["others"] == 300
    assert found["reconstruction"]["ours"]["mse"]["mean"] < 1e-10


def test_others_teach_the_judge_and_limit_holds():
    data, generator = pictures(500), pixels_as_codes()
    examined, others = Subset(data, range(150)), Subset(data, range(150, 500))
    bank = LatentBank(generator.encode(data.images[:150]), data.labels[:150])
    found = check_codes(bank, examined, generator, others=others, **QUIET)
    assert found["rows"] == {"examined": 150, "others": 350, "classes": 3}
    found = check_codes(bank, examined, generator, others=others, limit=120, **QUIET)
    assert (found["rows"]["examined"], found["rows"]["others"]) == (120, 120)


@pytest.mark.parametrize("sizes", [[2, 2], [5, 2, 40], [50, 50]])
def test_partners_are_of_another_class_and_of_the_own(sizes):
    labels = torch.cat([torch.full((size,), 3 * number) for number, size in enumerate(sizes)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    seen = {
        "mixes_between": torch.zeros(len(labels), len(labels)),
        "mixes_within": torch.zeros(len(labels), len(labels)),
    }
    own = torch.arange(len(labels))
    for seed in range(100 if len(labels) < 20 else 3):
        found = module._drawn_partners(labels, len(labels), seed)
        for kind, partner in found.items():
            seen[kind][own, partner] = 1
    same = labels[:, None] == labels
    assert not seen["mixes_between"][same].any()
    assert not seen["mixes_within"][~same].any()
    assert not seen["mixes_within"].diagonal().any()
    if len(labels) < 20:
        assert seen["mixes_between"][~same].all()
        assert (seen["mixes_within"] + torch.eye(len(labels)))[same].all()


def test_without_labels_a_partner_is_any_other_row():
    (partner,) = module._drawn_partners(None, 50, 0).values()
    assert (partner != torch.arange(50)).all()
    assert len(partner.unique()) > 20


# ---- what it refuses -------------------------------------------------------------------------------


def refused(message: str, bank: LatentBank, data, generator, error=ValueError, **options) -> None:
    with pytest.raises(error, match=message):
        check_codes(bank, data, generator, **{**QUIET, **options})


def test_too_few_rows():
    data, generator = pictures(150), pixels_as_codes()
    refused(r"a check needs 200 rows .*: got 150 of 150; .*others=", bank_of(data, generator), data, generator)
    few = pictures(60)
    refused(
        r"needs 100 rows .*: got 60 of 60; invert more images$", bank_of(few, generator), few, generator, others=data
    )


def test_others_that_cannot_teach():
    data, generator = pictures(), pixels_as_codes()
    bank = bank_of(data, generator)
    refused("others needs to be other images", bank, data, generator, others=data)
    two = Subset(pictures(300), [i for i in range(300) if i % 3])
    refused("others needs images of every class of the bank: got none of class 0", bank, data, generator, others=two)
    refused("others needs 100 readable images or more: got 60", bank, data, generator, others=pictures(60))


def test_what_does_not_belong_together():
    data, generator = pictures(), pixels_as_codes()
    bank = bank_of(data, generator)
    other = LabelledImages(data.images, (data.labels + 1) % 3)
    refused("has label", bank, other, generator)
    refused("codes have shape", bank, data, Linear.fit(data.images, 5))
    told = bank_of(data, generator, mse=torch.full((240,), 0.5))
    refused("the bank's mse is not what its codes decode to", told, data, generator)
    refused("the bank comes first", data, bank, generator, error=TypeError)
    refused("draws needs to be from 1, limit from 100: got 0 and 5000", bank, data, generator, draws=0)
    refused("draws needs to be from 1, limit from 100: got 1 and 99", bank, data, generator, limit=99)


# ---- what it concludes -----------------------------------------------------------------------------


def record(kept=0.95, gain=0.0, ours=50.0, projected=None, controls=(100.0, 120.0)) -> dict:
    """As much of a record as the verdict reads."""
    mixes = {"ours": ours, "pca": controls[0], "pixels": controls[1]}
    return {
        "reconstruction": {"ours": {"kept": kept}},
        "probe": None
        if gain is None
        else {"20": {"codes_minus_pixels": {"mean": -0.5}}, "100": {"codes_minus_pixels": {"mean": gain}}},
        "frechet": {
            "mixes_between": mixes if kept is not None else None,
            "mixes": mixes if kept is None else None,
            "mixes_projected": None if projected is None else {"ours": projected},
            "prior": {"ours": 100.0, "pca": 100.0},
        },
    }


@pytest.mark.parametrize(
    ("changes", "against"),
    [
        ({}, []),
        ({"gain": 0.05}, []),
        ({"kept": None, "gain": None}, []),
        ({"gain": -0.009}, []),
        ({"gain": -0.011}, ["codes know less than pixels"]),
        ({"kept": 0.79}, ["too few images keep their class"]),
        ({"ours": 91.0}, ["mixes are no nearer to the data than the controls"]),
        ({"ours": 91.0, "projected": 40.0}, []),
        ({"controls": (200.0, 52.0)}, ["mixes are no nearer to the data than the controls"]),
        ({"gain": -0.2, "kept": 0.5}, ["too few images keep their class", "codes know less than pixels"]),
    ],
)
def test_go_and_no_go(changes, against):
    found = verdict(record(**changes))
    assert (found["go"], found["against"]) == (not against, against)
    assert found["text"].startswith("no-go (" if against else "go")


def test_the_verdict_in_words():
    text = verdict(record(kept=0.954, gain=-0.034, ours=97.0))["text"]
    assert text == (
        "no-go (codes know less than pixels; mixes are no nearer to the data than the controls): codes know 3.4 points "
        "less of the class than pixels at 100 labels a class, and 95% of the images keep their class when they are "
        "decoded. Half-way mixes are as near to the data as the better of PCA's and pixel mixes (Fréchet distance 97 "
        "against 100), prior samples as near to the data as PCA's (100 against 100)."
    )
    assert verdict(record(kept=None, gain=None))["text"].startswith("go. Half-way mixes are nearer to the data than")


def test_the_table_has_every_number(identity):
    lines = check_text(identity).splitlines()
    assert lines[0].endswith("the judge learnt the classes of 120 others, 100.0% right on unseen ones")
    assert lines[1].split() == ["ours", "PCA", "pixels"]
    assert lines[2].split() == ["numbers", "64", "64", "64"]
    at = next(number for number, line in enumerate(lines) if line.startswith("linear probe, 20 labels a class"))
    assert lines[at + 1].split() == ["codes", "minus", "pixels", "+0.0", "±", "0.0"]
    assert any(line.strip().startswith("half-way mixes, two classes") for line in lines)
    assert lines[-1] == identity["verdict"]["text"]
