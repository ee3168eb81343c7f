"""The tables and figures: drawn from files alone; means, deviations and intervals by hand."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from paper import small_images
from publish import published
from scipy import stats
from tables import code_tables, score_tables, tables, time_tables
from tables import rows as rows_module


@pytest.fixture
def results(tmp_path):
    """Three seeds of two methods, one of a third."""
    folder = tmp_path / "mnist" / "fixed"
    folder.mkdir(parents=True)
    for method, accuracies in {
        "standard": (0.9, 0.92, 0.94),
        "manifold_mixup": (0.8, 0.8, 0.8),
        "decoded": (0.95,),
    }.items():
        for seed, accuracy in enumerate(accuracies):
            record = {
                "dataset": "mnist",
                "preset": "fixed",
                "method": method,
                "seed": seed,
                "train_images": 50_000,
                "accuracy": accuracy,
                "deepfool_score": 1.0 + seed,
                "blurred_accuracy": 0.5,
                "budget": {"epochs": 20},
                "blur_sweep": {"sigmas": [1.0, 5.0], "accuracy": [0.6, 0.5]},
                "corruptions": {"severities": [1, 5], "accuracy": {"fog": [0.4, 0.2], "noise": [0.6, 0.4]}},
            }
            (folder / f"{method}-{seed}.json").write_text(json.dumps(record))
    (folder / "grid-mixup.json").write_text("{}")
    return tmp_path


def test_rows_are_means_over_seeds(results):
    rows = {row["method"]: row for row in rows_module.aggregated(rows_module.records(results / "mnist"))}
    standard = rows["standard"]
    assert list(rows) == ["standard", "manifold_mixup", "decoded"]
    assert (standard["n_seeds"], standard["epochs"], standard["train_images"], standard["ddof"]) == (3, 20, 50_000, 1)
    assert standard["accuracy"] == pytest.approx(0.92)
    assert standard["accuracy_std"] == pytest.approx(0.02)
    assert rows["decoded"]["accuracy_std"] is None
    assert standard["paper"]["deepfool_score"] == 1.4080
    assert standard["paper"]["accuracy_std"] == 0.0015
    assert rows["decoded"]["paper"] is None
    difference = rows["manifold_mixup"]["accuracy_minus_standard"]
    assert difference["mean"] == pytest.approx(-0.12)
    low, high = difference["interval"]
    assert (low, high) == (pytest.approx(-0.1697, abs=1e-4), pytest.approx(-0.0703, abs=1e-4))
    assert rows["decoded"]["accuracy_minus_manifold_mixup"] == {"mean": pytest.approx(0.15), "interval": None}
    assert "accuracy_minus_standard" not in standard


def test_another_budget_is_another_row(results):
    """The preset's own folder is what its table shows; what was run with another budget is a row of its own."""
    folder = results / "mnist" / "fixed-50x16"
    folder.mkdir()
    record = json.loads((results / "mnist" / "fixed" / "standard-0.json").read_text())
    (folder / "standard-0.json").write_text(json.dumps({**record, "budget": {"epochs": 50}, "accuracy": 0.5}))
    everything = rows_module.aggregated(rows_module.records(results / "mnist"))
    assert [(row["epochs"], row["n_seeds"]) for row in everything if row["method"] == "standard"] == [(20, 3), (50, 1)]
    own = rows_module.aggregated(rows_module.records(results / "mnist", changed=False))
    assert {row["epochs"] for row in own} == {20}


