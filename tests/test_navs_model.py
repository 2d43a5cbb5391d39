"The NAVS system: what a reader would be bored by. The ideas stand in notebooks 30 to 32."

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vidcourse import cli
from vidcourse.data import from_array, from_list, load
from vidcourse.metrics import psnr, ssim
from vidcourse.navs.latents import ClipCodes, laplacian_loss
from vidcourse.navs.model import (
    CONFIGS,
    NAVS,
    against_mean_frame,
    baselines,
    between_frames,
    first_frames,
    grid_factors,
    hold_out,
    load_pretrained,
    low_rank,
    make_trainer,
    own_pairs,
    shapes_grid,
    step_losses,
    step_on,
    train,
    verdict,
)
from vidcourse.navs.triplet import triplet_loss
from vidcourse.video import to_float

SMOKE = CONFIGS["smoke"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def board():
    "A grid of 3 x 4 clips at the size of smoke, its cells, and which are held out."
    clips, cells = shapes_grid(3, 4, SMOKE.size, SMOKE.length)
    return clips, cells, hold_out(3, 4, 1, seeded())[cells[:, 0], cells[:, 1]]


@pytest.fixture(scope="module")
def system(board):
    "A system of three steps on it."
    clips, cells, held = board
    return train(clips.select((~held).numpy()), SMOKE, pairs=cells[~held], progress=False)


def fresh(board, **changes):
    "A trainer on the trained cells, its configuration and frames."
    clips, cells, held = board
    config = replace(SMOKE, statics=3, transients=4, clips=int((~held).sum()), **changes)
    return make_trainer(config, cells[~held]), step_on(
        first_frames(clips.select((~held).numpy()), config.length), config
    )


def blocks(trainer):
    "A copy of the parameters by block."
    net = trainer.networks["generator"]
    return {
        name: [p.detach().clone() for p in getattr(net, name).parameters()]
        for name in ("codes", "recurrent", "generator")
    }


def moved(before, after):
    "The blocks of which any parameter has changed."
    return {
        name
        for name in before
        if any(not torch.equal(a, b) for a, b in zip(before[name], after[name]))
    }


# The grid ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows, columns, each", [(16, 8, 2), (9, 4, 1), (9, 4, 3), (3, 4, 1), (2, 2, 1), (5, 7, 0)]
)
def test_hold_out_leaves_every_row_and_column_something(rows, columns, each):
    for seed in range(5):
        held = hold_out(rows, columns, each, seeded(seed))
        assert (
            held.shape == (rows, columns)
            and (held.sum(1) == each).all()
            and not held.all(1).any()
            and not held.all(0).any()
        )
        assert held.sum(0).max() - held.sum(0).min() <= 1, "evenly over the columns"
    assert torch.equal(
        hold_out(rows, columns, each, seeded(3)), hold_out(rows, columns, each, seeded(3))
    )


@pytest.mark.parametrize("rows, columns, each", [(3, 4, 4), (3, 4, 5), (1, 4, 1)])
def test_hold_out_refuses_to_empty_a_row_or_column(rows, columns, each):
    with pytest.raises(ValueError, match="hold out fewer"):
        hold_out(rows, columns, each, seeded())


def test_shapes_grid_shares_content_by_row_and_motion_by_column():
    clips, cells = shapes_grid(3, 8, 16, 6)
    assert len(clips) == 24 and cells.tolist() == [[i, j] for i in range(3) for j in range(8)]
    assert (
        torch.equal(own_pairs(clips), cells)
        and len(set(clips.label_names)) == 8
        and clips.label_names[6] == "circle 2"
    )
    factors, same = grid_factors(3, 8)
    assert torch.equal(same, cells)
    by_row, by_column = factors.colour.reshape(3, 8, 3), factors.points.reshape(3, 8, 4, 2)
    assert (
        (by_row == by_row[:, :1]).all()
        and (by_column == by_column[:1]).all()
        and len(np.unique(by_row[:, 0], axis=0)) == 3
        and len(np.unique(by_column[0].reshape(8, -1), axis=0)) == 8
    )
    assert not torch.equal(
        to_float(shapes_grid(3, 8, 16, 6, seed=1)[0].clip(0)[None].copy()),
        to_float(clips.clip(0)[None].copy()),
    )


