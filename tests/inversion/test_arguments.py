"""Arguments of ``invert`` and ``refine``, and where they are called: the same result, or one clear error."""

from __future__ import annotations

import pytest
import torch
from conftest import LabelledImages, LinearGenerator
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import ConcatDataset, DataLoader, Subset

from latent_mixup import invert, refine
from latent_mixup.generators import wrap
from latent_mixup.inversion import FeatureLoss, pixel_mse
from latent_mixup.inversion.descent import Adam
from latent_mixup.inversion.gains import ReplacedCodes
from latent_mixup.inversion.start import DrawnStart
from latent_mixup.losses import perceptual
from latent_mixup.losses.base import callable_id

QUICK = {"steps": 4, "draws": 8, "batch_size": 4, "loss": "pixels", "progress": False}


def images(n: int = 20) -> LabelledImages:
    draw = torch.Generator().manual_seed(3)
    return LabelledImages(torch.rand(n, 1, 4, 4, generator=draw) * 2 - 1, torch.arange(n) % 3)


def network() -> nn.Module:
    """Decodes differently in train mode."""
    layers = nn.Sequential(
        nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Tanh(), nn.Unflatten(1, (1, 4, 4))
    )
    return layers.eval()


# ---- what is no data set, generator or bank -----------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda data, g: (g, data), r"data set comes before the generator, such as invert\(dataset, generator\): got"),
        (lambda data, g: (DataLoader(data), g), r"got DataLoader; for a DataLoader pass loader.dataset"),
        (lambda data, g: ("mnist", g), r"a data set is needed: got str 'mnist'; open it first"),
        (lambda data, g: (None, g), r"a data set needs len\(dataset\) and dataset\[i\]: got NoneType"),
        (lambda data, g: (data, "mnist"), r"got str; load it: latent_mixup.load_generator\('mnist'\)"),
        (lambda data, g: (data, network()), r"got Sequential; wrap it: latent_mixup.generators.wrap"),
        (lambda data, g: (data, g.decode), r"a Generator is wanted: got method"),
    ],
)
def test_a_swapped_or_other_argument_is_named(arguments, message):
    data, generator = images(), LinearGenerator()
    with pytest.raises(TypeError, match=message):
        invert(*arguments(data, generator), **QUICK)
    bank = invert(data, generator, **QUICK)
    with pytest.raises(TypeError, match=message):
        refine(bank, *arguments(data, generator), **QUICK)
    with pytest.raises(
        TypeError, match=r"the bank comes first, refine\(bank, dataset, generator\): got LabelledImages"
    ):
        refine(data, bank, generator, **QUICK)


# ---- losses by name ---------------------------------------------------------------------------------


def test_a_loss_by_name_is_that_of_the_command_line():
    generator = LinearGenerator()
    assert invert(images(), generator, **QUICK).metadata["inversion"]["loss"] == callable_id(pixel_mse)
    generator.features = nn.Conv2d(1, 2, 3)
    bank = invert(images(), generator, **{**QUICK, "loss": "features"})
    assert bank.metadata["inversion"]["loss"] == callable_id(FeatureLoss(generator.features))
    assert (
        bank.metadata["inversion"]["loss"]
        == invert(images(), generator, **{**QUICK, "loss": None}).metadata["inversion"]["loss"]
    )
    stage = refine(bank, images(), generator, **{**QUICK, "above": 0.0}).metadata["refined"][0]
    assert stage["loss"] == callable_id(pixel_mse)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        ("pixel", ValueError, "loss needs one of lpips, features, pixels, or a callable: got 'pixel'"),
        ("lpips", FileNotFoundError, "pass LPIPS.download=True. .--download-lpips.*or pass loss=.pixels. "),
        ("features", ValueError, "LinearGenerator has no trained features .* pass loss=.pixels. "),
        (3, TypeError, r"or a callable \(images, targets\) -> \[B\]: got int"),
    ],
)  # fmt: skip
def test_a_loss_that_cannot_be_says_what_to_pass(tmp_path, monkeypatch, loss, error, message):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(perceptual, "SAFE_SINCE", "0")  # a torch that reads a .pth
    with pytest.raises(error, match=message):
        invert(images(), LinearGenerator(), **{**QUICK, "loss": loss})


# ---- modes that the caller is in --------------------------------------------------------------------


DATA = images()


def both(generator, **options):
    """An inverted and a refined bank."""
    bank = invert(DATA, generator, **{**QUICK, **options})
    return bank, refine(bank, DATA, generator, **{**QUICK, "above": 0.0})


@pytest.mark.parametrize("where", [torch.inference_mode, torch.no_grad, lambda: torch.device("meta")])
def test_the_callers_mode_changes_nothing(where):
    generator = wrap(network(), latent_shape=(16,))
    expected = [bank.digest() for bank in both(generator)]
    with where():
        assert [bank.digest() for bank in both(generator)] == expected


def test_a_generator_that_was_made_in_inference_mode():
    state = network().state_dict()

    def made():
        layers = network()
        layers.load_state_dict(state)
        return wrap(layers, latent_shape=(16,))

    with torch.inference_mode():
        inside = made()
    expected = [bank.digest() for bank in both(made())]
    assert [bank.digest() for bank in both(inside)] == expected


