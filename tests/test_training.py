"The training loop: resume bit for bit after kill -9, atomic files, bad files, several processes, the guard. Dull on purpose."

import json
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as as_safetensors
from torch import nn

from vidcourse.checkpoints import (
    FORMAT,
    interruptible,
    load_weights,
    optimiser_state,
    optimiser_tensors,
    save_weights,
)
from vidcourse.training import decay

# The toy below is also run in processes of its own, so it is kept as text.
TOY = """
import os, signal, sys
import torch
from torch import nn
from torch.nn.functional import softplus
from vidcourse.checkpoints import optimiser_tensors, save_weights
from vidcourse.training import Trainer, decay, named_tensors

def toy(seed=0, norm=True, drop=0.1, **options):
    "A GAN on 8 x 8 pictures with every kind of state: moments, running statistics, spectral norm, dropout, channels last."
    torch.manual_seed(seed)
    G = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.ReLU(), nn.Linear(16, 64), nn.Unflatten(1, (1, 8, 8)))
    conv = nn.Conv2d(1, 4, 3)
    D = nn.Sequential(nn.utils.parametrizations.spectral_norm(conv) if norm else conv, nn.LeakyReLU(0.2), nn.Dropout(drop), nn.Flatten(), nn.Linear(144, 1))
    D = D.to(memory_format=torch.channels_last)
    optimisers = {"G": torch.optim.Adam(G.parameters(), 1e-2, (0.5, 0.9), fused=True), "D": torch.optim.AdamW([{"params": list(D[0].parameters())}, {"params": list(D[4].parameters()), "lr": 3e-3}], 1e-2, fused=True)}
    options = {"ema": {"G": 0.9}, "schedule": decay, "clip_grad": 1.0, "log_every": 7, "save_every": 5, "device": "cpu", "precision": "no", **options}
    return Trainer({"G": G, "D": D}, optimisers, **options)

def step(t, poison=None):
    x = t.shard(torch.rand(8, 1, 8, 8, generator=t.rng))
    z = t.shard(torch.randn(8, 4, generator=t.rng))
    if poison is not None: x = x * poison
    with t.autocast():
        fake = t.networks["G"](z)
        d = softplus(-t.networks["D"](x)).mean() + softplus(t.networks["D"](fake.detach())).mean()
    t.update(d.float(), "D")
    with t.autocast(): g = softplus(-t.networks["D"](fake)).mean()
    t.update(g.float(), "G")
    return {"d": d, "g": g}

def everything(t):
    memory = {f"{n}/{k}": v for n, o in t.optimisers.items() for k, v in optimiser_tensors(o).items()}
    return {**named_tensors(t), **memory, "rng": t.rng.get_state()}
"""
exec(TOY)
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}


@pytest.fixture(autouse=True)
def one_thread():
    "Sums in one order only; children run with one thread too."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def script(tmp_path, body, *arguments, env=None, **options):
    "Runs TOY and `body` in a process of its own."
    file = tmp_path / "script.py"
    file.write_text(TOY + textwrap.dedent(body))
    return subprocess.run(
        [sys.executable, str(file), *map(str, arguments)],
        env={**ENV, **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for k in a:
        assert a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]), k


def no_clock(history):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


@pytest.fixture(scope="module")
def unbroken():
    torch.set_num_threads(1)
    t = toy()
    t.fit(step, 20, progress=False)
    return t


# ---- resume


def test_kill_9_and_resume_repeats_the_unbroken_run(tmp_path, unbroken):
    body = """
    def fatal(t):
        if t.step == 10: os.kill(os.getpid(), signal.SIGKILL)
        return step(t)
    toy(out=sys.argv[1]).fit(fatal, 20, progress=False)
    """
    killed = script(tmp_path, body, tmp_path / "run")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = toy(seed=99, out=tmp_path / "run")  # other weights: all must come from the file
    resumed.load()
    assert resumed.step == 10
    resumed.fit(step, 20, resume=True, progress=False)
    assert_equal(everything(unbroken), everything(resumed))
    assert no_clock(unbroken.history) == no_clock(resumed.history) and [
        e["step"] for e in resumed.history
    ] == [7, 14, 20]
    counts = [t for k, t in everything(resumed).items() if k.endswith("/step")]
    assert len(counts) == 10 and all(t == 20 for t in counts)


