"Moving shapes: bad options, far times, odd sizes, and that the picture is the same everywhere."

import hashlib

import numpy as np
import pytest

from vidcourse.shapes import (
    BACKDROPS,
    EXTENT,
    MOTIONS,
    PATHS,
    SHAPES,
    background,
    combine,
    draw_factors,
    mask,
    moving_shapes,
    position,
    render,
    stencil,
)

EVERYTHING = dict(motions=tuple(MOTIONS), backdrop=BACKDROPS)


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_same_clips_on_every_machine():
    assert (
        digest(moving_shapes(40, length=8, size=32, seed=0).frames)
        == "67a90401a120a0739d443f1338118605a9ee5c64496dff5c9e2846d9a86b2c41"
    )
    assert (
        digest(moving_shapes(40, length=5, size=33, seed=3, **EVERYTHING).frames)
        == "a2305816f5d32ac95135c4233ca84016f1590db971918558a38091d4796c7cd8"
    )


def test_default_factors_never_change():
    f = draw_factors(4, 0)
    assert f.motions == ("rise", "drift", "circle", "bounce")
    assert f.motion.tolist() == [3, 1, 3, 0]
    assert f.shape.tolist() == [0, 0, 1, 0]
    np.testing.assert_allclose(
        f.size,
        [0.33621215746949196, 0.3340615580979983, 0.21898556015996043, 0.22686131719377164],
        atol=1e-12,
    )
    np.testing.assert_allclose(
        f.colour[0], [0.7590227685631459, 0.1138534152844719, 0.19462410187631213], atol=1e-12
    )


def test_first_clips_do_not_depend_on_options_that_do_not_concern_them():
    black, textured = draw_factors(30, 5), draw_factors(30, 5, backdrop=BACKDROPS)
    for name in ("shape", "colour", "size", "motion", "points", "speed"):
        np.testing.assert_array_equal(getattr(black, name), getattr(textured, name))
    assert set(textured.backdrop) == {0, 1, 2} and set(black.backdrop) == {0}


@pytest.mark.parametrize("size", [1, 7, 32, 65, 200])
def test_frame_is_mask_over_backdrop(size):
    f, times = draw_factors(9, 2, **EVERYTHING), [0, 0.31, 1]
    cover, under = mask(f, times, size)[..., None], background(f, size)[:, None].astype(float)
    colour = np.round(f.colour * 255)[:, None, None, None]
    again = cover * colour + (1 - cover) * under
    assert np.abs(again - render(f, times, size)).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(
    "shape, unit", [(0, np.pi), (1, (2 * 0.886) ** 2), (2, 3 * 3**0.5 * 0.65**2)]
)
@pytest.mark.parametrize("radius", [4.0, 10.9, 60.0])
def test_area_and_whole_shape_drawn(shape, unit, radius):
    "The window around an object must hold all of it, also when it is large."
    page = stencil(shape, radius, np.array([[100.3, 99.6]]), 200)[0] / 255
    assert page.sum() == pytest.approx(unit * radius**2, rel=0.02)
    rows = np.flatnonzero(page.sum(1) > 0)
    top = 99.6 - EXTENT[shape] * radius
    assert rows[0] <= top + 1.6, "the upper end is cut off"


def test_triangle_points_up():
    page = stencil(2, 20.0, np.array([[32.0, 32.0]]), 64)[0].astype(float)
    width = page.sum(1) / 255
    assert width[50 - 8] > width[20] > width[8]
    np.testing.assert_allclose(page, page[:, ::-1], atol=1)


@pytest.mark.parametrize("shape", range(3))
def test_at_the_border_a_picture_is_a_cut_of_a_larger_one(shape):
    where = np.array([[-1.3, 7.6], [15.2, 0.4], [8.1, 18.7]])
    np.testing.assert_array_equal(
        stencil(shape, 5.0, where, 16), stencil(shape, 5.0, where + 16, 48)[:, 16:32, 16:32]
    )