def test_the_papers_length_is_shown_by_itself_in_both_presets(results, monkeypatch):
    monkeypatch.setattr(score_tables, "RESULTS", results)
    record = json.loads((results / "mnist" / "fixed" / "standard-0.json").read_text())
    for preset, folder, epochs, units in (
        ("fixed", "fixed-50x16", 50, "[-1, 1]"),
        ("fixed", "fixed-2x16", 2, "[-1, 1]"),
        ("paper_code", "paper_code", 50, "[0, 1]"),
    ):
        (results / "mnist" / folder).mkdir()
        for method in ("standard", "decoded"):
            changed = {
                "preset": preset,
                "method": method,
                "budget": {"epochs": epochs},
                "deepfool": {"units": units},
                "pgd": {"linf": {"accuracy": 0.25}},
            }
            (results / "mnist" / folder / f"{method}-0.json").write_text(json.dumps({**record, **changed}))
    assert score_tables.length_table("mnist").splitlines()[2:] == [
        f"| {preset} | {name} | {units} | 0.9000 | {papers[0]} | 1.000 | {papers[1]} | 0.500 | {papers[2]} | 0.250 |"
        for preset, units in (("fixed", "[-1, 1]"), ("paper_code", "[0, 1]"))
        for name, papers in (
            ("standard", ("0.9921 ± 0.0015", "1.408 ± 0.030", "0.934 ± 0.011")),
            ("decoded, not mixed (control)", ("", "", "")),
        )
    ]


def test_policies_are_compared_with_the_papers(tmp_path, monkeypatch):
    monkeypatch.setattr(score_tables, "RESULTS", tmp_path)
    folder = tmp_path / "mnist" / "policies"
    folder.mkdir(parents=True)
    for method, accuracy in (("policy_paper", 0.9), ("policy_same_class", 0.92)):
        scores = {"accuracy": accuracy, "deepfool_score": 2 * accuracy, "blurred_accuracy": 0.5}
        facts = {"dataset": "mnist", "preset": "policies", "method": method, "train_images": 10, "seed": 0}
        (folder / f"{method}-0.json").write_text(json.dumps({**facts, **scores, "budget": {"epochs": 6}}))
    shown = score_tables.policies_table("mnist").splitlines()
    assert shown[2].endswith("| 0.9000 |  | 1.800 |  | 0.500 |  | 1 |")
    assert shown[3] == "| `SameClass()` | 0.9200 | +0.0200 | 1.840 | +0.040 | 0.500 | +0.000 | 1 |"


def test_a_search_is_shown_from_its_best(tmp_path, monkeypatch):
    monkeypatch.setattr(score_tables, "RESULTS", tmp_path)
    scores = {"accuracy": 0.9, "deepfool_score": 1.0, "blurred_accuracy": 0.5}
    tried = [
        {"number": n, "value": n / 10, "params": {"prob": 0.2, "partners": "anyone"}, "scores": scores} for n in (3, 7)
    ]
    (tmp_path / "fashion-mnist").mkdir()
    (tmp_path / "fashion-mnist" / "search.json").write_text(json.dumps({"standard": scores, "trials": tried}))
    assert score_tables.search_table().splitlines()[::2] == [
        "| the best of 2 trials | value | accuracy | DeepFool score | blurred accuracy |",
        "| plain training |  | 0.9000 | 1.000 | 0.500 |",
        "| trial 3: prob 0.2, partners anyone | +0.300 | 0.9000 | 1.000 | 0.500 |",
    ]


@pytest.mark.parametrize("name", ["fixed", "paper_code"])
def test_a_changed_budget_has_a_folder_of_its_own(name):
    assert small_images.preset(name, "mnist").folder == name
    assert small_images.preset(name, "mnist", epochs=2, batch_size=8).folder == f"{name}-2x8"


def test_the_best_is_compared_with_what_a_user_could_pick(tmp_path, monkeypatch):
    monkeypatch.setattr(score_tables, "RESULTS", tmp_path)
    folder = tmp_path / "fashion-mnist" / "fixed"
    folder.mkdir(parents=True)
    for place, method in enumerate(dict.fromkeys((*score_tables.INSTEAD, *score_tables.SHOWN))):
        for seed in range(2):
            scores = {"accuracy": 0.9 + place / 100, "deepfool_score": 1.0 + seed, "blurred_accuracy": 0.5}
            facts = {"dataset": "fashion-mnist", "preset": "fixed", "method": method, "train_images": 10, "seed": seed}
            (folder / f"{method}-{seed}.json").write_text(json.dumps({**facts, **scores, "budget": {"epochs": 20}}))
    shown = score_tables.best_table("fashion-mnist").splitlines()[2:]
    assert shown[0].startswith("| standard | +0.0600 [+0.0600, +0.0600] | +0.000 [+0.000, +0.000] |")
    assert len(shown) == 5
    assert len(score_tables.summary_table().splitlines()) == 2 + len(score_tables.SHOWN)


