"""The benchmarks of StyleGAN2's speed and of inversion: what is compared, and that it runs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from latent_mixup.generators import StyleGAN2

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def script(name: str):
    specification = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    module = sys.modules[specification.name] = importlib.util.module_from_spec(specification)  # dataclasses look there
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def speed():
    return script("stylegan2_speed")


@pytest.fixture(scope="module")
def quick(speed, tmp_path_factory):
    out = tmp_path_factory.mktemp("speed") / "results" / "stylegan2_speed.json"
    found = CliRunner().invoke(speed.main, ["--quick", "--out", str(out)])
    assert found.exit_code == 0, found.output
    return json.loads(out.read_text())


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_convolutions_are_those_of_the_network(speed, batch_size):
    """As many, and as many multiplications, as torch's counter finds in the network's 3x3 convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    generator = StyleGAN2(channel_max=8, channel_base=128, img_resolution=32)
    layers = speed.convolutions(generator, batch_size)
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
    assert speed.multiply_adds(layers) == total // 2 - filters


def test_the_full_network_has_the_size_of_the_published_one(speed):
    with torch.device("meta"):
        generator = StyleGAN2()
    layers = [
        (torch.empty(1, 512, side, side, device="meta"), torch.empty(512, 512, 3, 3, device="meta"))
        for side in (4, 4, 8, 8, 16, 16, 32)
    ]
    assert speed.multiply_adds(layers) == 4_001_366_016
    assert sum(parameter.numel() for parameter in generator.parameters()) == pytest.approx(19.9e6, rel=0.01)


def test_a_quick_run_says_what_it_measured_and_where(quick):
    assert (quick["quick"], quick["network"]["channel_max"]) == (True, 16)
    assert [(row["batch_size"], row["n"]) for row in quick["rows"]] == [(1, 3), (4, 3)]
    for row in quick["rows"]:
        for direction in ("forward", "forward_backward"):
            measured = row[direction]
            assert measured["seconds_an_image"] > measured["convolutions_seconds_an_image"] > 0
            assert 0 < measured["share_of_their_speed"] < 1
    assert quick["hardware"]["threads"] == torch.get_num_threads()
    assert set(quick["hardware"]) == {"machine", "cpus", "threads", "malloc"}
    assert set(quick["versions"]) == {"latent-mixup", "torch"}


def test_the_share_is_the_median_of_turn_by_turn(speed, monkeypatch):
    times = iter([2.0, 1.0, 8.0, 2.0, 4.0, 3.0])  # shares of 0.5, 0.25 and 0.75
    monkeypatch.setattr(speed, "seconds", lambda work: next(times))
    assert speed.compare(int, int, 3, 4) == {
        "seconds_an_image": 1.0,
        "convolutions_seconds_an_image": 0.5,
        "share_of_their_speed": 0.5,
    }


def test_its_table_is_drawn_from_the_record(quick, tmp_path, monkeypatch):
    tables = script("time_tables")
    measured = {"seconds_an_image": 0.1234, "convolutions_seconds_an_image": 0.1, "share_of_their_speed": 0.876}
    quick["rows"] = [
        {"batch_size": 4, "n": 40, "forward": measured, "forward_backward": {**measured, "seconds_an_image": 0.3}}
    ]
    (tmp_path / "stylegan2_speed.json").write_text(json.dumps(quick))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.stylegan2_speed_table().splitlines()[-1] == "| 4 | 123 ms | 88% | 300 ms | 88% | 40 |"


def test_the_table_of_trained_networks_shows_a_collapse(tmp_path, monkeypatch):
    tables = script("code_tables")
    rows = [{"images": n, "feature_distance": 10.0 - n} for n in range(1, 6)]
    classes = [{**row, "class_deviation": 0.03, "real_class_deviation": 0.3} for row in rows]
    for run, log in (("unconditional", rows), ("conditional", classes)):
        (tmp_path / "stylegan2" / run).mkdir(parents=True)
        (tmp_path / "stylegan2" / run / "log.json").write_text(json.dumps(log))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    plain, collapsed = tables.stylegan2_table().splitlines()[2:]
    assert plain == "| unconditional | 9.0 | 8.0 | 7.0 | 6.0 | 5.0 | 5.0 after 5 |  |"
    assert collapsed == "| conditional | 9.0 | 8.0 | 7.0 | 6.0 | 5.0 | 5.0 after 5 | 10% |"


def test_the_table_of_codes_is_drawn_from_their_files(tmp_path, monkeypatch):
    tables = script("code_tables")
    facts = {"rows": 9000, "mse_mean": 0.0123, "mse_percentiles": [0.001 * place for place in range(101)]}
    (tmp_path / "cifar10" / "codes").mkdir(parents=True)
    shares = {"share_from_0.020": 0.4567, "share_from_0.025": 0.0012}
    (tmp_path / "cifar10" / "codes" / "gan.json").write_text(json.dumps({**facts, **shares}))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.codes_table("cifar10").splitlines()[2:] == ["| gan | 9,000 | 0.0123 | 0.0500 | 45.67% | 0.12% |"]


def test_the_authors_loop_is_one_image_at_a_time():
    """In a batch as alone; and its best step is kept, with the loss that belongs to it."""
    inversion = script("inversion")
    generator = inversion.small_stylegan2()
    codes = generator.sample_latents(3, torch.Generator().manual_seed(0))
    targets = generator.decode(codes)
    start = generator.mean_latent().expand_as(codes)
    found, losses = inversion.authors_loop(generator, targets, start, inversion.pixel_mse, steps=15)
    for row in range(3):
        one, loss = inversion.authors_loop(generator, targets[row][None], start[row][None], inversion.pixel_mse, 15)
        torch.testing.assert_close(found[row][None], one, rtol=0, atol=1e-3)
        torch.testing.assert_close(losses[row][None], loss, rtol=1e-3, atol=0)
    torch.testing.assert_close(inversion.pixel_mse(generator.decode(found), targets), losses, rtol=1e-3, atol=0)
    assert (losses < inversion.pixel_mse(generator.decode(start), targets)).all()


def test_gradients_are_counted_an_image():
    inversion = script("inversion")
    generator = inversion.small_stylegan2()
    targets = generator.decode(generator.sample_latents(4, torch.Generator().manual_seed(0)))
    start = generator.mean_latent().expand(4, *generator.latent_shape)
    problem = inversion.Problem("", generator, targets, inversion.pixel_mse, start, start.clone())
    found = inversion.ways(problem, None, 7)
    assert list(found) == ["authors", *inversion.SETTINGS, "authors, our start"]
    tally = inversion.Tally(problem, found["authors"])
    tally.block(slice(0, 2))
    tally.block(slice(2, 4))
    assert tally.record()["gradients_an_image"] == 7
    assert tally.record()["mse"]["mean"] == pytest.approx(float(torch.cat(tally.losses).mean()), rel=1e-3)
