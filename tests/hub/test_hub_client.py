"""The real client against a Hub on the loopback device: what is asked for, what is kept, what is pushed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from loopback_hub import WRITER, answers, environment
from systems import link

from latent_mixup import files, hub
from latent_mixup.bank import LatentBank
from latent_mixup.classifiers import FeatureCNN, PaperFeatures
from latent_mixup.encoders import MLPEncoder, load_encoder
from latent_mixup.generators import CompactGenerator, StyleGAN2, load_generator, wrap
from latent_mixup.inversion import FeatureLoss, invert

# the client, of the library below it
pytestmark = pytest.mark.filterwarnings("ignore:Use .content=.*:DeprecationWarning")


def make_generator(seed: int = 0) -> CompactGenerator:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CompactGenerator(z_dim=8, img_resolution=6, decoder_widths=(16,), encoder_widths=(16,))


def make_bank(**metadata: object) -> LatentBank:
    draw = torch.Generator().manual_seed(0)
    return LatentBank(torch.randn(9, 8, generator=draw).half(), torch.arange(9) % 3, metadata=metadata)


@pytest.fixture
def generator_commit(hub_server, tmp_path):
    make_generator().save_pretrained(tmp_path / "generator")
    return hub_server.push(tmp_path / "generator")


@pytest.fixture
def bank_commit(hub_server, tmp_path):
    """A bank of three files."""
    make_bank().save_pretrained(tmp_path / "bank", max_shard_bytes=48)
    return hub_server.push(tmp_path / "bank", "dataset")


@pytest.fixture
def writer(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", WRITER)


# --- reading


def test_a_generator_is_downloaded_by_its_files_alone(hub_server, generator_commit, tmp_path):
    hub_server.repo().commits[generator_commit].update({"pytorch_model.bin": b"x", "a/b.json": b"{}", "README.md": b""})
    loaded = load_generator("org/repo")
    assert loaded.digest() == make_generator().digest()
    assert hub_server.asked() == [
        "GET /api/models/org/repo",
        "HEAD /org/repo/resolve/main/config.json",
        "GET /org/repo/resolve/main/config.json",
        f"HEAD /org/repo/resolve/{generator_commit}/model.safetensors",
    ]
    assert len(hub_server.elsewhere.requests) == 1
    snapshot = tmp_path / "home/hub/models--org--repo/snapshots" / generator_commit
    assert sorted(path.name for path in snapshot.rglob("*")) == ["config.json", "model.safetensors"]


def test_a_bank_is_a_data_set(hub_server, bank_commit):
    assert LatentBank.from_pretrained("org/repo", verify=True).digest() == make_bank().digest()
    assert {path.split("/resolve/")[0] for path in hub_server.asked()[1:]} == {
        "HEAD /datasets/org/repo",
        "GET /datasets/org/repo",
    }
    with pytest.raises(hub.HubError, match="Hub model org/repo"):
        load_generator("org/repo")


def test_no_request_for_a_cached_commit_and_one_for_a_branch(hub_server, generator_commit, bank_commit):
    for load, commit in ((load_generator, generator_commit), (LatentBank.from_pretrained, bank_commit)):
        first = load(f"org/repo@{commit}")
        hub_server.requests.clear()
        assert load("org/repo", revision=commit).digest() == first.digest()
        assert hub_server.requests == []
        load("org/repo@main")
        load("org/repo@main")
        hub_server.requests.clear()
        load("org/repo@main")
        assert [request.method for request in hub_server.requests] == ["GET"]
        load("org/repo@main", local_files_only=True)
        assert len(hub_server.requests) == 1


def test_a_branch_that_moved_is_followed_and_an_older_commit_stays(hub_server, generator_commit, tmp_path):
    load_generator("org/repo")
    make_generator(seed=1).save_pretrained(tmp_path / "other")
    newer = hub_server.push(tmp_path / "other")
    assert load_generator("org/repo").digest() == make_generator(seed=1).digest()
    assert load_generator("org/repo", local_files_only=True).metadata["hub"]["commit"] == newer
    hub_server.stop()
    assert load_generator(f"org/repo@{generator_commit}").digest() == make_generator().digest()


def test_the_commit_is_logged_and_kept_in_the_metadata(hub_server, generator_commit, bank_commit, caplog):
    caplog.set_level("INFO", "latent_mixup")
    hub_server.repo().refs["v1.0"] = generator_commit
    generator, bank = load_generator("org/repo@v1.0"), LatentBank.from_pretrained("org/repo")
    assert generator.metadata == {"hub": {"repo": "org/repo", "commit": generator_commit}}
    assert bank.metadata == {"hub": {"repo": "org/repo", "commit": bank_commit}}
    assert [record.message for record in caplog.records if record.levelname == "INFO"] == [
        f"org/repo@v1.0 is commit {generator_commit}",
        f"org/repo@main is commit {bank_commit}",
    ]


def test_another_cache_is_another_cache(hub_server, generator_commit, tmp_path):
    load_generator("org/repo", cache_dir=tmp_path / "cache")
    assert (tmp_path / "cache" / "models--org--repo").is_dir()
    assert not (tmp_path / "home" / "hub").exists()
    with pytest.raises(hub.HubError, match="it is not in the cache"):
        load_generator("org/repo", local_files_only=True)


def test_what_the_client_downloaded_by_itself_is_found_offline(hub_server, bank_commit, monkeypatch):
    huggingface_hub.snapshot_download("org/repo", repo_type="dataset")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub_server.requests.clear()
    assert LatentBank.from_pretrained("org/repo", verify=True).metadata["hub"]["commit"] == bank_commit
    assert hub_server.requests == []


def test_what_was_downloaded_here_is_found_by_the_client(hub_server, bank_commit):
    folder = LatentBank.from_pretrained("org/repo").folder
    assert huggingface_hub.snapshot_download("org/repo", repo_type="dataset", local_files_only=True) == str(folder)


@pytest.mark.parametrize("format_version", [1, 2])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_file_that_was_changed_in_the_cache_is_refused(hub_server, tmp_path, file, format_version):
    make_generator().save_pretrained(tmp_path / "generator")
    config = tmp_path / "generator" / "config.json"
    if format_version == 1:
        said = json.loads(config.read_text()) | {"format_version": 1}
        config.write_text(json.dumps({name: value for name, value in said.items() if name != "weights"}))
    commit = hub_server.push(tmp_path / "generator")
    assert load_generator("org/repo").digest() == make_generator().digest()
    path = tmp_path / "home/hub/models--org--repo/snapshots" / commit / file
    content = path.read_bytes()
    path.resolve().write_bytes(content.replace(b"[", b"[ ", 1) if file == "config.json" else flip(content))
    with pytest.raises(files.FormatError, match=rf"{file} (was changed since it was downloaded|is damaged)"):
        load_generator("org/repo")
    assert load_generator("org/repo", verify=False).arguments() == make_generator().arguments()


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def test_one_file_of_a_repository(hub_server, generator_commit, tmp_path):
    for _ in range(2):
        path = hub.download_file("org/repo@main", "model.safetensors")
        assert path.read_bytes() == (tmp_path / "generator" / "model.safetensors").read_bytes()
    assert len(hub_server.elsewhere.requests) == 1
    with pytest.raises(hub.HubError, match=r"cannot read no.safetensors of the Hub model org/repo \(revision main\): "):
        hub.download_file("org/repo", "no.safetensors")


SCRIPT = """
import latent_mixup as lm
generator, bank = lm.load_generator("org/repo"), lm.LatentBank.from_pretrained("org/repo")
print(generator.metadata["hub"]["commit"], bank.metadata["hub"]["commit"], len(bank))
"""


def test_another_process_with_the_environment_alone(hub_server, generator_commit, bank_commit, tmp_path):
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        hub_server.requests.clear()
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            cwd=tmp_path,
            env={**os.environ, **environment(hub_server, tmp_path / "other", **more)},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert run.stdout == f"{generator_commit} {bank_commit} 9\n"
        assert bool(hub_server.requests) == (not more)


# --- encoders and feature extractors


@pytest.mark.parametrize(
    "make", [PaperFeatures, lambda: FeatureCNN(1, 3), lambda: StyleGAN2(w_dim=8, img_resolution=8, channel_max=4)]
)
def test_networks_come_back_as_they_were_pushed(hub_server, writer, make, tmp_path):
    network = make()
    network.metadata["recipe"] = {"steps": 3}
    pushed = network.push_to_hub("org/net")
    for name in ("org/net", network.save_pretrained(tmp_path / "folder")):
        loaded = type(network).from_pretrained(name)
        assert loaded.digest() == network.digest()
        assert not loaded.training
        assert not any(weight.requires_grad for weight in loaded.parameters())
        assert loaded.metadata == {"recipe": {"steps": 3}, "hub": {"repo": "org/net", "commit": pushed.oid}}
    with pytest.raises(files.FormatError, match="field 'architecture' needs one of CompactGenerator, found"):
        CompactGenerator.from_pretrained("org/net")


def test_the_papers_features_are_those_of_the_loss(hub_server, writer):
    features = PaperFeatures()
    features.push_to_hub("org/features")
    images, targets = torch.rand(2, 2, 1, 28, 28)
    loaded = FeatureLoss(PaperFeatures.from_pretrained("org/features"))
    assert torch.equal(loaded(images, targets), FeatureLoss(features)(images, targets))


def test_an_encoder_comes_with_its_generator(hub_server, writer):
    generator = make_generator()
    encoder = MLPEncoder(generator, (7,))
    pushed = encoder.push_to_hub("org/encoder", commit_message="the first")
    loaded = load_encoder("org/encoder@main", generator)
    assert loaded.digest() == encoder.digest()
    assert loaded.metadata["hub"] == {"repo": "org/encoder", "commit": pushed.oid}
    assert MLPEncoder.from_pretrained("org/encoder", generator, revision=pushed.oid).digest() == encoder.digest()
    hub_server.repo("model", "org/encoder")
    hub_server.elsewhere.requests.clear()
    with pytest.raises(ValueError, match=r"the encoder in .* belongs to generator None"):
        load_encoder("org/encoder", make_generator(seed=1), cache_dir=Path(constants.HF_HUB_CACHE) / "none")
    assert hub_server.elsewhere.requests == []  # it was refused before its weights were asked for


# --- a bank and its generator


def test_a_bank_names_its_generator_by_repository_commit_and_digest(hub_server, writer, generator_commit, tmp_path):
    generator = load_generator("org/repo")
    bank = invert(images_of(generator), generator, loss=pixel_mse, steps=0, out=tmp_path / "run", progress=False)
    named = {"name": None, "digest": generator.digest(), "repo": "org/repo", "commit": generator_commit}
    assert bank.metadata["generator"] == named
    bank.push_to_hub("org/bank")
    loaded = LatentBank.from_pretrained("org/bank")
    assert loaded.metadata["generator"] == named
    loaded.check(generator)
    make_generator(seed=1).push_to_hub("org/other")
    other = load_generator("org/other")
    message = (
        f"the bank belongs to a generator with digest {generator.digest()[:12]} \\(org/repo@{generator_commit}\\), "
        f"this one \\(org/other@{other.metadata['hub']['commit']}\\) has {other.digest()[:12]}: load that generator, or"
    )
    with pytest.raises(ValueError, match=message):
        loaded.check(other)


def test_a_run_goes_on_with_the_same_generator_from_another_place(hub_server, generator_commit, tmp_path):
    local, out = make_generator(), tmp_path / "run"
    local.metadata["name"] = None
    first = invert(images_of(local), local, loss=pixel_mse, steps=0, out=out, progress=False)
    assert first.metadata["generator"] == {"name": None, "digest": local.digest(), "commit": None}
    again = invert(images_of(local), load_generator("org/repo"), loss=pixel_mse, steps=0, out=out, progress=False)
    assert again.metadata["generator"]["commit"] == generator_commit
    assert again.digest() == first.digest()


@pytest.mark.parametrize("key", ["repo", "commit"])
def test_where_a_generator_lies_is_said_by_a_string(key):
    with pytest.raises(ValueError, match=rf"metadata\['generator'\]\['{key}'\] needs to be a string: got \[1\]"):
        make_bank(generator={"digest": "d", key: [1]})


def images_of(generator: CompactGenerator) -> list[tuple[torch.Tensor, int]]:
    draw = torch.Generator().manual_seed(3)
    return [(image, n % 3) for n, image in enumerate(generator.decode(generator.sample_latents(4, draw)))]


def pixel_mse(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (images - targets).square().flatten(1).mean(1)


# --- writing


def test_a_push_makes_a_repository_and_says_where_it_lies(hub_server, writer, caplog):
    caplog.set_level("INFO", "latent_mixup")
    generator = make_generator()
    pushed = generator.push_to_hub("org/new", private=True)
    repo = hub_server.repos["model", "org/new"]
    assert pushed == f"{hub_server.url}/org/new/commit/{pushed.oid}"
    assert repo.private
    assert repo.refs == {"main": pushed.oid}
    assert set(repo.commits[pushed.oid]) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert generator.metadata["hub"] == {"repo": "org/new", "commit": pushed.oid}
    assert caplog.messages[-1] == f"org/new@main is commit {pushed.oid}"
    assert [request.headers.get("authorization") for request in hub_server.elsewhere.requests] == [None]
    assert json.loads(repo.commits[pushed.oid]["config.json"])["metadata"] == {}


def test_a_second_push_of_the_same_is_no_commit(hub_server, writer):
    generator = make_generator()
    first = generator.push_to_hub("org/new")
    assert generator.push_to_hub("org/new").oid == first.oid
    assert load_generator("org/new").push_to_hub("org/new").oid == first.oid


def test_a_push_to_a_branch_and_a_pull_request_leave_main_alone(hub_server, writer):
    first = make_generator().push_to_hub("org/new")
    branch = make_generator(seed=1).push_to_hub("org/new", branch="dev/1", commit_message="another")
    request = make_generator(seed=2).push_to_hub("org/new", create_pr=True)
    assert hub_server.repo("model", "org/new").refs == {
        "main": first.oid,
        "dev/1": branch.oid,
        "refs/pr/1": request.oid,
    }
    assert request.pr_url == f"{hub_server.url}/org/new/discussions/1"
    for revision, seed in (("main", 0), ("dev/1", 1), ("refs/pr/1", 2), (request.oid, 2)):
        assert load_generator(f"org/new@{revision}").digest() == make_generator(seed=seed).digest()


def test_a_tag_names_the_commit_and_does_not_move(hub_server, writer):
    first = make_generator().push_to_hub("org/new", tag="v1")
    with pytest.raises(hub.HubError, match="it has a tag 'v1', which does not move, choose another one"):
        make_generator(seed=1).push_to_hub("org/new", tag="v1")
    second = make_generator(seed=1).push_to_hub("org/new", tag="v2")
    assert hub_server.repo("model", "org/new").refs == {"main": second.oid, "v1": first.oid, "v2": second.oid}
    assert load_generator("org/new@v1").digest() == make_generator().digest()
    with pytest.raises(ValueError, match="leave out tag='v3' until the pull request is merged"):
        make_generator().push_to_hub("org/new", create_pr=True, tag="v3")


def test_a_push_that_was_stopped_sends_what_the_hub_has_not(hub_server, writer, tmp_path):
    make_bank().save_pretrained(tmp_path, max_shard_bytes=48)
    shards = {files.sha256(path) for path in tmp_path.glob("*.safetensors")}
    assert len(shards) == 3
    store, (last, *_) = hub_server.elsewhere, sorted(shards)
    store.play(f"PUT /stored/{last}", answers(403), times=1)
    with pytest.raises(hub.HubError):
        hub.push_folder(tmp_path, "org/bank", "bank")
    repo = hub_server.repo("dataset", "org/bank")
    assert "bank.index.json" not in repo.commits[repo.refs["main"]]
    there = {*store.stored}
    store.requests.clear()
    hub.push_folder(tmp_path, "org/bank", "bank")
    sent = [request.path.rpartition("/")[2] for request in store.requests if request.method == "PUT"]
    assert sorted(sent) == sorted(shards - there)
    assert LatentBank.from_pretrained("org/bank", verify=True).digest() == make_bank().digest()


def test_a_smaller_bank_takes_the_place_of_a_larger_one(hub_server, writer, bank_commit):
    hub_server.repo("dataset").commits[bank_commit].update({"README.md": b"kept", "bank-notes.txt": b"kept"})
    make_bank().subset(slice(0, 4)).push_to_hub("org/repo")
    files = hub_server.repo("dataset").commits[hub_server.repo("dataset").refs["main"]]
    assert set(files) == {"README.md", "bank-notes.txt", "bank.index.json", "bank-00000-of-00001.safetensors"}
    assert len(LatentBank.from_pretrained("org/repo")) == 4
    assert len(LatentBank.from_pretrained("org/repo", revision=bank_commit)) == 9


def test_a_push_keeps_the_numbers_that_are_asked_for(hub_server, writer):
    bank = LatentBank(torch.full((2, 3), 1e5), [0, 1])
    with pytest.raises(ValueError, match="float16 holds up to 65504"):
        bank.push_to_hub("org/bank")
    assert ("dataset", "org/bank") not in hub_server.repos
    bank.push_to_hub("org/bank", dtype=torch.float32)
    assert LatentBank.from_pretrained("org/bank").digest() == bank.digest()


def test_a_folder_is_pushed_with_its_card_and_without_the_rest(hub_server, writer, tmp_path):
    make_generator().save_pretrained(tmp_path / "out")
    for name in ("README.md", "LICENSE", "NOTICE.txt", "samples.png", "checkpoint.pt", "secret.json", ".env"):
        (tmp_path / "out" / name).write_bytes(b"---\nlicense: mit\n---\n")
    (tmp_path / "out" / "pictures.png").mkdir()
    pushed = hub.push_folder(tmp_path / "out", "org/new", "generator")
    assert set(hub_server.repo("model", "org/new").commits[pushed.oid]) == {
        ".gitattributes",
        *("README.md", "LICENSE", "NOTICE.txt", "samples.png", "config.json", "model.safetensors"),
    }


def test_what_was_downloaded_can_be_pushed_again(hub_server, writer, bank_commit):
    bank = LatentBank.from_pretrained("org/repo")
    hub.push_folder(bank.folder, "org/copy", "bank")
    assert LatentBank.from_pretrained("org/copy", verify=True).digest() == bank.digest()


def test_what_is_not_ours_cannot_be_pushed(hub_server, writer):
    wrapped = wrap(make_generator().decode, latent_shape=(8,))
    with pytest.raises(NotImplementedError, match=r"WrappedGenerator cannot be saved: .* wrap it again where you have"):
        wrapped.push_to_hub("org/new")
    assert hub_server.requests == []


@pytest.mark.parametrize("repo_id", ["name", "a/b/c", "org/new@main", "../x", "org/", ""])
def test_a_push_needs_a_repository(hub_server, repo_id):
    with pytest.raises(ValueError, match=r"a repository to push to looks like org/name: got "):
        make_generator().push_to_hub(repo_id)
    assert hub_server.requests == []


def test_a_pull_request_has_no_branch(hub_server):
    with pytest.raises(ValueError, match="against the default branch: leave out branch='dev'"):
        make_generator().push_to_hub("org/new", branch="dev", create_pr=True)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "config.json is missing: expected a folder that save_pretrained wrote"),
        ("model.safetensors", "model.safetensors is missing: config.json names it, get it again"),
    ],
)
def test_half_a_folder_is_not_pushed(hub_server, tmp_path, missing, message):
    make_generator().save_pretrained(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        hub.push_folder(tmp_path, "org/new", "generator")
    assert hub_server.requests == []


@pytest.mark.parametrize("kind", ["bank", "generator"])
def test_what_is_damaged_is_not_pushed(hub_server, tmp_path, kind):
    (make_bank() if kind == "bank" else make_generator()).save_pretrained(tmp_path)
    (part,) = tmp_path.glob("*.safetensors")
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(files.FormatError, match="is damaged: expected sha256"):
        hub.push_folder(tmp_path, "org/new", kind)
    assert hub_server.requests == []


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            '{"files": [{"name": "../x", "size": 1, "sha256": ""}]}',
            r"names a file '\.\./x': expected a plain file name",
        ),
        ('{"files": [{"name": "x", "sha256": ""}]}', r"field 'files\[0\]' needs name, size and sha256"),
        ('{"files": 3}', "field 'files' needs a list of files, found 3"),
    ],
)
def test_an_index_that_is_not_right_is_not_pushed(hub_server, tmp_path, index, message):
    (tmp_path / "bank.index.json").write_text(index)
    with pytest.raises(files.FormatError, match=message):
        hub.push_folder(tmp_path, "org/new", "bank")
    assert hub_server.requests == []


def test_what_a_killed_save_left_under_another_name_is_pushed_under_its_own(hub_server, writer, tmp_path):
    make_generator().save_pretrained(tmp_path)
    entry = files.FileEntry.of(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").rename(tmp_path / entry.interim)
    (tmp_path / "model.safetensors").write_bytes(b"an older one")
    pushed = hub.push_folder(tmp_path, "org/new", "generator")
    names = {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert set(hub_server.repo("model", "org/new").commits[pushed.oid]) == names
    assert load_generator("org/new").digest() == load_generator(tmp_path).digest() == make_generator().digest()


def test_a_link_out_of_the_folder_is_not_pushed(hub_server, tmp_path):
    make_generator().save_pretrained(tmp_path / "out")
    (tmp_path / "secret").write_text("secret")
    link(tmp_path / "out" / "LICENSE", tmp_path / "secret")
    with pytest.raises(files.FormatError, match=r"LICENSE is a link that leaves its folder"):
        hub.push_folder(tmp_path / "out", "org/new", "generator")
    assert hub_server.requests == []
