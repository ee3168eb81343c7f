"""Cards: headers that the Hub's client reads, examples and commands that run, and files of others that stay."""

from __future__ import annotations

import hashlib
import json
import re
import shlex

import click
import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import DatasetCard, ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from systems import link
from test_golden import NETWORKS

from latent_mixup import LatentBank, cards, hub, load_generator
from latent_mixup.bank import fingerprint
from latent_mixup.cli import main
from latent_mixup.cli.shared import typed_command
from latent_mixup.convert.nvidia import NVIDIA_LICENCE
from latent_mixup.generators import CompactGenerator
from latent_mixup.hub.terms import DATA_SETS, known_data_set
from latent_mixup.hub.upload import sealed, unsealed

pytestmark = pytest.mark.filterwarnings("ignore:Use .content=.*:DeprecationWarning")  # the client's own upload

FASHION = {"name": "fashion-mnist", "length": 60000, "labels": DATA_SETS["fashion-mnist"].train}


def fenced(language: str, card: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)


def tiny(metadata: dict | None = None) -> CompactGenerator:
    generator = NETWORKS["compact-0.1.0"]()
    generator.metadata = metadata or {}
    return generator


def tiny_bank(generator: CompactGenerator, **metadata: object) -> LatentBank:
    codes = generator.sample_latents(6, torch.Generator().manual_seed(0))
    stated = {"latent_space": "z", "generator": {"name": "gan", "digest": generator.digest()}, **metadata}
    return LatentBank(codes, [0, 1, 1, 2, 1, 0], mse=[0.01, 0.02, 0.03, 0.04, 0.05, 0.06], metadata=stated)


# --- what a card says


@pytest.mark.parametrize("name", NETWORKS)
def test_a_model_card_is_read_by_the_hubs_client(name):
    network = NETWORKS[name]()
    network.metadata["dataset"] = FASHION
    data = ModelCard(cards.card(network.describe())).data
    assert data.library_name == "latent-mixup"
    assert data.license == "mit"
    assert data.datasets == ["zalando-datasets/fashion_mnist"]
    assert set(data.tags) == {"latent-mixup", "mixup", "gan-inversion", "image-classification"}
    assert data.pipeline_tag in ("unconditional-image-generation", "image-feature-extraction")


def test_a_data_set_card_is_read_by_the_hubs_client():
    bank = tiny_bank(tiny(), dataset={**FASHION, "length": 6})
    data = DatasetCard(cards.card(bank.describe())).data
    assert data.license == "mit"
    assert data.source_datasets == ["zalando-datasets/fashion_mnist"]
    assert data.size_categories == ["n<1K"]
    assert data.task_categories == ["image-classification"]
    assert data.pretty_name == "Latent bank of Fashion-MNIST"
    assert data.to_dict()["viewer"] is False


@pytest.mark.parametrize(
    ("metadata", "licence", "phrase"),
    [
        ({"dataset": FASHION}, "mit", "MIT licence"),
        ({"dataset": {"name": "mnist"}}, "cc-by-sa-3.0", "Attribution-Share Alike 3.0"),
        ({"dataset": {"name": "cifar10"}}, "unknown", "please cite the tech report at the bottom of this page"),
        ({"licence": NVIDIA_LICENCE}, "other", "for non-commercial use only"),
        ({"licence": NVIDIA_LICENCE, "dataset": {"name": "cifar10"}}, "other", "Tiny Images"),
        ({}, "unknown", "the files do not say which"),
        ({"dataset": {"name": "holiday pictures", "length": 7, "labels": None}}, "unknown", "do not say which"),
    ],
)
def test_the_licence_follows_the_source(metadata, licence, phrase):
    card = cards.card(tiny(metadata).describe())
    assert ModelCard(card).data.license == licence
    assert phrase in card.partition("## Licence\n")[2]


