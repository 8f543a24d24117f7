"""The notebooks run from top to bottom, and are kept without outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
FIGURES = {"1-mae": 2, "2-own-method": 1, "3-imagegpt": 3}


def test_they_are_kept_without_outputs() -> None:
    assert [each.stem for each in NOTEBOOKS] == list(FIGURES)
    for file in NOTEBOOKS:
        for cell in nbformat.read(file, as_version=4).cells:
            assert not cell.get("outputs"), file.name
            assert cell.get("execution_count") is None, file.name


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_it_runs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(file, as_version=4)
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == FIGURES[file.stem]
    if file.stem == "1-mae":
        accuracy = eval(outputs[-1]["data"]["text/plain"])
        for labels in ("all labels", "five a class"):
            assert accuracy["pretrained"][labels] > accuracy["untrained"][labels] + 0.01