def test_own_pairs():
    frames = np.zeros((4, 2, 16, 16, 3), np.uint8)
    assert own_pairs(from_array(frames)).tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert own_pairs(from_array(frames, [0, 1, 1, 0])).tolist() == [
        [0, 0],
        [1, 1],
        [2, 2],
        [3, 3],
    ], "a label alone doesn't say who it is"
    assert own_pairs(
        from_array(frames, None, (), {"person": np.array([7, 3, 7, 5])})
    ).tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]], "nor a person, what is done"
    both = from_array(frames, [0, 2, 1, 0], ("a", "b", "c"), {"person": np.array([7, 3, 7, 5])})
    assert own_pairs(both).tolist() == [[2, 0], [0, 2], [2, 1], [1, 0]]


def test_first_frames():
    ramp = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 16, 16, 3), np.uint8
    )
    clips = from_list([ramp[:15], ramp])
    found = first_frames(clips, SMOKE.length, 2)
    assert (
        found.dtype == torch.uint8
        and found.shape == (2, 8, 16, 16, 3)
        and found[1, :, 0, 0, 0].tolist() == list(range(0, 16, 2))
    )
    with pytest.raises(
        ValueError, match=r"clip 0 has 15 frames \(2 of 2 clips are too short\); 22 are needed"
    ):
        first_frames(clips, SMOKE.length, 3)


# A step ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(triplet_weight=0.0),
        dict(static_weight=0.0),
        dict(recurrent=False),
        dict(ball=0.0),
        dict(codes_by="sgd"),
        dict(precision="bf16"),
        dict(ema=0.9),
        dict(output="tanh", leak=0.0),
        dict(unit_norm="batch"),
        dict(join="max"),
        dict(kernel="sum"),
        dict(optimisation="released"),
    ],
)
def test_every_recipe_moves_every_block(board, changes):
    trainer, step = fresh(board, **changes)
    before = blocks(trainer)
    losses = step(trainer)
    assert all(
        not torch.equal(a, b) for a, b in zip(before["codes"], blocks(trainer)["codes"])
    ), "static and transient ones"
    assert moved(before, blocks(trainer)) == {"codes", "generator"} | (
        {"recurrent"} if changes.get("recurrent", True) else set()
    )
    assert all(value.isfinite() for value in losses.values())
    assert (losses["triplet"] == 0) == ("triplet_weight" in changes) and (
        losses["static"] == 0
    ) == ("static_weight" in changes)


def test_staged_moves_the_blocks_by_turns(board):
    trainer, step = fresh(board, optimisation="staged")
    for number, expected in enumerate(({"generator"}, {"codes", "recurrent"}, {"generator"})):
        trainer.step, before = number, blocks(trainer)
        step(trainer)
        assert moved(before, blocks(trainer)) == expected


def test_released_takes_two_steps_an_iteration(board):
    "Everything on the pictures, then recurrent unit and codes on the triplet loss."
    trainer, step = fresh(board, optimisation="released")
    step(trainer)
    taken = {
        name: max(state["step"].item() for state in optimiser.state.values())
        for name, optimiser in trainer.optimisers.items()
    }
    assert taken == {"generator": 1, "recurrent": 2, "codes": 2}
    trainer, step = fresh(board, optimisation="released", triplet_weight=0.0)
    assert step(trainer)["triplet"] == 0
    assert all(state["step"] == 1 for state in trainer.optimisers["codes"].state.values())


@pytest.mark.parametrize(
    "field, value", [("optimisation", "twice"), ("codes_by", "lbfgs"), ("kernel", "box")]
)
def test_recipes_that_do_not_exist(board, field, value):
    with pytest.raises(ValueError, match=f"{field} is '{value}'; choose one of "):
        fresh(board, **{field: value})


