"""Pools: mixes decoded once, served as a data set, and refreshed."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from re import escape

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from conftest import LabelledImages, LinearGenerator, one_hot_bank
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from systems import FORK, KILLED, link, pipe
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import v2

import latent_mixup as lm
from latent_mixup.augment.sources import SplitWarning
from latent_mixup.bank import LatentBank
from latent_mixup.classifiers import PaperCNN
from latent_mixup.cli import main
from latent_mixup.images import RangeMismatchWarning, from_uint8, to_uint8
from latent_mixup.policies import NAMED, Beta, Channels, Dirichlet, Policy, from_config, to_config
from latent_mixup.pool import dataset as rendered
from latent_mixup.pool.files import COLUMNS_FILE, IMAGES_FILE, INDEX_FILE, Pool, PoolFormatError, PoolIndex
from latent_mixup.pool.refresh import Refreshed
from latent_mixup.pool.render import Renderer, render

rendering = sys.modules["latent_mixup.pool.render"]


GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def make(linear_generator, toy_bank, tmp_path):
    def make(name="pool", n=60, **settings) -> Path:
        given = {"generator": linear_generator, "bank": toy_bank, "progress": False, **settings}
        assert render(out=tmp_path / name, n=n, **given)
        return tmp_path / name

    return make


@pytest.fixture
def small_chunks(monkeypatch):
    """Blocks of 8 entries, chunks of 16 images."""
    monkeypatch.setattr(rendering, "POOL_BLOCK", 8)
    monkeypatch.setattr(rendering, "CHUNK_BYTES", 16 * 16)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pull(dataset, **options):
    batches = list(DataLoader(dataset, 8, **options))
    return torch.cat([images for images, _ in batches]), torch.cat([targets for _, targets in batches])


def draw_pool(entries, num_rows=50, alpha=1.0, seed=0, turn=0):
    """Rows, partners and lam of some entries."""
    bank = LatentBank(torch.zeros(num_rows, 2), torch.zeros(num_rows, dtype=torch.int64))
    draw = Renderer(None, bank, Policy(Beta(alpha)), seed, 256).draw(entries, turn)
    return draw.rows, draw.partners, draw.lam


# ---- what is rendered ------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "last"), [(0, 3000), (5, 6), (1023, 1025), (1024, 2048), (2500, 3000)])
def test_an_entrys_draw_depends_on_its_number_alone(first, last):
    whole = draw_pool(range(3000), 50, alpha=0.5, seed=3)
    part = draw_pool(range(first, last), 50, alpha=0.5, seed=3)
    for of_whole, of_part in zip(whole, part, strict=True):
        assert torch.equal(of_whole[first:last], of_part)


def test_draws_of_a_pool():
    rows, partners, lam = draw_pool(range(20_000), 50, alpha=1.0, seed=0)
    for drawn in (rows, partners):
        assert drawn.bincount(minlength=50).float().std() < 3 * 400**0.5
    assert torch.corrcoef(torch.stack([rows.float(), partners.float(), lam])).triu(1).abs().max() < 0.03
    assert lam.mean() == pytest.approx(0.5, abs=0.01)
    assert lam.var() == pytest.approx(1 / 12, abs=0.005)
    others = [draw_pool(range(100), 50, alpha=1.0, **key)[2] for key in ({"seed": 1}, {"seed": 0, "turn": 1})]
    assert len({tuple(draw.tolist()) for draw in [lam[:100], *others]}) == 3


def test_a_pool_equals_the_slow_reference(make, linear_generator, toy_bank):
    pool = Pool(make(n=60, alpha=0.4, seed=9))
    rows, partners, lam = draw_pool(range(60), 50, alpha=0.4, seed=9)
    own = toy_bank.subset(torch.arange(50))[rows]
    codes, labels = toy_bank[:]
    for i in range(60):
        code = lam[i] * codes[rows[i]] + (1 - lam[i]) * codes[partners[i]]
        expected = to_uint8(linear_generator.decode(code[None]))[0]
        assert (pool.images[i].int() - expected.int()).abs().max() <= 1
    assert torch.equal(pool.columns["labels_a"], own[1])
    assert torch.equal(pool.columns["labels_b"], labels[partners])
    assert torch.equal(pool.columns["sources"], torch.stack([rows, partners], 1))
    assert torch.equal(pool.columns["lam"], lam)


def test_a_pool_follows_a_policy(make, linear_generator, toy_bank):
    policy = Policy(Dirichlet(1.0, 3), blend=Channels(), unmixed=0.3)
    pool = Pool(make(policy=policy, seed=4))
    draw = Renderer(None, toy_bank, policy, 4, 256).draw(range(60))
    codes, labels = toy_bank[draw.sources.flatten()]
    decoded = to_uint8(linear_generator.decode((draw.shares * codes.view(60, 3, -1)).sum(1)))
    assert (pool.images.int() - decoded.int()).abs().max() <= 1
    soft = (draw.label_weights[..., None] * F.one_hot(labels.view(60, 3), 3)).sum(1)
    torch.testing.assert_close(pool.columns["labels_a"], soft)
    assert (pool.columns["lam"] == 1).all()
    assert torch.equal(pool.columns["sources"], draw.sources)
    assert lm.RenderedMixupDataset(pool.folder)[3][1].equal(soft[3])


def test_a_larger_pool_starts_with_the_smaller_one(make, small_chunks):
    small, large = Pool(make("small", n=21)), Pool(make("large", n=60))
    assert (small.images.int() - large.images[:21].int()).abs().max() <= 1  # the last batch is another
    assert torch.equal(small.columns["lam"], large.columns["lam"][:21])


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batches_change_nothing_but_rounding(make, batch_size):
    one, other = Pool(make("one")), Pool(make("other", batch_size=batch_size))
    assert (one.images.int() - other.images.int()).abs().max() <= 1
    assert all(torch.equal(one.columns[name], other.columns[name]) for name in one.columns)


def test_chunks_are_gone_at_the_end(make, small_chunks):
    folder = make()
    assert sorted(contents(folder)) == sorted([INDEX_FILE, IMAGES_FILE, COLUMNS_FILE])
    assert (folder / IMAGES_FILE).stat().st_size == 60 * 16
    before = contents(folder)
    assert make() == folder  # nothing is left to do
    assert contents(folder) == before


def test_shards_make_the_same_bytes(make, small_chunks, tmp_path, linear_generator, toy_bank):
    expected, out = contents(make()), tmp_path / "shards"
    complete = [render(linear_generator, toy_bank, out, n=60, shard=(i, 3), progress=False) for i in (2, 0, 1)]
    assert complete == [False, False, True]
    assert contents(out) == expected
    assert render(linear_generator, toy_bank, out, n=60, shard=(2, 3), progress=False)


def test_what_is_finished_is_not_done_again(make, small_chunks, tmp_path, monkeypatch):
    expected, out, done = contents(make()), tmp_path / "stopped", []
    images = rendering.Renderer.images

    def failing(recipe, entries, turn=0):
        done.append(entries)
        if len(done) == 3:
            raise OSError("disk gone")
        return images(recipe, entries, turn)

    monkeypatch.setattr(rendering.Renderer, "images", failing)
    with pytest.raises(OSError, match=r"disk gone"):
        make("stopped")
    with pytest.raises(
        ValueError, match=r"holds a pool with other settings \(policy.weights.alpha: 1.0 there, 2.0 here\)"
    ):
        make("stopped", alpha=2.0)
    (out / "chunks" / "chunk-00000.safetensors").write_bytes(b"broken")
    make("stopped")
    assert done == [range(0, 16), range(16, 32), range(32, 48), range(0, 16), range(32, 48), range(48, 60)]
    assert contents(out) == expected


@pytest.mark.parametrize(("at", "chunks"), [(4, 2), (7, 4), (8, 4)])  # a chunk, the columns, the index
def test_a_killed_run_resumes_to_the_same_bytes(make, small_chunks, tmp_path, at, chunks):
    script = f"""
        import os, sys
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        import torch
        from systems import KILL
        from conftest import LinearGenerator
        from latent_mixup import LatentBank
        import latent_mixup.pool.render
        rendering = sys.modules["latent_mixup.pool.render"]
        rendering.POOL_BLOCK, rendering.CHUNK_BYTES = 8, 16 * 16
        bank = LatentBank.from_pretrained(sys.argv[1])
        replace, renamed = os.replace, []
        def killing(*names):
            renamed.append(names)
            if len(renamed) == {at}:
                os.kill(os.getpid(), KILL)
            replace(*names)
        os.replace = killing
        rendering.render(LinearGenerator(), bank, sys.argv[2], n=60, progress=False)
    """
    bank = lm.LatentBank(torch.randn(50, 16, generator=torch.Generator().manual_seed(1)).half(), torch.arange(50) % 3)
    bank.save_pretrained(tmp_path / "bank")
    bank, out = lm.LatentBank.from_pretrained(tmp_path / "bank"), tmp_path / "killed"
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), tmp_path / "bank", out], capture_output=True, text=True
    )
    assert found.returncode == KILLED, found.stderr
    assert len(list((out / "chunks").glob("chunk-*.safetensors"))) == chunks  # the settings were the first file
    assert not (out / INDEX_FILE).exists()
    expected = contents(make("whole", bank=bank))
    make("killed", bank=bank)
    assert contents(out) == expected


def test_the_options_of_decoding_go_with_the_pool(make):
    assert json.loads((make() / INDEX_FILE).read_text())["made_with"]["autocast"] is None
    half = make("half", autocast=torch.bfloat16)
    assert json.loads((half / INDEX_FILE).read_text())["made_with"]["autocast"] == "bfloat16"
    assert (Pool(half).images.int() - Pool(make()).images.int()).abs().max() <= 4  # 8 bits of mantissa


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n": 0}, ValueError, "a pool needs at least one image, and a batch as well"),
        ({"batch_size": 0}, ValueError, "a pool needs at least one image, and a batch as well"),
        ({"n": "60"}, ValueError, "n needs to be an integer: got '60'"),
        ({"n": 6e4}, ValueError, "n needs to be an integer: got 60000.0"),
        ({"seed": 10**30}, ValueError, "seed needs to be an integer"),
        ({"alpha": 0.0}, ValueError, "alpha needs to be above 0"),
        ({"policy": "rebust"}, ValueError, "no policy is called 'rebust'"),
        ({"shard": (3, 3)}, ValueError, r"shard needs \(i, n\)"),
        ({"autocast": torch.float64}, ValueError, r"autocast needs to be torch\.bfloat16"),
        ({"generator": "fashion-mnist"}, ValueError, "the bank's codes have shape"),
        ({"generator": torch.nn.Linear(16, 16)}, TypeError, r"generators\.wrap\("),
        ({"bank": "fashion-mnist"}, ValueError, "the bank's codes have shape"),
    ],
)
def test_what_cannot_be_rendered(make, change, error, message, tmp_path):
    with pytest.raises(error, match=message):
        make(**change)
    assert not (tmp_path / "pool").exists()


def test_codes_and_images_that_are_no_numbers_are_not_rendered(make, toy_bank, linear_generator, monkeypatch, tmp_path):
    toy_bank.save_pretrained(tmp_path / "bank")
    (shard,) = (tmp_path / "bank").glob("*.safetensors")
    with safe_open(shard, framework="pt") as opened:
        header = opened.metadata()
    tensors = load_file(shard)
    tensors["latents"][7] = torch.nan
    save_file(tensors, shard, metadata=header)
    with pytest.raises(ValueError, match="a code in the bank is NaN or infinite"):
        make(bank=LatentBank.from_pretrained(tmp_path / "bank"), n=1000)
    monkeypatch.setattr(linear_generator, "decode", lambda latents: torch.full((len(latents), 1, 4, 4), torch.inf))
    with pytest.raises(ValueError, match="an image that the generator decodes is NaN or infinite"):
        make("other")


def test_one_lam_a_batch_means_little_in_a_pool(make):
    with pytest.warns(UserWarning, match='mode="batch" gives each 1,024 mixes in a row one lam'):
        make(policy="paper")


def test_a_bank_without_labels_and_swapped_arguments_cannot_be_rendered(
    make, linear_generator, toy_bank, unlabelled_bank
):
    with pytest.raises(ValueError, match="rows have no label"):
        make(bank=unlabelled_bank)
    with pytest.raises(TypeError, match="generator and bank have changed places"):
        make(generator=toy_bank, bank=linear_generator)


def test_the_command(tmp_path):
    def call(*arguments):
        return CliRunner().invoke(main, ["render", "fashion-mnist", "fashion-mnist", *map(str, arguments)])

    found = call(tmp_path / "pool", "--n", 6000, "--shard", "1/2")
    assert found.exit_code == 0, found.output
    assert found.output == "shard 1/2 is done; the last shard puts the pool together\n"
    found = call(tmp_path / "pool", "--n", 6000, "--alpha", 0.5)
    assert found.exit_code == 1
    assert (
        "other settings (policy.weights.alpha: 1.0 there, 0.5 here): choose another folder, or remove this one"
        in found.output
    )
    found = call(tmp_path / "pool", "--n", 6000)
    assert found.output == f"{tmp_path / 'pool'}: 6,000 mixes, 5 MB\n"
    found = call(tmp_path / "robust", "--n", 100, "--policy", "robust")
    assert found.exit_code == 0, found.output
    assert Pool(tmp_path / "robust").index.made_with["policy"] == to_config(NAMED["robust"].policy)
    found = call(tmp_path / "other", "--n", 100, "--policy", "rebust")
    assert "--policy needs one of paper, robust, or a JSON file: got 'rebust'" in found.output
    for content, message in [
        ('{"weights": 3}', "weights needs an object with a kind"),
        ("[" * 99_999, "not valid JSON"),
    ]:
        (tmp_path / "policy.json").write_text(content)
        found = call(tmp_path / "other", "--n", 100, "--policy", tmp_path / "policy.json")
        assert found.exit_code == 1
        assert f"{tmp_path / 'policy.json'}" in found.output
        assert message in found.output
    images, targets = pull(lm.RenderedMixupDataset(tmp_path / "pool", verify=True))
    assert images.shape == (6000, 1, 28, 28)
    assert targets.shape == (6000, 10)


def test_the_command_with_fresh_samples_and_a_classifiers_labels(tmp_path):
    def call(out, *arguments):
        words = ["render", "fashion-mnist", "fashion-mnist", str(tmp_path / out), "--n", "40", *map(str, arguments)]
        return CliRunner().invoke(main, words)

    with torch.random.fork_rng(devices=[]):
        net = PaperCNN().eval()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    weights = ("--weights", tmp_path / "net.safetensors")
    labels = ("--labels", "latent_mixup.classifiers:PaperCNN", *weights, "--temperature", 2)
    for out, more, policy in [
        ("prior", ["--prior", *labels], {"prior": True, "unmixed": 1.0}),
        ("mixes", ["--alpha", 0.5, *labels], {"weights": {"kind": "Beta", "alpha": 0.5, "mode": "elem"}}),
        ("named", ["--policy", "robust", *labels], {"unmixed": 1.0}),
    ]:
        found = call(out, *more)
        assert found.exit_code == 0, found.output
        pool = lm.RenderedMixupDataset(tmp_path / out)
        images, targets = pull(pool)
        if out == "named":  # not mixed: each keeps its own label
            assert set(targets.flatten().tolist()) == {0.0, 1.0}
        else:
            torch.testing.assert_close(targets, (net(images) / 2).softmax(1), atol=0.02, rtol=0)
        made_with = Pool(tmp_path / out).index.made_with["policy"]
        assert made_with["labels"]["kind"] == "Teacher"
        assert policy.items() <= made_with.items()
    for out, more, message in [
        ("a", ["--prior"], "needs a label"),
        ("b", ["--prior", "--alpha", 0.5, *labels], "--prior mixes nothing"),
        ("c", ["--temperature", 2], "name it with --labels"),
    ]:
        found = call(out, *more)
        assert found.exit_code == 1
        assert message in found.output


# ---- what is read ----------------------------------------------------------------------------------


def test_samples(make):
    dataset = lm.RenderedMixupDataset(make())
    pool = Pool(make())
    assert len(dataset) == 60
    images, targets = pull(dataset)
    assert torch.equal(images, from_uint8(pool.images))
    assert torch.equal(dataset.images_uint8, pool.images)
    y_a, y_b, lam = (pool.columns[name] for name in ("labels_a", "labels_b", "lam"))
    torch.testing.assert_close(targets, lam[:, None] * F.one_hot(y_a, 3) + (1 - lam[:, None]) * F.one_hot(y_b, 3))
    for i in (0, -1, 59, torch.tensor(7)):
        assert torch.equal(dataset[i][0], images[i])
        assert torch.equal(dataset[i][1], targets[i])
    with pytest.raises(IndexError, match="sample 60 is out of range for a data set of 60"):
        dataset[60]


@pytest.mark.parametrize("kept", [0, 180])
def test_targets_that_are_kept_are_those_made_anew(make, monkeypatch, kept):
    folder, entries = make(), torch.tensor([5, 0, 59])
    expected = lm.RenderedMixupDataset(folder, label_smoothing=0.1).targets(entries)
    monkeypatch.setattr(rendered, "MAX_TARGETS", kept)
    dataset = lm.RenderedMixupDataset(folder, label_smoothing=0.1)
    targets = dataset.targets(entries)
    assert torch.equal(targets, expected)
    assert (dataset._soft is not None) == bool(kept)
    targets.zero_()
    assert torch.equal(dataset.targets(entries), expected)


@pytest.mark.parametrize("target_format", ["soft", "pair"])
def test_targets_of_many(make, target_format):
    dataset = lm.RenderedMixupDataset(make(), target_format=target_format)
    entries = torch.tensor([3, 3, 59, 0])
    many = dataset.targets(entries)
    for i, entry in enumerate(entries.tolist()):
        one, row = dataset[entry][1], many[i] if target_format == "soft" else [part[i] for part in many]
        assert all(map(torch.equal, one, row))
    assert torch.equal(dataset.images(entries), dataset.images_uint8[entries])


def test_soft_banks(make, toy_bank):
    hard, soft = make("hard"), make("soft", bank=one_hot_bank(toy_bank))
    for settings in ({}, {"label_smoothing": 0.1}):
        hard_targets, soft_targets = (
            lm.RenderedMixupDataset(f, **settings).targets(torch.arange(60)) for f in (hard, soft)
        )
        assert torch.equal(hard_targets, soft_targets)
    y_a, _, _ = lm.RenderedMixupDataset(soft, target_format="pair")[0][1]
    assert y_a.shape == (3,)


def test_augmentation_is_fresh_and_normalisation_last(make):
    folder, seen = make(), []

    def augment(image):
        seen.append(image)
        return image.flip(-1) * len(seen)

    dataset = lm.RenderedMixupDataset(folder, transform=augment, normalize=(0.25, 0.5))
    first, second = dataset[4][0], dataset[4][0]
    plain = lm.RenderedMixupDataset(folder)[4][0]
    assert torch.equal(seen[0], plain)
    for image, factor in ((first, 1), (second, 2)):
        expected = v2.Normalize([0.25], [0.5])((plain.flip(-1) * factor + 1) / 2)
        torch.testing.assert_close(image, expected)


def test_workers_read_the_same(make):
    dataset = lm.RenderedMixupDataset(make())
    here, there = pull(dataset), pull(dataset, num_workers=2)
    assert all(map(torch.equal, here, there))


def test_it_pickles_as_its_folder(make):
    dataset = lm.RenderedMixupDataset(make(n=5000))
    _ = dataset[0]
    said = pickle.dumps(dataset)
    assert len(said) < 20_000
    assert torch.equal(pickle.loads(said)[9][0], dataset[9][0])  # noqa: S301
    make("other", n=5000, seed=1)
    (dataset._pool.folder / INDEX_FILE).write_bytes((dataset._pool.folder.parent / "other" / INDEX_FILE).read_bytes())
    with pytest.raises(PoolFormatError, match="was replaced since it was opened"):
        pickle.loads(said)  # noqa: S301


def test_the_file_is_not_written_to(make):
    folder = make()
    before = contents(folder)
    (folder / IMAGES_FILE).chmod(0o444)
    dataset = lm.RenderedMixupDataset(folder)
    dataset.images_uint8.fill_(0)
    assert contents(folder) == before


def test_pools_that_are_none(make, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pool.index.json is missing: .* latent-mixup render has finished"):
        lm.RenderedMixupDataset(tmp_path)
    folder = make()
    path = folder / IMAGES_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(PoolFormatError, match=r"pool.images is damaged: expected 960 bytes, found 959"):
        lm.RenderedMixupDataset(folder)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    lm.RenderedMixupDataset(folder)
    with pytest.raises(PoolFormatError, match=r"pool.images is damaged: expected sha256"):
        lm.RenderedMixupDataset(folder, verify=True)
    path.unlink()
    with pytest.raises(PoolFormatError, match=r"pool.images is missing: pool.index.json names it"):
        lm.RenderedMixupDataset(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format_version", 2, "format_version 2, this version reads up to 1: upgrade latent-mixup"),
        ("format_version", "1", "'format_version' needs an integer up to 1, found '1'"),
        ("num_images", 61, r"'files.pool.images.size' needs 976 for 61 images, found 960"),
        ("num_images", True, "'num_images' needs a positive integer, found True"),
        ("num_images", 10**30, "'num_images' needs a positive integer"),
        ("img_shape", [1, 4], "'img_shape' needs three positive integers"),
        ("img_shape", 3, "'img_shape' needs three positive integers"),
        ("label_dtype", "float16", "'label_dtype' needs int64 or float32"),
        ("label_dtype", ["int64"], "'label_dtype' needs int64 or float32"),
        ("num_classes", 2, "labels_a: label 2 is outside num_classes=2"),
        ("made_with", {}, "'made_with' needs an object with autocast"),
        ("made_with", [], "'made_with' needs an object with autocast"),
        ("made_with.seed", "0", "'made_with.seed' needs an integer of 64 bits, found '0'"),
        ("made_with.seed", 2**80, "'made_with.seed' needs an integer of 64 bits"),
        ("made_with.policy", "robust", "'made_with.policy' needs an object, found 'robust'"),
        ("made_with.path", ["lerp"], "'made_with.path' needs lerp or slerp"),
        ("made_with.autocast", "float64", "'made_with.autocast' needs null, bfloat16 or float16"),
        ("made_with.autocast", {}, "'made_with.autocast' needs null, bfloat16 or float16"),
        ("made_with.bank", None, "'made_with.bank' needs 64 hexadecimal digits, found None"),
        ("files", {"../x": {}}, "'files' needs size and sha256 of pool.images and pool.safetensors"),
        ("files", [], "'files' needs size and sha256 of pool.images and pool.safetensors"),
        ("files.pool~images", 7, "'files.pool.images' needs name, size and sha256, found 7"),
        ("files.pool~images", {"size": 960, "sha256": "0"}, "'files.pool.images.sha256' needs 64 hexadecimal digits"),
        ("files.pool~images", {"size": -1, "sha256": "0" * 64}, "'files.pool.images.size' needs a positive integer"),
        ("versions", None, "'versions' needs an object"),
        ("more", 1, "'more' is unknown"),
        ("num_classes", ..., "'num_classes' is missing"),
        ("label_dtype", "float32", r"pool.safetensors: field 'labels_a' needs F32 \[60, 3\], found 'I64 \[60\]'"),
        ("num_sources", 3, r"pool.safetensors: field 'sources' needs I64 \[60, 3\], found 'I64 \[60, 2\]'"),
    ],
)
def test_each_field_of_the_index_is_checked(make, field, value, message):
    folder = make()
    index = json.loads((folder / INDEX_FILE).read_text())
    *path, last = (name.replace("~", ".") for name in field.split("."))
    held = index[path[0]] if path else index
    held[last] = value
    if value is ...:
        del held[last]
    (folder / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(PoolFormatError, match=rf"{escape(str(folder))}.*{message}"):
        lm.RenderedMixupDataset(folder)


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("lam", {7: float("nan")}, r"lam needs to be in \[0, 1\]: got nan for mix 7"),
        ("lam", {3: 7.0}, r"lam needs to be in \[0, 1\]: got 7.0 for mix 3"),
        ("lam", {59: -3.0}, r"lam needs to be in \[0, 1\]: got -3.0 for mix 59"),
        ("labels_a", {0: 3}, "labels_a: label 3 is outside num_classes=3"),
        ("labels_b", {0: -1}, "labels_b: label -1 is outside num_classes=3"),
        ("sources", {5: -2}, "sources needs rows of a bank, from 0: got -2"),
    ],
)
def test_numbers_that_no_mix_has_are_refused(make, column, change, message):
    folder = make()
    columns = load_file(folder / COLUMNS_FILE)
    for entry, value in change.items():
        columns[column][entry] = value
    save_file(columns, folder / COLUMNS_FILE)
    with pytest.raises(PoolFormatError, match=rf"{escape(str(folder / COLUMNS_FILE))}: {message}.*render it again"):
        lm.RenderedMixupDataset(folder)


@pytest.mark.parametrize("name", [INDEX_FILE, IMAGES_FILE, COLUMNS_FILE])
@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "zeros"])
def test_odd_files_are_not_opened(make, tmp_path, name, kind):
    folder = make()
    size = (folder / name).stat().st_size
    (folder / name).unlink()
    if kind == "folder":
        (folder / name).mkdir()
    elif kind == "pipe":
        pipe(folder / name)
    elif kind == "link":
        (tmp_path / "elsewhere").write_bytes(bytes(size))
        link(folder / name, tmp_path / "elsewhere")
    else:
        (folder / name).write_bytes(bytes(size))
    if kind == "zeros" and name == IMAGES_FILE:
        lm.RenderedMixupDataset(folder)  # black images; verify=True tells
    with pytest.raises((PoolFormatError, FileNotFoundError), match=escape(str(folder / name))):
        lm.RenderedMixupDataset(folder, verify=kind == "zeros")


@pytest.mark.parametrize(
    ("name", "images", "classes", "fourth"),
    [
        ("pool-0.1.0", 39096, [5.5272, 8.2425, 6.2302], [0.0, 0.0, 1.0]),
        ("pool-0.1.0-soft", 41258, [9.0, 7.3125, 3.6875], [1.0, 0.0, 0.0]),
    ],
)
def test_golden_pools_are_readable_for_ever(name, images, classes, fourth):
    dataset = lm.RenderedMixupDataset(GOLDEN / name, verify=True)
    targets = dataset.targets(torch.arange(20))
    assert int(dataset.images_uint8.sum()) == images
    torch.testing.assert_close(targets.sum(0), torch.tensor(classes), atol=1e-4, rtol=0)
    torch.testing.assert_close(targets[3], torch.tensor(fourth))
    index = PoolIndex.read(GOLDEN / name)
    assert index.to_bytes() == (GOLDEN / name / INDEX_FILE).read_bytes()
    assert to_config(from_config(index.made_with["policy"])) == index.made_with["policy"]


def test_the_index_is_read_as_it_was_written(make):
    folder = make()
    assert PoolIndex.read(folder).to_bytes() == (folder / INDEX_FILE).read_bytes()


# ---- beside a data set -----------------------------------------------------------------------------


@pytest.fixture
def images(toy_dataset):
    """Eight times the fifty images."""
    return LabelledImages(toy_dataset.images.repeat(8, 1, 1, 1), toy_dataset.labels.repeat(8))


def test_a_share_is_the_data_sets_own(make, images):
    dataset = lm.RenderedMixupDataset(make(), dataset=images, prob=0.5, seed=0)
    assert len(dataset) == 400
    found, targets = pull(dataset)
    own = (found == images.images).flatten(1).all(1)
    assert 160 < own.sum() < 240
    assert torch.equal(targets[own], F.one_hot(images.labels, 3).float()[own])
    mixes = {tuple(image.flatten().tolist()) for image in from_uint8(Pool(make()).images)}
    assert {tuple(image.flatten().tolist()) for image in found[~own]} <= mixes


def test_draws_follow_from_seed_and_epoch(make, images):
    def made(seed=0):
        return lm.RenderedMixupDataset(make(), dataset=images, prob=0.5, seed=seed)

    dataset, first = made(), pull(made())
    assert all(map(torch.equal, pull(made()), first))
    assert not torch.equal(pull(made(seed=1))[1], first[1])
    loader = DataLoader(dataset, 8, num_workers=1, persistent_workers=True)
    for epoch in (0, 3, 0):
        here = made()
        for each in (dataset, here):
            each.set_epoch(epoch)
        targets = pull(here)[1]
        assert torch.equal(torch.cat([targets for _, targets in loader]), targets)
        assert torch.equal(targets, first[1]) == (epoch == 0)


def test_without_a_seed_every_pass_draws_anew_from_torchs_random_state(make, images):
    dataset = lm.RenderedMixupDataset(make(), dataset=images, prob=0.5)
    torch.manual_seed(5)
    passes = [pull(dataset, num_workers=workers)[1] for workers in (0, 0, 2, 2)]
    assert len({tuple(targets.flatten().tolist()) for targets in passes}) == 4
    torch.manual_seed(5)
    assert torch.equal(pull(dataset)[1], passes[0])


def test_a_second_pass_of_a_seeds_epoch_is_told_once(make, images):
    dataset = lm.RenderedMixupDataset(make(), dataset=images, prob=0.5, seed=0)
    pull(dataset)
    with pytest.warns(UserWarning, match="epoch 0 is drawn a second time"):
        pull(dataset)
    pull(dataset)


def test_entries_of_images_outside_a_subset_are_not_drawn(make, toy_dataset, toy_bank):
    part = Subset(toy_dataset, range(0, 50, 2))
    pool = Pool(make(n=2000))
    inside = (pool.columns["sources"] % 2 == 0).all(1)
    dataset = lm.RenderedMixupDataset(pool.folder, dataset=part, bank=toy_bank)
    own = {tuple(image.flatten().tolist()) for image in pool.images[inside]}
    found = {tuple(to_uint8(dataset[i % 25][0]).flatten().tolist()) for i in range(1000)}
    assert found <= own
    assert len(found) > 250
    with pytest.warns(SplitWarning, match=r"pass bank=, or render the pool from bank.subset"):
        lm.RenderedMixupDataset(pool.folder, dataset=part)
    with pytest.raises(ValueError, match="rendered with another bank"):
        lm.RenderedMixupDataset(pool.folder, dataset=part, bank=toy_bank.subset(range(30)))
    with pytest.raises(ValueError, match="of images outside this data set, and its refreshed entries would be as well"):
        lm.RenderedMixupDataset(pool.folder, dataset=part, bank=toy_bank, generator=LinearGenerator(), refresh=0.5)
    of_others = "60 of the pool's 60 mixes are of images outside this data set, and none is of these images alone"
    odd = toy_bank.subset(range(1, 50, 2))
    with pytest.raises(ValueError, match=of_others):
        lm.RenderedMixupDataset(make("odd", bank=odd), dataset=part, bank=odd)


def test_modes_of_the_caller_do_not_matter(make, images):
    with torch.inference_mode(), torch.device("meta"):
        dataset = lm.RenderedMixupDataset(make(), dataset=images, prob=0.5, seed=0)
        inside = [dataset[i] for i in range(20)]
    dataset.set_epoch(1)
    twin = lm.RenderedMixupDataset(make(), dataset=images, prob=0.5, seed=0)
    for i, (image, target) in enumerate(inside):
        same, also = twin[i]
        assert torch.equal(same, image)
        assert torch.equal(also, target)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"folder": [torch.zeros(1, 4, 4)]}, TypeError, "folder needs to be the folder"),
        ({"dataset": DataLoader(range(3))}, TypeError, "a data set is needed"),
        ({"dataset": "mnist"}, TypeError, "dataset needs to be a map-style data set"),
        ({"refresh": "half"}, ValueError, "refresh needs to be a finite number: got 'half'"),
        ({"refresh": 0.5, "generator": "fashion-mnist"}, ValueError, "generator=str"),
        ({"refresh": 0.5, "generator": "fashion-mnist", "bank": "fashion-mnist"}, ValueError, "pool"),
        ({"verify": True, "prob": "0.5"}, (TypeError, ValueError), "prob"),
        ({"prob": 0.5}, ValueError, r"prob=0.5 needs dataset="),
        ({"prob": {0: 0.5}}, TypeError, "prob needs to be a number: a pool draws its entries whatever the class"),
        ({"num_classes": 2}, ValueError, "label 2 is outside num_classes=2"),
        ({"normalize": 0.5}, ValueError, r"normalize needs to be \(mean, std\): got 0.5"),
        ({"normalize": ((0.1, 0.2), (1, 1))}, ValueError, r"mean and std need one number, .*: got \(0.1, 0.2\)"),
    ],
)
def test_arguments_that_cannot_be(make, change, error, message):
    with pytest.raises(error, match=message):
        _ = lm.RenderedMixupDataset(**{"folder": make(), **change})[0]


def test_prob_zero_and_one(make, images):
    none = lm.RenderedMixupDataset(make(), dataset=images, prob=0.0)
    assert torch.equal(pull(none)[0], images.images)
    every = lm.RenderedMixupDataset(make(), dataset=images)
    assert not (pull(every)[0] == images.images).flatten(1).all(1).any()


def test_another_range_is_said_once(make, images):
    unit = LabelledImages((images.images + 1) / 2, images.labels)
    dataset = lm.RenderedMixupDataset(make(), dataset=unit, prob=0.5)
    with pytest.warns(RangeMismatchWarning, match="mean") as caught:
        pull(dataset)
    assert len(caught) == 1
    pull(lm.RenderedMixupDataset(make(), dataset=unit, prob=0.5, normalize=(0, 1)))


def test_another_size_is_refused(make, images):
    large = LabelledImages(images.images.repeat(1, 1, 2, 2), images.labels)
    with pytest.raises(ValueError, match=r"\[1, 4, 4\] for \[1, 8, 8\].*v2.Resize\(\(8, 8\)\)"):
        lm.RenderedMixupDataset(make(), dataset=large, prob=0.5)[0]


def test_pairs_beside_a_data_set(make, images):
    pairs = lm.RenderedMixupDataset(make(), dataset=images, prob=0.5, seed=0, target_format="pair")
    soft = lm.RenderedMixupDataset(make(), dataset=images, prob=0.5, seed=0)
    for i in range(20):
        y_a, y_b, lam = pairs[i][1]
        torch.testing.assert_close(lam * F.one_hot(y_a, 3) + (1 - lam) * F.one_hot(y_b, 3), soft[i][1])


# ---- refreshed -------------------------------------------------------------------------------------


@pytest.fixture
def refreshed(make, linear_generator, toy_bank):
    made_with = {"generator": linear_generator, "bank": toy_bank}
    return lambda share=1 / 3, **settings: lm.RenderedMixupDataset(make(), refresh=share, **made_with, **settings)


def expected_at(epoch: int, dataset, generator, bank) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and lam of the sixty entries in three parts, part (e - 1) % 3 drawn anew at epoch e."""
    images, lam = dataset.images_uint8.clone(), draw_pool(range(60), 50, alpha=1.0, seed=0)[2]
    turns = [0, 0, 0]
    for past in range(1, epoch + 1):
        turns[(past - 1) % 3] += 1
    for part, turn in enumerate(turns):
        span = slice(20 * part, 20 * part + 20)
        rows, partners, weights = draw_pool(range(span.start, span.stop), 50, alpha=1.0, seed=0, turn=turn)
        codes = weights[:, None] * bank[rows][0] + (1 - weights[:, None]) * bank[partners][0]
        if turn:
            images[span], lam[span] = to_uint8(generator.decode(codes)), weights
    return images, lam