def test_the_terms_of_codes_stand_beside_those_of_the_network():
    bank = tiny_bank(tiny(), licence=NVIDIA_LICENCE, inversion={"licence": "Ask the authors."})
    terms = cards.card(bank.describe()).partition("## Licence\n")[2]
    assert "for non-commercial use only" in terms
    assert "Ask the authors." in terms


def test_known_data_sets_are_known_by_their_labels_first(data_root):
    bundled = LatentBank.from_pretrained("fashion-mnist")
    assert known_data_set(bundled.metadata["dataset"]) == "fashion-mnist"
    assert known_data_set({"name": "mnist", "labels": DATA_SETS["fashion-mnist"].test}) == "fashion-mnist"
    assert known_data_set({"name": "mnist", "labels": "?"}) == "mnist"
    for stated in (None, [], "mnist", {"name": ["mnist"]}, {"labels": 3, "name": "mine"}, {}):
        assert known_data_set(stated) is None


def test_a_generator_card_says_what_it_is():
    generator = load_generator("fashion-mnist")
    card = cards.card(generator.describe())
    assert "Trained on the 60,000 training images of [Fashion-MNIST]" in card
    assert "| latent codes | [128] in z, mixed by slerp |" in card
    assert "| images | 28 x 28, grey |" in card
    assert f"| digest | `{generator.digest()}` |" in card
    assert "| temperature | `0.5` |" in card
    assert "Girard, Tristan and Gundersen, Benjamin and Laborie, Timoth" in card


def test_a_bank_card_says_how_good_the_codes_are():
    card = cards.card(tiny_bank(tiny(), dataset={**FASHION, "length": 60000}).describe(dtype=torch.float16))
    assert "| mean | 0.0350 |" in card
    assert "| median | 0.0350 |" in card
    assert "| 95 % | 0.0575 |" in card
    assert "| 0.025 or above | 66.7% |" in card
    assert "| classes | 3: 0 (2), 1 (3), 2 (1) |" in card
    assert "Codes of 6 of the 60,000 training images of [Fashion-MNIST]" in card
    assert f"float16, {6 * 4 * 2 / 1e6:.1f} MB" in card
    assert f"digest `{tiny().digest()}`" in card


def test_what_a_bank_lacks_is_not_made_up():
    card = cards.card(LatentBank(torch.ones(2, 3), [-1, -1]).describe())
    assert "## Quality" not in card
    assert "## Data" not in card
    assert "## How it was made" not in card
    assert "| classes | none |" in card
    assert "missing in 2 rows" in card


def test_measured_pictures_and_commands_stand_in_the_card():
    extras = cards.Extras(
        commands=["make it"], measured={"test MSE": "0.01"}, pictures={"samples.png": "Samples, and * more"}
    )
    card = cards.card(tiny().describe(), extras)
    assert "| test MSE | 0.01 |" in card
    assert "![Samples, and \\* more](samples.png)" in card
    assert fenced("bash", card) == ["make it\n"]


# --- examples and commands run


def generator_folder(tmp_path):
    generator = tiny()
    generator.save_pretrained(tmp_path / "generator")
    return generator


@pytest.mark.parametrize("name", [*NETWORKS, "bank"])
def test_the_example_runs_beside_the_files(name, tmp_path, monkeypatch):
    generator = generator_folder(tmp_path)
    thing = tiny_bank(generator) if name == "bank" else NETWORKS[name]()
    thing.save_pretrained(tmp_path / "folder")
    card = (tmp_path / "folder" / "README.md").read_text()
    (example,) = fenced("python", card)
    lines = [line for line in example.splitlines() if line.strip()]
    assert len(lines) <= 5
    monkeypatch.chdir(tmp_path / "folder")
    there = {'"gan"': '"../generator"', '"golden"': '"../generator"'}
    for said, where in there.items():
        example = example.replace(f"load_generator({said})", f"load_generator({where})")
    found: dict = {}
    exec(compile(example, "example", "exec"), found)
    if name == "bank":
        assert (found["image"].shape, found["soft_target"].shape) == ((1, 28, 28), (3,))
        return
    for variable, shape in re.findall(r"^(\w+) = .*  # (\[[\d, ]+\])", example, re.MULTILINE):
        assert list(found[variable].shape) == json.loads(shape)