def test_the_triplet_loss_reaches_transient_codes_and_recurrent_unit_only(board):
    net = fresh(board)[0].networks["generator"]
    codes = net.codes(torch.arange(3))
    outputs = net.recurrent(codes.transient)
    made, real = (
        net.render(codes.static, outputs),
        torch.rand(3, 3, SMOKE.length, SMOKE.size, SMOKE.size, generator=seeded()) - 0.5,
    )
    terms = step_losses(SMOKE, made, real, outputs, 2)
    assert terms["static"] == laplacian_loss(made[:, :, 2], real[:, :, 2]), (
        "of the frame that was asked for"
    )
    torch.testing.assert_close(
        terms["reconstruction"],
        torch.stack(
            [laplacian_loss(made[:, :, t], real[:, :, t]) for t in range(SMOKE.length)]
        ).mean(),
    )
    assert terms["triplet"] == triplet_loss(outputs, SMOKE.margin, SMOKE.near, SMOKE.far) > 0
    terms["triplet"].backward(retain_graph=True)
    assert (
        net.codes.static.grad is None
        and all(p.grad is None for p in net.generator.parameters())
        and net.codes.transient.grad.abs().sum() > 0
    )
    net.zero_grad()
    terms["static"].backward()
    reached = net.codes.transient.grad.abs().sum((0, 2))
    assert (reached[:3] > 0).all() and (reached[3:] == 0).all(), (
        "one frame, which hears the codes up to its own"
    )


@pytest.mark.parametrize("ball", [1.0, 0.5])
def test_codes_stay_in_the_ball(board, ball):
    trainer, step = fresh(board, ball=ball, rate_codes=5.0)
    for _ in range(3):
        step(trainer)
        for codes in (
            trainer.networks["generator"].codes.static,
            trainer.networks["generator"].codes.transient,
        ):
            assert codes.norm(dim=-1).max() < ball + 1e-5
    trainer, step = fresh(board, ball=0.0, rate_codes=5.0)
    step(trainer)
    assert trainer.networks["generator"].codes.static.norm(dim=-1).max() > 2


def test_only_the_codes_of_the_batch_move_by_sgd(board):
    trainer, step = fresh(board, codes_by="sgd", batch=1)
    before = blocks(trainer)["codes"]
    step(trainer)
    changed = [
        (new - old).flatten(1).abs().sum(1) > 0
        for old, new in zip(before, blocks(trainer)["codes"])
    ]
    assert changed[0].sum() == 1 and changed[1].sum() == 1


def operations(config):
    "Floating point operations of one step, counted with one clip and multiplied."
    one = replace(config, batch=1, precision="no")
    frames = torch.zeros(1, config.length, config.size, config.size, 3, dtype=torch.uint8)
    trainer = make_trainer(one, torch.zeros(1, 2, dtype=torch.long))
    with FlopCounterMode(display=False) as counter:
        step_on(frames, one)(trainer)
    return counter.get_total_flops() * config.batch


def test_the_trainings_of_the_gpu_profile_fit_a_t4():
    "Twenty minutes at 4 TFLOP/s: the grid, the frames between (7 of 16), people."
    whole = operations(CONFIGS["gpu"])
    assert whole > 1e11, "the convolutions and their gradients are counted"
    steps = CONFIGS["gpu"].steps + 3_000 * 7 / 16 + 3_000
    assert whole * steps < 4.8e15


# Training ----------------------------------------------------------------------------------


def test_training_finds_the_sizes_of_the_grid(board, system):
    clips, cells, held = board
    c = system.config
    assert (c.statics, c.transients, c.clips, c.batch) == (3, 4, 9, 4) and torch.equal(
        system.codes.pairs, cells[~held]
    )
    own = train(
        load("shapes", n=3, size=SMOKE.size, length=SMOKE.length),
        SMOKE,
        steps=2,
        progress=False,
    )
    assert (own.config.statics, own.config.transients, own.config.clips, own.config.batch) == (
        3,
        3,
        3,
        3,
    )
    named = train(clips.select((~held).numpy()), SMOKE, steps=3, progress=False)
    assert torch.equal(named.codes.static, system.codes.static), (
        "pairs by themselves are those of person and label"
    )


def test_training_learns(board):
    clips, cells, held = board
    learnt = train(
        clips.select((~held).numpy()),
        replace(SMOKE, width=8, batch=9),
        pairs=cells[~held],
        steps=120,
        progress=False,
    )
    real = to_float(first_frames(clips, SMOKE.length))
    made = learnt.exchange(*cells.T)
    torch.testing.assert_close(learnt.reconstruct(), made[~held], atol=1e-5, rtol=1e-4)
    untaught = NAVS(learnt.config).reconstruct()
    assert (
        psnr(made[~held], real[~held]).mean() > psnr(untaught, real[~held]).mean() + 5
        and psnr(made[held], real[held]).mean() > 15
    )