def test_places_lie_on_the_grid():
    p = position(draw_factors(50, 3, motions=tuple(MOTIONS)), np.linspace(0, 1, 9)) * 4096
    np.testing.assert_array_equal(p, np.round(p))


def test_objects_beyond_the_border_are_cut_not_wrapped():
    page = stencil(0, 5.0, np.array([[-2.0, 8.0], [40.0, 40.0]]), 16)
    assert page[0, :, :3].any() and not page[0, :, 4:].any() and not page[1].any()


@pytest.mark.parametrize("name", sorted(MOTIONS))
def test_paths_stay_inside_for_ever_and_labels_mean_something(name):
    f = draw_factors(200, 4, motions=(name,))
    p = position(f, np.linspace(-3, 25, 400))
    assert np.abs(p).max() <= 1 and np.isfinite(p).all()
    assert set(f.path) == {PATHS.index(MOTIONS[name])}
    moved = position(f, [0, 1])
    moved = moved[:, 1] - moved[:, 0]
    axis, sign = {"rise": (1, -1), "fall": (1, 1), "drift": (0, -1), "cross": (0, 1)}.get(
        name, (None, None)
    )
    assert axis is None or (sign * moved[:, axis] > 0.5).all()


def test_times_may_be_anything_and_differ_between_clips():
    f = draw_factors(5, 1)
    own = np.random.default_rng(0).uniform(0, 2, (5, 3))
    whole = render(f, own, 24)
    for i in range(5):
        np.testing.assert_array_equal(whole[i], render(f[i : i + 1], own[i], 24)[0])


@pytest.mark.parametrize("times", [[0, np.nan], [[0, 1]] * 3, np.zeros((5, 1, 2))])
def test_bad_times(times):
    with pytest.raises(ValueError, match="times"):
        position(draw_factors(5, 1), times)


@pytest.mark.parametrize(
    "options, word",
    [
        (dict(n=0), "at least one"),
        (dict(motions=("jump",)), "rise"),
        (dict(motions="rise"), "motions"),
        (dict(motions=()), "motions"),
        (dict(shapes=("star",)), "triangle"),
        (dict(backdrop="sky"), "textured"),
        (dict(size=(0, 0.3)), "radius"),
        (dict(size=(0.4, 0.3)), "radius"),
        (dict(size=(0.4, 1)), "radius"),
        (dict(speed=(-1, 1)), "slowest"),
    ],
)
def test_bad_options(options, word):
    with pytest.raises(ValueError, match=word):
        draw_factors(**{"n": 3, **options})


def test_bad_length_and_size():
    with pytest.raises(ValueError, match="at least one frame"):
        moving_shapes(2, length=0)
    with pytest.raises(ValueError, match="pixel"):
        moving_shapes(2, size=0)
    assert moving_shapes(2, length=1, size=8).frames.shape == (2, 1, 8, 8, 3)


def test_combine():
    a, b = draw_factors(6, 1, backdrop="plain"), draw_factors(6, 2)
    both = combine(a, b)
    np.testing.assert_array_equal(both.colour, a.colour)
    np.testing.assert_array_equal(both.motion, b.motion)
    with pytest.raises(ValueError, match="6 contents and 5 motions"):
        combine(a, b[:5])


def test_selecting_factors():
    f = draw_factors(6, 1)
    assert len(f[2]) == 1 and len(f[1:3]) == 2 and len(f[f.motion >= 0]) == 6
    np.testing.assert_array_equal(f[[4, 0]].points, f.points[[4, 0]])


def test_backdrops():
    black, plain, textured = (
        background(draw_factors(4, 1, backdrop=b), 16).astype(int) for b in BACKDROPS
    )
    assert (
        not black.any()
        and (plain == plain[:, :1, :1]).all()
        and textured.reshape(4, -1).std(1).min() > 1
    )
    assert max(plain.max(), textured.max()) <= 115, (
        "a backdrop is brighter than an object may be dark"
    )
    assert (draw_factors(500, 1).colour.max(1) >= 0.75).all()


def test_names():
    assert len(SHAPES) == len(EXTENT) and set(MOTIONS.values()) == set(PATHS)
