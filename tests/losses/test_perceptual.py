"""LPIPS and the paper's loss: equal to ``lpips``, targets embedded once, and weights from a file that is named."""

from __future__ import annotations

import copy
import hashlib
import os
import re
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
from conftest import LabelledImages
from defaults import default_dtype
from safetensors.torch import save_file
from torch import Tensor
from torch.torch_version import TorchVersion
from torchvision import models

from latent_mixup import files, hub, invert
from latent_mixup.generators import CompactGenerator
from latent_mixup.losses import LPIPS, PerceptualLoss, perceptual, pixel_mse
from latent_mixup.losses.base import TargetLoss, callable_id
from latent_mixup.losses.chosen import default_loss
from latent_mixup.losses.perceptual import BACKBONES

LPIPS_URL = "https://download.pytorch.org/models/"
SAFE_SINCE = perceptual.SAFE_SINCE


@pytest.fixture(autouse=True)
def _own_files(monkeypatch):
    """The files of these tests are their own: each torch may read them."""
    monkeypatch.setattr(perceptual, "SAFE_SINCE", "0")


def pairs(n: int = 3, size: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images ``[n, 3, size, size]`` in [-1, 1], and others that resemble them."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, size, size, generator=draw) * 2 - 1
    noise = torch.randn(images.shape, generator=draw)
    return images, (images + 0.3 * noise).clamp(-1, 1)


def with_biases(loss: LPIPS) -> LPIPS:
    """The same random backbone with biases that are not zero."""
    draw = torch.Generator().manual_seed(1)
    for name, tensor in loss.features.named_parameters():
        if name.endswith("bias"):
            tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.1)
    return loss