def spread_and_score(backdrop, **changes):
    "After 150 steps on a small grid: spread of the clips, PSNR less that of the mean frame."
    clips, cells = shapes_grid(3, 4, 16, SMOKE.length, backdrop=backdrop)
    config = replace(SMOKE, width=16, batch=12, rate_generator=4e-3, **changes)
    system = train(clips, config, pairs=cells, steps=150, progress=False)
    reached = system.facts["reached"]
    return system.reconstruct().std(0).mean(), reached["psnr"] - reached["mean_frame_psnr"]


@pytest.mark.parametrize("backdrop", ["black", "plain", "textured"])
def test_no_backdrop_kills_the_generator(backdrop):
    spread, gain = spread_and_score(backdrop)
    assert spread > 0.05 and gain > 0.3


def test_black_kills_the_released_generator():
    "What the recipe mends; if this fails, the test above shows nothing."
    spread, gain = spread_and_score("black", leak=0.0, output="tanh")
    assert spread < 0.01 and gain < 0


def test_training_says_what_it_reached_against_the_mean_frame(board, capsys):
    clips, cells, held = board
    system = train(clips.select((~held).numpy()), SMOKE, pairs=cells[~held])
    reached = system.facts["reached"]
    frames = first_frames(clips.select((~held).numpy()), SMOKE.length)
    real, made = to_float(frames), system.reconstruct()
    assert reached["psnr"] == pytest.approx(psnr(made, real).mean().item(), abs=1e-3)
    mates = torch.stack(
        [real[cells[~held][:, 0] == i].mean((0, 2)) for i in cells[~held][:, 0]]
    )
    still = psnr(mates[:, :, None].expand_as(real), real).mean().item()
    assert reached["mean_frame_psnr"] == pytest.approx(still, abs=1e-3)
    assert verdict(reached) in capsys.readouterr().out and "No better" in verdict(reached)
    assert "No better" not in verdict({"psnr": 20.1, "mean_frame_psnr": 20.0})
    assert against_mean_frame(system, frames, most=2)["psnr"] != reached["psnr"]


def test_save_and_load_keep_codes_and_pairs(system, tmp_path):
    system.save(tmp_path / "w.safetensors")
    again = NAVS.load(tmp_path / "w.safetensors")
    assert again.config == system.config
    for name, tensor in system.networks["generator"].state_dict().items():
        assert torch.equal(tensor, again.networks["generator"].state_dict()[name]), name
    assert again.codes.pairs.dtype == torch.long and torch.equal(
        again.reconstruct(), system.reconstruct()
    )
    system.save(tmp_path / "half.safetensors", half=True)
    half = NAVS.load(tmp_path / "half.safetensors")
    assert (
        torch.equal(half.codes.pairs, system.codes.pairs)
        and (half.reconstruct() - system.reconstruct()).abs().max() < 0.02
    )


def test_resume_equals_an_unbroken_run(board, tmp_path):
    clips, cells, held = board
    some, pairs, config = (
        clips.select((~held).numpy()),
        cells[~held],
        replace(SMOKE, ema=0.9),
    )
    whole = train(some, config, pairs=pairs, steps=4, seed=3, progress=False)
    train(some, config, pairs=pairs, steps=2, seed=3, out=tmp_path, progress=False)
    seen = []
    resumed = train(
        some,
        config,
        pairs=pairs,
        steps=4,
        seed=3,
        out=tmp_path,
        resume=True,
        progress=False,
        log_every=1,
        on_log=lambda trainer: seen.append(trainer.step),
    )
    assert seen == [3, 4], "it went on, and did not begin again"
    other = train(some, config, pairs=pairs, steps=1, seed=4, progress=False)
    assert not torch.allclose(
        other.codes.static,
        train(some, config, pairs=pairs, steps=1, seed=3, progress=False).codes.static,
        atol=0.1,
    ), "another seed, other codes"
    for name, tensor in whole.networks["generator"].state_dict().items():
        assert torch.equal(tensor, resumed.networks["generator"].state_dict()[name]), name
    assert torch.equal(
        NAVS.load(tmp_path / "weights.safetensors").reconstruct(), resumed.reconstruct()
    )


