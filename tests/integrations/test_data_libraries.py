"""Data sets of Hugging Face and WebDataset in training, where these libraries are installed."""

from __future__ import annotations

import io
import tarfile

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import latent_mixup as lm
from latent_mixup.bundled import BundledImages
from latent_mixup.images import from_uint8

COUNT = 96
IMAGES, CLASSES = BundledImages("fashion-mnist").data[:COUNT], BundledImages("fashion-mnist").targets[:COUNT]
PICTURES = [Image.fromarray(image.numpy()) for image in IMAGES[:, 0]]


@pytest.fixture(scope="module")
def pair():
    """The bundled generator, and the rows of these images."""
    generator, bank = lm.load("fashion-mnist")
    return generator, bank.subset(bank.rows_for(BundledImages("fashion-mnist"))[:COUNT])


@pytest.mark.filterwarnings("ignore")  # of the library itself
@pytest.mark.parametrize("names", [("image", "label"), ("photo", "kind")])
@pytest.mark.parametrize("wrapper", ["loader", "collate", "dataset"])
def test_a_hugging_face_data_set_needs_no_collate_function(pair, names, wrapper):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({names[0]: PICTURES, names[1]: CLASSES.tolist(), "note": ["a"] * COUNT})
    rows = rows.cast_column(names[0], datasets.Image())
    bank = lm.invert(rows, pair[0], steps=0, image_key=names[0], label_key=names[1], progress=False)
    keys = {} if names[0] == "image" else {"image_key": names[0], "label_key": names[1]}
    settings = {"prob": 0.5, "seed": 0, **keys}
    if wrapper == "loader":
        loader = lm.LatentMixupLoader(DataLoader(rows.with_format("torch"), 32), pair[0], bank, **settings)
    elif wrapper == "collate":
        loader = DataLoader(rows, 32, collate_fn=lm.LatentMixupCollate(pair[0], bank, dataset=rows, **settings))
    else:
        loader = DataLoader(lm.LatentMixupDataset(rows, pair[0], bank, **settings), 32)
    batch = next(iter(loader))
    assert batch[names[0]].shape == (32, 1, 28, 28)
    assert batch[names[1]].shape == (32, bank.num_classes)
    assert list(batch["note"]) == ["a"] * 32
    real = (batch[names[0]] == IMAGES[:32]).flatten(1).all(1)
    assert 0 < real.sum() < 32


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its files open
@pytest.mark.parametrize("place", ["map", "WebLoader", "DataLoader"])
def test_a_web_data_set_is_mixed_in_map_and_by_a_loader(pair, tmp_path, place):
    wds = pytest.importorskip("webdataset")
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for number, (picture, label) in enumerate(zip(PICTURES, CLASSES.tolist(), strict=True)):
            file = io.BytesIO()
            picture.save(file, "png")
            for ending, content in (("png", file.getvalue()), ("cls", str(label).encode())):
                entry = tarfile.TarInfo(f"{number:03d}.{ending}")
                entry.size = len(content)
                shard.addfile(entry, io.BytesIO(content))
    stream = wds.WebDataset(str(tmp_path / "shard.tar"), shardshuffle=False).decode("l8").to_tuple("png", "cls")
    stream = stream.map_tuple(lambda image: from_uint8(torch.tensor(image)[None]), int).batched(32)
    if place == "map":
        mixed = stream.map(lm.LatentMixupCollate(*pair, prob=0.5))
    else:
        kind = DataLoader if place == "DataLoader" else wds.WebLoader
        mixed = lm.LatentMixupLoader(kind(stream, batch_size=None), *pair, prob=0.5)
    images, targets = next(iter(mixed))
    real = (images == from_uint8(IMAGES[:32])).flatten(1).all(1)
    assert real.sum() == 16
    assert torch.equal(targets[real].argmax(1), CLASSES[:32][real])
