"""Pictures of banks: the generator that they find, and pairs of rows."""

from __future__ import annotations

import io
import re
import shutil

import pytest
import torch
from conftest import with_labels
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

import latent_mixup as lm
from latent_mixup import hub
from latent_mixup.bank import LatentBank, looks
from latent_mixup.bank import bank as bank_module
from latent_mixup.bank.looks import draw_pairs
from latent_mixup.generators import wrap
from latent_mixup.images import to_uint8
from latent_mixup.pictures import HEADING_HEIGHT, opened
from latent_mixup.sampling import keyed_generator


def pixels(picture: Image.Image) -> torch.Tensor:
    return pil_to_tensor(picture.convert("RGB"))


@pytest.mark.parametrize("count", [1, 4, 30])
def test_partners_are_of_another_class_where_there_is_one(count):
    labels = torch.arange(40) % 3
    own, other = draw_pairs(labels, count, keyed_generator("test"))
    assert len(own.unique()) == len(own) == len(other) == count
    assert (labels[own] != labels[other]).all()
    own, other = draw_pairs(torch.zeros(40), count, keyed_generator("test"))
    assert len(own) == len(other) == count


def test_a_row_alone_is_its_own_partner():
    own, other = draw_pairs(torch.zeros(1), 8, keyed_generator("test"))
    assert (own.tolist(), other.tolist()) == ([0], [0])


def test_lines_go_from_the_decode_of_a_row_to_that_of_its_partner(toy_bank, linear_generator):
    picture = pixels(toy_bank.show(linear_generator, pairs=3))
    own, other = draw_pairs(toy_bank.labels, 3, keyed_generator("bank-show", 0))
    zoom, step = 21, 4 * 21 + 2
    left = picture.shape[2] - 5 * step - 2
    for line, rows in enumerate(zip(own, other, strict=True)):
        for column, row in ((0, rows[0]), (4, rows[1])):
            top, start = HEADING_HEIGHT + 2 + line * step, left + 2 + column * step
            tile = picture[0, top : top + 4 * zoom : zoom, start : start + 4 * zoom : zoom]
            expected = to_uint8(linear_generator.decode(toy_bank[[int(row)]][0]))[0, 0]
            assert (tile.int() - expected.int()).abs().max() <= 1


def test_pictures_come_from_a_stream_of_their_own(toy_bank, linear_generator):
    picture, before = pixels(toy_bank.show(linear_generator)), torch.get_rng_state()
    torch.rand(1)
    assert pixels(toy_bank.show(linear_generator)).equal(picture)
    assert not pixels(toy_bank.show(linear_generator, seed=1)).equal(picture)
    torch.set_rng_state(before)
    toy_bank.show(linear_generator)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("name", lm.list_pretrained())
def test_a_bundled_bank_finds_its_generator(name):
    generator, bank = lm.load(name)
    expected = pixels(bank.show(generator))
    assert pixels(bank.show()).equal(expected)
    assert pixels(opened(bank._repr_png_())).equal(expected)
    in_memory = LatentBank(*bank[:], metadata=bank.metadata)
    assert pixels(in_memory.show()).equal(expected)


def test_a_bank_finds_the_generator_beside_it(tmp_path):
    generator, bank = lm.load("mnist")
    for each, kind in ((generator, "generator"), (bank, "bank")):
        each.metadata = {**each.metadata, "name": "run"}
        each.save_pretrained(tmp_path / "run" / kind)
    found = LatentBank.from_pretrained(tmp_path / "run")
    found.metadata["generator"]["name"] = "of nobody"
    assert pixels(found.show()).equal(pixels(bank.show(generator)))
    shutil.rmtree(tmp_path / "run" / "generator")
    assert found._repr_png_() is None
    with pytest.raises(FileNotFoundError, match=r"'of nobody': pass it, bank\.show\(generator\)"):
        found.show()


def test_a_generator_on_the_hub_is_fetched_by_show_and_not_by_a_notebook(toy_bank, linear_generator, monkeypatch):
    calls = []

    def load(name, **where):
        calls.append((name, where))
        if where.get("local_files_only"):
            raise hub.HubError("it is not in the cache")
        return linear_generator

    monkeypatch.setattr(looks, "load_generator", load)
    toy_bank.metadata["generator"] = {"name": "gan", "repo": "org/gan", "commit": "c0ffee"}
    assert pixels(toy_bank.show()).equal(pixels(toy_bank.show(linear_generator)))
    assert toy_bank._repr_png_() is None
    where = {"revision": "c0ffee"}
    assert calls == [("org/gan", where), ("org/gan", {**where, "local_files_only": True})]


def test_a_bank_without_a_generator_says_so(toy_bank, linear_generator):
    with pytest.raises(FileNotFoundError, match=r"not found by what the bank says of it, '': pass it, bank\.show"):
        toy_bank.show()
    assert toy_bank._repr_png_() is None
    with pytest.raises(TypeError, match=r"load_generator\('mnist'\)"):
        toy_bank.show("mnist")
    with pytest.raises(ValueError, match="pairs needs to be at least 1: got 0"):
        toy_bank.show(linear_generator, pairs=0)
    with pytest.raises(ValueError, match="codes have shape"):
        lm.LatentBank.from_pretrained("mnist").show(linear_generator)
    odd = wrap(lambda codes: codes.view(-1, 4, 2, 2).tanh(), latent_shape=(16,))
    with pytest.raises(ValueError, match="grey or RGB images: got 4 channels"):
        toy_bank.show(odd)


def test_captions_name_classes_and_rows_without_one(toy_bank, linear_generator, monkeypatch):
    monkeypatch.setattr(bank_module, "strip_sheet", lambda generator, own, other, captions, lams: captions)
    monkeypatch.setattr(bank_module, "opened", lambda captions: captions)
    bank = with_labels(toy_bank, torch.tensor([0, -1] * 25))
    bank.metadata["classes"] = ["ant"]
    captions = bank.show(linear_generator, pairs=20)
    assert {re.sub(r"row \d*[13579]$|row \d*[13579](?= )", "row", caption) for caption in captions} == {
        "ant to row",
        "row to ant",
    }


def test_a_picture_can_be_kept(toy_bank, linear_generator, tmp_path):
    picture = toy_bank.show(linear_generator)
    picture.save(tmp_path / "bank.png")
    assert pixels(Image.open(tmp_path / "bank.png")).equal(pixels(picture))
    assert pixels(Image.open(io.BytesIO(linear_generator._repr_png_()))).equal(pixels(linear_generator.show()))
