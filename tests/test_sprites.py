"Characters and scenery: what would bore a reader, on paper dolls; the real art where it is."

from dataclasses import fields, replace

import numpy as np
import pytest

from vidcourse import pixel_art, scenery, sprites
from vidcourse.data import held_out, load
from vidcourse.pixel_art import ACTIONS, COUNTS, FILE, load_art, paper_dolls
from vidcourse.scenery import BACKGROUNDS, backdrop, landscape, over, pixels
from vidcourse.sprites import (
    COMMANDS,
    EVERYBODY,
    character_grid,
    characters,
    displaced,
    draw_factors,
    held_out_cells,
    render,
    resized,
    split_characters,
    staging,
    steered,
    walking_characters,
    wardrobe,
)

WALKS = [name for name in ACTIONS if name.startswith("walk")]


@pytest.fixture(scope="module")
def art():
    return paper_dolls()


def same(a, b):
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))


# Layers ---------------------------------------------------------------------------------------


def test_over_is_the_formula():
    rng = np.random.default_rng(0)
    alpha = rng.choice([0, 0, 80, 255, 255], (40, 40, 1)).astype(np.uint16)
    colour = rng.integers(0, 256, (40, 40, 3))
    layer = np.concatenate([colour * alpha // 255, alpha], -1).astype(np.uint8)
    below = np.full((40, 40, 4), 255, np.uint8)
    below[..., :3] = rng.integers(0, 256, (40, 40, 3))
    expected = layer + (1 - alpha / 255) * below
    over(below, layer)
    assert np.abs(below - expected).max() <= 0.5 + 1e-9


def test_over_works_in_a_window_of_a_page():
    page = np.zeros((10, 10, 4), np.uint8)
    over(page[2:5, 3:6], np.full((3, 3, 4), 255, np.uint8))
    assert page.sum() == 9 * 4 * 255 and (page[2:5, 3:6] == 255).all()
    assert np.shares_memory(pixels(page), page)


def test_no_premultiplied_layer_is_brighter_than_its_alpha(art):
    for layer in art.layers.values():
        assert (layer[..., :3] <= layer[..., 3:]).all()
    texture = np.linspace(0.05, 0.95, 24)
    for mood in scenery.PALETTES:
        for layer in scenery.sheets(mood, texture, 96).values():
            assert (layer[..., :3] <= layer[..., 3:]).all()


# Scenery --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_a_background_depends_on_texture_and_camera_alone(kind):
    texture = np.random.default_rng(1).random(24)
    camera = np.stack([np.arange(5) * 3, np.arange(5)], 1)
    frames = backdrop(kind, texture, camera, 64)
    assert frames.shape == (5, 64, 64, 3) and frames.dtype == np.uint8
    again = backdrop(kind, texture, camera, 64)
    assert np.array_equal(frames, again)
    still = backdrop(kind, texture, 0 * camera, 64)
    assert (still == still[:1]).all()
    assert np.array_equal(still[0], backdrop(kind, texture, camera[:1], 64)[0])
    assert (frames != frames[:1]).any() == (kind in ("textured", "scene"))


def test_one_step_of_the_camera_is_one_step_of_the_ground():
    texture = np.random.default_rng(2).random(24)
    camera = np.array([[0, 0], [7, 0], [0, 4], [256, 0]])
    a, right, down, around = landscape(texture, camera, 96)
    low = scenery.horizon(96)
    assert np.array_equal(a[low:, 7:], right[low:, :-7])
    assert np.array_equal(a[4:], down[:-4])
    assert np.array_equal(a[low:], around[low:]), "the panorama closes"


def test_a_camera_may_go_far_and_anywhere():
    texture = np.random.default_rng(3).random(24)
    camera = np.array([[-5000, -300], [5000, 3000]])
    assert landscape(texture, camera, 64).shape == (2, 64, 64, 3)


def test_every_mood_is_drawn():
    for k, mood in enumerate(scenery.PALETTES):
        texture = np.full(24, (k + 0.5) / len(scenery.PALETTES))
        camera = np.zeros((1, 2), int)
        drawn = landscape(texture, camera, 64)
        assert np.array_equal(drawn, landscape(texture, camera, 64, mood))


# Sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage, size", [(64, 32), (96, 64), (96, 36), (100, 63), (64, 16)])
def test_shrinking_is_the_mean_of_what_a_pixel_covers(stage, size):
    frames = np.random.default_rng(0).integers(0, 256, (2, stage, stage, 3)).astype(np.uint8)
    fine = np.repeat(np.repeat(frames, size, 1), size, 2).astype(np.float64)
    expected = fine.reshape(2, size, stage, size, stage, 3).mean((2, 4))
    assert np.abs(resized(frames, size) - expected).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("size", [128, 96, 65])
def test_growing_repeats_pixels(size):
    frames = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)
    large = resized(frames, size)
    rows = np.arange(size) * 64 // size
    assert np.array_equal(large, frames[:, rows][:, :, rows])


def test_all_white_stays_all_white():
    white = np.full((1, 256, 256, 3), 255, np.uint8)
    assert (resized(white, 77) == 255).all(), "sums must be exact up to the largest stage"


# Characters -----------------------------------------------------------------------------------


def test_numbers_and_wardrobes_are_one_to_one():
    worn = wardrobe(np.arange(EVERYBODY))
    factors = draw_factors(3, 0)
    rows = replace(
        factors,
        **{part: w[:, None] for part, w in worn.items()},
    )
    assert EVERYBODY == 10290 and np.array_equal(rows.character[:, 0], np.arange(EVERYBODY))
    assert len(characters(hair=3)) == 1029 and len(characters(hair=[3, 4], shoes=0)) == 686
    for wrong in (dict(hair=10), dict(hat=0), dict(shoes=[0, -1])):
        with pytest.raises(ValueError, match="worn by nobody"):
            characters(**wrong)
    with pytest.raises(ValueError, match="numbered 0 to 10289"):
        wardrobe(np.array([EVERYBODY]))


def test_the_same_seed_gives_the_same_clips(art):
    options = dict(background=BACKGROUNDS, path=sprites.PATHS, actors=2, art=art, size=32)
    a, b = (walking_characters(3, 5, seed=4, **options) for _ in range(2))
    assert np.array_equal(a.frames, b.frames) and np.array_equal(a.masks, b.masks)
    assert same(a.factors, b.factors)
    other = walking_characters(3, 5, seed=5, **options)
    assert not np.array_equal(a.frames, other.frames)


def test_the_first_clips_of_a_seed_do_not_depend_on_the_size(art):
    a = draw_factors(4, 7, path="cross")
    frames32, _ = render(a, 3, 32, art)
    frames96, _ = render(a, 3, 96, art)
    assert np.array_equal(
        resized(frames96.reshape(12, 96, 96, 3), 32), frames32.reshape(12, 32, 32, 3)
    )


@pytest.mark.parametrize("speed", [(0.0, 0.0), (0.3, 0.9), (1.0, 1.0), (2.5, 2.5)])
def test_places_change_only_with_poses(speed):
    factors = draw_factors(30, 1, path="cross", actions=WALKS, speed=speed, stage=200)
    play = staging(factors, 40)
    place, pose = play.place[:, 0], play.pose[:, 0]
    stood = (np.diff(pose, axis=1) == 0)[..., None]
    if speed[1] < 8:
        assert (np.diff(place, axis=1) * stood == 0).all(), "a body glides while its pose stays"
    steps = np.floor(factors.phase + factors.speed * 39) - np.floor(factors.phase)
    gone = np.abs(place[:, -1] - place[:, 0])
    front = factors.action[:, 0] == ACTIONS.index("walk front")
    assert np.array_equal(gone[:, 0], np.where(front, 0, 3 * steps[:, 0]))
    assert np.array_equal(gone[:, 1], np.where(front, steps[:, 0], 0))


def test_who_does_not_walk_stays():
    factors = draw_factors(40, 2, path="cross")
    play = staging(factors, 16)
    walks = np.array([name.startswith("walk") for name in ACTIONS])[factors.action[:, 0]]
    moved = (play.place[:, 0] != play.place[:, 0, :1]).any((1, 2))
    assert np.array_equal(moved, walks)
    on_the_spot = staging(draw_factors(40, 2, path="stay", stage=96), 16)
    assert (on_the_spot.place == on_the_spot.place[:, :, :1]).all()


def test_crossing_fits_into_the_picture_when_it_can():
    factors = draw_factors(200, 3, path="cross", actions=WALKS, length=16)
    place = staging(factors, 16).place[:, 0]
    assert place[..., 0].min() >= 18 and place[..., 0].max() <= 96 - 18
    assert place[..., 1].min() >= 56 and place[..., 1].max() <= 93
    long = staging(draw_factors(50, 3, path="cross", actions=WALKS, length=200), 200).place[
        :, 0
    ]
    middle = (long[:, 0, 0] + long[:, -1, 0]) / 2
    sideways = long[:, 0, 0] != long[:, -1, 0]
    assert np.abs(middle[sideways] - 48).max() <= 3, "what can't fit is centred"


def test_the_camera_follows_the_one_to_control():
    factors = draw_factors(20, 4, path="follow", actors=3, actions=WALKS)
    play, one = staging(factors, 12), (np.arange(20), factors.controlled)
    followed = play.place[one]
    assert (followed == followed[:, :1]).all(), "the followed character stays where it is"
    assert (play.camera[:, -1] != 0).any(1).all()
    world = play.place + play.camera[:, None]
    step = np.abs(np.diff(world, axis=2)).sum(-1)
    assert set(np.unique(step)) <= {1, 3}


def test_everybody_stands_on_the_stage_of_one_cell():
    factors = draw_factors(5, 0)
    assert factors.stage == 64 and (factors.start == sprites.FEET).all()
    frames, masks = render(factors, 8, 64, paper_dolls())
    garments = [getattr(factors, part)[2, 0] for part in COUNTS]
    sheet = sprites.dressed(paper_dolls(), garments, int(factors.action[2, 0]))
    pose = staging(factors, 8).pose[2, 0]
    assert np.array_equal(masks[2, 0], sheet[pose][..., 3])


# Masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_masks_say_whose_a_pixel_is(art, background):
    data = walking_characters(
        3, 4, 96, seed=8, art=art, background=background, actors=3, path="cross"
    )
    assert data.masks.astype(int).sum(1).max() <= 255 + 2
    empty = data.masks.max(1) == 0
    nobody = replace(data.play, place=data.play.place + 10_000)
    bare, gone = render(data.factors, nobody, 96, art)
    assert gone.max() == 0
    if background == "scene":  # a shadow darkens the ground, and belongs to nobody's mask
        assert (data.frames[empty] <= bare[empty]).all()
    else:
        assert np.array_equal(data.frames[empty], bare[empty])
    for j in range(3):  # a pixel that is one character's own looks the same without the others
        place = data.play.place + 10_000
        place[:, j] = data.play.place[:, j]
        alone, _ = render(data.factors, replace(data.play, place=place), 96, art)
        own = data.masks[:, j] == 255
        assert own.any() and np.array_equal(data.frames[own], alone[own])


def test_the_nearer_one_hides_the_other(art):
    factors = draw_factors(1, 0, actors=2, path="stay", actions=("walk front",))
    for near, far in ((0, 1), (1, 0)):
        start = factors.start.copy()
        start[0, near], start[0, far] = (48, 80), (48, 70)
        _, masks = render(replace(factors, start=start), 1, 96, art)
        _, alone = render(replace(factors, start=start)[[0]], 1, 96, art)
        whole = sprites.dressed(art, [getattr(factors, p)[0, near] for p in COUNTS], 4)
        assert (
            masks[0, near].astype(int).sum()
            == whole[staging(factors, 1).pose[0, near, 0]][..., 3].astype(int).sum()
        )
        assert masks[0, far].astype(int).sum() < masks[0, near].astype(int).sum()


def test_a_character_outside_the_picture_leaves_no_trace(art):
    factors = draw_factors(1, 0, stage=96)
    for place in ((-40, 50), (140, 50), (48, -5), (48, 160)):
        gone = replace(factors, start=np.array([[place]]))
        frames, masks = render(gone, 2, 48, art)
        assert masks.max() == 0 and (frames == frames[0, 0, 0, 0]).all()


def test_without_masks(art):
    data = walking_characters(2, 3, 32, art=art, masks=False)
    assert data.masks is None
    with pytest.raises(ValueError, match="masks=True"):
        data.mask  # noqa: B018


# Control --------------------------------------------------------------------------------------


def test_displaced_moves_one_and_nobody_else(art):
    data = walking_characters(4, 6, 96, seed=3, art=art, actors=3)
    by = np.random.default_rng(0).uniform(-0.3, 0.3, (4, 6, 2))
    play = displaced(data.play, data.factors, by)
    one = np.arange(4), data.factors.controlled
    moved = play.place - data.play.place
    assert np.array_equal(moved[one], np.round(by * 48))
    moved[one] = 0
    assert not moved.any()
    still = displaced(data.play, data.factors, 0 * by)
    assert np.array_equal(render(data.factors, still, 96, art)[0], data.frames)


def test_steered_does_as_it_is_told():
    factors = draw_factors(2, 0, actors=2, stage=160)
    words = ("rest", "right", "right", "rest", "left", "front", "rest")
    commands = np.array([[COMMANDS.index(word) for word in words]] * 2)
    play, one = steered(factors, commands), (np.arange(2), factors.controlled)
    gone = play.place[one] - factors.start[one][:, None]
    assert gone[0].tolist() == [[0, 0], [3, 0], [6, 0], [6, 0], [3, 0], [3, 1], [3, 1]]
    names = [ACTIONS[k] for k in play.action[one][0]]
    assert names[1:] == [
        "walk right", "walk right", "spellcast right", "walk left", "walk front", "spellcast front",
    ]  # fmt: skip
    faces = factors.action[one] % 3
    assert [names[0]] == [f"spellcast {sprites.FACES[faces[0]]}"], "at first it faces as it did"
    assert play.pose[one][0].tolist() == [0, 1, 2, 0, 3, 4, 0]
    other = np.arange(2), 1 - factors.controlled
    assert np.array_equal(play.place[other], staging(factors, 7).place[other])
    with pytest.raises(ValueError, match="they are 0 to 3: rest, left, front, right"):
        steered(factors, commands + 3)


def test_a_steered_walk_equals_a_walk(art):
    "Told to go right all along, it makes the frames of a clip in which it crosses to the right."
    factors = draw_factors(1, 5, path="cross", actions=("walk right",))
    factors = replace(factors, phase=np.full((1, 1), 1.0))
    walk = render(factors, staging(factors, 9), 64, art)[0]
    told = render(factors, steered(factors, np.full((1, 9), 3)), 64, art)[0]
    shifted = replace(factors, start=factors.start + [3, 0])
    assert np.array_equal(told, render(shifted, staging(shifted, 9), 64, art)[0])
    assert not np.array_equal(told, walk)


# Held out -------------------------------------------------------------------------------------


@pytest.mark.parametrize("contents, out", [(24, 48), (8, 16), (24, 24), (5, 5), (40, 48)])
def test_held_out_cells_are_spread(contents, out):
    held = held_out_cells(contents, 9, out, seed=3)
    assert held.sum() == out and not held.all(0).any() and not held.all(1).any()
    assert np.ptp(held.sum(1)) <= 1 and np.ptp(held.sum(0)) <= 2
    assert not np.array_equal(held, held_out_cells(contents, 9, out, seed=4))


@pytest.mark.parametrize("out", [0, -1, 216, 300])
def test_too_many_held_out_cells(out):
    with pytest.raises(ValueError, match="keep fewer"):
        held_out_cells(24, 9, out)


def test_characters_in_two_heaps():
    train, test = split_characters(0.2, seed=1)
    assert len(test) == 2058 and len(np.union1d(train, test)) == EVERYBODY
    assert all(len(np.unique(w)) == COUNTS[p] for p, w in wardrobe(test).items())
    for share in (0, 1, 1.5):
        with pytest.raises(ValueError, match="between 0 and 1"):
            split_characters(share)


def test_a_grid_has_every_cell_once(art):
    data, cells = character_grid(3, 4, 32, seed=2, art=art, background="plain")
    assert data.frames.shape == (27, 4, 32, 32, 3)
    assert cells.tolist() == [[i, a] for i in range(3) for a in range(9)]
    assert np.array_equal(data.labels, cells[:, 1])
    who = data.factors.character[:, 0].reshape(3, 9)
    assert (who == who[:, :1]).all() and len(set(who[:, 0])) == 3
    assert (data.play.pose[:, 0, 0] == 0).all(), "every clip begins with the first pose"
    corner = data.frames.reshape(3, 9, 4, 32, 32, 3)[:, :, :, 0, 0]
    assert (corner == corner[:, :1, :1]).all(), "a row has one background"
    named, _ = character_grid(who[:, 0][::-1], 4, 32, seed=2, art=art)
    assert np.array_equal(named.factors.character[::9, 0], who[::-1, 0])


# Options and absence --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, word",
    [
        (dict(n=0), "at least 1"),
        (dict(n=2, actors=0), "at least 1"),
        (dict(n=2, characters=[]), "at least 1"),
        (dict(n=2, actions=()), "spellcast left"),
        (dict(n=2, actions=("fly",)), "got .'fly'"),
        (dict(n=2, path="run"), "stay, cross, follow"),
        (dict(n=2, background=("plain", "sea")), "black, plain, textured, scene"),
        (dict(n=2, speed=(2, 1)), "slowest"),
        (dict(n=2, speed=(-1, 1)), "slowest"),
        (dict(n=2, stage=32), "64 to 256"),
        (dict(n=2, characters=[99999]), "numbered 0 to 10289"),
    ],
)
def test_options_that_can_not_be_drawn(options, word):
    with pytest.raises(ValueError, match=word):
        draw_factors(**options)


