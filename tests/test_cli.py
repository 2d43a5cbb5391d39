"The command as a shell sees it: what it prints where, and its exit status."

import json
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

import vidcourse
from vidcourse import cli, course, perceptual, training
from vidcourse.course import weights_file
from vidcourse.data import Clips
from vidcourse.shapes import moving_shapes
from vidcourse.sources import read
from vidcourse.video import to_float, write

PACKAGE = str(cli.Path(cli.__file__).parent.parent)
SMOKE = "--data shapes --profile smoke"


def call(line):
    "The command in this process."
    return cli.main(shlex.split(line))


def start(*words, cwd=None):
    "The command in a process of its own."
    return subprocess.Popen(
        [sys.executable, "-m", "vidcourse", *map(str, words)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": PACKAGE},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run of three steps."
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert call(f"train mocogan {SMOKE} --out {folder}") == 0
    return folder


@pytest.fixture
def strips(tmp_path):
    "A function that writes a folder of labelled film strips."

    def strips(n):
        for label in ("left", "right"):
            for i, clip in enumerate(moving_shapes(n, size=16, seed=len(label)).frames):
                write(tmp_path / "clips" / label / f"{i}.png", clip)
        return tmp_path / "clips"

    return strips


# Help and errors


def test_help_teaches(capsys):
    assert cli.main([]) == call("-h") == 0
    text = capsys.readouterr().out
    commands = ("run", "train", "sample", "evaluate", "data")
    assert all(name in text for name in (*commands, "vidcourse sample mocogan_shapes_seed0"))
    for name in commands:
        assert call(f"{name} --help") == 0
        text = capsys.readouterr().out
        assert len(text.split()) > 40, f"{name} --help says too little"


def test_module_is_the_command(tmp_path):
    process = start("--help", cwd=tmp_path)
    out, errors = process.communicate()
    assert process.returncode == 0 and "Usage: vidcourse" in out and not errors


ERRORS = """
tain mocogan                                                       | 2 | tain
train mocogam --data shapes --out X                                | 2 | mocogan, navs
train mocogan --data shapes                                        | 2 | --out
train mocogan --data shapes --out X --profile huge                 | 2 | smoke
train mocogan --data shapes --out X --profile smoke --steps 0      | 2 | --steps
train mocogan --data shapes --out X --profile smoke --save-every 0 | 2 | --save-every
train mocogan --data shapes --out X --profile smoke --resume       | 2 | no checkpoint in X
train mocogan --data shapes --out X --profile smoke --fps nan      | 2 | --fps
train mocogan --data no/such/clips --out X --profile smoke         | 1 | no/such/clips
sample nothing_here --out X.gif                                    | 1 | nothing_here
sample classifier_shapes32 --out X.gif                             | 1 | no system for sampling
sample mocogan_shapes_seed0 --out X.gif --n -1                     | 2 | --n
sample mocogan_shapes_seed0 --out X.gif --n 0                      | 2 | --n
sample mocogan_shapes_seed0 --out X.gif --n 1e3                    | 2 | --n
sample mocogan_shapes_seed0 --out X.gif --fps inf                  | 2 | --fps
sample mocogan_shapes_seed0 --out X.gif --fps nan                  | 2 | --fps
sample mocogan_shapes_seed0 --out X.gif --fps 0                    | 2 | --fps
sample mocogan_shapes_seed0 --out X.gif --seed -1                  | 2 | --seed
sample mocogan_shapes_seed0 --out X.gif --seed 18446744073709551616 | 2 | 9223372036854775807
sample mocogan_shapes_seed0 --out X.gif --seed 2**64               | 2 | --seed
sample mocogan_shapes_seed0 --out X.gif --length 0                 | 2 | --length
sample mocogan_shapes_seed0 --out X.gif --category 9               | 1 | categor
sample mocogan_shapes_seed0 --out X.txt                            | 1 | .npz
sample mocogan_shapes_seed0 --out X                                | 1 | without suffix
sample mocogan_shapes_seed0 --out X.gif --n 1000000                | 1 | pixels wide
sample mocogan_shapes_seed0 --out X.png --n 1000                   | 1 | 34,000 pixels wide
sample mocogan_shapes_seed0 --out X.mp4 --length 100000000         | 1 | GB
sample mocogan_shapes_seed0 --out X.npz --n 100000000000           | 1 | GB
evaluate nothing_here --data shapes                                | 1 | nothing_here
evaluate mocogan_shapes_seed0 --data shapes --n 7                  | 2 | --n
data narnia                                                        | 1 | weizmann
run 99                                                             | 1 | 12_mocogan
run 00 --profile large                                             | 2 | laptop
run 00 --timeout nan                                               | 2 | --timeout
run 00 --seed -1                                                   | 2 | --seed
run --folder no/such/folder                                        | 1 | no/such/folder
"""


@pytest.mark.parametrize("case", ERRORS.strip().splitlines(), ids=lambda case: case[:60])
def test_errors_are_one_line_and_leave_nothing(case, capsys, tmp_path, monkeypatch):
    words, status, says = (part.strip() for part in case.split("|"))
    monkeypatch.chdir(tmp_path)
    assert call(words) == int(status)
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1 and error.startswith("vidcourse: "), error
    assert says in error and "Traceback" not in error and "bug" not in error, error
    assert not list(tmp_path.iterdir()), "a failed command left something behind"


def test_a_device_that_is_not_there_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("VIDCOURSE_DEVICE", "cudo")
    assert call(f"sample mocogan_shapes_seed0 --out {tmp_path / 'x.gif'}") == 1
    assert "VIDCOURSE_DEVICE 'cudo'" in capsys.readouterr().err


def test_escape_codes_reach_no_terminal(capsys):
    assert call("sample 'evil\x1b]0;name\x07\x1b[31m' --out x.gif") == 1
    assert "\x1b" not in (said := capsys.readouterr().err) and "evil" in said


def test_debug_shows_the_traceback(capsys):
    assert call("sample nothing_here --out x.gif --debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_is_named_as_one(capsys, monkeypatch):
    monkeypatch.setattr(cli, "load_system", lambda what: {}["config"])
    assert call("sample x --out x.gif") == 1
    assert "KeyError" in (text := capsys.readouterr().err) and "--debug" in text


def test_names_come_from_one_list(capsys):
    assert cli.PROFILES == ("auto", *course.PROFILES)
    assert call("data") == 0
    said = capsys.readouterr().out
    assert all(f"\n{name} " in "\n" + said for name in ("shapes", *course.DATA_SETS))


def test_every_way_of_fetching_is_found(monkeypatch, capsys):
    from vidcourse import files

    code = "from vidcourse import cli; cli.main(['data', 'narnia'])"
    environment = os.environ | {"PYTHONPATH": PACKAGE}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert all(name in done.stderr for name in course.FETCHED), done.stderr
    monkeypatch.setitem(files.FETCHERS, "sprites", lambda: "a/path")
    assert call("data sprites") == 0 and capsys.readouterr().out == "sprites: a/path\n"


# Sampling


def test_sample_writes_every_kind_and_repeats(run, tmp_path):
    options = "--n 1 --length 5 --seed 3"
    for suffix in ("mp4", "gif", "apng", "png", "npz"):
        assert call(f"sample {run} --out {tmp_path}/clip.{suffix} {options}") == 0
        side = 16 if suffix == "npz" else 128  # pictures are for people
        assert read(tmp_path / f"clip.{suffix}").shape == (5, side, side, 3)
    assert call(f"sample {run}/weights.safetensors --out {tmp_path}/again.npz {options}") == 0
    once, again = (np.load(tmp_path / f"{name}.npz")["frames"] for name in ("clip", "again"))
    assert (once == again).all()


@pytest.mark.parametrize("scale", [1, 3])
def test_a_scaled_picture_has_larger_pixels(run, tmp_path, scale):
    line = f"sample {run} --n 1 --length 4 --out {tmp_path}/clip"
    assert call(f"{line}.npz") == 0 and call(f"{line}.apng --scale {scale}") == 0
    pixels = read(tmp_path / "clip.npz")
    assert (read(tmp_path / "clip.apng") == pixels.repeat(scale, 1).repeat(scale, 2)).all()


def test_a_scale_that_fits(tmp_path):
    out, shape = Path("x.png"), (16, 16, 16, 16, 3)
    assert cli.fitting_scale(out, shape) == 8
    assert cli.fitting_scale(out, (4, 400, 16, 16, 3)) == 2  # 400 frames beside each other
    assert cli.fitting_scale(out, (1, 1, 128, 128, 3)) == 1
    assert cli.fitting_scale(out, (1, 10**6, 16, 16, 3)) == 1  # check_picture says the rest
    with pytest.raises(ValueError, match="a smaller --scale"):
        cli.check_picture(out, shape, 64)


@pytest.mark.parametrize("fps", [0.5, 100])
@pytest.mark.parametrize("suffix", ["mp4", "gif", "apng"])
def test_the_slowest_and_the_fastest_film(run, tmp_path, suffix, fps):
    out = tmp_path / f"clip.{suffix}"
    assert call(f"sample {run} --out {out} --n 1 --length 4 --fps {fps}") == 0
    assert len(read(out)) == 4


def test_an_archive_in_parts_holds_what_sample_gives(run, tmp_path):
    assert call(f"sample {run} --out {tmp_path}/many.npz --n 150 --length 4 --seed 3") == 0
    frames = np.load(tmp_path / "many.npz")["frames"]
    model, rng = cli.load_system(str(run)), torch.Generator().manual_seed(3)
    expected = torch.cat([model.sample(n, 4, rng) for n in (64, 64, 22)]).clamp(-1, 1)
    assert frames.shape == (150, 4, 16, 16, 3)
    assert np.abs(to_float(frames) - expected).max() < 0.005
    assert len(Clips.from_npz(tmp_path / "many.npz")) == 150


def test_many_clips_need_no_more_memory_than_a_few(run, tmp_path):
    "Peak of a process of its own: 6,000 clips are 74 MB as bytes, 300 MB as floats."
    pytest.importorskip("resource")

    def peak(n):
        line = f"sample {run} --out {tmp_path}/many.npz --n {n}"
        code = (
            f"import resource, shlex; from vidcourse import cli; cli.main(shlex.split({line!r}));"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        environment = os.environ | {"PYTHONPATH": PACKAGE}
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
        unit = 1 if sys.platform == "darwin" else 1024
        return int(done.stdout.split()[-1]) * unit

    assert peak(6000) - peak(64) < 40 * 2**20


def test_what_does_not_fit_is_refused_before_the_work(run, tmp_path, capsys, monkeypatch):
    def untouchable(*args, **kwargs):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(cli, "batches", untouchable)
    memory = psutil.virtual_memory()._replace(available=10**6)
    with monkeypatch.context() as patch:
        patch.setattr(psutil, "virtual_memory", lambda: memory)
        assert call(f"sample {run} --out {tmp_path}/x.mp4") == 1
        assert "0.0 are free" in (said := capsys.readouterr().err) and ".npz" in said
    disk = SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: disk)
    assert call(f"sample {run} --out {tmp_path}/new/x.npz") == 1
    assert f"0.0 are free at {tmp_path};" in capsys.readouterr().err


def test_weights_that_are_none(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    assert call(f"sample {tmp_path}/run --out x.gif") == 1
    assert "weights.safetensors" in capsys.readouterr().err
    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps({"a": 1}))
    assert call(f"sample {tmp_path}/evil.safetensors --out x.gif") == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_run_that_has_not_ended(tmp_path, capsys, monkeypatch):
    out, log = tmp_path / "run", training.log

    def stop_at_five(trainer, *rest):
        if trainer.step == 5:
            signal.raise_signal(signal.SIGINT)
        return log(trainer, *rest)

    monkeypatch.setattr(training, "log", stop_at_five)
    assert call(f"train mocogan {SMOKE} --out {out} --steps 9") == 130
    assert call(f"sample {out} --out {tmp_path}/x.gif") == 0
    assert f"{out} has not ended: weights of step 5 of 9" in capsys.readouterr().out
    monkeypatch.undo()
    assert call(f"train mocogan {SMOKE} --out {out} --steps 9 --resume") == 0
    assert call(f"sample {out} --out {tmp_path}/x.gif") == 0
    assert "has not ended" not in capsys.readouterr().out


def test_the_version_and_the_weights(capsys):
    assert call("--version") == 0
    assert capsys.readouterr().out == f"vidcourse {vidcourse.__version__}\n"
    assert call("weights") == 0
    first, *lines = capsys.readouterr().out.splitlines()
    shipped = sorted(
        p.stem for p in Path(weights_file("mocogan_shapes_seed0")).parent.glob("*.s*")
    )
    assert [line.split()[0] for line in lines] == shipped and first.split()[:2] == [
        "name",
        "pixels",
    ]


# Training


def test_train_leaves_curves_and_clips_on_the_way(tmp_path):
    assert call(f"train mocogan {SMOKE} --out {tmp_path}/run --steps 30") == 0
    steps = [int(path.stem) for path in sorted((tmp_path / "run" / "samples").iterdir())]
    assert 9 <= len(steps) <= 12 and steps[-1] == 30, steps
    state = json.loads((tmp_path / "run" / "state.json").read_text())
    assert len(state["state"]["history"]) >= 20


def test_train_says_what_it_computes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("VIDCOURSE_DEVICE", "cpu")
    assert call(f"train mocogan {SMOKE} --out {tmp_path} --steps 1") == 0
    said = capsys.readouterr().out
    assert re.search(r"for 1 steps, profile smoke, on cpu in (bfloat16|float32), into", said)
    monkeypatch.setattr(course, "choose_precision", lambda device: "fp16")
    assert (
        cli.computing(SimpleNamespace(precision="auto"))
        == "on cpu in float16 with loss scaling"
    )
    assert cli.computing(SimpleNamespace(precision="no")) == "on cpu in float32"


def test_train_keeps_a_run(run, capsys):
    before = (run / "weights.safetensors").read_bytes()
    assert call(f"train mocogan {SMOKE} --out {run}") == 2
    assert "--resume" in capsys.readouterr().err
    assert (run / "weights.safetensors").read_bytes() == before
    assert call(f"train mocogan {SMOKE} --out {run}/weights.safetensors") == 2
    assert "is a file" in capsys.readouterr().err


def test_train_on_a_folder_of_labelled_strips(strips, tmp_path, capsys):
    line = f"train mocogan --data {strips(2)} --out {tmp_path}/run --profile smoke"
    assert call(line) == 0
    assert "2 labels (left, right)" in capsys.readouterr().out
    assert call(f"sample {tmp_path}/run --out {tmp_path}/x.gif --category 1 --n 2") == 0


def test_options_for_files_arrive_with_them(strips, tmp_path, monkeypatch):
    import vidcourse.data

    seen, load = {}, vidcourse.data.load

    def spy(what, **options):
        seen.update(options)
        return load(what, size=options["size"])

    monkeypatch.setattr(vidcourse.data, "load", spy)
    folder = strips(2)
    line = f"train mocogan --data {folder} --out {tmp_path}/run --profile smoke --steps 1"
    assert call(f"{line} --fps 12.5 --skip-broken") == 0
    assert (seen["fps"], seen["skip_broken"]) == (12.5, True)


def test_grey_clips_get_three_equal_colours(tmp_path, capsys):
    grey = moving_shapes(8, size=16).frames[..., :1]
    np.savez(tmp_path / "grey.npz", frames=grey)
    line = f"train mocogan --data {tmp_path}/grey.npz --out {tmp_path}/run --profile smoke"
    assert call(f"{line} --steps 1") == 0
    assert "these clips are grey" in capsys.readouterr().out
    clips = cli.load_clips(str(tmp_path / "grey.npz"), SimpleNamespace(size=16))
    assert (clips.clip(3) == grey[3]).all() and clips.clip(3).shape[-1] == 3


def test_save_every_is_handed_on(tmp_path, monkeypatch):
    import vidcourse.mocogan

    seen = {}
    monkeypatch.setattr(vidcourse.mocogan, "train", lambda *a, **recipe: seen.update(recipe))
    assert call(f"train mocogan {SMOKE} --out {tmp_path}/run --save-every 7") == 0
    assert seen["save_every"] == 7


# Interruptions


@pytest.fixture
def interrupted(monkeypatch):
    "A training that is stopped at once."
    import vidcourse.mocogan

    def stop(*args, **recipe):
        recipe["out"].mkdir(parents=True, exist_ok=True)
        (recipe["out"] / "tensorboard").mkdir(exist_ok=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(vidcourse.mocogan, "train", stop)


def test_no_checkpoint_is_claimed_that_is_not_there(interrupted, tmp_path, capsys):
    out = tmp_path / "run"
    for _ in range(2):  # the folder may be used again
        assert call(f"train mocogan {SMOKE} --out {out} --save-every 5") == 130
        said = capsys.readouterr().err
        assert "before the first checkpoint" in said and "--resume" not in said
    line = said.splitlines()[-1].split()
    assert line[:3] == ["vidcourse", "train", "mocogan"] and line[-1] == "5"


def test_the_checkpoint_that_is_there_is_named(interrupted, run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    assert call(f"train mocogan {SMOKE} --out {tmp_path}/run --resume --steps 9") == 130
    said = capsys.readouterr().err
    assert "the checkpoint of step 3 is in" in said and said.strip().endswith("--resume")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path, number, status):
    out = tmp_path / "long run"
    words = f"train mocogan {SMOKE} --steps 100000 --out".split()
    process = start(*words, out)
    try:
        until = time.time() + 90
        while not list(out.glob("tensorboard/*")):
            assert time.time() < until and process.poll() is None, process.communicate()
            time.sleep(0.2)
        time.sleep(1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status and "Traceback" not in errors, errors
    line = re.search(r"^  vidcourse (.*--resume)$", errors, re.M)[1]
    done = cli.checkpoint_step(out)
    assert f"the checkpoint of step {done} is in" in errors
    words = shlex.split(line)
    words[words.index("--steps") + 1] = str(done + 2)
    assert cli.main(words) == 0 and (out / "weights.safetensors").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_sigterm_where_ctrl_c_is_ignored_and_where_it_is_not():
    before = signal.getsignal(signal.SIGTERM)
    for handler in (signal.SIG_IGN, signal.default_int_handler):
        old = signal.signal(signal.SIGINT, handler)
        try:
            with cli.sigterm_as_ctrl_c() as came, pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
        finally:
            signal.signal(signal.SIGINT, old)
        assert came == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) == before


# Evaluation


def clips_of(lengths, labels=None):
    "Clips of noise of given lengths, at 16 px."
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (n, 16, 16, 3), np.uint8) for n in lengths]
    return Clips.from_list(frames, labels)


CONFIG = SimpleNamespace(length=8, frame_step=2, size=16)


def owners(windows, clips):
    "Which clips the windows come from."
    first = {
        clips.clip(i)[t].tobytes(): i
        for i in range(len(clips))
        for t in range(len(clips.clip(i)))
    }
    return [first[cli_frame(window)] for window in windows]


def cli_frame(window):
    "The first frame of a float window, as bytes."
    frame = ((window[:, 0] + 1) * 127.5).round().byte()
    return frame.permute(1, 2, 0).contiguous().numpy().tobytes()


@pytest.mark.parametrize("n, sides", [(4, 4), (20, 12), (1000, 12)])
def test_sides_are_equal_and_share_no_clip(n, sides):
    clips = clips_of([15] * 24 + [10], labels=np.arange(25) % 3)  # the last one is too short
    real, other = cli.two_sides(clips, CONFIG, n)
    assert len(real) == len(other) == sides and real.shape[2] == 8
    a, b = owners(real, clips), owners(other, clips)
    assert not set(a) & set(b) and 24 not in a + b
    for side in (a, b) if n >= 12 else ():
        assert np.bincount(clips.labels[side]).tolist() == [4, 4, 4]


def test_few_long_clips_give_many_windows_and_one_is_cut_in_two():
    clips = clips_of([60, 80])
    real, other = cli.two_sides(clips, CONFIG, 20)
    assert len(real) == len(other) == 20
    assert set(owners(real, clips)) == {0} and set(owners(other, clips)) == {1}
    real, other = cli.two_sides(clips_of([60]), CONFIG, 10)
    assert len(real) == len(other) == 10


@pytest.mark.parametrize(
    "lengths, says", [([14, 9], "longest clip has 14"), ([15], "too little")]
)
def test_too_few_frames_to_compare(lengths, says):
    with pytest.raises(ValueError, match=says):
        cli.two_sides(clips_of(lengths), CONFIG, 8)


def test_evaluate_reads_characters(real_data, tmp_path, monkeypatch, capsys):
    real_data("lpc_sprites64.npz")
    trained = []
    monkeypatch.setattr(perceptual, "train_classifier", lambda *a, **k: trained.append(1))
    line = f"evaluate mocogan_characters_seed0 --data sprites --n 18 --out {tmp_path}/x.json"
    assert call(line) == 0 and not trained
    scores = json.loads((tmp_path / "x.json").read_text())["scores"]
    assert scores["action"] > 0.9 and scores["action, real"] > 0.9
    assert 0.7 < scores["garments constant"] < 1 and "body constant, real" in scores
    assert re.search(r"drawing clips and measuring \.\.\. \d+ s", capsys.readouterr().err)


def test_evaluate(run, capsys):
    line = f"evaluate {run} --data shapes --n 16 --classifier classifier_shapes32"
    assert call(line) == 0
    said = capsys.readouterr().out
    assert "motion control score" in said and "note" not in said
    scores = json.loads((run / "evaluation.json").read_text())["scores"]
    assert scores["generated clips"] == scores["real clips"] == 16
    assert 0 <= scores["motion control score, matched"] <= 1
    real, fake = (scores[f"Frechet distance, {s}"] for s in ("other real clips", "generated"))
    assert real < fake


def test_evaluate_with_few_clips_compares_equal_numbers_and_says_so(
    run, strips, tmp_path, capsys
):
    line = f"evaluate {run} --data {strips(5)} --n 64 --classifier classifier_shapes32"
    assert call(f"{line} --out {tmp_path}/scores.json") == 0
    assert "these data give 5 clips a side, not 64" in capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert scores["generated clips"] == scores["real clips"] == 5