def test_a_part_an_epoch_is_drawn_anew(refreshed, linear_generator, toy_bank):
    dataset = refreshed(target_format="pair")
    for epoch in range(6):
        dataset.set_epoch(epoch)
        images, lam = expected_at(epoch, dataset, linear_generator, toy_bank)
        entries = torch.arange(60).flip(0)
        assert (dataset.images(entries).int() - images[entries].int()).abs().max() <= 1
        assert torch.equal(dataset.targets(entries)[2], lam[entries])
        assert torch.equal(torch.stack([dataset[i][1][2] for i in range(60)]), lam)
    kept = list(dataset._refreshed._folder.glob("part-*.safetensors"))
    assert len(kept) <= 5  # the three, the next epoch's, the last epoch's


def test_a_resumed_run_has_the_same_entries(refreshed):
    dataset, resumed, back = refreshed(), refreshed(), refreshed()
    for epoch in range(8):
        dataset.set_epoch(epoch)
    resumed.set_epoch(7)
    back.set_epoch(20)
    back.set_epoch(7)
    for other in (resumed, back):
        assert all(map(torch.equal, pull(dataset), pull(other)))


@pytest.mark.parametrize("method", [FORK, "spawn"])
def test_refreshed_entries_reach_workers(refreshed, method):
    dataset = refreshed()
    loader = DataLoader(dataset, 8, num_workers=1, persistent_workers=True, multiprocessing_context=method)
    for epoch in (0, 1, 4):
        dataset.set_epoch(epoch)
        assert torch.equal(torch.cat([targets for _, targets in loader]), pull(dataset)[1])


