"The training loop: guards that leave no trace, no questions to the device, averages, processes."

import math
import signal
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import softplus
from torch.utils._python_dispatch import TorchDispatchMode
from toy_run import ENV, TOY, assert_equal, copied, everything, step, toy

from vidcourse.checkpoints import load_weights, optimiser_tensors
from vidcourse.training import Trainer, advance, decay
from vidcourse.updates import Guard, Means, carried, step_unless_


@pytest.fixture(scope="module")
def unbroken():
    t = toy()
    t.fit(step, 20, progress=False)
    return t


class Questions(TorchDispatchMode):
    "Counts how often the host asks a tensor for its value."

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation.name().startswith(("aten::_local_scalar_dense", "aten::equal"))
        return operation(*args, **(kwargs or {}))


# ---- the guard


def bad_loss(t, poison):
    "The discriminator's loss of a bad batch that has gone through both networks."
    scores = t.networks["D"](torch.full((8, 1, 8, 8), poison))
    return softplus(-scores).mean() + 0 * t.networks["G"](torch.full((8, 4), poison)).mean()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("before", [0, 3])
def test_a_bad_batch_leaves_no_trace(poison, fused, before):
    t = toy(fused=fused)
    t.fit(step, before, progress=False)
    held = copied(t)

    def only_discriminator(t):
        loss = bad_loss(t, poison)
        assert t.update(loss, "D").isnan()
        return {"d": loss}

    t.fit(only_discriminator, before + 1, progress=False)
    after = everything(t)
    for k in held:
        if not k.startswith(("averaged", "number")):
            assert torch.equal(held[k], after[k]), k
    new = {k: v for k, v in after.items() if k.startswith("optimiser") and k not in held}
    assert all((v == 0).all() for v in new.values()), "Adam may begin, with nothing in it"
    assert t.skipped == 1
    assert [int(t.guard.counts[f"in a row: {name}"]) for name in "GD"] == [0, 1]
    t.fit(step, before + 5, progress=False)
    assert [int(t.guard.counts[f"in a row: {name}"]) for name in "GD"] == [0, 0]
    assert all(v.isfinite().all() for v in everything(t).values())
    logged = [v for entry in t.history for v in entry.values()]
    assert all(math.isfinite(v) for v in logged), "the log leaves the bad loss out"


def test_after_a_bad_batch_the_run_goes_on_as_if_it_had_not_been():
    a, b = toy(schedule=None, ema={}), toy(schedule=None, ema={})
    a.fit(step, 6, progress=False)
    b.fit(step, 3, progress=False)
    drawn = b.rng.get_state()
    for _ in range(4):
        b.update(bad_loss(b, math.nan), "D", "G")
    b.rng.set_state(drawn)
    b.fit(step, 6, progress=False)
    counted = ("number/guard", "number/means")
    for k, v in everything(a).items():
        assert k.startswith(counted) or torch.equal(v, everything(b)[k]), k
    assert b.skipped == 4


def test_infinite_gradient_of_a_finite_loss_is_skipped():
    t = toy()
    w = t.networks["D"][4].weight
    assert t.update((w * 0).abs().sqrt().sum(), "D").isnan()  # the slope of a root at 0
    assert t.skipped == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.1, fused=True),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, 0.1, amsgrad=True, fused=True),
        lambda p: torch.optim.AdamW(p, 0.1, fused=True),
        lambda p: torch.optim.RMSprop(p, 0.1),
    ],
)
def test_every_optimiser_skips_bad_steps_and_takes_good_ones(make):
    "Also when the very first step is bad: nothing that was never set may be used later."
    outcomes = []
    for bads in ((1, 1, 0, 1, 0), (0, 0)):
        weight = nn.Parameter(torch.ones(3))
        optimiser = make([weight])
        for bad in bads:
            weight.grad = torch.full((3,), math.nan if bad else 0.5)
            step_unless_(optimiser, torch.tensor(float(bad)))
        outcomes.append(weight.detach())
    assert outcomes[0].isfinite().all() and torch.equal(*outcomes)


def test_a_bad_first_step_leaves_no_memory_that_was_never_set():
    "SGD's fused momentum would begin with whatever lies in the memory it was given."
    weight = nn.Parameter(torch.ones(3))
    optimiser = torch.optim.SGD([weight], 0.1, momentum=0.9, fused=True)
    weight.grad = torch.full((3,), math.nan)
    step_unless_(optimiser, torch.tensor(1.0))
    assert optimiser_tensors(optimiser) == {}


