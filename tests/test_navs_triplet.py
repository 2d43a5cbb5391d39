"Triplets of NAVS: what a reader would be bored by. The ideas stand in notebook 31."

import pytest
import torch
from signatures import SignatureError

from vidcourse.navs import distances, in_order, neighbours, semi_hard, triplet_loss


def line(*places):
    "A clip of codes on a line, (1, t, 1)."
    return torch.tensor(places, dtype=torch.float32)[None, :, None]


def codes(n, t, d, seed=0):
    return torch.randn(n, t, d, generator=torch.Generator().manual_seed(seed))


def by_hand(between, i, j, negative):
    "Distance to the negative of anchor i for positive j, one clip (t, t)."
    strangers = [x for x, far in zip(between[i].tolist(), negative[i].tolist()) if far]
    farther = [x for x in strangers if x > between[i, j].item()]
    return min(farther) if farther else max(strangers) if strangers else float("inf")


# Distances ---------------------------------------------------------------------------------


def test_distances_are_plain_and_of_each_clip():
    assert torch.allclose(
        distances(torch.tensor([[[0.0, 0], [3, 4]], [[1, 1], [1, 3]]])),
        torch.tensor([[[0.0, 5], [5, 0]], [[0, 2], [2, 0]]]),
        atol=1e-5,
    )
    z = codes(2, 7, 3)
    torch.testing.assert_close(distances(z)[1], distances(z[1:])[0])


def test_equal_codes_have_finite_gradients():
    z = codes(2, 16, 4)
    z[:, 9] = z[:, 3]
    z.requires_grad_()
    triplet_loss(z).backward()
    assert z.grad.isfinite().all() and z.grad.norm() > 0
    still = torch.zeros(2, 16, 4, requires_grad=True)
    triplet_loss(still, margin=0.7).backward()
    assert torch.equal(still.grad, torch.zeros_like(still))


# Who is a neighbour ------------------------------------------------------------------------


def test_neighbours_by_their_distance_in_time():
    positive, negative = neighbours(9, 2, 4)
    for i in range(9):
        for j in range(9):
            assert positive[i, j].item() == (1 <= abs(i - j) <= 2) and negative[
                i, j
            ].item() == (abs(i - j) > 4)


def test_no_pair_is_both_when_the_radii_are_equal():
    positive, negative = neighbours(8, 3, 3)
    assert (
        torch.equal(
            positive | negative | torch.eye(8, dtype=torch.bool),
            torch.ones(8, 8, dtype=torch.bool),
        )
        and not (positive & negative).any()
    )


@pytest.mark.parametrize(
    "length, near, far", [(16, 0, 5), (16, 6, 5), (16, -1, 5), (6, 2, 5), (1, 1, 1), (2, 1, 1)]
)
def test_what_does_not_go_together_is_refused(length, near, far):
    with pytest.raises(
        ValueError, match=f"near {near}, far {far} and {length} frames.*at least far"
    ):
        neighbours(length, near, far)
    with pytest.raises(ValueError, match="don't go together"):
        triplet_loss(codes(1, length, 3), near=near, far=far)


def test_the_shortest_clip_that_works():
    assert neighbours(7, 2, 5)[1].nonzero().tolist() == [[0, 6], [6, 0]]
    assert triplet_loss(codes(2, 7, 3)).isfinite() and neighbours(3, 1, 1)[1].sum() == 2


# Which negative ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "length, near, far", [(16, 2, 5), (12, 5, 5), (7, 2, 5), (9, 1, 6), (3, 1, 1)]
)
@pytest.mark.parametrize("step", [0.0, 1.0])
def test_semi_hard_is_what_is_written_by_hand(length, near, far, step):
    z = codes(4, length, 2, seed=length)
    between, negative = (
        distances((z / step).round() * step if step else z),
        neighbours(length, near, far)[1],
    )  # rounded codes have many ties
    assert (between.flatten().unique().numel() < 60) == bool(step) or length < 12
    chosen = semi_hard(between, negative)
    for n in range(4):
        for i in range(length):
            for j in range(length):
                assert chosen[n, i, j].item() == by_hand(between[n], i, j, negative)