def test_kill_between_checkpoints_loses_only_the_steps_since(tmp_path, unbroken):
    body = """
    def fatal(t):
        if t.step == 13: os.kill(os.getpid(), signal.SIGKILL)
        return step(t)
    toy(out=sys.argv[1]).fit(fatal, 20, progress=False)
    """
    assert script(tmp_path, body, tmp_path / "run").returncode == -signal.SIGKILL
    resumed = toy(out=tmp_path / "run")
    resumed.fit(step, 20, resume=True, progress=False)
    assert_equal(everything(unbroken), everything(resumed))


posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


@posix
def test_kill_inside_save_leaves_a_whole_checkpoint(tmp_path):
    "Children die just before the n-th file operation of their second save (unlink 1 and 2 are the temporaries)."
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
    import torch.utils.tensorboard
    for case in sys.argv[2:]:
        pid = os.fork()
        if pid == 0: child(sys.argv[1] + "/" + case, case.split()[0], int(case.split()[1])); os._exit(0)
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
        left = sorted(p.name for p in (tmp_path / case).iterdir())
        assert len([n for n in left if "checkpoint" in n]) == 1 and not [
            n for n in left if n.startswith(".")
        ], left


@posix
def test_kill_at_random_moments_of_a_run_that_saves_all_the_time(tmp_path):
    body = """
    import random, time
    from pathlib import Path
    import torch.utils.tensorboard
    out, luck = Path(sys.argv[1]), random.Random(0)
    for _ in range(12):
        pid = os.fork()
        if pid == 0: toy(out=out, save_every=1).fit(step, 100_000, resume=(out / "state.json").exists(), progress=False)
        before, begun = (out / "state.json").stat().st_mtime_ns if (out / "state.json").exists() else 0, time.time()
        while time.time() < begun + 60 and (not (out / "state.json").exists() or (out / "state.json").stat().st_mtime_ns == before): time.sleep(0.002)
        time.sleep(luck.random() * 0.1)
        os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
        t = toy(out=out); t.load(); print(t.step)
    """
    done = script(tmp_path, body, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    reached = [int(line) for line in done.stdout.split()]
    assert len(reached) == 12 and all(a < b for a, b in zip(reached, reached[1:])), reached


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


def test_new_run_that_dies_while_saving_at_the_same_step_keeps_the_old_checkpoint(
    tmp_path, monkeypatch
):
    old, new, real, calls = toy(out=tmp_path), toy(seed=7, out=tmp_path), os.replace, []
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
    back = toy(seed=9, out=tmp_path)
    back.load()
    assert_equal(everything(old), everything(back))


@pytest.mark.parametrize(
    "optimiser",
    [
        lambda p: torch.optim.SGD(p, 0.1),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        lambda p: torch.optim.RMSprop(p, 0.1),
        lambda p: torch.optim.Adam(p, 0.1, amsgrad=True),
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
        for k, v in m.items():
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
    save_weights(tmp_path / "deep" / "w.safetensors", tensors, system="toy", config=Config())
    back, facts = load_weights(tmp_path / "deep" / "w.safetensors")
    assert_equal(tensors, back)
    assert facts == {"format": FORMAT, "system": "toy", "config": {"width": 8}}


class Bomb:
    def __reduce__(self):
        return os.system, (f"touch {os.environ['BOMB']}",)


def bad_files(tmp_path):
    os.environ["BOMB"] = str(tmp_path / "boom")  # the pickle names it
    save_weights(tmp_path / "good", {"w": torch.ones(100)})
    good = (tmp_path / "good").read_bytes()
    torch.save({"w": torch.ones(2)}, tmp_path / "zip")
    torch.save({"w": torch.ones(2)}, tmp_path / "legacy", _use_new_zipfile_serialization=False)
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
        "other": as_safetensors({"w": torch.ones(1)}, {"vidcourse": "not json"}),
        "list": as_safetensors({"w": torch.ones(1)}, {"vidcourse": "[1]"}),
        "newer": as_safetensors(
            {"w": torch.ones(1)}, {"vidcourse": json.dumps({"format": FORMAT + 1})}
        ),
        "older": as_safetensors({"w": torch.ones(1)}, {"vidcourse": json.dumps({"format": 0})}),
    }


def test_other_files_get_one_clear_error_and_run_nothing(tmp_path):
    words = {
        "pickle": "pickle",
        "zip": "pickle",
        "legacy": "pickle",
        "cut": "cut short",
        "foreign": "not written by vidcourse",
        "newer": f"format {FORMAT + 1}",
        "older": "format 0",
    }
    for name, data in bad_files(tmp_path).items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data)
        with pytest.raises(
            ValueError, match=words.get(name, "safetensors|vidcourse")
        ) as caught:
            load_weights(path)
        assert str(path) in str(caught.value) and caught.value.__suppress_context__ | (
            caught.value.__cause__ is None
        ), name
    assert not (tmp_path / "boom").exists()
    with pytest.raises(FileNotFoundError, match="absent"):
        load_weights(tmp_path / "absent")


def test_bad_checkpoints_are_refused_and_change_nothing(tmp_path):
    t = toy(out=tmp_path)
    t.fit(step, 5, progress=False)
    file, state = (
        next(tmp_path.glob("*.safetensors")),
        json.loads((tmp_path / "state.json").read_text()),
    )
    good, text = file.read_bytes(), (tmp_path / "state.json").read_text()
    fresh = toy(seed=3, out=tmp_path)
    before = {k: v.clone() for k, v in everything(fresh).items()}
    for name, data in bad_files(tmp_path).items():
        file.write_bytes(data)
        with pytest.raises(ValueError):
            fresh.load()
    file.write_bytes(good)
    for bad in (
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"step": 4}',
        '{"format": 1}',
        json.dumps({**state, "format": 2}),
        json.dumps({**state, "format": 0}),
        "\x80\x04 pickle",
    ):
        (tmp_path / "state.json").write_text(bad)
        with pytest.raises(ValueError, match="state.json"):
            fresh.load()
    (tmp_path / "state.json").write_text(text)
    file.rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="checkpoint-"):
        fresh.load()
    assert_equal(before, everything(fresh))
    assert fresh.step == 0
    (tmp_path / "gone").rename(file)
    fresh.load()
    assert_equal(everything(t), everything(fresh))