def test_going_on_from_a_trained_system(board, system):
    clips, cells, held = board
    some = clips.select((~held).numpy())
    on = train(
        some,
        replace(SMOKE, rate_generator=0.0, rate_codes=0.0),
        pairs=cells[~held],
        start=system,
        steps=1,
        progress=False,
    )
    assert torch.equal(on.codes.static, system.codes.static)
    with pytest.raises(ValueError, match="same pairs"):
        train(some, SMOKE, pairs=cells[~held].flip(0), start=system, steps=1, progress=False)
    with pytest.raises(ValueError, match="same pairs"):
        train(clips, SMOKE, pairs=cells, start=system, steps=1, progress=False)


@pytest.mark.parametrize(
    "pairs", [torch.zeros(3, 2, dtype=torch.long), torch.full((12, 2), -1)]
)
def test_pairs_that_do_not_fit(board, pairs):
    with pytest.raises(ValueError, match="one row"):
        train(board[0], SMOKE, pairs=pairs, steps=1, progress=False)


def test_clips_of_another_size(board):
    with pytest.raises(ValueError, match="size=32"):
        train(board[0], CONFIGS["laptop"], steps=1, progress=False)


# What an owner of codes can do -------------------------------------------------------------


def test_exchange_swaps_identities_exactly(system):
    actions = torch.tensor([1, 3])
    straight, swapped = (
        system.exchange(who, actions) for who in (torch.tensor([0, 2]), torch.tensor([2, 0]))
    )
    back = system.exchange(torch.tensor([2, 0, 0, 2]), torch.tensor([1, 3, 1, 3]))
    torch.testing.assert_close(back[:2], swapped, rtol=0, atol=1e-6)
    torch.testing.assert_close(back[2:], straight, rtol=0, atol=1e-6)
    assert (straight - swapped).abs().amax((1, 2, 3, 4)).min() > 1e-3


def test_every_frame_hears_the_static_code_and_no_frame_the_future(system):
    codes = system.codes.cell(torch.tensor([0]), torch.tensor([0]))
    usual = system.decode(codes)
    other = system.decode(ClipCodes(codes.static + 1, codes.transient))
    assert ((usual - other).abs().amax((0, 1, 3, 4)) > 0).all()
    late = codes.transient.detach().clone()
    late[:, 5] += 1
    change = (system.decode(ClipCodes(codes.static, late)) - usual).abs().amax((0, 1, 3, 4))
    assert (change[:5] == 0).all() and (change[5:] > 0).all()


@pytest.mark.parametrize("rank", [1, 2, 3, 8, 20])
def test_low_rank(rank):
    codes = torch.randn(3, 8, 10, generator=seeded())
    simple = low_rank(codes, rank)
    assert (
        simple.shape == codes.shape
        and (torch.linalg.matrix_rank(simple, rtol=1e-4) == min(rank, 8)).all()
    )
    torch.testing.assert_close(low_rank(simple, rank), simple, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        (codes - simple).square().sum((1, 2)),
        torch.linalg.svdvals(codes)[:, rank:].square().sum(1),
        rtol=1e-3,
        atol=1e-4,
    )
    assert low_rank(codes, 0) is codes
    with pytest.raises(ValueError, match="rank is -1"):
        low_rank(codes, -1)


@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_interpolation_keeps_the_frames_it_was_given(system, factor):
    codes = system.codes(torch.arange(4))
    tweened, plain = system.interpolate(codes, factor), system.decode(codes)
    assert tweened.shape[2] == (SMOKE.length - 1) * factor + 1 and not tweened.requires_grad
    torch.testing.assert_close(tweened[:, :, ::factor], plain, rtol=0, atol=1e-5)
    outputs = system.networks["generator"].recurrent(codes.transient)
    if factor == 2:
        half = system.networks["generator"].render(
            codes.static, (outputs[:, 1:] + outputs[:, :-1]) / 2
        )
        half = half.detach().clamp(-1, 1)  # as every clip that is shown
        torch.testing.assert_close(tweened[:, :, 1::2], half, rtol=0, atol=1e-5)


def test_interpolation_of_simpler_codes(system):
    codes = system.codes(torch.arange(2))
    simple = ClipCodes(codes.static, low_rank(codes.transient, 2))
    torch.testing.assert_close(
        system.interpolate(codes, 3, rank=2), system.interpolate(simple, 3), rtol=0, atol=1e-5
    )
    fresh = NAVS(system.config)
    assert (
        fresh.codes.static.requires_grad
        and not between_frames(
            fresh.networks["generator"], fresh.codes(torch.arange(2)), 2
        ).requires_grad
    )
    assert (
        system.interpolate(codes, 3, rank=1) - system.interpolate(codes, 3)
    ).abs().max() > 1e-3
    for factor in (0, -1):
        with pytest.raises(ValueError, match="factor"):
            between_frames(system.networks["generator"], codes, factor)


