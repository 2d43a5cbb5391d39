"V3GAN: what a reader would be bored by. The mathematics is asserted in notebooks 20 to 22."

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.flop_counter import FlopCounterMode

from vidcourse.adversarial import one_frame
from vidcourse.data import load
from vidcourse.shapes import background, mask, moving_shapes
from vidcourse.systems import count
from vidcourse.v3gan import (
    CONFIGS,
    V3GAN,
    Layers,
    MaskingLayer,
    code_grid,
    composite,
    draw_codes,
    layer_scores,
    load_pretrained,
    mask_prior,
    masking,
    model,
    networks,
    object_mask,
    train,
    with_background,
    with_motion,
)
from vidcourse.v3gan.masking import (
    PRIORS,
    Conv3d,
    ConvTranspose3d,
    binary_prior,
    cat_layers,
    is_thin,
    l1_prior,
    seen_background,
    thin_convolution,
)
from vidcourse.v3gan.model import (
    SHUFFLES,
    draw_order,
    frame_numbers,
    make_trainer,
    step_on,
)
from vidcourse.v3gan.networks import (
    Block,
    LayerCodes,
    Recurrent,
    Sizes,
    motion_vectors,
    time_plan,
    widths,
)
from vidcourse.v3gan.warping import MOTION_KINDS, Displacement, warp
from vidcourse.video import to_float

SMOKE = replace(CONFIGS["smoke"], motion_kind="add")  # the released kind, unless a test says
KINDS = MOTION_KINDS


class Fixed(torch.nn.Module):
    "A displacement that doesn't listen."

    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def forward(self, motion):
        return self.shift


def generator(**changes):
    torch.manual_seed(0)
    return networks(replace(SMOKE, **changes))["generator"]


def some_layers(n=3, t=4, size=8, seed=0):
    g = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=g)

    masks = (uniform(n, 1, t, 4, 4), uniform(n, 1, t, size, size))
    return Layers(
        2 * uniform(n, 3, 1, size, size) - 1,
        2 * uniform(n, 3, t, size, size) - 1,
        masks[-1],
        masks,
    )


@pytest.fixture(scope="module")
def drawn():
    "Real clips with all layers: a sheet of the object's colour, the drawn mask, the backdrop."
    data = moving_shapes(12, 16, 32, seed=8, backdrop="textured")
    clips, true = (
        to_float(data.frames),
        torch.tensor(mask(data.factors, data.times, 32))[:, None],
    )
    colour = clips.flatten(2)[torch.arange(12), :, true.flatten(1).argmax(1)]
    return clips, Layers(
        to_float(background(data.factors, 32)[:, None]),
        colour[:, :, None, None, None].expand_as(clips),
        true,
    )


# Layers ---------------------------------------------------------------------------------------


def test_composite_at_the_ends():
    layers = some_layers()
    assert torch.equal(
        composite(layers.foreground, torch.ones_like(layers.mask), layers.background),
        layers.foreground,
    )
    assert torch.equal(
        composite(layers.foreground, torch.zeros_like(layers.mask), layers.background),
        layers.background.expand_as(layers.foreground),
    )


def test_gain_and_hard():
    layers = some_layers()
    assert layers.gain(1) is layers
    torch.testing.assert_close(layers.gain(2).gain(0.5).mask, layers.mask, rtol=1e-3, atol=2e-3)
    assert (layers.gain(0).mask == 0.5).all() and (
        layers.gain(-1).mask - (1 - layers.mask)
    ).abs().max() < 1e-4
    assert set(layers.hard().mask.unique().tolist()) == {0.0, 1.0} and torch.equal(
        layers.hard(0.2).mask, (layers.mask > 0.2).float()
    )
    solid = replace(
        layers,
        mask=torch.cat(
            [torch.zeros_like(layers.mask[:, :, :2]), torch.ones_like(layers.mask[:, :, 2:])],
            dim=2,
        ),
    )
    assert (solid.gain(0).mask == 0.5).all(), (
        "0 times the infinite log-odds of a hard mask would be NaN"
    )
    assert (
        solid.gain(5).mask.isfinite().all()
        and (solid.gain(5).mask - solid.mask).abs().max() < 1e-5
    )
    assert torch.equal(layers.gain(7).foreground, layers.foreground) and torch.equal(
        layers.hard().background, layers.background
    )


def test_picking_and_joining():
    layers = some_layers()
    part = layers[[2, 0]]
    assert (
        len(part) == 2
        and torch.equal(part.video, layers.video[[2, 0]])
        and torch.equal(part.masks[0], layers.masks[0][[2, 0]])
    )
    back = cat_layers([layers[:1], layers[1:]])
    assert (
        torch.equal(back.video, layers.video)
        and all(torch.equal(a, b) for a, b in zip(back.masks, layers.masks))
        and len(back.masks) == 2
    )


