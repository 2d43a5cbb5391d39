"""Every system on a device that is not the CPU: nothing is left on the wrong side.

Where there is no GPU, the device is pretend.py's; where there is one, the same runs there as well
(`-k cuda`).
"""

import copy
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pretend
import pytest
import torch
from torch import nn

from vidcourse import cli
from vidcourse.data import load
from vidcourse.perceptual import save_classifier, train_classifier

SYSTEMS = ["mocogan", "v3gan", "navs", "layered", "digan"]

here = pytest.mark.skipif(not pretend.available(), reason="torch has no devices in Python")
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(
    params=[pytest.param("pretend", marks=here), pytest.param("cuda", marks=cuda)],
)
def device(request):
    "The name of a device that is not the CPU."
    if request.param == "pretend":
        pretend.install()
    return request.param


# The device itself ----------------------------------------------------------------------------


@pytest.fixture
def there():
    "A tensor (3, 4) on the pretend device, of the numbers from 0."
    if not pretend.available():
        pytest.skip("torch has no devices in Python")
    pretend.install()
    return torch.arange(12.0).view(3, 4).to("pretend")


def test_results_are_those_of_the_cpu(there):
    x = torch.arange(12.0).view(3, 4)
    assert there.device == torch.device("pretend", 0)
    made = (there @ there.T).softmax(1).relu_().unsqueeze(0)
    assert made.device.type == "pretend"
    assert torch.equal(made.cpu(), (x @ x.T).softmax(1)[None])
    for name in ("zeros", "ones", "rand", "randn"):
        torch.manual_seed(0)
        mine = getattr(torch, name)(3, device="pretend")
        torch.manual_seed(0)
        assert torch.equal(mine.cpu(), getattr(torch, name)(3))
    assert torch.tensor([1, 2], device="pretend").tolist() == [1, 2]
    assert torch.arange(3, device="pretend").device.type == "pretend"


LATE = """
import pretend, torch
torch.ones(1, requires_grad=True).sum().backward()
try:
    pretend.install()
except RuntimeError as error:
    print(error)
"""


@here
def test_a_device_that_comes_too_late_says_so():
    folder = str(Path(pretend.__file__).parent)
    result = subprocess.run(
        [sys.executable, "-c", LATE], cwd=folder, capture_output=True, text=True
    )
    assert result.stdout.strip() == "install the pretend device before the first backward", (
        result
    )


def test_the_two_sides_do_not_mix(there):
    stranger, rng = torch.ones(3, 4), torch.Generator()
    mistakes = [
        lambda: there + stranger,
        lambda: stranger.add_(there),
        lambda: torch.cat([there, stranger]),
        lambda: torch.where(there > 0, there, stranger),
        lambda: torch.stack([there.sum(), torch.tensor(1.0)]),
        lambda: stranger[torch.zeros(1, dtype=torch.long, device="pretend")],
        lambda: there.index_put_((torch.tensor([0]),), torch.ones(1, 4)),
        lambda: torch.tensor(0.0).add_(there.sum()),  # a number of the CPU is written
        lambda: torch.randn(3, device="pretend", generator=rng),
        lambda: there.normal_(generator=rng),
        lambda: nn.Linear(4, 2)(there),
    ]
    for mistake in mistakes:
        with pytest.raises(RuntimeError, match="Expected a"):
            mistake()
    with pytest.raises(TypeError, match="cpu"):
        there.numpy()


def test_what_cuda_allows(there):
    assert (there + torch.tensor(1.0)).device.type == "pretend"
    assert there[torch.tensor([0, 2])].tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    there[torch.tensor([0])] = 0.0
    there.copy_(torch.ones(3, 4))
    assert float(there.sum()) == 12


