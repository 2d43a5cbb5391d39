"vidcourse.metrics: held against the truth of shapes, scipy, torchmetrics, and odd input."

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.functional.classification import binary_jaccard_index
from torchmetrics.functional.image import peak_signal_noise_ratio

from vidcourse import metrics as m
from vidcourse.shapes import (
    background,
    combine,
    draw_factors,
    mask,
    moving_shapes,
    position,
    render,
)
from vidcourse.video import to_float

try:
    from jaxtyping import (
        TypeCheckError as ShapeError,
    )  # raised earlier where the shape checks of jaxtyping are switched on
except ImportError:
    ShapeError = TypeError
REFUSED = (ValueError, ShapeError)
T = np.arange(16) / 15


@pytest.fixture(scope="module")
def data():
    return moving_shapes(24, size=32, seed=3)


@pytest.fixture(scope="module")
def clips(data):
    return to_float(data.frames)


@pytest.fixture(scope="module")
def grid():
    """Contents x motions, 4 by 4: every content of one half, every motion of the other."""
    factors = draw_factors(8, seed=11)
    rows, columns = np.repeat(np.arange(4), 4), np.tile(np.arange(4, 8), 4)
    return to_float(render(combine(factors[rows], factors[columns]), T, 32)).unflatten(
        0, (4, 4)
    )


def flat(clip_colour, places, size=16):
    """One clip of a 4 x 4 square of one colour (0 to 1), its upper left corner at `places` (x, y).

    None leaves a frame empty.
    """
    clip = -torch.ones(1, 3, len(places), size, size)
    colour = torch.tensor(clip_colour)[:, None, None] * 2 - 1
    for t, place in enumerate(places):
        if place is not None:
            x, y = place
            clip[0, :, t, y : y + 4, x : x + 4] = colour
    return clip


# Tracking


def test_track_finds_position_colour_and_area(data, clips):
    found = m.track(clips)
    truth = torch.from_numpy(position(data.factors, data.times)).float()
    off = (found.centroids - truth).norm(dim=-1) * 16
    assert off.mean() < 0.1 and off.max() < 0.6  # pixels
    colours = torch.from_numpy(data.factors.colour).float()[:, None]
    assert (found.colours - colours).abs().max() < 0.06
    cover = torch.from_numpy(mask(data.factors, data.times, 32)).mean((2, 3))
    assert (found.area - cover).abs().max() < 0.02


def test_track_is_exact_on_whole_pixels_and_x_points_right():
    found = m.track(flat((0.2, 0.9, 0.4), [(0, 0), (12, 0), (0, 12)]))
    places = torch.tensor([[-0.75, -0.75], [0.75, -0.75], [-0.75, 0.75]])
    assert torch.allclose(found.centroids[0], places, atol=1e-6)
    colours = torch.tensor([0.2, 0.9, 0.4]).expand(3, 3)
    assert torch.allclose(found.colours[0], colours, atol=1e-6)
    assert torch.allclose(found.area, torch.full((1, 3), 1 / 16))


def test_an_empty_frame_has_no_position_no_colour_and_no_area():
    found = m.track(flat((1.0, 0.0, 0.0), [(2, 2), None]))
    assert found.centroids[0, 1].isnan().all() and not found.centroids[0, 0].isnan().any()
    assert (found.colours[0, 1] == 0).all() and found.area[0, 1] == 0


def test_haze_below_the_threshold_does_not_pull():
    clip = flat((1.0, 0.0, 0.0), [(0, 0)])
    hazy = clip.clamp(min=-0.7)  # brightness 0.15 everywhere
    assert torch.allclose(m.track(hazy).centroids, m.track(clip).centroids, atol=1e-6)
    assert not torch.allclose(
        m.track(hazy, threshold=0.0).centroids, m.track(clip).centroids, atol=0.05
    )