@pytest.mark.parametrize("shape", [(3, 3, 8, 8), (3, 3, 1, 8, 8), (1, 3, 8, 8)])
def test_another_background(shape):
    layers, picture = some_layers(), torch.rand(shape)
    other = layers.over(picture)
    assert (
        torch.equal(other.mask, layers.mask)
        and torch.equal(other.background[0, :, 0], picture.reshape(-1, 3, 8, 8)[0])
        and other.background.shape == layers.background.shape
    )


@pytest.mark.parametrize(
    "shape", [(3, 8, 8), (2, 3, 8, 8), (3, 3, 9, 8), (3, 1, 8, 8), (3, 3, 2, 8, 8)]
)
def test_a_background_that_does_not_fit(shape):
    with pytest.raises(ValueError, match="does not fit"):
        some_layers().over(torch.rand(shape))


# Priors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, l1, binary", [(0.0, 0, 0), (1.0, 1, 0), (0.5, 0.5, 1), (0.25, 0.25, 0.75)]
)
def test_priors_at_the_extremes(value, l1, binary):
    m = torch.full((2, 1, 3, 4, 4), value)
    found = {kind: mask_prior(m, kind).item() for kind in PRIORS}
    assert found == {"none": 0, "l1": l1, "binary": binary, "both": l1 + binary}


def test_priors_push_the_right_way():
    m = torch.tensor([0.2, 0.5, 0.8], requires_grad=True)
    push = {
        kind: torch.autograd.grad(prior(m), m)[0].sign().tolist()
        for kind, prior in (("l1", l1_prior), ("binary", binary_prior))
    }
    assert push == {"l1": [1, 1, 1], "binary": [1, 0, -1]}


def test_a_prior_that_is_not():
    with pytest.raises(ValueError, match="none, l1, binary, both"):
        mask_prior(torch.rand(2), "entropy")


# The rule and the scores ----------------------------------------------------------------------


def test_scores_of_the_truth(drawn):
    clips, true = drawn
    scores = layer_scores(true)
    assert scores["mask_iou"] > 0.9 and scores["background_psnr"] > 50 and scores["empty"] == 0
    seen, known = seen_background(clips, object_mask(clips))
    assert (
        (seen - true.background[:, :, 0]).abs() * known
    ).max() < 0.06 and known.mean() > 0.99


def test_scores_of_what_is_wrong(drawn):
    clips, true = drawn
    good = layer_scores(true)
    lazy = layer_scores(
        Layers(torch.zeros_like(true.background), clips, torch.ones_like(true.mask))
    )
    assert (
        lazy["mask_iou"] < 0.3
        and lazy["mask_mean"] == 1
        and lazy["mask_softness"] == 0
        and lazy["background_psnr"] < good["background_psnr"] - 20
    )
    nothing = layer_scores(replace(true, mask=torch.zeros_like(true.mask)))
    assert nothing["empty"] == 1 and nothing["mask_iou"] != nothing["mask_iou"], (
        "no frame has an object: no overlap can be told"
    )
    buried = layer_scores(
        Layers(true.background, torch.ones_like(clips), torch.ones_like(true.mask))
    )
    assert buried["background_psnr"] != buried["background_psnr"] and buried["mask_iou"] == 1, (
        "the background never shows"
    )


# Thin kernels ---------------------------------------------------------------------------------

THIN = [  # kernel, stride, padding
    ((1, 4, 4), (1, 2, 2), (0, 1, 1)),
    ((1, 4, 4), (1, 1, 1), (0, 0, 0)),
    ((1, 3, 3), (1, 1, 1), (0, 1, 1)),
    ((4, 1, 1), (1, 1, 1), (0, 0, 0)),
    ((4, 1, 1), (2, 1, 1), (1, 0, 0)),
    ((1, 1, 1), (1, 1, 1), (0, 0, 0)),
]
FULL = [((4, 4, 4), (2, 2, 2), (1, 1, 1)), ((1, 4, 4), (2, 2, 2), (0, 1, 1))]


PAIRS = [(Conv3d, torch.nn.Conv3d), (ConvTranspose3d, torch.nn.ConvTranspose3d)]
PICTURES = [(8, 7), (4, 4), (1, 1)]


def fits(picture, sizes):
    "Is there a place in the picture for the kernel?"
    kernel, _, padding = sizes
    return all(side + 2 * p >= k for side, p, k in zip(picture, padding[1:], kernel[1:]))


