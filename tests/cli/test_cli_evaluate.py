"""``evaluate`` on the command line, against the scores in Python."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from commands import error_of, in_folder_with, json_of, output_of
from PIL import Image
from safetensors.torch import save_model
from torch import nn

from latent_mixup import robustness
from latent_mixup.bundled import BundledImages
from latent_mixup.cli import shared

CLASSIFIER = """
import torch
from torch import nn


def make():
    layer = nn.Linear(784, 10, bias=False)
    layer.weight = nn.Parameter(torch.sin(torch.arange(7840.0)).view(10, 784) / 9)
    return nn.Sequential(nn.Flatten(), layer)


ready = make()
"""
FEW = ("--deepfool-images", 3, "--pgd-images", 4, "--pgd-steps", 2, "--corruption-images", 2)
NONE = ("--deepfool-images", 0, "--pgd-images", 0, "--corruption-images", 0)


@pytest.fixture
def classifier(tmp_path, monkeypatch):
    """The current folder holds ``tiny_classifier.py``."""
    with in_folder_with("tiny_classifier", CLASSIFIER, tmp_path / "here", monkeypatch) as here:
        yield here


def test_a_model_of_ones_own_is_scored_as_in_python(classifier, data_root):
    arguments = ("evaluate", "tiny_classifier:make", "fashion-mnist", "--data-root", data_root, *FEW)
    found = json_of(*arguments, "--mean", 0.3, "--std", 0.4)
    from tiny_classifier import make

    test = BundledImages("fashion-mnist", train=False)
    images, labels = test.data[40:60].float() / 255, test.targets[40:60]
    counts = {"deepfool_images": 3, "pgd_images": 4, "pgd_steps": 2, "corruption_images": 2}
    model = robustness.Normalized(make(), 0.3, 0.4)
    expected = robustness.evaluate(model, images, labels, bounds=(0, 1), **counts)
    for name in ("accuracy", "blurred_accuracy", "pgd", "corruptions"):
        assert found[name] == expected[name]
    assert found["deepfool_score"] == pytest.approx(expected["deepfool_score"], rel=1e-4)
    assert (found["model"], found["data"], found["img_shape"]) == ("tiny_classifier:make", "fashion-mnist", [1, 28, 28])
    assert (found["mean"], found["bounds"], found["test_images"]) == ([0.3], [0.0, 1.0], 20)
    usual = json_of(*arguments[:-8], *NONE)
    signed = robustness.accuracy(make(), [(images * 2 - 1, labels)])
    assert (usual["mean"], usual["std"], usual["accuracy"]) == ([0.5], [0.5], signed)
    assert json_of(*arguments[:-8], *NONE, "--train", "--images", 30)["test_images"] == 30


def test_columns_are_those_that_are_named(classifier, data_root, monkeypatch):
    test = BundledImages("fashion-mnist", train=False)
    images, labels = test.data[40:60, 0].numpy(), test.targets[40:60].tolist()
    columns = {"image": 9, "photo": 0, "label": 0, "kind": 0}
    rows = [
        columns | {"photo": Image.fromarray(image), "kind": label} for image, label in zip(images, labels, strict=True)
    ]
    monkeypatch.setattr(shared.hub_data, "hub_dataset", lambda text, **where: rows)
    keys = ("--image-key", "photo", "--label-key", "kind")
    found = json_of("evaluate", "tiny_classifier:make", "hf:any", *keys, *NONE)
    expected = json_of("evaluate", "tiny_classifier:make", "fashion-mnist", "--data-root", data_root, *NONE)
    assert found["accuracy"] == expected["accuracy"]
    assert found["test_images"] == 20


def test_a_table_is_printed(classifier, data_root):
    output = output_of("evaluate", "tiny_classifier:ready", "fashion-mnist", "--data-root", data_root, *NONE)
    assert "tiny_classifier:ready on fashion-mnist: images 1 x 28 x 28, mean [0.5], std [0.5]" in output
    (row,) = (line for line in output.splitlines() if line.startswith("accuracy  "))
    assert row.split()[2] == "20"


def pictures(folder: Path) -> list[Image.Image]:
    """Twelve RGB images of 32 px in a folder of two classes, in the order of the files."""
    draw, made = torch.Generator().manual_seed(0), []
    for number in range(12):
        place = folder / ("cat" if number < 6 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (32, 32, 3), generator=draw, dtype=torch.uint8)
        made.append(Image.fromarray(pixels.numpy()))
        made[-1].save(place / f"{number:02d}.png")
    return made


def varied(model: nn.Module) -> nn.Module:
    """A model in eval mode whose logits differ between images."""
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.fill_(0.2)
    return model.eval()


@pytest.mark.parametrize(
    ("text", "build"),
    [
        ("timm:test_resnet", lambda: timm.create_model("test_resnet", num_classes=2)),
        ("torchvision:shufflenet_v2_x0_5", lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=2)),
    ],
)
def test_models_of_the_libraries_with_weights(tmp_path, text, build):
    images, model = pictures(tmp_path / "data"), varied(build())
    save_model(model, tmp_path / "weights.safetensors")
    found = json_of("evaluate", text, tmp_path / "data", "--weights", tmp_path / "weights.safetensors", *NONE)
    unit = torch.stack([torchvision.transforms.v2.functional.to_image(image) for image in images]).float() / 255
    normalised = torchvision.transforms.v2.functional.normalize(unit, found["mean"], found["std"])
    logits, labels = robustness.logits_of(model, [(normalised, torch.arange(12) // 6)])
    expected = robustness.negative_log_likelihood(logits, labels)
    assert found["calibration"]["negative_log_likelihood"] == pytest.approx(expected, rel=1e-4)
    assert logits.std() > 1e-3  # it looks at the images
    if text.startswith("torchvision"):
        assert found["mean"] == [0.485, 0.456, 0.406]


def test_images_of_a_folder_are_taken_in_a_random_order(tmp_path, classifier):
    (classifier / "sees_order.py").write_text(
        "import torch\nfrom torch import nn\nclass All(nn.Module):\n"
        "    def forward(self, x):\n        return torch.stack([x.sum((1, 2, 3)) * 0 + 1, x.sum((1, 2, 3)) * 0], 1)\n"
    )
    pictures(tmp_path / "data")
    first = json_of("evaluate", "sees_order:All", tmp_path / "data", *NONE, "--images", 6)
    assert 0 < first["accuracy"] < 1  # not six cats
    assert json_of("evaluate", "sees_order:All", tmp_path / "data", *NONE)["accuracy"] == 0.5
    sys.modules.pop("sees_order")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("timm:test_resnet",), "timm:test_resnet needs --weights FILE.safetensors: nothing is downloaded"),
        (
            ("timm:test_resnot", "--weights", "w.safetensors"),
            "no classifier timm:test_resnot: did you mean timm:test_res",
        ),
        (("torchvision:resnet181", "--weights", "w.safetensors"), "did you mean torchvision:resnet18"),
        (
            ("timm:test_resnet", "--weights", "w.pth"),
            "needs a .safetensors file, since a pickle can run code: got w.pth",
        ),
        (("timm:test_resnet", "--weights", "w.safetensors"), "w.safetensors is not a whole safetensors file"),
        (("timm:test_resnet", "--weights", "other.safetensors"), "other.safetensors does not fit timm:test_resnet: "),
        (
            ("torchvision:resnet18", "--weights", "w.safetensors", "--channels", 1),
            "models take RGB images: got --channels 1",
        ),
        (("resnet18",), "MODEL is my_module:make, timm:NAME or torchvision:NAME: got 'resnet18'"),
        (("tiny_classifier:torch",), "needs to be a torch.nn.Module, or to return one: got module"),
        (("tiny_classifier:maek",), "has no 'maek': did you mean 'make'?"),
        (("tiny_classifier:make", "--mean", "a,b"), "--mean needs numbers with commas between them"),
        (("tiny_classifier:make", "--mean", "0.5,0.5"), "need as many finite numbers"),
        (("tiny_classifier:make", "--weights", "other.safetensors"), "does not fit tiny_classifier:make"),
    ],
)
def test_what_is_wrong_with_a_model_is_one_sentence(classifier, data_root, arguments, message):
    (classifier / "w.pth").write_bytes(b"")
    (classifier / "w.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    save_model(nn.Linear(2, 2), classifier / "other.safetensors")
    model, *options = arguments
    output = error_of("evaluate", model, "fashion-mnist", "--data-root", data_root, *options, *NONE)
    assert message in output
    assert len(output.strip().splitlines()) == 1


def test_what_is_wrong_with_the_data_is_one_sentence(tmp_path, classifier):
    pictures(tmp_path / "data")
    Image.new("RGB", (20, 20)).save(tmp_path / "data" / "cat" / "small.png")
    arguments = ("evaluate", "tiny_classifier:make", tmp_path / "data", *NONE)
    assert "or pass --size and --channels" in error_of(*arguments)
    assert "--train goes with data sets by name" in error_of(*arguments, "--train")
    assert "evaluate needs a class for each image" in error_of(*arguments[:2], tmp_path / "data" / "dog", *NONE)