def test_track_with_known_background_or_mask():
    data = moving_shapes(12, size=32, seed=1, backdrop="textured")
    clips = to_float(data.frames)
    truth = torch.from_numpy(position(data.factors, data.times)).float()
    ground = to_float(background(data.factors, 32)[:, None])[:, :, 0]

    def off(**way):
        return (m.track(clips, **way).centroids - truth).norm(dim=-1).mean().item() * 16

    assert off(mask=torch.from_numpy(mask(data.factors, data.times, 32))) < 0.1
    assert off(background=ground) < 0.5 < 2 < off()


def test_wrong_clips_are_refused(data):
    for wrong in (
        torch.from_numpy(data.frames),
        torch.zeros(2, 1, 4, 8, 8),
        torch.zeros(3, 4, 8, 8),
    ):
        with pytest.raises(REFUSED):
            m.brightness(wrong)


def test_pixels_less_than_half_covered_are_no_area():
    clip = flat((1.0, 1.0, 1.0), [(4, 4)])
    clip[:, :, :, 8, 4:8] = -0.2  # a faint row: 0.4 covered
    clip[:, :, :, 3, 4:8] = 0.4  # a strong one: 0.7
    assert abs(m.track(clip).area.item() - 20 / 256) < 1e-6


def test_motion_meters():
    half_then_still = torch.tensor([[0.5, 0.0]])
    path = torch.tensor([[[0.0, 0.0], [0.3, 0.4], [0.3, 0.4]]])
    assert torch.allclose(m.speed(path), half_then_still)
    clip = flat((1.0, 1.0, 1.0), [(0, 0), (4, 0), (4, 0)])
    assert torch.allclose(m.speed(m.track(clip).centroids), half_then_still, atol=1e-6)
    # 32 pixels change by 2, in one of two steps
    assert abs(m.frame_change(clip).item() - 2 * 32 / 256 / 2) < 1e-6
    assert m.frame_change(clip[:, :, :1].expand_as(clip)).item() == 0


# Content and motion


def test_acd_by_hand():
    x = torch.tensor([[[0.0, 0], [3, 4], [0, 0]], [[1.0, 1], [1, 1], [1, 1]]])
    assert abs(m.acd(x) - (10 / 3 + 0) / 2) < 1e-6
    with pytest.raises(ValueError, match="at least 2"):
        m.acd(x[:, :1])


def test_acd_ignores_order_and_is_fooled_by_freezing(clips):
    colours = m.object_colour(clips)
    assert abs(m.acd(colours) - m.acd(colours.flip(1))) < 1e-6
    frozen = colours[:, :1].expand_as(colours)
    assert m.acd(frozen) < 1e-7 < m.acd(colours)


def test_colour_spread_by_hand():
    x = torch.tensor(
        [[[[0.0], [2.0]], [[4.0], [6.0]]], [[[10.0], [12.0]], [[14.0], [16.0]]]]
    )  # contents, motions, t, 1
    s = m.colour_spread(x)
    assert np.allclose([s.in_clip, s.across, s.within, s.between], [1, 2, 5**0.5, 50**0.5])
    assert np.isclose(s.ratio, s.within / s.between) and np.isclose(
        s.within**2, s.in_clip**2 + s.across**2
    )
    assert m.colour_spread(torch.ones(3, 3, 2, 3)).ratio == float("inf")  # no content at all


def test_colour_ratio_knows_rows_from_columns(grid):
    right, wrong = m.colour_ratio(grid), m.colour_ratio(grid.transpose(0, 1))
    assert right.ratio < 0.1 and wrong.ratio > 1
    for bad in (grid[:1], grid[0]):
        with pytest.raises(REFUSED):
            m.colour_ratio(bad)


def test_shape_agreement(grid):
    right, wrong = m.shape_agreement(grid), m.shape_agreement(grid.transpose(0, 1))
    assert right.same > 0.9 > right.different and wrong.same < wrong.different
    still = m.silhouettes(grid[0])
    off = m.centroid(still).norm(dim=-1) * 16
    assert off.max() < 1  # in the middle, to a pixel


