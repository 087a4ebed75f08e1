"""Facts about the notebook: it runs from top to bottom on the bundled sample, and holds its outputs."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "features.ipynb"
MACHINE = re.compile(r"(?<![\w.])/(home|root|Users|tmp|work|mnt|data)/|[A-Z]:\\\\")  # paths of whoever ran it


@pytest.fixture
def notebook():
    """The notebook as it is in the repository."""
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs(notebook):
    """The kinds of each code cell's outputs."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [[sorted(output.get("data", {output.output_type: ""})) for output in cell.outputs] for cell in cells]


def printed(notebook):
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))


def test_it_runs_from_top_to_bottom_without_a_gpu_to_outputs_like_those_it_holds(notebook, tmp_path, monkeypatch):
    stored = outputs(notebook)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    assert outputs(notebook) == stored
    assert "3 GRU layers of 256" in printed(notebook) and "feats     (3, 5, 708, 256)" in printed(notebook)


def test_it_holds_its_outputs_of_one_run_and_nothing_of_the_machine(notebook):
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert sum("image/png" in kinds for of_cell in outputs(notebook) for kinds in of_cell) == 3
    assert "mean L1 error: predicted" in printed(notebook) and "Traceback" not in printed(notebook)
    assert NOTEBOOK.stat().st_size < 800_000 and not MACHINE.search(NOTEBOOK.read_text(encoding="utf-8"))
