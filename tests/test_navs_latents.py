"Learned latents of NAVS: what a reader would be bored by. The ideas stand in notebook 30."

from dataclasses import replace

import pytest
import torch
from torch import nn

from vidcourse.checkpoints import load_weights, save_weights
from vidcourse.navs import (
    CONFIGS,
    ClipCodes,
    ClipDecoder,
    FrameGenerator,
    LatentCodes,
    Recurrent,
    into_ball,
    laplacian_loss,
    networks,
    pyramid,
    released_join,
)
from vidcourse.navs.latents import blur, blur_kernel, frames_of, gaussian
from vidcourse.systems import System, count

SMOKE = replace(CONFIGS["smoke"], statics=3, transients=4, clips=5)


def decoder(**changes):
    torch.manual_seed(0)
    net = ClipDecoder(replace(SMOKE, **changes))
    net.codes.pairs.copy_(torch.tensor([[0, 0], [0, 3], [1, 1], [2, 2], [2, 0]]))
    return net


def reach(out, codes):
    "Length of the gradient of each of `out` (t, ...) with respect to `codes` (k, d): (t, k)."
    weights = torch.randn(out.shape[1:], generator=torch.Generator().manual_seed(1))
    return torch.stack(
        [
            torch.autograd.grad((frame * weights).sum(), codes, retain_graph=True)[0].norm(
                dim=-1
            )
            for frame in out
        ]
    )


# Who depends on whom -----------------------------------------------------------------------


@pytest.mark.parametrize("recurrent", [True, False])
def test_static_code_reaches_every_frame_and_time_runs_forward(recurrent):
    net, t = decoder(recurrent=recurrent), SMOKE.length
    static, transient = (
        torch.randn(1, SMOKE.static, requires_grad=True),
        torch.randn(t, SMOKE.transient, requires_grad=True),
    )
    frames = net(ClipCodes(static, transient[None]))[0].transpose(0, 1)
    assert frames.shape == (t, 3, SMOKE.size, SMOKE.size)
    assert (reach(frames, static) > 0).all()
    heard = torch.ones(t, t).tril().bool() if recurrent else torch.eye(t).bool()
    assert torch.equal(reach(frames, transient) > 0, heard)


def test_clips_of_a_batch_are_their_own():
    net = decoder()
    codes = net.codes(torch.arange(5))
    together = net(codes)
    for k in range(5):
        torch.testing.assert_close(net(codes[[k]])[0], together[k], rtol=1e-4, atol=1e-5)


def test_both_kinds_of_codes_learn():
    net = decoder()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    true = torch.rand(
        2, 3, SMOKE.length, SMOKE.size, SMOKE.size, generator=torch.Generator().manual_seed(2)
    )
    made = net(net.codes(torch.tensor([0, 2])))
    laplacian_loss(frames_of(made), frames_of(true)).backward()
    used = {"static": [0, 1], "transient": [0, 1]}
    for name, rows in used.items():
        grown = getattr(net.codes, name).grad.flatten(1).norm(dim=1) > 0
        assert grown.nonzero().flatten().tolist() == rows, (
            name
        )  # clips 0 and 2 own these; the others stay out of it
    assert (net.codes.transient.grad[:2].norm(dim=-1) > 0).all()  # every frame's code
    adam.step()
    assert all(not torch.equal(p, before[name]) for name, p in net.named_parameters())


# Loss --------------------------------------------------------------------------------------


def test_pyramid_loss_by_hand():
    """One white pixel in the middle of 8 x 8: 1 - 36/256 stays there and 220/256 goes around it;
    a quarter of it arrives in the 16 pixels of the next level."""
    spot = torch.zeros(2, 3, 8, 8)
    spot[..., 3, 3] = 1
    assert laplacian_loss(spot, torch.zeros_like(spot)).item() == pytest.approx(
        440 / 256 / 64 + 1 / 64
    )
    assert laplacian_loss(
        torch.full((1, 3, 16, 16), 0.25), torch.zeros(1, 3, 16, 16)
    ).item() == pytest.approx(0.25)


@pytest.mark.parametrize("size, sizes", [(4, [4]), (8, [8, 4]), (64, [64, 32, 16, 8, 4])])
def test_levels_go_down_to_four(size, sizes):
    levels = pyramid(torch.rand(1, 3, size, size), len(sizes) - 1)
    assert [level.shape[-1] for level in levels] == sizes
    calls = laplacian_loss(torch.ones(1, 3, size, size), torch.zeros(1, 3, size, size))
    assert calls.item() == pytest.approx(1)


