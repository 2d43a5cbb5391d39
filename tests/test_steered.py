"""Steered shapes: what is drawn, where it is, and what bad input says (`01_steered_shapes`)."""

from dataclasses import fields

import numpy as np
import pytest

from vidcourse.steered import (
    Scenes,
    behind,
    draw_scenes,
    paint_scenes,
    room,
    steered_shapes,
    wander,
)


def centres(masks):
    y, x = np.mgrid[: masks.shape[-2], : masks.shape[-1]]
    area = masks.sum((-2, -1))
    return (
        np.stack([(masks * x).sum((-2, -1)), (masks * y).sum((-2, -1))], -1) / area[..., None]
    )


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    a, b, c = (steered_shapes(3, 4, 32, seed=s) for s in (5, 5, 6))
    assert a.frames.tobytes() == b.frames.tobytes() and (a.paths == b.paths).all()
    assert (a.frames != c.frames).any() and (a.paths != c.paths).any()
    # a set of more clips begins with other scenes, but a selection is what it says
    assert (a[1].frames == a.frames[1:2]).all() and len(a[[0, 2]].scenes) == 2


def test_what_is_drawn_and_what_is_said_agree():
    data = steered_shapes(40, 6, 32, seed=3)
    off = centres(data.masks) - data.paths
    round_ones = data.scenes.shape < 2
    assert np.abs(off[round_ones]).mean() < 0.12 and np.abs(off).max() < 0.8
    assert np.abs(off.mean((0, 1))).max() < 0.1  # no half pixel to one side
    assert np.allclose(data.shifts, data.paths[:, 1:] - data.paths[:, :-1])
    again, masks = paint_scenes(data.scenes, data.paths)
    assert (again == data.frames).all() and (masks == data.masks).all()


def test_only_the_object_is_colourful_and_it_has_stripes():
    data = steered_shapes(64, 1, 32, seed=4)
    colourful = np.ptp(data.frames.astype(int), -1) > 0.35 * 255
    union = (colourful | data.masks).sum((2, 3))
    assert ((colourful & data.masks).sum((2, 3)) / union).mean() > 0.9
    still = behind(data.scenes)
    assert (np.ptp(still.astype(int), -1) < 0.25 * 255).all()
    for frame, mask in zip(data.frames[:, 0], data.masks[:, 0]):
        assert frame[mask].astype(float).std(0).max() > 20  # not of one colour


def test_steps_reach_so_far_and_stay_inside():
    scenes = draw_scenes(50, 32, 1)
    paths = wander(scenes, 60, reach=3, rest=0.3, seed=1)
    steps = np.diff(paths, axis=1)
    assert 2.9 < np.abs(steps).max() < 3.001
    assert abs((steps == 0).all(-1).mean() - 0.3) < 0.03
    low = room(scenes)[:, None, None] - 0.5
    assert (paths >= low - 1e-3).all() and (paths <= 31 - low + 1e-3).all()
    assert np.abs(np.diff(wander(scenes, 60, seed=1), axis=1)).max() > 3.9  # an eighth of 32
    assert (np.diff(wander(scenes, 5, rest=1.0), axis=1) == 0).all()
    assert not (np.diff(wander(scenes, 5, rest=0.0), axis=1) == 0).any()


def test_axes_are_x_right_y_down_and_edges_cut():
    scenes = draw_scenes(1, 32, 2)
    middle = np.full((1, 1, 2), 15.5)
    clip, here = paint_scenes(scenes, middle)
    moved, right = paint_scenes(scenes, middle + [3, 0])
    _, down = paint_scenes(scenes, middle + [0, 3])
    assert (np.roll(here, 3, 3) == right).all() and (np.roll(here, 3, 2) == down).all()
    whole = right & np.roll(right, 1, 2) & np.roll(right, -1, 2)  # fully covered, with stripes
    whole &= np.roll(right, 1, 3) & np.roll(right, -1, 3)
    assert whole.sum() > 20 and (np.roll(clip, 3, 3)[whole] == moved[whole]).all()
    corner = np.array([[[0.0, 0.0], [31.0, 31.0], [-40.0, 90.0]]])
    clip, masks = paint_scenes(scenes, corner)
    assert masks[0, 0, 0, 0] and masks[0, 1, -1, -1] and not masks[0, 2].any()
    assert (clip[0, 2] == behind(scenes)[0]).all()  # all gone: only what stands still


def test_scenes_are_the_same_at_every_size():
    small, large = draw_scenes(5, 16, 9), draw_scenes(5, 64, 9)
    for field in fields(Scenes)[1:]:
        assert (getattr(small, field.name) == getattr(large, field.name)).all()
    path = np.full((5, 1, 2), 7.5)
    _, a = paint_scenes(small, path)
    _, b = paint_scenes(large, (path + 0.5) * 4 - 0.5)
    coarse = b.reshape(5, 1, 16, 4, 16, 4).mean((3, 5)) > 0.5
    assert (a != coarse).mean() < 0.02


def test_clips_carry_factors_that_fit_any_size():
    clips = steered_shapes(6, 4, 16, seed=0).as_clips()
    assert len(clips) == 6 and clips.size == (16, 16) and clips.labels is None
    assert clips.extra["radius"].shape == (6,)
    assert clips.select([1, 3]).extra["colours"].shape == (2, 2, 3)
    assert clips.resize(8).size == (8, 8)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: draw_scenes(0, 32), "at least one scene"),
        (lambda: draw_scenes(3, 0), "one pixel"),
        (lambda: steered_shapes(2, 0, 16), "at least one frame"),
        (lambda: steered_shapes(2, 3, 16, reach=-1.0), "pixels from 0 up"),
        (lambda: steered_shapes(2, 3, 16, rest=1.5), "share between 0 and 1"),
        (lambda: paint_scenes(draw_scenes(2, 16), np.zeros((3, 1, 2))), "(2, frames, 2)"),
        (lambda: paint_scenes(draw_scenes(1, 16), np.full((1, 1, 2), np.nan)), "finite"),
    ],
)
def test_bad_input_says_what_to_give(call, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(").replace(")", r"\)")):
        call()


def test_the_command_line_knows_them_by_name():
    from types import SimpleNamespace

    from vidcourse import cli

    config = SimpleNamespace(size=16, length=3, frame_step=2)
    clips = cli.load_clips("steered", config, n=4, seed=7)
    assert len(clips) == 4 and clips.size == (16, 16) and (clips.lengths == 6).all()
    assert (clips.frames.reshape(4, 6, 16, 16, 3) == steered_shapes(4, 6, 16, 7).frames).all()
