"The script for the day a GPU is there (gpu.py), at the smallest sizes on the CPU."

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import gpu

from vidcourse.navs import SYSTEM


def script(folder: Path, *pieces: str) -> subprocess.CompletedProcess:
    "Run pieces by the command line, from a folder where nothing is."
    root = Path(gpu.__file__).resolve().parent.parent
    command = [sys.executable, gpu.__file__, "--tiny", "--device", "cpu", "--only", *pieces]
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )


def test_pieces_are_done_once_and_trainings_resume(tmp_path):
    done = script(tmp_path, "time:navs:laptop", "train:navs")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "_gpu" / "results.json").read_text())["pieces"]
    timed, trained = found["time:navs:laptop"], found["train:navs:gpu"]
    assert 0 < timed["share of the ceiling"] < 1
    assert trained["status"] == "done" and trained["sittings"] == 2
    assert SYSTEM.load(tmp_path / "_gpu" / "navs_black_gpu.safetensors").facts["steps"] == 12
    again = script(tmp_path, "time:navs:laptop", "train:navs")
    assert again.returncode == 0 and "navs" not in again.stdout, "all was done"


def test_a_piece_that_fails_tells_why_and_ends_nothing(tmp_path, capsys):
    asked = argparse.Namespace(
        out=tmp_path, runs=tmp_path, tiny=True, device="cpu", budget=1000.0, limit=60.0
    )
    broken = [gpu.Piece("time", "nothing", "gpu"), gpu.Piece("train", "none", "gpu")]
    assert gpu.all_of(broken, asked) == 2
    assert "No module named 'vidcourse.nothing'" in capsys.readouterr().out
    assert gpu.Results(tmp_path / "results.json").status(broken[1]) == "failed"


def test_no_piece_is_begun_without_time(tmp_path, capsys):
    asked = argparse.Namespace(out=tmp_path, device="cpu", budget=gpu.LEAST - 1.0)
    assert gpu.all_of(gpu.pieces(), asked) == 0
    assert "the budget is spent before tests" in capsys.readouterr().out


def test_names_of_pieces():
    names = [piece.name for piece in gpu.pieces()]
    assert names[0] == "tests" and len(names) == len(set(names))
    assert {name.split(":")[0] for name in names} == {"tests", "time", "train", "showcase"}
    for name in names:
        assert gpu.Piece(*name.split(":")).name == name


def test_a_process_that_does_not_end_is_made_to(monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", deaf])
    assert gpu.wait_for(process, 0.2) != 0
