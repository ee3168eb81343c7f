"""``latent-mixup demo`` without the training, which ``tests/cli`` does for real."""

import pytest

from latent_mixup import runs
from latent_mixup.demo import demo
from latent_mixup.demo.comparison import METHODS, Budget


@pytest.fixture
def record(monkeypatch, tmp_path):
    """What the demo finds where every method takes its steps and scores the same."""

    def train_and_score(method, data, codes, budget, *, seed, on_step):
        steps = budget.steps(data.train_images)
        for _ in range(steps):
            on_step()
        scores = {"accuracy": 0.5, "blurred_accuracy": 0.25, "deepfool_score": 1.5}
        more = {"deepfool": {"units": "[-1, 1]", "n_images": 7}, "test_images": 2000}
        return {"method": method, "seed": seed, "steps": steps, **scores, **more}

    monkeypatch.setattr(demo, "train_and_score", train_and_score)
    return lambda: demo.run_demo(tmp_path / "out", budget=Budget(epochs=1, batch_size=5000))


def test_where_there_is_no_terminal_it_says_a_line_a_minute(record, monkeypatch, capsys):
    monkeypatch.setattr(runs, "LINE_EVERY", 0.0)
    record()
    lines = capsys.readouterr().err.splitlines()
    total = 2 * len(METHODS)
    assert [line.split(" steps")[0] for line in lines] == [f"demo: {n} of {total}" for n in range(1, total + 1)]
    assert all(method in line for method, line in zip(METHODS, lines[::2], strict=True))


def test_the_table_has_a_line_for_each_method(record):
    lines = demo.demo_table(record()).splitlines()
    assert lines[2].split() == ["accuracy", "blurred", "DeepFool"]
    assert [line.split() for line in lines[3:10]] == [[method, "0.5000", "0.2500", "1.500"] for method in METHODS]
    assert max(map(len, lines)) < 120
