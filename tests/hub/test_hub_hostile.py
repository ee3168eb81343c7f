"""Hostile repositories: refused by name, before what they name is downloaded, let alone allocated."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from latent_mixup import files, hub
from latent_mixup.bank import BankFormatError, LatentBank
from latent_mixup.generators import CompactGenerator, load_generator


@pytest.fixture
def generator_commit(hub_server, tmp_path):
    CompactGenerator(z_dim=8, img_resolution=6, decoder_widths=(16,), encoder_widths=(16,)).save_pretrained(
        tmp_path / "generator"
    )
    return hub_server.push(tmp_path / "generator")


@pytest.fixture
def bank_commit(hub_server, tmp_path):
    """A bank of three files."""
    LatentBank(torch.randn(9, 8).half(), torch.arange(9) % 3).save_pretrained(tmp_path / "bank", max_shard_bytes=48)
    return hub_server.push(tmp_path / "bank", "dataset")


def replaced(hub_server, file: str, content: bytes, repo_type: str = "model") -> None:
    hub_server.repo(repo_type).commit({file: content})
    if file == "model.safetensors":  # and the config agrees
        entry = {"name": file, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        edited(hub_server, "config.json", "model", lambda config: config.update(weights=entry))


def edited(hub_server, file: str, repo_type: str, change) -> None:
    repo = hub_server.repo(repo_type)
    value = json.loads(repo.commits[repo.refs["main"]][file])
    change(value)
    replaced(hub_server, file, json.dumps(value).encode(), repo_type)


def written(home: Path) -> list[str]:
    """The names of all files in the cache that hold data of a repository."""
    return sorted({path.name for path in (home / "hub").glob("*/snapshots/*/**/*") if path.is_file()})


HOSTILE_NAMES = ["../../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "C:\\x.safetensors", "x\0.safetensors"]


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, "..", "", ".x.safetensors", "x" * 300, "README.md", 3, None])
def test_a_bank_that_names_hostile_files(hub_server, bank_commit, tmp_path, name):
    edited(hub_server, "bank.index.json", "dataset", lambda index: index["files"][1].update(name=name))
    hub_server.repo("dataset").commit({str(name): b"x" * 100})  # it is there as well
    before = sorted(path for path in tmp_path.rglob("*") if "home" not in path.parts)
    with pytest.raises(BankFormatError, match=r"bank.index.json|expected a plain file name"):
        LatentBank.from_pretrained("org/repo")
    assert written(tmp_path / "home") == ["bank.index.json"]
    assert before == sorted(path for path in tmp_path.rglob("*") if "home" not in path.parts)
    assert hub_server.elsewhere.requests == []


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_listing_of_hostile_names_does_no_harm(hub_server, generator_commit, tmp_path, name):
    hub_server.repo().commits[generator_commit][name] = b"x" * 100
    load_generator("org/repo")
    assert written(tmp_path / "home") == ["config.json", "model.safetensors"]


HOSTILE_INDEX = {
    "no such field": (lambda index: index.update(__class__="os.system"), "field '__class__' is unknown"),
    "enormous codes": (
        lambda index: index.update(latent_shape=[2**31, 2**31]),
        r"field 'files\[0\].size' needs at least",
    ),
    "enormous rows": (lambda index: index.update(num_rows=2**47), "field 'files' needs "),
    "enormous integer": (lambda index: index.update(num_rows=10**400), "field 'num_rows' needs a positive integer"),
    "a pickle": (
        lambda index: index["files"][0].update(name="bank.pkl"),
        r"field 'files\[0\].name' needs",
    ),
    "a file twice": (
        lambda index: index["files"].__setitem__(1, index["files"][0]),
        "'files' needs each name once",
    ),
    "a dtype": (lambda index: index.update(dtype="object"), "field 'dtype' needs float16 or float32, found 'object'"),
    "a later version": (lambda index: index.update(format_version=99), "has format_version 99"),
    "no list": (lambda index: index.update(files={"__class__": 1}), "field 'files' needs a list of files"),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE_INDEX.values(), ids=HOSTILE_INDEX.keys())
def test_a_hostile_index_is_refused_before_a_code_is_downloaded(hub_server, bank_commit, tmp_path, change, message):
    edited(hub_server, "bank.index.json", "dataset", change)
    with pytest.raises(BankFormatError, match=message):
        LatentBank.from_pretrained("org/repo")
    assert written(tmp_path / "home") == ["bank.index.json"]


def test_a_shard_that_is_larger_or_other_than_the_index_says(hub_server, bank_commit):
    repo, name = hub_server.repo("dataset"), "bank-00001-of-00003.safetensors"
    shard = repo.commits[bank_commit][name]
    repo.commit({name: shard + b"x"})
    size = rf"{name} of the Hub dataset .*: it has {len(shard) + 1} bytes, expected at most {len(shard)}, do not use"
    with pytest.raises(hub.HubError, match=size):
        LatentBank.from_pretrained("org/repo")
    repo.commit({name: shard[:-1] + b"x"})
    with pytest.raises(hub.HubError, match=r"it has SHA-256 [0-9a-f]{12}, expected [0-9a-f]{12}, do not"):
        LatentBank.from_pretrained("org/repo")
    assert not any(name in request for request in hub_server.asked())


HOSTILE_CONFIG = {
    "unknown keys": (lambda config: config.update(auto_map={"AutoModel": "x.py"}), "field 'auto_map' is unknown"),
    "__class__": (
        lambda config: config["arguments"].update(__class__="os.system"),
        "field 'arguments' is not understood",
    ),
    "another class": (lambda config: config.update(architecture="os.system"), "field 'architecture' needs one of "),
    "no dict": (lambda config: config.update(arguments=[]), "field 'arguments' needs a dict, "),
    "a long list": (
        lambda config: config["arguments"].update(decoder_widths=[1] * 1000),
        "field 'arguments' needs a dict, with at most 64 entries in each value",
    ),
    "a negative size": (lambda config: config["arguments"].update(z_dim=-1), "field 'arguments' is not understood"),
    "an enormous integer": (lambda config: config["arguments"].update(z_dim=10**400), "'arguments' is not understood"),
    "a later version": (lambda config: config.update(format_version=3), "has format_version 3"),
    "other weights": (
        lambda config: config["weights"].update(name="x.safetensors"),
        "field 'weights.name' needs model.safetensors",
    ),
    "weights elsewhere": (lambda config: config["weights"].update(name="../x"), "expected a plain file name"),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE_CONFIG.values(), ids=HOSTILE_CONFIG.keys())
def test_a_hostile_config_is_refused_before_a_weight_is_downloaded(
    hub_server, generator_commit, tmp_path, change, message
):
    edited(hub_server, "config.json", "model", change)
    with pytest.raises(files.FormatError, match=message):
        load_generator("org/repo")
    assert written(tmp_path / "home") == ["config.json"]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"[" * 100_000, b"\x80\x04."])
@pytest.mark.parametrize(
    ("load", "file", "repo_type"),
    [(load_generator, "config.json", "model"), (LatentBank.from_pretrained, "bank.index.json", "dataset")],
)
def test_what_is_no_json_object(hub_server, generator_commit, bank_commit, load, file, repo_type, content):
    replaced(hub_server, file, content, repo_type)
    with pytest.raises(files.FormatError, match=rf"{file} (is not valid JSON|needs to hold a JSON object)"):
        load("org/repo")


def with_header(change) -> bytes:
    """Weights with another header before the same data."""

    def weights(content: bytes) -> bytes:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        change(header)
        said = json.dumps(header).encode()
        return len(said).to_bytes(8, "little") + said + content[8 + length :]

    return weights


def retensored(change):
    def weights(content: bytes, path: Path) -> bytes:
        path.write_bytes(content)
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        return path.read_bytes()

    return weights


FIRST = "decoder.layers.0.weight"
HOSTILE_WEIGHTS = {
    "an overlap": with_header(lambda header: header["latent_mean"].update(data_offsets=[0, 32])),
    "a hole": with_header(lambda header: header.pop("latent_mean")),
    "an enormous header": lambda content: (2**40).to_bytes(8, "little") + content[8:],
    "an enormous tensor": with_header(lambda header: header["latent_mean"].update(shape=[2**62])),
    "offsets outside": with_header(lambda header: header["latent_mean"].update(data_offsets=[0, 2**62])),
    "a pickle": lambda content: b"\x80\x04cos\nsystem\n.",
    "a zip": lambda content: b"PK\x03\x04" + content,
    "cut off": lambda content: content[:-4],
    "an unknown dtype": with_header(lambda header: header["latent_mean"].update(dtype="OBJECT")),
}


@pytest.mark.parametrize("change", HOSTILE_WEIGHTS.values(), ids=HOSTILE_WEIGHTS.keys())
def test_hostile_weights_are_refused(hub_server, generator_commit, change):
    weights = hub_server.repo().commits[generator_commit]["model.safetensors"]
    replaced(hub_server, "model.safetensors", change(weights))
    with pytest.raises(
        files.FormatError,
        match=r"model.safetensors(: tensor '.*' | is not a whole safetensors file: )",
    ):
        load_generator("org/repo")


HOSTILE_TENSORS = {
    "NaN": (lambda mean: mean.fill_(torch.nan), "has a value that is not finite: get the file again"),
    "infinity": (lambda mean: mean.fill_(torch.inf), "has a value that is not finite: get the file again"),
    "integers": (lambda mean: mean.long(), "needs F32 or F16, found I64"),
    "doubles": (lambda mean: mean.double(), "needs F32 or F16, found F64"),
    "eight bits": (lambda mean: mean.to(torch.float8_e4m3fn), "needs F32 or F16, found F8_E4M3"),
    "a scalar": (lambda mean: mean[0].clone(), r"needs \[8\], found \[\]"),
    "more of them": (lambda mean: mean.repeat(2), r"needs \[8\], found \[16\]"),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE_TENSORS.values(), ids=HOSTILE_TENSORS.keys())
def test_tensors_that_are_not_the_networks(hub_server, generator_commit, tmp_path, change, message):
    def changed(tensors: dict[str, torch.Tensor]) -> None:
        tensors["latent_mean"] = change(tensors["latent_mean"])

    weights = hub_server.repo().commits[generator_commit]["model.safetensors"]
    replaced(hub_server, "model.safetensors", retensored(changed)(weights, tmp_path / "x"))
    with pytest.raises(files.FormatError, match=rf"model.safetensors: tensor 'latent_mean' {message}"):
        load_generator("org/repo")


def resealed(hub_server, change) -> None:
    """Another first shard, with an index that agrees."""
    repo, name = hub_server.repo("dataset"), "bank-00000-of-00003.safetensors"
    shard = change(repo.commits[repo.refs["main"]][name])
    repo.commit({name: shard})

    def seal(index):
        index["files"][0].update(size=len(shard), sha256=hashlib.sha256(shard).hexdigest())

    edited(hub_server, "bank.index.json", "dataset", seal)


SHARD = r"bank-00000-of-00003.safetensors"
HOSTILE_SHARDS = {
    "an overlap": (
        with_header(lambda header: header["labels"].update(data_offsets=header["source_index"]["data_offsets"])),
        "is not a whole safetensors file",
    ),
    "a hole": (with_header(lambda header: header.pop("labels")), "is not a whole safetensors file"),
    "a pickle": (lambda content: b"\x80\x04cos\nsystem\n." + content, "is not a whole safetensors file"),
    "another dtype": (
        with_header(lambda header: header["latents"].update(dtype="BF16")),
        r"field 'latents' needs F16 \[3, 8\], found 'BF16",
    ),
    "another shape": (
        with_header(lambda header: header["latents"].update(shape=[8, 3])),
        r"field 'latents' needs F16 \[3, 8\], found 'F16 \[8, 3\]",
    ),
    "the header of another bank": (
        with_header(lambda header: header["__metadata__"].update(latent_mixup='{"__class__": 1}')),
        "is not shard 0 of this bank: expected",
    ),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE_SHARDS.values(), ids=HOSTILE_SHARDS.keys())
def test_hostile_shards_are_refused(hub_server, bank_commit, change, message):
    resealed(hub_server, change)
    with pytest.raises(BankFormatError, match=rf"{SHARD}:? {message}"):
        LatentBank.from_pretrained("org/repo")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_codes_that_are_not_finite_are_found_by_verify(hub_server, bank_commit, tmp_path, value):
    def spoil(shard: bytes) -> bytes:
        path = tmp_path / "x"
        path.write_bytes(shard)
        tensors, opened = load_file(path), json.loads(shard[8 : 8 + int.from_bytes(shard[:8], "little")])
        tensors["latents"][1, 2] = value
        save_file(tensors, path, metadata=opened["__metadata__"])
        return path.read_bytes()

    resealed(hub_server, spoil)
    with pytest.raises(BankFormatError, match="latents need finite numbers: row 1 has NaN or infinity"):
        LatentBank.from_pretrained("org/repo", verify=True)