def test_checkpoint_of_another_model_is_refused(tmp_path):
    toy(out=tmp_path).fit(step, 5, progress=False)
    others = {"sizes": toy(norm=False, out=tmp_path), "ema": toy(out=tmp_path, ema={})}
    others["groups"] = toy(out=tmp_path)
    others["groups"].optimisers["D"] = torch.optim.Adam(
        others["groups"].networks["D"].parameters()
    )
    for t in others.values():
        before = {k: v.clone() for k, v in everything(t).items()}
        with pytest.raises(ValueError, match="another model or configuration"):
            t.load()
        assert_equal(before, everything(t))


def test_missing_checkpoint_and_nowhere_to_save(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        toy(out=tmp_path).load()
    with pytest.raises(FileNotFoundError):
        toy().load()
    with pytest.raises(ValueError, match="out="):
        toy().save()


def test_full_disk_gives_one_error_and_keeps_the_previous_checkpoint(tmp_path):
    "A limit on file size stands for the full disk: the write fails in the middle of the file."
    body = """
    import resource
    t = toy(out=sys.argv[1], save_every=100); t.fit(step, 5, progress=False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
    try: t.step += 1; t.save()
    except OSError as error: print("ERROR", error)
    """
    pytest.importorskip("resource")
    done = script(tmp_path, body, tmp_path / "run")
    assert (
        done.stdout.count("ERROR") == 1
        and "could not write" in done.stdout
        and done.returncode == 0
    ), done.stderr
    t = toy(out=tmp_path / "run")
    t.load()
    assert t.step == 5 and not list((tmp_path / "run").glob(".*"))


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError):
        save_weights(tmp_path / "file" / "w.safetensors", {"w": torch.ones(1)})


# ---- the loop