def test_a_bad_batch_right_after_a_resume_puts_back_what_was_loaded(tmp_path):
    toy(out=tmp_path).fit(step, 5, progress=False)
    t = toy(weights=3, out=tmp_path)
    t.load()
    held = copied(t)
    t.update(bad_loss(t, math.nan), "D", "G")
    for k, v in everything(t).items():
        assert k.startswith("number") or torch.equal(v, held[k]), k


def test_patience_ends_in_an_error_although_the_other_player_is_fine(tmp_path):
    t = toy(out=tmp_path, patience=4)
    t.fit(step, 5, progress=False)
    weights = [p.clone() for p in t.networks["D"].parameters()]

    def mixed(t):
        t.update(t.networks["D"](torch.rand(8, 1, 8, 8)).mean() * math.nan, "D")
        t.update(t.networks["G"](torch.randn(8, 4)).mean(), "G")
        return {}

    with pytest.raises(FloatingPointError, match="last 9 updates of 'D' until step 14"):
        t.fit(mixed, 50, progress=False)
    assert t.step == 14  # when the host looked
    assert all(torch.equal(p, q) for p, q in zip(weights, t.networks["D"].parameters()))
    back = toy(out=tmp_path)
    back.load()
    assert back.step == 10


def test_trouble_that_has_passed_is_no_error():
    t = toy(patience=4)

    def early(t):
        return step(t, poison=math.nan if t.step < 6 else None)

    t.fit(early, 14, progress=False)
    assert t.skipped == 6 and t.step == 14


def test_clipping_and_gradients_only_where_asked():
    t = toy(norm=False, clip_grad=0.5)
    fake = t.networks["G"](torch.randn(8, 4))
    norm = t.update(1000 * t.networks["D"](fake).mean(), "G")
    clipped = nn.utils.get_total_norm([p.grad for p in t.networks["G"].parameters()])
    assert norm > 0.5 and abs(clipped - 0.5) < 1e-3
    gradients = [p.grad for p in t.networks["D"].parameters()]
    assert gradients == [None] * 4, "the generator's loss leaves nothing in the discriminator"


def test_retain_graph_and_two_optimisers_in_one_update():
    t = toy()
    loss = t.networks["D"](t.networks["G"](torch.randn(8, 4))).mean()
    t.update(loss, "D", "G")
    with pytest.raises(RuntimeError):
        t.update(loss, "G")
    # spectral normalisation renews its vectors at each pass, hence a plain network here
    t = toy(norm=False)
    before = copied(t)
    loss = t.networks["G"](torch.randn(8, 4)).mean()
    t.update(loss * 0, "G", retain_graph=True)
    assert t.networks["G"][0].weight.equal(before["network/G/0.weight"])


# ---- the host asks for nothing


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_run_asks_the_device_for_nothing_between_two_looks(precision):
    t = toy(precision=precision, log_every=10, schedule=decay)
    with Questions() as asked:
        t.fit(step, 10, progress=False)
    assert asked.count == 0  # one message at the end, which is no question for one number
    t = toy(precision=precision, fused=False)
    with Questions() as asked:
        t.fit(step, 10, progress=False)
    assert asked.count >= 20, "the counter counts: plain optimisers do ask"


