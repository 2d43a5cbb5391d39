"The layered system: control, phases, rollouts, what is refused."

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vidcourse.layered import CONFIGS, Layered, first_frame, load_pretrained, networks, train
from vidcourse.layered.control import (
    about,
    by_shift,
    centre_of,
    check_controls,
    controlled,
    fit_affine,
    fit_shift,
    from_grid,
    kind_of_control,
    shifted,
    to_grid,
    warp,
)
from vidcourse.layered.model import (
    adaptive,
    after,
    apart,
    freeze,
    hard,
    make_trainer,
    phase_two,
    step_on,
    turned_back,
    twice_falling,
)
from vidcourse.layered.study import (
    add_mdr,
    best_match,
    by_hand,
    inpainted,
    measure,
    place_of,
    psnr_where,
)
from vidcourse.steered import steered_shapes
from vidcourse.systems import count

SMOKE = CONFIGS["smoke"]


@pytest.fixture(scope="module")
def data():
    return steered_shapes(12, 6, 16, seed=3)


@pytest.fixture(scope="module")
def system(data):
    return train(data.as_clips(), SMOKE, steps=4, progress=False, device="cpu")


@pytest.fixture
def first(data):
    return torch.tensor(data.frames[:, 0]).permute(0, 3, 1, 2).float() / 127.5 - 1


def block(x, y, size=32, side=6):
    "A mask of one square, whose upper left pixel is (x, y)."
    mask = torch.zeros(1, 1, size, size)
    mask[..., y : y + side, x : x + side] = 1
    return mask


# Control --------------------------------------------------------------------------------------


def test_x_goes_right_and_y_down():
    moved = shifted(block(10, 12), torch.tensor([[5.0, -3.0]]))
    assert torch.allclose(moved, block(15, 9), atol=1e-5)
    assert torch.allclose(centre_of(block(10, 12)), torch.tensor([[12.5, 14.5]]))


def test_there_and_back_in_a_frame_that_is_not_square():
    picture = torch.rand(2, 3, 12, 20)
    there = shifted(picture, torch.tensor([[3.0, 2.0]]).expand(2, 2))
    assert torch.allclose(there[..., 2:, 3:], picture[..., :-2, :-3], atol=1e-5)
    matrix = about(torch.tensor([[4.0, 7.0]]), torch.tensor([[[0.0, -1.3], [0.8, 0.1]]]))
    assert torch.allclose(from_grid(to_grid(matrix, 12, 20), 12, 20), matrix, atol=1e-4)


def test_a_turn_about_the_centre_keeps_the_centre():
    mask, turn = block(8, 10, side=5), torch.tensor([[[0.0, -1.0], [1.0, 0.0]]])
    turned = warp(mask, about(centre_of(mask), turn))
    assert torch.allclose(turned, mask, atol=1e-4)  # a square
    right = about(torch.zeros(1, 2), turn)[0] @ torch.tensor([1.0, 0.0, 1.0])
    assert torch.allclose(right, torch.tensor([0.0, 1.0]))  # right goes down


def test_an_empty_mask_has_the_middle_for_its_centre():
    assert centre_of(torch.zeros(1, 1, 32, 32)).tolist() == [[15.5, 15.5]]