def test_ctrl_c_ends_the_step_saves_and_raises(tmp_path, unbroken):
    def interrupted(t):
        if t.step == 12:
            signal.raise_signal(signal.SIGINT)  # before the step's two updates
        return step(t)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="after step 13"):
        toy(out=tmp_path).fit(interrupted, 20, progress=False)
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = toy(out=tmp_path)
    resumed.load()
    assert resumed.step == 13
    resumed.fit(step, 20, resume=True, progress=False)
    assert_equal(everything(unbroken), everything(resumed))


def test_second_ctrl_c_stops_at_once():
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_looking_does_not_change_the_run(tmp_path, unbroken):
    seen = []

    def look(t):
        seen.append(t.step)
        torch.rand(3)
        torch.rand(3, generator=t.rng)
        return (
            t.averaged["G"](torch.randn(2, 4, generator=t.rng))[:, :, None].expand(
                2, 3, 2, 8, 8
            )
        ).clamp(-1, 1)

    t = toy(out=tmp_path)
    t.fit(step, 20, on_log=look, progress=False)
    assert (
        seen == [7, 14, 20]
        and len(list((tmp_path / "samples").glob("*.png"))) == 3
        and list((tmp_path / "tensorboard").iterdir())
    )
    assert_equal(everything(unbroken), everything(t))


def test_tensorboard_holds_scalars_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    t = toy(out=tmp_path)
    t.fit(step, 14, on_log=lambda t: np.zeros((1, 2, 8, 8, 3), np.uint8), progress=False)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert (
        [e.step for e in events.Scalars("d")] == [7, 14]
        and {"d", "g", "skipped"} <= set(events.Tags()["scalars"])
        and events.Images("samples")
    )
    assert abs(events.Scalars("g")[1].value - t.history[1]["g"]) < 1e-5


def test_fit_leaves_the_callers_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    t = toy()
    torch.manual_seed(5)
    t.fit(step, 3, progress=False)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_bad_batch_leaves_no_trace(poison):
    t = toy()
    t.fit(step, 3, progress=False)
    before = {k: v.clone() for k, v in everything(t).items() if k != "generator"}

    def only_discriminator(t):
        loss = (
            softplus(-t.networks["D"](torch.full((8, 1, 8, 8), poison))).mean()
            + 0 * t.networks["G"](torch.full((8, 4), poison)).mean()
        )
        assert math.isnan(t.update(loss, "D"))
        return {"d": loss}

    t.fit(only_discriminator, 4, progress=False)
    after = everything(t)
    for k in before:
        if not k.startswith("averaged"):
            assert torch.equal(before[k], after[k]), k
    assert t.skipped == 1 and t.in_a_row == {"D": 1, "G": 0}
    t.fit(step, 8, progress=False)
    assert t.in_a_row == {"D": 0, "G": 0} and all(
        v.isfinite().all() for v in everything(t).values()
    )
    assert all(math.isfinite(v) for e in t.history for v in e.values()), (
        "the log leaves the bad loss out"
    )


def test_infinite_gradient_of_a_finite_loss_is_skipped():
    t = toy()
    w = t.networks["D"][4].weight
    assert (
        math.isnan(t.update((w * 0).abs().sqrt().sum(), "D")) and t.skipped == 1
    )  # the slope of a root at 0


def test_patience_ends_in_an_error_although_the_other_player_is_fine(tmp_path):
    t = toy(out=tmp_path, patience=4)
    t.fit(step, 5, progress=False)
    weights = [p.clone() for p in t.networks["D"].parameters()]

    def mixed(t):
        t.update(t.networks["D"](torch.rand(8, 1, 8, 8)).mean() * math.nan, "D")
        t.update(t.networks["G"](torch.randn(8, 4)).mean(), "G")
        return {}

    with pytest.raises(FloatingPointError, match="4 updates of D in a row.*loss nan"):
        t.fit(mixed, 50, progress=False)
    assert t.step == 8 and all(
        torch.equal(p, q) for p, q in zip(weights, t.networks["D"].parameters())
    )
    t.load()
    assert t.step == 5