def upstream(loss: LPIPS, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """``lpips.LPIPS`` of the same backbone: its own slices, scaling and heads, without building one to throw away."""
    import lpips

    whole = SimpleNamespace(features=copy.deepcopy(loss.features))
    monkeypatch.setattr(models, loss.spec.network, lambda pretrained: whole)
    return lpips.LPIPS(net=loss.backbone, pnet_rand=True, verbose=False)


@pytest.fixture(scope="module")
def squeeze() -> LPIPS:
    return with_biases(LPIPS("squeeze", weights="random"))


@pytest.fixture(scope="module")
def squeezenet() -> dict[str, Tensor]:
    """What torchvision's file holds: features and a classifier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return models.squeezenet1_1(weights=None).state_dict()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Torch's cache, empty; and no network."""

    def no_network(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


# ---- LPIPS -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
def test_it_is_lpips(backbone, monkeypatch, capfd):
    loss = with_biases(LPIPS(backbone, weights="random"))
    theirs = upstream(loss, monkeypatch)
    for size in (32, 64):
        images, targets = pairs(2, size)
        images.requires_grad_(True)
        found, expected = loss(images, targets), theirs(images, targets).flatten()
        assert expected.min() > 1e-3
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        gradient, wanted = (torch.autograd.grad(value.sum(), images)[0] for value in (found, expected))
        assert (gradient - wanted).norm() < 1e-4 * wanted.norm()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_gradient_is_finite_where_features_vanish(backbone, monkeypatch):
    """Squares of features of 1e-24 are 0 in float32; ReLU hides it where the features themselves are 0."""
    loss = LPIPS(backbone, weights="random")
    next(loss.features.parameters()).mul_(1e-24)
    theirs = upstream(loss, monkeypatch)
    flat, (targets, _) = torch.full((1, 3, 32, 32), 0.5, requires_grad=True), pairs(1)
    assert torch.autograd.grad(theirs(flat, targets).sum(), flat)[0].isnan().any()
    assert torch.autograd.grad(loss(flat, targets).sum(), flat)[0].isfinite().all()
    empty = loss.shift.expand(1, 3, 32, 32).clone().requires_grad_(True)  # no feature at all
    assert not loss.embed(empty)[0].any()
    assert torch.autograd.grad(loss(empty, targets).sum(), empty)[0].isfinite().all()


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_the_gradient_is_finite_of_constant_and_zero_of_identical_images(squeeze, value):
    loss, (targets, _) = PerceptualLoss(lpips=squeeze), pairs(2)
    flat = torch.full((2, 3, 32, 32), value, requires_grad=True)
    gradient = torch.autograd.grad(loss(flat, targets).sum(), flat)[0]
    assert gradient.isfinite().all()
    assert gradient.any()
    for same in (flat, targets.clone().requires_grad_(True)):
        assert not torch.autograd.grad(loss(same, same.detach()).sum(), same)[0].any()


def by_hand(loss: LPIPS, image: Tensor, target: Tensor) -> Tensor:
    """Equation 1 for one pair ``[3, H, W]``, one pixel of one layer at a time."""
    total = torch.zeros((), dtype=image.dtype)
    for tap, head in zip(loss.spec.taps, loss.heads.split(loss.widths), strict=True):
        one, other = (loss.features[: tap + 1](((x - loss.shift) / loss.scale)[None])[0] for x in (image, target))
        pixels = zip(one.flatten(1).T, other.flatten(1).T, strict=True)
        total = total + torch.stack([(head * (a / a.norm() - b / b.norm()) ** 2).sum() for a, b in pixels]).mean()
    return total


def test_values_and_gradients_are_the_formulas_in_float64(squeeze):
    loss = PerceptualLoss(0.9, 0.1, lpips=copy.deepcopy(squeeze).double())
    images, targets = (x.double() for x in pairs(2, 20))
    images.requires_grad_(True)
    found = loss(images, targets)
    expected = torch.stack(
        [0.9 * by_hand(loss.lpips, a, b) + 0.1 * F.mse_loss(a, b) for a, b in zip(images, targets, strict=True)]
    )
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    gradient, wanted = (torch.autograd.grad((weights * value).sum(), images)[0] for value in (found, expected))
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-7 * float(wanted.abs().max()))


def test_it_is_symmetric_and_zero_for_equal_images_alone(squeeze):
    images, targets = pairs(4)
    loss = PerceptualLoss(lpips=squeeze)
    torch.testing.assert_close(loss(images, targets), loss(targets, images))
    assert not loss(images, images).any()
    assert (loss(images, targets) > 1e-3).all()


def test_an_image_does_not_depend_on_its_batch(squeeze):
    images, targets = pairs(5)
    loss = PerceptualLoss(lpips=squeeze)
    whole = loss(images, targets)
    torch.testing.assert_close(whole, torch.cat([loss(images[i : i + 1], targets[i : i + 1]) for i in range(5)]))
    embedded = loss.embed(targets)
    assert all(len(rows) == 5 for rows in embedded)
    order = torch.tensor([3, 0, 4])
    torch.testing.assert_close(loss.compare(images[order], tuple(rows[order] for rows in embedded)), whole[order])


def test_targets_are_embedded_once(squeeze):
    calls = []
    handle = squeeze.features[0].register_forward_hook(lambda *_: calls.append("pass"))
    images, targets = pairs()
    for loss in (squeeze, PerceptualLoss(lpips=squeeze)):
        assert isinstance(loss, TargetLoss)
        calls.clear()
        expected = loss(images.requires_grad_(True), targets.requires_grad_(True))
        assert calls == ["pass"] * 2
        embedded = loss.embed(targets)
        assert calls == ["pass"] * 3
        for step in range(3):
            torch.testing.assert_close(loss.compare(images, embedded), expected)
            assert calls == ["pass"] * (4 + step)
    assert not any(features.requires_grad for features in squeeze.embed(targets))
    handle.remove()


def test_nothing_in_it_is_trained(squeeze):
    loss = PerceptualLoss(lpips=squeeze)
    assert not any(tensor.requires_grad for tensor in loss.state_dict(keep_vars=True).values())


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    one, same, other = (LPIPS("squeeze", weights="random", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert callable_id(one) == callable_id(same) != callable_id(other)


def test_the_default_dtype_changes_nothing(squeezenet):
    images, targets = pairs()
    expected = LPIPS("squeeze", weights=squeezenet)(images, targets)
    with default_dtype(torch.float64):
        loss = LPIPS("squeeze", weights=squeezenet)
        assert loss(images, targets).equal(expected)
        assert {tensor.dtype for tensor in loss.state_dict().values()} == {torch.float32}


def test_it_is_made_on_the_cpu(squeezenet):
    with torch.device("meta"):  # a default device of the user's
        losses = [LPIPS("squeeze", weights=weights) for weights in ("random", squeezenet)]
    for loss in losses:
        assert {tensor.device.type for tensor in loss.state_dict().values()} == {"cpu"}


# ---- what it compares ------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_smallest_image_of_each_backbone(backbone):
    loss = LPIPS(backbone, weights="random")
    size = loss.spec.min_size
    assert (loss(*pairs(1, size)) > 0).all()
    with pytest.raises(
        ValueError, match=rf"{backbone} needs images from {size}x{size} px: got {size - 1}x40; enlarge.*resize=64"
    ):
        loss(torch.zeros(1, 3, size - 1, 40), torch.zeros(1, 3, size - 1, 40))
    with pytest.raises(RuntimeError):  # the backbone itself
        loss.features(torch.zeros(1, 3, size - 1, size - 1))
    with pytest.raises(ValueError, match=rf"{backbone} needs resize from {size} px: got {size - 1}"):
        LPIPS(backbone, weights="random", resize=size - 1)


@pytest.mark.parametrize("size", [8, 32, 48])
def test_images_are_resized_first(squeeze, size):
    images, targets = pairs(2, size)
    loss = LPIPS("squeeze", resize=32, weights={f"features.{k}": v for k, v in squeeze.features.state_dict().items()})
    resized = (F.interpolate(x, size=(32, 32), mode="bilinear", antialias=True) for x in (images, targets))
    torch.testing.assert_close(loss(images, targets), squeeze(*resized))


def test_one_channel_is_grey_when_asked(squeeze):
    grey = [images[:, :1] for images in pairs()]
    with pytest.raises(ValueError, match=r"RGB images: got \[3, 1, 32, 32\], of one channel; .*FeatureLoss\(network\)"):
        squeeze(*grey)
    state = {f"features.{k}": v for k, v in squeeze.features.state_dict().items()}
    loss = LPIPS("squeeze", weights=state, repeat_channels=True)
    torch.testing.assert_close(loss(*grey), squeeze(*(images.expand(-1, 3, -1, -1) for images in grey)))
    torch.testing.assert_close(loss(*pairs()), squeeze(*pairs()))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 32, 32), r"images \[B, 3, H, W\]: got \[3, 32, 32\]"),
        (torch.zeros(3, 4, 32, 32), r"images \[B, 3, H, W\]: got \[3, 4, 32, 32\]"),
        (torch.zeros(3, 3, 32, 32, dtype=torch.uint8), "float images in \\[-1, 1\\]: got torch.uint8"),
        (torch.zeros(1, 3, 32, 32), r"images \[1, 3, 32, 32\] have .*: pass as many images as targets"),
        (torch.zeros(3, 3, 64, 64), r"images \[3, 3, 64, 64\] have features .*, of their size"),
    ],
)
def test_what_cannot_be_compared_is_refused(squeeze, images, message):
    with pytest.raises(ValueError, match=message):
        squeeze.compare(images, squeeze.embed(pairs()[1]))


