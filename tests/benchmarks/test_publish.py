"""``latent-mixup push``, and the script that makes everything the project publishes."""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import shutil
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import foreign
import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import DatasetCard, ModelCard
from loopback_hub import WRITER
from publish import publish
from test_golden import NETWORKS, compact

from latent_mixup import LatentBank, files, load_generator
from latent_mixup.bundled import BundledImages, idx_bytes, read_idx
from latent_mixup.cli import main
from latent_mixup.images import from_uint8, to_uint8

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings("ignore:Use .content=.*:DeprecationWarning")  # the client's own upload


@pytest.fixture
def writable_hub(hub_server, monkeypatch):
    """A Hub on which this machine's token may write."""
    monkeypatch.setenv("HF_TOKEN", WRITER)
    return hub_server


def push(*words: object) -> tuple[int, str]:
    found = CliRunner().invoke(main, ["push", *map(str, words)])
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.output


def small_bank(**metadata: object) -> LatentBank:
    generator = compact()
    return LatentBank(
        generator.sample_latents(6),
        [0, 1, 2, 0, 1, 2],
        metadata={"generator": {"name": "gan", "digest": generator.digest()}, **metadata},
    )


def saved(kind: str, folder):
    thing = small_bank() if kind == "bank" else NETWORKS[kind]()
    thing.save_pretrained(folder / kind)
    return folder / kind


# --- push


@pytest.mark.parametrize("kind", ["compact-0.1.0", "mlp", "features", "bank"])
def test_a_dry_run_lists_what_a_push_then_sends(kind, tmp_path, writable_hub):
    folder = saved(kind, tmp_path)
    compact().save_pretrained(tmp_path / "generator")
    (folder / "notes.txt").write_text("not published")
    (folder / "samples.png").write_bytes(b"a picture")
    words = [folder, "org/thing", *(["--generator", tmp_path / "generator"] if kind in ("mlp", "bank") else [])]
    code, listed = push(*words, "--dry-run")
    assert code == 0, listed
    assert not writable_hub.requests
    code, said = push(*words)
    assert code == 0, said
    repo = writable_hub.repos["dataset" if kind == "bank" else "model", "org/thing"]
    commit = repo.find("main")
    assert f"commit {commit}" in said
    sent = {
        name: (f"{len(content):,}", hashlib.sha256(content).hexdigest())
        for name, content in repo.commits[commit].items()
        if name != ".gitattributes"
    }
    found = re.findall(r"^  (\S+) +([\d,]+) bytes  ([0-9a-f]{64})$", listed, re.MULTILINE)
    assert {name: (size, sha) for name, size, sha in found} == sent
    assert {"README.md", "samples.png"} < set(sent)
    assert "notes.txt" not in sent
    total = sum(int(size.replace(",", "")) for size, _ in sent.values())
    assert listed.splitlines()[-1] == f"{len(sent)} files, {total:,} bytes; nothing was sent"


def test_what_was_pushed_is_loaded_by_name(tmp_path, writable_hub):
    folder = saved("compact-0.1.0", tmp_path)
    code, said = push(folder, "org/gan", "--private", "--message", "first")
    assert code == 0, said
    assert writable_hub.repos["model", "org/gan"].private
    loaded = load_generator("org/gan", token="hf_writer")
    assert loaded.digest() == compact().digest()
    assert loaded.metadata["hub"]["commit"] in said


def test_a_pull_request_and_a_branch(tmp_path, writable_hub):
    folder = saved("features", tmp_path)
    assert push(folder, "org/features")[0] == 0
    (folder / "LICENSE").write_text("terms")
    code, said = push(folder, "org/features", "--create-pr")
    assert code == 0, said
    assert "/discussions/" in said
    assert push(folder, "org/features", "--branch", "next")[0] == 0
    repo = writable_hub.repos["model", "org/features"]
    assert "LICENSE" in repo.commits[repo.find("next")]
    assert "LICENSE" not in repo.commits[repo.find("main")]
    code, said = push(folder, "org/features", "--branch", "next", "--create-pr")
    assert (code, "leave out branch='next'" in said) == (1, True)


