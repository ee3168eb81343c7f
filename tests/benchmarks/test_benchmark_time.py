"""The benchmarks of a training step and of a decode: what is compared, and that they run."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str):
        specification = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
        module = sys.modules[specification.name] = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def step_time(script):
    return script("step_time")


@pytest.fixture
def bundled(step_time):
    return step_time.compact_case(channels_last=False)


def test_a_quick_run_compares_all_kinds(step_time, tmp_path):
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


def test_each_kind_is_first_in_turn(step_time):
    turns = [step_time.rotated(["a", "b", "c"], turn) for turn in range(4)]
    assert turns == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def test_the_floor_is_counted(step_time, bundled):
    """By hand: three linear layers and the skip; convolutions and linear layers, but for the gradient of the images."""
    found = step_time.floor(bundled)
    decode = 128 * 512 + 512 * 1024 + 1024 * 784 + 128 * 784
    first, second = 26 * 26 * 16 * 9, 24 * 24 * 32 * 16 * 9
    rest = second + 4608 * 128 + 128 * 10
    assert found["decode_multiply_adds"] == 64 * decode
    assert found["step_multiply_adds"] == 64 * (2 * first + 3 * rest)
    assert found["ratio"] == pytest.approx(1 + decode / (2 * first + 3 * rest), abs=1e-3)
    assert found["ratio_half"] == pytest.approx(1 + decode / (2 * first + 3 * rest) / 2, abs=1e-3)


def test_what_the_bundled_generator_multiplies(bundled):
    """The layers of the row ``arithmetic_alone`` are those of one batch's decode."""
    shapes = sorted(tuple(weight.shape) for _, weight in bundled.layers)
    assert shapes == [(512, 128), (784, 128), (784, 1024), (1024, 512)]
    assert {len(x) for x, _ in bundled.layers} == {64}


def test_kinds_are_what_their_names_say(step_time, bundled, tmp_path):
    step_time.render(bundled.generator, bundled.bank, tmp_path / "pool", n=200, progress=False)
    found = {name: next(iter(make())) for name, make in step_time.kinds(bundled, tmp_path / "pool").items()}
    assert list(found) == [
        *("standard", "live", "live_half", "live_batch_by_batch", "live_prefetch_2", "pool", "arithmetic_alone")
    ]
    real = {name: images for name, (images, _) in found.items()}
    assert torch.equal(real["standard"], real["arithmetic_alone"])
    assert (real["standard"] == real["live_half"]).flatten(1).all(1).sum() == 32
    for name in ("live", "live_batch_by_batch", "live_prefetch_2", "pool"):
        assert real[name].shape == real["standard"].shape
        assert not (real["standard"] == real[name]).flatten(1).all(1).any()
    torch.testing.assert_close(real["live_batch_by_batch"], real["live"])


def test_ratios_are_medians_block_by_block(step_time):
    seconds = {"standard": [1.0, 2.0, 4.0], "arithmetic_alone": [1.0, 1.0, 1.0], "live": [2.0, 2.0, 6.0]}
    assert step_time.summary(seconds["live"], seconds) == {
        "median_ms": 2000.0,
        "median_ratio_to_standard": 1.5,
        "median_ratio_to_arithmetic_alone": 2.0,
    }


def test_memory_is_looked_at_ten_times(step_time):
    found = step_time.measure_memory("pool", 20)
    assert len(found["peak_mib"]) == 10
    assert found["peak_mib"] == sorted(found["peak_mib"])
    assert found["growth_mib"] == round(found["peak_mib"][-1] - found["peak_mib"][0], 1)


def test_the_import_is_timed_in_a_process_of_its_own(step_time):
    found = step_time.measure_import(1)
    assert found["n"] == 1
    assert 0 < found["median_seconds"] < 10


def test_a_quick_run_of_decodes(script, tmp_path):
    decode_time = script("decode_time")
    found = CliRunner().invoke(decode_time.main, ["--quick", "--out", str(tmp_path / "decode_time.json")])
    assert found.exit_code == 0, found.output
    (rows,) = json.loads((tmp_path / "decode_time.json").read_text())["generators"].values()
    assert [(row["images_a_call"], row["option"]) for row in rows] == [
        *((4, "none"), (8, "none"), (4, "channels_last=True"))
    ]
    assert rows[0]["ratio"] == 1.0
    assert rows[0]["moves_an_image_by"] == 0
    assert all(row["ms_an_image"] > 0 for row in rows)