def test_the_interval_is_students_of_the_seeds_differences():
    values, others = {0: 0.1, 1: 0.5, 2: 0.7, 9: 5.0}, {2: 0.4, 1: 0.25, 0: 0.2, 5: -3.0}
    found = rows_module.difference(values, others)
    test = stats.ttest_rel([values[seed] for seed in range(3)], [others[seed] for seed in range(3)])
    assert found["mean"] == pytest.approx(0.15)
    assert found["interval"] == pytest.approx([*test.confidence_interval(0.95)])
    assert rows_module.difference({0: 0.5}, {0: 0.25}) == {"mean": 0.25, "interval": None}
    assert rows_module.difference({0: 0.5, 1: 1.0}, {2: 0.25}) == {"mean": 0.5, "interval": None}


def test_json_and_tables_are_drawn_from_the_files(results, monkeypatch):
    for module in (tables, score_tables):
        monkeypatch.setattr(module, "RESULTS", results)
    printed = json.loads(CliRunner().invoke(tables.main, ["--json"]).output)
    assert [row["method"] for row in printed] == ["standard", "manifold_mixup", "decoded"]
    table = tables.scores_table("mnist", "fixed").splitlines()
    assert table[2] == (
        "| standard | 0.9200 ± 0.0200 | 0.9921 ± 0.0015 | 2.000 ± 1.000 | 1.408 ± 0.030 "
        "| 0.500 ± 0.000 | 0.934 ± 0.011 | 3 |"
    )
    assert table[4] == "| decoded, not mixed (control) | 0.9500 |  | 1.000 |  | 0.500 |  | 1 |"
    differences = tables.differences_table("mnist", "fixed").splitlines()
    assert differences[2].startswith("| manifold mixup | -0.1200 [-0.1697, -0.0703] |")
    text = "a\n<!-- table: scores-mnist-fixed -->\nold\n<!-- end -->\nb"
    assert (
        tables.with_tables(text) == "a\n<!-- table: scores-mnist-fixed -->\n" + "\n".join(table) + "\n<!-- end -->\nb"
    )
    with pytest.raises(Exception, match="there is no table 'scores-mnist-quick'"):
        tables.with_tables("<!-- table: scores-mnist-quick -->\n<!-- end -->")


def test_figures_are_drawn_from_the_files(results):
    figures = pytest.importorskip("tables.figures")
    (results / "mnist" / "codes").mkdir()
    facts = {"mse_percentiles": [0.001 * place for place in range(101)], "mse_mean": 0.05}
    (results / "mnist" / "codes" / "gan.json").write_text(json.dumps(facts))
    longer = results / "mnist" / "fixed-50x16"
    longer.mkdir()
    record = json.loads((results / "mnist" / "fixed" / "standard-0.json").read_text())
    (longer / "standard-0.json").write_text(json.dumps({**record, "budget": {"epochs": 50}}))
    seen = {"own_share": [0, 1], "neither": [0, 0], "entropy": [0, 0]}
    (results / "mnist" / "label-truth.json").write_text(json.dumps({"lam": [0, 1], "codes": seen, "pixels": seen}))
    drawn = figures.figures(results)
    assert list(drawn) == ["mnist-fixed-scores.png", "mnist-fixed-curves.png", "mnist-labels.png", "mnist-codes.png"]
    shares = drawn["mnist-labels.png"].axes[0].get_lines()[0]
    assert shares.get_ydata() == pytest.approx([0, 1])
    shown = drawn["mnist-fixed-scores.png"].axes[0]
    assert [label.get_text() for label in shown.get_yticklabels()] == [
        "standard",
        "manifold mixup",
        "decoded, not mixed (control)",
    ], "none of another budget"
    curve = drawn["mnist-fixed-curves.png"].axes[1].get_lines()[0]
    assert curve.get_ydata() == pytest.approx([0.5, 0.3])
    assert figures.png(drawn["mnist-codes.png"]).startswith(b"\x89PNG")