def test_clips_without_frames_and_pictures_without_pixels(art):
    factors = draw_factors(1, 0)
    with pytest.raises(ValueError, match="at least one frame"):
        staging(factors, 0)
    with pytest.raises(ValueError, match="at least one pixel"):
        render(factors, 2, 0, art)


def test_where_the_art_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDCOURSE_DATA", str(tmp_path))
    assert not pixel_art.have_sprites()
    for call in (load_art, lambda: walking_characters(1), lambda: load("sprites", n=1)):
        with pytest.raises(FileNotFoundError, match="vidcourse data sprites"):
            call()


def test_a_file_of_another_layout(tmp_path):
    np.savez(tmp_path / FILE, body=np.zeros((7, 9, 8, 64, 64, 4), np.uint8))
    with pytest.raises(ValueError, match="not the file of the characters"):
        load_art(tmp_path / FILE)


@pytest.fixture
def at_hand(tmp_path, monkeypatch, art):
    "The dolls lie where the characters are looked for."
    np.savez(tmp_path / FILE, **art.layers, action_names=np.array(ACTIONS))
    monkeypatch.setenv("VIDCOURSE_DATA", str(tmp_path))


def test_clips_by_name(at_hand):
    clips = load(
        "sprites", size=32, n=60, length=6, seed=1, background="textured", path="cross"
    )
    assert len(clips) == 60 and clips.size == (32, 32) and set(clips.lengths) == {6}
    assert clips.label_names == ACTIONS
    data = walking_characters(60, 6, 32, 1, background="textured", path="cross")
    assert np.array_equal(clips.frames.reshape(data.frames.shape), data.frames)
    assert np.array_equal(clips.labels, data.factors.action[:, 0])
    rest, out = held_out(clips, hair=[1, 2, 3])
    assert set(out.extra["hair"]) <= {1, 2, 3} and not set(rest.extra["hair"]) & {1, 2, 3}
    rest, out = held_out(clips, cell=clips.extra["cell"][:5])
    assert len(out) >= 5 and len(rest) + len(out) == 60
    with pytest.raises(ValueError, match="stay, cross, follow"):
        load("sprites", n=2, path="fly")


# The real art ---------------------------------------------------------------------------------


def test_real_art_is_what_it_was(real_data):
    import hashlib

    art = load_art(real_data(FILE))
    options = dict(actors=2, background=BACKGROUNDS, path=sprites.PATHS)
    data = walking_characters(6, 4, 48, seed=0, art=art, **options)
    digest = hashlib.sha256(data.frames.tobytes() + data.masks.tobytes()).hexdigest()[:16]
    assert digest == "48c4b403efc7002c", "the clips of a seed have changed"


def test_feet_do_not_slide(real_data):
    "While the near foot stands, its toe stays within two pixels of the ground's; on the spot, 12."
    art = load_art(real_data(FILE))
    for face, foremost in (("right", np.max), ("left", np.min)):
        action, stride = ACTIONS.index(f"walk {face}"), sprites.STRIDE[face][0]
        for shoe in art.layers["shoes"]:
            rows = shoe[action][[4, 5, 6, 7, 0], 61, :, 3] > 0
            toe = np.array([foremost(np.flatnonzero(row)) for row in rows])
            assert np.ptp(toe + stride * np.arange(5)) <= 2 < 10 < np.ptp(toe)