def test_loss_is_zero_for_equal_pictures_only():
    g = torch.Generator().manual_seed(0)
    true = torch.rand(2, 3, 16, 16, generator=g)
    assert laplacian_loss(true, true.clone()) == 0
    line = torch.arange(16) % 2 * 2.0 - 1
    for difference in (
        torch.full((16, 16), 0.01),
        line.expand(16, 16) * 0.01,
        line[:, None] * line * 0.01,
        torch.eye(16) * 0.01,
    ):
        assert laplacian_loss(true + difference, true) > 1e-4
    assert laplacian_loss(true, true + 0.1).item() == pytest.approx(
        laplacian_loss(true + 0.1, true).item(), rel=1e-5
    )


def test_blur_keeps_flat_pictures_and_removes_a_chessboard():
    assert torch.allclose(blur(torch.full((1, 2, 6, 6), 0.7)), torch.tensor(0.7))
    line = torch.arange(12) % 2 * 2.0 - 1
    assert blur((line[:, None] * line).expand(1, 3, 12, 12))[..., 2:-2, 2:-2].abs().max() < 1e-6
    stripes = line.expand(1, 1, 12, 12)
    assert blur(stripes)[..., 2:-2].abs().max() < 1e-6
    assert blur(stripes, "sum")[..., 2:-2].abs().max() > 0.1  # the released kernel lets through


@pytest.mark.parametrize("kind", ["binomial", "sum"])
def test_kernels_keep_what_is_flat(kind):
    kernel = blur_kernel(kind)
    assert kernel.sum().item() == pytest.approx(1) and torch.equal(kernel, kernel.T)
    assert laplacian_loss(
        torch.full((1, 3, 8, 8), 0.25), torch.zeros(1, 3, 8, 8), kind
    ).item() == pytest.approx(0.25)


def test_kernels_that_do_not_exist():
    with pytest.raises(ValueError, match="no kernel 'gauss'; choose one of binomial, sum"):
        blur_kernel("gauss")


def test_released_kernel_by_hand():
    "Two bells of width 2, squared, added: the corner is two tails, the middle two tops."
    kernel = blur_kernel("sum")
    assert (kernel[0, 0] / kernel[2, 2]).item() == pytest.approx(torch.e**-1, rel=1e-5)
    assert (kernel[0, 2] / kernel[2, 2]).item() == pytest.approx(
        (1 + torch.e**-1) / 2, rel=1e-5
    )


def test_loss_of_unlike_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3, 16, 16\) against \(1, 3, 16, 16\)"):
        laplacian_loss(torch.zeros(2, 3, 16, 16), torch.zeros(1, 3, 16, 16))


# Codes -------------------------------------------------------------------------------------


def test_ball():
    codes = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    pulled = into_ball(codes, 2.0)
    torch.testing.assert_close(pulled, torch.tensor([[1.2, 1.6], [0.3, 0.4], [0.0, 0.0]]))
    assert torch.equal(into_ball(codes, 0), codes)
    latents = LatentCodes(SMOKE)
    assert (
        latents.static.norm(dim=-1).max() <= 1 + 1e-6
        and latents.transient.norm(dim=-1).max() <= 1 + 1e-6
    )
    with torch.no_grad():
        latents.static *= 5
        latents.transient *= 5
    static, way = (
        latents.static,
        latents.static.detach() / latents.static.norm(dim=-1, keepdim=True),
    )
    latents.project_()
    assert latents.static is static and latents.static.requires_grad
    torch.testing.assert_close(latents.static.detach(), way.detach())
    torch.testing.assert_close(latents.transient.norm(dim=-1), torch.ones(4, SMOKE.length))
    free = LatentCodes(replace(SMOKE, ball=0.0))
    before = free.static.detach().clone()
    free.project_()
    assert torch.equal(free.static, before) and before.norm(dim=-1).max() > 1


def test_pairs_say_who_owns_what():
    latents = decoder().codes
    codes = latents(torch.tensor([1, 4]))
    assert (
        len(codes) == 2
        and torch.equal(codes.static, latents.static[[0, 2]])
        and torch.equal(codes.transient, latents.transient[[3, 0]])
    )
    swapped = latents.cell(torch.tensor([2, 0]), torch.tensor([3, 0]))
    assert torch.equal(swapped.static, latents.static[[2, 0]]) and torch.equal(
        swapped.transient, latents.transient[[3, 0]]
    )
    one = swapped[[1]].to("cpu")
    assert (
        len(one) == 1
        and torch.equal(one.static, latents.static[:1])
        and torch.equal(one.transient, latents.transient[:1])
    )
    assert "pairs" not in dict(latents.named_parameters())