def test_settings_that_do_not_exist():
    with pytest.raises(ValueError, match="LPIPS has the backbones vgg, alex, squeeze: got 'vgg16'"):
        LPIPS("vgg16", weights="random")
    for weights in ((-1, 0.1), (0.9, float("nan"))):
        with pytest.raises(ValueError, match="lpips_weight and mse_weight need numbers from 0: got"):
            PerceptualLoss(*weights, lpips=SimpleNamespace())


# ---- where the weights come from -------------------------------------------------------------------


@pytest.mark.parametrize(("backbone", "file"), [("vgg", "vgg16-397923af"), ("alex", "alexnet-owt-7be5be79")])
def test_without_weights_the_error_names_the_file_its_folder_and_its_address(cache, backbone, file):
    with pytest.raises(FileNotFoundError) as caught:
        LPIPS(backbone)
    message = str(caught.value)
    assert message == (
        f"LPIPS needs the trained backbone {file}.pth, which is not in {cache}: pass LPIPS(download=True) "
        f"(--download-lpips) to get it from {LPIPS_URL}{file}.pth, name such a file or a Hub repository with a "
        'model.safetensors in LPIPS(weights=) (--lpips-weights), or pass loss="pixels" (--loss pixels)'
    )
    assert "\n" not in message
    assert not cache.exists()
    with pytest.raises(FileNotFoundError, match=re.escape("vgg16-397923af.pth")):
        PerceptualLoss()