# --- the command that made it


COMMAND = ["latent-mixup", "invert", "my gan", "--dataset", "fashion-mnist", "--data-root", "data", "--out", "bank"]


def test_the_command_is_shown_as_it_was_typed():
    bank = tiny_bank(tiny(), command=COMMAND, refined=[{"steps": 3, "command": ["latent-mixup", "refine", "bank"]}])
    (shown,) = fenced("bash", cards.card(bank.describe()))
    first, second = shown.replace("\\\n", "").splitlines()
    assert shlex.split(first) == COMMAND
    assert shlex.split(second) == ["latent-mixup", "refine", "bank"]
    assert "command" not in re.sub(r"```.*?```", "", cards.card(bank.describe()), flags=re.DOTALL)


def test_a_long_command_breaks_before_an_option():
    typed = [*COMMAND, *(word for number in range(9) for word in (f"--option-{number}", "value"))]
    (shown,) = fenced("bash", cards.card(tiny({"command": typed}).describe()))
    assert all(line.startswith("    --") for line in shown.splitlines()[1:])
    assert max(map(len, shown.splitlines())) <= 110
    assert shlex.split(shown.replace("\\\n", "")) == typed


@pytest.mark.parametrize("command", [None, [], "rm -rf /", [1], ["a\nb"], {"a": 1}])
def test_what_is_no_command_is_not_shown(command):
    assert not fenced("bash", cards.card(tiny({"command": command}).describe()))


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        (["gan", "--out", "runs/bank"], ["gan", "--out", "runs/bank"]),
        (["/home/me/gan", "--out=/data/bank", "--data-root", "/data"], ["gan", "--out=bank", "--data-root", "data"]),
    ],
)
def test_the_typed_command_holds_no_folders_of_this_machine(typed, kept):
    seen = []

    @click.command("show", context_settings={"ignore_unknown_options": True})
    @click.argument("words", nargs=-1)
    def show(words: tuple[str, ...]) -> None:
        seen.append(typed_command())

    assert typed_command() == []
    group = type(main)("latent-mixup", commands=[show])
    assert CliRunner().invoke(group, ["show", *typed]).exit_code == 0
    assert seen == [["latent-mixup", "show", *kept]]


# --- the file


def test_a_card_is_renewed_until_somebody_edits_it(tmp_path):
    path = tmp_path / "README.md"
    tiny({"name": "one"}).save_pretrained(tmp_path)
    assert path.read_text().splitlines()[-1].startswith("<!-- latent-mixup wrote this card")
    tiny({"name": "two"}).save_pretrained(tmp_path)
    assert "# two: a generator" in path.read_text()
    edited = path.read_text().replace("# two", "# mine")
    path.write_text(edited)
    tiny({"name": "three"}).save_pretrained(tmp_path)
    assert path.read_text() == edited
    assert load_generator(tmp_path).metadata["name"] == "three"


@pytest.mark.parametrize("content", [b"", b"mine", b"\xff\xfe", b"x" * 2_000_000])
def test_a_card_that_somebody_wrote_stays(tmp_path, content):
    (tmp_path / "README.md").write_bytes(content)
    tiny_bank(tiny()).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == content
    assert len(LatentBank.from_pretrained(tmp_path)) == 6


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "out").mkdir()
    link(tmp_path / "out" / "README.md", tmp_path / "elsewhere.md")
    tiny().save_pretrained(tmp_path / "out")
    assert not (tmp_path / "elsewhere.md").exists()
    assert (tmp_path / "out" / "README.md").is_symlink()


@pytest.mark.parametrize("kind", ["generator", "bank"])
def test_loading_never_opens_the_card(tmp_path, kind):
    generator = tiny()
    thing, load = (generator, load_generator) if kind == "generator" else (tiny_bank(generator), _open)
    thing.save_pretrained(tmp_path)
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").mkdir()  # to open it is an error
    assert load(tmp_path).digest()
    thing.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").is_dir()


