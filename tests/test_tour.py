"""
The notebook runs, from the first cell to the last, as a reader would run it.
"""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_tour(tmp_path, monkeypatch):  # a renamed function, a cell that needs a later one
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    tour = nbformat.read(ROOT / "tests/tour.ipynb", as_version=4)
    for cell in tour.cells:
        cell.source = cell.source.replace('"sft": 150, "reward": 150, "ppo": 15',
                                          '"sft": 4, "reward": 4, "ppo": 2')
    assert '"ppo": 2' in tour.cells[1].source
    nbclient.NotebookClient(tour, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    printed = ["".join(out.get("text", "") for out in cell.get("outputs", [])
                       if out.get("name") == "stdout") for cell in tour.cells]
    by_hand, found = next(text for text in printed if "by hand" in text).splitlines()
    assert by_hand.split()[2:] == found.split()[1:]
    changed = next(k for k, cell in enumerate(tour.cells) if "show(post.prompt)" in cell.source)
    assert printed[changed].count("\nsft  [") == printed[changed].count("\nppo  [") == 4
    pictures = [out for cell in tour.cells for out in cell.get("outputs", [])
                if "image/png" in out.get("data", {})]
    assert len(pictures) == 1


def test_its_cells_are_small_and_say_what_they_do():  # an essay, code without a word before it
    cells = json.loads((ROOT / "tests/tour.ipynb").read_text(encoding="utf-8"))["cells"]
    assert 12 <= len(cells) <= 20 and cells[0]["cell_type"] == "markdown"
    assert all(len(cell["source"]) <= 24 for cell in cells)
