"The runner where the notebook about it would bore: dead kernels, signals, what is left where."

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from vidcourse import runner

KERNEL = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
PARAMETERS = 'profile = "auto"\nseed = 0'


@pytest.fixture
def write(tmp_path):
    "A function that writes a small notebook and returns the folder of all of them."

    def write(name, *cells, tag=True):
        book = nbformat.v4.new_notebook(metadata=KERNEL)
        tags = {"tags": ["parameters"]} if tag else {}
        first = nbformat.v4.new_code_cell(PARAMETERS, metadata=tags)
        book.cells = [first, *map(nbformat.v4.new_code_cell, cells)]
        (tmp_path / "books").mkdir(exist_ok=True)
        nbformat.write(book, tmp_path / "books" / f"{name}.ipynb")
        return tmp_path / "books"

    return write


@pytest.fixture
def run(tmp_path):
    "A function that runs a folder of notebooks and returns what became of each, by name."

    def run(folder, **options):
        options = dict(profile="smoke", out=tmp_path / "out", progress=False) | options
        return {o.name: o for o in runner.run_course(folder=folder, **options)}

    return run


@pytest.fixture
def shell(tmp_path):
    "A function that starts `vidcourse run` in a process of its own."

    def shell(folder, *words, **variables):
        command = [sys.executable, "-m", "vidcourse", "run", "--folder", folder, *words]
        environment = os.environ | {"PYTHONPATH": str(runner.course_folder().parent)}
        return subprocess.Popen(
            list(map(str, command)),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | {name: str(value) for name, value in variables.items()},
        )

    return shell


def stored(folder):
    "The statuses in results.json."
    return [row["status"] for row in json.loads((folder / "results.json").read_text())]


def printed(notebook):
    "All text that a notebook's cells printed."
    outputs = [o for cell in nbformat.read(notebook, 4).cells for o in cell.get("outputs", ())]
    return "".join(o.get("text", "") for o in outputs)


def test_dead_kernel_and_missing_tag_are_failures_and_the_rest_runs(write, run, tmp_path):
    write("01_dies", "#| default_exp dies\nimport os\nos._exit(3)")
    write("02_untagged", "print(1)", tag=False)
    states = run(write("03_fine", "print(profile)"))
    assert [o.status for o in states.values()] == ["failed", "failed", "ok"]
    assert "memory" in states["01_dies"].why and "parameters" in states["02_untagged"].why
    assert stored(tmp_path / "out") == ["failed", "failed", "ok"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>not found</html>",
        "[]",
        '{"cells": 3}',
        '{"cells": [{}]}',
        "[" * 100_000,
        b"\xff",
    ],
    ids=["empty", "web page", "list", "number", "no source", "deep", "bytes"],
)
def test_what_is_no_notebook_is_named_and_stops_nothing(text, write, run, tmp_path):
    folder = write("02_fine", "print(profile)")
    (folder / "01_torn.ipynb").write_bytes(text if isinstance(text, bytes) else text.encode())
    states = run(folder)
    assert [o.status for o in states.values()] == ["failed", "ok"]
    assert states["01_torn"].why.startswith("01_torn.ipynb is no notebook: ")
    outcomes = runner.stored_course(out=tmp_path / "site", folder=folder)
    assert [o.status for o in outcomes] == ["failed", "stored"]
    assert outcomes[0].why == states["01_torn"].why
    assert "is no notebook" in (tmp_path / "site" / "01_torn.html").read_text()