def test_nothing_is_left_behind(refreshed):
    dataset = refreshed()
    dataset.set_epoch(3)
    folder = dataset._refreshed._folder
    assert folder.is_dir()
    list(DataLoader(dataset, 8, num_workers=1))
    assert folder.is_dir()  # a worker's end takes nothing away
    del dataset
    for thread in threading.enumerate():
        if thread.name == "latent-mixup-refresh":
            thread.join(10)
    assert not folder.exists()


RANK = """
    import os, sys
    sys.path.insert(0, {tests!r})
    import torch
    import latent_mixup as lm
    from conftest import LinearGenerator
    decoded = 0
    class Counting(LinearGenerator):
        def decode(self, latents):
            global decoded
            decoded += len(latents)
            return super().decode(latents)
    bank = lm.LatentBank.from_pretrained(sys.argv[1])
    dataset = lm.RenderedMixupDataset(sys.argv[2], refresh=1 / 3, generator=Counting(), bank=bank)
    print("ready", flush=True)
    input()
    images = []
    for epoch in range(4):
        dataset.set_epoch(epoch)
        images.append(int(dataset.images(torch.arange(60)).sum()))
        print("trained", flush=True)
        input()  # ranks train in step
    if dataset._refreshed._job is not None:
        dataset._refreshed._job.wait()
    print(decoded, *images, dataset._refreshed._folder, flush=True)
    input()
"""