def test_the_table_is_drawn_from_the_record(tmp_path, monkeypatch):
    row = {"median_ms": 12.345, "median_ratio_to_standard": 1.0789}
    part = {"case": "net", "batch_size": 32, "blocks": 11, "floor": {"ratio": 3.5, "ratio_half": 2.25}}
    part["floor"] |= {"step_multiply_adds": 2_000_000, "decode_multiply_adds": 5_000_000_000}
    record = {"bundled": {**part, "rows": {"standard": row, "live_half": row}}, "stylegan2": {**part, "rows": {}}}
    record["memory"] = {"runs": [{"kind": "live", "steps": 1000, "peak_mib": [410.2, 410.4, 411.0]}]}
    (tmp_path / "step_time.json").write_text(json.dumps(record))
    monkeypatch.setattr(time_tables, "RESULTS", tmp_path)
    assert time_tables.step_time_table(("bundled", "stylegan2")).splitlines()[2:] == [
        "| net, batch 32 | standard | 12.3 ms | 1.08 |  | 11 |",
        "|  | live, `prob=0.5` | 12.3 ms | 1.08 | 2.25 | 11 |",
    ]
    assert time_tables.step_time_table(["bundled"], ["standard"]).splitlines()[2:] == [
        "| net, batch 32 | standard | 12.3 ms | 1.08 |  | 11 |"
    ]
    assert time_tables.step_floor_table().splitlines()[2] == "| net, batch 32 | 2 M | 5,000 M | 3.50 |"
    assert time_tables.step_memory_table().splitlines()[2:] == ["| live | 1000 | 410 MiB | 411 MiB |"]


