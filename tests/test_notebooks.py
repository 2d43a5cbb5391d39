"""Every notebook runs from top to bottom under the smoke profile, by the code that runs the course.

It runs twice: on the CPU, and on the device of pretend.py, where a tensor left on the wrong side is
an error. Both runs report the same numbers.
"""

import json
import re
from pathlib import Path

import papermill
import pretend
import pytest

from vidcourse.runner import REPORT_TYPE, execute, find_notebooks

NOTEBOOKS = find_notebooks()
TIMES = re.compile(r"second|minute|time|speed")  # names of numbers that no two runs share
DATA = re.compile(
    r"have_sprites|data_file|data_root|weizmann"
)  # words of cells that ask for files


def slow_first(path: Path) -> int:
    "Training chapters before the short ones, so that two workers end together."
    return {"7": 1, "0": 2}.get(path.name[0], 0)


def check_opening(notebook: Path) -> None:
    "Assert that a reader who just runs the notebook gets what suits the machine."
    parameters = papermill.inspect_notebook(str(notebook))
    assert {"profile", "seed"} <= set(parameters), (
        "the cell tagged `parameters` must set profile and seed"
    )
    assert parameters["profile"]["default"].strip("\"'") == "auto"


def asks_for_data(notebook: Path) -> bool:
    "Does a cell ask for a data set that a reader may not have?"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return any(
        DATA.search("".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"
    )


def check_run(executed: Path, device: str) -> None:
    "Assert that the run was the small one, on the device, and told its numbers."
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    injected = [
        "".join(cell["source"])
        for cell in cells
        if "injected-parameters" in cell["metadata"].get("tags", [])
    ]
    assert len(injected) == 1 and 'profile = "smoke"' in injected[0]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    said = "".join("".join(output.get("text", "")) for output in outputs)
    assert "profile smoke" in said, "start(profile, seed) did not see the profile"
    assert re.search(rf"\bdevice {device}\b", said), "VIDCOURSE_DEVICE did not arrive"
    assert REPORT_TYPE in json.dumps(outputs), "no headline numbers: call report(...)"


@pytest.fixture
def run(tmp_path, checked_kernels, monkeypatch):
    "A function that makes a smoke run of a notebook on a device and returns its numbers."

    def run(notebook: Path, device: str) -> dict:
        monkeypatch.setenv("VIDCOURSE_DEVICE", device)
        outcome = execute(notebook, tmp_path / device, {"profile": "smoke", "seed": 0})
        assert outcome.status == "ok", f"on {device}: {outcome.traceback}"
        check_run(tmp_path / device / notebook.name, device)
        return outcome.numbers

    return run


@pytest.mark.parametrize(
    "notebook", sorted(NOTEBOOKS, key=slow_first), ids=lambda path: path.stem
)
def test_notebook_runs(notebook, run):
    check_opening(notebook)
    expected = run(notebook, "cpu")
    if not pretend.available():
        pytest.skip("it ran on the CPU; this torch has no devices written in Python")
    numbers = run(notebook, "pretend")
    assert numbers.keys() == expected.keys()
    for name in numbers:
        if isinstance(expected[name], str):  # NaN, or a word
            assert numbers[name] == expected[name], name
        elif not TIMES.search(name):
            assert numbers[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize(
    "notebook", [path for path in NOTEBOOKS if asks_for_data(path)], ids=lambda path: path.stem
)
def test_notebook_runs_where_no_data_are(notebook, run, tmp_path, monkeypatch):
    monkeypatch.setenv("VIDCOURSE_DATA", str(tmp_path / "empty"))
    run(notebook, "cpu")


def test_the_list_is_the_whole_course(root):
    every = {path.name for path in (root / "nbs").glob("*.ipynb")}
    assert {path.name for path in NOTEBOOKS} == every - {"index.ipynb"}
    assert len(NOTEBOOKS) >= 12
