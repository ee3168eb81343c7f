"""The report: its numbers against slow ones, the rows it shows, and what it refuses."""

from __future__ import annotations

import importlib
import io
import json
import sys
from pathlib import Path

import foreign
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import LabelledImages, SoftImages
from defaults import other_defaults
from PIL import Image

from latent_mixup import LatentBank, cli, inversion, load_generator
from latent_mixup.bundled import BundledImages
from latent_mixup.encoders import MLPEncoder
from latent_mixup.generators import wrap
from latent_mixup.images import to_uint8, to_unit
from latent_mixup.inversion import pixel_mse, report
from latent_mixup.inversion.samples import probe
from latent_mixup.quality import page

matplotlib = pytest.importorskip("matplotlib")
module = importlib.import_module("latent_mixup.quality.report")
FILES = {"report.json", "report.png"}


@pytest.fixture(autouse=True)
def coarse_page(monkeypatch):
    """The page in few pixels, which is quicker to draw."""
    monkeypatch.setattr(page, "DPI", 40)


@pytest.fixture
def no_page(monkeypatch):
    """An empty page, where a test is about numbers."""
    monkeypatch.setattr(module, "draw_page", lambda *arguments: b"")


@pytest.fixture
def noisy_bank(linear_generator, toy_dataset) -> LatentBank:
    """Codes of ``toy_dataset``, each at another distance from the exact one, with their MSE, in another order."""
    draw = torch.Generator().manual_seed(0)
    exact = linear_generator.encode(toy_dataset.images)
    latents = exact + torch.rand(50, 1, generator=draw) * torch.randn(exact.shape, generator=draw) / 4
    bank = LatentBank(
        latents,
        toy_dataset.labels,
        source_index=torch.arange(50),
        mse=pixel_mse(linear_generator.decode(latents), toy_dataset.images),
        metadata={"classes": ["shoe", "$x$ & <y>", "a name that is far too long for the page of a report"]},
    )
    return bank.subset(torch.randperm(50, generator=torch.Generator().manual_seed(3)))


def with_columns(bank, **columns) -> LatentBank:
    """The codes of a bank in their order, with these columns and no others."""
    return LatentBank(bank[:][0], **{"labels": bank.labels, "source_index": bank.source_index, **columns})


def without_encoder(generator):
    return wrap(generator.decode, latent_shape=generator.latent_shape)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def slow_quantile(values: list[float], per_cent: float) -> float:
    """Linear between the two nearest of the sorted values."""
    ordered, at = sorted(values), (len(values) - 1) * per_cent / 100
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


# ---- numbers ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_page")
def test_numbers_are_the_slow_ones(linear_generator, toy_dataset, noisy_bank, tmp_path):
    record = report(noisy_bank, toy_dataset, linear_generator, tmp_path / "out")
    everything = [(noisy_bank.mse.tolist(), record["mse"])]
    for summary in record["classes"]:
        of_class = [mse for mse, label in zip(noisy_bank.mse.tolist(), noisy_bank.labels, strict=True)
                    if label == summary["label"]]  # fmt: skip
        everything.append((of_class, summary))
    assert len(everything) == 4
    for values, summary in everything:
        assert summary["n"] == len(values)
        assert summary["mean"] == pytest.approx(sum(values) / len(values))
        assert list(summary["quantiles"]) == ["0", "1", "5", "25", "50", "75", "95", "99", "100"]
        for per_cent, quantile in summary["quantiles"].items():
            assert quantile == pytest.approx(slow_quantile(values, float(per_cent)))
        for limit in (0.025, 0.02):
            assert summary["above"][f"{limit:g}"] == pytest.approx(sum(v >= limit for v in values) / len(values))
    assert 0 < record["mse"]["above"]["0.025"] < record["mse"]["above"]["0.02"] < 1
    assert [summary["name"] for summary in record["classes"]] == noisy_bank.metadata["classes"]


def test_thresholds_include_themselves():
    summary = module._summary(torch.tensor([0.0, 0.5, 1.0, torch.inf]), limits=(0.5, 2.0))
    assert summary["n"] == 3
    assert summary["above"] == {"0.5": 2 / 3, "2": 0.0}