CASES = [
    (*pair, sizes, picture)
    for pair in PAIRS
    for sizes in THIN + FULL
    for picture in PICTURES
    if pair[0] is ConvTranspose3d or fits(picture, sizes)
]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("ours, theirs, sizes, picture", CASES)
def test_thin_kernels_compute_the_same(ours, theirs, sizes, picture, channels_last):
    "Outputs, gradients, spectral normalisation, a ReLU in place behind them."
    x, results = torch.randn(3, 6, 5, *picture, generator=torch.Generator().manual_seed(1)), []
    for kind in (theirs, ours):
        torch.manual_seed(0)
        conv = spectral_norm(kind(6, 4, *sizes))
        given = x.clone()
        if channels_last:
            conv.to(memory_format=torch.channels_last_3d)
            given = given.to(memory_format=torch.channels_last_3d)
        given.requires_grad_()
        made = torch.relu_(conv(given))
        slopes = torch.autograd.grad(made.square().sum(), [given, *conv.parameters()])
        results.append([made.detach(), *slopes, *conv.state_dict().values()])
    assert len(results[0]) == 8
    for a, b in zip(*results):
        assert a.shape == b.shape and (a - b).abs().max() <= 1e-5 * a.abs().max()
    assert is_thin(conv) == (sizes in THIN)


@pytest.mark.parametrize("ours", [Conv3d, ConvTranspose3d])
def test_kernels_that_meet_the_picture_once_are_products(ours, monkeypatch):
    for name in ("conv2d", "conv_transpose2d"):
        monkeypatch.setattr(F, name, lambda *given: pytest.fail("a convolution"))
    picture = (4, 4) if ours is Conv3d else (1, 1)
    made = ours(6, 5, (1, 4, 4), bias=False)(torch.ones(2, 6, 3, *picture))
    assert made.shape[:3] == (2, 5, 3) and made.shape[3:] != picture


def test_thin_kernels_join_axes_without_a_copy():
    "With channels side by side in memory, what goes into the 2-D convolution is a view."
    seen = []

    def convolve(x, weight, bias, stride, padding):
        seen[:] = x, F.conv2d(x, weight, bias, stride, padding)
        return seen[1]

    x = torch.randn(2, 6, 4, 8, 8).to(memory_format=torch.channels_last_3d)
    for kernel, stride, padding in THIN:
        made = thin_convolution(x, torch.randn(4, 6, *kernel), None, stride, padding, convolve)
        assert seen[0].data_ptr() == x.data_ptr()
        assert seen[0].is_contiguous(memory_format=torch.channels_last)
        assert made.data_ptr() == seen[1].data_ptr()
        assert made.is_contiguous(memory_format=torch.channels_last_3d)
        assert not made._is_view(), "a ReLU in place would copy it for autograd"


@pytest.mark.parametrize("kind", KINDS)
def test_networks_equal_those_of_ordinary_convolutions(kind, monkeypatch):
    "Two steps of whole networks, with and without the short cut, in float64."
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)  # layers are made float32

    def two_steps():
        torch.manual_seed(0)
        nets = networks(replace(SMOKE, motion_kind=kind))
        parameters = [p for net in nets.values() for p in net.double().parameters()]
        adam = torch.optim.Adam(parameters, 1e-3)
        codes = nets["generator"].draw(4, rng=torch.Generator().manual_seed(1))
        codes = LayerCodes(
            *(c.double() for c in (codes.background, codes.foreground, codes.motion))
        )
        for _ in range(2):
            made = nets["generator"](codes).video
            score = nets["video_discriminator"](made) + nets["image_discriminator"](
                made[:, :, 3]
            )
            adam.zero_grad()
            score.sum().backward()
            adam.step()
        states = [t for net in nets.values() for t in net.state_dict().values()]
        return [made, *(p.grad for p in parameters), *states]

    quick = two_steps()
    monkeypatch.setattr(masking, "is_thin", lambda conv: False)
    slow = two_steps()
    assert len(quick) == len(slow) > 50
    for a, b in zip(quick, slow):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("last", [False, True])
def test_masking_layer_sees_features_and_mask(last):
    torch.manual_seed(0)
    layer = MaskingLayer(8, last=last).eval()
    f, m = (
        torch.randn(2, 8, 2, 4, 4, requires_grad=True),
        torch.rand(2, 1, 2, 4, 4, requires_grad=True),
    )
    out = layer(f, m)
    out.square().sum().backward()
    assert (
        out.shape == (2, 1, 4, 8, 8)
        and 0 < out.min()
        and out.max() < 1
        and f.grad.abs().sum() > 0
        and m.grad.abs().sum() > 0
    )


# Configurations and lengths -------------------------------------------------------------------


def test_released_sizes():
    with torch.device("meta"):
        found = {name: count(net) for name, net in networks(CONFIGS["paper"]).items()}
    assert found == {
        "generator": 21_515_299,
        "video_discriminator": 8_347_009,
        "image_discriminator": 2_764_737,
    }


@pytest.mark.parametrize(
    "field, value",
    [
        ("motion_kind", "shift"),
        ("mask_prior", "tv"),
        ("shuffle", "all"),
        ("size", 48),
        ("size", 8),
        ("length", 18),
        ("length", 12),
        ("length", 0),
    ],
)
def test_impossible_configurations(field, value):
    with pytest.raises(ValueError):
        networks(replace(CONFIGS["paper"], **{field: value}))


