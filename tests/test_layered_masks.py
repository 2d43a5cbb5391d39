"""The mask network and its losses (`40_masks_without_labels`)."""

from dataclasses import replace

import pytest
import torch

from vidcourse.layered.masks import (
    MASK_TERMS,
    SCHEDULES,
    SMALL_MASKS,
    SMALL_RECIPE,
    MaskNetwork,
    MaskRecipe,
    MaskSizes,
    background_loss,
    binary_loss,
    grey,
    mask_losses,
    moved,
    sparsity_loss,
    sparsity_ratio,
)
from vidcourse.metrics import mask_iou
from vidcourse.steered import steered_shapes


def pair(seed=0, n=3, size=16):
    g = torch.Generator().manual_seed(seed)
    a, b = (2 * torch.rand(n, 3, size, size, generator=g) - 1 for _ in range(2))
    return torch.rand(n, 1, size, size, generator=g), a, b


def test_the_released_size():
    with torch.device("meta"):
        network = MaskNetwork()
    assert sum(p.numel() for p in network.parameters()) == 11_377_153
    kinds = [type(layer).__name__ for layer in network.layers]
    assert kinds.count("ResidualBlock") == 9 and kinds[-1] == "Conv2d"


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("shape", [(16, 16), (8, 20), (24, 32)])
def test_masks_have_the_frames_size_and_lie_between_0_and_1(norm, shape):
    network = MaskNetwork(MaskSizes(4, 1, norm, 5))
    mask = network(torch.randn(2, 3, *shape))
    assert mask.shape == (2, 1, *shape) and (0 < mask).all() and (mask < 1).all()
    assert (mask < 0.5).any() and (mask > 0.5).any()  # no ReLU before the sigmoid


def test_in_groups_a_mask_does_not_depend_on_its_neighbours():
    frames = torch.randn(3, 3, 16, 16)
    network = MaskNetwork(SMALL_MASKS).train()
    torch.testing.assert_close(network(frames)[:1], network(frames[:1]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("side", [18, 4])
def test_sides_that_do_not_fit_are_refused(side):
    with pytest.raises(ValueError, match="that 4 divides"):
        MaskNetwork(SMALL_MASKS)(torch.zeros(1, 3, side, 16))


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="batch, group"):
        MaskNetwork(MaskSizes(4, 1, "layer"))


def test_background_loss_by_hand_and_its_gradient():
    mask, a, b = pair()
    a, b = a.requires_grad_(), b.requires_grad_()
    mask.requires_grad_()
    loss = background_loss(mask, a, b)
    expected = sum(((1 - mask[:, 0]) * (a[:, c] - b[:, c]).abs()).mean() for c in range(3)) / 3
    torch.testing.assert_close(loss, expected)
    assert background_loss(torch.ones_like(mask), a, b) == 0
    loss.backward()
    assert (mask.grad <= 0).all()  # more mask, less to pay


def test_grey_and_moved():
    colours = torch.eye(3)[:, :, None, None].expand(3, 3, 2, 2)
    torch.testing.assert_close(grey(colours)[:, 0, 0, 0], torch.tensor([0.299, 0.587, 0.114]))
    dark = torch.zeros(1, 3, 1, 3)
    then = dark.clone()
    then[..., 0], then[..., 1], then[..., 2] = 0.2, -0.2, 0.03
    assert moved(dark, then).flatten().tolist() == [1, 1, 0]  # darker counts as brighter does
    assert moved(dark, then, 0.3).sum() == 0


def test_sparsity_is_one_sided_and_cut_before_the_mean():
    change = torch.zeros(2, 1, 4, 4)
    change[..., :2, :] = 1
    mask = torch.stack([torch.full((1, 4, 4), 0.9), torch.full((1, 4, 4), 0.1)])
    assert sparsity_loss(mask, change).item() == pytest.approx(0.2)
    assert sparsity_loss(mask[1:], change[1:]) == 0
    small = mask[1:].clone().requires_grad_()
    sparsity_loss(small, change[1:]).backward()
    assert (small.grad == 0).all()


def test_binary_loss():
    assert binary_loss(torch.tensor([[[[0.0, 1.0, 0.5, 0.9]]]])).item() == pytest.approx(0.15)


def test_schedules():
    tennis = [sparsity_ratio(k, "staircase", 150, 5, 2000) for k in range(0, 12_001, 2000)]
    assert tennis == [150, 75, 37.5, 18.75, 9.375, 5, 5]  # as simulated from the released code
    assert sparsity_ratio(1999, "staircase", 150, 5, 2000) == 150
    line = [sparsity_ratio(k, "line", 20, 2.5, 100) for k in (0, 150, 300, 900)]
    assert line == [20, 11.25, 2.5, 2.5]
    assert {sparsity_ratio(k, "constant", 20, 2.5, 100) for k in (0, 50, 500)} == {2.5}
    for schedule in SCHEDULES:  # start and floor equal, as for the robot arm
        assert sparsity_ratio(7, schedule, 5, 5, 100) == 5
        shares = sparsity_ratio(0.35, schedule, 20, 2.5, 0.1)
        assert shares == pytest.approx(sparsity_ratio(350, schedule, 20, 2.5, 100))


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(schedule="cosine"), "staircase, line, constant"),
        (dict(floor=30.0), "falls from `start` down"),
        (dict(floor=0.0), "above 0"),
        (dict(every=0), "positive number"),
    ],
)
def test_bad_schedules(options, words):
    given = dict(step=0, schedule="line", start=20.0, floor=2.0, every=10.0) | options
    with pytest.raises(ValueError, match=words):
        sparsity_ratio(**given)