def test_clipping_and_gradients_only_where_asked():
    t = toy(norm=False, clip_grad=0.5)
    fake = t.networks["G"](torch.randn(8, 4))
    norm = t.update(1000 * t.networks["D"](fake).mean(), "G")
    assert (
        norm > 0.5
        and abs(nn.utils.get_total_norm([p.grad for p in t.networks["G"].parameters()]) - 0.5)
        < 1e-3
    )
    assert all(p.grad is None for p in t.networks["D"].parameters()), (
        "the discriminator gets no gradient from the generator's loss"
    )


def test_retain_graph_and_two_optimisers_in_one_update():
    t = toy()
    loss = t.networks["D"](t.networks["G"](torch.randn(8, 4))).mean()
    t.update(loss, "D", "G")
    with pytest.raises(RuntimeError):
        t.update(loss, "G")


def test_average_follows_the_formula(unbroken):
    t, by_hand = toy(), None

    def watched(t):
        nonlocal by_hand
        if by_hand is None:
            by_hand = {k: v.clone() for k, v in t.networks["G"].named_parameters()}
        losses = step(t)
        keep = min(0.9, (1 + t.step) / (10 + t.step))
        for k, v in t.networks["G"].named_parameters():
            by_hand[k] = keep * by_hand[k] + (1 - keep) * v.detach()
        return losses

    t.fit(watched, 20, progress=False)
    for k, v in t.averaged["G"].named_parameters():
        assert torch.allclose(v, by_hand[k], atol=1e-6), k
    assert torch.equal(t.averaged["G"][1].running_mean, t.networks["G"][1].running_mean)
    assert not t.averaged["G"].training and not any(
        p.requires_grad for p in t.averaged["G"].parameters()
    )
    assert_equal(everything(t), everything(unbroken))


def test_schedule_reaches_every_group_of_every_optimiser():
    rates = []

    def watched(t):
        rates.append([g["lr"] for o in t.optimisers.values() for g in o.param_groups])
        return step(t)

    toy().fit(watched, 4, progress=False)
    expected = [[b * decay(s, 4) for b in (1e-2, 1e-2, 3e-3)] for s in range(4)]
    assert np.allclose(rates, expected) and rates[-1] < rates[0]
    assert decay(5, 0) == 0 and decay(3, 10, start=1.0) == 1 and decay(10, 10, start=1.0) == 0


def test_several_trainers_of_different_precision_in_one_process():
    a, b, c = toy(precision="no"), toy(precision="bf16"), toy(precision="no")
    for t in (a, b, c):
        t.fit(step, 4, progress=False)
    assert_equal(everything(a), everything(c))
    for t, dtype in ((a, torch.float32), (b, torch.bfloat16)):
        with t.autocast():
            assert t.networks["D"](torch.rand(2, 1, 8, 8)).dtype == dtype
    assert all(
        p.dtype == torch.float32 for p in b.networks["D"].parameters()
    ) and not torch.equal(a.networks["D"][4].weight, b.networks["D"][4].weight)


def test_bad_settings_say_what_is_accepted():
    with pytest.raises(ValueError, match="'fp8' is unknown; use 'no' or 'bf16'"):
        toy(precision="fp8")
    with pytest.raises(ValueError, match="networks are"):
        toy(ema={"generator": 0.9})


def test_progress_is_silent_where_nobody_looks(capfd):
    t = toy()
    t.fit(step, 5)
    assert capfd.readouterr() == ("", "")


# ---- the notebook's exercises

WRONG = {
    "half_life": [
        "lambda beta: 1 / (1 - beta)",
        "lambda beta: int(math.log(0.5) / math.log(beta))",
    ],
    "warm_cosine": [
        "lambda step, steps, warm=0.1: 1 - step / steps",
        "lambda step, steps, warm=0.1: (1 + math.cos(math.pi * step / steps)) / 2",
    ],
    "accumulate": [
        "lambda f, n, b, parts: torch.autograd.grad(f(n(b)), list(n.parameters()))",
        "lambda f, n, b, parts: [sum(g) for g in zip(*(torch.autograd.grad(f(n(p)), list(n.parameters())) for p in b.chunk(parts)))]",
    ],
}


