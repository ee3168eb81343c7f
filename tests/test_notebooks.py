"""The notebooks run on small settings, and hold the pictures of a whole run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
SMALL = {
    "quickstart": "batches = 2",
    "your_own_images": "count, steps, size = 500, 2, 16",
    "robust_training": "count, steps, tested = 100, 2, 20",
}
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_BYTES = 300_000


def test_each_notebook_has_small_settings():
    assert [path.stem for path in NOTEBOOKS] == sorted(SMALL)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    (settings,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    settings.source = SMALL[path.stem]
    client = nbclient.NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_what_one_run_of_it_gave_or_nothing(path):
    assert path.stat().st_size < MAX_BYTES
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    if path.stem != "quickstart" and not outputs:
        assert all(cell["execution_count"] is None for cell in cells)
        return
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert "error" not in [output["output_type"] for output in outputs]
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