def test_the_default_dtype_changes_nothing():
    generator = wrap(network(), latent_shape=(16,))
    expected = [bank.digest() for bank in both(generator)]
    torch.set_default_dtype(torch.float64)
    try:
        assert [bank.digest() for bank in both(generator)] == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_networks_in_train_mode_are_used_in_eval_mode_and_stay_in_train_mode():
    """A generator, an encoder and a feature network that their owners train on."""
    decoder, features = network(), nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).eval()
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Dropout(0.5)).eval()
    generator, loss = wrap(decoder, latent_shape=(16,)), FeatureLoss(features)
    first = images().images
    expected_loss = loss(first, first.flip(0))
    expected = [bank.digest() for bank in both(generator, encoder=encoder, loss=loss)]
    for module in (decoder, features, encoder, loss):
        module.train()
    assert loss(first, first.flip(0)).equal(expected_loss)
    assert [bank.digest() for bank in both(generator, encoder=encoder, loss=loss)] == expected
    assert all(module.training for module in (decoder, encoder, features))


class Prior(LinearGenerator):
    """Draws on the CPU, as generators do."""

    def sample_latents(self, n, generator=None):
        return torch.randn(n, 16, generator=generator)


class NoDoubles(TorchDispatchMode):
    """Raises where float64 reaches the device ``cuda``, which stands for MPS."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "cpu":
                assert tensor.dtype != torch.float64, func
        return result


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="tensors without values start CUDA in torch 2.6")
def test_float64_stays_on_the_cpu():
    """MPS has none: tensors without values, on a device that need not be there."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True), NoDoubles():
        start = DrawnStart(Prior().to("cuda"), 8, 0)
        targets = torch.zeros(3, 1, 4, 4, device="cuda")
        assert start(targets).device.type == "cuda"
        adam = Adam(torch.zeros(3, 16, device="cuda"), 5, 0.1, (0.9, 0.99))
        adam.tell(torch.zeros(3, device="cuda"), torch.zeros(3, 16, device="cuda"))
        assert adam.points().dtype == torch.float32


# ---- classes ----------------------------------------------------------------------------------------


class Named(LabelledImages):
    classes = ("a", "b", "c", "d", "e")


def named(n: int = 20) -> Named:
    data = images(n)
    return Named(data.images, data.labels)


@pytest.mark.parametrize(
    "dataset",
    [named(), Subset(named(), range(8)), ConcatDataset([named(), Subset(named(), range(4))])],
    ids=lambda dataset: type(dataset).__name__,
)
def test_a_bank_has_as_many_classes_as_the_data_set_names(dataset, tmp_path):
    generator = LinearGenerator()
    bank = invert(dataset, generator, **QUICK, out=tmp_path)
    assert (bank.num_classes, bank.metadata["classes"]) == (5, ["a", "b", "c", "d", "e"])
    assert refine(bank, dataset, generator, **{**QUICK, "above": 0.0}).num_classes == 5


def test_names_that_are_not_those_of_the_labels():
    remapped = named()
    remapped.target_transform = abs  # the names are of other labels
    assert invert(remapped, LinearGenerator(), **QUICK).num_classes == 3
    few = named()
    few.labels = few.labels.clone()
    few.labels[18] = 5
    with pytest.raises(ValueError, match="the data set names 5 classes, and its labels are of 6: correct one of them"):
        invert(few, LinearGenerator(), **QUICK)


# ---- large banks ------------------------------------------------------------------------------------


def test_refine_reads_few_codes_at_a_time(tmp_path, monkeypatch):
    """A bank larger than the memory: no more codes than a chunk's, or a file's that is written, are read at once."""
    from latent_mixup.bank import LatentBank, files

    generator, data = LinearGenerator(), images(200)
    bank = invert(data, generator, **{**QUICK, "steps": 1}, encoder=lambda images: torch.zeros(len(images), 16))
    bank.save_pretrained(tmp_path / "bank", max_shard_bytes=16 * 4 * 10)
    monkeypatch.setattr("latent_mixup.inversion.chunks.BANK_FILE_BYTES", 16 * 4 * 10)
    monkeypatch.setattr(files, "CHUNK_ROWS", 16)
    bank, read = LatentBank.from_pretrained(tmp_path / "bank"), []
    for kind in (files.Shards, files.CodeFiles, ReplacedCodes):

        def counted(self, rows, latents=kind.latents):
            read.append(len(rows))
            return latents(self, rows)

        monkeypatch.setattr(kind, "latents", counted)
    above = float(bank.mse.median())
    refined = refine(bank, data, generator, **{**QUICK, "above": above}, out=tmp_path / "new")
    assert max(read) <= 16
    in_memory = refine(bank, data, generator, **{**QUICK, "above": above})
    assert max(read) <= 16
    monkeypatch.undo()
    assert in_memory.digest() == refined.digest()
    better = (refined.mse < bank.mse).nonzero()[:, 0]
    assert 0 < len(better) < 150
    torch.testing.assert_close(pixel_mse(generator.decode(refined[:][0]), data.images), refined.mse, atol=1e-4, rtol=0)
    others = (refined.mse == bank.mse).nonzero()[:, 0]
    assert refined[others][0].equal(bank[others][0])


def test_a_place_that_is_done_goes_to_the_next_row_of_the_chunk(monkeypatch):
    """A chunk of ``refine`` is several batches: rows that have converged do not leave places empty."""
    from latent_mixup.inversion import optimise

    generator, data = LinearGenerator(), images(16)
    bank = invert(data, generator, **{**QUICK, "steps": 1})
    sizes, evaluate = [], optimise._Batch.evaluate

    def counted(self, generator, codes, *, grad):
        sizes.append(len(codes))
        return evaluate(self, generator, codes, grad=grad)

    monkeypatch.setattr(optimise._Batch, "evaluate", counted)
    refine(bank, data, generator, **{**QUICK, "steps": 30, "above": 0.0, "restarts": 0})
    assert max(sizes) == 4
    assert sizes == sorted(sizes, reverse=True)  # full until no row waits
    assert sum(sizes[: len(sizes) // 2]) == 4 * (len(sizes) // 2)