def test_a_chain_of_dependents_is_skipped(write, run):
    write("01_a", "#| default_exp deep.a\n1 / 0")
    write("02_b", "#| default_exp deep.b\nfrom vidcourse.deep import thing")
    folder = write("03_c", "import vidcourse.deep.b as b")
    needs = runner.needs(runner.find_notebooks(folder=folder))
    assert needs == {"01_a": [], "02_b": ["01_a"], "03_c": ["02_b"]}
    assert [(o.status, o.why) for o in run(folder).values()] == [
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


def test_a_cell_that_prints_and_shows_without_end_is_cut(write, run, tmp_path):
    folder = write(
        "01_loud",
        "for i in range(40_000): print('x' * 100)",
        "print('next')",
        "'y' * 25_000_000",
    )
    assert run(folder)["01_loud"].status == "ok"
    result = tmp_path / "out" / "01_loud.ipynb"
    assert result.stat().st_size < 1_200_000
    text = printed(result)
    assert "[cut: " in text and text.count("x" * 100) > 9_000 and text.endswith("next\n")
    assert "[left out: an output of 25,000,002 characters]" in result.read_text()


def test_an_endless_cell_has_a_limit(write, run, tmp_path):
    folder = write("01_endless", "print('begun')", "while True: pass")
    outcome = run(folder, timeout=1 / 60)["01_endless"]
    assert outcome.status == "failed" and "--timeout" in outcome.why
    assert "begun" in printed(tmp_path / "out" / "01_endless.ipynb")


def test_the_shell_and_the_users_jupyter_change_nothing(write, tmp_path, shell):
    "A wrong kernel, another backend, start-up files, settings of matplotlib: none is seen."
    evil = tmp_path / "evil"
    spec = {"argv": ["/nowhere/python"], "display_name": "python3", "language": "python"}
    texts = {
        "kernels/python3/kernel.json": json.dumps(spec),
        "profile_default/startup/00.py": "raise SystemExit('user start-up')",
        "start.py": "raise SystemExit('user start-up')",
        "jupyter_config.py": "raise SystemExit('user settings')",
        "matplotlibrc": "figure.dpi: 7\n",
    }
    for name, text in texts.items():
        (evil / name).parent.mkdir(parents=True, exist_ok=True)
        (evil / name).write_text(text)
    folder = write(
        "01_look",
        "import sys\nprint(sys.executable)",
        "import matplotlib.pyplot as plt\nprint(plt.rcParams['figure.dpi'])\nplt.plot([1]);",
    )
    folders = ("JUPYTER_PATH", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR")
    variables = dict.fromkeys([*folders, "MPLCONFIGDIR"], evil)
    variables |= {"MPLBACKEND": "agg", "PYTHONSTARTUP": evil / "start.py"}
    process = shell(folder, "--out", "out", **variables)
    said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    result = tmp_path / "out" / "01_look.ipynb"
    assert printed(result).split() == [sys.executable, "100.0"]
    assert "image/png" in result.read_text(), "the figure was not drawn inline"


def test_nothing_is_written_beside_output_and_cache(write, tmp_path):
    folder = write(
        "01_writes",
        "open('left_behind.txt', 'w').write('x')\nimport matplotlib.pyplot as plt\nplt.plot([1])",
    )
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    personal = ("XDG_", "JUPYTER", "IPYTHON", "MPL")
    hidden = {k: v for k, v in os.environ.items() if not k.startswith(personal)}
    done = subprocess.run(
        [sys.executable, "-m", "vidcourse", "run", "--folder", str(folder), "--out", "out"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        env=hidden | {"HOME": str(home), "PYTHONPATH": str(runner.course_folder().parent)},
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in home.iterdir()} <= {".cache"}
    assert [path.name for path in elsewhere.iterdir()] == ["out"]
    assert (elsewhere / "out" / "work" / "left_behind.txt").exists()
    assert [path.name for path in folder.iterdir()] == ["01_writes.ipynb"]
    page = (elsewhere / "out" / "01_writes.html").read_text()
    assert '<img class="picture"' in page and "//cdn" not in page


LONG = """
import os, subprocess, sys, tempfile, time
tempfile.mkdtemp()
sleep = [sys.executable, "-c", "print(1, flush=True); import time; time.sleep(600)"]
quiet = dict(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
children = [subprocess.Popen(sleep, start_new_session=new, **quiet) for new in (False, True)]
for child in children:
    child.stdout.readline()
with open({pids!r} + ".part", "w") as file:
    print(os.getpid(), *(child.pid for child in children), file=file)
os.rename({pids!r} + ".part", {pids!r})
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_table_and_no_process_and_no_file(
    number, status, write, tmp_path, shell
):
    write("01_fine", "print(1)")
    pids, temporary = tmp_path / "pids", tmp_path / "temporary"
    temporary.mkdir()
    write("02_long", LONG.format(pids=str(pids)))
    folder = write("03_never", "print(1)")
    process = shell(folder, "--out", tmp_path / "out", TMPDIR=temporary)
    until = time.time() + 90
    while not pids.exists():
        assert time.time() < until and process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status and "Traceback" not in errors, errors
    assert "stopped" in errors and str(tmp_path / "out" / "index.html") in errors
    assert stored(tmp_path / "out") == ["ok", "stopped", "not run"]
    assert "02_long" in (tmp_path / "out" / "index.html").read_text()
    alive = [pid for pid in map(int, pids.read_text().split()) if psutil.pid_exists(pid)]
    assert not [p for p in alive if psutil.Process(p).status() != psutil.STATUS_ZOMBIE]
    assert not list(temporary.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_before_anything_ran_claims_no_table(tmp_path, monkeypatch, capsys):
    from vidcourse import cli

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_course", interrupted)
    assert cli.main(["run", "0", "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "vidcourse: stopped; nothing was written\n"


def test_nothing_of_an_earlier_run_is_shown_as_this_one(write, run, tmp_path):
    write("01_a", "#| default_exp deep.a\nprint(1)")
    folder = write("02_b", "print('from', 'before')")
    run(folder)
    assert "from before" in (tmp_path / "out" / "02_b.html").read_text()
    write("01_a", "#| default_exp deep.a\n1 / 0")
    write("02_b", "import vidcourse.deep.a")
    run(folder)
    page = (tmp_path / "out" / "02_b.html").read_text()
    assert "needs 01_a" in page and "from before" not in page
    assert not (tmp_path / "out" / "02_b.ipynb").exists()


def test_a_whole_name_means_that_notebook_alone(write):
    folder = write("01_a", "print(1)")
    write("01_a_more", "print(1)")

    def found(*names):
        return [path.stem for path in runner.find_notebooks(names, folder)]

    assert found("01_a") == ["01_a"] and found("01_a.ipynb") == ["01_a"]
    assert found("01") == found("01_a", "01_a_more") == ["01_a", "01_a_more"]
    assert found("01_a_") == ["01_a_more"]


def test_the_folder_of_the_notebooks_is_no_folder_for_pages(write):
    folder = write("01_a", "print(1)")
    for make in (runner.run_course, runner.stored_course):
        with pytest.raises(ValueError, match="name another"):
            make(folder=folder, out=folder)
    assert (folder / "01_a.ipynb").is_file()


def test_json_that_is_no_valid_notebook_stops_no_site(write, tmp_path):
    folder = write("02_fine", "print(1)")
    odd = {"cells": [{"cell_type": "code", "source": "1"}], "nbformat": 4, "metadata": {}}
    (folder / "01_odd.ipynb").write_text(json.dumps(odd))
    (folder / "03_old.ipynb").write_text(json.dumps({"cells": [], "nbformat": 3}))
    outcomes = runner.stored_course(out=tmp_path / "site", folder=folder)
    assert [o.status for o in outcomes] == ["failed", "stored", "failed"]
    assert (tmp_path / "site" / "02_fine.html").is_file()


def test_a_file_that_kernels_run_first(write, run, tmp_path, monkeypatch):
    Path(tmp_path / "first.py").write_text("looked = 17")
    monkeypatch.setenv("VIDCOURSE_STARTUP", str(tmp_path / "first.py"))
    run(write("01_a", "print(looked)"))
    assert printed(tmp_path / "out" / "01_a.ipynb") == "17\n"


def test_signatures_are_enforced_in_the_kernels_of_tests(write, run, tmp_path, checked_kernels):
    run(write("01_a", "import vidcourse.video as v\nprint(type(v.__loader__).__name__)"))
    assert printed(tmp_path / "out" / "01_a.ipynb") == "Loader\n"
