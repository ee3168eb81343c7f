"""The folder of a network: of one version for every reader, and after a kill; damage is found."""

from __future__ import annotations

import functools
import itertools
import json
import os
import shutil
import threading

import pytest
import torch
from test_files import contents, ends_before
from test_golden import GOLDEN

from latent_mixup import files, load_generator
from latent_mixup.generators import VAE, CompactGenerator


def network(seed: int) -> CompactGenerator:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = CompactGenerator(z_dim=4, decoder_widths=(6,), encoder_widths=(5,))
    made.metadata = {"name": str(seed)}
    return made


@pytest.mark.parametrize("older", ["compact-0.1.0", "compact-format-2", None])
@pytest.mark.parametrize("same", [False, True])
def test_a_kill_at_any_file_operation_of_a_save_leaves_the_older_or_the_newer_network(
    tmp_path, monkeypatch, older, same
):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    first = tmp_path / "first"
    if older:
        shutil.copytree(GOLDEN / older, first)
        (first / "expected.safetensors").unlink()
    else:
        network(1).save_pretrained(first)
    newer = load_generator(first) if same else network(2)
    outcomes = {load_generator(first).digest()}
    expected = {*outcomes, newer.digest()}
    for call in itertools.count():
        folder = tmp_path / str(call)
        shutil.copytree(first, folder)
        killed = ends_before(call, functools.partial(newer.save_pretrained, folder))
        outcomes.add(load_generator(folder).digest())
        if call % 5 == 0:
            network(3).save_pretrained(folder)
            assert load_generator(folder).digest() == network(3).digest()
            assert contents(folder).keys() == {"README.md", "config.json", "model.safetensors"}
        shutil.rmtree(folder)
        if not killed:
            break
    assert call > 10
    assert outcomes == expected


def test_a_reader_beside_a_writer_gets_one_network(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    networks = [VAE(2, 1, 8, (4,), (2,)) for _ in range(2)]
    for number, each in enumerate(networks):
        each.metadata = {"name": str(number)}
    networks[0].save_pretrained(tmp_path)
    done = threading.Event()

    def write() -> None:
        for number in range(60):
            networks[number % 2].save_pretrained(tmp_path)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        loaded = load_generator(tmp_path)
        assert loaded.digest() == networks[int(loaded.metadata["name"])].digest()
    writer.join()


def test_a_network_of_format_1_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    """Its config names no weights: only that it is another one tells."""
    folder, safe_path = tmp_path / "folder", files.safe_path
    shutil.copytree(GOLDEN / "compact-0.1.0", folder)
    newer, calls = network(2), itertools.count()

    def replaces(*args):
        if next(calls) == 1:  # the config is read, the weights are not
            newer.save_pretrained(folder)
        return safe_path(*args)

    monkeypatch.setattr(files, "safe_path", replaces)
    assert load_generator(folder).digest() == newer.digest()


def test_damaged_weights_are_refused_unless_they_are_not_to_be_verified(tmp_path):
    network(1).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(files.FormatError, match=r"model.safetensors is damaged: expected sha256 [0-9a-f]{12}, found"):
        load_generator(tmp_path)
    assert load_generator(tmp_path, verify=False).metadata == {"name": "1"}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (3, "field 'weights' needs name, size and sha256, found 3"),
        ({"name": "x", "size": 1, "sha256": "a" * 64}, "field 'weights.name' needs model.safetensors, found 'x'"),
        ({"name": "model.safetensors", "size": 1, "sha256": "a"}, "field 'weights.sha256' needs 64 hexadecimal digits"),
    ],
)
def test_the_weights_that_a_config_names_are_checked(tmp_path, weights, message):
    network(1).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "weights": weights}))
    with pytest.raises(files.FormatError, match=message):
        load_generator(tmp_path)