@pytest.mark.usefixtures("no_page")
def test_the_json_is_what_is_returned_and_names_what_it_is_about(linear_generator, toy_dataset, noisy_bank, tmp_path):
    noisy_bank.metadata["dataset"] = {"name": "toys"}
    record = report(noisy_bank, toy_dataset, linear_generator, tmp_path / "out", seed=4)
    assert set(contents(tmp_path / "out")) == FILES
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == record
    assert record["bank"]["digest"] == noisy_bank.digest()
    assert record["generator"]["digest"] == linear_generator.digest()
    assert record["dataset"]["name"] == "toys"
    assert record["dataset"]["length"] == 50
    assert record["seed"] == 4
    assert "Inversion of toys by LinearGenerator, n = 50" in page._caption(record, {"MSE": noisy_bank.mse}, 3)


@pytest.mark.usefixtures("no_page")
def test_a_bank_without_mse_gets_the_same_numbers(linear_generator, toy_dataset, noisy_bank, tmp_path):
    bare = with_columns(noisy_bank)
    records = [report(bank, toy_dataset, linear_generator, tmp_path / "out") for bank in (noisy_bank, bare)]
    assert [record["mse"].pop("source") for record in records] == ["stored", "computed"]
    assert [record["check"] is None for record in records] == [False, True]
    assert records[1]["mse"]["n"] == 50
    assert records[0]["mse"]["quantiles"] == pytest.approx(records[1]["mse"]["quantiles"], rel=1e-4)