def test_a_module_moves_in_place():
    pretend.install()
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before, adam = list(net.parameters()), torch.optim.Adam(net.parameters())
    net.to("pretend")
    assert all(a is b for a, b in zip(before, net.parameters()))
    net(torch.ones(2, 3, 4, 4, device="pretend")).square().sum().backward()
    adam.step()
    twin = copy.deepcopy(net)
    twin.load_state_dict({k: v.cpu() for k, v in net.state_dict().items()})
    assert {v.device.type for v in twin.state_dict().values()} == {"pretend"}
    assert {v.device.type for v in twin.cpu().state_dict().values()} == {"cpu"}


def test_a_recurrent_network_has_the_same_gradients():
    pretend.install()
    net, inputs = nn.GRU(3, 5), torch.randn(4, 2, 3)

    def run(inputs):
        inputs = inputs.detach().requires_grad_()
        made = net(inputs)[0]
        return [made, *torch.autograd.grad(made.square().sum(), [inputs, *net.parameters()])]

    expected = run(inputs)
    net.to("pretend")
    for a, b in zip(run(inputs.to("pretend")), expected):
        torch.testing.assert_close(a.cpu(), b)
    with torch.no_grad():
        torch.testing.assert_close(net(inputs.to("pretend"))[0].cpu(), expected[0])


def test_reads_are_counted_with_their_place(there):
    with pretend.count_reads() as reads:
        total = there.sum() + there[torch.tensor([0])].mean() * 2
        there.copy_(torch.zeros(3, 4))
    assert not reads
    looks = [
        lambda: float(total),
        lambda: bool(total > 0),
        lambda: there.tolist(),
        lambda: there.cpu(),
        lambda: there[there > 0],
        lambda: torch.zeros(3, 4).copy_(there),
        lambda: there.nonzero(),
    ]
    for look in looks:
        with pretend.count_reads() as reads:
            look()
        assert sum(reads.values()) == 1
        assert all(__file__ in place for place in reads)


# Every system ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips():
    "Drawn clips by the size and length that a configuration wants."
    known = {}

    def find(config):
        key = config.size, config.length
        if key not in known:
            known[key] = load("shapes", size=config.size, length=config.length, n=48)
        return known[key]

    return find


@pytest.fixture(params=SYSTEMS)
def package(request):
    "The package of each system."
    return importlib.import_module(f"vidcourse.{request.param}")


def losses(system) -> dict[str, float]:
    "The losses of the last line of a training's history."
    line = system.facts["history"][-1]
    return {name: value for name, value in line.items() if name not in ("step", "seconds")}


def sample(system) -> torch.Tensor:
    "Always the same clips of a system."
    return system.sample(2, rng=torch.Generator().manual_seed(1))


def alike(mine: dict, other: dict, device: str) -> None:
    """Assert that results of a device equal those of the CPU, on a GPU as well as it computes.

    Adam makes the rounding of a gradient that is nearly 0 into a step, so not the parameters are
    compared but what comes out; clips that were stored in 8 bits may differ by 1 of 255.
    """
    tolerance = dict(rtol=1e-3, atol=5e-3)
    if device == "cuda":
        tolerance = dict(rtol=0.02, atol=0.03)
    assert mine.keys() == other.keys()
    for name in mine:
        a, b = torch.as_tensor(mine[name]).cpu(), torch.as_tensor(other[name]).cpu()
        torch.testing.assert_close(a, b, msg=f"{name} differs on {device}", **tolerance)


def test_training_on_a_device_equals_the_cpu(package, clips, device, tmp_path):
    "Trained, stopped, gone on with, looked at on the way, and loaded."
    config = package.CONFIGS["smoke"]
    data, found, seen = clips(config), {}, []

    def look(trainer):
        seen.append(trainer.step)
        net = trainer.averaged["generator"]
        with torch.no_grad():
            codes = net.draw(2, rng=trainer.rng).to(trainer.device)
            made = net(codes)
        return getattr(made, "video", made).float().cpu()

    for where in ("cpu", device):
        options = dict(seed=3, device=where, out=tmp_path / where, progress=False)
        package.train(data, config, steps=2, **options)
        found[where] = package.train(
            data, config, steps=5, resume=True, on_log=look, log_every=3, **options
        )
    assert seen == [3, 5, 3, 5]
    alike(losses(found[device]), losses(found["cpu"]), device)
    stored = package.SYSTEM.load(tmp_path / device / "weights.safetensors")
    clips = {"trained": sample(found[device]), "stored": sample(stored)}
    alike(clips, dict.fromkeys(clips, sample(found["cpu"])), device)


