"""Facts about the notebook: it runs from top to bottom on the bundled sample, and holds no output."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "features.ipynb"


@pytest.fixture
def notebook():
    """The notebook as it is in the repository."""
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_runs_from_top_to_bottom_without_a_gpu(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert "3 GRU layers of 256" in printed and "feats     (3, 5, 708, 256)" in printed
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", ()) if "image/png" in o.get("data", {})]
    assert len(pictures) == 3


def test_it_holds_no_generated_output(notebook):
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if "outputs" in cell)