def _open(folder):
    return LatentBank.from_pretrained(folder, verify=True)


def test_the_digest_is_that_of_the_stored_weights(tmp_path):
    generator = tiny()
    generator.decoder.skip.weight += 1 / 3
    generator.save_pretrained(tmp_path, dtype=torch.float16)
    assert load_generator(tmp_path).digest() != generator.digest()
    assert f"`{load_generator(tmp_path).digest()}`" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("kind", ["generator", "encoder", "bank"])
def test_a_pushed_card_loads_the_repository_and_the_folders_own_the_folder(tmp_path, hub_server, kind):
    thing = {"generator": tiny, "encoder": NETWORKS["mlp"], "bank": lambda: tiny_bank(tiny())}[kind]()
    thing.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert '(".")' in card or '(".", generator)' in card
    pushed = hub.files_to_push(tmp_path, "org/x", kind)["README.md"]
    assert ('("org/x", generator)' if kind == "encoder" else '("org/x")') in pushed.decode()
    assert '(".' not in pushed.decode()
    (tmp_path / "README.md").write_bytes(pushed)
    assert unsealed(tmp_path / "README.md") is not None
    assert hub.files_to_push(tmp_path, "other/name", kind)["README.md"] == pushed  # it has a name
    (tmp_path / "README.md").write_text(card.replace("latent-mixup", "mine"))
    assert hub.files_to_push(tmp_path, "org/x", kind)["README.md"] == (tmp_path / "README.md").resolve()


def test_a_card_is_the_same_for_equal_facts():
    one, two = (sealed(cards.card(tiny().describe())) for _ in range(2))
    assert one == two
    body, _, seal = one.decode().rpartition("\n<!--")
    assert hashlib.sha256(body.encode()).hexdigest() in seal


# --- metadata of strangers

EVIL = "a`b``` |x\n\n---\nlicense: mit\n---\n# <script>alert(1)</script> [x](http://evil) ![y](z)"


def test_what_a_stranger_writes_stays_text():
    generator = tiny(
        {
            "name": EVIL,
            "licence": EVIL,
            "source": {"file": EVIL, EVIL: EVIL},
            "recipe": {EVIL: EVIL, "steps": [EVIL]},
            "dataset": {"name": EVIL, "length": 3, "labels": EVIL},
            "versions": {"torch": EVIL},
        }
    )
    card = cards.card(generator.describe())
    assert "<script>" not in re.sub(r"`[^`\n]*`", "", card)
    assert "](http://evil)" not in re.sub(r"`[^`\n]*`", "", card).replace("\\]", "")
    assert card.count("\n---\n") == 1  # after the header's first line
    assert sum(line.startswith("# ") for line in card.splitlines()) == 1
    assert ModelCard(card).data.license == "other"
    for line in card.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 3, line


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["name", "dataset", "recipe", "source", "licence", "versions", "refined", "filtered", "inversion", "classes"]
KEYS += ["hub", "set_aside", "num_classes", "command"]
metadata_of_any_kind = st.dictionaries(
    st.sampled_from(KEYS),
    json_values
    | st.fixed_dictionaries({"file": json_values, "labels": json_values, "length": json_values, "name": json_values}),
)


@given(metadata=metadata_of_any_kind)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_fuzz_whatever_metadata_say_there_is_a_card(metadata):
    generator = tiny(metadata)
    assert ModelCard(sealed(cards.card(generator.describe(digest="0" * 64))).decode()).data.license
    bank = tiny_bank(tiny())
    bank.metadata = {**bank.metadata, **metadata}
    assert DatasetCard(cards.card(bank.describe())).data.license


def test_the_fingerprint_is_the_one_that_banks_keep(data_root):
    from latent_mixup.cli.shared import torchvision_dataset

    found = fingerprint(torchvision_dataset("fashion-mnist", data_root, train=True))
    assert set(found) == {"length", "labels"}