def test_training_on_clips_that_lie_on_the_device(package, clips, device):
    config = package.CONFIGS["smoke"]
    found = {
        where: package.train(
            clips(config).to(where), config, steps=2, device=where, progress=False
        )
        for where in ("cpu", device)
    }
    alike(losses(found[device]), losses(found["cpu"]), device)


def mocogan_results(system, rng) -> dict:
    from vidcourse.mocogan import code_grid

    net = system.networks["generator"]
    codes = code_grid(net.draw(2, rng=rng), net.draw(3, rng=rng))
    return {"grid": system.decode(codes), "kind": system.sample(2, 7, rng, category=1)}


def v3gan_results(system, rng) -> dict:
    layers = system.sample_layers(3, rng=rng)
    return {
        name: getattr(layers, name) for name in ("background", "foreground", "mask", "video")
    }


def navs_results(system, rng) -> dict:
    made = system.reconstruct(torch.arange(3))
    codes = system.fit(made, steps=3)
    return {
        "reconstruct": made,
        "exchange": system.exchange(torch.tensor([0, 1]), torch.tensor([1, 0])),
        "fit": codes.static,
        "interpolate": system.interpolate(codes, factor=2),
    }


def layered_results(system, rng) -> dict:
    codes = system.networks["generator"].draw(3, rng=rng)
    turned = torch.tensor([[[[0.9, -0.1, 1.0], [0.1, 0.9, 0.0]]]]).expand(3, 2, 2, 3)
    return {
        "masks": system.masks(codes.first),
        "led": system.rollout(codes.first, codes.controls),
        "released": system.rollout(codes.first, codes.controls, carried=False),
        "turned": system.rollout(codes.first, turned),
    }


def digan_results(system, rng) -> dict:
    from vidcourse.systems import crossed

    net = system.networks["generator"]
    codes = net.draw(2, 5, rng=rng, times=[-1.0, 0.0, 0.4, 4.0])
    content, motion = crossed(codes.content, codes.motion)
    both = type(codes)(content, motion, codes.times[:1].expand(4, -1))
    return {
        "times": system.decode(codes),
        "crossed": system.decode(both),
        "zoom": system.sample(2, rng=rng, size=32, window=(-2.0, -2.0, 2.0, 2.0)),
    }


RESULTS = {
    "mocogan": mocogan_results,
    "v3gan": v3gan_results,
    "navs": navs_results,
    "layered": layered_results,
    "digan": digan_results,
}


@pytest.fixture(scope="module")
def trained(clips):
    "A briefly trained system by its name, each time afresh."
    known = {}

    def find(name):
        if name not in known:
            package = importlib.import_module(f"vidcourse.{name}")
            config = package.CONFIGS["smoke"]
            known[name] = package.train(clips(config), config, steps=2, progress=False)
        return copy.deepcopy(known[name])

    return find


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_on_a_device_gives_the_clips_of_the_cpu(name, trained, device):
    found = {}
    for where in ("cpu", device):
        system = trained(name)
        system.networks["generator"].to(where)
        rng = torch.Generator().manual_seed(1)
        found[where] = {"sample": sample(system), **RESULTS[name](system, rng)}
    alike(found[device], found["cpu"], device)


@pytest.fixture(scope="module")
def classifier(clips):
    "A hardly trained classifier of the small clips."
    data = clips(importlib.import_module("vidcourse.mocogan").CONFIGS["smoke"])
    size, length = data.size[0], int(data.lengths[0])
    return train_classifier(data, steps=2, size=size, length=length, width=4)[0]


