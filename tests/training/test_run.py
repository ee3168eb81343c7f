"""Laws of every training: what it writes, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest
import torch
from trainings import KINDS, compact

from latent_mixup import runs
from latent_mixup.encoders import load_encoder
from latent_mixup.generators import load_generator
from latent_mixup.training import checkpoints
from latent_mixup.training.checkpoints import read_checkpoint, write_checkpoint
from latent_mixup.training.run import first_weights

PLAIN = ("compact", "vae", "dcgan", "stylegan2", "restyle")  # one of each kind, where a law needs no variants


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of an uninterrupted run of each kind and its network, made when it is first asked for."""
    made = {}

    def run(name):
        if name not in made:
            out, before = tmp_path_factory.mktemp("whole"), torch.get_rng_state()
            made[name] = out, KINDS[name].train(out, facts={"name": "halves"})
            assert torch.get_rng_state().equal(before), "the global random state has moved"
        return made[name]

    return run


def bytes_of(folder):
    """File => content, but for the log, which holds seconds."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "log.json"}


def log_of(folder):
    return json.loads((folder / "log.json").read_text())


# ---- what it writes --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_a_run_writes_a_network_and_what_it_is_resumed_from(finished, name):
    out, network = finished(name)
    sheets = [f"sheet-00000{step}.png" for step in (2, 4, 6)]
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "checkpoint.pt", "config.json", "log.json", "model.safetensors", *sheets,
    ]  # fmt: skip
    read = load_encoder(out, compact()) if network.hub_kind == "encoder" else load_generator(out)
    assert read.digest() == network.digest()
    recipe = KINDS[name].recipe(**KINDS[name].settings)
    assert network.metadata["name"] == "halves"
    assert network.metadata["recipe"] == json.loads(json.dumps(vars(recipe)))
    assert network.metadata["versions"] == {"torch": torch.__version__}
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("name", KINDS)
def test_the_log_has_a_row_for_each_checkpoint(finished, name):
    log = log_of(finished(name)[0])
    losses = {
        "compact": {"pixel", "feature", "critic"}, "vae": {"nats"}, "mlp": {"codes"},
        "restyle": {"pass 1", "pass 2", "pass 3"}, "dcgan": {"generator", "discriminator"},
        "stylegan2": {"generator", "discriminator", "images", "p"}, "conv": {"pixel", "contrast"},
    }[name.split()[0]]  # fmt: skip
    measured = {"feature_distance", "classifier_accuracy", "class_deviation", "real_class_deviation"}
    assert [row["step"] for row in log] == [2, 4, 6]
    for row in log:
        found = {"prior"} if name == "conv" and row["step"] > 4 else losses
        assert set(row) == {"step", "seconds"} | found | (measured if name == "stylegan2" else set())
    assert 0 <= log[0]["seconds"] <= log[1]["seconds"] <= log[2]["seconds"]


# ---- stopping and going on -------------------------------------------------------------------------


@pytest.mark.parametrize("stopped_before", [0, 4, 5])
@pytest.mark.parametrize("name", KINDS)
def test_a_stopped_training_goes_on_bit_for_bit(finished, tmp_path, name, stopped_before):
    kind, (whole, _) = KINDS[name], finished(name)
    kept = "keeps step 4 of 6, where" if stopped_before else "has no checkpoint yet, the first"
    assert re.match(f"stopped: .* {kept}", kind.stop(tmp_path, stopped_before, facts={"name": "halves"}))
    assert (tmp_path / "checkpoint.pt").exists() == (stopped_before >= 2)
    assert not (tmp_path / "config.json").exists()
    torch.rand(1)  # the global random state has no influence
    kind.train(tmp_path, facts={"name": "halves"})
    assert bytes_of(tmp_path) == bytes_of(whole)
    timeless = [[{**row, "seconds": 0} for row in log_of(folder)] for folder in (tmp_path, whole)]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize("name", KINDS)
def test_a_finished_training_is_not_done_again(finished, tmp_path, monkeypatch, name):
    out, network = finished(name)
    (tmp_path / "checkpoint.pt").write_bytes((out / "checkpoint.pt").read_bytes())
    monkeypatch.setattr(KINDS[name].owner, "advance", None)
    assert KINDS[name].train(tmp_path).digest() == network.digest()


@pytest.mark.parametrize("name", PLAIN)
def test_another_seed_is_another_network(finished, tmp_path, name):
    one_step = {"epochs": 1} if name == "dcgan" else {"steps": 1}
    made = [KINDS[name].train(tmp_path / str(seed), settings={**one_step, "seed": seed}).digest() for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2]


def test_seconds_count_all_calls(tmp_path, monkeypatch):
    kind, seconds = KINDS["vae"], iter([7.0, 7.0, 2.5, 3.5, 4.0])
    monkeypatch.setattr(runs.Progress, "seconds", property(lambda _: next(seconds)))
    kind.stop(tmp_path, 4)
    kind.train(tmp_path)
    assert [row["seconds"] for row in log_of(tmp_path)] == [7.0, 7.0, 9.5]


def test_rows_of_the_log_beyond_the_checkpoint_are_dropped(tmp_path):
    kind = KINDS["vae"]
    kind.stop(tmp_path, 3)
    log = log_of(tmp_path)
    (tmp_path / "log.json").write_text(json.dumps([*log, {"step": 4, "nats": 1e9}]))
    kind.train(tmp_path)
    assert [row["step"] for row in log_of(tmp_path)] == [2, 4, 6]
    (tmp_path / "log.json").write_text("{")
    with pytest.raises(ValueError, match=r"log.json is not a training's log \(.*remove it to go on without it"):
        kind.train(tmp_path)


def test_sigterm_ends_a_training_with_what_is_kept(tmp_path, monkeypatch):
    kind, advance = KINDS["vae"], KINDS["vae"].owner.advance

    def stops(training):
        if training.step == 3:
            signal.raise_signal(signal.SIGTERM)
        return advance(training)

    monkeypatch.setattr(kind.owner, "advance", stops)
    with pytest.raises(runs.Stopped, match=r"stopped by SIGTERM: .* keeps step 2 of 6, where the same call goes on"):
        kind.train(tmp_path)


# ---- equal states, equal bytes ---------------------------------------------------------------------


def test_equal_states_give_equal_bytes_however_they_came_to_be(tmp_path):
    """Pickle writes an object that it meets twice only once, so that shared strings and tensors would show."""
    weight = torch.arange(6.0).reshape(2, 3)
    apart = {"one": "exp", "two": "exp", "view": weight[0].clone(), "all": weight.clone(), "pair": (1, 2)}
    shared = {**apart, "one": "".join(["ex", "p"]), "two": "".join(["ex", "p"]), "view": weight[0], "all": weight}
    for name, state in (("shared", shared), ("apart", apart)):
        write_checkpoint(tmp_path / name, {"identity": {}, "step": 1, **state}, b"")
    assert bytes_of(tmp_path / "shared") == bytes_of(tmp_path / "apart")
    read = read_checkpoint(tmp_path / "apart", {})
    assert read["all"].equal(weight)
    assert (read["one"], read["pair"]) == ("exp", (1, 2))


# ---- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
def test_another_recipe_network_or_data_set_is_refused(finished, name):
    kind, (out, _) = KINDS[name], finished(name)
    before = bytes_of(out)
    images, *labels = kind.data()
    changed = images.clone()
    changed[77, 0, 0, 0] += 1  # one pixel of one image
    size = "z_dim" if name in ("vae", "dcgan", "stylegan2") else None
    network_options = {"network": {**kind.options["network"], size: 5}} if size else {"z_dim": 9}
    refused = {
        "recipe": {"settings": {"seed": 1}},
        "network": {"network": {**kind.options["network"], "passes": 2}} if name == "restyle" else network_options,
        "data set": {"data": (changed, *labels)},
        "recipe and data set": {"settings": {"lr": 1e-4}, "data": (images[:-1], *(each[:-1] for each in labels))},
    }
    for wrong, change in refused.items():
        with pytest.raises(ValueError, match=f"the checkpoint in .* was made with another {wrong} .*: choose another"):
            kind.train(out, **change)
    assert bytes_of(out) == before


@pytest.mark.parametrize("name", ["compact", "stylegan2"])
def test_other_labels_are_refused(finished, name):
    images, labels = KINDS[name].data()
    with pytest.raises(ValueError, match="was made with another data set"):
        KINDS[name].train(finished(name)[0], (images, 1 - labels))


@pytest.mark.parametrize(
    ("change", "wrong"),
    [({"generator": compact(1)}, "generator"), ({"loss": lambda images, targets: None}, "loss"),
     ({"images_uint8": None}, "data set")],
)  # fmt: skip
def test_an_encoder_of_another_run_is_refused(finished, change, wrong):
    with pytest.raises(ValueError, match=f"was made with another {wrong}"):
        KINDS["restyle"].train(finished("restyle")[0], **change)


def test_a_refusal_names_what_differs(finished):
    differs = r"another recipe \(recipe.kl_weight: 1.0 there, 2.0 here; recipe.steps: 6 there"
    with pytest.raises(ValueError, match=differs):
        KINDS["vae"].train(finished("vae")[0], settings={"kl_weight": 2, "steps": 9})


def test_the_checkpoint_of_another_kind_of_training_is_refused(finished):
    with pytest.raises(ValueError, match=r"was made with another recipe and network \("):
        KINDS["compact on pixels"].train(finished("stylegan2")[0])


@pytest.mark.parametrize(
    "content", [0, 1, 0.3, 0.6, 0.9, -1000, -1, b"hello", bytes(20_000), b"PK\x03\x04" + bytes(100)]
)
def test_a_cut_checkpoint_or_another_file_is_named_and_stays(finished, tmp_path, content):
    """A number is where a checkpoint is cut; below 1 a share of its bytes."""
    if not isinstance(content, bytes):
        whole = (finished("vae")[0] / "checkpoint.pt").read_bytes()
        content = whole[: int(content * len(whole))] if 0 < content < 1 else whole[:content]
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint.pt is not a whole checkpoint: remove it to start again \(\w+Er"):
        KINDS["vae"].train(tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == content


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([1, 2], "checkpoint.pt does not name its training: choose another folder, or remove it"),
        ({"step": 3}, "checkpoint.pt does not name its training"),
        ({"identity": 5}, "checkpoint.pt does not name its training"),
        ({"identity": {}, "step": 3}, "needs format_version 2: got None, .*finish the training with that"),
        ({"identity": {}, "format_version": 3}, "checkpoint.pt needs format_version 2: got 3"),
        ({"identity": {"teacher": 2}, "format_version": 2}, "another teacher .*teacher: 2 there, None here"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path, state, message):
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path, {})


@pytest.mark.parametrize("broken", [{"network": {}}, {"optimizer": 5}, {"step": None}])
def test_a_state_that_does_not_fit_is_named(finished, tmp_path, broken):
    state = torch.load(finished("vae")[0] / "checkpoint.pt", weights_only=True)
    state = {name: value for name, value in {**state, **broken}.items() if value is not None}
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint.pt does not fit its training: remove it \(\w+Error"):
        KINDS["vae"].train(tmp_path)


def test_a_checkpoint_that_is_a_pickle_is_not_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'canary'}",)

    torch.save({"identity": Bomb()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"is not a whole checkpoint: .* Weights only load failed"):
        KINDS["vae"].train(tmp_path)
    assert not (tmp_path / "canary").exists()


DATA = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize("name", ["compact on pixels", "vae", "stylegan2", "mlp"])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (DATA[0], r"one tensor of shape \[N, C, H, W\] and dtype uint8: got \[1, 8, 8\] torch.uint8"),
        (DATA.float(), r"dtype uint8: got \[4, 1, 8, 8\] torch.float32"),
        (DATA.numpy(), r"one tensor of shape .*: got array"),
        ([DATA[0], DATA[0, :, 1:, 1:]], r"one tensor of shape .*: got \[tensor"),
        ("mnist", "one tensor of shape .*: got 'mnist'"),
        (DATA[..., 1:], r"makes square images, .* got \(8, 7\); .* v2.CenterCrop|size of the generator's, .*\(8, 7\)"),
        (DATA[:1], "training needs two images or more: got 1"),
        (DATA[:0], "training needs two images or more: got 0"),
    ],
)
def test_images_that_cannot_be_trained_on(tmp_path, name, images, message):
    with pytest.raises(ValueError, match=message):
        KINDS[name].train(tmp_path / "out", (images, torch.zeros(4).long())[: len(KINDS[name].data())])
    assert not (tmp_path / "out").exists()


def test_the_dcgan_needs_a_batch_of_images(tmp_path):
    with pytest.raises(ValueError, match="batch_size needs to be at most 39, the number of images: got 40"):
        KINDS["dcgan"].train(tmp_path, KINDS["dcgan"].data(39))


@pytest.mark.parametrize("name", ["compact on pixels", "stylegan2"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(5).long(), r"labels need shape \[4\], one an image, and dtype int64: got \[5\] torch.int64"),
        (torch.zeros(4), r"dtype int64: got \[4\] torch.float32"),
        ([0, 1, 0, 1], r"labels need shape \[4\].*: got \[0, 1, 0, 1\]"),
        (torch.tensor([0, 1, -1, 1]), "labels need to be from 0: got -1"),
    ],
)
def test_labels_that_cannot_be_trained_on(tmp_path, name, labels, message):
    with pytest.raises(ValueError, match=message):
        KINDS[name].train(tmp_path / "out", (DATA, labels))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"checkpoint_every": 0}, "checkpoint_every needs to be an integer from 1: got 0"),
        ({"checkpoint_every": 2.5}, "checkpoint_every needs to be an integer from 1: got 2.5"),
        ({"device": "gpu"}, r"device 'gpu' cannot be used here \("),
        ({"device": "cuda:99"}, r"device 'cuda:99' cannot be used here \("),
    ],
)
@pytest.mark.parametrize("name", PLAIN)
def test_options_that_cannot_be(tmp_path, name, option, message):
    with pytest.raises(ValueError, match=message):
        KINDS[name].train(tmp_path / "out", **option)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ({"steps", "epochs", "batch_size", "r1_every", "ema_images", "ada_images"}, (0, -1, 2.5, True, "6", None)),
        ({"lr", "critic_lr", "ema_ramp"}, (0.0, -1.0, float("inf"), float("nan"), "fast", None)),
    ],
)
@pytest.mark.parametrize("name", PLAIN)
def test_settings_that_cannot_be(name, fields, values):
    recipe = KINDS[name].recipe
    for field in fields & set(vars(recipe())):
        for value in values:
            with pytest.raises(ValueError, match=f"{field} needs to be .*: got {value!r}"):
                recipe(**{field: value})


# ---- few, flat and odd data ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in KINDS if name != "dcgan"])
@pytest.mark.parametrize("num_images", [2, 3, 33])
def test_few_images_and_odd_numbers_of_them_are_enough(tmp_path, name, num_images):
    network = KINDS[name].train(tmp_path, KINDS[name].data(num_images))
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("value", [0, 128, 255])
def test_images_of_one_colour_train(tmp_path, name, value):
    images, *labels = KINDS[name].data()
    network = KINDS[name].train(tmp_path, (torch.full_like(images, value), *labels))
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())


# ---- what goes wrong on the way --------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
def test_a_training_that_diverges_stops_at_once_and_keeps_its_last_checkpoint(finished, tmp_path, monkeypatch, name):
    kind, advance = KINDS[name], KINDS[name].owner.advance

    def diverges(training):
        losses = advance(training)
        return losses if training.step < 5 else dict.fromkeys(losses, float("nan"))

    monkeypatch.setattr(kind.owner, "advance", diverges)
    with pytest.raises(RuntimeError, match=r"diverged at step 5, with losses .* nan.*: start again .*keeps step 4"):
        kind.train(tmp_path)
    assert read_checkpoint(tmp_path, read_identity(tmp_path))["step"] == 4


def read_identity(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["identity"]


@pytest.mark.parametrize("name", PLAIN)
def test_weights_that_are_not_finite_never_replace_a_checkpoint(tmp_path, monkeypatch, name):
    kind, advance = KINDS[name], KINDS[name].owner.advance

    def breaks(training):
        losses = advance(training)
        if training.step == 4:
            next(iter(training.network.parameters())).data[0] = float("inf")
        return losses

    monkeypatch.setattr(kind.owner, "advance", breaks)
    with pytest.raises(RuntimeError, match=r"diverged at step 4, .*keeps step 2"):
        kind.train(tmp_path)
    assert read_checkpoint(tmp_path, read_identity(tmp_path))["step"] == 2


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")])
def test_a_full_disk_keeps_the_checkpoint_before(finished, tmp_path, monkeypatch, error):
    kind = KINDS["vae"]
    kind.stop(tmp_path, 3)
    before = bytes_of(tmp_path)

    def full(content, file):
        file.write(b"half of it")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.torch, "save", full)
        with pytest.raises(OSError, match=r"cannot write the checkpoint of step 4 into .*: make room for it and start"):
            kind.train(tmp_path)
    assert bytes_of(tmp_path) == before
    assert kind.train(tmp_path).digest() == finished("vae")[1].digest()


def test_a_folder_that_cannot_be_written_is_found_before_the_first_step(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(KINDS["vae"].owner, "advance", None)
    with pytest.raises(OSError, match=r"cannot write into .*file.* \(.*: choose another folder"):
        KINDS["vae"].train(tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "mine"


def test_progress_is_a_line_a_minute_where_there_is_no_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "LINE_EVERY", 0.0)
    KINDS["vae"].train(tmp_path, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert lines[-1].startswith("train: 6 of 6 steps, ")
    assert "nats " in lines[-1]


@pytest.mark.parametrize("name", PLAIN)
def test_the_callers_defaults_have_no_influence(finished, tmp_path, name):
    kind, data, expected = KINDS[name], KINDS[name].data(), finished(name)[1].digest()
    options = {"generator": compact()} if name == "restyle" else {}
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.device("meta"):
            assert kind.train(tmp_path, data, **options).digest() == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_first_weights_leave_every_random_state_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", None)  # torch.manual_seed would call it on a machine with GPUs
    before = torch.get_rng_state()
    with first_weights(3):
        drawn = torch.rand(4)
    assert torch.get_rng_state().equal(before)
    assert drawn.equal(torch.rand(4, generator=torch.Generator().manual_seed(3)))
