"Frames from codes: the quantiser beside a library's, restarts, sizes, joins."

import copy

import pretend
import pytest
import torch
from torch.nn import functional as F

from vidcourse.layered.vq import (
    JOINS,
    Attention,
    Block,
    FrameGenerator,
    FrameSizes,
    Quantiser,
    badly_served,
    nearest,
    patch_discriminator,
    perplexity,
    shrinkage,
    straight_through,
)
from vidcourse.systems import count

SMALL = FrameSizes(
    width=8, multipliers=(1, 2, 2), blocks=1, attention=(2,), groups=4, code_width=8, codes=16
)


def numbers(*shape, seed=0):
    "Normal random numbers of a shape, always the same."
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The quantiser, beside lucidrains' vector-quantize-pytorch -------------------------------------


def library(codes, learned: bool, weight: float):
    "The library's quantiser with our codes: learned by gradients, or fixed for this comparison."
    vq = pytest.importorskip("vector_quantize_pytorch")
    options = dict(
        dim=codes.shape[1],
        codebook_size=len(codes),
        accept_image_fmap=True,
        rotation_trick=False,
        commitment_weight=weight,
        learnable_codebook=learned,
        ema_update=False,
        freeze_codebook=not learned,
    )
    theirs = vq.VectorQuantize(**options).train()
    with torch.no_grad():
        theirs._codebook.embed.copy_(codes[None])
    return theirs


def backward(quantiser, z, weights):
    "Vectors, indices and loss, and the gradient at z of the loss plus a pull on the vectors."
    z = z.clone().requires_grad_()
    vectors, indices, loss = quantiser(z)
    ((vectors * weights).sum() + loss.sum()).backward()
    return vectors.detach(), indices, loss.sum().detach(), z.grad


@pytest.mark.parametrize("learned, commitment", [(True, 1.0), (False, 0.25)])
def test_it_is_the_library_s(learned, commitment):
    """With weight 1 both terms weigh the same, which is the library's loss for learned codes;

    for codes it doesn't learn, the library has the commitment alone.
    """
    mine = Quantiser(16, 8, commitment=commitment, restart=0)
    with torch.no_grad():
        mine.codes.copy_(numbers(16, 8))
    theirs = library(mine.codes, learned, commitment)
    z, weights = numbers(3, 8, 5, 4, seed=1), numbers(3, 8, 5, 4, seed=2)
    a, b = backward(mine, z, weights), backward(theirs, z, weights)
    assert torch.equal(a[1], b[1]) and len(a[1].unique()) > 8
    torch.testing.assert_close(a[0], b[0])
    torch.testing.assert_close(a[3], b[3])
    # twice the value where it moves both sides, since ours counts the two terms one by one
    torch.testing.assert_close(a[2], b[2] * (2 if learned else 1.25 / 0.25))
    if learned:
        torch.testing.assert_close(mine.codes.grad, theirs._codebook.embed.grad[0])


def test_nearest_is_nearest():
    z, codes = numbers(2, 5, 4, 3), numbers(7, 5, seed=1)
    distances = (z.movedim(1, -1)[..., None, :] - codes).square().sum(-1)
    assert torch.equal(nearest(z, codes), distances.argmin(-1))
    far = 1e3 + z  # where the squares are large, the nearest is still found
    assert (nearest(far, 1e3 + codes) == distances.argmin(-1)).float().mean() > 0.9


def test_the_gradient_passes_as_if_nothing_had_happened():
    z = numbers(2, 3, 4, 4).requires_grad_()
    codes = torch.round(z.detach()).requires_grad_()
    out, pull = straight_through(z, codes), numbers(2, 3, 4, 4, seed=1)
    torch.testing.assert_close(out, codes)
    (out * pull).sum().backward()
    assert torch.equal(z.grad, pull) and codes.grad is None