def test_fitted_shifts_and_turns():
    start = block(6, 9, side=8)
    for shift in ([4.0, -2.0], [0.5, 1.25], [0.0, 0.0]):
        end = shifted(start, torch.tensor([shift]))
        assert torch.allclose(fit_shift(start, end), torch.tensor([shift]), atol=0.02)
        found = fit_affine(start, end, "position")[0, :, 2]
        assert torch.allclose(found, torch.tensor(shift), atol=0.1)
    long = torch.zeros(1, 1, 32, 32)
    long[..., 14:18, 6:26] = 1
    angle = torch.tensor(0.35)
    turn = torch.stack(
        [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
    )[None]
    truth = about(centre_of(long), turn)
    fitted = fit_affine(long, warp(long, truth))
    assert (fitted[0, :, 0] - truth[0, :, 0]).abs().max() < 0.06
    with pytest.raises(ValueError, match="affine or position"):
        fit_affine(long, long, "rigid")


def test_motions_compose():
    one = about(torch.tensor([[3.0, 4.0]]), torch.tensor([[[1.1, 0.2], [-0.1, 0.9]]]))
    two = torch.tensor([[2.0, -1.0]])
    point = torch.tensor([5.0, 6.0, 1.0])
    by_hand_ = one[0] @ point + two[0]
    assert torch.allclose(after(one, two)[0] @ point, by_hand_, atol=1e-5)
    both = after(by_shift(two), one)[0] @ point
    assert torch.allclose(both, one[0] @ torch.tensor([7.0, 5.0, 1.0]), atol=1e-5)


@pytest.mark.parametrize(
    "controls, kind",
    [
        (torch.zeros(2, 3, 2), "position"),
        (torch.eye(2, 3).expand(2, 3, 2, 3), "affine"),
        (torch.zeros(2, 3, 16, 16), "mask"),
    ],
)
def test_three_kinds(controls, kind):
    assert kind_of_control(controls) == kind
    assert check_controls(torch.zeros(2, 3, 16, 16), controls) == kind
    mask = controlled(torch.ones(2, 1, 16, 16), controls[:, 0])
    assert mask.shape == (2, 1, 16, 16)


@pytest.mark.parametrize(
    "controls, said",
    [
        (torch.zeros(2, 3), "position|pixels"),
        (torch.zeros(2, 3, 5), "no known kind"),
        (torch.zeros(3, 3, 2), "3 scenes, but 2 first frames"),
        (torch.full((2, 3, 2), torch.nan), "NaN"),
        (torch.zeros(2, 3, 8, 8), r"\(8, 8\) px for frames of \(16, 16\)"),
        (torch.full((2, 1, 16, 16), 1.5), "between 0"),
        (torch.zeros(2, 3, 2, 3), "determinant 0"),
    ],
)
def test_controls_that_cannot_be(controls, said):
    with pytest.raises(ValueError, match=said):
        check_controls(torch.zeros(2, 3, 16, 16), controls)


# The phases -----------------------------------------------------------------------------------


def test_released_sizes():
    with torch.device("meta"):
        nets = networks(CONFIGS["paper"])
    assert count(nets["generator"].masks) == 11_377_153
    assert count(nets["generator"]) == 30_318_916
    assert count(nets["discriminator"]) == 2_765_633


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_phase_two_leaves_the_mask_network_bit_identical(data, norm):
    config = replace(SMOKE, mask_norm=norm, adversarial=0.1, adversarial_start=0.5)
    trainer = make_trainer(config, device="cpu")
    step = step_on(data.as_clips(), config, 8)
    trainer.fit(step, 4, progress=False)
    masks, frames = (
        {k: v.clone() for k, v in part.state_dict().items()}
        for part in (trainer.networks["generator"].masks, trainer.networks["generator"].frames)
    )
    trainer.fit(step, 8, progress=False)
    now = trainer.networks["generator"]
    assert all(torch.equal(v, masks[k]) for k, v in now.masks.state_dict().items())
    assert any(not torch.equal(v, frames[k]) for k, v in now.frames.state_dict().items())


def test_phase_one_moves_the_mask_network(data):
    trainer = make_trainer(SMOKE, device="cpu")
    before = [p.clone() for p in trainer.networks["generator"].masks.parameters()]
    trainer.fit(step_on(data.as_clips(), SMOKE, 8), 2, progress=False)
    after_ = trainer.networks["generator"].masks.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after_))


def test_freeze_stops_statistics():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    freeze(net)
    net(torch.rand(2, 3, 4, 4))
    assert net[1].running_mean.abs().sum() == 0 and not net[0].weight.requires_grad


def test_phase_two_weighs_inside_and_outside_apart(system, first):
    generator = system.networks["generator"]
    frame, following = first[:6], first[6:]
    made, loss, parts = phase_two(generator, SMOKE, frame, following)
    mask = hard(generator.mask(following))
    outside, inside = apart(made.frames, following, mask)
    wanted = SMOKE.background_two * outside + SMOKE.foreground * inside + parts["missed"]
    assert torch.allclose(loss, wanted + made.loss, atol=1e-5)
    total = (made.frames - following).abs().mean()
    assert torch.allclose(outside + inside, total, atol=1e-6)


def test_the_adversarial_share_pulls_as_hard():
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    near, far = (weight * torch.tensor([1.0, 0.0])).sum(), (weight * 10).sum()
    share = adaptive(near, far, weight)
    assert abs(share.item() - 1 / 200**0.5) < 1e-4 and not share.requires_grad