def put_into(cache: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> Path:
    """A file in torch's cache whose name is made of its content, as if torchvision's were small."""
    name = f"squeezenet1_1-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setattr(perceptual, "_official_url", lambda spec: LPIPS_URL + name)
    cache.mkdir(parents=True)
    (cache / name).write_bytes(content)
    return cache / name


def test_every_source_gives_the_same_network(cache, tmp_path, monkeypatch, squeezenet):
    torch.save(squeezenet, tmp_path / "net.pth")
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(squeezenet, folder / "model.safetensors")
    put_into(cache, monkeypatch, (tmp_path / "net.pth").read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path))
    sources = [None, squeezenet, tmp_path / "net.pth", "~/net.pth", folder / "model.safetensors", str(folder)]
    losses = [LPIPS("squeeze", weights=weights) for weights in sources]
    for loss in losses:
        for name, tensor in loss.features.state_dict().items():
            assert torch.equal(tensor, squeezenet[f"features.{name}"])
    assert len({callable_id(loss) for loss in losses}) == 1
    weight = next(losses[1].features.parameters())
    assert weight.data_ptr() != squeezenet["features.0.weight"].data_ptr()  # a copy: theirs may be trained on


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_names_are_torchvisions(backbone):
    with torch.device("meta"):
        whole = models.get_model(BACKBONES[backbone].network, weights=None).state_dict()
    loss = LPIPS(backbone, weights="random")
    for name, tensor in loss.features.state_dict().items():
        assert whole.pop(f"features.{name}").shape == tensor.shape
    assert not [name for name in whole if name.startswith("features.")]


def test_a_cached_file_that_changed_is_refused(cache, monkeypatch, squeezenet):
    path = put_into(cache, monkeypatch, b"abc")
    path.write_bytes(b"abd")
    expected = (
        r"squeezenet1_1-ba7816bf.pth is broken: its SHA-256 starts with a52d159f, its name says ba7816bf; "
        r"remove it and download https://download.pytorch.org/models/squeezenet1_1-ba7816bf.pth$"
    )
    for weights in (None, path):
        with pytest.raises(files.FormatError, match=expected):
            LPIPS("squeeze", weights=weights)


def test_a_download_is_asked_for_and_its_sha256_is_checked(cache, monkeypatch, tmp_path, squeezenet):
    torch.save(squeezenet, tmp_path / "net.pth")
    content = (tmp_path / "net.pth").read_bytes()
    name = put_into(cache, monkeypatch, content).name
    (cache / name).unlink()
    cache.rmdir()
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(perceptual, "_official_url", lambda spec: (tmp_path / name).as_uri())
    with pytest.raises(FileNotFoundError, match="--download-lpips"):
        LPIPS("squeeze")
    loss = LPIPS("squeeze", download=True)
    assert (cache / name).read_bytes() == content
    assert callable_id(loss) == callable_id(LPIPS("squeeze", weights=squeezenet))
    (cache / name).unlink()
    (tmp_path / name).write_bytes(content[:-1])
    with pytest.raises(OSError, match=r"cannot download .*: invalid hash value .*; download it into .* by hand"):
        LPIPS("squeeze", download=True)
    assert not list(cache.iterdir())
    (tmp_path / name).unlink()
    with pytest.raises(OSError, match="cannot download"):
        LPIPS("squeeze", download=True)