def test_shape_agreement_by_hand():
    a, b = flat((1.0, 0, 0), [(0, 0), (8, 8)]), flat((1.0, 0, 0), [(5, 5), (3, 9)])
    a[:, :, :, 2:4] = -1  # frame 0: a square loses its lower half
    found = m.shape_agreement(
        torch.stack([torch.stack([b[0], b[0]]), torch.stack([b[0], b[0]])]), every=1
    )
    assert found.same == 1 and found.different == 1
    found = m.shape_agreement(
        torch.stack([torch.stack([b[0], b[0]]), torch.stack([a[0], a[0]])]), every=1
    )
    assert found.same < 1 and found.different < 1


def test_path_correlation_reads_columns(grid):
    tracks = m.track(grid.flatten(0, 1)).centroids.unflatten(0, (4, 4))
    down, along = m.path_correlation(tracks), m.path_correlation(tracks.transpose(0, 1))
    assert down.score > 0.95 and down.joint > 0.95 and along.score < 0.7


def test_path_correlation_by_hand():
    t = torch.linspace(-1, 1, 9)
    zero = torch.zeros_like(t)

    def path(x, y):
        return torch.stack([x, y], -1)

    same = torch.stack([path(t, zero), path(0.5 * t, zero)])[
        :, None
    ]  # one motion, two contents
    found = m.path_correlation(same)
    assert abs(found.score - 1) < 1e-6 and found.moving == 0.5 and found.per_axis[0, 1].isnan()
    assert (
        abs(m.path_correlation(torch.stack([path(t, zero), path(-t, zero)])[:, None]).score + 1)
        < 1e-6
    )
    third = torch.stack([path(t, zero), path(t, zero), path(zero, zero)])[
        :, None
    ]  # one stands still: 1 of 3 pairs agrees
    assert abs(m.path_correlation(third).score - 1 / 3) < 1e-6


def test_path_correlation_does_not_excuse_the_frozen_or_punish_the_still_axis():
    frozen = torch.zeros(3, 2, 8, 2)
    assert m.path_correlation(frozen).score == 0 and m.path_correlation(frozen).moving == 0
    gen = torch.Generator().manual_seed(0)
    t = torch.linspace(-1, 1, 16)
    noisy = torch.stack([t.expand(5, 2, 16), 0.01 * torch.randn(5, 2, 16, generator=gen)], -1)
    assert m.path_correlation(noisy).score > 0.999
    with pytest.raises(ValueError):
        m.path_correlation(torch.zeros(1, 2, 8, 2))


def test_path_correlation_leaves_out_motions_that_nobody_performs_and_says_so():
    t = torch.linspace(-1, 1, 9)
    tracks = torch.zeros(3, 4, 9, 2)  # of four motions, three are frozen
    tracks[:, 0] = torch.stack([t, -t], -1)
    found = m.path_correlation(tracks)
    assert (
        abs(found.score - 1) < 1e-6
        and found.moving == 0.25
        and found.per_axis[1:].isnan().all()
    )


def test_empty_frames_keep_the_last_position():
    nan = float("nan")
    x = torch.tensor([[[nan, nan], [1, 2], [nan, nan], [3, 4]], [[nan] * 2] * 4])
    assert m.fill_gaps(x).tolist() == [[[1, 2], [1, 2], [1, 2], [3, 4]], [[0, 0]] * 4]
    assert x[0, 0].isnan().all()  # the input is left alone
    t = torch.linspace(-1, 1, 12)
    tracks = torch.stack([t, t], -1).repeat(2, 1, 1, 1)
    tracks[0, 0, 5] = nan
    assert m.path_correlation(tracks).score > 0.98


# Masks, pixels, crowds


