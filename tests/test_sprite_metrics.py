"Rulers of characters: arithmetic on made-up readings, weights, whole systems, the shipped readers."

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vidcourse import sprite_metrics as sm
from vidcourse.data import Clips
from vidcourse.pixel_art import ACTIONS, COUNTS, FILE, load_art, paper_dolls
from vidcourse.sprite_metrics import CharacterReader, Reading, closeup, constancy, deeds
from vidcourse.sprites import split_characters, walking_characters
from vidcourse.video import to_float


@pytest.fixture(scope="module")
def art():
    return paper_dolls()


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(0)
    return CharacterReader(32, width=4).eval()


def sure(action, pose):
    "Log probabilities of a reader that is sure of these poses."
    poses = torch.zeros(1, len(pose), sm.POSES)
    poses[0, torch.arange(len(pose)), action * sm.CYCLE + torch.as_tensor(pose)] = 9
    return poses.log_softmax(2)


@pytest.mark.parametrize("action", range(len(ACTIONS)))
@pytest.mark.parametrize("speed", sm.SPEEDS)
def test_every_course_of_every_action_is_known(action, speed):
    for phase in (0.0, 2.5, 7.0):
        pose = [int(phase + speed * t) % 8 for t in range(16)]
        told = deeds(sure(action, pose))
        assert told.action.item() == action and told.in_step.item() == 1


def test_twins_are_the_frames_that_a_sheet_shows_twice():
    spell, blow = ACTIONS.index("spellcast left"), ACTIONS.index("slash right")
    assert deeds(sure(spell, [0, 1, 2, 3, 4, 5, 6, 0] * 2)).in_step.item() == 1
    assert deeds(sure(blow, [0, 1, 2, 3, 4, 5, 5, 0] * 2)).in_step.item() == 1
    assert deeds(sure(ACTIONS.index("walk left"), [0, 1, 2, 3, 4, 5, 5, 0] * 2)).in_step < 0.9


def test_frozen_and_backward_clips_are_out_of_step():
    walk = ACTIONS.index("walk front")
    assert deeds(sure(walk, [3] * 16)).in_step.item() <= 0.25
    assert deeds(sure(walk, [*range(7, -1, -1)] * 2)).in_step.item() <= 0.5


def test_one_wrong_frame_does_not_change_the_action():
    poses = sure(ACTIONS.index("walk left"), list(range(8)))
    poses[0, 3] = sure(ACTIONS.index("slash left"), [2])[0, 0]
    told = deeds(poses)
    assert ACTIONS[told.action.item()] == "walk left" and told.in_step.item() == 7 / 8


def test_constancy_and_as_wanted():
    seen = torch.tensor([[[1], [1], [2], [1]], [[3], [4], [3], [4]], [[5], [5], [5], [5]]])
    assert constancy(seen)[:, 0].tolist() == [0.75, 0.5, 1.0]
    wanted = torch.tensor([[2], [3], [0]])
    assert sm.as_wanted(seen, wanted)[:, 0].tolist() == [0.25, 0.5, 0.0]


def test_position_error():
    mask = torch.zeros(2, 3, 32, 32)
    mask[:, :, 10:20, 8:12] = 1
    moved = mask.roll((3, 4), (2, 3))
    assert torch.allclose(sm.position_error(moved, mask), torch.full((2,), 5 / 16))
    moved[0, 1:] = 0  # frames without a mask are passed over
    assert torch.allclose(sm.position_error(moved, mask), torch.full((2,), 5 / 16))
    moved[1] = 0
    error = sm.position_error(moved, mask)
    assert not error[0].isnan() and error[1].isnan()


def test_cell_scores():
    rng = torch.Generator().manual_seed(0)
    true = torch.rand(3, 3, 8, 32, 32, generator=rng) * 2 - 1
    still = true.mean(2, keepdim=True).expand_as(true)
    floor = sm.cell_scores(still, true)
    assert floor["psnr_gain"] == 0 and floor["ssim_gain"] == 0
    near = sm.cell_scores((0.9 * true + 0.1 * still), true)
    assert near["psnr_gain"] == pytest.approx(20, abs=0.1) and near["ssim_gain"] > 0.1
    assert sm.cell_scores(true, true)["ssim"] == pytest.approx(1)


