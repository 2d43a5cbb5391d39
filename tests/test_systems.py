"What training leaves: files that lie, a watch that notices death, and runs that end in systems."

import importlib
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as as_safetensors
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import vidcourse
from vidcourse.checkpoints import FolderInUse, load_weights, save_weights
from vidcourse.data import from_array
from vidcourse.systems import (
    System,
    Watch,
    adam,
    check_size,
    count,
    crossed,
    energy_distance,
    in_words,
    seeded,
    small,
    train_system,
    trainer_for,
)


@dataclass(frozen=True)
class Config:
    size: int = 8
    length: int = 4
    width: int = 6
    kernel: tuple[int, int] = (1, 1)
    betas: tuple[float, float] = (0.5, 0.9)
    rate: float = 1e-2
    precision: str = "no"
    ema: float = 0.5
    decay: bool = True


class Generator(nn.Module):
    "Codes (n, 2) to clips of one colour each, which need not be the same in all frames."

    def __init__(self, config):
        super().__init__()
        self.config, hidden = config, config.width
        self.net = nn.Sequential(
            spectral_norm(nn.Linear(2, hidden)),
            nn.Tanh(),
            nn.Linear(hidden, 3 * config.length),
        )

    def draw(self, n, length=None, rng=None):
        return torch.randn(n, 2, generator=rng)

    def forward(self, codes):
        made = self.net(codes).tanh().view(len(codes), 3, -1, 1, 1)
        return made.expand(-1, -1, -1, self.config.size, self.config.size)


class Toys(System):
    name, Config, Generator = "toys", Config, Generator


def real_clips(n=64, length=4):
    "Clips of one colour each, of two colours in all."
    torch.manual_seed(3)
    colours = (
        torch.randint(2, (n, 1, 1, 1, 1)) * torch.tensor([0.9, -0.5, 0.3])[:, None, None, None]
    )
    return colours.expand(n, 3, length, 8, 8) * 1.0


def trainer(config=None, **options):
    config = config or Config()
    net = seeded(Generator, config, seed=0)
    optimisers = {"generator": adam(net.parameters(), config.rate, config)}
    return trainer_for(config, {"generator": net}, optimisers, device="cpu", **options)


def towards(target):
    "A step function that makes clips of the right distances from their targets."

    def step(t):
        codes = torch.randn(16, 2, generator=t.rng)
        made = t.networks["generator"](codes)
        loss = (made - target(codes)).square().mean()
        t.update(loss, "generator")
        return {"loss": loss}

    return step


def two_colours(codes):
    which = (codes[:, :1] > 0).float().view(-1, 1, 1, 1, 1)
    return which * torch.tensor([0.9, -0.5, 0.3]).view(1, 3, 1, 1, 1)


def black(codes):
    return torch.full((len(codes), 3, 1, 1, 1), -1.0)


# ---- files


def lying(path, change=None, tensors=None, **facts):
    "A file of toys, something about it changed."
    system = Toys(Config())
    stated = dict(system="toys", config={"size": 8, "length": 4, "width": 6})
    stated["config"] |= change or {}
    save_weights(path, tensors or system.networks["generator"].state_dict(), **stated | facts)
    return path