def test_a_clip_too_short_for_the_discriminator():
    with pytest.raises(ValueError, match="at least 13"):
        networks(replace(CONFIGS["paper"], motion_kind="warp", length=12))


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_fit_together(name):
    c = replace(CONFIGS[name], motion_kind="add")
    assert (
        widths(c)[-1] == c.width
        and max(widths(c)) <= 8 * c.width
        and motion_vectors(c, c.length) == 1
    )
    moments = 1
    for kernel, stride, padding in time_plan(c):
        moments = (moments - 1) * stride - 2 * padding + kernel
    assert moments == c.length


@pytest.mark.parametrize(
    "size, length, nearest",
    [
        (64, 18, ("16", "20")),
        (32, 23, ("20", "24")),
        (16, 9, ("8", "10")),
        (64, 3, ("16", "20")),
        (16, 1, ("8", "10")),
    ],
)
def test_lengths_that_do_not_exist(size, length, nearest):
    with pytest.raises(ValueError, match=f"nearest lengths are {nearest[0]} and {nearest[1]}"):
        motion_vectors(replace(CONFIGS["paper"], size=size), length)


@pytest.mark.parametrize(
    "size, length, k", [(64, 16, 1), (64, 28, 4), (32, 20, 2), (16, 8, 1), (16, 14, 4)]
)
def test_lengths_that_do(size, length, k):
    c = replace(SMOKE, size=size, length=16 if size > 16 else 8)
    assert motion_vectors(c, length) == k
    net = networks(c)["generator"].eval()
    with torch.no_grad():
        assert net(net.draw(1, length)).video.shape == (1, 3, length, size, size)


@pytest.mark.parametrize("length", [1, 2, 9, 40])
def test_warping_takes_any_length(length):
    net = generator(motion_kind="warp").eval()
    assert net(net.draw(2, length)).video.shape == (2, 3, length, 16, 16)


def test_discriminators_refuse_other_lengths():
    nets = networks(SMOKE)
    assert nets["video_discriminator"](torch.zeros(2, 3, 8, 16, 16)).shape == (2, 1) and nets[
        "image_discriminator"
    ](torch.zeros(2, 3, 16, 16)).shape == (2, 1)
    with pytest.raises(ValueError, match="takes clips of 8 frames"):
        nets["video_discriminator"](torch.zeros(2, 3, 10, 16, 16))


@pytest.mark.parametrize(
    "kind, takes",
    [("add", False), ("warp_expanded", False), ("add_recurrent", False), ("warp", True)],
)
def test_lengths_of_the_kinds(kind, takes):
    c = Sizes(size=32, content=4, motion=3, width=2, discriminator_width=2, motion_kind=kind)
    net = networks(c)["generator"].eval()
    for length in (16, 20, 28):
        assert motion_vectors(c, length) == (
            length if kind in ("warp", "add_recurrent") else (length - 12) // 4
        )
        assert net(net.draw(2, length)).video.shape == (2, 3, length, 32, 32)
    for length in (1, 12, 15, 18, 23):
        if takes:
            assert net(net.draw(2, length)).video.shape == (2, 3, length, 32, 32)
        else:
            with pytest.raises(ValueError, match="nearest lengths"):
                net.draw(2, length)


def test_parameters_of_the_kinds():
    "By hand: a GRU has 3 h (m + h + 2), its first state h (m + 1)."
    c, m, h = CONFIGS["laptop"], CONFIGS["laptop"].motion, 4 * CONFIGS["laptop"].width
    found = {}
    for kind in KINDS:
        parts = networks(replace(c, motion_kind=kind))["generator"].named_children()
        found[kind] = {name: count(part) for name, part in parts}
    gru, stages = (
        3 * h * (m + h + 2) + h * (m + 1),
        (4 * m * h + 3 * h) + 2 * (4 * h * h + 3 * h),
    )
    blocks, wide = [found[kind]["blocks"] for kind in ("add", "add_recurrent")], widths(c)
    expanding = sum(4 * a * b + 3 * b for a, b in zip((m, *wide), wide[:-1]))
    assert (
        found["add_recurrent"]["recurrent"] == gru
        and blocks[1] - blocks[0] == sum(h * b + 3 * b for b in wide[:-1]) - expanding
    )
    assert (
        found["warp"]["displacement"] - found["warp_expanded"]["displacement"] == gru - stages
    )
    assert {k: v for k, v in found["warp"].items() if k != "displacement"} == {
        k: v for k, v in found["warp_expanded"].items() if k != "displacement"
    }


def test_names_of_parts_that_shipped_weights_rely_on():
    names = set(generator(motion_kind="warp").displacement.state_dict())
    assert {"states.start.weight", "states.start.bias", "whole.weight"} <= names
    assert {f"states.gru.{p}_{g}h_l0" for p in ("weight", "bias") for g in "ih"} <= names


