"""The promise: networks that were saved once are read for ever, to the same images, codes and features.

``python tests/test_golden.py FOLDER`` writes ``golden/networks`` anew. Those whose config has format version 1 were
written by 0.1.0 or as it did.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from latent_mixup.classifiers import PaperFeatures
from latent_mixup.encoders import MLPEncoder, ReStyleEncoder, load_encoder
from latent_mixup.files import FileEntry
from latent_mixup.generators import (
    DCGAN,
    VAE,
    CompactGenerator,
    ConvGenerator,
    Identity,
    Linear,
    StyleGAN2,
    load_generator,
)
from latent_mixup.networks import SavedNetwork

GOLDEN = Path(__file__).parent / "golden" / "networks"
EXPECTED = "expected.safetensors"  # beside the network: what it was given, and what came out


def filled(network: SavedNetwork) -> SavedNetwork:
    """Numbers that float16 holds exactly, by a rule, in every tensor but the fixed filters."""
    state = network.state_dict()
    for number, name in enumerate(sorted(state)):
        tensor = state[name]
        if tensor.is_floating_point() and not name.endswith("resample_filter"):
            steps = (torch.arange(tensor.numel()) * 37 + number * 11) % 129
            values = (steps + 64) / 128 if name.endswith("running_var") else (steps - 64) / 128
            tensor.copy_(values.view(tensor.shape))
    network.metadata = {"name": "golden", "recipe": {"steps": 3, "lr": 2e-3}, "versions": {"torch": "2.14.1"}}
    return network


def compact() -> SavedNetwork:
    return filled(CompactGenerator(4, 1, 28, (6,), (5,)))


NETWORKS: dict[str, Callable[[], SavedNetwork]] = {
    "compact-0.1.0": compact,
    "stylegan2-0.1.0": lambda: filled(
        StyleGAN2(
            z_dim=4, w_dim=4, c_dim=3, img_resolution=8, img_channels=1, channel_base=16, channel_max=2, conv_clamp=64
        )
    ),
    "dcgan": lambda: filled(DCGAN(4, (3, 2, 2, 2), 1, 12)),
    "vae": lambda: filled(VAE(3, 1, 8, (6,), (2,), 0.5)),
    "conv": lambda: filled(ConvGenerator(3, 1, 16, width=8, detail=2, flow_width=4)),
    "linear": lambda: filled(Linear(3, 1, 6, 0.25)),
    "linear-6x4": lambda: filled(Linear(3, 1, (6, 4), 0.25)),
    "identity": lambda: filled(Identity(1, (2, 3))),
    "mlp": lambda: filled(MLPEncoder(compact(), (5,))),
    "restyle": lambda: filled(ReStyleEncoder(compact(), passes=2, channels=(2, 2, 2, 2), layers=(1, 1, 1, 1))),
    "features": lambda: filled(PaperFeatures()),
    "compact-format-2": compact,
}
HALF = {"compact-0.1.0", "compact-format-2", "mlp", "restyle", "features"}  # stored in float16
LOAD: dict[str, Callable[[Path], SavedNetwork]] = {
    "mlp": lambda folder: load_encoder(folder, compact()),
    "restyle": lambda folder: load_encoder(folder, compact()),
    "features": PaperFeatures.from_pretrained,
}


@torch.no_grad()
def outcome(network: SavedNetwork) -> dict[str, Tensor]:
    """What goes in and what comes out, by a rule that draws nothing."""
    if isinstance(network, MLPEncoder | ReStyleEncoder | PaperFeatures):
        images = ((torch.arange(2 * 784) % 255) / 127 - 1).view(2, 1, 28, 28)
        return {"images": images, "codes": network(images)}
    shape = (3, *network.latent_shape)
    latents = torch.linspace(-1, 1, torch.Size(shape).numel()).view(shape)
    images = network.decode(latents)
    encoded = {"codes": network.encode(images)} if network.has_encoder else {}
    return {"latents": latents, "images": images, **encoded}


def write(name: str, folder: Path) -> None:
    """One golden network, with what comes out of it."""
    network = NETWORKS[name]()
    network.save_pretrained(folder / name, dtype=torch.float16 if name in HALF else torch.float32)
    save_file({key: tensor.contiguous() for key, tensor in outcome(network).items()}, folder / name / EXPECTED)


def load(name: str) -> SavedNetwork:
    return LOAD.get(name, load_generator)(GOLDEN / name)


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_networks_are_readable_for_ever(name):
    found, expected = load(name), NETWORKS[name]()
    assert type(found) is type(expected)
    assert found.arguments() == expected.arguments()
    assert found.metadata == expected.metadata
    assert found.digest() == expected.digest()
    for key, tensor in expected.state_dict().items():
        assert found.state_dict()[key].equal(tensor), key


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_networks_say_the_same_for_ever(name):
    expected, found = load_file(GOLDEN / name / EXPECTED), outcome(load(name))
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert tensor.std() > 0.01, key  # else it would be no test
        torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_networks_are_written_the_same_for_ever(name, tmp_path):
    write(name, tmp_path)
    weights, config = ((tmp_path / name / file).read_bytes() for file in ("model.safetensors", "config.json"))
    assert weights == (GOLDEN / name / "model.safetensors").read_bytes()
    golden = json.loads((GOLDEN / name / "config.json").read_bytes())
    if golden["format_version"] == 1:
        golden |= {"format_version": 2, "weights": asdict(FileEntry.of(GOLDEN / name / "model.safetensors"))}
    assert config == (json.dumps(golden, indent=2) + "\n").encode()


def test_every_architecture_has_a_golden_one():
    from latent_mixup.encoders.loading import ARCHITECTURES as ENCODERS
    from latent_mixup.generators.loading import ARCHITECTURES as GENERATORS

    known = {**GENERATORS, **ENCODERS, "PaperFeatures": PaperFeatures}
    known.pop("DiffusersVAE", None)  # what its weights say is another library's to promise
    assert {type(make()) for make in NETWORKS.values()} == set(known.values())
    assert {path.name for path in GOLDEN.iterdir()} == set(NETWORKS)


if __name__ == "__main__":
    for name in NETWORKS:
        write(name, Path(sys.argv[1]))