def test_nothing_is_sent_that_does_not_load(tmp_path, writable_hub):
    folder = saved("bank", tmp_path)
    shard = folder / "bank-00000-of-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    for extra in ([], ["--dry-run"]):
        code, said = push(folder, "org/bank", *extra)
        assert code == 1
        assert f"{shard.name} is damaged: expected sha256" in said
    weights = saved("features", tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    code, said = push(weights.parent, "org/features")
    assert code == 1
    assert "model.safetensors is " in said  # damaged, or not whole
    assert not writable_hub.requests


def test_a_bank_and_an_encoder_belong_to_the_generator_they_are_checked_with(tmp_path):
    other = compact()
    other.decoder.skip.bias += 1
    other.save_pretrained(tmp_path / "other")
    code, said = push(saved("bank", tmp_path), "org/x", "--generator", tmp_path / "other", "--dry-run")
    assert (code, "the bank belongs to a generator with digest" in said) == (1, True)
    mlp = saved("mlp", tmp_path)
    code, said = push(mlp, "org/x", "--generator", tmp_path / "other", "--dry-run")
    assert (code, "belongs to generator 'golden'" in said) == (1, True)
    code, said = push(mlp, "org/x", "--dry-run")
    assert (code, "an encoder is checked together with its generator: pass --generator" in said) == (1, True)
    code, said = push(tmp_path / "other", "org/x", "--dry-run", "--generator", mlp.with_name("other"))
    assert (code, "--generator is for a bank or an encoder" in said) == (1, True)


@pytest.mark.parametrize(
    ("repo", "said"),
    [("nobody", "looks like org/name: got 'nobody'"), ("a/b/c", "got 'a/b/c'"), ("../x", "got '../x'")],
)
def test_a_repository_that_cannot_be(tmp_path, repo, said):
    code, output = push(saved("features", tmp_path), repo, "--dry-run")
    assert (code, said in output) == (1, True)


def test_a_folder_of_nothing(tmp_path):
    code, said = push(tmp_path, "org/x")
    assert code == 1
    assert "has no config.json and no bank.index.json: expected a folder that save_pretrained wrote" in said
    (tmp_path / "config.json").write_text('{"architecture": ["x"]}')
    code, said = push(tmp_path, "org/x")
    assert code == 1
    assert "field 'format_version' needs an integer" in said


# --- the script that makes everything


def torchvision_layout(root: Path, name: str) -> None:
    """Sixty-four real images to train on, twenty to test on, where torchvision looks for them."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    source = BundledImages("fashion-mnist", train=False)
    for prefix, rows in (("train", slice(0, 64)), ("t10k", slice(64, 84))):
        for kind, values in (("images-idx3", source.data[rows, 0]), ("labels-idx1", source.targets[rows])):
            (raw / f"{prefix}-{kind}-ubyte").write_bytes(lzma.decompress(idx_bytes(values)))


@pytest.fixture(scope="module")
def cifar10():
    """Twelve images that a tiny StyleGAN2 decodes from known codes, as torchvision has CIFAR-10."""
    generator = foreign.tiny(img_resolution=32)
    codes = torch.randn(12, *generator.latent_shape, generator=torch.Generator().manual_seed(1))
    largest = generator.decode(codes).abs().max()
    for name, tensor in generator.state_dict().items():
        if name.endswith(("torgb.weight", "torgb.bias")):
            tensor.div_(largest)  # so that the images are in [-1, 1]
    pixels = to_uint8(generator.decode(codes)).permute(0, 2, 3, 1).numpy()
    return generator, codes, SimpleNamespace(data=pixels, targets=[index % 10 for index in range(12)])


class FakeCIFAR10:
    def __init__(self, cifar10) -> None:
        self.data, self.targets = cifar10.data, cifar10.targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index):
        return self.data[index], self.targets[index]


def run(*words: object) -> tuple[int, str]:
    found = CliRunner().invoke(publish.main, list(map(str, words)))
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.output


@pytest.fixture(scope="module")
def made(cifar10, tmp_path_factory):
    """Everything, made once: where, how it was asked for, and what was said."""
    root = tmp_path_factory.mktemp("publish")
    for name in ("MNIST", "FashionMNIST"):
        torchvision_layout(root / "data", name)
    generator, codes, images = cifar10
    (root / "net.pkl").write_bytes(foreign.release_pickle(generator))
    rows = enumerate(zip(codes, images.targets, strict=True))
    named = {f"{index:05d}_{label}.png": code.numpy() for index, (code, label) in rows}
    (root / "codes.npy").write_bytes(foreign.latents_npy(named))
    words = ["--data-root", root / "data", "--runs", root / "runs", "--out", root / "hub", "--quick"]
    words += ["--stylegan2-cifar10", root / "net.pkl", "--grad-latents", *[root / "codes.npy"] * 3]
    open_data = publish.open_data

    def dataset(name: str, at: Path, *, test: bool = False) -> object:
        return FakeCIFAR10(images) if name == "cifar10" else open_data(name, at, test=test)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "open_data", dataset)
        code, said = run(*words, "--assets", root / "assets")
        assert code == 0, said
        yield root, words, said


@pytest.fixture
def copied(made, tmp_path):
    """The same in a copy, for a test that changes it: where, and how it is asked for."""
    root, words, _ = made
    copy = shutil.copytree(root, tmp_path / "publish")
    return copy, [copy / word.relative_to(root) if isinstance(word, Path) else word for word in words]


def test_everything_that_is_published_is_made_and_loads(made):
    root, _, said = made
    assert sorted(path.name for path in (root / "hub").iterdir()) == sorted(each.name for each in publish.ARTEFACTS)
    for artefact in publish.ARTEFACTS:
        folder = root / "hub" / artefact.name
        owner = root / "hub" / artefact.generator if artefact.generator else None
        assert publish.check(folder, artefact.kind, owner) in said
        assert f"{folder}: " in said


def test_its_cards_say_the_names_the_licences_and_the_pictures(made):
    root, *_ = made
    for artefact in publish.ARTEFACTS:
        folder = root / "hub" / artefact.name
        card = (folder / "README.md").read_text()
        data = (DatasetCard if artefact.kind == "bank" else ModelCard)(card).data
        assert data.license == artefact.licence
        assert f'("latent-mixup/{artefact.name}"' in card
        if artefact.kind == "bank":
            assert f'load_generator("latent-mixup/{artefact.generator}")' in card
        assert f"benchmarks/publish/publish.py --data-root data --only {artefact.name}" in card
        shown = re.findall(r"!\[.*\]\((.*)\)", card)
        assert sorted(shown) == sorted(path.name for path in folder.glob("*.png"))
        assert len(shown) == (0 if artefact.kind == "features" else 1)
        if "stylegan2" in artefact.name:
            assert "for non-commercial use only" in card


def test_a_bank_is_of_as_many_images_of_each_class_drawn_at_random(made):
    root, *_ = made
    data = BundledImages("fashion-mnist", train=False)
    bank = LatentBank.from_pretrained(root / "hub" / "mnist-bank")
    labels = data.targets[:64]
    assert bank.class_counts.tolist() == torch.bincount(labels, minlength=10).clamp(max=3).tolist()
    assert bank.labels.equal(labels[bank.source_index])
    assert bank.dtype == torch.float16
    codes = bank[:][0]
    assert (codes * publish.GRID).equal((codes * publish.GRID).round())
    generator = load_generator(root / "hub" / "mnist-generator")
    real = from_uint8(data.data[bank.source_index])
    errors = (generator.decode(codes) - real).square().flatten(1).mean(1)
    torch.testing.assert_close(bank.mse, errors, rtol=1e-4, atol=1e-6)
    assert bank.metadata["inversion"]["loss"] == "pixel_mse"


def test_a_card_quotes_what_was_measured_of_this_very_generator(made, tmp_path, monkeypatch):
    root, *_ = made
    frechet = {
        "prior": {"ours": 21.3, "pca": 180.0},
        "mixes_between": {"ours": 91.0},
        "mixes_projected": {"ours": 37.0},
    }
    found = {
        "generator": {"digest": load_generator(root / "hub" / "mnist-generator").digest()},
        "reconstruction": {"ours": {"mse": {"mean": 0.0123}, "kept": 0.9871}},
        "probe": {size: {"codes_minus_pixels": {"mean": gain}} for size, gain in (("20", 0.031), ("100", -0.002))},
        "frechet": frechet,
    }
    files.write_folder(tmp_path / "generators", {"mnist.json": json.dumps(found).encode()})
    monkeypatch.setattr(publish, "RESULTS", tmp_path)
    shop = publish.Workshop(None, root / "runs", root / "hub", "org", publish.QUICK, "cpu", None, {})
    artefacts = {each.name: each for each in publish.ARTEFACTS}
    for name, load in (("mnist-generator", load_generator), ("mnist-bank", LatentBank.from_pretrained)):
        said = shop._measured(artefacts[name], load(root / "hub" / name))
        assert list(said.values()) == ["0.0123", "0.987", "+0.031, -0.002", "21; 180", "91; 37"]
    other = load_generator(root / "hub" / "fashion-mnist-generator")
    assert shop._measured(artefacts["mnist-generator"], other) == {}


def test_the_authors_banks_get_an_mse_and_a_generator(made, cifar10):
    root, *_ = made
    generator, codes, _ = cifar10
    bank = LatentBank.from_pretrained(root / "hub" / "stylegan2-cifar10-bank-0.020")
    assert bank.metadata["inversion"]["refined_above"] == [0.025, 0.02]
    assert bank.generator_digest == generator.digest()
    torch.testing.assert_close(bank[:][0], codes, rtol=1e-3, atol=1e-3)
    assert float(bank.mse.max()) < 1e-3  # its images are these codes', rounded to whole grey values
    assert bank.metadata["dataset"]["name"] == "cifar10"


def test_what_ships_is_what_is_pushed_and_its_images(made, monkeypatch):
    root, *_ = made
    assets = root / "assets" / "mnist"
    bank = LatentBank.from_pretrained(assets / "bank")
    assert bank.digest() == LatentBank.from_pretrained(root / "hub" / "mnist-bank").digest()
    bank.check(load_generator(assets / "generator"))
    images = read_idx(assets / "data" / "train-images-idx3-ubyte.xz")
    assert images.equal(BundledImages("fashion-mnist", train=False).data[bank.source_index, 0])
    assert len(read_idx(assets / "data" / "t10k-labels-idx1-ubyte.xz")) == 5
    assert sorted(path.name for path in (root / "assets" / "cifar10").iterdir()) == ["bank", "generator"]
    monkeypatch.setattr(resources, "files", lambda package: root)
    assert len(BundledImages("mnist")) == len(bank)
    assert load_generator("mnist").metadata["name"] == "mnist"


def test_it_goes_on_where_it_stopped(made, monkeypatch):
    """A second run trains, inverts and measures nothing, and makes the same files."""
    root, words, _ = made
    before = {path: path.read_bytes() for path in (root / "hub").rglob("*") if path.is_file()}
    from latent_mixup.inversion import engine
    from latent_mixup.training import conv

    def again(*_, **__):
        raise AssertionError("this was done before")

    monkeypatch.setattr(conv.ConvTraining, "advance", again)
    monkeypatch.setattr(engine, "optimise_codes", again)
    code, said = run(*words)
    assert code == 0, said
    assert {path: path.read_bytes() for path in (root / "hub").rglob("*") if path.is_file()} == before


def test_a_card_that_was_edited_stays(made):
    root, words, _ = made
    path = root / "hub" / "mnist-features" / "README.md"
    before = path.read_text()
    path.write_text("mine\n")
    assert run(*words, "--only", "mnist-features")[0] == 0
    assert path.read_text() == "mine\n"
    path.write_text(before)


def test_pushing_names_the_generators_commit(copied, writable_hub):
    _, words = copied
    only = [word for name in ("mnist-generator", "mnist-bank") for word in ("--only", name)]
    code, said = run(*words, *only, "--push", "--organisation", "org")
    assert code == 0, said
    commits = dict(re.findall(r"org/(\S+)@([0-9a-f]{40})", said))
    assert set(commits) == {"mnist-generator", "mnist-bank"}
    bank, generator = LatentBank.from_pretrained("org/mnist-bank"), load_generator("org/mnist-generator")
    bank.check(generator)
    stated = bank.metadata["generator"]
    assert (stated["repo"], stated["commit"]) == ("org/mnist-generator", commits["mnist-generator"])
    sent = writable_hub.repos["dataset", "org/mnist-bank"].commits[commits["mnist-bank"]]
    assert f'load_generator("org/mnist-generator@{commits["mnist-generator"]}")' in sent["README.md"].decode()
    assert any(file.endswith(".png") for file in sent)
    code, said = run(*words, "--only", "mnist-bank", "--push", "--organisation", "org")
    assert code == 0, said
    code, said = run(*words, "--only", "fashion-mnist-bank", "--push", "--organisation", "org")
    assert (code, "fashion-mnist-generator" in said) == (1, True)


def test_what_has_no_licence_is_not_pushed(copied, writable_hub):
    root, words = copied
    code, said = run(*words, "--only", "stylegan2-cifar10-bank", "--push", "--organisation", "org")
    assert code == 0, said
    assert "stylegan2-cifar10-bank is not pushed: its authors gave no licence" in said
    assert ("dataset", "org/stylegan2-cifar10-bank") not in writable_hub.repos
    assert (root / "hub" / "stylegan2-cifar10-bank").is_dir()


@pytest.mark.parametrize("name", ["cifar10", "mnist", "fashion-mnist"])
@pytest.mark.parametrize("part", ["generator", "bank"])
def test_bundled_cards_have_the_licence_and_no_labels_were_seen(name, part):
    folder = ROOT / "latent_mixup" / "assets" / name / part
    card = (folder / "README.md").read_text()
    data = (DatasetCard if part == "bank" else ModelCard)(card).data
    assert data.license == {"cifar10": "unknown", "mnist": "cc-by-sa-3.0", "fashion-mnist": "mit"}[name]
    assert f'("{name}")' in card
    kept = json.loads((folder / ("bank.index.json" if part == "bank" else "config.json")).read_text())
    assert not kept["metadata"].get("labels_seen")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "mnist-bank"], "mnist-bank is made from the files of --data-root: pass it"),
        (["--only", "stylegan2-cifar10"], "stylegan2-cifar10 is made from the files of --stylegan2-cifar10: pass it"),
        (["--only", "nothing"], "'nothing' is not one of"),
    ],
)
def test_what_is_missing_is_named(tmp_path, words, said):
    code, output = run(*words, "--out", tmp_path / "hub", "--runs", tmp_path / "runs")
    assert (code != 0, said in output) == (True, True)


def test_a_bank_needs_its_generator_first(made, tmp_path):
    root, *_ = made
    code, said = run("--data-root", root / "data", "--out", tmp_path, "--only", "mnist-bank", "--quick")
    assert (code, "make mnist-generator first" in said) == (1, True)


def test_without_files_there_is_nothing_to_do_and_that_is_said(tmp_path):
    code, said = run("--out", tmp_path / "hub", "--runs", tmp_path / "runs")
    assert code == 0
    assert len(re.findall(r"is left out: it is made from the files of --", said)) == len(publish.ARTEFACTS)