def test_ranks_of_one_machine_decode_each_part_once(make, toy_bank, tmp_path):
    toy_bank.save_pretrained(tmp_path / "bank", dtype=torch.float32)
    code = textwrap.dedent(RANK.format(tests=str(Path(__file__).parents[1])))
    run = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(os.getpid()), "OMP_NUM_THREADS": "1"}
    command, pipes = [sys.executable, "-c", code, tmp_path / "bank", make()], {"stdin": -1, "stdout": -1, "text": True}
    with contextlib.ExitStack() as stack:
        ranks = [
            stack.enter_context(subprocess.Popen(command, env={**os.environ, **run, "RANK": rank}, **pipes))
            for rank in "01"
        ]

        def all_of_them() -> list[str]:
            """A line of each; then they go on."""
            lines = [rank.stdout.readline() for rank in ranks]
            for rank in ranks:
                print(file=rank.stdin, flush=True)
            return lines

        assert all_of_them() == ["ready\n"] * 2
        for _epoch in range(4):
            assert all_of_them() == ["trained\n"] * 2
        (one, *images), (other, *same) = (line.split() for line in all_of_them())
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert images == same
    assert int(one) + int(other) == 4 * 20  # the parts of epochs 1 to 4, once each
    assert not Path(images[-1]).exists()