@pytest.mark.parametrize("released", [False, True])
def test_commitment_stands_on_its_term(released):
    quantiser = Quantiser(4, 6, commitment=0.25, released=released, restart=0)
    z = (numbers(2, 6, 3, 3) + 2).requires_grad_()
    made = quantiser(z)
    made.loss.backward()
    off = z.detach() - quantiser.look_up(made.indices).detach()
    on_vectors, on_codes = (1.0, 0.25) if released else (0.25, 1.0)
    torch.testing.assert_close(z.grad, on_vectors * 2 * off / off.numel())
    pull = -on_codes * 2 * off / off.numel()  # at each place, on the code that stands there
    pulled = torch.zeros(4, 6).index_add_(
        0, made.indices.flatten(), pull.movedim(1, -1).flatten(0, -2)
    )
    torch.testing.assert_close(quantiser.codes.grad, pulled)
    torch.testing.assert_close(made.loss.detach(), 1.25 * off.square().mean())


def test_perplexity_counts_codes_in_use():
    assert perplexity(torch.arange(12).view(3, 4), 12).item() == pytest.approx(12)
    assert perplexity(torch.zeros(3, 4, dtype=torch.long), 12).item() == pytest.approx(1)
    assert perplexity(torch.tensor([0, 0, 1, 1]), 12).item() == pytest.approx(2)


# Restarts -------------------------------------------------------------------------------------


def test_the_first_step_begins_with_vectors_of_the_batch():
    quantiser, z = Quantiser(8, 3, restart=5), numbers(2, 3, 4, 4) + 5
    quantiser(z)
    vectors = z.movedim(1, -1).flatten(0, -2)
    assert (quantiser.codes[:, None] == vectors).all(2).any(1).all()
    assert len(quantiser.codes.unique(dim=0)) > 4
    assert quantiser.usage.sum() == 2 * 4 * 4 and quantiser.steps == 1


def test_only_the_dead_are_restarted_and_only_when_due():
    quantiser, z = Quantiser(6, 3, restart=4), numbers(2, 3, 8, 8)
    quantiser(z)
    with torch.no_grad():
        quantiser.codes[2] = 1e3  # nobody chooses it any more
    for step in range(2, 10):
        before = quantiser.codes.detach().clone()
        quantiser(z)
        moved = (quantiser.codes != before).any(1).nonzero().flatten().tolist()
        # looked at in steps 5 and 9: in step 1 some had chosen it, before it went away
        assert moved == ([2] if step == 9 else [])
        since = (step - 1) % 4 + 1  # steps since the last look
        assert quantiser.usage.sum() == since * 2 * 8 * 8
    assert quantiser.codes[2].abs().max() < 10 and quantiser.usage[2] > 0


def test_no_restarts_where_none_are_wanted():
    for quantiser in (Quantiser(6, 3, restart=0), Quantiser(6, 3, restart=1).eval()):
        before = quantiser.codes.detach().clone()
        for _ in range(3):
            quantiser(numbers(2, 3, 4, 4) + 5)
        assert torch.equal(quantiser.codes, before) and quantiser.steps == 0
    assert quantiser.usage.sum() == 0  # nor does it count in evaluation


def test_a_spoilt_batch_leaves_codes_finite():
    quantiser, z = Quantiser(6, 3, restart=1), numbers(2, 3, 4, 4)
    quantiser(z)
    quantiser(z.index_fill(0, torch.tensor([0]), float("nan")))
    quantiser(torch.full_like(z, float("nan")))
    assert quantiser.codes.isfinite().all()


def test_the_worst_served_are_taken():
    vectors = torch.cat([torch.zeros(98, 2), torch.tensor([[3.0, 0.0], [0.0, 3.0]])])
    taken = badly_served(vectors, torch.zeros(4, 2))
    assert (taken.norm(dim=1) == 3).all() and len(taken.unique(dim=0)) == 2