class Code:
    """Makes a folder when it is unpickled as Python's pickle would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def sources(cache, monkeypatch, tmp_path, squeezenet) -> list[dict]:
    """Arguments that name a ``.pth``: its path, torchvision's in torch's cache by default, and the path of that."""
    monkeypatch.setattr(perceptual, "SAFE_SINCE", SAFE_SINCE)
    torch.save(squeezenet, tmp_path / "net.pth")
    save_file(squeezenet, tmp_path / "net.safetensors")
    cached = put_into(cache, monkeypatch, (tmp_path / "net.pth").read_bytes())
    return [{"weights": tmp_path / "net.pth"}, {}, {"download": True}, {"weights": str(cached)}]


@pytest.mark.parametrize("version", ["2.6.0", "2.9.1+cu128", "2.10.0a0+git1"])
def test_an_older_torch_reads_no_pth(monkeypatch, tmp_path, sources, version):
    """CVE-2026-24747: a hostile file corrupts its memory, also with ``weights_only=True``."""
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    LPIPS("squeeze", weights=tmp_path / "net.safetensors")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    for source in sources:
        with pytest.raises(
            RuntimeError, match=rf"\.pth on torch 2\.10 or .* {re.escape(version)}, .*, name a \.safetensors file"
        ):
            LPIPS("squeeze", **source)


def test_an_older_torch_downloads_no_pth(cache, monkeypatch):
    monkeypatch.setattr(perceptual, "SAFE_SINCE", SAFE_SINCE)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.9.1"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("it was downloaded"))
    with pytest.raises(RuntimeError, match=r"vgg16-397923af\.pth on torch 2\.10"):
        LPIPS(download=True)


@pytest.mark.parametrize("version", ["2.10.0", "2.10.0+cpu", "2.14.1+cu130"])
def test_a_newer_torch_reads_a_pth(monkeypatch, sources, version):
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    assert len({callable_id(LPIPS("squeeze", **source)) for source in sources}) == 1


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
def test_a_broken_file_is_named(tmp_path, name, squeezenet):
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save(squeezenet, path)
    else:
        save_file(squeezenet, path)
    whole = path.read_bytes()
    for content in (b"", b"\x00" * 100, whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(files.FormatError, match=rf"{name} is no whole file of tensors \(\w+\): get it again$"):
            LPIPS("squeeze", weights=path)


def test_code_in_a_file_is_not_run(tmp_path):
    torch.save({"features.0.weight": Code(tmp_path / "made")}, tmp_path / "net.pth")
    with pytest.raises(files.FormatError, match=r"net.pth is no whole file of tensors \(UnpicklingError\)"):
        LPIPS("squeeze", weights=tmp_path / "net.pth")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"features.0.weight": None}, "'features.0.weight' is missing"),
        ({"features.0.bias": torch.zeros(3)}, r"'features.0.bias' needs \[64\], found \[3\]"),
        ({"features.0.bias": torch.zeros(64).int()}, "'features.0.bias' needs floats, found torch.int32"),
        ({"features.0.bias": torch.full((64,), torch.nan)}, "'features.0.bias' has a value that is not finite"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, squeezenet, change, problem):
    with pytest.raises(
        files.FormatError, match=f"^the state dict: tensor {problem}: expected .* torchvision's squeeze"
    ):
        LPIPS("squeeze", weights={**squeezenet, **change})
    torch.save({**squeezenet, **change}, tmp_path / "net.pth")
    with pytest.raises(files.FormatError, match=f"net.pth: tensor {problem}"):
        LPIPS("squeeze", weights=tmp_path / "net.pth")
    torch.save([1, 2], tmp_path / "net.pth")
    with pytest.raises(files.FormatError, match=r"net.pth needs to hold a state dict: found list"):
        LPIPS("squeeze", weights=tmp_path / "net.pth")


@pytest.mark.parametrize(
    "weights", ["none.pth", "org/none.pth", "org/none.safetensors", Path("org/repo"), "a/b/c", "", "x\0y", "none"]
)
def test_a_path_to_nothing_is_not_a_hub_id(cache, monkeypatch, tmp_path, weights):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("the Hub was asked"))
    with pytest.raises(
        FileNotFoundError, match=r"weights of vgg16: expected .* such as https://\S+vgg16-397923af.pth,"
    ):
        LPIPS(weights=weights)


def test_a_folder_comes_before_a_hub_id(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("the Hub was asked"))
    (tmp_path / "org" / "repo").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"there is no file 'org.repo.model.safetensors' with weights of vgg16"):
        LPIPS(weights="org/repo")


def test_an_error_of_the_disk_is_its_own(monkeypatch, tmp_path):
    def denied(*_, **__):
        raise PermissionError("denied")

    (tmp_path / "net.pth").touch()
    monkeypatch.setattr(torch, "load", denied)
    with pytest.raises(PermissionError, match="denied"):
        LPIPS(weights=tmp_path / "net.pth")


def test_a_hub_id_is_asked_for_one_file(hub_server, tmp_path, squeezenet):
    folder = tmp_path / "pushed"
    folder.mkdir()
    save_file(squeezenet, folder / "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    commit = hub_server.push(folder, name="org/repo.v1")
    named = LPIPS("squeeze", weights=f"org/repo.v1@{commit}")
    assert callable_id(named) == callable_id(LPIPS("squeeze", weights=squeezenet))
    assert not [path for path in hub_server.asked() if "pytorch_model.bin" in path]
    expected = r"^cannot read model.safetensors of the Hub model org/none .*or pass the path of a file$"
    with pytest.raises(hub.HubError, match=expected) as caught:
        LPIPS("squeeze", weights="org/none")
    assert (caught.value.repo, caught.value.revision, caught.value.file) == ("org/none", None, "model.safetensors")


def test_lpips_is_read_and_not_imported(monkeypatch):
    for name in ("lpips", "scipy"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    LPIPS("squeeze", weights="random")
    assert not {"lpips", "scipy"} & set(sys.modules)


# ---- as the loss of an inversion -------------------------------------------------------------------


def rgb(resolution: int = 32) -> CompactGenerator:
    """A generator of RGB images, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CompactGenerator(
            z_dim=8, img_channels=3, img_resolution=resolution, decoder_widths=(16,), encoder_widths=(12,)
        )