# Codes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_clip(kind):
    net = generator(motion_kind=kind).eval()

    def draw(seed, length=8):
        return net.draw(2, length, torch.Generator().manual_seed(seed))

    assert torch.equal(net(draw(3)).video, net(draw(3)).video) and not torch.equal(
        net(draw(3)).video, net(draw(4)).video
    )
    longer = draw(3, 12)
    assert torch.equal(
        longer.motion[:, : draw(3).motion.shape[1]], draw(3).motion
    ) and torch.equal(longer.background, draw(3).background)


def turned(codes, k):
    "The same codes with the sign of motion code k changed."
    motion = codes.motion.clone()
    motion[:, k] = -motion[:, k]
    return replace(codes, motion=motion)


@pytest.mark.parametrize(
    "kind, length, vectors, first",
    [
        ("add", 8, 1, 0),
        ("warp_expanded", 8, 1, 0),
        ("add_recurrent", 8, 8, 5),
        ("warp", 8, 8, 7),
        ("add", 10, 2, 1),
        ("warp_expanded", 10, 2, 1),
        ("add_recurrent", 10, 10, 1),
        ("warp", 10, 10, 9),
    ],
)
def test_frames_that_the_last_motion_code_changes(kind, length, vectors, first):
    net = generator(motion_kind=kind)
    for _ in range(3):
        net(net.draw(8))
    net.eval()
    codes = net.draw(4, length, rng=torch.Generator().manual_seed(0))
    assert codes.motion.shape == (4, vectors, SMOKE.motion)
    change = (net(turned(codes, -1)).video - net(codes).video).abs().amax((0, 1, 3, 4))
    assert (change[:first] == 0).all() and (change[first:] > 0).all()


def test_warped_clips_go_on():
    net = generator(motion_kind="warp").eval()
    short, long = (net(net.draw(2, t, torch.Generator().manual_seed(3))).video for t in (6, 9))
    torch.testing.assert_close(long[:, :, :6], short)


@pytest.mark.parametrize("wrong", [dict(n=0), dict(length=0), dict(length=9)])
def test_bad_requests(wrong):
    with pytest.raises(ValueError):
        draw_codes(**({"n": 2, "length": 8, "sizes": SMOKE} | wrong))
    with pytest.raises(ValueError):
        generator().draw(**({"n": 2, "length": 8} | wrong))


def test_mixing_codes():
    a, b = (draw_codes(n, 8, SMOKE, torch.Generator().manual_seed(n)) for n in (2, 3))
    grid = code_grid(a, b)
    assert (
        len(grid) == 6
        and torch.equal(grid.foreground[4], a.foreground[1])
        and torch.equal(grid.motion[4], b.motion[1])
        and torch.equal(grid.background[4], a.background[1])
    )
    for mix in (with_motion, with_background):
        with pytest.raises(ValueError, match="2 clips"):
            mix(a, b)