def test_usage_and_steps_are_kept():
    quantiser = Quantiser(6, 3, restart=4)
    quantiser(numbers(2, 3, 4, 4))
    again = Quantiser(6, 3, restart=4)
    again.load_state_dict(quantiser.state_dict())
    for q in (quantiser, again):
        q(numbers(2, 3, 4, 4, seed=1))
    assert torch.equal(quantiser.usage, again.usage) and again.steps == 2
    assert torch.equal(quantiser.codes, again.codes)


@pytest.mark.skipif(not pretend.available(), reason="torch has no devices in Python")
@pytest.mark.parametrize("join", JOINS)
def test_a_step_on_another_device_asks_it_for_nothing(join):
    pretend.install()
    torch.manual_seed(0)
    here = FrameGenerator(SMALL, join, restart=2)
    there = copy.deepcopy(here).to("pretend")
    frame, mask = numbers(2, 3, 16, 16), (numbers(2, 1, 16, 16) > 0).float()
    losses = {}
    for generator, device in ((here, "cpu"), (there, "pretend")):
        adam = torch.optim.SGD(generator.parameters(), 0.05)
        f, m = frame.to(device), mask.to(device)
        with pretend.count_reads() as reads:
            for _ in range(5):
                made = generator(f, m)
                loss = F.l1_loss(made.frames, f) + made.loss
                adam.zero_grad()
                loss.backward()
                adam.step()
                perplexity(made.foreground, SMALL.codes)
        assert not reads, reads
        losses[device] = loss.item()
    assert losses["pretend"] == pytest.approx(losses["cpu"], rel=1e-4)
    assert here.quantiser.usage.tolist() == there.quantiser.usage.tolist()


# FrameSizes -------------------------------------------------------------------------------------


def test_released_sizes():
    with torch.device("meta"):
        generator, judge = FrameGenerator(FrameSizes()), patch_discriminator(FrameSizes())
        z = generator.encode(torch.empty(1, 3, 256, 256))
        tennis = generator.encode(torch.empty(1, 3, 96, 256))
        opinions = judge(torch.empty(1, 3, 256, 256))
    assert count(generator.encoder) == 7_628_672 and count(generator.decoder) == 10_919_363
    assert count(generator.before) == count(generator.after) == 65_792
    assert count(generator.quantiser) == 1024 * 256
    assert count(generator) + 11_377_153 == 30_318_916  # with the mask network
    assert count(judge) == 2_765_633
    assert z.shape == (1, 256, 16, 16) and tennis.shape == (1, 256, 6, 16)
    assert opinions.shape == (1, 1, 30, 30)


def test_a_patch_is_seventy_pixels_wide():
    judge = patch_discriminator(FrameSizes(discriminator_width=4)).eval()
    frames = torch.zeros(1, 3, 256, 256, requires_grad=True)
    judge(frames)[0, 0, 15, 15].backward()
    seen = frames.grad[0].abs().sum(0) > 0
    assert seen.any(0).sum() == 70 and seen.any(1).sum() == 70