def test_the_default_of_rgb_is_the_papers(cache, monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^LPIPS needs the trained backbone vgg16-397923af.pth, which is not "):
        invert(LabelledImages(pairs()[0], torch.arange(3)), rgb(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    loaded = perceptual._load_features
    monkeypatch.setattr(
        perceptual, "_load_features", lambda spec, weights, seed, download: loaded(spec, "random", 0, False)
    )
    loss = default_loss(rgb())
    assert isinstance(loss, PerceptualLoss)
    generator = rgb()
    generator.features = torch.nn.Identity()  # its own features are not asked
    assert callable_id(default_loss(generator)) == callable_id(loss)
    assert (loss.lpips_weight, loss.mse_weight, loss.lpips.backbone, loss.lpips.resize) == (0.9, 0.1, "vgg", None)
    with pytest.raises(ValueError, match=r"vgg needs images from 16x16 px: got 8x8"):
        default_loss(rgb(8))


def test_an_id_names_backbone_weights_and_factors(squeeze, squeezenet):
    loss = PerceptualLoss(0.8, 0.25, lpips=LPIPS("squeeze", weights=squeezenet, resize=64))
    assert re.fullmatch(r"0\.8 lpips squeeze at 64 px \+ 0\.25 mse \([0-9a-f]{12}\)", callable_id(loss))
    assert callable_id(PerceptualLoss(lpips=squeeze)).startswith("0.9 random lpips squeeze + 0.1 mse (")
    other = {**squeezenet, "features.0.bias": squeezenet["features.0.bias"] + 1e-3}
    assert callable_id(LPIPS("squeeze", weights=other)) != callable_id(LPIPS("squeeze", weights=squeezenet))


def test_an_inversion_goes_on_with_the_same_loss_alone(squeeze, tmp_path):
    generator = rgb()
    images = generator.decode(generator.sample_latents(6, torch.Generator().manual_seed(1)))
    dataset = LabelledImages(images, torch.arange(6))
    settings = {
        "steps": 20,
        "lr": 0.05,
        "batch_size": 4,
        "progress": False,
        "encoder": lambda x: torch.zeros(len(x), 8),
    }
    loss = PerceptualLoss(lpips=squeeze)
    bank = invert(dataset, generator, loss=loss, out=tmp_path, **settings)
    start = generator.decode(torch.zeros(6, 8))
    assert (loss(generator.decode(bank[:][0]), images) < loss(start, images)).all()
    assert (bank.mse < pixel_mse(start, images)).all()
    assert bank.metadata["inversion"]["loss"] == callable_id(loss)
    assert invert(dataset, generator, loss=loss, out=tmp_path, **settings).digest() == bank.digest()
    for other in (PerceptualLoss(0.9, 0.2, lpips=squeeze), PerceptualLoss(lpips=LPIPS("squeeze", weights="random"))):
        with pytest.raises(ValueError, match="loss"):
            invert(dataset, generator, loss=other, out=tmp_path, **settings)
