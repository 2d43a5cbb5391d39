"DIGAN: what its form promises, what its game draws, and what it refuses."

from dataclasses import replace

import pytest
import torch

from vidcourse.digan import CONFIGS, load_pretrained, networks
from vidcourse.digan.model import (
    DIGAN,
    Config,
    draw_times,
    fake_times,
    on_grid,
    through_glass,
)
from vidcourse.digan.networks import (
    ModulatedLayer,
    Sizes,
    SpaceTimeFeatures,
    VideoGenerator,
    pair_input,
    places,
)
from vidcourse.systems import count, sketching

SMOKE = CONFIGS["smoke"]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def system():
    "Untrained, with biases that aren't zero."
    torch.manual_seed(0)
    net = VideoGenerator(SMOKE).eval()
    with torch.no_grad():
        for name, value in net.named_parameters():
            if name.endswith("bias"):
                value.add_(0.3 * torch.randn(value.shape))
    return DIGAN(SMOKE, net, {})


def test_motion_has_no_say_at_zero(system):
    codes = system.networks["generator"].draw(3, rng=rng(), times=[0.0, 0.5, 1.0])
    one, other = system.decode(codes), system.decode(replace(codes, motion=-codes.motion))
    change = (one - other).abs().amax((0, 1, 3, 4))
    assert change[0] < 1e-6 < 1e-4 < change[1]


def test_frames_do_not_know_each_other(system):
    codes = system.networks["generator"].draw(2, rng=rng(), times=torch.linspace(-1, 4, 11))
    order = torch.randperm(11, generator=rng(1))
    whole = system.decode(codes)
    shuffled = system.decode(codes.at(codes.times[:, order]))
    assert torch.allclose(whole[:, :, order], shuffled, atol=1e-5)
    alone = (whole[1:] - system.decode(codes[1:])).abs()
    assert alone.max() < 1e-3, alone.max()  # another batch adds up in another order


@pytest.mark.parametrize("bias", [0.0, 0.3])
def test_phases_are_lines_with_few_bends(bias):
    torch.manual_seed(0)
    waves = SpaceTimeFeatures(SMOKE)
    with torch.no_grad():
        for layer in waves.map:
            layer.bias.add_(bias * torch.randn(layer.bias.shape))
    t = torch.linspace(0, 4, 401)[None]
    with torch.no_grad():
        phases = waves.phases(torch.randn(1, SMOKE.style), torch.randn(1, SMOKE.motion), t)
    bends = (phases.diff(n=2, dim=1).abs() > 1e-5).any(2).sum()
    assert bends <= (2 * SMOKE.frequencies if bias else 0)


def test_one_level_permutes_and_the_pyramid_does_not_resample(system):
    net = system.networks["generator"]
    codes = net.draw(1, rng=rng(), times=[0.3])
    style, where = net.mapping(codes.content), places(8).flatten(0, 1)
    order = torch.randperm(64, generator=rng())
    block = net.blocks[0]
    seen = [
        block.layers[0](block.features(style, codes.motion, codes.times, w).flatten(2), style)
        for w in (where, where[order])
    ]
    assert torch.allclose(seen[0][..., order], seen[1], atol=1e-5)
    torch.manual_seed(0)
    corners = VideoGenerator(replace(SMOKE, centred=False))
    assert (corners(codes, 32)[..., ::2, ::2] - corners(codes)).abs().max() > 1e-2


def test_modulated_rows_have_length_one():
    torch.manual_seed(0)
    layer = ModulatedLayer(6, 5, 4, 2)
    rows = layer.weights(torch.randn(3, 4))
    assert torch.allclose(rows.norm(dim=2), torch.ones(3, 5), atol=1e-5)
    plain = torch.nn.functional.normalize(layer.weight, dim=1)
    assert torch.allclose(layer.weights(torch.zeros(1, 4))[0], plain, atol=1e-5)


@pytest.mark.parametrize(
    "size, known",
    [
        (128, (63_538_706, 28_390_145, 28_389_121)),
        (64, (52_210_703, 26_490_881, 26_488_833)),
        (32, (39_109_388, 21_509_121, 21_507_073)),
    ],
)
def test_released_sizes(size, known):
    with sketching():
        nets = networks(Sizes(size=size))
    names = ("generator", "motion_discriminator", "image_discriminator")
    assert tuple(count(nets[name]) for name in names) == known


def test_times_of_a_pair():
    times = draw_times(50_000, "beta", rng=rng())
    assert (times.diff(dim=1) >= 0).all()
    assert abs(times.diff(dim=1).mean() - 0.4) < 0.01
    assert abs(draw_times(50_000, "uniform", rng=rng()).diff(dim=1).mean() - 1 / 3) < 0.01


def test_the_leak_and_its_fix():
    base = replace(SMOKE, length=16, batch=1000)

    def off_grid(leak):
        steps = 15 * fake_times(replace(base, gap_leak=leak), rng()).diff(dim=1)
        return ((steps - steps.round()).abs() > 1e-3).float().mean()

    assert off_grid(True) > 0.9 and off_grid(False) == 0
    assert on_grid(torch.tensor([[0.0, 1.0]]), 16, "beta").tolist() == [[0, 15]]
    assert Config().gap_leak and not SMOKE.gap_leak


def test_the_gap_is_the_seventh_channel_and_no_change_touches_it():
    frames, gap = torch.rand(4, 3, 2, 8, 8, generator=rng()), torch.tensor([0.1, 0.2, 0.3, 0.4])
    x = pair_input(frames, gap)
    assert x.shape == (4, 7, 8, 8) and torch.equal(x[:, 6, 0, 0], gap)
    seen = through_glass(x, torch.rand(4, 5, generator=rng()), "translation")
    assert torch.equal(seen[:, 6], x[:, 6])
    same = pair_input(frames[:, :, :1].expand(-1, -1, 2, -1, -1), gap)
    seen = through_glass(same, torch.rand(4, 5, generator=rng()), "both")
    assert torch.equal(seen[:, :3], seen[:, 3:6])


def test_long_clips_in_one_call(system):
    calls = []
    net = system.networks["generator"]
    handle = net.register_forward_hook(lambda *_: calls.append(1))
    assert system.sample(1, 128, rng=rng()).shape == (1, 3, 128, 16, 16) and len(calls) == 1
    handle.remove()
    short, long = system.sample(2, 8, rng()), system.sample(2, 20, rng())
    assert torch.allclose(short, long[:, :, :8], atol=1e-5)


@pytest.mark.parametrize("name", ["drifting", "shapes"])
def test_weights_that_ship(name):
    for seed in (0, 1, 2):
        clips = load_pretrained(name, seed).sample(8, rng=rng())
        assert clips.shape == (8, 3, 16, 32, 32) and clips.std() > 0.05


def test_bad_input(system):
    with pytest.raises(ValueError, match="multiples of 2"):
        system.sample(1, size=17)
    with pytest.raises(ValueError, match="finite"):
        system.sample(1, times=[0.0, float("nan")])
    with pytest.raises(ValueError, match="at least 1"):
        system.sample(0)
    with pytest.raises(ValueError, match="power of two"):
        networks(replace(SMOKE, size=24))
    with pytest.raises(ValueError, match="times is 'gamma'"):
        replace(SMOKE, times="gamma")
    with pytest.raises(ValueError, match="contrast"):
        replace(SMOKE, contrast=1.0, gap_channel=False)
    with pytest.raises(FileNotFoundError, match="digan_drifting_seed0"):
        load_pretrained("drifting", 9)
