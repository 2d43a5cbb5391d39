"The command as a shell sees it: what it prints where, and its exit status."

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from vidcourse import cli
from vidcourse.sources import read


def command(*words, cwd=None):
    "The command in a process of its own."
    return subprocess.run(
        [sys.executable, "-m", "vidcourse", *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(cli.Path(cli.__file__).parent.parent)},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run of three steps."
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert (
        cli.main(
            ["train", "mocogan", "--data", "shapes", "--out", str(folder), "--profile", "smoke"]
        )
        == 0
    )
    return folder


def test_help_teaches(capsys):
    assert cli.main([]) == cli.main(["-h"]) == 0
    text = capsys.readouterr().out
    assert all(
        name in text
        for name in (
            "run",
            "train",
            "sample",
            "evaluate",
            "data",
            "vidcourse sample mocogan_shapes_seed0",
        )
    )
    for name in ("run", "train", "sample", "evaluate", "data"):
        assert cli.main([name, "--help"]) == 0
        text = capsys.readouterr().out
        assert len(text.split()) > 40, f"{name} --help says too little"


def test_module_is_the_command(tmp_path):
    done = command("--help", cwd=tmp_path)
    assert done.returncode == 0 and "Usage: vidcourse" in done.stdout and not done.stderr


@pytest.mark.parametrize(
    "words, status, says",
    [
        ("tain mocogan", 2, "tain"),
        ("train mocogam --data shapes --out X", 2, "choose one of: mocogan"),
        ("train mocogan --data shapes", 2, "--out"),
        ("train mocogan --data shapes --out X --profile huge", 2, "smoke"),
        ("train mocogan --data shapes --out X --profile smoke --steps 0", 2, "--steps"),
        ("train mocogan --data no/such/clips --out X --profile smoke", 1, "no/such/clips"),
        ("sample nothing_here --out X.gif", 1, "nothing_here"),
        ("sample classifier_shapes32 --out X.gif", 1, "no system for sampling"),
        ("evaluate nothing_here --data shapes", 1, "nothing_here"),
        ("data narnia", 1, "weizmann"),
        ("run 99", 1, "12_mocogan"),
        ("run 00 --profile large", 2, "laptop"),
        ("run --folder no/such/folder", 1, "no/such/folder"),
    ],
)
def test_errors_are_one_line(words, status, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words.split()) == status
    out, err = capsys.readouterr()
    assert (
        len(err.strip().splitlines()) == 1
        and says in err
        and err.startswith("vidcourse: ")
        and "Traceback" not in err
    ), err
    assert not list(tmp_path.iterdir()), "a failed command left something behind"


def test_debug_shows_the_traceback(capsys):
    assert cli.main(["sample", "nothing_here", "--out", "x.gif", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_is_named_as_one(capsys, monkeypatch):
    monkeypatch.setattr(cli, "load_system", lambda what: {}["config"])
    assert cli.main(["sample", "x", "--out", "x.gif"]) == 1
    assert "KeyError" in (text := capsys.readouterr().err) and "--debug" in text


def test_sample_writes_every_kind_and_repeats(run, tmp_path, capsys):
    for suffix in ("mp4", "gif", "apng", "png", "npz"):
        assert (
            cli.main(
                [
                    "sample",
                    str(run),
                    "--out",
                    str(tmp_path / f"clip.{suffix}"),
                    "--n",
                    "1",
                    "--length",
                    "5",
                    "--seed",
                    "3",
                ]
            )
            == 0
        )
        assert read(tmp_path / f"clip.{suffix}").shape == (5, 16, 16, 3)
    assert (
        cli.main(
            [
                "sample",
                str(run / "weights.safetensors"),
                "--out",
                str(tmp_path / "again.npz"),
                "--n",
                "1",
                "--length",
                "5",
                "--seed",
                "3",
            ]
        )
        == 0
    )
    assert (
        np.load(tmp_path / "again.npz")["frames"] == np.load(tmp_path / "clip.npz")["frames"]
    ).all()
    assert (
        cli.main(["sample", str(run), "--out", str(tmp_path / "x.txt")]) == 1
        and not (tmp_path / "x.txt").exists()
    )
    assert (
        cli.main(["sample", str(run), "--out", str(tmp_path / "x.gif"), "--category", "9"]) == 1
    )


def test_weights_that_are_none(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    assert (
        cli.main(["sample", str(tmp_path / "run"), "--out", "x.gif"]) == 1
        and "weights.safetensors" in capsys.readouterr().err
    )
    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps({"a": 1}))
    assert (
        cli.main(["sample", str(tmp_path / "evil.safetensors"), "--out", "x.gif"]) == 1
        and len(capsys.readouterr().err.splitlines()) == 1
    )


def test_train_keeps_a_run_and_resumes(run, capsys):
    before = (run / "weights.safetensors").read_bytes()
    assert (
        cli.main(
            ["train", "mocogan", "--data", "shapes", "--out", str(run), "--profile", "smoke"]
        )
        == 2
    )
    assert (
        "--resume" in capsys.readouterr().err
        and (run / "weights.safetensors").read_bytes() == before
    )


def test_train_on_a_folder_of_labelled_strips(tmp_path, capsys):
    from vidcourse.shapes import moving_shapes
    from vidcourse.video import write

    for label in ("left", "right"):
        for i, clip in enumerate(moving_shapes(2, size=16).frames):
            write(tmp_path / "clips" / label / f"{i}.png", clip)
    assert (
        cli.main(
            [
                "train",
                "mocogan",
                "--data",
                str(tmp_path / "clips"),
                "--out",
                str(tmp_path / "run"),
                "--profile",
                "smoke",
            ]
        )
        == 0
    )
    assert "2 labels (left, right)" in capsys.readouterr().out
    assert (
        cli.main(
            [
                "sample",
                str(tmp_path / "run"),
                "--out",
                str(tmp_path / "x.gif"),
                "--category",
                "1",
                "--n",
                "2",
            ]
        )
        == 0
    )


def test_evaluate(run, tmp_path, capsys):
    assert (
        cli.main(
            [
                "evaluate",
                str(run),
                "--data",
                "shapes",
                "--n",
                "16",
                "--classifier",
                "classifier_shapes32",
            ]
        )
        == 0
    )
    assert "motion control score" in capsys.readouterr().out
    facts = json.loads((run / "evaluation.json").read_text())
    assert (
        facts["scores"]["generated clips"] == 16
        and 0 <= facts["scores"]["motion control score, matched"] <= 1
    )
    assert (
        facts["scores"]["Frechet distance, other real clips"]
        < facts["scores"]["Frechet distance, generated"]
    )


def test_data_lists(capsys):
    assert cli.main(["data"]) == 0 and "weizmann" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path):
    out = tmp_path / "long run"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "vidcourse",
            "train",
            "mocogan",
            "--data",
            "shapes",
            "--out",
            str(out),
            "--profile",
            "smoke",
            "--steps",
            "100000",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(cli.Path(cli.__file__).parent.parent)},
    )
    try:
        until = time.time() + 90
        while not list(out.glob("tensorboard/*")):
            assert time.time() < until and process.poll() is None, process.communicate()
            time.sleep(0.2)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in errors, errors
    line = re.search(r"^  vidcourse (.*--resume)$", errors, re.M)[1]
    done = json.loads((out / "state.json").read_text())["step"]
    words = cli.shlex.split(line)
    words[words.index("--steps") + 1] = str(done + 2)
    assert cli.main(words) == 0 and (out / "weights.safetensors").is_file()
