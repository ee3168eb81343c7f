"""The benchmarks of speed: what is compared, and that they run."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from classifier import CLASSES, noisy_patterns, trained_cnn
from click.testing import CliRunner
from reference import deepfool_one_image
from speed import bank_reading, decode_time, deepfool, method_time, step_time, stylegan2_speed
from torch import Tensor, nn

from latent_mixup.generators import StyleGAN2


@pytest.fixture
def bundled():
    return step_time.bundled_case(channels_last=False)


def test_a_quick_run_compares_all_kinds(tmp_path):
    out = tmp_path / "results" / "step_time.json"
    out.parent.mkdir()
    out.write_text(json.dumps({"import": {"n": 9}}))
    found = CliRunner().invoke(step_time.main, ["--quick", "--part", "stylegan2", "--out", str(out)])
    assert found.exit_code == 0, found.output
    record = json.loads(out.read_text())
    assert record["import"] == {"n": 9}  # another part stays
    part = record["stylegan2"]
    assert (part["batch_size"], part["blocks"], part["steps_a_block"]) == (4, 3, 1)
    assert list(part["rows"]) == ["standard", "live", "live_half", "pool", "arithmetic_alone"]
    assert part["rows"]["standard"]["median_ratio_to_standard"] == 1.0
    for row in part["rows"].values():
        assert row["median_ms"] > 0
    assert part["hardware"]["threads"] == torch.get_num_threads()


def test_each_kind_is_first_in_turn():
    turns = [step_time.rotated(["a", "b", "c"], turn) for turn in range(4)]
    assert turns == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def test_the_floor_is_counted(bundled):
    """By hand: the linear layer and the convolutions at 7, 14 and 28 px, but for the gradient of the images."""
    found = step_time.floor(bundled)
    coarse = 128 * 48 * 49 + 2 * 48 * 48 * 9 * 49
    fine = (48 * 24 + 2 * 24 * 24 + 24 * 32) * 9 * 196 + 8 * 9 * 784
    decode = coarse + fine
    first, second = 26 * 26 * 16 * 9, 24 * 24 * 32 * 16 * 9
    rest = second + 4608 * 128 + 128 * 10
    assert found["decode_multiply_adds"] == 64 * decode
    assert found["step_multiply_adds"] == 64 * (2 * first + 3 * rest)
    assert found["ratio"] == pytest.approx(1 + decode / (2 * first + 3 * rest), abs=1e-3)
    assert found["ratio_half"] == pytest.approx(1 + decode / (2 * first + 3 * rest) / 2, abs=1e-3)


def test_what_the_bundled_generator_multiplies(bundled):
    """The layers of the row ``arithmetic_alone`` are those of one batch's decode."""
    shapes = sorted(tuple(weight.shape) for _, weight in bundled.layers)
    threes = [(1, 8), (24, 24), (24, 24), (24, 48), (32, 24), (48, 48), (48, 48)]
    assert shapes == sorted([*((*pair, 3, 3) for pair in threes), (48 * 49, 128)])
    assert {len(x) for x, _ in bundled.layers} == {64}


def test_kinds_are_what_their_names_say(bundled, tmp_path):
    step_time.render(bundled.generator, bundled.bank, tmp_path / "pool", n=200, progress=False)
    found = {name: next(iter(make())) for name, make in step_time.kinds(bundled, tmp_path / "pool").items()}
    assert list(found) == ["standard", "live", "live_half", "pool", "arithmetic_alone"]
    real = {name: images for name, (images, _) in found.items()}
    assert torch.equal(real["standard"], real["arithmetic_alone"])
    assert (real["standard"] == real["live_half"]).flatten(1).all(1).sum() == 32
    for name in ("live", "pool"):
        assert real[name].shape == real["standard"].shape
        assert not (real["standard"] == real[name]).flatten(1).all(1).any()


def test_ratios_are_medians_block_by_block():
    seconds = {"standard": [1.0, 2.0, 4.0], "arithmetic_alone": [1.0, 1.0, 1.0], "live": [2.0, 2.0, 6.0]}
    assert step_time.summary(seconds["live"], seconds) == {
        "median_ms": 2000.0,
        "median_ratio_to_standard": 1.5,
        "median_ratio_to_arithmetic_alone": 2.0,
    }


def test_memory_is_looked_at_ten_times():
    pytest.importorskip("resource")
    found = step_time.measure_memory("pool", 20)
    assert len(found["peak_mib"]) == 10
    assert found["peak_mib"] == sorted(found["peak_mib"])
    assert found["growth_mib"] == round(found["peak_mib"][-1] - found["peak_mib"][0], 1)


def test_the_import_is_timed_in_a_process_of_its_own():
    found = step_time.measure_import(1)
    assert found["n"] == 1
    assert 0 < found["median_seconds"] < 10


