"The runner where the notebook about it would bore: dead kernels, ctrl-C, what is written where."

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from vidcourse import runner

KERNEL = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}


@pytest.fixture
def write(tmp_path):
    def write(name, *cells, tag=True):
        book = nbformat.v4.new_notebook(metadata=KERNEL)
        book.cells = [
            nbformat.v4.new_code_cell(
                'profile = "auto"\nseed = 0', metadata={"tags": ["parameters"]} if tag else {}
            ),
            *map(nbformat.v4.new_code_cell, cells),
        ]
        (tmp_path / "books").mkdir(exist_ok=True)
        nbformat.write(book, tmp_path / "books" / f"{name}.ipynb")
        return tmp_path / "books"

    return write


def test_dead_kernel_and_missing_tag_are_failures_and_the_rest_runs(write, tmp_path):
    write("01_dies", "#| default_exp dies\nimport os\nos._exit(3)")
    write("02_untagged", "print(1)", tag=False)
    folder = write("03_fine", "print(profile)")
    states = {
        o.name: o
        for o in runner.run_course(
            folder=folder, profile="smoke", out=tmp_path / "out", progress=False
        )
    }
    assert [o.status for o in states.values()] == ["failed", "failed", "ok"]
    assert "memory" in states["01_dies"].why and "parameters" in states["02_untagged"].why
    assert [
        row["status"] for row in json.loads((tmp_path / "out" / "results.json").read_text())
    ] == ["failed", "failed", "ok"]


def test_a_chain_of_dependents_is_skipped(write, tmp_path):
    write("01_a", "#| default_exp deep.a\n1 / 0")
    write("02_b", "#| default_exp deep.b\nfrom vidcourse.deep import thing")
    folder = write("03_c", "import vidcourse.deep.b as b")
    assert runner.needs(runner.find_notebooks(folder=folder)) == {
        "01_a": [],
        "02_b": ["01_a"],
        "03_c": ["02_b"],
    }
    outcomes = runner.run_course(
        folder=folder, profile="smoke", out=tmp_path / "out", progress=False
    )
    assert [(o.status, o.why) for o in outcomes] == [
        ("failed", "ZeroDivisionError: division by zero"),
        ("skipped", "needs 01_a"),
        ("skipped", "needs 02_b"),
    ]


def test_unknown_folders_and_names(tmp_path, write):
    with pytest.raises(FileNotFoundError, match="no numbered notebooks"):
        runner.run_course(folder=tmp_path, out=tmp_path / "out")
    with pytest.raises(ValueError, match="there are: 01_a"):
        runner.run_course(["2"], folder=write("01_a"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_beside_output_and_cache(write, tmp_path):
    folder = write(
        "01_writes",
        "open('left_behind.txt', 'w').write('x')\nimport matplotlib.pyplot as plt\nplt.plot([1])",
    )
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir(), elsewhere.mkdir()
    hidden = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("XDG_", "JUPYTER", "IPYTHON", "MPL"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "vidcourse", "run", "--folder", str(folder), "--out", "out"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        env=hidden | {"HOME": str(home), "PYTHONPATH": str(runner.course_folder().parent)},
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in home.iterdir()} <= {".cache"} and [
        path.name for path in elsewhere.iterdir()
    ] == ["out"]
    assert (elsewhere / "out" / "work" / "left_behind.txt").exists() and [
        path.name for path in folder.iterdir()
    ] == ["01_writes.ipynb"]
    page = (elsewhere / "out" / "01_writes.html").read_text()
    assert "data:image/png" in page and "<script src" not in page and "//cdn" not in page


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_leaves_a_table_and_no_kernel(write, tmp_path):
    write("01_fine", "print(1)")
    folder = write(
        "02_long",
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(__import__('os').getpid()))\nimport time\ntime.sleep(600)",
    )
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "vidcourse",
            "run",
            "--folder",
            str(folder),
            "--out",
            str(tmp_path / "out"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(runner.course_folder().parent)},
    )
    until = time.time() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.time() < until and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped" in errors and "Traceback" not in errors
    assert [
        row["status"] for row in json.loads((tmp_path / "out" / "results.json").read_text())
    ] == ["ok", "not run"]
    time.sleep(1)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