def test_mask_iou_equals_torchmetrics():
    gen = torch.Generator().manual_seed(0)
    a, b = torch.rand(6, 9, 9, generator=gen), torch.rand(6, 9, 9, generator=gen)
    want = torch.stack([binary_jaccard_index(x, (y > 0.5).int()) for x, y in zip(a, b)])
    assert torch.allclose(m.mask_iou(a, b), want)
    empty = torch.zeros(1, 4, 4)
    assert m.mask_iou(empty, empty).item() == 1 and m.mask_iou(empty, 1 + empty).item() == 0


def test_psnr_equals_torchmetrics():
    gen = torch.Generator().manual_seed(0)
    a, b = (
        torch.rand(2, 3, 4, 8, 8, generator=gen) * 2 - 1,
        torch.rand(2, 3, 4, 8, 8, generator=gen) * 2 - 1,
    )
    want = torch.stack([peak_signal_noise_ratio(x, y, data_range=2.0) for x, y in zip(a, b)])
    assert torch.allclose(m.psnr(a, b), want, atol=1e-4) and m.psnr(a, a).isinf().all()
    with pytest.raises(REFUSED):
        m.psnr(a, b[:, :, :2])


@pytest.mark.parametrize("n, k, d", [(200, 150, 6), (12, 9, 30), (2, 2, 5)])
def test_frechet_distance_equals_scipy(n, k, d):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(n, d)), rng.normal(size=(k, d)) @ rng.normal(size=(d, d)) + 0.5
    A, B = np.cov(a.T), np.cov(b.T)
    want = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(
        A + B - 2 * scipy.linalg.sqrtm(A @ B).real
    )
    got = m.frechet_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert (
        abs(got - want) < (1e-8 if n > d else 1e-4) * want
    )  # scipy is the rough one when singular


def test_frechet_distance_in_one_dimension_and_of_itself():
    a = torch.tensor([[0.0], [2.0]]) * 3
    assert (
        abs(m.frechet_distance(a, a / 3 + 5) - ((3 - 6) ** 2 + (18**0.5 - 2**0.5) ** 2)) < 1e-6
    )
    x = torch.randn(40, 7, generator=torch.Generator().manual_seed(0))
    assert (
        m.frechet_distance(x, x) < 1e-9
        and abs(m.frechet_distance(x, 2 * x) - m.frechet_distance(2 * x, x)) < 1e-6
    )


def test_frechet_distance_refuses():
    x = torch.randn(5, 3)
    for a, b in ((x, x[:, :2]), (x[:1], x), (x, x * float("nan"))):
        with pytest.raises(REFUSED):
            m.frechet_distance(a, b)


def test_shuffle_frames(clips):
    def g():
        return torch.Generator().manual_seed(1)

    mixed = m.shuffle_frames(clips, g())
    assert (
        mixed.shape == clips.shape
        and torch.equal(mixed, m.shuffle_frames(clips, g()))
        and not torch.equal(mixed, clips)
    )
    marked = torch.arange(16.0).view(1, 1, 16, 1, 1).expand(8, 3, 16, 2, 2)
    orders = m.shuffle_frames(marked, g())[:, 0, :, 0, 0]
    assert (orders.sort(1).values == torch.arange(16.0)).all() and len(
        {tuple(o.tolist()) for o in orders}
    ) == 8
    assert (
        m.shuffle_frames(marked, g()) == m.shuffle_frames(marked, g())[:, :1, :, :1, :1]
    ).all()  # whole frames stay together


def test_match_categories():
    found = m.match_categories(
        torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([1, 1, 0, 1, 0, 2]), 3
    )
    assert found.classes.tolist() == [1, 0, 2] and abs(found.accuracy - 4 / 6) < 1e-9
    assert found.table.tolist() == [[1, 2, 0], [1, 1, 0], [0, 0, 1]]
    more = m.match_categories(
        torch.tensor([0, 1, 2, 2]), torch.tensor([0, 0, 1, 1]), 3, 2
    )  # a category too many
    assert sorted(more.classes.tolist()) == [-1, 0, 1] and more.accuracy == 0.75
    with pytest.raises(REFUSED):
        m.match_categories(torch.tensor([0, 1]), torch.tensor([0]), 2)