def test_a_system_comes_back_with_its_types_and_facts(tmp_path):
    system = seeded(Toys, Config(kernel=(2, 3), rate=1.0), seed=4)
    system.save(tmp_path / "w.safetensors", author="me")
    back = Toys.load(tmp_path / "w.safetensors")
    assert back.config == system.config and back.facts == {"author": "me"}
    a, b = (s.sample(3, rng=torch.Generator().manual_seed(1)) for s in (system, back))
    assert torch.equal(a, b)
    lying(tmp_path / "less.safetensors")
    assert Toys.load(tmp_path / "less.safetensors").config == Config(), "defaults fill in"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"size": "8"}, "size: '8' is no int"),
        ({"size": 8.0}, "size"),
        ({"size": True}, "size"),
        ({"size": None}, "size"),
        ({"size": [8]}, "size"),
        ({"rate": math.inf}, "rate"),
        ({"kernel": 3}, "kernel"),
        ({"kernel": [1, 2, 3]}, "kernel"),
        ({"decay": 1}, "decay"),
        ({"colour": 1}, "'colour' is no field"),
        ({"width": 7}, "has shape"),
        ({"width": -6}, "toys"),
        ({"width": 0}, "has shape"),
        ({"width": 10**9}, "has shape"),
        ({"width": 2**60}, "toys"),
        ({"width": 10**30}, "width: a number of 31 digits is too large"),
        ({"length": 2**22}, "its length is 4,194,304; at most 4,096 is read"),
        ({"size": 2**12}, "its size is 4,096; at most 2,048 is read"),
        ({"critic_width": 8}, "names of an earlier version .critic_width."),
    ],
)
def test_configurations_that_lie_get_one_line_and_no_memory(tmp_path, change, words):
    path, began = lying(tmp_path / "w.safetensors", change), time.monotonic()
    with pytest.raises(ValueError, match=words) as caught:
        Toys.load(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 400 + len(str(path))
    assert "\n" not in str(caught.value) and time.monotonic() - began < 20


@pytest.mark.parametrize("config", [None, 5, [], "x", [["size", 8]], {"size": {"a": 1}}])
def test_a_configuration_of_another_type_is_refused(tmp_path, config):
    with pytest.raises(ValueError, match="does not fit this version's toys"):
        Toys.load(lying(tmp_path / "w.safetensors", config=config))


def test_other_tensors_names_and_systems_are_refused(tmp_path):
    net = Toys(Config()).networks["generator"]
    good, path = net.state_dict(), tmp_path / "w.safetensors"
    for tensors, words in (
        ({k: v for k, v in good.items() if "bias" not in k}, "has shape none in the file"),
        ({**good, "more": torch.ones(2)}, "asks for no such tensor"),
        ({f"painter.{k}": v for k, v in good.items()}, "names of an earlier version"),
        ({**good, "net.2.weight": good["net.2.weight"].T}, "has shape"),
        ({**good, "net.2.bias": good["net.2.bias"] * math.nan}, "bias holds .* not finite"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            Toys.load(lying(path, tensors=tensors))
        assert str(path) in str(caught.value)
    for system in ("others", None, 5, "x" * 10_000, ["toys"]):
        with pytest.raises(ValueError, match="holds weights of .* not of 'toys'") as caught:
            Toys.load(lying(path, system=system))
        assert len(str(caught.value)) < 300 + len(str(path))


def test_brackets_without_end_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    text = '{"format": 1, "system": "toys", "config": ' + "[" * 100_000 + "]" * 100_000 + "}"
    path.write_bytes(as_safetensors({"w": torch.ones(1)}, {"vidcourse": text}))
    with pytest.raises(ValueError, match="not written by vidcourse, or is damaged"):
        Toys.load(path)


SHIPPED = sorted(
    (Path(vidcourse.__file__).parent / "weights").glob("*_shapes_seed0.safetensors")
)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_weights_that_ship_load_as_they_were_saved(path, tmp_path):
    tensors, facts = load_weights(path)
    system = importlib.import_module(f"vidcourse.{facts['system']}").SYSTEM
    loaded = system.load(path)
    for name, t in loaded.networks["generator"].state_dict().items():
        assert torch.equal(t, tensors[name].to(t.dtype)), name
    loaded.save(tmp_path / "again.safetensors", half=True)
    again, new = load_weights(tmp_path / "again.safetensors")
    assert again.keys() == tensors.keys() and new["config"] == json.loads(
        json.dumps(facts["config"])
    )


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_loading_builds_no_discriminator(path, monkeypatch):
    name = path.stem.split("_")[0]
    system = importlib.import_module(f"vidcourse.{name}").SYSTEM
    for module in [m for n, m in sys.modules.items() if n.startswith(f"vidcourse.{name}")]:
        for kind in [k for k in vars(module) if k.endswith("Discriminator")]:
            monkeypatch.setattr(getattr(module, kind), "__init__", None)
    system.load(path)


# ---- small things


def test_adam_takes_what_a_configuration_has():
    with_all, without = adam([nn.Parameter(torch.ones(1))], 0.1, Config()), None
    assert with_all.defaults["betas"] == (0.5, 0.9) and with_all.defaults["fused"]
    without = adam([nn.Parameter(torch.ones(1))], 0.1)
    assert without.defaults["betas"] == (0.9, 0.999) and without.defaults["weight_decay"] == 0


def test_seeded_makes_the_same_weights_and_nobody_else_notices():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    a, b = seeded(nn.Linear, 3, 4, seed=1), seeded(nn.Linear, 3, 4, seed=1)
    assert torch.equal(torch.rand(2), expected) and torch.equal(a.weight, b.weight)
    assert not torch.equal(a.weight, seeded(nn.Linear, 3, 4, seed=2).weight)


def test_a_trainer_as_the_configuration_wants_it():
    t = trainer(Config(ema=0.25, decay=False, precision="bf16"), seed=6)
    assert (t.ema, t.schedule, t.precision, t.seed) == ({"generator": 0.25}, None, "bf16", 6)
    assert trainer().schedule(3, 4) == 0.5


def test_count_and_crossed_and_size():
    net = nn.Linear(3, 4)
    net.bias.requires_grad_(False)
    assert count(net) == 12
    rows, columns = crossed(torch.arange(2), torch.arange(3))
    assert rows.tolist() == [0, 0, 0, 1, 1, 1] and columns.tolist() == [0, 1, 2] * 2

    class Clips:
        size = (8, 9)

    with pytest.raises(ValueError, match="8 x 9 px, this configuration makes 8 px; load them"):
        check_size(Clips, Config())


# ---- the watch


def test_energy_distance_against_sums_by_hand():
    torch.manual_seed(0)
    a, b = torch.randn(5, 3), torch.randn(7, 3) + 1

    def mean(x, y, same):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if not same or i != j]
        return sum(float((x[i] - y[j]).norm()) for i, j in pairs) / len(pairs)

    by_hand = 2 * mean(a, b, False) - mean(a, a, True) - mean(b, b, True)
    assert abs(energy_distance(a, b) - by_hand) < 1e-5
    many = [energy_distance(torch.randn(20, 4), torch.randn(20, 4)) for _ in range(300)]
    assert abs(torch.stack(many).mean()) < 0.01, "unbiased: 0 on average for equals"
    alone = energy_distance(a[:1], b)
    assert alone.isfinite()


def test_small_is_the_mean_of_what_lies_between():
    clips = torch.arange(2 * 3 * 16 * 16 * 16.0).view(2, 3, 16, 16, 16)
    vectors = small(clips).view(2, 3, 8, 8, 8)
    assert torch.allclose(vectors[0, 0, 0, 0, 0], clips[0, 0, :2, :2, :2].mean())
    assert small(clips[:, :, :1]).shape == (2, 3 * 64)


def test_a_watch_orders_generators():
    real = real_clips()
    watch = Watch(Toys, Config(), real)
    assert abs(watch.floor) < 0.2 * watch.baseline

    def distance(clips):
        return watch.of(clips)["distance"].item()

    assert distance(real_clips()[::3]) < 0.2 * watch.baseline
    assert abs(distance(real.mean(0, keepdim=True).expand_as(real)) - watch.baseline) < 0.1
    assert distance(torch.full_like(real, -1.0)) > watch.baseline
    assert distance(real[:1].expand_as(real)) > 0.5 * watch.baseline, "one clip for ever"
    seen = watch.of(torch.full_like(real, -1.0))
    assert seen["spread"] == 0 and seen["saturated"] == 1
    assert abs(watch.of(real)["spread"] - 1) < 1e-5


def verdicts(watch, spreads, saturated=0.0):
    seen = [
        watch.verdict(i, dict(spread=s, saturated=saturated)) for i, s in enumerate(spreads)
    ]
    return [i for i, text in enumerate(seen) if text]


def test_a_verdict_needs_three_looks_and_comes_once():
    def watch(real=None):
        return Watch(Toys, Config(), real_clips() if real is None else real)

    assert verdicts(watch(), [0.0] * 9) == [2]
    assert verdicts(watch(), [1.0, 0.5, 0.1, 0.019, 0.01, 0.0, 0.0]) == [5]
    assert verdicts(watch(), [0.0, 0.0, 0.5, 0.0, 0.0, 0.5]) == []
    assert verdicts(watch(), [0.001, 0.005, 0.009, 0.013, 0.017, 0.5]) == [], "coming to life"
    assert verdicts(watch(), [1.0] * 5, saturated=1.0) == [2], "noise of black and white"
    mostly_black = torch.full((8, 3, 4, 8, 8), -1.0)
    mostly_black[:, :, :, 0, 0] = torch.rand(8, 1, 1)
    assert verdicts(watch(mostly_black), [1.0] * 5, saturated=0.985) == [], "as the data are"
    assert verdicts(watch(mostly_black), [1.0] * 5, saturated=1.0) == [2]


def test_one_real_clip_is_no_death():
    "Who trains on a single clip wants clips that are alike."
    one = real_clips(1)
    watch = Watch(Toys, Config(), one)
    assert watch.baseline == 0 and watch.floor == 0
    seen = {k: v.item() for k, v in watch.of(one.expand(8, -1, -1, -1, -1)).items()}
    assert seen["spread"] == 0 and math.isfinite(seen["distance"])
    assert verdicts(watch, [0.0] * 6) == []
    assert "nothing" not in in_words(seen | {"baseline": 0.0, "floor": 0.0})


def test_a_run_that_dies_says_so_once_and_learning_runs_say_nothing(capsys):
    for target, says in ((two_colours, 0), (black, 1)):
        t = trainer(log_every=20)
        config, real = Config(), real_clips()
        system = train_system(Toys, config, t, towards(target), 300, clips=real, progress=False)
        said = capsys.readouterr().out
        assert said.count("looks dead") == says and said.count("\n") == says
        reached = system.facts["reached"]
        assert (reached["distance"] < reached["baseline"]) == (says == 0), reached
        assert all("distance" in entry for entry in t.history)
    assert "learned nothing" in in_words(reached) and "spread" in said


def test_watching_does_not_change_the_run(tmp_path):
    runs = {}
    for clips in (None, real_clips()):
        t = trainer(log_every=5)
        train_system(Toys, Config(), t, towards(two_colours), 20, clips=clips, progress=False)
        runs[clips is None] = t
    a, b = (r.networks["generator"].state_dict() for r in runs.values())
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert torch.equal(runs[True].rng.get_state(), runs[False].rng.get_state())


def test_a_watch_always_looks_at_the_same_codes():
    t, watch = trainer(), Watch(Toys, Config(), real_clips())
    first = watch.measure(t)
    torch.rand(5, generator=t.rng)
    assert watch.measure(t) == first


def test_a_look_with_a_watch_is_still_one_message(monkeypatch):
    looks, real = [], torch.Tensor.tolist

    def tolist(tensor):
        looks.append(tensor.shape)
        return real(tensor)

    t, watch = trainer(log_every=5), Watch(Toys, Config(), real_clips())
    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    t.fit(towards(two_colours), 20, watch=watch, progress=False)
    assert looks == [(6,)] * 4  # a loss, three numbers of the watch, two counts


def test_a_watch_takes_clips_of_the_data_module():
    frames = (real_clips(length=9).permute(0, 2, 3, 4, 1) * 127 + 128).byte().numpy()

    @dataclass(frozen=True)
    class Stepped(Config):
        frame_step: int = 2

    watch = Watch(Toys, Stepped(), from_array(frames), pool=64)
    assert watch.vectors.shape == (64, 3 * 4 * 64) and watch.baseline > 0


# ---- from a run to a system


def test_a_run_ends_in_weights_and_facts(tmp_path, capsys):
    def score(system):
        return {"psnr": 20.0 + system.config.size}

    t = trainer(out=tmp_path, seed=3)
    system = train_system(
        Toys, Config(), t, towards(two_colours), 40, clips=real_clips(), score=score
    )
    said = capsys.readouterr().out
    assert said.startswith("energy distance to the real clips") and said.count("\n") == 1
    back = Toys.load(tmp_path / "weights.safetensors")
    assert back.facts == json.loads(json.dumps(system.facts))
    assert back.facts["reached"]["psnr"] == 28 and back.facts["precision"] == "no"
    assert (back.facts["steps"], back.facts["seed"]) == (40, 3)
    averaged = t.averaged["generator"].state_dict()
    for name, v in back.networks["generator"].state_dict().items():
        assert torch.equal(v, averaged[name])
    assert "reached" not in train_system(Toys, Config(), trainer(), towards(black), 1).facts


def test_the_folder_is_held_until_the_weights_are_there(tmp_path):
    def score(system):
        with pytest.raises(FolderInUse):
            train_system(Toys, Config(), trainer(out=tmp_path), towards(black), 1)
        return {}

    t = trainer(out=tmp_path)
    train_system(
        Toys, Config(), t, towards(black), 2, clips=real_clips(), score=score, progress=False
    )
    assert Toys.load(tmp_path / "weights.safetensors").facts["steps"] == 2


def test_a_run_begins_with_a_trained_generator_of_its_own_sizes():
    first = train_system(Toys, Config(), trainer(), towards(two_colours), 50, progress=False)
    t = trainer()
    train_system(Toys, Config(), t, towards(two_colours), 0, start=first, progress=False)
    for part in (t.networks, t.averaged):
        for a, b in zip(
            part["generator"].parameters(), first.networks["generator"].parameters()
        ):
            assert torch.equal(a, b)
    wide = trainer(Config(width=9))
    with pytest.raises(ValueError, match="of other sizes"):
        train_system(Toys, Config(), wide, towards(black), 1, start=first)