def test_released_join_by_hand():
    "Two static numbers and four outputs in two frames: the rows stay in order, after the static."
    static, outputs = torch.tensor([[1.0, 2]]), torch.arange(10.0, 18).view(1, 2, 4)
    joined = released_join(static, outputs)
    assert joined.tolist() == [[[1, 1, 2, 2, 10, 11], [12, 13, 14, 15, 16, 17]]]


def test_released_join_at_the_released_sizes():
    "Static numbers are 1, outputs the row of the unit that they come from, and 2 more."
    rows = torch.arange(16.0)[None, :, None].expand(1, 16, 200) + 2
    joined = released_join(torch.ones(1, 56), rows)
    assert joined.shape == (1, 16, 256)
    assert (joined[0] == 1).sum(1).tolist() == [256, 256, 256, 128] + 12 * [0]
    heard = [sorted({int(v) - 2 for v in frame if v != 1}) for frame in joined[0].tolist()]
    assert heard[:5] == [[], [], [], [0], [0, 1]] and heard[5] == [1, 2, 3]
    assert heard[15] == [14, 15]
    for frame, rows in enumerate(heard[4:], 4):
        assert rows == list(range(rows[0], rows[-1] + 1)) and len(rows) in (2, 3), frame


def test_codes_divided_by_their_largest_entry():
    net = decoder(join="max")
    static, outputs = (
        torch.randn(2, SMOKE.static),
        torch.randn(2, SMOKE.length, SMOKE.transient),
    )
    plain, divided = decoder().join(static, outputs), net.join(static, outputs)
    torch.testing.assert_close(divided[1], plain[1] / plain[1].max())
    assert divided.amax((1, 2)).tolist() == [1, 1]


# Networks ----------------------------------------------------------------------------------


def test_released_sizes():
    with torch.device("meta"):
        parts = networks(CONFIGS["paper"])
        assert count(FrameGenerator(replace(CONFIGS["paper"], size=128))) > count(
            parts["generator"]
        )
    assert [p.numel() for p in parts["generator"].parameters()] == [
        2_097_152,
        2_097_152,
        524_288,
        131_072,
        3_072,
    ]
    assert (
        count(parts["generator"]) == 4_852_736
        and count(parts["recurrent"]) == 1_153_200
        and count(parts["codes"]) == 3_256
    )


@pytest.mark.parametrize("name", ["gpu", "laptop", "showcase", "smoke"])
def test_configurations_decode(name):
    torch.manual_seed(0)
    net = ClipDecoder(CONFIGS[name])
    with torch.no_grad():
        clip = net(net.codes(torch.tensor([0])))
    size = CONFIGS[name].size
    assert clip.shape == (1, 3, CONFIGS[name].length, size, size)
    assert 0.02 < clip.std() < 1  # not a grey sheet to begin with, nor a glare


def test_signal_survives_the_generator():
    torch.manual_seed(0)
    x = torch.randn(32, 256, 1, 1)
    for layer in FrameGenerator(replace(CONFIGS["paper"], width=16)).layers[:-1]:
        x = layer(x)
        if isinstance(layer, nn.ConvTranspose2d):
            assert 0.7 < x.square().mean().sqrt() < 2.5


def test_pictures_begin_around_a_colour():
    torch.manual_seed(0)
    generator, colour = FrameGenerator(replace(SMOKE, width=32)), torch.tensor([-1.0, 0.5, 0.0])
    codes = into_ball(torch.randn(64, SMOKE.static + SMOKE.transient), 1.0)
    with torch.no_grad():
        before = generator(codes)
        generator.begin_at(colour)
        torch.testing.assert_close(generator(codes), before + colour[:, None, None])
    assert before.mean((0, 2, 3)).abs().max() < 0.3
    released = FrameGenerator(CONFIGS["paper"])
    released.begin_at(colour)  # no bias: nothing to set
    assert all(layer.bias is None for layer in released.layers[::2])


def test_a_generator_driven_far_out_comes_back_unless_it_ends_in_tanh():
    "Weights that make everything far too dark: is there a gradient that leads back?"
    for changes, alive in [({}, True), (dict(output="tanh", leak=0.0), False)]:
        torch.manual_seed(0)
        generator = FrameGenerator(replace(SMOKE, **changes))
        codes = torch.randn(4, SMOKE.static + SMOKE.transient)
        with torch.no_grad():
            generator.layers[0].weight.abs_().mul_(20)
            generator.layers[2].weight.abs_().neg_() if alive else None
            generator.layers[-2].weight.abs_().mul_(-20)
        made = generator(codes.abs())
        laplacian_loss(made, torch.zeros_like(made)).backward()
        slopes = [p.grad.abs().max() for p in generator.parameters()]
        assert (min(slopes) > 1e-3) if alive else (max(slopes) == 0)