@pytest.mark.parametrize("change", [{}, dict(groups=0), dict(last_norm=False)])
@pytest.mark.parametrize("even_start", [False, True])
def test_networks_of_any_sizes(change, even_start):
    sizes = FrameSizes(**{**vars(SMALL), "even_start": even_start, **change})
    torch.manual_seed(0)
    generator = FrameGenerator(sizes)
    norms = [m for m in generator.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert bool(norms) == (sizes.groups > 0)
    ends = generator.encoder[-3], generator.decoder[-3]
    assert all(isinstance(end, torch.nn.GroupNorm) for end in ends) == (change == {})
    made = generator(numbers(2, 3, 24, 16), torch.rand(2, 1, 24, 16))
    assert made.frames.shape == (2, 3, 24, 16) and made.foreground.shape == (2, 6, 4)
    (made.frames.abs().mean() + made.loss).backward()
    assert all(p.grad is not None for p in generator.parameters())


def test_an_even_start_changes_nothing_in_blocks_and_keeps_sizes():
    torch.manual_seed(0)
    sizes = FrameSizes(**{**vars(SMALL), "even_start": True})
    generator, x = FrameGenerator(sizes), numbers(4, 16, 8, 8)
    same = [
        part
        for part in generator.modules()
        if isinstance(part, Attention)
        or isinstance(part, Block)
        and isinstance(part.past, torch.nn.Identity)
    ]
    same = [part for part in same if next(part.parameters()).shape[0] == 16]
    assert len(same) > 4 and all(torch.equal(part(x), x) for part in same)
    after = generator.encode(numbers(4, 3, 32, 32)).std()
    shrunk = FrameGenerator(SMALL).encode(numbers(4, 3, 32, 32)).std()
    assert after > 2 * shrunk


def test_frames_that_do_not_divide_are_refused():
    generator = FrameGenerator(SMALL)
    for high, wide in ((18, 16), (16, 18)):
        with pytest.raises(ValueError, match=f"{high} x {wide} px.*divide by 4"):
            generator(torch.zeros(1, 3, high, wide), torch.zeros(1, 1, high, wide))
    with pytest.raises(ValueError, match="'mean'; choose one of 'sum of quantised'"):
        FrameGenerator(SMALL, "mean")
    assert shrinkage(SMALL) == 4 and shrinkage(FrameSizes()) == 16


# The two joins --------------------------------------------------------------------------------


@pytest.mark.parametrize("join", JOINS)
def test_a_frame_is_its_codes_and_nothing_else(join):
    torch.manual_seed(0)
    generator = FrameGenerator(SMALL, join).eval()
    torch.nn.init.normal_(generator.quantiser.codes, std=0.2)
    frame, mask = numbers(2, 3, 16, 16), (numbers(2, 1, 16, 16, seed=1) > 0).float()
    made = generator(frame, mask)
    z = generator.encode(torch.cat([mask * frame, (1 - mask) * frame]))
    front, back = z.chunk(2)
    look_up, codes = generator.quantiser.look_up, generator.quantiser.codes
    if join == "sum of quantised":
        joined = look_up(made.foreground) + look_up(made.background)
        assert torch.equal(made.foreground, nearest(front, codes))
        assert torch.equal(made.background, nearest(back, codes))
        off = [(a - look_up(nearest(a, codes))).square().mean() for a in (front, back)]
    else:
        joined = look_up(made.foreground)
        assert torch.equal(made.foreground, nearest(front + back, codes))
        assert torch.equal(made.background, made.foreground)
        off = [(front + back - joined).square().mean()]
    torch.testing.assert_close(made.frames, generator.decode(joined), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made.loss, 1.25 * sum(off))  # summed over the layers
    assert len(made.foreground.unique()) > 1


def test_only_separate_codes_leave_the_object_alone():
    torch.manual_seed(0)
    frame, other = numbers(2, 3, 16, 16), numbers(2, 3, 16, 16, seed=1)
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    mixed = mask * frame + (1 - mask) * other
    for join in JOINS:
        generator = FrameGenerator(SMALL, join).eval()
        torch.nn.init.normal_(generator.quantiser.codes, std=0.2)
        a, b = (generator(f, mask).foreground for f in (frame, mixed))
        assert torch.equal(a, b) == (join == "sum of quantised")


# Several processes ----------------------------------------------------------------------------


def one_of_two(rank: int, meeting: str, folder: str) -> None:
    "A process that quantises batches of its own, and leaves its codebook behind."
    torch.set_num_threads(1)
    distributed = torch.distributed
    distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    torch.manual_seed(0)  # both begin with the same codes, as DDP sees to
    quantiser = Quantiser(6, 3, restart=2)
    for step in range(5):
        quantiser(numbers(2, 3, 4, 4, seed=10 * rank + step) + rank)
    torch.save(quantiser.state_dict(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_processes_share_a_codebook(tmp_path):
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path / "meet"), str(tmp_path)), nprocs=2)
    mine, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert mine.keys() == other.keys() == {"codes", "usage", "steps"}
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert mine["usage"].sum() == 2 * 32  # of both; the last look was in step 5