def test_an_error_of_the_thread_comes_out(refreshed, monkeypatch):
    dataset = refreshed()

    def broken(latents):
        raise ZeroDivisionError("broken generator")

    monkeypatch.setattr(dataset._refreshed._renderer.decoder.generator, "decode", broken)
    dataset.set_epoch(0)
    with pytest.raises(ZeroDivisionError, match="broken generator"):
        dataset.set_epoch(1)


def test_what_cannot_be_refreshed(make, refreshed, linear_generator, toy_bank):
    other = LinearGenerator()
    other.basis.neg_()
    with pytest.raises(ValueError, match=r"rendered with another generator, .*: got .*; pass the same"):
        lm.RenderedMixupDataset(make(), refresh=0.5, generator=other, bank=toy_bank)
    for settings in ({"refresh": 0.5}, {"refresh": 2, "generator": linear_generator, "bank": toy_bank}):
        with pytest.raises(ValueError, match=r"refresh needs a share in \(0, 1\], generator= and bank="):
            lm.RenderedMixupDataset(make(), **settings)
    folder = make("other")
    index = json.loads((folder / INDEX_FILE).read_text())
    index["made_with"]["policy"] = {"weights": {"kind": "Beta", "alpha": "1"}}
    (folder / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(PoolFormatError, match=r"pool.index.json: field 'made_with.policy': Beta.alpha needs to be a"):
        lm.RenderedMixupDataset(folder, refresh=0.5, generator=linear_generator, bank=toy_bank)
    with pytest.raises(RuntimeError, match="in the process that made the data set, not in a copy"):
        pickle.loads(pickle.dumps(refreshed())).set_epoch(1)  # noqa: S301


def test_parts_hold_every_entry_once(make, linear_generator, toy_bank):
    pool = Pool(make())
    for share in (1.0, 0.4, 1 / 7, 0.001):
        parts = Refreshed(pool, share, linear_generator, toy_bank)
        entries = [entry for part in range(parts.num_parts) for entry in parts._range(part)]
        assert entries == list(range(60))
    assert [Refreshed(pool, share, linear_generator, toy_bank).num_parts for share in (1.0, 0.4, 1e-3)] == [1, 2, 60]