def test_outputs_normalised_over_all_frames():
    net = decoder(unit_norm="batch").train()
    outputs = net.recurrent(torch.randn(3, SMOKE.length, SMOKE.transient)).flatten(0, 1)
    assert outputs.mean(0).abs().max() < 1e-5
    assert (outputs.std(0, correction=0) - 1).abs().max() < 0.05
    assert "recurrent.norm.running_mean" in net.state_dict()
    assert not any("norm" in name for name, _ in net.named_parameters())


@pytest.mark.parametrize("size", [8, 48, 65])
def test_sizes_that_do_not_double(size):
    with pytest.raises(ValueError, match=f"frames of {size} px.*power of two"):
        FrameGenerator(replace(SMOKE, size=size))


@pytest.mark.parametrize(
    "field, value", [("unit_norm", "layer"), ("join", "min"), ("output", "")]
)
def test_choices_that_do_not_exist(field, value):
    with pytest.raises(ValueError, match=f"{field} is '{value}'; choose one of "):
        networks(replace(SMOKE, **{field: value}))


def test_without_the_recurrent_unit():
    parts = networks(replace(SMOKE, recurrent=False))
    assert isinstance(parts["recurrent"], nn.Identity) and isinstance(
        networks(SMOKE)["recurrent"], Recurrent
    )


# Draws and files ---------------------------------------------------------------------------


def test_density_has_mean_and_covariance_of_the_codes():
    g = torch.Generator().manual_seed(0)
    points = torch.randn(7, 3, generator=g) * torch.tensor([1.0, 2.0, 0.5]) + 4
    drawn = gaussian(points, 50_000, g)
    torch.testing.assert_close(drawn.mean(0), points.mean(0), rtol=0, atol=0.05)
    torch.testing.assert_close(drawn.T.cov(), points.T.cov(), rtol=0.05, atol=0.05)
    assert torch.equal(gaussian(points[:1], 4, g), points[:1].expand(4, -1))


def test_draws():
    net, g = decoder(), lambda: torch.Generator().manual_seed(3)
    codes = net.draw(6, rng=g())
    assert codes.static.shape == (6, SMOKE.static) and codes.transient.shape == (
        6,
        SMOKE.length,
        SMOKE.transient,
    )
    assert (
        not codes.static.requires_grad
        and codes.static.std(0).min() > 0
        and codes.transient.std(0).min() > 0
    )
    assert (
        codes.static.norm(dim=-1).max() < 1 + 1e-5
        and codes.transient.norm(dim=-1).max() < 1 + 1e-5
    )
    again = net.draw(6, rng=g())
    assert torch.equal(again.static, codes.static) and torch.equal(
        again.transient, codes.transient
    )
    for length in (1, 3, SMOKE.length):
        assert torch.equal(net.draw(6, length, g()).transient, codes.transient[:, :length])
    assert net(net.draw(2, 3, g())).shape == (2, 3, 3, SMOKE.size, SMOKE.size)


@pytest.mark.parametrize("length", [0, -1, SMOKE.length + 1])
def test_draws_of_another_length(length):
    with pytest.raises(
        ValueError, match=f"asked for {length} frames; .* give 1 to {SMOKE.length} "
    ):
        decoder().draw(1, length)


def test_codes_and_pairs_are_saved_with_the_networks(tmp_path):
    net, other = decoder(), ClipDecoder(SMOKE)
    save_weights(tmp_path / "w.safetensors", net.state_dict())
    other.load_state_dict(load_weights(tmp_path / "w.safetensors")[0])
    assert {"codes.static", "codes.transient", "codes.pairs"} <= set(net.state_dict())
    assert torch.equal(other.codes.pairs, net.codes.pairs) and torch.equal(
        other(other.codes(torch.arange(5))), net(net.codes(torch.arange(5)))
    )


def test_a_system_of_it_saves_and_loads(tmp_path):
    class Sampler(System):
        name, Config, Generator = "navs", type(SMOKE), ClipDecoder

    system = Sampler(SMOKE, decoder())
    system.save(tmp_path / "w.safetensors", half=True)
    again = Sampler.load(tmp_path / "w.safetensors")
    assert again.config == SMOKE and torch.equal(
        again.networks["generator"].codes.pairs, system.networks["generator"].codes.pairs
    )

    def g():
        return torch.Generator().manual_seed(4)

    torch.testing.assert_close(
        again.sample(2, 3, g()), system.sample(2, 3, g()), rtol=0, atol=0.02
    )
