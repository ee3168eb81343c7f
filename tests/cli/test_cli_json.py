"""Every command with ``--json``: one object on stdout, whatever else is said."""

from __future__ import annotations

import shlex
from functools import partial

import foreign
import pytest
import torch
from commands import in_folder_with, json_of
from loopback_hub import WRITER
from PIL import Image
from torchvision.datasets import FashionMNIST

import latent_mixup as lm
from latent_mixup import training
from latent_mixup.cli import main
from latent_mixup.demo import demo
from latent_mixup.demo.comparison import Budget, Codes, Data
from latent_mixup.fitting import stages
from latent_mixup.fitting.images import MIN_IMAGES
from latent_mixup.quality import code_check

DATA = "--dataset fashion-mnist --data-root ../data"
RUNS = {
    "demo": "--out demo",
    "preview": "fashion-mnist --pairs 1,2 --out sheet.png",
    "list": "",
    "fit": "photos --out run --steps 2 --inversion-steps 0",
    "invert": f"fashion-mnist {DATA} --steps 0 --out codes",
    "refine": f"bank --generator fashion-mnist {DATA} --above 0.01 --steps 2 --loss pixels --out fine",
    "filter": "bank --keep 0.5 --out half",
    "render": "fashion-mnist bank pool --n 8",
    "report": f"bank --generator fashion-mnist {DATA} --columns 2 --out report",
    "evaluate": "tiny:model fashion-mnist --data-root ../data --deepfool-images 2 --pgd-images 2 --pgd-steps 1 "
    "--corruption-images 2",
    "info": "fashion-mnist --no-self-test --sheet samples.png",
    "convert": "network.pkl converted",
    "train-generator": f"{DATA} --steps 2 --out generator",
    "train-encoder": "fashion-mnist --steps 2 --batch-size 4 --out encoder",
    "push": "bank org/bank",
}
TINY = "from torch import nn\nmodel = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"


@pytest.fixture
def place(tmp_path, monkeypatch, data_root):
    """The current folder."""
    with in_folder_with("tiny", TINY, tmp_path / "here", monkeypatch) as here:
        yield here


@pytest.fixture
def bank(place, data_root):
    """Codes of 40 images, in the current folder."""
    lm.invert(FashionMNIST(data_root), lm.load_generator("fashion-mnist"), steps=0, out="bank", progress=False)


@pytest.fixture
def small(place, monkeypatch):
    """Networks, runs and data of a size for tests."""
    monkeypatch.setattr(training, "CompactRecipe", partial(training.CompactRecipe, feature_steps=1))
    network = {128: {"z_dim": 8, "width": 8, "detail": 4, "flow_width": 16}}
    monkeypatch.setattr(stages, "NETWORKS", {1: network, 3: network})
    for name in ("JUDGE_STEPS", "LEAST_JUDGE_STEPS"):
        monkeypatch.setattr(code_check, name, 2)
    data, codes, rows = demo.bundled_data(), demo.bundled_codes(), slice(0, 200)
    few = Data(data.train_images[rows], data.train_labels[rows], data.test_images[:50], data.test_labels[:50])
    monkeypatch.setattr(demo, "bundled_data", lambda: few)
    monkeypatch.setattr(demo, "bundled_codes", lambda: Codes(codes.generator, codes.bank.subset(rows)))
    budget = Budget(epochs=1, batch_size=100, deepfool_images=2)
    monkeypatch.setattr(demo, "run_demo", partial(demo.run_demo, budget=budget))


@pytest.fixture
def photos(place):
    folder = place / "photos"
    folder.mkdir()
    pixels = torch.randint(256, (MIN_IMAGES, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for number, image in enumerate(pixels.numpy()):
        Image.fromarray(image).save(folder / f"{number}.png")


@pytest.mark.filterwarnings("ignore:Use .content=.*:DeprecationWarning")  # the Hub's client, of the library below it
@pytest.mark.parametrize("command", main.commands)
def test_every_command_prints_one_object(command, place, small, request):
    arguments = shlex.split(RUNS[command])
    for needed in {"bank", "photos"} & {*arguments}:
        request.getfixturevalue(needed)
    if command == "push":
        request.getfixturevalue("hub_server")
        request.getfixturevalue("monkeypatch").setenv("HF_TOKEN", WRITER)
    (place / "network.pkl").write_bytes(foreign.release_pickle(foreign.tiny()))
    assert json_of(command, *arguments)


def test_the_list_is_that_of_python():
    found = json_of("list")["pretrained"]
    assert [each["name"] for each in found] == lm.list_pretrained()
    for each in found:
        generator, bank = lm.load(each["name"])
        assert each["img_shape"][1:] == [generator.img_resolution] * 2
        assert each["codes"] == len(bank)
