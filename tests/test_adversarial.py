"05_adversarial: losses by value, the penalty by hand, frames by their number."

import pytest
import torch
from torch.nn import functional as F

from vidcourse.adversarial import (
    LAZY_EVERY,
    discriminator_loss,
    generator_loss,
    lazy,
    one_frame,
    r1_penalty,
)


def test_softplus_is_cross_entropy_on_logits():
    real, fake = torch.randn(5, 3), torch.randn(7, 3)
    entropy = F.binary_cross_entropy_with_logits
    expected = entropy(real, torch.ones(5, 3)) + entropy(fake, torch.zeros(7, 3))
    torch.testing.assert_close(discriminator_loss(real, fake), expected)
    torch.testing.assert_close(generator_loss(fake), entropy(fake, torch.ones(7, 3)))


def test_hinge_by_value():
    real, fake = torch.tensor([[2.0, 0.5]]), torch.tensor([[-3.0], [1.0]])
    assert discriminator_loss(real, torch.full((1, 2), -3.0), "hinge") == 0.25
    assert discriminator_loss(torch.tensor([[2.0]]), fake, "hinge") == 1.0
    assert generator_loss(fake, "hinge") == 1.0


def test_half_precision_is_summed_in_float():
    on_fake = torch.full((4, 1), 30.0, dtype=torch.bfloat16)
    assert discriminator_loss(-on_fake, on_fake).dtype == torch.float32
    assert generator_loss(on_fake, "hinge").dtype == torch.float32


def test_unknown_kind():
    x = torch.zeros(1, 1)
    for call in (lambda: discriminator_loss(x, x, "wgan"), lambda: generator_loss(x, "wgan")):
        with pytest.raises(ValueError, match="softplus, hinge"):
            call()


def test_r1_on_clips_and_that_it_can_be_differentiated():
    x = torch.randn(2, 1, 3, 2, 2, requires_grad=True)
    scale = torch.tensor(3.0, requires_grad=True)
    penalty = r1_penalty((scale * x).sum((1, 2, 3, 4))[:, None], x)
    torch.testing.assert_close(penalty, torch.tensor(9.0 * 12 / 2))  # 12 numbers a clip
    penalty.backward()
    torch.testing.assert_close(scale.grad, torch.tensor(3.0 * 12))


def test_r1_is_a_mean_over_clips_not_over_logits():
    x = torch.ones(4, 5, requires_grad=True)
    one = r1_penalty(x.sum(1, keepdim=True), x)
    x = torch.ones(4, 5, requires_grad=True)
    assert r1_penalty(x.sum(1, keepdim=True).expand(-1, 2), x) == 4 * one


def test_lazy_steps():
    assert [k for k in range(20) if lazy(k)] == [0, LAZY_EVERY, 2 * LAZY_EVERY]
    assert [k for k in range(7) if lazy(k, 3)] == [0, 3, 6]


def test_one_frame_of_each():
    clips = torch.arange(12.0).view(2, 1, 3, 2, 1)
    expected = torch.stack([clips[0, :, 2], clips[1, :, 0]])
    assert torch.equal(one_frame(clips, torch.tensor([2, 0])), expected)
