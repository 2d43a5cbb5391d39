"Every notebook runs from top to bottom under the smoke profile, by the code that runs the course."

import json

import papermill
import pytest

from vidcourse.runner import REPORT_TYPE, execute, find_notebooks

NOTEBOOKS = find_notebooks()


def slow_first(path) -> int:
    "Training chapters before the short ones, so that two workers end together."
    return {"1": 0, "0": 1}.get(path.name[0], 2)


@pytest.mark.parametrize(
    "notebook", sorted(NOTEBOOKS, key=slow_first), ids=lambda path: path.stem
)
def test_notebook_runs(notebook, tmp_path, checked_kernels):
    there = papermill.inspect_notebook(str(notebook))
    assert {"profile", "seed"} <= set(there), (
        "the cell tagged `parameters` must set profile and seed"
    )
    assert there["profile"]["default"].strip("\"'") == "auto", (
        "a reader's run begins with the profile auto"
    )
    outcome = execute(notebook, tmp_path, {"profile": "smoke", "seed": 0})
    assert outcome.status == "ok", outcome.traceback
    cells = json.loads((tmp_path / notebook.name).read_text())["cells"]
    injected = [
        cell for cell in cells if "injected-parameters" in cell["metadata"].get("tags", [])
    ]
    assert len(injected) == 1 and 'profile = "smoke"' in "".join(injected[0]["source"])
    said = "".join(
        "".join(output.get("text", "")) for cell in cells for output in cell.get("outputs", [])
    )
    assert "profile smoke" in said, (
        "start(profile, seed) did not see the profile that was injected"
    )
    assert REPORT_TYPE in json.dumps(cells), "no headline numbers: call report(...)"


def test_the_list_is_the_whole_course(root):
    assert {path.name for path in NOTEBOOKS} == {
        path.name for path in (root / "nbs").glob("*.ipynb")
    } - {"index.ipynb"}
    assert len(NOTEBOOKS) >= 12