def test_the_host_looks_once_for_each_log(monkeypatch):
    looks, real = [], torch.Tensor.tolist

    def tolist(tensor):
        looks.append(tensor.shape)
        return real(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    toy(log_every=4).fit(step, 20, progress=False)
    assert looks == [(5,)] * 5  # two losses, updates skipped in all and by each optimiser


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@cuda
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_on_a_gpu_the_host_never_waits_between_two_looks(precision):
    t = toy(device="cuda", precision=precision, log_every=10**6)
    batches = [torch.rand(8, 1, 8, 8) for _ in range(5)]

    def shared(t):
        x, z = t.share(batches[t.step % 5]), t.share(torch.randn(8, 4, generator=t.rng))
        with t.autocast():
            scores = t.networks["D"](t.networks["G"](z)) - t.networks["D"](x)
        loss = scores.float().mean()
        t.update(loss, "G", retain_graph=True)
        t.update(-loss, "D")
        return {"loss": loss}

    t.fit(shared, 3, progress=False)  # the first steps build things
    for _ in range(10):
        torch.cuda.set_sync_debug_mode("error")  # torch refuses to wait
        try:
            advance(t, shared, 20)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert t.step == 13


@cuda
@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_on_a_gpu_a_bad_batch_leaves_no_trace_and_a_run_resumes(precision, tmp_path):
    t = toy(device="cuda", precision=precision, out=tmp_path)
    t.fit(step, 10, progress=False)
    held = copied(t)
    t.update(softplus(t.networks["D"](torch.full((8, 1, 8, 8), math.nan).cuda())).mean(), "D")
    for k, v in everything(t).items():
        assert k.startswith("number") or torch.equal(v, held[k]), k
    assert t.skipped >= 1
    back = toy(weights=3, device="cuda", precision=precision, out=tmp_path)
    back.load()
    for k, v in everything(back).items():
        assert torch.equal(v, held[k]), k
    back.fit(step, 20, resume=True, progress=False)
    on_cpu = toy(out=tmp_path)  # and on a machine without GPU
    on_cpu.load()
    assert on_cpu.step == 20


def test_a_batch_is_carried_as_it_is():
    x = torch.arange(6).view(2, 3)
    assert (
        torch.equal(carried(x, torch.device("cpu")), x)
        and carried(x, x.device).dtype == x.dtype
    )
    t = toy()
    assert torch.equal(t.share(x), x)


def test_update_returns_a_tensor():
    t = toy()
    norm = t.update(t.networks["G"](torch.randn(8, 4)).square().mean(), "G")
    assert isinstance(norm, torch.Tensor) and norm.shape == () and norm > 0


# ---- 16 bits


def test_float16_scales_its_loss_and_finds_its_scale():
    t = toy(precision="fp16", log_every=20)
    start = t.guard.scaler.get_scale()
    t.fit(step, 40, progress=False)
    moved = t.networks["G"][0].weight
    assert t.history[-1]["g"] > 0 and not moved.equal(toy().networks["G"][0].weight)
    # a loss that overflows 16 bits at once: the scale is halved, nothing is applied
    held = copied(t)
    wide = (t.networks["G"](torch.randn(8, 4)).half() * 1e4).float().square().mean()
    assert t.update(wide * 1e30, "G").isnan()
    assert t.guard.scaler.get_scale() < start
    assert torch.equal(held["network/G/0.weight"], moved)


def test_gradients_too_small_for_float16_arrive():
    def moved(precision):
        torch.manual_seed(0)
        net = nn.Linear(4, 4)
        optimiser = torch.optim.SGD(net.parameters(), 1.0, fused=True)
        guard = Guard({"n": net}, {"n": optimiser}, torch.device("cpu"), precision)
        before = net.weight.detach().clone()
        with torch.autocast("cpu", torch.float16):
            out = net(torch.ones(2, 4))
        guard.update((out.half() * 1e-4).float().mean() * 1e-4, ("n",))
        return (net.weight - before).abs().sum()

    assert moved("no") == 0 and moved("fp16") > 0


def test_float16_resumes_bit_for_bit_with_its_scale(tmp_path):
    whole = toy(precision="fp16")
    whole.fit(step, 14, progress=False)
    toy(precision="fp16", out=tmp_path, schedule=lambda s, n: decay(s, 14)).fit(
        step, 9, progress=False
    )
    rest = toy(weights=1, precision="fp16", out=tmp_path)
    rest.load()
    rest.fit(step, 14, resume=True, progress=False)
    assert_equal(everything(whole), everything(rest))
    assert whole.guard.scaler.state_dict() == rest.guard.scaler.state_dict() != {}
    other = toy(out=tmp_path)  # and on a device that needs no scale
    other.load()
    assert other.step == 14


def test_several_trainers_of_different_precision_in_one_process():
    a, b, c = toy(precision="no"), toy(precision="bf16"), toy(precision="no")
    for t in (a, b, c):
        t.fit(step, 4, progress=False)
    assert_equal(everything(a), everything(c))
    for t, dtype in ((a, torch.float32), (b, torch.bfloat16)):
        with t.autocast():
            assert t.networks["D"](torch.rand(2, 1, 8, 8)).dtype == dtype
    assert all(p.dtype == torch.float32 for p in b.networks["D"].parameters())
    assert not torch.equal(a.networks["D"][4].weight, b.networks["D"][4].weight)


def test_precision_auto_is_what_suits_the_device(monkeypatch):
    from vidcourse import training

    for choice in ("no", "bf16", "fp16"):
        monkeypatch.setattr(training, "choose_precision", lambda device, choice=choice: choice)
        assert toy(precision="auto").precision == choice
        assert toy(precision="no").precision == "no"


# ---- the loop


def test_looking_does_not_change_the_run(tmp_path, unbroken):
    seen = []

    def look(t):
        seen.append(t.step)
        torch.rand(3)
        noise = torch.randn(2, 4, generator=t.rng)
        return t.averaged["G"](noise)[:, :, None].expand(2, 3, 2, 8, 8).clamp(-1, 1)

    t = toy(out=tmp_path)
    t.fit(step, 20, on_log=look, progress=False)
    assert seen == [7, 14, 20]
    assert len(list((tmp_path / "samples").glob("*.png"))) == 3
    assert list((tmp_path / "tensorboard").iterdir())
    assert_equal(everything(unbroken), everything(t))


def test_a_watch_sees_every_log_and_its_words_are_printed(capsys):
    class Watching:
        def measure(self, trainer):
            torch.rand(2, generator=trainer.rng)
            return {"spread": trainer.averaged["G"][0].weight.std()}

        def verdict(self, step, seen):
            assert math.isfinite(seen["spread"]) and "d" in seen
            return f"step {step}: it is dead" if step == 14 else None

    t, alone = toy(), toy()
    t.fit(step, 20, progress=False, watch=Watching())
    alone.fit(step, 20, progress=False)
    assert capsys.readouterr().out == "step 14: it is dead\n"
    assert all("spread" in entry for entry in t.history)
    assert_equal(everything(t), everything(alone))


def test_fit_leaves_the_callers_random_state_alone():
    t = toy()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    t.fit(step, 3, progress=False)
    assert torch.equal(torch.rand(3), expected)


def test_average_follows_the_formula(unbroken):
    t, by_hand = toy(), {}

    def watched(t):
        if not by_hand:
            by_hand.update({k: v.clone() for k, v in t.networks["G"].named_parameters()})
        losses = step(t)
        keep = min(0.9, (1 + t.step) / (10 + t.step))
        for k, v in t.networks["G"].named_parameters():
            by_hand[k] = keep * by_hand[k] + (1 - keep) * v.detach()
        return losses

    t.fit(watched, 20, progress=False)
    for k, v in t.averaged["G"].named_parameters():
        assert torch.allclose(v, by_hand[k], atol=1e-6), k
    assert torch.equal(t.averaged["G"][1].running_mean, t.networks["G"][1].running_mean)
    assert not t.averaged["G"].training
    assert not any(p.requires_grad for p in t.averaged["G"].parameters())
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


def test_means_are_those_of_all_steps_since_the_last_log():
    t, losses = toy(log_every=5), []

    def kept(t):
        seen = step(t)
        losses.append(seen["d"].item())
        return {**seen, "half": 0.5}  # plain numbers are fine, too

    t.fit(kept, 10, progress=False)
    assert [entry["step"] for entry in t.history] == [5, 10]
    for entry, part in zip(t.history, (losses[:5], losses[5:])):
        assert abs(entry["d"] - np.mean(part)) < 1e-6 and entry["half"] == 0.5
    means = Means(torch.device("cpu"))
    means.add({"x": math.nan})
    assert means.take()["x"].isnan() and means.take() == {}
    for value in (1.0, math.nan, torch.tensor(3.0), -math.inf):
        means.add({"x": value})
    assert means.take() == {"x": 2.0}


def test_bad_settings_say_what_is_accepted():
    with pytest.raises(ValueError, match="'fp8' is unknown; use 'auto', 'no', 'bf16' or"):
        toy(precision="fp8")
    with pytest.raises(ValueError, match="networks are"):
        toy(ema={"generator": 0.9})
    with pytest.raises(ValueError, match="'warp' is no device"):
        Trainer({}, {}, device="warp")


def test_the_device_is_the_one_that_the_environment_names(monkeypatch):
    monkeypatch.setenv("VIDCOURSE_DEVICE", "cpu")
    assert toy(device=None).device == torch.device("cpu")
    monkeypatch.setenv("VIDCOURSE_DEVICE", "warp")
    with pytest.raises(ValueError, match="'warp' is no device"):
        toy(device=None)
    assert toy(device="cpu").device == torch.device("cpu"), "what is named in code wins"


def test_progress_is_silent_where_nobody_looks(capfd):
    t = toy()
    t.fit(step, 5)
    assert capfd.readouterr() == ("", "")


# ---- several processes

LAUNCHED = """
    t = toy(
        weights=int(os.environ.get("RANK", 0)) if sys.argv[2] == "odd" else 0,
        norm=False,
        drop=0.0,
        out=sys.argv[1] + "/run",
        device=None if sys.argv[2] == "auto" else "cpu",
    )
    rank, n = t.processes.process_index, t.processes.num_processes
    def poisoned(t):
        return step(t, poison=float("nan") if t.step == 3 and rank == n - 1 else None)
    t.fit(poisoned, 12, progress=False)
    facts = dict(skipped=t.skipped, n=n, history=t.history)
    save_weights(f"{sys.argv[1]}/rank{rank}", everything(t), **facts)
    assert len(t.shard(torch.zeros(8, 1))) == 4
    try: t.shard(torch.zeros(7, 1)); print("shared 7")
    except ValueError as error: print(error)
"""


def compare(tmp_path, tolerance=2e-5):
    t = toy(norm=False, drop=0.0)
    t.fit(lambda t: step(t, poison=math.nan if t.step == 3 else None), 12, progress=False)
    ranks = [load_weights(tmp_path / f"rank{i}") for i in range(2)]
    assert all(facts["n"] == 2 and facts["skipped"] == 1 for _, facts in ranks)
    assert t.skipped == 1
    weights = [
        {k: v for k, v in tensors.items() if not k.startswith("number/means")}
        for tensors, _ in ranks
    ]
    assert_equal(*weights)
    for k, v in everything(t).items():
        there = ranks[0][0][k]
        assert torch.allclose(v.float(), there.float(), rtol=1e-3, atol=tolerance), k
    for a, b in zip(t.history, ranks[0][1]["history"], strict=True):
        if "d" in a and a["step"] > 7:
            assert abs(a["d"] - b["d"]) < 1e-4 and abs(a["g"] - b["g"]) < 1e-4
    resumed = toy(weights=5, norm=False, drop=0.0, out=tmp_path / "run")
    resumed.load()
    assert_equal(everything(resumed), ranks[0][0])


def pair(tmp_path, body, *arguments):
    "Two processes with torch's own variables, as torchrun sets them."
    (tmp_path / "script.py").write_text(TOY + textwrap.dedent(body))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    env = {**ENV, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    run = [sys.executable, str(tmp_path / "script.py"), str(tmp_path), *arguments]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return [
        subprocess.Popen(run, env={**env, "RANK": str(i), "LOCAL_RANK": str(i)}, **pipes)
        for i in range(2)
    ]


def test_two_processes_equal_one(tmp_path):
    "The second process starts from other weights and gets the first's."
    for process in pair(tmp_path, LAUNCHED, "odd"):
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        assert "a batch of 7 can't be shared equally by 2 processes" in out
    compare(tmp_path)


def test_a_signal_to_one_process_stops_both_after_the_same_step(tmp_path):
    body = """
    from vidcourse.checkpoints import Interrupted
    t = toy(norm=False, out=sys.argv[1] + "/run", save_every=10**9)
    def slow(t):
        if t.step == 5: print("five", flush=True)
        time.sleep(0.02)
        return step(t)
    try: t.fit(slow, 10**6, progress=False)
    except Interrupted as error: print("stopped", t.step, error.step)
    """
    both = pair(tmp_path, body)
    assert both[1].stdout.readline() == "five\n"
    both[1].send_signal(signal.SIGTERM)  # not the one that writes the checkpoint
    said = [process.communicate(timeout=120) for process in both]
    steps = [out.split()[-2] for out, _ in said]
    assert steps[0] == steps[1], said
    t = toy(norm=False, out=tmp_path / "run")
    t.load()
    assert t.step == int(steps[0]) > 5 and t.step % 10 == 0


def test_torchrun_without_a_word_about_devices(tmp_path):
    "On a machine without GPU the processes must find each other too, not train alone."
    (tmp_path / "script.py").write_text(TOY + textwrap.dedent(LAUNCHED))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc_per_node", "2", tmp_path / "script.py", tmp_path, "auto"],
        env={**ENV, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    compare(tmp_path)