def test_a_classifier_learns_alike_on_a_device(clips, device):
    data = clips(importlib.import_module("vidcourse.mocogan").CONFIGS["smoke"])
    found = {}
    for where in ("cpu", device):
        options = dict(steps=3, size=data.size[0], length=int(data.lengths[0]), width=4)
        network, record = train_classifier(data, data, device=where, **options)
        accuracy = {"accuracy": record["held_out_accuracy"]}
        found[where] = {**network.state_dict(), **accuracy}
    alike(found[device], found["cpu"], device)


@pytest.mark.parametrize("name", SYSTEMS)
def test_measures_on_a_device_equal_those_on_the_cpu(name, trained, clips, classifier, device):
    found = {}
    for where in ("cpu", device):
        system, network = trained(name), copy.deepcopy(classifier).to(where)
        system.networks["generator"].to(where)
        found[where] = cli.evaluation(system, clips(system.config), network, colours=True, n=8)
    alike(found[device], found["cpu"], device)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_command_line_on_a_device(name, classifier, device, tmp_path, monkeypatch, capsys):
    "VIDCOURSE_DEVICE names it."
    weights = str(save_classifier(tmp_path / "classifier.safetensors", classifier))
    found = {}
    for where in ("cpu", device):
        monkeypatch.setenv("VIDCOURSE_DEVICE", where)
        run = str(tmp_path / where)
        for line in (
            f"train {name} --data shapes --profile smoke --steps 2 --out {run}",
            f"sample {run} --out {run}/clips.npz --n 3",
            f"evaluate {run} --data shapes --n 16 --classifier {weights}",
        ):
            assert cli.main(line.split()) == 0, capsys.readouterr().err
        found[where] = json.loads(Path(run, "evaluation.json").read_text())["scores"]
        with np.load(f"{run}/clips.npz") as file:
            found[where]["clips"] = file["frames"] / 255
    alike(found[device], found["cpu"], device)


# The host looks when it logs ------------------------------------------------------------------


@here
def test_a_training_reads_once_per_log(package, clips):
    pretend.install()
    config = package.CONFIGS["smoke"]
    data, places = clips(config), {}
    for steps in (4, 24):
        with pretend.count_reads() as places[steps]:
            package.train(
                data, config, steps=steps, device="pretend", log_every=4, progress=False
            )
    more = places[24] - places[4]
    assert sum(more.values()) <= 20 / 4, f"read too often: {dict(more)}"


# A mistake is found ---------------------------------------------------------------------------


def test_codes_left_on_the_cpu_are_found_in_a_system(clips, device, monkeypatch):
    from vidcourse import mocogan

    config = mocogan.CONFIGS["smoke"]
    monkeypatch.setattr(mocogan.Codes, "to", lambda self, device: self)
    mocogan.train(clips(config), config, steps=1, device="cpu", progress=False)
    with pytest.raises(RuntimeError, match="same device"):
        mocogan.train(clips(config), config, steps=1, device=device, progress=False)


CELLS = """
profile, seed = "smoke", 0
---
import torch
from vidcourse.course import start
settings = start(profile, seed)
weights = torch.ones(3, device=settings.device)
---
weights * torch.rand(3, generator=settings.rng())
"""


@here
def test_a_tensor_left_on_the_cpu_is_found_in_a_cell(tmp_path, checked_kernels, monkeypatch):
    import nbformat

    from vidcourse.runner import execute

    cells = [nbformat.v4.new_code_cell(source.strip()) for source in CELLS.split("---")]
    cells[0].metadata.tags = ["parameters"]
    path = Path(tmp_path / "00_planted.ipynb")
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    monkeypatch.setenv("VIDCOURSE_DEVICE", "cpu")
    assert execute(path, tmp_path / "cpu", {}).status == "ok"
    monkeypatch.setenv("VIDCOURSE_DEVICE", "pretend")
    outcome = execute(path, tmp_path / "pretend", {})
    assert outcome.status == "failed"
    assert "same device" in outcome.why and "settings.rng()" in outcome.traceback