def test_a_shared_code_stays_shared():
    codes = draw_codes(4, 8, replace(SMOKE, shared_code=True))
    assert (
        codes.shared
        and codes[[1, 2]].shared
        and codes.to("cpu").shared
        and code_grid(codes).shared
        and with_motion(codes, codes[[3, 2, 1, 0]]).shared
    )
    with pytest.raises(ValueError, match="shared_code=False"):
        with_background(codes, codes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_code_makes_both_layers_also_from_copies(kind):
    net = generator(motion_kind=kind, shared_code=True).eval()
    codes = net.draw(3)
    apart = LayerCodes(torch.zeros_like(codes.background), codes.foreground, codes.motion)
    assert torch.equal(net(codes).video, net(apart).video)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_background_changes(kind):
    net = generator(motion_kind=kind)
    for _ in range(3):
        net(net.draw(8))
    net.eval()
    codes = net.draw(4)
    a, b = net(codes), net(with_background(codes, codes[[1, 2, 3, 0]]))
    assert (
        torch.equal(a.foreground, b.foreground)
        and torch.equal(a.mask, b.mask)
        and not torch.equal(a.background[0], b.background[0])
    )
    moved = net(with_motion(codes, codes[[1, 2, 3, 0]]))
    assert torch.equal(a.background, moved.background) and not torch.equal(
        a.foreground, moved.foreground
    )


# Networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind, stream):
    torch.manual_seed(0)
    nets = networks(replace(SMOKE, motion_kind=kind, background_stream=stream))
    clips = nets["generator"](nets["generator"].draw(4)).video
    (
        nets["video_discriminator"](clips).sum()
        + nets["image_discriminator"](clips[:, :, 3]).sum()
    ).backward()
    for name, net in nets.items():
        for k, p in net.named_parameters():
            assert p.grad is not None, f"{name}.{k}"
            # a normalisation takes the bias before it away again, up to rounding
            assert p.grad.abs().sum() > 0 or k.endswith("bias"), f"{name}.{k}"


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_pictures_and_masks(kind):
    net = generator(motion_kind=kind)
    layers = net(net.draw(4))
    assert (
        layers.background.shape == (4, 3, 1, 16, 16)
        and layers.background.abs().max() <= 1
        and layers.foreground.abs().max() <= 1
    )
    assert layers.masks[-1] is layers.mask and layers.mask.min() >= 0 and layers.mask.max() <= 1
    assert [m.shape[-1] for m in layers.masks] == (
        [4, 8, 16] if kind.startswith("add") else [16]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_without_background_the_foreground_is_the_clip(kind):
    net = generator(motion_kind=kind, background_stream=False)
    layers = net(net.draw(4))
    assert (
        torch.equal(layers.video, layers.foreground)
        and (layers.mask == 1).all()
        and layers.masks == ()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_float32_in_mixed_precision(kind):
    net = generator(motion_kind=kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layers = net(net.draw(4))
    assert {
        x.dtype for x in (layers.background, layers.foreground, layers.mask, *layers.masks)
    } == {torch.float32} and layers.video.isfinite().all()


@pytest.mark.parametrize("k", [4, 8])
def test_states_know_no_future(k):
    torch.manual_seed(0)
    unit, codes = Recurrent(SMOKE, 12), draw_codes(3, 9, replace(SMOKE, motion_kind="warp"))
    states, others = (unit(c.motion)[..., 0, 0] for c in (codes, turned(codes, k)))
    assert states.shape == (3, 12, 9) and torch.equal(states[..., :k], others[..., :k])
    assert ((states - others)[..., k:].abs().amax(1) > 1e-6).all(), (
        "a code must be heard in its frame's state and, remembered, in those after it"
    )


def test_the_layered_generator_hears_its_recurrent_unit():
    net = generator(motion_kind="add_recurrent").eval()
    codes = net.draw(2, 8)
    usual = net(codes).video
    with torch.no_grad():
        net.recurrent.gru.weight_hh_l0.neg_()
        assert ((net(codes).video - usual).abs().amax((0, 1, 3, 4)) > 0).all(), (
            "another memory must make other frames"
        )


@pytest.mark.parametrize("moments, group", [(4, 4), (8, 2), (16, 1)])
def test_each_scale_takes_means_over_as_many_frames_as_it_needs(moments, group):
    torch.manual_seed(0)
    time = {4: (4, 1, 0), 8: (4, 2, 1), 16: (4, 2, 1)}[moments]
    block = Block(5, 5, 7, 6, time=time, space=(4, 2, 1), recurrent=True).eval()
    before = {4: 1, 8: 4, 16: 8}[moments]
    ins = (
        torch.randn(2, 5, 1, 4, 4),
        torch.randn(2, 5, before, 4, 4),
        torch.rand(2, 1, before, 4, 4),
    )
    states = torch.randn(2, 7, 16, 1, 1)
    means = states.unflatten(2, (moments, group)).mean(3)
    with torch.no_grad():
        expected = block.foreground(ins[1]) + block.motion(means)
        _, painted, _, handed_on = block(*ins, states)
    assert painted.shape[2] == moments and handed_on is states
    torch.testing.assert_close(painted, expected)


@pytest.mark.parametrize("kind", ["warp", "warp_expanded"])
def test_shifts_of_both_kinds_of_state(kind):
    torch.manual_seed(0)
    c = replace(SMOKE, motion_kind=kind)
    net = Displacement(c).eval()
    shift = net(1000 * draw_codes(3, 10, c).motion)
    assert (
        shift.shape == (3, 10, 2, 16, 16)
        and shift.abs().max() <= net.reach + net.bend
        and shift.isfinite().all()
    )
    assert shift.diff(dim=1).abs().max() > 0.01, "nothing moves"
    net.states = Fixed(torch.randn(3, 4 * c.width, 1, 1, 1).expand(-1, -1, 10, -1, -1))
    assert net(draw_codes(3, 10, c).motion).diff(dim=1).abs().max() < 1e-6, (
        "shifts are counted from the painted object: one state, one place"
    )


def test_every_transposed_convolution_is_normalised():
    for kind in KINDS:
        for module in generator(motion_kind=kind).modules():
            if isinstance(module, (torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)):
                assert (
                    torch.nn.utils.parametrize.is_parametrized(module)
                    and module.bias is not None
                )


def test_start_of_the_weights():
    torch.manual_seed(0)
    nets = networks(replace(CONFIGS["laptop"], width=32, motion_kind="add"))
    last = nets["generator"].blocks[-1]
    assert (
        abs(last.foreground[-1][0].weight.std() - 0.02) < 0.004
        and abs(last.mask.close.weight.std() - 0.02) < 0.004
    )
    gain = last.foreground[0][1].weight
    assert 0.005 < gain.std() < 0.05 and abs(gain.mean() - 1) < 0.02
    assert (
        abs(nets["video_discriminator"].layers[2].parametrizations.weight.original.std() - 0.02)
        < 0.004
    )


def test_warp_moves_by_whole_pixels():
    x = torch.rand(2, 3, 6, 10)
    shift = torch.zeros(2, 2, 2, 6, 10)
    shift[:, 1, 0], shift[:, 1, 1] = 2 * 2 / 10, 1 * 2 / 6
    moved = warp(x, shift)
    torch.testing.assert_close(moved[:, :, 0], x, rtol=0, atol=1e-5)
    torch.testing.assert_close(moved[:, :, 1, 1:, 2:], x[:, :, :-1, :-2], rtol=0, atol=1e-5)
    assert (
        warp(torch.ones_like(x), shift, "zeros")[:, :, 1, 0].abs().max() < 1e-5
        and (warp(torch.ones_like(x), shift)[:, :, 1] - 1).abs().max() < 1e-5
    )


def test_object_and_mask_move_together():
    net = generator(motion_kind="warp").eval()
    codes, shift = net.draw(2), torch.zeros(2, 8, 2, 16, 16)
    shift[:, 4:, 0] = 4 * 2 / 16
    net.displacement = Fixed(shift)
    layers = net(codes)
    for layer in (layers.foreground, layers.mask):
        torch.testing.assert_close(
            layer[:, :, 6, :, 4:], layer[:, :, 2, :, :-4], rtol=0, atol=1e-5
        )
    assert layers.mask[:, :, 6, :, :3].max() < 1e-5 < layers.mask[:, :, 2].min()


def test_shifts_are_bounded_and_smooth():
    torch.manual_seed(0)
    net = generator(motion_kind="warp").displacement
    shift = net(1000 * torch.randn(3, 5, SMOKE.motion))
    assert (
        shift.shape == (3, 5, 2, 16, 16)
        and shift.abs().max() <= net.reach + net.bend
        and shift.isfinite().all()
    )
    assert shift.diff(dim=-1).abs().max() < 2 * net.bend


# The game (notebook 22) -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def textured():
    return load("shapes", n=12, size=16, length=10, seed=0, backdrop="textured")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        *(dict(motion_kind=kind) for kind in KINDS[1:]),
        dict(background_stream=False),
        dict(mask_prior="none"),
        dict(mask_prior="both"),
        dict(shuffle="released"),
        dict(shuffle="global"),
        dict(shuffle="none"),
        dict(shared_code=True),
        dict(shared_frame=True),
        dict(r1=0.1),
        dict(precision="bf16"),
        dict(ema=0.0),
    ],
)
def test_every_recipe_takes_a_step_and_samples(textured, changes):
    system = train(textured, replace(SMOKE, **changes), steps=2, progress=False)
    clips = system.sample(3, rng=torch.Generator().manual_seed(0))
    assert (
        clips.shape == (3, 3, 8, 16, 16) and clips.isfinite().all() and clips.abs().max() <= 1
    )


def test_layers_are_those_of_the_sample_and_portions_change_nothing():
    torch.manual_seed(0)
    system = V3GAN(SMOKE)
    layers = system.sample_layers(5, 12, torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        system.sample(5, 12, torch.Generator().manual_seed(3)), layers.video
    )
    codes = system.networks["generator"].draw(5, rng=torch.Generator().manual_seed(1))
    torch.testing.assert_close(system.layers(codes, at_once=2).mask, system.layers(codes).mask)


def test_train_leaves_weights_and_resumes_alike(textured, tmp_path):
    config = replace(SMOKE, decay=False)
    whole = train(textured, config, steps=4, seed=3, progress=False)
    train(textured, config, steps=2, seed=3, out=tmp_path, progress=False)
    resumed = train(
        textured, config, steps=4, seed=3, out=tmp_path, resume=True, progress=False
    )
    for a, b in zip(
        whole.networks["generator"].state_dict().values(),
        resumed.networks["generator"].state_dict().values(),
    ):
        assert torch.equal(a, b)
    loaded = V3GAN.load(tmp_path / "weights.safetensors")
    assert loaded.config == config
    torch.testing.assert_close(
        *(s.sample(2, rng=torch.Generator().manual_seed(0)) for s in (loaded, resumed))
    )


def test_clips_of_another_size(textured):
    with pytest.raises(ValueError, match="size=32"):
        train(textured, CONFIGS["laptop"], steps=1, progress=False)


def test_generator_step_leaves_discriminators_alone(textured):
    config = replace(SMOKE, rate_discriminator=0.0)
    trainer = make_trainer(config, seed=0)
    before = [
        p.detach().clone()
        for name in ("image_discriminator", "video_discriminator")
        for p in trainer.networks[name].parameters()
    ]
    step_on(textured, config)(trainer)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            before,
            [
                p
                for name in ("image_discriminator", "video_discriminator")
                for p in trainer.networks[name].parameters()
            ],
        )
    )