def test_the_rate_falls_twice():
    factor = twice_falling(0.5)
    assert factor(0, 100) == factor(25, 100) == factor(50, 100) == 1
    assert factor(49, 100) < 0.2 and factor(99, 100) < 0.2


def test_phases_that_leave_nothing():
    for bad in (dict(phase_one=0.0), dict(phase_one=1.0), dict(unroll=0)):
        with pytest.raises(ValueError, match="phase_one"):
            replace(SMOKE, **bad)


# Rollouts -------------------------------------------------------------------------------------


class Painter(nn.Module):
    "Stands for a trained generator: paints white where the mask is."

    def forward(self, frame, mask):
        from vidcourse.layered.vq import Made

        none = torch.zeros(len(frame), 2, 2, dtype=torch.long)
        return Made((2 * mask - 1).expand_as(frame), torch.zeros(()), none, none)


class Bright(nn.Module):
    def forward(self, frame):
        return (frame.mean(1, keepdim=True) > 0).float()


@pytest.fixture
def ideal():
    "A system that finds and paints white squares perfectly."
    system = Layered(replace(SMOKE, size=32))
    system.networks["generator"].masks = Bright()
    system.networks["generator"].frames = Painter()
    return system


@pytest.mark.parametrize("carried", [True, False])
def test_an_ideal_system_obeys(ideal, carried):
    start = (2 * block(4, 5) - 1).expand(1, 3, -1, -1)
    shifts = torch.tensor([[[3.0, 1.0], [2.0, 0.0], [0.0, 4.0]]])
    made = ideal.rollout(start, shifts, carried)
    assert made.shape == (1, 3, 4, 32, 32)
    places = [centre_of(hard((made[:, :1, t] + 1) / 2))[0].tolist() for t in range(4)]
    assert places == [[6.5, 7.5], [9.5, 8.5], [11.5, 8.5], [11.5, 12.5]]


def test_a_carried_mask_comes_back_from_outside(ideal):
    start = (2 * block(24, 10) - 1).expand(1, 3, -1, -1)
    out_and_back = torch.tensor([[[12.0, 0.0], [-12.0, 0.0]]])
    assert torch.equal(ideal.rollout(start, out_and_back)[:, :, 2], start)
    assert (ideal.rollout(start, out_and_back, carried=False)[:, :, 2] == -1).all()


def test_half_pixels_add_up_only_when_carried(ideal):
    start = (2 * block(4, 5) - 1).expand(1, 3, -1, -1)
    slow = torch.tensor([0.4, 0.0]).expand(1, 5, 2)
    end = centre_of(hard((ideal.rollout(start, slow)[:, :1, -1] + 1) / 2))[0]
    assert end.tolist() == [8.5, 7.5]  # 2 px in all


def test_masks_as_controls(ideal):
    start = (2 * block(4, 5) - 1).expand(1, 3, -1, -1)
    wanted = torch.cat([block(20, 3), torch.maximum(block(2, 2), block(20, 20))], 1)
    made = ideal.rollout(start, wanted)
    assert torch.equal((made[:, 0, 1:] + 1) / 2, wanted)


def test_one_pass_and_two_passes_agree(system, first):
    own = hard(system.masks(first))
    stay = system.rollout(first, torch.zeros(len(first), 1, 2))[:, :, 1]
    assert torch.equal(stay, system.next_frame(first, own))


def test_first_frames_of_another_size(system):
    with pytest.raises(ValueError, match="first_frame"):
        system.rollout(torch.zeros(1, 3, 32, 32), torch.zeros(1, 2, 2))


def test_samples_repeat_and_stay_inside(system):
    one, two = (system.sample(4, 9, torch.Generator().manual_seed(1)) for _ in (0, 1))
    assert torch.equal(one, two) and one.shape == (4, 3, 9, 16, 16)
    assert system.sample(2, 1).shape == (2, 3, 1, 16, 16)
    steps = torch.rand(50, 30, 2, generator=torch.Generator().manual_seed(2)) * 4 - 2
    place = torch.full((50, 2), 7.5)[:, None] + turned_back(
        torch.full((50, 2), 7.5), steps, 16
    ).cumsum(1)
    assert place.min() > 1 and place.max() < 14


