"""The notebooks, executed from top to bottom."""

import os

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tests.docs.blocks import ROOT

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


def test_there_are_two_and_they_are_clean():
    """Results are made by whoever runs them; stored ones would grow old."""
    assert len(NOTEBOOKS) == 2
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, 4).cells:
            assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.slow
def test_notebooks_run(tmp_path, monkeypatch):
    """One after the other in one kernel, where the imports are the longest part."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    joined = nbformat.v4.new_notebook()
    for path in NOTEBOOKS:
        joined.cells += [nbformat.v4.new_code_cell("%reset -f"), *nbformat.read(path, 4).cells]
    client = NotebookClient(joined, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # raises where a cell does
    outputs = [output for cell in joined.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", ()) for output in outputs) == 3


def test_a_broken_cell_is_seen(tmp_path):
    """The control."""
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        NotebookClient(broken, timeout=120).execute()