def test_the_prior_pulls_the_mask_down(textured):
    sizes = {}
    for weight in (0.0, 100.0):
        config = replace(
            SMOKE, mask_weight=weight, mask_prior="l1", ema=0.0, rate_generator=0.05
        )
        system = train(textured, config, steps=10, progress=False)
        sizes[weight] = system.sample_layers(
            8, rng=torch.Generator().manual_seed(0)
        ).mask.mean()
    assert sizes[100.0] < 0.7 * sizes[0.0]


def test_shuffles_are_the_ones_that_a_configuration_takes():
    for kind in SHUFFLES:
        assert replace(SMOKE, shuffle=kind).shuffle == kind
    with pytest.raises(ValueError, match="mask_prior is 'tv'; choose one of none, l1"):
        replace(SMOKE, mask_prior="tv")


@pytest.mark.parametrize("kind, whole", [("swap", True), ("global", True), ("released", False)])
def test_orders(kind, whole):
    g = torch.Generator().manual_seed(0)
    orders = torch.stack([draw_order(kind, 16, g) for _ in range(300)])
    permutations = (orders.sort(1).values == torch.arange(16)).all(1)
    assert permutations.all() == whole and (orders != torch.arange(16)).any(1).all()
    if kind != "global":
        assert (orders[:, 15] == 15).all()
    if not whole:
        assert 0.5 < permutations.float().mean() < 0.7