def test_the_table_is_drawn_from_the_record(script, tmp_path, monkeypatch):
    tables = script("time_tables")
    row = {"median_ms": 12.345, "median_ratio_to_standard": 1.0789}
    part = {"case": "net", "batch_size": 32, "blocks": 11, "floor": {"ratio": 3.5, "ratio_half": 2.25}}
    part["floor"] |= {"step_multiply_adds": 2_000_000, "decode_multiply_adds": 5_000_000_000}
    record = {"bundled": {**part, "rows": {"standard": row, "live_half": row}}, "stylegan2": {**part, "rows": {}}}
    record["memory"] = {"runs": [{"kind": "live", "steps": 1000, "peak_mib": [410.2, 410.4, 411.0]}]}
    (tmp_path / "step_time.json").write_text(json.dumps(record))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.step_time_table(("bundled", "stylegan2")).splitlines()[2:] == [
        "| net, batch 32 | standard | 12.3 ms | 1.08 |  | 11 |",
        "|  | live, `prob=0.5` | 12.3 ms | 1.08 | 2.25 | 11 |",
    ]
    assert tables.step_time_table(["bundled"], ["standard"]).splitlines()[2:] == [
        "| net, batch 32 | standard | 12.3 ms | 1.08 |  | 11 |"
    ]
    assert tables.step_floor_table().splitlines()[2] == "| net, batch 32 | 2 M | 5,000 M | 3.50 |"
    assert tables.step_memory_table().splitlines()[2:] == ["| live | 1000 | 410 MiB | 411 MiB |"]


def test_the_tables_of_decodes_and_pools_are_drawn_from_their_files(script, tmp_path, monkeypatch):
    tables, score_tables = script("time_tables"), script("score_tables")
    for module in (tables, score_tables):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    row = {"images_a_call": 64, "ms_an_image": 0.0712, "ratio": 1.0, "moves_an_image_by": 0.0, "n": 101}
    half = {**row, "option": "autocast=torch.bfloat16", "ratio": 3.456, "moves_an_image_by": 0.0123}
    (tmp_path / "decode_time.json").write_text(json.dumps({"generators": {"net": [{**row, "option": "none"}, half]}}))
    assert tables.decode_time_table().splitlines()[2:] == [
        "| net | 64 |  | 0.0712 ms | 1.00 |  | 101 |",
        "|  | 64 | `autocast=torch.bfloat16` | 0.0712 ms | 3.46 | 0.01 | 101 |",
    ]
    folder = tmp_path / "pools" / "fashion-mnist"
    folder.mkdir(parents=True)
    for method, accuracies in {
        "standard": [0.92],
        "live": [0.9, 0.91],
        "pool_10000": [0.8],
        "pool_2000": [0.7],
    }.items():
        for seed, accuracy in enumerate(accuracies):
            scores = {"accuracy": accuracy, "deepfool_score": 1.0, "blurred_accuracy": 0.5}
            (folder / f"{method}-{seed}.json").write_text(json.dumps({"method": method, **scores}))
    assert score_tables.pools_table().splitlines()[2:] == [
        "| real images alone | 0.9200 | +0.0150 | 1.000 | +0.000 | 0.500 | +0.000 | 1 |",
        "| decoded live | 0.9050 ± 0.0071 |  | 1.000 ± 0.000 |  | 0.500 ± 0.000 |  | 2 |",
        "| pool of 2,000 | 0.7000 | -0.2050 | 1.000 | +0.000 | 0.500 | +0.000 | 1 |",
        "| pool of 10,000 | 0.8000 | -0.1050 | 1.000 | +0.000 | 0.500 | +0.000 | 1 |",
    ]


def test_methods_are_timed_in_turns(script, monkeypatch):
    method_time = script("method_time")
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


def test_a_stepper_trains(script):
    method_time = script("method_time")
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


def test_decodes_measured_elsewhere_are_not_mixed_in(script, tmp_path):
    decode_time, here = script("decode_time"), {"python": "3", "hardware": {"cpus": 2}}
    path = tmp_path / "decode_time.json"
    assert decode_time._measured(path, here) == {}
    path.write_text(json.dumps({"generators": {"net": []}, **here}))
    assert decode_time._measured(path, here) == {"net": []}
    with pytest.raises(Exception, match="was measured elsewhere"):
        decode_time._measured(path, {**here, "hardware": {"cpus": 4}})