def test_as_far_as_the_positive_is_not_farther():
    between = distances(line(0, 1, -1, 3))  # frame 2 is exactly as far from frame 0 as frame 1
    assert semi_hard(between, neighbours(4, 1, 1)[1])[0, 0, 1] == 3


def test_the_farthest_when_none_is_farther():
    between = distances(line(0, 9, 1, 2))
    assert semi_hard(between, neighbours(4, 1, 1)[1])[0, 0, 1] == 2


def test_an_anchor_without_negatives_gets_infinity_and_no_say():
    z = codes(2, 8, 3)
    negative = neighbours(8, 2, 5)[1]
    assert (
        semi_hard(distances(z), negative)[:, 2:6].isinf().all()
        and semi_hard(distances(z), negative)[:, [0, 1, 6, 7]].isfinite().all()
    )
    costs = [
        max(0.0, (d[i, j] - by_hand(d, i, j, negative)).item() + 2)
        for d in distances(z)
        for i in (0, 1, 6, 7)
        for j in range(8)
        if 0 < abs(i - j) <= 2
    ]
    assert triplet_loss(z).item() == pytest.approx(
        sum(costs) / len(costs), abs=1e-5
    )  # a mean over anchors that have one


# The loss ----------------------------------------------------------------------------------


def test_loss_counted_by_hand():
    # near 1, far 1. d to positive and to negative:
    # (0,1) 1 2, (1,0) 1 5, (1,2) 1 5, (2,1) 1 2, (2,3) 4 2, (3,2) 4 5
    z = line(0, 1, 2, 6)

    def costs(m):
        return [max(0, x + m) for x in (-1, -4, -4, -1, 2, -1)]

    for margin in (0.5, 1.5, 5.0):
        assert triplet_loss(z, margin, 1, 1).item() == pytest.approx(sum(costs(margin)) / 6)


def test_codes_far_enough_apart_cost_nothing():
    z = (5 * torch.arange(16.0))[None, :, None].expand(3, -1, -1)
    assert (
        triplet_loss(z, 2.0) == triplet_loss(z, 19.9) == 0 and triplet_loss(z, 20.1) > 0
    )  # positives at 5 and 10, negatives from 30 on


def test_clips_are_averaged_and_only_moved_by_themselves():
    z = codes(3, 10, 4)
    assert triplet_loss(z).item() == pytest.approx(
        sum(triplet_loss(z[k : k + 1]).item() for k in range(3)) / 3, abs=1e-5
    )
    z.requires_grad_()
    alone = z.detach()[1:2].clone().requires_grad_()
    triplet_loss(z).backward(), triplet_loss(alone).backward()
    torch.testing.assert_close(3 * z.grad[1], alone.grad[0])


def test_gradient_is_that_of_small_changes():
    z = codes(1, 9, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: triplet_loss(x, 1.0, 2, 4), z)


# The measure -------------------------------------------------------------------------------


def test_order_of_known_orders():
    t = torch.arange(16.0)
    there_and_back = torch.minimum(t, 15 - t)
    shuffled = torch.tensor(
        [0.0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15]
    )  # neighbours in code are four frames or more apart
    z = torch.stack([t, -t, t * t, there_and_back + 0.01 * t, shuffled])[..., None]
    assert in_order(z, 2).tolist() == [1, 1, 1, 2 / 16, 0]
    assert in_order(z, 15).tolist() == [1] * 5


def test_reach_counts_frames():
    z = line(0, 10, 20, 0.1, 10.1, 20.1)  # everybody's nearest is three frames away
    assert [in_order(z, k).item() for k in (1, 2, 3)] == [0, 0, 1]


def test_measure_leaves_codes_alone_and_takes_codes_that_learn():
    z = codes(2, 8, 3).requires_grad_()
    before = z.detach().clone()
    assert (
        in_order(z).shape == (2,) and not in_order(z).requires_grad and torch.equal(z, before)
    )


@pytest.mark.parametrize("function", [distances, triplet_loss, in_order])
def test_codes_come_in_batches_of_clips(function):
    with pytest.raises(
        SignatureError
    ):  # (16, 12) without the axis of clips would even give a number
        function(torch.randn(16, 12))