def test_the_tables_of_decodes_and_pools_are_drawn_from_their_files(tmp_path, monkeypatch):
    for module in (time_tables, score_tables):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    row = {"images_a_call": 64, "ms_an_image": 0.0712, "ratio": 1.0, "moves_an_image_by": 0.0, "n": 101}
    half = {**row, "option": "autocast=torch.bfloat16", "ratio": 3.456, "moves_an_image_by": 0.0123}
    (tmp_path / "decode_time.json").write_text(json.dumps({"generators": {"net": [{**row, "option": "none"}, half]}}))
    assert time_tables.decode_time_table().splitlines()[2:] == [
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


def test_the_share_of_the_convolutions_speed(tmp_path, monkeypatch):
    measured = {"seconds_an_image": 0.1234, "convolutions_seconds_an_image": 0.1, "share_of_their_speed": 0.876}
    rows = [{"batch_size": 4, "n": 40, "forward": measured, "forward_backward": {**measured, "seconds_an_image": 0.3}}]
    (tmp_path / "stylegan2_speed.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(time_tables, "RESULTS", tmp_path)
    assert time_tables.stylegan2_speed_table().splitlines()[-1] == "| 4 | 123 ms | 88% | 300 ms | 88% | 40 |"


def test_the_table_of_trained_networks_shows_a_collapse(tmp_path, monkeypatch):
    rows = [{"images": n, "feature_distance": 10.0 - n} for n in range(1, 6)]
    classes = [{**row, "class_deviation": 0.03, "real_class_deviation": 0.3} for row in rows]
    for run, log in (("unconditional", rows), ("conditional", classes)):
        (tmp_path / "stylegan2" / run).mkdir(parents=True)
        (tmp_path / "stylegan2" / run / "log.json").write_text(json.dumps(log))
    monkeypatch.setattr(code_tables, "RESULTS", tmp_path)
    plain, collapsed = code_tables.stylegan2_table().splitlines()[2:]
    assert plain == "| unconditional | 9.0 | 8.0 | 7.0 | 6.0 | 5.0 | 5.0 after 5 |  |"
    assert collapsed == "| conditional | 9.0 | 8.0 | 7.0 | 6.0 | 5.0 | 5.0 after 5 | 10% |"


def test_the_table_of_codes_is_drawn_from_their_files(tmp_path, monkeypatch):
    facts = {"rows": 9000, "mse_mean": 0.0123, "mse_percentiles": [0.001 * place for place in range(101)]}
    (tmp_path / "cifar10" / "codes").mkdir(parents=True)
    shares = {"share_from_0.020": 0.4567, "share_from_0.025": 0.0012}
    (tmp_path / "cifar10" / "codes" / "gan.json").write_text(json.dumps({**facts, **shares}))
    monkeypatch.setattr(code_tables, "RESULTS", tmp_path)
    assert code_tables.codes_table("cifar10").splitlines()[2:] == ["| gan | 9,000 | 0.0123 | 0.0500 | 45.67% | 0.12% |"]


def test_inversion_counts_what_a_run_learns_first(tmp_path, monkeypatch):
    """1,024 gradients for 64 images are 16 an image: of 1,000 to 84 gradients, ten times fewer are left."""
    authors = {"gradients_an_image": 1000.0, "seconds": 30.0, "mse": {"median": 0.5, "p95": 1.0}}
    ours = {"gradients_an_image": 84.0, "seconds": 2.0, "mse": {"median": 0.25, "p95": 1.0}}
    ways = {"authors": authors, "80 steps": ours, "authors, our start": authors}
    problem = {"problem": "net", "n": 64, "learning": {"gradients": 1024, "seconds": 4.0}, "ways": ways}
    (tmp_path / "inversion.json").write_text(json.dumps({"problems": [problem]}))
    monkeypatch.setattr(code_tables, "RESULTS", tmp_path)
    assert code_tables.inversion_table().splitlines()[2:] == [
        "| net (n = 64) | 80 steps | 10.0 | 5.0 | -50.0% | +0.0% |",
        "| net (n = 64) | authors, our start | 1.0 | 1.0 | +0.0% | +0.0% |",
    ]


def test_rows_from_other_hardware_or_versions_are_marked(results, monkeypatch):
    monkeypatch.setattr(score_tables, "RESULTS", results)
    cpu = {"hardware": {"device": "cpu", "threads": 1, "tf32": False}, "versions": {"torch": "2.14.1"}}
    gpu = {"hardware": {"device": "NVIDIA H100", "threads": 1, "tf32": True}, "versions": {"torch": "2.11.0"}}
    for path in (results / "mnist" / "fixed").glob("*-?.json"):
        here = gpu if path.name.startswith("decoded") else cpu
        path.write_text(json.dumps({**json.loads(path.read_text()), **here}))
    drawn = score_tables.scores_table("mnist", "fixed")
    body, note = drawn.split("\n\n")
    assert note == "[1] NVIDIA H100 in TF32, torch 2.11.0; the other rows: CPU, torch 2.14.1."
    names = [line.split("|")[1].strip() for line in body.splitlines()[2:]]
    assert names == ["standard", "manifold mixup", "decoded, not mixed (control) [1]"]
    assert "[1]" in score_tables.differences_table("mnist", "fixed")


@pytest.mark.parametrize(
    ("hardware", "said"),
    [
        ({"device": "cpu", "threads": 1, "tf32": False}, "CPU, torch 2"),
        ({"device": "cpu", "threads": 2, "tf32": False}, "CPU, 2 threads, torch 2"),
        ({"machine": "x86_64", "threads": 1}, "CPU, torch 2"),
        ({"device": "NVIDIA H100", "threads": 4, "tf32": False}, "NVIDIA H100, torch 2"),
    ],
)
def test_hardware_in_words(hardware, said):
    run = {"hardware": hardware, "versions": {"torch": "2"}}
    assert rows_module.made_with([run, run]) == said


def test_no_artefact_without_a_licence_is_listed():
    table = code_tables.artefacts_table()
    assert "the authors' codes" not in table
    assert [artefact.name for artefact in published.ARTEFACTS if not artefact.licensed] == [
        "stylegan2-cifar10-bank",
        "stylegan2-cifar10-bank-0.025",
        "stylegan2-cifar10-bank-0.020",
    ]