def test_exercises_tell_right_from_wrong(capsys):
    import re

    from vidcourse.course import Exercise, exercise

    cells = json.loads((Path(__file__).parents[1] / "nbs" / "03_training.ipynb").read_text())[
        "cells"
    ]
    source = ["".join(c["source"]) for c in cells]
    stubs = [i for i, c in enumerate(cells) if "exercise" in c["metadata"].get("tags", [])]
    assert len(stubs) == 3

    def mlp(*s):
        return nn.Sequential(
            *[m for a, b in zip(s, s[1:]) for m in (nn.Linear(a, b), nn.LeakyReLU(0.2))][:-1]
        )

    for i in stubs:
        space = {
            "math": math,
            "torch": torch,
            "nn": nn,
            "mlp": mlp,
            "real_cloud": torch.rand(800, 2),
            "exercise": exercise,
        }
        for text in source[i : i + 2]:
            exec(text, space)
        name, check = (
            re.match(r"def (\w+)", source[i])[1],
            next(v for v in space.values() if isinstance(v, Exercise)),
        )
        assert "not yet" in capsys.readouterr().out, "the stub fails"
        exec(re.search(r"```python\n(.*?)```", source[i + 2], re.S)[1], space)
        assert check(space[name]) is True, name
        for wrong in WRONG[name]:
            assert check(eval(wrong, space)) is False, wrong


# ---- several processes

LAUNCHED = """
    t = toy(seed=int(os.environ.get("RANK", 0)) if sys.argv[2] == "odd" else 0, norm=False, drop=0.0, out=sys.argv[1] + "/run", device=None if sys.argv[2] == "auto" else "cpu")
    t.fit(lambda t: step(t, poison=float("nan") if t.step == 3 and t.processes.process_index == t.processes.num_processes - 1 else None), 12, progress=False)
    save_weights(f"{sys.argv[1]}/rank{t.processes.process_index}", everything(t), skipped=t.skipped, n=t.processes.num_processes, history=t.history)
    assert len(t.shard(torch.zeros(8, 1))) == 4
    try: t.shard(torch.zeros(7, 1)); print("shared 7")
    except ValueError as error: print(error)
"""


def compare(tmp_path, tolerance=2e-5):
    t = toy(norm=False, drop=0.0)
    t.fit(lambda t: step(t, poison=math.nan if t.step == 3 else None), 12, progress=False)
    ranks = [load_weights(tmp_path / f"rank{i}") for i in range(2)]
    assert (
        all(facts["n"] == 2 and facts["skipped"] == 1 for _, facts in ranks) and t.skipped == 1
    )
    assert_equal(ranks[0][0], ranks[1][0])
    for k, v in everything(t).items():
        assert torch.allclose(v.float(), ranks[0][0][k].float(), rtol=1e-3, atol=tolerance), k
    for a, b in zip(t.history, ranks[0][1]["history"], strict=True):
        if "d" in a and a["step"] > 7:
            assert abs(a["d"] - b["d"]) < 1e-4 and abs(a["g"] - b["g"]) < 1e-4
    resumed = toy(seed=5, norm=False, drop=0.0, out=tmp_path / "run")
    resumed.load()
    assert_equal(everything(resumed), ranks[0][0])


def test_two_processes_equal_one(tmp_path):
    "torch's own variables, as torchrun sets them; the second process starts from other weights and gets the first's."
    (tmp_path / "script.py").write_text(TOY + textwrap.dedent(LAUNCHED))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    env = {
        **ENV,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    run = [sys.executable, str(tmp_path / "script.py"), str(tmp_path), "odd"]
    both = [
        subprocess.Popen(
            run,
            env={**env, "RANK": str(i), "LOCAL_RANK": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for process in both:
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        assert "a batch of 7 can't be shared equally by 2 processes" in out
    compare(tmp_path)


def test_torchrun_without_a_word_about_devices(tmp_path):
    "On a machine without GPU the processes must find each other too, not train alone."
    (tmp_path / "script.py").write_text(TOY + textwrap.dedent(LAUNCHED))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            str(tmp_path / "script.py"),
            str(tmp_path),
            "auto",
        ],
        env={**ENV, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    compare(tmp_path)