def test_weights_of_the_total():
    mask, a, b = pair()
    recipe = MaskRecipe(threshold=1.9)  # hardly anything moved: the sparsity term has something
    for step, weight in ((0, 50.0), (9_999, 50.0), (10_000, 5.0)):
        terms = mask_losses(mask, a, b, recipe, step)
        total = weight * terms["background"] + weight / 5 * terms["sparsity"] + terms["binary"]
        torch.testing.assert_close(terms["total"], total)
    assert terms["sparsity"] > 0.1
    falling = replace(SMALL_RECIPE, ratio_every=10, threshold=1.9)
    for step, ratio in ((0, 20), (10, 10), (25, 5), (500, 2.5)):
        terms = mask_losses(mask, a, b, falling, step)
        total = 20 * terms["background"] + 20 / ratio * terms["sparsity"] + terms["binary"]
        torch.testing.assert_close(terms["total"], total)


@pytest.mark.parametrize("term", MASK_TERMS)
def test_a_term_can_be_left_out(term):
    mask, a, b = pair()
    whole = mask_losses(mask, a, b, MaskRecipe(threshold=1.9), 0)
    part = mask_losses(mask, a, b, MaskRecipe(threshold=1.9, without=(term,)), 0)
    weight = {"background": 50, "sparsity": 10, "binary": 1}[term]
    torch.testing.assert_close(whole["total"] - part["total"], weight * whole[term])
    assert part[term] == whole[term]


def test_an_unknown_term_is_refused():
    mask, a, b = pair()
    with pytest.raises(ValueError, match="background, sparsity, binary"):
        mask_losses(mask, a, b, MaskRecipe(without=("sparse",)), 0)


def trained(recipe, steps, seed=0):
    "Mean of the masks of held-out frames after a short training at 16 px, and their IoU."
    data, held = steered_shapes(200, 4, 16, seed=1), steered_shapes(32, 1, 16, seed=2)
    frames = torch.tensor(data.frames).permute(0, 1, 4, 2, 3) / 127.5 - 1
    torch.manual_seed(seed)
    network, rng = MaskNetwork(SMALL_MASKS), torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(network.parameters(), 1e-3, betas=(0.9, 0.99))
    for step in range(steps):
        clip = torch.randint(len(frames), (8,), generator=rng)
        t = torch.randint(3, (8,), generator=rng)
        a, b = frames[clip, t], frames[clip, t + 1]
        loss = mask_losses(network(a), a, b, recipe, step)["total"]
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        mask = network(torch.tensor(held.frames[:, 0]).permute(0, 3, 1, 2) / 127.5 - 1)
    truth = torch.tensor(held.masks[:, 0]).float()
    return mask.mean().item(), mask_iou(mask[:, 0], truth).mean().item()


def test_it_finds_the_object_and_fails_without_a_term():
    recipe = replace(SMALL_RECIPE, ratio_every=150)
    area, iou = trained(recipe, 300)
    assert iou > 0.35 and 0.03 < area < 0.3, (area, iou)
    assert trained(replace(recipe, without=("sparsity",)), 100)[0] > 0.95
    assert trained(replace(recipe, without=("background",)), 100)[0] < 0.05