def test_orders_refused():
    g = torch.Generator().manual_seed(0)
    assert draw_order("none", 16, g) is None
    for kind, length in (("swap", 7), ("upside down", 16)):
        with pytest.raises(ValueError, match="shuffle"):
            draw_order(kind, length, g)


def test_frame_numbers():
    g = torch.Generator().manual_seed(0)
    shared, apart = (
        torch.stack(
            [frame_numbers(replace(CONFIGS["laptop"], shared_frame=s), g) for s in [s] * 9]
        )
        for s in (True, False)
    )
    assert shared.shape == apart.shape == (9, 2, CONFIGS["laptop"].batch)
    assert (shared == shared[..., :1]).all() and len(shared[:, 0, 0].unique()) > 1
    assert (shared[:, 0, 0] != shared[:, 1, 0]).any(), "one number for real, one for generated"
    assert not (apart == apart[..., :1]).all(-1).any()


def test_the_image_discriminator_is_shown_frames_of_one_number(textured, monkeypatch):
    seen = []

    def spy(clips, frames):
        seen.append(frames.clone())
        return one_frame(clips, frames)

    monkeypatch.setattr(model, "one_frame", spy)
    for shared in (True, False):
        seen.clear()
        config = replace(SMOKE, batch=8, shared_frame=shared)
        step_on(textured, config)(make_trainer(config))
        real, fake, again = seen
        assert torch.equal(fake, again), "the generator is judged on the frames shown before"
        assert all(len(numbers.unique()) == 1 for numbers in seen) == shared


def test_gpu_profile_fits_a_small_gpu():
    "20 minutes at 4 TFLOP/s, by operations counted on one step; and it is the lesson's system."
    gpu, laptop = CONFIGS["gpu"], CONFIGS["laptop"]
    assert gpu.motion_kind == laptop.motion_kind == "warp" and gpu.size == 64
    clips = load("shapes", n=4, size=gpu.size, length=gpu.length, seed=0, backdrop="textured")
    one = replace(gpu, batch=1, precision="no")
    trainer = make_trainer(one)
    with FlopCounterMode(display=False) as counter:
        step_on(clips, one)(trainer)
    assert 0 < counter.get_total_flops() * gpu.batch * gpu.steps < 4.8e15


def test_shuffled_real_clips_are_called_fake(textured):
    losses = {}
    for shuffle in ("swap", "none"):
        config = replace(SMOKE, shuffle=shuffle)
        losses[shuffle] = step_on(textured, config)(make_trainer(config, seed=0))[
            "shuffled"
        ].item()
    assert losses["none"] == 0 and abs(losses["swap"] - 0.693) < 0.2
    config = replace(SMOKE, rate_discriminator=2e-3, rate_generator=0.0, shuffle="global")
    trainer = make_trainer(config, seed=0)
    trainer.fit(step_on(textured, config), 60, progress=False)
    real = textured.batch(32, 8, torch.Generator().manual_seed(1))
    discriminator = trainer.networks["video_discriminator"]
    with torch.no_grad():
        assert (
            discriminator(real) > discriminator(real[:, :, [4, 1, 6, 3, 0, 7, 2, 5]])
        ).float().mean() > 0.75


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shipped_weights_separate(seed):
    system = load_pretrained("shapes", seed)
    assert system.config.motion_kind == "warp" and system.facts["seed"] == seed
    scores = layer_scores(system.sample_layers(32, rng=torch.Generator().manual_seed(8)))
    assert scores["mask_iou"] > 0.6 and scores["background_psnr"] > 22 and scores["empty"] < 0.1
    assert (
        system.sample(8, rng=torch.Generator().manual_seed(8)).diff(dim=2).abs().mean() > 0.005
    ), "nothing moves"


def test_weights_that_do_not_ship():
    with pytest.raises(FileNotFoundError, match="v3gan_shapes_seed0"):
        load_pretrained("cats")