@pytest.mark.usefixtures("no_page")
def test_rows_that_failed_or_have_no_mse_are_counted_and_left_out(linear_generator, toy_dataset, noisy_bank, tmp_path):
    status = torch.zeros(50, dtype=torch.uint8)
    status[[3, 4]], status[5], status[6] = 1, 2, 9
    mse = noisy_bank.mse.clone()
    mse[7], mse[3] = torch.inf, 0.0
    bank = with_columns(noisy_bank, mse=mse, status=status)
    record = report(bank, toy_dataset, linear_generator, tmp_path / "out")
    good = [row for row in range(50) if row not in (3, 4, 5, 6, 7)]
    status_counts = {"ok": 46, "failed": 2, "skipped": 1, "9": 1}
    assert record["rows"] == {"all": 50, "reported": 45, "status": status_counts}
    assert record["mse"]["n"] == 45
    assert record["mse"]["mean"] == pytest.approx(float(mse[good].mean()))
    shown = {row["row"] for group in record["shown"].values() for row in group}
    assert shown <= set(good)
    assert page.report_sentence(record).startswith(
        "45 of 50 rows are ok and have an MSE (2 failed, 1 skipped, 1 9); 45 of 45 rows decoded again have the bank's"
    )
    without = bank.subset([3, 4, 5, 6, 7])
    with pytest.raises(ValueError, match=r"none of the bank's 5 rows has status 0 and a finite mse: invert them again"):
        report(without, toy_dataset, linear_generator, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("some", [True, False], ids=["but one", "none"])
def test_lpips_is_summarised_where_there_is_any(linear_generator, toy_dataset, noisy_bank, tmp_path, some):
    lpips = torch.linspace(0, 1, 50) if some else torch.full((50,), torch.inf)
    lpips[49] = torch.inf
    bank = with_columns(noisy_bank, mse=noisy_bank.mse, lpips=lpips)
    record = report(bank, toy_dataset, linear_generator, tmp_path / "out", columns=1)
    header, codes, *_ = page.report_table(record).splitlines()
    if some:
        assert record["lpips"]["n"] == 49
        assert record["lpips"]["quantiles"]["50"] == pytest.approx(float(lpips[24]))
        assert header.split() == ["inverted", "MSE", "LPIPS", "encoded", "MSE"]
        assert codes.split() == ["codes", "50", "49", "50"]
    else:
        assert record["lpips"] == {"n": 0}
        assert header.split() == ["inverted", "MSE", "encoded", "MSE"]


@pytest.mark.usefixtures("no_page")
def test_soft_labels_count_for_their_largest_entry(linear_generator, toy_dataset, noisy_bank, tmp_path):
    soft = torch.nn.functional.one_hot(toy_dataset.labels, 3) * 0.4 + 0.2
    records = []
    for labels in (toy_dataset.labels, soft):
        dataset = SoftImages(toy_dataset.images, labels)
        bank = with_columns(noisy_bank, labels=labels[noisy_bank.source_index], mse=noisy_bank.mse)
        records.append(report(bank, dataset, linear_generator, tmp_path / "out"))
    assert records[0]["classes"] == records[1]["classes"]
    assert records[0]["shown"] == records[1]["shown"]


def test_rows_without_a_label_are_a_class_of_their_own(linear_generator, toy_dataset, noisy_bank, tmp_path):
    labels = torch.where(torch.arange(50) % 5 == 0, -1, toy_dataset.labels)
    bank = with_columns(noisy_bank, labels=labels[noisy_bank.source_index], mse=noisy_bank.mse)
    classes = report(bank, LabelledImages(toy_dataset.images, labels), linear_generator, tmp_path / "out")["classes"]
    assert [(summary["label"], summary["name"]) for summary in classes] == [(-1, None), (0, "0"), (1, "1"), (2, "2")]
    assert [summary["n"] for summary in classes] == [int((labels == label).sum()) for label in (-1, 0, 1, 2)]


def test_many_classes_are_drawn_for_their_worst():
    classes = [{"label": label, "quantiles": {"50": (label * 7 % 50) / 50}} for label in range(50)]
    drawn = page._drawn_classes({"classes": classes})
    worst = sorted(summary["quantiles"]["50"] for summary in classes)[-20:]
    assert sorted(summary["quantiles"]["50"] for summary in drawn) == worst
    assert [summary["label"] for summary in drawn] == sorted(summary["label"] for summary in drawn)


# ---- rows that are shown ---------------------------------------------------------------------------


@pytest.mark.usefixtures("no_page")
def test_the_rows_shown_are_the_best_the_middle_the_worst_and_random_ones(
    linear_generator, toy_dataset, noisy_bank, tmp_path
):
    shown = report(noisy_bank, toy_dataset, linear_generator, tmp_path / "out", columns=4)["shown"]
    ordered = sorted(range(50), key=lambda row: noisy_bank.mse[row])
    assert [row["row"] for row in shown["best"]] == ordered[:4]
    assert [row["row"] for row in shown["median"]] == ordered[23:27]
    assert [row["row"] for row in shown["worst"]] == ordered[:-5:-1]
    assert len({row["row"] for row in shown["random"]}) == 12
    for row in (row for group in shown.values() for row in group):
        assert row["source_index"] == int(noisy_bank.source_index[row["row"]])
        assert row["label"] == int(noisy_bank.labels[row["row"]])
        assert row["decoded_mse"] == pytest.approx(row["mse"], rel=1e-4) == float(noisy_bank.mse[row["row"]])
        assert row["encoded_mse"] == pytest.approx(0, abs=1e-10)


def test_a_look_has_original_inverted_and_encoded_image(linear_generator, toy_dataset, noisy_bank):
    def black(images):
        return linear_generator.encode(torch.full_like(images, -1.0))

    rows, (format, _) = torch.tensor([7, 2]), probe(toy_dataset, linear_generator)
    look = module._look(module.BankImages(noisy_bank, toy_dataset, linear_generator, format), black, rows)
    assert look.images.shape == (2, 3, 192, 192, 3)
    originals = toy_dataset.images[noisy_bank.source_index[rows]]
    inverted = linear_generator.decode(noisy_bank[rows][0])
    for place, expected in enumerate([originals, inverted, torch.full_like(originals, -1.0)]):
        assert look.images[:, place, ::48, ::48, 1].equal(to_uint8(expected[:, 0]))
        assert look.images[:, place].unique().equal(to_uint8(expected).unique())
    torch.testing.assert_close(look.mse[:, 1], (originals + 1).square().flatten(1).mean(1))
    strip = page._side_by_side(look.images[0])
    assert strip.shape == (192, 3 * 192 + 2 * 4, 3)
    assert (strip[:, 192:196] == 255).all()
    assert (strip[:, -192:] == 0).all()


def test_large_images_are_made_smaller():
    half = torch.cat([torch.full((2, 3, 512, 256), -1.0), torch.full((2, 3, 512, 256), 1.0)], dim=3)
    small = module._thumbnails(half)
    assert small.shape == (2, 192, 192, 3)
    assert (small[:, :, :90] == 0).all()
    assert (small[:, :, -90:] == 255).all()
    with pytest.raises(ValueError, match=r"the page shows images of 1 or 3 channels: got 4"):
        module._thumbnails(torch.zeros(1, 4, 8, 8))


@pytest.mark.usefixtures("no_page")
def test_the_encoder_is_the_one_given_else_the_generators_own_else_none(
    linear_generator, toy_dataset, noisy_bank, tmp_path
):
    def to_zero(images):
        return torch.zeros(len(images), 16)

    given, own = (
        report(noisy_bank, toy_dataset, linear_generator, tmp_path / "out", encoder=encoder)["encoded"]
        for encoder in (to_zero, None)
    )
    assert (given["encoder"], own["encoder"][:23]) == ("to_zero", "LinearGenerator.encode ")
    assert given["mean"] == pytest.approx(float(toy_dataset.images.square().mean()), rel=1e-4)
    assert own["mean"] == pytest.approx(0, abs=1e-10)
    assert given["inverted_mean"] == own["inverted_mean"] == pytest.approx(float(noisy_bank.mse.mean()), rel=1e-4)
    record = report(noisy_bank, toy_dataset, without_encoder(linear_generator), tmp_path / "out")
    assert record["encoded"] is None
    assert {row["encoded_mse"] for group in record["shown"].values() for row in group} == {None}
    with pytest.raises(ValueError, match="none of 50 encoded images is finite: pass another encoder="):
        report(noisy_bank, toy_dataset, linear_generator, tmp_path / "nan", encoder=lambda x: to_zero(x) * torch.nan)
    assert not (tmp_path / "nan").exists()


def test_an_encoder_that_fails_now_and_then(linear_generator, toy_dataset, noisy_bank, tmp_path):
    worst = toy_dataset.images[noisy_bank.source_index[noisy_bank.mse.argmax()]]

    def sometimes(images):
        return linear_generator.encode(images).masked_fill((images == worst).flatten(1).all(1)[:, None], torch.nan)

    record = report(noisy_bank, toy_dataset, linear_generator, tmp_path / "out", encoder=sometimes, columns=2)
    assert record["encoded"]["n"] == 49
    assert record["shown"]["worst"][0]["encoded_mse"] is None
    assert record["shown"]["worst"][1]["encoded_mse"] is not None


@pytest.mark.parametrize("columns", [1, 200])
def test_few_rows_and_many_columns(linear_generator, toy_dataset, noisy_bank, tmp_path, columns):
    record = report(noisy_bank.subset([4, 1, 8]), toy_dataset, linear_generator, tmp_path / "out", columns=columns)
    most = min(3, columns)
    counts = {name: len(group) for name, group in record["shown"].items()}
    assert counts == {"best": most, "median": most, "worst": most, "random": 3}


def test_rgb_and_w_plus(tmp_path):
    generator = foreign.tiny()
    latents = generator.sample_latents(12, torch.Generator().manual_seed(0))
    dataset = LabelledImages(generator.decode(latents).clamp(-1, 1), torch.arange(12) % 3)
    bank = LatentBank(latents, dataset.labels, metadata={"latent_space": "w+"})
    record = report(bank, dataset, generator, tmp_path / "out", columns=2)
    assert record["bank"]["latent_shape"] == list(generator.latent_shape)
    assert record["generator"]["latent_space"] == "w+"
    expected = pixel_mse(generator.decode(latents), dataset.images).mean()
    assert record["mse"]["mean"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_an_mse_that_all_rows_share(linear_generator, toy_dataset, toy_bank, tmp_path, value, monkeypatch):
    monkeypatch.setattr(module, "compare_mse", lambda stored, decoded: 0)
    bank = LatentBank(toy_bank[:][0], toy_bank.labels, mse=torch.full((50,), value))
    record = report(bank, toy_dataset, linear_generator, tmp_path / "out", columns=1)
    assert set(record["mse"]["quantiles"].values()) == {float(torch.tensor(value))}


# ---- one input, one page ---------------------------------------------------------------------------


def test_the_same_input_gives_the_same_bytes(linear_generator, toy_dataset, noisy_bank, tmp_path, monkeypatch):
    before, parameters = torch.get_rng_state(), dict(matplotlib.rcParams)
    one, two = (tmp_path / name for name in ("one", "two"))
    record = report(noisy_bank, toy_dataset, linear_generator, one)
    assert dict(matplotlib.rcParams) == parameters
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "savefig.dpi": 11}):
        report(noisy_bank, toy_dataset, linear_generator, two)
    assert contents(one) == contents(two)
    assert torch.get_rng_state().equal(before)
    monkeypatch.setattr(module, "draw_page", lambda *arguments: b"")
    other = report(noisy_bank, toy_dataset, linear_generator, two, seed=1)
    assert other["mse"] == record["mse"]
    assert other["shown"]["best"] == record["shown"]["best"]
    assert other["shown"]["random"] != record["shown"]["random"]