def test_examples_are_first_frames_of_the_clips(system, data):
    known = {frame.tobytes() for frame in data.frames[:, 0]}
    kept = system.networks["generator"].examples.permute(0, 2, 3, 1).numpy()
    assert all(np.ascontiguousarray(frame).tobytes() in known for frame in kept)


def test_save_and_load(system, first, tmp_path):
    system.save(tmp_path / "w.safetensors")
    again = Layered.load(tmp_path / "w.safetensors")
    shifts = torch.ones(len(first), 2, 2)
    assert torch.equal(again.rollout(first, shifts), system.rollout(first, shifts))


def test_own_scores(system, data):
    clips = torch.tensor(data.frames).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    scores = system.own_scores(clips)
    assert 5 < scores["the frame before it, PSNR"] < 60 and len(scores) == 3
    still = clips[:, :, :1].expand_as(clips)
    assert 70 < system.own_scores(still)["the frame before it, PSNR"] < 80


def test_a_first_frame_of_any_picture(tmp_path):
    from PIL import Image

    Image.new("RGB", (300, 120), (255, 0, 0)).save(tmp_path / "red.png")
    frame = first_frame(tmp_path / "red.png", 32)
    assert frame.shape == (1, 3, 32, 32) and frame[0, :, 5, 5].tolist() == [1, -1, -1]
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="text.png"):
        first_frame(tmp_path / "text.png", 32)
    with pytest.raises(FileNotFoundError):
        first_frame(tmp_path / "none.png", 32)
    with pytest.raises(ValueError, match="uint8"):
        first_frame(np.zeros((8, 8, 3)), 32)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shipped_weights_obey(seed):
    scenes = steered_shapes(24, 2, 32, seed=11, rest=0.0)
    model = load_pretrained("shapes", seed)
    frames = torch.tensor(scenes.frames).permute(1, 0, 4, 2, 3).float() / 127.5 - 1
    made = model.rollout(frames[0], torch.tensor(scenes.shifts).float())[:, :, 1]
    off, missed = add_mdr(made, frames[1])
    assert missed.float().mean() < 0.2 and off.nanmedian() < 0.8


# Measures -------------------------------------------------------------------------------------


def red(x, y, ground=-1.0):
    frame = torch.full((1, 3, 32, 32), ground)
    frame[0, 0, y : y + 8, x : x + 8] = 1.0
    frame[0, 1:, y : y + 8, x : x + 8] = -1.0
    return frame


def test_places_and_misses():
    at, area = place_of(red(4, 9))
    assert torch.allclose(at, torch.tensor([[7.5, 12.5]])) and area.item() == 64
    off, missed = add_mdr(red(7, 13), red(4, 9))
    assert abs(off.item() - 5) < 1e-4 and not missed.item()
    off, missed = add_mdr(torch.full((1, 3, 32, 32), -1.0), red(4, 9))
    assert missed.item() and off.isnan().item()


def test_moved_by_hand():
    frame, mask = red(4, 9), block(4, 9, side=8)
    made = by_hand(frame, mask, torch.tensor([[6.0, 2.0]]))
    assert torch.allclose(made, red(10, 11), atol=1e-4)
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    filled = inpainted(ramp, block(12, 12))
    assert (filled - ramp).abs().max() < 0.25
    assert torch.equal(filled[..., :10, :], ramp[..., :10, :])


def test_psnr_where_it_counts():
    wrong = red(4, 9).clone()
    wrong[..., 0, 0] += 0.2
    corner = torch.zeros(1, 1, 32, 32)
    corner[..., 0, 0] = 1
    assert abs(psnr_where(wrong, red(4, 9), corner).item() - 20) < 1e-3
    assert psnr_where(red(4, 9), red(4, 9), corner).item() > 70


def test_the_best_match_is_where_the_figure_is():
    made, true = red(9, 7), red(6, 9)
    assert best_match(made, true, block(6, 9, side=8)).tolist() == [[3.0, -2.0]]


def test_an_ideal_system_scores(ideal):
    scenes = steered_shapes(6, 4, 32, seed=4, rest=0.0)
    scores = measure(ideal, scenes, steps=3)
    assert scores["copy: psnr_ground"] > 70 and 0 <= scores["iou"] <= 1
    assert scores["copy: error_median"] > 0.5
