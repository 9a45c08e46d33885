"""Does each notebook run, from a fresh copy of its files, and is it kept without what it once printed?"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(notebook: Path) -> list[Any]:
    """All outputs of its cells, in order."""
    client = NotebookClient(nbformat.read(notebook, as_version=4), timeout=60, resources={"metadata": {"path": str(notebook.parent)}})
    return [output for cell in client.execute().cells for output in cell.get("outputs", [])]


def test_reading_a_run(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "one_run", tmp_path / "one_run")
    outputs = run(Path(shutil.copy(EXAMPLES / "05_reading_a_run.ipynb", tmp_path)))
    printed = "".join(output["text"] for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert "r1-zero-tiny: complete" in printed
    assert "0.024 -> 0.925 ± 0.010" in printed
    assert "the advantages of 6 groups are what the formula says; 1 of equal rewards" in printed
    assert [line[:8] for line in printed.splitlines() if line.startswith("step ")] == ["step 1: ", "step 20:", "step 100"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_it_is_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(not cell.outputs and cell.execution_count is None for cell in code)