def test_the_page_is_a_png_of_a4_width_without_a_date(linear_generator, toy_dataset, noisy_bank, tmp_path):
    report(noisy_bank, toy_dataset, linear_generator, tmp_path / "out")
    with Image.open(io.BytesIO(contents(tmp_path / "out")["report.png"])) as page:
        assert page.format == "PNG"
        assert page.width == int(8.27 * 40)
        assert page.height > page.width
        assert set(page.info) <= {"dpi"}
        edge = np.asarray(page.convert("L"))
    assert edge[:5].min() == edge[-5:].min() == edge[:, :5].min() == edge[:, -5:].min() == 255  # nothing is cut off


@pytest.mark.usefixtures("no_page")
def test_only_the_rows_shown_and_a_sample_are_decoded(linear_generator, tmp_path):
    images = torch.rand(3000, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    dataset, sizes = LabelledImages(images, torch.arange(3000) % 3), []

    def decode(latents):
        sizes.append(len(latents))
        return linear_generator.decode(latents)

    generator = wrap(decode, latent_shape=(16,))
    sizes.clear()
    bank = LatentBank(linear_generator.encode(images), dataset.labels, mse=torch.zeros(3000))
    report(bank, dataset, generator, tmp_path / "out", columns=5)
    assert max(sizes) <= 32
    assert sum(sizes) == 256 + (3 + 3) * 5


# ---- what is refused -------------------------------------------------------------------------------


def test_a_stored_mse_that_is_another_generators(linear_generator, toy_dataset, noisy_bank, tmp_path):
    turned = wrap(lambda latents: linear_generator.decode(latents).flip(3), latent_shape=(16,))
    message = (
        r"the bank's mse is not what its codes decode to: of 50 rows looked at, 50 differ, with a median of "
        r"0\.\d+ stored and 0\.\d+ recomputed; pass the generator and the data set the bank was made with"
    )
    with pytest.raises(ValueError, match=message):
        report(noisy_bank, toy_dataset, turned, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_data_set_in_another_order_within_its_classes(linear_generator, toy_dataset, noisy_bank, tmp_path):
    moved = LabelledImages(toy_dataset.images.roll(3, 0), toy_dataset.labels.roll(3))
    assert moved.labels[3:].equal(toy_dataset.labels[3:])
    bank = noisy_bank.subset(noisy_bank.source_index >= 3)
    with pytest.raises(ValueError, match="the bank's mse is not what its codes decode to"):
        report(bank, moved, linear_generator, tmp_path / "out")


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize(("wrong", "refused"), [(1, False), (5, False), (6, True)])
def test_a_few_rows_may_disagree(linear_generator, toy_dataset, noisy_bank, tmp_path, wrong, refused):
    mse = noisy_bank.mse.clone()
    mse[:wrong] += 0.5
    bank = with_columns(noisy_bank, mse=mse)
    if refused:
        with pytest.raises(ValueError, match="of 50 rows looked at, 6 differ"):
            report(bank, toy_dataset, linear_generator, tmp_path / "out")
    else:
        check = report(bank, toy_dataset, linear_generator, tmp_path / "out")["check"]
        assert (check["rows"], check["disagreeing"]) == (50, wrong)
        assert check["largest_difference"] == pytest.approx(0.5, rel=1e-4)
        assert check["stored_mean"] - check["recomputed_mean"] == pytest.approx(0.5 * wrong / 50, rel=1e-3)


@pytest.mark.usefixtures("no_page")
def test_codes_rounded_to_float16_agree(linear_generator, toy_dataset, noisy_bank, tmp_path):
    noisy_bank.save_pretrained(tmp_path / "bank", dtype=torch.float16)
    bank = LatentBank.from_pretrained(tmp_path / "bank")
    assert report(bank, toy_dataset, linear_generator, tmp_path / "bank")["check"]["disagreeing"] == 0
    assert LatentBank.from_pretrained(tmp_path / "bank", verify=True).digest() == bank.digest()  # still whole


@pytest.mark.usefixtures("no_page")
def test_images_are_read_as_the_bank_says(linear_generator, toy_dataset, tmp_path):
    """A normalisation that invert was told of, and that cannot be seen in the images, is not asked for again."""
    normalised = LabelledImages((to_unit(toy_dataset.images) - 0.2) / 0.1, toy_dataset.labels)
    quick = {"loss": pixel_mse, "steps": 0, "progress": False}
    bank = inversion.invert(normalised, linear_generator, **quick, mean=0.2, std=0.1)
    record = report(bank, normalised, linear_generator, tmp_path)
    assert record["check"]["disagreeing"] == 0
    assert record["mse"]["mean"] == pytest.approx(float(bank.mse.mean()))


def test_an_image_that_cannot_be_read(linear_generator, toy_dataset, noisy_bank, tmp_path):
    class Broken(LabelledImages):
        def __getitem__(self, index):
            if index == 33:
                raise OSError("broken file")
            return super().__getitem__(index)

    dataset = Broken(toy_dataset.images, toy_dataset.labels)
    with pytest.raises(ValueError, match="the bank has a code of image 33, which cannot be read: OSError: broken file"):
        report(noisy_bank, dataset, linear_generator, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    without = noisy_bank.subset(noisy_bank.source_index != 33)
    assert report(without, dataset, linear_generator, tmp_path / "out")["rows"]["reported"] == 49


def test_what_does_not_belong_together(linear_generator, toy_dataset, noisy_bank, tmp_path):
    noisy_bank.metadata["generator"] = {"digest": "0" * 64, "name": "another"}
    with pytest.raises(ValueError, match=r"belongs to a generator with digest 000000000000 \(another\)"):
        report(noisy_bank, toy_dataset, linear_generator, tmp_path / "out")
    del noisy_bank.metadata["generator"]
    short = LabelledImages(toy_dataset.images[:20], toy_dataset.labels[:20])
    with pytest.raises(ValueError, match="the bank has codes of 50 samples"):
        report(noisy_bank, short, linear_generator, tmp_path / "out")
    with pytest.raises(ValueError, match="columns needs to be at least 1: got 0"):
        report(noisy_bank, toy_dataset, linear_generator, tmp_path / "out", columns=0)
    assert not (tmp_path / "out").exists()


def test_arguments_in_another_order_are_named(linear_generator, toy_dataset, noisy_bank, tmp_path):
    for arguments, message in (
        (
            (linear_generator, toy_dataset, noisy_bank),
            r"the bank comes first, report\(bank, dataset, generator, out\): got",
        ),
        (("fashion-mnist", toy_dataset, linear_generator), "the bank comes first, .* got str"),
        ((noisy_bank, linear_generator, toy_dataset), "the data set comes before the generator"),
        ((noisy_bank, toy_dataset, torch.nn.Linear(4, 4)), "wrap"),
    ):
        with pytest.raises(TypeError, match=message):
            report(*arguments, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_the_error_names_the_extra(linear_generator, toy_dataset, noisy_bank, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"report draws with matplotlib: pip install 'latent-mixup\[plot\]'"):
        report(noisy_bank, toy_dataset, linear_generator, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_page")
def test_an_older_report_stays_whole_when_a_new_one_fails(linear_generator, toy_dataset, noisy_bank, tmp_path):
    report(noisy_bank, toy_dataset, linear_generator, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match="encoded images is finite"):
        report(noisy_bank, toy_dataset, linear_generator, tmp_path / "out", encoder=lambda x: x.flatten(1) * torch.nan)
    assert contents(tmp_path / "out") == before


# ---- the command -----------------------------------------------------------------------------------


def test_the_command_prints_the_table_and_writes_both_files(tmp_path, monkeypatch):
    generator, images = load_generator("fashion-mnist"), BundledImages("fashion-mnist", train=False)
    images.data, images.targets = images.data[:40], images.targets[:40]
    latents = generator.encode(torch.stack([images[index][0] for index in range(40)]))
    LatentBank(latents, images.targets).save_pretrained(tmp_path / "bank")
    asked = []

    def lying_there(name, root, *, train):
        asked.append((name, root, train))
        return images

    monkeypatch.setattr(cli.shared, "torchvision_dataset", lying_there)
    arguments = ["report", tmp_path / "bank", "--generator", "fashion-mnist", "--dataset", "fashion-mnist"]
    arguments += ["--data-root", tmp_path, "--test", "--out", tmp_path / "out"]
    result = CliRunner().invoke(cli.main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert asked == [("fashion-mnist", tmp_path, False)]
    assert set(contents(tmp_path / "out")) == FILES
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert page.report_table(record) in result.output
    assert "40 of 40 rows are ok and have an MSE (the bank notes no failures); the bank came without" in result.output
    assert f"{tmp_path / 'out' / 'report.png'} and report.json written" in result.output
    assert record["mse"]["mean"] == pytest.approx(record["encoded"]["mean"], rel=0.01)  # the codes are the encoder's

    MLPEncoder(generator, widths=(8,)).save_pretrained(tmp_path / "encoder")  # untrained: it gives the mean code
    result = CliRunner().invoke(cli.main, [*map(str, arguments), "--encoder", str(tmp_path / "encoder")])
    assert result.exit_code == 0, result.output
    other = json.loads((tmp_path / "out" / "report.json").read_text())
    assert other["mse"] == record["mse"]
    assert other["encoded"]["encoder"].startswith("MLPEncoder")
    assert other["encoded"]["mean"] > 2 * record["encoded"]["mean"]


@pytest.mark.usefixtures("no_page")
def test_a_report_does_not_depend_on_the_default_device_and_dtype(linear_generator, toy_dataset, noisy_bank, tmp_path):
    bare = with_columns(noisy_bank)
    for bank in (noisy_bank, bare):
        expected = report(bank, toy_dataset, linear_generator, tmp_path / "out")
        for defaults in other_defaults():
            with defaults:
                assert report(bank, toy_dataset, linear_generator, tmp_path / "out") == expected


def test_report_is_the_function_of_that_name():
    assert inversion.report is report
    assert callable(inversion.report)


def test_the_check_of_codes_is_part_of_the_record_where_it_is_asked_for(
    tmp_path, noisy_bank, toy_dataset, linear_generator, no_page, monkeypatch
):
    asked = []

    def checked(*given, **options):
        asked.append((given, options))
        return {"verdict": {"go": True}}

    monkeypatch.setattr(module, "check_codes", checked)
    plain = report(noisy_bank, toy_dataset, linear_generator, tmp_path)
    assert not asked
    record = report(noisy_bank, toy_dataset, linear_generator, tmp_path, seed=4, check=True)
    assert asked == [((noisy_bank, toy_dataset, linear_generator), {"seed": 4})]
    assert record["codes"] == json.loads((tmp_path / "report.json").read_text())["codes"] == {"verdict": {"go": True}}
    assert set(record) == set(plain) | {"codes"}