def test_a_quick_run_of_decodes(tmp_path):
    found = CliRunner().invoke(decode_time.main, ["--quick", "--out", str(tmp_path / "decode_time.json")])
    assert found.exit_code == 0, found.output
    (rows,) = json.loads((tmp_path / "decode_time.json").read_text())["generators"].values()
    assert [(row["images_a_call"], row["option"]) for row in rows] == [
        *((4, "none"), (8, "none"), (4, "channels_last=True"))
    ]
    assert rows[0]["ratio"] == 1.0
    assert rows[0]["moves_an_image_by"] == 0
    assert all(row["ms_an_image"] > 0 for row in rows)


def test_methods_are_timed_in_turns(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(method_time.time, "perf_counter", lambda: clock[0])

    def stepper(name, cost):
        def step():
            order.append(name)
            clock[0] += cost

        return step

    rows = method_time.measured({"standard": stepper("a", 0.01), "mixup": stepper("b", 0.03)}, 4)
    assert [(row["method"], row["median_ms"], row["n"]) for row in rows] == [("standard", 10, 4), ("mixup", 30, 4)]
    assert rows[1]["median_ratio_to_standard"] == pytest.approx(3)
    firsts = order[:: 2 * method_time.BLOCK]
    assert firsts == ["b", "a", "b", "a", "b"]  # the first turn warms up


def test_a_stepper_trains():
    draw = torch.Generator().manual_seed(0)
    images, labels = torch.rand(80, 1, 28, 28, generator=draw), torch.arange(80) % 10
    data = method_time.Data(images, labels, images, labels)
    seen = []

    def method(run):
        batches, loss = method_time.methods(0.5)["standard"][0](run)
        seen.append(run.model)
        return batches, loss

    step = method_time.stepper(method, data, None, method_time.Budget(epochs=1, batch_size=16))
    before = [parameter.clone() for parameter in seen[0].parameters()]
    step()
    assert any(not one.equal(two) for one, two in zip(before, seen[0].parameters(), strict=True))


def test_decodes_measured_elsewhere_are_not_mixed_in(tmp_path):
    here = {"python": "3", "hardware": {"cpus": 2}}
    path = tmp_path / "decode_time.json"
    assert decode_time._measured(path, here) == {}
    path.write_text(json.dumps({"generators": {"net": []}, **here}))
    assert decode_time._measured(path, here) == {"net": []}
    with pytest.raises(Exception, match="was measured elsewhere"):
        decode_time._measured(path, {**here, "hardware": {"cpus": 4}})


# ---- StyleGAN2 beside its convolutions


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    out = tmp_path_factory.mktemp("speed") / "results" / "stylegan2_stylegan2_speed.json"
    found = CliRunner().invoke(stylegan2_speed.main, ["--quick", "--out", str(out)])
    assert found.exit_code == 0, found.output
    return json.loads(out.read_text())


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_convolutions_are_those_of_the_network(batch_size):
    """As many, and as many multiplications, as torch's counter finds in the network's 3x3 convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    generator = StyleGAN2(channel_max=8, channel_base=128, img_resolution=32)
    layers = stylegan2_speed.convolutions(generator, batch_size)
    assert [tuple(x.shape) for x, _ in layers] == [
        (batch_size, channels, side, side)
        for channels, side in ((8, 4), (8, 4), (8, 8), (8, 8), (8, 16), (8, 16), (4, 32))
    ]
    asked = []
    for name, module in generator.named_modules():
        if name.endswith(("conv0", "conv1")):
            module.register_forward_pre_hook(
                lambda module, given: asked.append((given[0].shape[-2:], module.weight.shape))
            )
    with FlopCounterMode(display=False) as counter:
        generator.synthesis(generator.sample_latents(1))
    assert [(x.shape[-2:], weight.shape) for x, weight in layers] == asked
    total = sum(count for operation, count in counter.get_flop_counts()["Global"].items() if "conv" in str(operation))
    # what the counter has on top are the filters, of 16 taps: after each doubling, and on the image
    filters = sum(16 * (channels * side**2 + 3 * (side // 2) ** 2) for channels, side in ((8, 8), (8, 16), (4, 32)))
    assert stylegan2_speed.multiply_adds(layers) == total // 2 - filters


def test_the_full_network_has_the_size_of_the_published_one():
    with torch.device("meta"):
        generator = StyleGAN2()
    layers = [
        (torch.empty(1, 512, side, side, device="meta"), torch.empty(512, 512, 3, 3, device="meta"))
        for side in (4, 4, 8, 8, 16, 16, 32)
    ]
    assert stylegan2_speed.multiply_adds(layers) == 4_001_366_016
    assert sum(parameter.numel() for parameter in generator.parameters()) == pytest.approx(19.9e6, rel=0.01)


def test_a_quick_run_says_what_it_measured_and_where(quick):
    assert (quick["quick"], quick["network"]["channel_max"]) == (True, 16)
    assert [(row["batch_size"], row["n"]) for row in quick["rows"]] == [(1, 3), (4, 3)]
    for row in quick["rows"]:
        for direction in ("forward", "forward_backward"):
            measured = row[direction]
            assert min(measured.values()) >= 0  # how long it takes depends on the load
    assert quick["hardware"]["threads"] == torch.get_num_threads()
    assert set(quick["hardware"]) == {"machine", "cpus", "threads", "malloc"}
    assert set(quick["versions"]) == {"latent-mixup", "torch", "torchvision"}


def test_the_share_is_the_median_of_turn_by_turn(monkeypatch):
    times = iter([2.0, 1.0, 8.0, 2.0, 4.0, 3.0])  # shares of 0.5, 0.25 and 0.75
    monkeypatch.setattr(stylegan2_speed, "seconds", lambda work: next(times))
    assert stylegan2_speed.compare(int, int, 3, 4) == {
        "seconds_an_image": 1.0,
        "convolutions_seconds_an_image": 0.5,
        "share_of_their_speed": 0.5,
    }


# ---- DeepFool


@pytest.fixture(autouse=True)
def few_classes_and_small_blocks(monkeypatch):
    monkeypatch.setattr(deepfool, "NUM_CLASSES", CLASSES)
    monkeypatch.setattr(deepfool, "BLOCK", 5)


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    return noisy_patterns()


@pytest.fixture(scope="module")
def trained(data: tuple[Tensor, Tensor]) -> nn.Module:
    return trained_cnn(*data)


def test_its_loop_is_the_reference(trained: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    images = data[0][:8]
    perturbations, steps = deepfool.one_by_one(trained, images)
    for image, perturbation, taken in zip(images, perturbations, steps, strict=True):
        expected, expected_steps = deepfool_one_image(trained, image, CLASSES)
        torch.testing.assert_close(perturbation, expected, atol=1e-9, rtol=0)
        assert int(taken) == expected_steps


def test_it_finds_the_three_to_agree(trained: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    record = deepfool.measure(copy.deepcopy(trained).float(), data[0][:12].float())
    json.dumps(record, allow_nan=False)
    for precision, tolerance in (("float32", 1e-3), ("float64", 1e-6)):
        assert set(record[precision]) == {"batched", "foolbox"}
        for found in record[precision].values():
            assert found["largest_norm_difference"] < tolerance
            assert found["mean_norm"] > 1
    assert record["float64"]["batched"]["share_with_same_steps"] == 1
    assert record["float64"]["batched"]["largest_norm_difference"] < 1e-12
    assert record["speed"]["one_by_one"]["speed_up"] == 1
    for speed in record["speed"].values():
        least, greatest = speed["least_and_greatest_speed_up"]
        assert 0 < least <= speed["speed_up"] <= greatest


def test_disagreement_is_seen() -> None:
    steps = torch.tensor([1, 2])
    own = torch.zeros(2, 1, 1, 2)
    own[:, 0, 0, 0] = 1.0
    other = own.clone()
    other[1, 0, 0] = torch.tensor([0.0, 0.5])
    found = deepfool.agreement((own, steps), (other, steps + torch.tensor([0, 1])))
    assert found == {
        "mean_norm": 0.75,
        "largest_norm_difference": 0.5,
        "largest_relative_norm_difference": 0.5,
        "largest_pixel_difference": 1.0,
        "share_with_same_steps": 0.5,
    }


# ---- reading a bank


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")
    size = bank_reading.write(folder, 300)
    assert 300 * 8 * 512 * 2 < size < 300 * 8 * 512 * 2 + 20_000
    return folder


def test_the_codes_are_those_of_their_keys(folder):
    bank = bank_reading.LatentBank.from_pretrained(folder, verify=True)
    assert (len(bank), bank.latent_shape, bank.dtype) == (300, (8, 512), torch.float16)
    assert 0.9 < float(bank[:][0].std()) < 1.1
    latents, seconds, _ = bank_reading.Reads(bank, 3)[2]
    rows = torch.randint(300, (256,), generator=bank_reading.keyed_generator("bank-rows", 2))
    assert latents.equal(bank[rows][0])
    assert seconds > 0


def test_what_is_measured(folder):
    opened = bank_reading.opened(folder)
    assert opened["median_ms"] > 0
    assert opened["pickled_bank_bytes"] < opened["pickled_dataset_bytes"] < 10_000
    read = bank_reading.read(folder, 0, None, 5)
    assert (read["workers"], read["start_method"]) == (0, None)
    assert 0 < read["read_median_ms"] <= read["read_p95_ms"]
    assert read["reads_per_second"] > 0
    assert set(read["memory_of_a_reader_mb"]) == set(bank_reading.memory()) == set(read["most_memory_of_a_reader_mb"])