@pytest.mark.parametrize("length", [None, 1, 5, 8])
def test_samples_of_every_length(system, length):
    def draw(seed, t=length):
        return system.sample(3, t, seeded(seed))

    clips = draw(0)
    assert (
        clips.shape == (3, 3, length or 8, 16, 16)
        and clips.isfinite().all()
        and clips.abs().max() <= 1
    )
    assert torch.equal(clips, draw(0)) and not torch.equal(clips, draw(1))
    torch.testing.assert_close(clips, draw(0, None)[:, :, : length or 8], rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [0, 9, -1])
def test_lengths_that_it_owns_no_codes_for(system, length):
    with pytest.raises(ValueError, match="give 1 to 8"):
        system.sample(1, length)


# Codes for new clips -----------------------------------------------------------------------


def test_fit_finds_codes_and_leaves_the_networks_alone(board, system):
    torch.manual_seed(5)
    net = NAVS(replace(system.config, ball=2.0)).networks[
        "generator"
    ]  # another decoder, whose own clips can be fitted
    owner = NAVS(replace(system.config, ball=2.0), net)
    target = owner.decode(owner.codes.cell(torch.tensor([0, 1]), torch.tensor([1, 2])))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    codes = owner.fit(target, steps=150)
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items()
    ) and all(p.grad is None and p.requires_grad for p in net.parameters())
    assert (
        isinstance(codes, ClipCodes)
        and codes.static.shape == (2, 8)
        and codes.transient.shape == (2, 8, 8)
        and not codes.static.requires_grad
    )
    assert (
        codes.static.norm(dim=-1).max() < 2 + 1e-5
        and codes.transient.norm(dim=-1).max() < 2 + 1e-5
    )
    start = owner.decode(owner.fit(target, steps=0))
    assert psnr(owner.decode(codes), target).min() > psnr(start, target).max() + 3


def test_fit_repeats_and_works_under_no_grad(board, system):
    target = to_float(first_frames(board[0].select([0, 1]), SMOKE.length))
    a = system.fit(target, steps=4)
    with torch.no_grad():
        b = system.fit(target, steps=4)
    assert torch.equal(a.static, b.static) and not torch.equal(
        a.static, system.fit(target, steps=4, seed=1).static
    )