def test_the_close_up_finds_its_character_anywhere(art):
    near = walking_characters(4, 1, 64, seed=1, art=art, background="plain")
    far = walking_characters(4, 1, 96, seed=1, art=art, background="plain", stage=128)
    for data in (near, far):
        masks = torch.from_numpy(data.masks[:, 0, 0]).float() / 255
        picture = masks[:, None].repeat(1, 3, 1, 1)
        seen = closeup(picture, masks, size=64)[:, 0] > 0.5
        heights = seen.any(2).sum(1)
        assert heights.min() >= 42 and heights.max() <= 60, heights
        middle = (seen.float().sum(1) * torch.arange(64)).sum(1) / seen.sum((1, 2))
        assert (middle - 31.5).abs().max() < 1.5


def test_a_frame_without_a_character_is_looked_at_whole():
    frames = torch.rand(1, 3, 32, 32)
    assert torch.allclose(closeup(frames, torch.zeros(1, 32, 32)), frames, atol=1e-5)


def test_reading_clips_of_another_size(reader, art):
    clips = to_float(walking_characters(3, 5, 48, art=art).frames)
    reading = sm.read(reader, clips, batch=2)
    assert reading.masks.shape == (3, 5, 48, 48)
    assert reading.garments.shape == (3, 5, len(COUNTS))
    assert torch.allclose(reading.poses.exp().sum(2), torch.ones(3, 5), atol=1e-4)
    one_by_one = [sm.read(reader, clip[None]) for clip in clips]
    assert torch.allclose(reading.masks, torch.cat([r.masks for r in one_by_one]), atol=1e-5)


@pytest.mark.parametrize("size", [0, 30, -4])
def test_sizes_that_can_not_be_read(size):
    with pytest.raises(ValueError, match="multiple of 4"):
        CharacterReader(size)


def test_lessons_are_right(art):
    taught = sm.lessons(7, 32, [5, 6, 7000], seed=3, length=4, art=art)
    assert taught.frames.shape == (7, 4, 32, 32, 3) and taught.masks.shape == (7, 4, 32, 32)
    assert (taught.poses // sm.CYCLE == taught.actions[:, None]).all()
    numbers = np.ravel_multi_index(tuple(taught.garments.T), tuple(COUNTS.values()))
    assert set(numbers) <= {5, 6, 7000}
    assert ((np.diff(taught.poses, axis=1) % sm.CYCLE) == 1).all()


def test_training_is_seeded_and_goes_on(art):
    options = dict(size=16, steps=2, each=8, width=4, batch=4, art=art)
    (a, losses), (b, again), (c, _) = (
        sm.train_reader(seed=seed, **options) for seed in (0, 0, 1)
    )
    assert losses == again and all(np.isfinite(losses))
    same = [torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters())]
    other = [torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters())]
    assert all(same) and not all(other)
    larger, _ = sm.train_reader(32, 1, each=8, width=4, batch=4, art=art, start=a, rate=0.0)
    assert larger.size == 32
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), larger.parameters()))


def test_only_the_first_heap_is_shown(art, monkeypatch):
    shown = []
    drawing = sm.lessons

    def spy(n, size, characters, *options):
        shown.append(characters)
        return drawing(n, size, characters, *options)

    monkeypatch.setattr(sm, "lessons", spy)
    sm.train_reader(16, 1, each=8, width=4, batch=4, art=art)
    assert shown and not np.intersect1d(shown[0], split_characters()[1]).size


def test_weights_come_back(reader, tmp_path):
    sm.save_reader(tmp_path / "r.safetensors", reader, steps=3)
    again, facts = sm.load_reader(tmp_path / "r.safetensors")
    assert facts["steps"] == 3 and again.config == reader.config and not again.training
    for x, y in zip(reader.state_dict().values(), again.state_dict().values()):
        assert torch.allclose(x.float(), y.float(), rtol=1e-3, atol=1e-3)


