"""Other people's files => ours: every release, protocol and numpy; strict about arguments and tensors."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import sys

import foreign
import numpy as np
import pytest
import torch
from foreign import EasyDict, Persistent

from latent_mixup.bank import LatentBank
from latent_mixup.convert import convert, read_latents, read_nvidia
from latent_mixup.files import FormatError
from latent_mixup.generators import load_generator
from latent_mixup.generators.stylegan2 import StyleGAN2

PROTOCOLS = [2, 3, 4, 5]
NUMPY = [1, 2]


@pytest.fixture
def write(tmp_path):
    def write_file(data: bytes, name: str = "network.pkl"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write_file


def assert_same(found: StyleGAN2, expected: StyleGAN2, tolerance: float = 0.0) -> None:
    assert found.arguments() == expected.arguments()
    state = found.state_dict()
    assert state.keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


# --- NVIDIA's PyTorch releases


@pytest.mark.parametrize("numpy", NUMPY)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("release", ["ada", "sg3"])
@pytest.mark.parametrize("c_dim", [0, 3])
def test_a_release_is_read_bit_for_bit(write, release, protocol, numpy, c_dim):
    generator = foreign.tiny(c_dim=c_dim)
    data = foreign.release_pickle(
        generator, release, protocol=protocol, numpy=numpy, other=foreign.tiny(1, c_dim=c_dim)
    )
    found = read_nvidia(write(data))
    assert_same(found, generator)
    assert found.metadata["source"]["format"] == {"ada": "stylegan2-ada-pytorch", "sg3": "stylegan3"}[release]


@pytest.mark.parametrize(
    "sizes", [{"img_resolution": 64}, {"img_channels": 1}, {"conv_clamp": None}, {"use_noise": False}]
)
def test_sizes_and_clamps_come_from_the_modules_themselves(write, sizes):
    generator = foreign.tiny(**sizes)
    assert_same(read_nvidia(write(foreign.release_pickle(generator, "sg3"))), generator)


def test_channels_that_the_arguments_do_not_give_come_from_the_weights(write):
    def forget(network):
        del network.state["_init_kwargs"]["channel_base"]

    found = read_nvidia(write(foreign.release_pickle(foreign.tiny(), "sg3", change=forget)))
    assert_same(found, foreign.tiny())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_other_float_storages_become_float32(write, dtype):
    found = read_nvidia(write(foreign.release_pickle(foreign.tiny(), dtype=dtype)))
    assert_same(found, foreign.tiny(), 0.0 if dtype == torch.float64 else 0.02)
    assert {tensor.dtype for tensor in found.state_dict().values()} == {torch.float32}


def test_the_source_is_recorded(write):
    data = foreign.release_pickle(foreign.tiny())
    metadata = read_nvidia(write(data)).metadata
    assert metadata["source"] == {
        "file": "network.pkl",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "format": "stylegan2-ada-pytorch",
        "class_name": "Generator",
        "module_src_sha256": hashlib.sha256(foreign.SOURCE.encode()).hexdigest(),
    }
    assert "non-commercial" in metadata["licence"]


def test_nothing_of_the_releases_is_imported(write):
    before = set(sys.modules)
    read_nvidia(write(foreign.release_pickle(foreign.tiny())))
    read_nvidia(write(foreign.tf_pickle(foreign.tiny())))
    new = set(sys.modules) - before
    assert not [name for name in new if name.startswith(("torch_utils", "dnnlib", "_imported_module", "training"))]


def layer(network: Persistent, path: str) -> Persistent:
    for name in path.split("."):
        network = network.state["_modules"][name]
    return network


def kwargs(**arguments):
    return lambda network: network.state["_init_kwargs"].update(arguments)


def nested(name: str, **arguments):
    return lambda network: network.state["_init_kwargs"][name].update(arguments)


def state(path: str, **values):
    return lambda network: layer(network, path).state.update(values)


def tensors(path: str, **values):
    return lambda network: layer(network, path).state["_buffers"].update(values)


def share(network):
    storage = foreign.storage_of(*[0.0] * 20_000)
    for name in ("conv0", "conv1", "torgb"):
        parameters = layer(network, f"synthesis.b8.{name}").state["_parameters"]
        for key, value in parameters.items():
            parameters[key] = foreign.Raw(storage, 0, tuple(value.shape), value.stride())


def twice(network):
    modules = layer(network, "synthesis").state["_modules"]
    modules["b4"] = modules["b8"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (kwargs(frobnicate=3), "argument 'frobnicate' is unknown"),
        (nested("synthesis_kwargs", magnitude_ema=1), "argument 'magnitude_ema' is unknown"),
        (nested("synthesis_kwargs", architecture="resnet"), "architecture is 'resnet'"),
        (nested("synthesis_kwargs", resample_filter=[1, 2, 1]), "resample_filter is"),
        (nested("synthesis_kwargs", activation="relu"), "activation is 'relu'"),
        (nested("mapping_kwargs", lr_multiplier=1), "lr_multiplier is 1"),
        (nested("mapping_kwargs", post_norm=True), "argument 'post_norm' is unknown"),
        (kwargs(mapping_kwargs=3), "mapping_kwargs is 3"),
        (state("synthesis.b8", architecture="orig"), "synthesis.b8 architecture is 'orig'"),
        (state("synthesis.b8.conv0", activation="swish"), "synthesis.b8.conv0 activation is 'swish'"),
        (state("synthesis.b8.conv0", conv_clamp=3), "one conv_clamp"),
        (state("mapping.fc0", bias_gain=1.0), "mapping.fc0 bias_gain is 1.0"),
        (
            lambda network: setattr(layer(network, "synthesis.b8.conv0"), "class_name", "FancyLayer"),
            "'synthesis.b8.conv0' is a FancyLayer",
        ),
        (
            lambda network: layer(network, "synthesis.b8.torgb").state["_parameters"].pop("bias"),
            "'synthesis.b8.torgb.bias' is missing",
        ),
        (tensors("synthesis.b8.torgb", extra=torch.zeros(2)), "'synthesis.b8.torgb.extra' is left over"),
        (tensors("mapping", w_avg=torch.zeros(9)), r"'mapping.w_avg' needs shape \(8,\): found \(9,\)"),
        (
            tensors("mapping", w_avg=torch.zeros(8).index_fill(0, torch.tensor(3), torch.nan)),
            "'mapping.w_avg' has a value that is not finite",
        ),
        (
            tensors("synthesis.b8.conv0", resample_filter=torch.eye(4) / 4),
            "'synthesis.b8.conv0.resample_filter' is another filter",
        ),
        (share, "share their bytes"),
        (twice, "not part of a plain tree"),
        (lambda network: network.state.update(z_dim=10**9), "z_dim needs to be an integer from 1 to 65536"),
        (lambda network: network.state.update(z_dim=EasyDict()), "z_dim needs .*: found a dict"),
        (lambda network: network.state.update(img_resolution=12), "no StyleGAN2 that latent_mixup has"),
        (lambda network: network.state["_modules"].pop("synthesis"), "it is not a StyleGAN2"),
        (lambda network: network.state.pop("_init_kwargs"), "does not say how it was constructed"),
        (lambda network: network.state.update(_modules=[1]), "has no _modules"),
    ],
)
def test_what_ours_has_no_place_for_is_refused_by_name(write, change, message):
    with pytest.raises(FormatError, match=rf"network\.pkl: .*{message}"):
        read_nvidia(write(foreign.release_pickle(foreign.tiny(), change=change)))


def test_another_pickle_is_refused(write):
    for data, message in ((foreign.dump({"state": 1}), "without 'G_ema'"), (b"PNG and so on", "not begin as a pickle")):
        with pytest.raises(FormatError, match=message):
            read_nvidia(write(data))
    with pytest.raises(FileNotFoundError, match="is not a file"):
        read_nvidia(write(b"").parent)


# --- TensorFlow


@pytest.mark.parametrize("numpy", NUMPY)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("c_dim", [0, 3])
def test_tensorflow_variables_are_turned_into_ours(write, protocol, numpy, c_dim):
    generator = foreign.tiny(c_dim=c_dim, mapping_num_layers=3)
    found = read_nvidia(write(foreign.tf_pickle(generator, protocol=protocol, numpy=numpy)))
    assert_same(found, generator, 3e-7)  # theirs keeps style biases less 1
    assert found.metadata["source"]["class_name"] == "G_main"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention": 1}, "argument 'attention' is unknown"),
        ({"architecture": "resnet"}, "architecture is 'resnet'"),
        ({"resample_kernel": [1, 2]}, "resample_kernel is"),
        ({"resolution": 1024}, "resolution is 1024"),
        ({"conv_clamp": -1}, "conv_clamp is -1"),
        ({"truncation_psi": 0.5, "style_mixing_prob": None, "fmap_decay": 1.0}, None),
    ],
)
def test_tensorflow_arguments_are_checked(write, arguments, message):
    path = write(foreign.tf_pickle(foreign.tiny(), **arguments))
    if message is None:
        read_nvidia(path)
    else:
        with pytest.raises(FormatError, match=message):
            read_nvidia(path)


def test_a_tensorflow_variable_without_a_place_is_refused(write):
    network = foreign.tf_network(foreign.tiny())
    network.components["synthesis"].variables.append(("8x8/Skip/weight", np.zeros((1, 1), "f4")))
    with pytest.raises(FormatError, match=r"'synthesis/8x8/Skip/weight' is left over"):
        read_nvidia(write(foreign.dump((network, network, network))))


# --- rosinality


@pytest.mark.parametrize("zipped", [True, False])
def test_a_rosinality_checkpoint_is_read_bit_for_bit(write, zipped):
    generator = foreign.tiny(conv_clamp=None, img_resolution=32)
    assert_same(read_nvidia(write(foreign.rosinality_file(generator, zipped=zipped), "a.pt")), generator)


def test_a_checkpoint_without_an_average_gets_that_of_its_mapping(write):
    generator = foreign.tiny(conv_clamp=None)
    found = read_nvidia(write(foreign.rosinality_file(generator, average=False)))
    codes = found.sample_latents(20_000, torch.Generator().manual_seed(7))[:, 0]
    assert float((found.mapping.w_avg - codes.mean(0)).abs().max()) < 0.05 * float(codes.std())
    assert "mean of 10000" in found.metadata["source"]["w_avg"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("g_ema"), "without 'g_ema'"),
        (lambda content: content["g_ema"].update({"convs.0.extra": torch.ones(2)}), "'convs.0.extra' is left over"),
        (lambda content: content["g_ema"].pop("input.input"), "'synthesis.b4.const' is missing"),
        (lambda content: content["g_ema"].update({"to_rgbs.0.upsample.kernel": torch.ones(4, 4)}), "another filter"),
        (lambda content: content["g_ema"].update({"input.input": 3}), "which is 3: expected a tensor"),
    ],
)
def test_a_rosinality_checkpoint_is_checked(write, change, message):
    with pytest.raises(FormatError, match=message):
        read_nvidia(write(foreign.rosinality_file(foreign.tiny(), change=change), "a.pt"))


# --- latents


def some_codes(indices=(3, 1, 2, 40000)) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {f"{index:05d}_{index % 10}.png": draw.standard_normal((4, 6)).astype("f4") for index in indices}


@pytest.mark.parametrize("numpy", NUMPY)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_latents_are_mapped_by_their_keys_and_not_their_order(write, protocol, numpy):
    codes = some_codes()
    bank = read_latents(write(foreign.latents_npy(codes, protocol=protocol, numpy=numpy), "latents.npy"))
    assert bank.source_index.tolist() == [1, 2, 3, 40000]
    assert bank.labels.tolist() == [1, 2, 3, 0]
    assert bank.num_classes == 10
    assert bank.latent_space == "w+"
    for row, index in enumerate([1, 2, 3, 40000]):
        assert np.array_equal(bank[row][0].numpy(), codes[f"{index:05d}_{index % 10}.png"])


def test_what_numpy_saves_is_read(tmp_path):
    codes = {key: np.asfortranarray(code.astype(">f8")) for key, code in some_codes().items()}
    np.save(tmp_path / "latents.npy", codes)
    bank = read_latents(tmp_path / "latents.npy")
    assert np.allclose(bank[0][0].numpy(), codes["00001_1.png"])


def with_(**codes):
    return {**some_codes((1, 2)), **codes}


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ({}, "expected a dict of codes"),
        (5, "it holds 5"),
        (with_(**{"1_1.png": np.zeros((4, 6), "f4")}), "key '1_1.png' is not an index"),
        (with_(**{"00001_7.png": np.zeros((4, 6), "f4")}), "two codes of image 1"),
        (with_(**{"00003_7.png": np.zeros((4, 5), "f4")}), r"f4 \(4, 5\): expected floats of one shape, as \(4, 6\)"),
        (with_(**{"00003_7.png": np.zeros((4, 6), "i8")}), r"i8 \(4, 6\): expected floats"),
        (with_(**{"00003_7.png": np.full((4, 6), np.inf, "f4")}), "image 3 has a value that is not finite"),
        (with_(**{"00003_7.png": None}), "image 3 is None"),
    ],
)
def test_latents_are_checked(write, codes, message):
    with pytest.raises(FormatError, match=message):
        read_latents(write(foreign.latents_npy(codes), "latents.npy"))


@pytest.mark.parametrize("array", [np.zeros(3), np.array([{}, {}], dtype=object)])
def test_another_npy_is_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(FormatError, match="one pickled dict"):
        read_latents(tmp_path / "a.npy")


# --- convert


def test_convert_writes_a_generator_with_its_card(write, tmp_path):
    data = foreign.release_pickle(foreign.tiny())
    made = convert(write(data, "my `net|work`.pkl"), tmp_path / "out")
    assert isinstance(made, StyleGAN2)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    found = load_generator(tmp_path / "out")
    assert_same(found, foreign.tiny())
    assert found.metadata == made.metadata
    card = (tmp_path / "out" / "README.md").read_text()
    assert hashlib.sha256(data).hexdigest() in card
    assert "non-commercial" in card
    assert "`my ?net?work?.pkl`" in card
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architecture"] == "StyleGAN2"


def test_convert_writes_a_bank_with_its_card(write, tmp_path):
    made = convert(write(foreign.latents_npy(some_codes()), "no_suffix"), tmp_path / "out")
    assert isinstance(made, LatentBank)
    bank = LatentBank.from_pretrained(tmp_path / "out", verify=True)
    assert bank.source_index.tolist() == [1, 2, 3, 40000]
    assert bank.metadata["inversion"]["source"]["sha256"] in (tmp_path / "out" / "README.md").read_text()


def test_codes_too_large_for_float16_stay_float32(write, tmp_path):
    convert(write(foreign.latents_npy({"00001_1.png": np.full((4, 6), 1e6, "f4")})), tmp_path / "out")
    assert LatentBank.from_pretrained(tmp_path / "out")[0][0].max() == 1e6


def test_convert_writes_nothing_when_it_refuses(write, tmp_path):
    for data in (b"nonsense", foreign.dump({}), foreign.latents_npy({}), struct.pack("<Q", 0)):
        with pytest.raises(FormatError):
            convert(write(data), tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        convert(tmp_path / "missing.pkl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def npz(**arrays) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def test_projected_codes_become_a_bank_without_labels(write, tmp_path):
    codes = np.random.default_rng(0).standard_normal((1, 4, 8)).astype("f4")
    convert(write(npz(w=codes), "projected_w.npz"), tmp_path / "out")
    bank = LatentBank.from_pretrained(tmp_path / "out", verify=True)
    assert (bank.latent_shape, bank.latent_space, bank.labels.tolist()) == ((4, 8), "w+", [-1])
    np.testing.assert_allclose(bank[[0]][0].numpy(), codes, atol=2e-3)  # float16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npz(x=np.zeros((1, 4, 8), "f4")), "no array 'w'"),
        (npz(w=np.array([{}], dtype=object)), "allow_pickle=False"),
        (npz(w=np.zeros((4, 8), "f4")), r"float32 \[4, 8\]: expected floats \[N, num_ws, w_dim\]"),
        (npz(w=np.zeros((1, 4, 8), "i4")), "int32"),
        (npz(w=np.zeros((0, 4, 8), "f4")), r"\[0, 4, 8\]"),
        (npz(w=np.full((1, 4, 8), np.nan, "f4")), "finite"),
        (npz(w=np.zeros((1, 4, 8), "f4"))[:-40], "damaged"),
    ],
)
def test_other_projected_files_are_refused(write, tmp_path, content, message):
    with pytest.raises(FormatError, match=rf"projected_w.npz.*{message}"):
        convert(write(content, "projected_w.npz"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