@pytest.mark.parametrize(
    "shape",
    [
        (2, 3, 8, 32, 32),
        (2, 3, 7, 16, 16),
        (2, 3, 9, 16, 16),
        (2, 1, 8, 16, 16),
        (2, 3, 8, 16, 17),
    ],
)
def test_fit_refuses_other_sizes(system, shape):
    with pytest.raises(ValueError, match=r"trained on \(n, 3, 8, 16, 16\)"):
        system.fit(torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_fit_refuses_what_is_not_finite(system, value):
    clips = torch.zeros(2, 3, 8, 16, 16)
    clips[1, 0, 3, 4, 4] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        system.fit(clips)


# Scores ------------------------------------------------------------------------------------


def flat(*levels):
    "A clip (1, 3, t, 16, 16) with one grey a frame."
    return torch.tensor(levels)[None, None, :, None, None].expand(1, 3, -1, 16, 16).clone()


def test_baselines_by_hand():
    """Person 0's trained clips are grey 0 and 0.2, 0.6 and 0: mean 0.2. The truth is 0.2 and 0.6:
    the mean frame is wrong by 0 and 0.4, the others by 0.2, 0.4 and 0.4, 0.6."""
    trained, pairs = (
        torch.cat([flat(0.0, 0.2), flat(0.6, 0.0), flat(1.0, 1.0)]),
        torch.tensor([[0, 0], [0, 1], [1, 0]]),
    )
    found = baselines(trained, pairs, flat(0.2, 0.6), torch.tensor([[0, 2]]))

    def decibel(*errors):
        return 10 * np.log10(4 / np.mean(np.square(errors)))

    assert found["mean frame"]["psnr"] == pytest.approx(decibel(0, 0.4), abs=1e-3)
    assert found["wrong action"]["psnr"] == pytest.approx(
        (decibel(0.2, 0.4) + decibel(0.4, 0.6)) / 2, abs=1e-3
    )
    mean = ssim(flat(0.2, 0.2), flat(0.2, 0.6)).item()
    assert found["mean frame"]["ssim"] == pytest.approx(mean, abs=1e-5) and 0 < mean < 1


def test_ssim_is_one_for_equal_clips_and_falls():
    clips = torch.rand(2, 3, 4, 16, 16, generator=seeded()) * 2 - 1
    near, far = (
        ssim(clips, clips + k * torch.randn(clips.shape, generator=seeded(1)))
        for k in (0.1, 1.0)
    )
    assert (
        torch.allclose(ssim(clips, clips), torch.ones(2), atol=1e-5)
        and (near > far).all()
        and (near < 1).all()
    )
    mixed = ssim(clips, torch.stack([clips[0], -clips[1]]))
    assert mixed[0] > 0.999 > -0.5 > mixed[1], (
        "a score for each clip; a negative is no likeness"
    )


# The command line --------------------------------------------------------------------------


def test_the_command_trains_samples_and_evaluates(tmp_path, capsys):
    run = tmp_path / "run"
    assert (
        cli.main(["train", "navs", "--data", "shapes", "--out", str(run), "--profile", "smoke"])
        == 0
    )
    assert NAVS.load(run / "weights.safetensors").config.clips == 64
    assert (
        cli.main(
            ["sample", str(run), "--out", str(tmp_path / "a.gif"), "--n", "2", "--length", "5"]
        )
        == 0
    )
    assert (
        cli.main(["sample", str(run), "--out", str(tmp_path / "b.gif"), "--length", "9"]) == 1
    )
    said = capsys.readouterr()
    assert "give 1 to 8" in said.err and not (tmp_path / "b.gif").exists()
    assert (
        cli.main(
            [
                "evaluate",
                str(run),
                "--data",
                "shapes",
                "--n",
                "16",
                "--classifier",
                "classifier_shapes32",
            ]
        )
        == 0
    )
    assert (run / "evaluation.json").is_file() and "Frechet distance" in capsys.readouterr().out
    assert (
        cli.main(["sample", str(run), "--out", str(tmp_path / "c.gif"), "--category", "1"]) == 1
    )
    said = capsys.readouterr()
    assert len(said.err.strip().splitlines()) == 1


# What ships --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shipped_weights_beat_the_mean_frame(seed):
    system = load_pretrained("shapes", seed)
    c = system.config
    assert (c.size, c.length, c.statics, c.transients, system.facts["seed"]) == (
        32,
        16,
        16,
        8,
        seed,
    )
    clips, cells = shapes_grid(c.statics, c.transients, c.size, c.length)
    real, held = (
        to_float(first_frames(clips, c.length)),
        torch.ones(c.statics, c.transients, dtype=torch.bool),
    )
    held[tuple(system.codes.pairs.T)] = False
    assert held.sum() == 32 and torch.equal(held, hold_out(16, 8, 2, seeded()))
    held = held[cells[:, 0], cells[:, 1]]
    some = torch.where(held)[0][::4]  # every second row
    cheap = baselines(real[~held], cells[~held], real[some], cells[some])
    assert (
        psnr(system.exchange(*cells[some].T), real[some]).mean()
        > cheap["mean frame"]["psnr"] + 6
    )


def test_shipped_weights_of_real_people(real_data):
    real_data("weizmann64.npz")
    system = load_pretrained("weizmann")
    assert (system.config.statics, system.config.transients, system.config.clips) == (9, 4, 27)
    people = load("weizmann", size=system.config.size)
    scenes, who = to_float(first_frames(people, 16, 2)), own_pairs(people)
    held = ~(who[:, None] == system.codes.pairs).all(-1).any(1)
    assert held.sum() == 9 and torch.equal(who[~held], system.codes.pairs)
    made = system.exchange(*who.T)
    assert (
        psnr(made[~held], scenes[~held]).mean() > 27
        and psnr(made[held], scenes[held]).mean()
        > baselines(scenes[~held], who[~held], scenes[held], who[held])["mean frame"]["psnr"]
        + 0.5
    )


def test_weights_that_do_not_ship():
    with pytest.raises(FileNotFoundError, match="navs_shapes_seed0"):
        load_pretrained("cats")