def test_weights_of_something_else_are_refused():
    with pytest.raises(ValueError, match="not of a character reader"):
        sm.load_reader("mocogan_shapes_seed0")
    with pytest.raises(FileNotFoundError):
        sm.load_reader("classifier_characters7")


# Whole systems --------------------------------------------------------------------------------


class Drawer:
    "A system that draws what it is asked for."

    def __init__(self, art, categories):
        self.art = art
        self.config = SimpleNamespace(size=32, length=4, categories=categories)
        self.asked = None

    def sample(self, n, length, rng, **conditions):
        self.asked = conditions
        data = walking_characters(n, length, 32, 5, self.art)
        return to_float(data.frames)


@pytest.fixture(scope="module")
def clips(art):
    data = walking_characters(12, 6, 32, 1, art)
    return Clips.from_array(data.frames, data.labels, ACTIONS, data.fields())


@pytest.mark.parametrize("categories, asked", [(9, True), (0, False), (4, False)])
def test_scores_of_a_system(reader, art, clips, categories, asked):
    system = Drawer(art, categories)
    scores = sm.sprite_scores(system, clips, reader, n=18)
    assert ("action" in scores) == asked and ("category" in system.asked) == asked
    assert {"in step", "garments constant", "hair constant", "action, real"} <= set(scores)
    assert all(0 <= value <= 1 for value in scores.values())
    assert not any("IoU" in name for name in scores)


def test_scores_of_a_system_with_layers(reader, art, clips, monkeypatch):
    system, seen = Drawer(art, 0), torch.zeros(18, 4, 32, 32)
    seen[:9, :, :16] = 1  # a character in every second clip
    own = torch.zeros_like(seen)
    own[:9, :, 8:16] = 1  # half of it is in the system's own masks
    video = to_float(walking_characters(18, 4, 32, 5, art).frames)
    reading = sm.read(reader, video)
    monkeypatch.setattr(sm, "read", lambda *args: reading._replace(masks=seen[: len(args[1])]))
    system.sample_layers = lambda *args: SimpleNamespace(video=video, mask=own[:, None])
    assert sm.sprite_scores(system, clips, reader, n=18)["mask IoU"] == 0.5
    seen.zero_()
    own.zero_()
    score = sm.sprite_scores(system, clips, reader, n=18)["mask IoU"]
    assert score == 0, "masks of nobody are no success"


def test_clips_without_garments_are_refused(reader, art):
    plain = Clips.from_array(walking_characters(3, 4, 32, 1, art).frames)
    with pytest.raises(ValueError, match="what is worn"):
        sm.sprite_scores(Drawer(art, 9), plain, reader)


def test_scores_of_a_reading():
    poses = torch.cat([sure(5, [0, 1, 2, 3]), sure(8, [0, 1, 2, 3])])
    garments = torch.zeros(2, 4, 5, dtype=torch.int64)
    garments[0, 3, 0] = 1
    masks = torch.zeros(2, 4, 10, 10)
    masks[0, :, :5] = 1
    scores = sm.read_scores(Reading(masks, garments, poses), torch.tensor([5, 5]))
    assert scores["action"] == 0.5 and scores["in step"] == 1
    assert scores["body constant"] == pytest.approx(0.875) and scores["hair constant"] == 1
    assert scores["frames with a character"] == 0.5


# What ships -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 64])
def test_the_shipped_reader_reads_people_they_never_saw(real_data, size):
    art, (_, test) = load_art(real_data(FILE)), split_characters()
    taught = sm.lessons(60, size, test, seed=11, art=art)
    reading = sm.read(sm.shipped_reader(), to_float(taught.frames))
    told = deeds(reading.poses)
    assert (told.action == torch.from_numpy(taught.actions)).float().mean() >= 0.95
    right = sm.as_wanted(reading.garments, torch.from_numpy(taught.garments)).mean(0)
    assert right.min() > 0.8 and right.mean() > 0.93
    assert told.in_step.mean() > 0.5
