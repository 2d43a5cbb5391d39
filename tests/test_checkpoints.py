"What a run leaves on the disk and how it stops: atomic files, bad files, locks, signals, logs."

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save as as_safetensors
from torch import nn
from toy_run import ENV, TOY, assert_equal, copied, everything, no_clock, script, step, toy

from vidcourse import checkpoints
from vidcourse.checkpoints import (
    FORMAT,
    CheckpointStore,
    FolderInUse,
    Interrupted,
    LogWriter,
    Pace,
    RunState,
    as_type,
    from_json,
    interruptible,
    load_header,
    load_weights,
    optimiser_state,
    optimiser_tensors,
    save_weights,
)

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


@pytest.fixture(scope="module")
def unbroken():
    t = toy()
    t.fit(step, 20, progress=False)
    return t


# ---- resume


FATAL = """
def fatal(t):
    if t.step == {at}: os.kill(os.getpid(), signal.SIGKILL)
    return step(t)
toy(out=sys.argv[1]).fit(fatal, 20, progress=False)
"""


def test_kill_9_and_resume_repeats_the_unbroken_run(tmp_path, unbroken):
    killed = script(tmp_path, FATAL.format(at=10), tmp_path / "run")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = toy(weights=99, out=tmp_path / "run")  # all must come from the file
    resumed.load()
    assert resumed.step == 10
    resumed.fit(step, 20, resume=True, progress=False)
    assert_equal(everything(unbroken), everything(resumed))
    assert no_clock(unbroken.history) == no_clock(resumed.history)
    assert [entry["step"] for entry in resumed.history] == [7, 14, 20]
    counts = [t for k, t in everything(resumed).items() if k.endswith("/step")]
    assert len(counts) == 10 and all(t == 20 for t in counts)


def test_kill_between_checkpoints_loses_only_the_steps_since(tmp_path, unbroken):
    killed = script(tmp_path, FATAL.format(at=13), tmp_path / "run")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = toy(out=tmp_path / "run")
    resumed.fit(step, 20, resume=True, progress=False)
    assert_equal(everything(unbroken), everything(resumed))


@posix
def test_kill_inside_save_leaves_a_whole_checkpoint(tmp_path):
    """Children die just before the n-th file operation of their second save.

    Unlink 1 and 2 are the temporaries.
    """
    body = """
    from pathlib import Path
    def child(out, name, n):
        t = toy(out=out, save_every=100); t.fit(step, 5, progress=False)
        where = Path if name == "unlink" else os
        real, calls = getattr(where, name), []
        def deadly(*a, **k):
            calls.append(a)
            if len(calls) == n: os.kill(os.getpid(), signal.SIGKILL)
            return real(*a, **k)
        setattr(where, name, deadly)
        t.fit(step, 9, progress=False)
    for case in sys.argv[2:]:
        pid = os.fork()
        if pid == 0:
            name, n = case.split()
            child(sys.argv[1] + "/" + case, name, int(n)); os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    cases = ["replace 1", "replace 2", "fsync 1", "fsync 2", "unlink 3"]
    done = script(tmp_path, body, tmp_path, *cases)
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(cases), done.stderr
    for case in cases:
        t = toy(out=tmp_path / case)
        t.load()
        assert t.step == (9 if case == "unlink 3" else 5), case
        t.fit(step, 10, resume=True, progress=False)
        left = sorted(p.name for p in (tmp_path / case).iterdir() if p.name != ".lock")
        assert len([n for n in left if "checkpoint" in n]) == 1, left
        assert not [n for n in left if n.startswith(".")], left


@posix
def test_kill_at_random_moments_of_a_run_that_saves_all_the_time(tmp_path):
    body = """
    import random
    from pathlib import Path
    out, luck = Path(sys.argv[1]), random.Random(0)
    state = out / "state.json"
    def written():
        return state.stat().st_mtime_ns if state.exists() else 0
    for _ in range(12):
        pid = os.fork()
        if pid == 0:
            t = toy(out=out, save_every=1)
            t.fit(step, 100_000, resume=state.exists(), progress=False)
        before, begun = written(), time.time()
        while time.time() < begun + 60 and written() == before: time.sleep(0.002)
        time.sleep(luck.random() * 0.1)
        os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
        t = toy(out=out); t.load(); print(t.step)
    """
    done = script(tmp_path, body, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    reached = [int(line) for line in done.stdout.split()]
    assert len(reached) == 12, reached
    assert all(a < b for a, b in zip(reached, reached[1:])), reached


def test_resume_without_a_checkpoint_says_so_and_finished_runs_do_nothing(tmp_path):
    t = toy(out=tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint in .*begin without resume"):
        t.fit(step, 3, resume=True, progress=False)
    assert t.step == 0
    t.fit(step, 3, progress=False)
    again = toy(out=tmp_path)
    again.fit(lambda t: pytest.fail("no step is left"), 3, resume=True, progress=False)
    assert again.step == 3


def test_a_new_run_replaces_the_old_one(tmp_path):
    toy(out=tmp_path).fit(step, 9, progress=False)
    toy(out=tmp_path).fit(step, 4, progress=False)
    t = toy(out=tmp_path)
    t.load()
    assert t.step == 4 and len(list(tmp_path.glob("*.safetensors"))) == 1


def test_a_new_run_that_dies_while_saving_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    old, new, real, calls = toy(out=tmp_path), toy(weights=7, out=tmp_path), os.replace, []
    old.fit(step, 5, progress=False)
    new.step = 5

    def replace(*names):
        calls.append(names)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*names)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        new.save()
    back = toy(weights=9, out=tmp_path)
    back.load()
    assert_equal(everything(old), everything(back))


@pytest.mark.parametrize(
    "optimiser",
    [
        lambda p: torch.optim.SGD(p, 0.1),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        lambda p: torch.optim.RMSprop(p, 0.1),
        lambda p: torch.optim.Adam(p, 0.1, amsgrad=True),
        lambda p: torch.optim.Adam(p, 0.1, fused=True),
        lambda p: torch.optim.NAdam(p, 0.1),
        lambda p: torch.optim.Adagrad(p, 0.1),
    ],
)
def test_optimisers_round_trip(optimiser):
    torch.manual_seed(0)

    def pair():
        n = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        return n, optimiser(n.parameters())

    def go(n, o):
        o.zero_grad()
        n(torch.arange(75.0).view(1, 3, 5, 5) / 75).square().mean().backward()
        o.step()

    a, oa = pair()
    go(a, oa)
    go(a, oa)
    b, ob = pair()
    b.load_state_dict(a.state_dict())
    as_from_a_file = {
        k: t.clone(memory_format=torch.contiguous_format)
        for k, t in optimiser_tensors(oa).items()
    }
    ob.load_state_dict(optimiser_state(ob, as_from_a_file))
    go(a, oa)
    go(b, ob)
    assert_equal(a.state_dict(), b.state_dict())
    assert_equal(optimiser_tensors(oa), optimiser_tensors(ob))
    for p, m in ob.state.items():
        for v in m.values():
            if torch.is_tensor(v) and v.shape == p.shape:
                assert v.stride() == p.stride(), "moments in the layout of their parameter"


# ---- files


@dataclass(frozen=True)
class Config:
    width: int = 8


def test_weights_round_trip_with_facts(tmp_path):
    shared = torch.randn(3, 4)
    tensors = {
        "a": shared.t(),
        "b": shared,
        "n": torch.tensor(7),
        "half": shared.bfloat16(),
        "none": torch.zeros(0),
    }
    path = tmp_path / "deep" / "w.safetensors"
    save_weights(path, tensors, system="toy", config=Config())
    back, facts = load_weights(path)
    assert_equal(tensors, back)
    assert facts == {"format": FORMAT, "system": "toy", "config": {"width": 8}}
    assert load_header(path) == ({k: tuple(t.shape) for k, t in tensors.items()}, facts)


class Bomb:
    def __reduce__(self):
        return os.system, (f"touch {os.environ['BOMB']}",)


def bad_files(tmp_path):
    os.environ["BOMB"] = str(tmp_path / "boom")  # the pickle names it
    save_weights(tmp_path / "good", {"w": torch.ones(100)})
    good = (tmp_path / "good").read_bytes()
    torch.save({"w": torch.ones(2)}, tmp_path / "zip")
    torch.save({"w": torch.ones(2)}, tmp_path / "legacy", _use_new_zipfile_serialization=False)

    def stating(text):
        return as_safetensors({"w": torch.ones(1)}, {"vidcourse": text})

    bad = torch.tensor([1.0, math.nan])
    return {
        "pickle": pickle.dumps({"w": Bomb()}),
        "zip": (tmp_path / "zip").read_bytes(),
        "legacy": (tmp_path / "legacy").read_bytes(),
        "cut": good[:-50],
        "header": good[:20],
        "longer": good + b"x" * 9,
        "empty": b"",
        "noise": np.random.default_rng(0).bytes(500),
        "huge": b"\xff" * 64,
        "foreign": as_safetensors({"w": torch.ones(1)}),
        "other": stating("not json"),
        "list": stating("[1]"),
        "deep": stating("[" * 100_000),
        "deeper": stating('{"format": 1, "x": ' + '{"a": ' * 100_000 + "1" + "}" * 100_001),
        "newer": stating(json.dumps({"format": FORMAT + 1})),
        "older": stating(json.dumps({"format": 0})),
        "nan": as_safetensors({"w": bad}, {"vidcourse": '{"format": 1}'}),
        "infinite": as_safetensors({"w": bad.half() / 0}, {"vidcourse": '{"format": 1}'}),
    }


def test_other_files_get_one_clear_error_and_run_nothing(tmp_path):
    words = {
        "pickle": "pickle",
        "zip": "pickle",
        "legacy": "pickle",
        "cut": "cut short",
        "foreign": "not written by vidcourse",
        "deep": "not written by vidcourse, or is damaged",
        "newer": f"format {FORMAT + 1}",
        "older": "format 0",
        "nan": "w holds numbers that are not finite",
        "infinite": "not finite",
    }
    for name, data in bad_files(tmp_path).items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data)
        wanted = words.get(name, "safetensors|vidcourse")
        with pytest.raises(ValueError, match=wanted) as caught:
            load_weights(path)
        assert str(path) in str(caught.value) and len(str(caught.value)) < 400, name
        assert caught.value.__suppress_context__ or caught.value.__cause__ is None, name
    assert not (tmp_path / "boom").exists()
    with pytest.raises(FileNotFoundError, match="absent"):
        load_weights(tmp_path / "absent")


def test_values_from_json_have_the_type_that_is_asked_for():
    for value, hint, wanted in (
        (3, float, 3.0),
        ([1, 2], tuple[int, int], (1, 2)),
        ([1, 2, 3], tuple[int, ...], (1, 2, 3)),
        ([1, 2], tuple, (1, 2)),
        (None, int | None, None),
        ({"a": [1]}, dict[str, list[int]], {"a": [1]}),
    ):
        assert as_type(value, hint) == wanted and type(as_type(value, hint)) is type(wanted)
    for value, hint in (
        (True, int),
        (1.0, int),
        ("1", int),
        (math.nan, float),
        (10**400, float),
        ([1], tuple[int, int]),
        ({"a": 1}, dict[str, str]),
        (None, int),
        ("x", int | None),
        (1, bool),
    ):
        with pytest.raises(TypeError):
            as_type(value, hint)
    with pytest.raises(TypeError, match="seed is missing"):
        from_json(RunState, {})


def edited(path, change):
    "The text of a state.json with something changed in it."
    facts = json.loads(path.read_text())
    change(facts)
    return json.dumps(facts)


def damaged_states(path):
    "Every way in which a state.json can be wrong that we could think of."

    def put(key, value, inside=True):
        def change(facts):
            (facts["state"] if inside else facts)[key] = value

        return edited(path, change)

    yield from ("", "{", "[]", "null", "{}", '{"step": 4}', '{"format": 2}', "\x80\x04 pickle")
    yield from ("[" * 100_000, '{"format": 2, "state": ' + "[" * 100_000)
    yield from (put("format", 1, False), put("format", 3, False), put("format", "x", False))
    yield from (put("state", [], False), put("contents", [1], False), put("tensors", 5, False))
    for value in (None, "5", -1, 5.5, [], 10**500, True):
        yield put("step", value)
    yield from (put("seconds", "long"), put("seconds", math.nan), put("seconds", -1.0))
    yield from (put("history", {}), put("history", [5]), put("history", [{"step": "x"}]))
    yield from (put("parameters", {}), put("parameters", {"G": 6}), put("unknown", 1))
    yield from (put("scaler", 5), put("seed", "0"), put("seed", None))


def test_damaged_states_are_refused_and_change_nothing(tmp_path):
    toy(out=tmp_path).fit(step, 5, progress=False)
    path, fresh = tmp_path / "state.json", toy(weights=3, out=tmp_path)
    text, before = path.read_text(), copied(fresh)
    for bad in damaged_states(path):
        path.write_text(bad)
        with pytest.raises(ValueError, match=r"state\.json") as caught:
            fresh.load()
        assert len(str(caught.value)) < 500, bad[:200]
        path.write_text(text)
    path.write_bytes(b"\xff\xfe" + text.encode())
    with pytest.raises(ValueError, match=r"state\.json"):
        fresh.load()
    path.write_text(text)
    assert_equal(before, everything(fresh))
    assert fresh.step == 0
    fresh.load()
    assert fresh.step == 5


def rewritten(file, change):
    "A checkpoint's tensors after `change`, written as if by us, state.json fitting or not."
    tensors = load_file(file)
    change(tensors)
    save_weights(file, tensors, step=5)
    return tensors


def drop_moments(tensors):
    for k in [k for k in tensors if k.startswith("optimiser/D")]:
        del tensors[k]


def drop_half_a_moment(tensors):
    del tensors["optimiser/G/0/exp_avg_sq"]


def put_nan(tensors):
    tensors["network/G/0.weight"][0, 0] = math.nan


def put_inf_into_moments(tensors):
    tensors["optimiser/G/0/exp_avg"][0, 0] = math.inf


def swap_shapes(tensors):
    tensors["optimiser/D/0/exp_avg"] = tensors["optimiser/D/0/exp_avg"][:1]


def drop_rng(tensors):
    del tensors["rng"]


def spoil_rng(tensors):
    tensors["rng"] = tensors["rng"][:16]


def drop_counts(tensors):
    del tensors["number/guard/skipped"]


CHANGES = [
    drop_moments,
    drop_half_a_moment,
    put_nan,
    put_inf_into_moments,
    swap_shapes,
    drop_rng,
    spoil_rng,
    drop_counts,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("contents", ["as they were", "fitting"])
def test_tensors_that_lack_something_are_refused_and_change_nothing(tmp_path, change, contents):
    toy(out=tmp_path).fit(step, 5, progress=False)
    fresh = toy(weights=3, out=tmp_path)
    before = copied(fresh)
    tensors = rewritten(next(tmp_path.glob("*.safetensors")), change)
    if contents == "fitting":
        sizes = {k: list(t.shape) for k, t in tensors.items()}
        path = tmp_path / "state.json"
        path.write_text(edited(path, lambda facts: facts.update(contents=sizes)))
        if change is drop_moments:
            pytest.skip("an optimiser that never took a step has no moments either")
    with pytest.raises(ValueError, match="checkpoint-|state.json"):
        fresh.load()
    assert_equal(before, everything(fresh))


def test_bad_or_missing_tensors_are_refused_and_change_nothing(tmp_path):
    t = toy(out=tmp_path)
    t.fit(step, 5, progress=False)
    file = next(tmp_path.glob("*.safetensors"))
    good, fresh = file.read_bytes(), toy(weights=3, out=tmp_path)
    before = copied(fresh)
    for data in bad_files(tmp_path).values():
        file.write_bytes(data)
        with pytest.raises(ValueError):
            fresh.load()
    file.rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="checkpoint-"):
        fresh.load()
    assert_equal(before, everything(fresh))
    file.write_bytes(good)
    fresh.load()
    assert_equal(everything(t), everything(fresh))


def test_checkpoint_of_another_model_or_seed_is_refused(tmp_path):
    toy(out=tmp_path).fit(step, 5, progress=False)
    others = {"sizes": toy(norm=False, out=tmp_path), "ema": toy(out=tmp_path, ema={})}
    others["groups"] = toy(out=tmp_path)
    others["groups"].optimisers["D"] = torch.optim.Adam(
        others["groups"].networks["D"].parameters()
    )
    others["seed"] = toy(out=tmp_path, seed=4)
    for name, t in others.items():
        before = copied(t)
        wanted = "seed 0, not 4: resume with seed 0" if name == "seed" else "another model or"
        with pytest.raises(ValueError, match=wanted):
            t.fit(step, 6, resume=True, progress=False)
        assert_equal(before, everything(t))
        assert t.step == 0


def test_missing_checkpoint_and_nowhere_to_save(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        toy(out=tmp_path).load()
    with pytest.raises(FileNotFoundError):
        toy().load()
    with pytest.raises(ValueError, match="out="):
        toy().save()


def test_full_disk_gives_one_error_and_keeps_the_previous_checkpoint(tmp_path):
    "A limit on file size stands for the full disk: the write fails in the middle of the file."
    pytest.importorskip("resource")
    body = """
    import resource
    t = toy(out=sys.argv[1], save_every=100); t.fit(step, 5, progress=False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
    try: t.step += 1; t.save()
    except OSError as error: print("ERROR", error)
    """
    done = script(tmp_path, body, tmp_path / "run")
    assert done.returncode == 0 and done.stdout.count("ERROR") == 1, done.stderr
    assert "could not write" in done.stdout
    t = toy(out=tmp_path / "run")
    t.load()
    left = {p.name for p in (tmp_path / "run").glob(".*")}
    assert t.step == 5 and left <= {".lock"}


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError):
        save_weights(tmp_path / "file" / "w.safetensors", {"w": torch.ones(1)})
    with pytest.raises(OSError, match="file"):
        toy(out=tmp_path / "file").fit(step, 3, progress=False)


# ---- the lock


def test_a_second_training_of_a_folder_is_refused_and_does_no_harm(tmp_path, unbroken):
    other, refused = toy(weights=1, out=tmp_path), []

    def intruding(t):
        if t.step == 8:
            with pytest.raises(FolderInUse, match="another training is writing into") as caught:
                other.fit(step, 20, progress=False)
            refused.append(str(caught.value))
            with pytest.raises(FolderInUse):
                other.save()
        return step(t)

    t = toy(out=tmp_path)
    t.fit(intruding, 20, progress=False)
    assert len(refused) == 1 and other.step == 0
    back = toy(weights=2, out=tmp_path)
    back.load()
    assert_equal(everything(back), everything(unbroken))
    other.fit(step, 2, progress=False)  # now the folder is free


def test_the_lock_holds_between_processes_and_dies_with_its_owner(tmp_path):
    body = """
    def slow(t):
        print(t.step, flush=True); time.sleep(60)
    toy(out=sys.argv[1]).fit(slow, 20, progress=False)
    """
    (tmp_path / "script.py").write_text(TOY + textwrap.dedent(body))
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "run")]
    child = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "0\n"
        with pytest.raises(FolderInUse):
            toy(out=tmp_path / "run").fit(step, 3, progress=False)
    finally:
        child.kill()
        child.wait()
    toy(out=tmp_path / "run").fit(step, 3, progress=False)


# ---- signals


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with checkpoints.interruptible() as asked:
            signal.raise_signal(signal.SIGHUP)
        assert asked == []
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_step_saves_and_raises(tmp_path, unbroken, number):
    def interrupted(t):
        if t.step == 12:
            signal.raise_signal(number)  # before the step's two updates
        return step(t)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(s) for s in signals]
    with pytest.raises(
        Interrupted, match="after step 13; the checkpoint in .* is of step 13"
    ) as e:
        toy(out=tmp_path).fit(interrupted, 20, progress=False)
    assert (e.value.signal, e.value.step) == (number, 13)
    assert [signal.getsignal(s) for s in signals] == handlers
    resumed = toy(out=tmp_path)
    resumed.load()
    assert resumed.step == 13
    resumed.fit(step, 20, resume=True, progress=False)
    assert_equal(everything(unbroken), everything(resumed))


@pytest.mark.parametrize(
    "at, wanted", [(2, "before the first checkpoint"), (7, "is of step 5")]
)
def test_a_second_ctrl_c_stops_at_once_and_tells_the_truth(tmp_path, monkeypatch, at, wanted):
    clock = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: clock[0])

    def impatient(t):
        if t.step == at:
            signal.raise_signal(signal.SIGINT)
            clock[0] += 1
            signal.raise_signal(signal.SIGINT)
        return step(t)

    with pytest.raises(Interrupted, match=f"in the middle of step {at}.*{wanted}") as caught:
        toy(out=tmp_path).fit(impatient, 20, progress=False)
    assert caught.value.step == (5 if at == 7 else None)
    assert (tmp_path / "state.json").exists() == (at == 7)


def test_the_same_ctrl_c_heard_twice_and_a_second_sigterm_are_one():
    with interruptible() as asked:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
    assert asked == [signal.SIGINT]


def test_without_a_folder_an_interrupted_run_claims_nothing():
    def interrupted(t):
        signal.raise_signal(signal.SIGINT)
        return step(t)

    with pytest.raises(Interrupted) as caught:
        toy().fit(interrupted, 20, progress=False)
    assert str(caught.value) == "stopped after step 1" and caught.value.step is None


def test_sigterm_from_outside_saves(tmp_path):
    body = """
    from vidcourse.checkpoints import Interrupted
    def told(t):
        print(t.step, flush=True); time.sleep(0.01)
        return step(t)
    try: toy(out=sys.argv[1], save_every=10**9).fit(told, 10**6, progress=False)
    except Interrupted as error: sys.exit(128 + error.signal)
    """
    (tmp_path / "script.py").write_text(TOY + textwrap.dedent(body))
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "run")]
    child = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, text=True)
    for _ in range(3):
        child.stdout.readline()
    child.terminate()
    child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGTERM
    t = toy(out=tmp_path / "run")
    t.load()
    assert t.step >= 2


# ---- progress and log


def test_pace_speaks_once_after_the_first_steps(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(checkpoints.time, "perf_counter", lambda: clock[0])
    waits = []
    pace, said = Pace(1000, wait=lambda: waits.append(clock[0])), []
    for number in range(1, 30):
        clock[0] += 50.0 if number == 1 else 0.5  # the first step builds things
        said.append(pace.after(number))
    assert [i for i, s in enumerate(said, 1) if s] == [5], said
    assert said[4] == "about 8 min for the other 995 steps (0.5 s each, timed over 4)"
    assert len(waits) == 2, "a device is asked to finish twice"
    quick = Pace(100)
    clock[0] = 0.0
    for number in range(1, 60):
        clock[0] += 0.001
        assert quick.after(number) is None, "a tenth of a second needs no words"


def test_tensorboard_holds_scalars_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    t = toy(out=tmp_path)
    clips = np.zeros((1, 2, 8, 8, 3), np.uint8)
    t.fit(step, 14, on_log=lambda t: clips, progress=False)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("d")] == [7, 14]
    assert {"d", "g", "skipped"} <= set(events.Tags()["scalars"])
    assert events.Images("samples")
    assert abs(events.Scalars("g")[1].value - t.history[1]["g"]) < 1e-5


def test_a_log_on_a_full_disk_warns_once_and_the_run_goes_on(tmp_path, unbroken):
    "A limit on file size stands for the full disk: events grow beyond it, checkpoints don't."
    resource = pytest.importorskip("resource")
    t, soft = toy(out=tmp_path, log_every=1), resource.getrlimit(resource.RLIMIT_FSIZE)
    big = torch.rand(4, 3, 2, 64, 64)
    limit = 60_000
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, soft[1]))
        try:
            t.fit(step, 20, on_log=lambda t: big, progress=False)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    texts = [str(w.message) for w in heard if "log in" in str(w.message)]
    assert len(texts) == 1 and str(tmp_path) in texts[0] and "goes on without" in texts[0]
    back = toy(weights=1, out=tmp_path, log_every=1)
    back.load()
    assert back.step == 20 and len(t.history) == 20
    for k, v in everything(unbroken).items():
        if not k.startswith("number/means"):
            assert torch.equal(v, everything(back)[k]), k


def test_a_log_that_cannot_begin_warns_and_the_run_goes_on(tmp_path):
    (tmp_path / "tensorboard").write_text("a file where a folder belongs")
    t = toy(out=tmp_path)
    with pytest.warns(UserWarning, match="log in .* can't be written"):
        t.fit(step, 14, on_log=lambda t: torch.rand(1, 3, 2, 8, 8), progress=False)
    assert t.step == 14 and (tmp_path / "state.json").exists()
    with LogWriter(None) as nowhere:
        nowhere.numbers(1, {"x": 1.0})


def test_a_checkpoint_that_cannot_be_written_ends_the_run(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    t = toy(out=tmp_path)
    t.fit(step, 5, progress=False)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="could not write .*checkpoint-00000010"):
        t.fit(step, 20, progress=False)
    monkeypatch.undo()
    back = toy(out=tmp_path)
    back.load()
    assert back.step == 5


def test_a_store_alone(tmp_path):
    store, state = CheckpointStore(tmp_path / "a" / "b"), RunState(0, 3, 1.5, {})
    assert store.step is None
    store.save({"w": torch.ones(2)}, state)
    tensors, back = CheckpointStore(tmp_path / "a" / "b").load()
    assert back == state and tensors["w"].tolist() == [1, 1] and store.step == 3
    began = time.monotonic()
    with store.lock(), pytest.raises(FolderInUse):
        CheckpointStore(store.folder).save({}, state)
    assert time.monotonic() - began < 30, "it doesn't wait"
