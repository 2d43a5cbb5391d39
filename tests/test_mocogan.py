"MoCoGAN: what a reader would be bored by. The mathematics is asserted in notebooks 10 to 13."

import contextlib
import json
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from vidcourse.course import weights_file
from vidcourse.data import load
from vidcourse.mocogan import CONFIGS, MoCoGAN, load_pretrained, networks
from vidcourse.mocogan import study as mocogan_study
from vidcourse.mocogan.latents import MotionRNN, code_grid, draw_codes, with_motion
from vidcourse.mocogan.model import (
    Draws,
    discriminator_step,
    draw_frames,
    generator_step,
    make_trainer,
    step_on,
    train,
)
from vidcourse.mocogan.networks import InstanceNoise, Sizes
from vidcourse.systems import count

SMOKE = CONFIGS["smoke"]


@pytest.fixture(scope="module")
def shapes():
    return load("shapes", n=12, size=16, length=16, seed=0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MoCoGAN(SMOKE)


@pytest.mark.parametrize("length", [1, 2, 16, 40])
def test_any_length(model, length):
    clips = model.sample(3, length, torch.Generator().manual_seed(1))
    assert clips.shape == (3, 3, length, 16, 16) and clips.abs().max() <= 1


def test_same_seed_same_clip_and_longer_goes_on(model):
    short, again, long = (
        model.sample(2, t, torch.Generator().manual_seed(5)) for t in (6, 6, 9)
    )
    assert torch.equal(short, again)
    torch.testing.assert_close(long[:, :, :6], short)
    assert not torch.equal(short, model.sample(2, 6, torch.Generator().manual_seed(6)))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(n=0),
        dict(length=0),
        dict(category=4),
        dict(category=-1),
        dict(category=torch.tensor([0, 1, 2])),
    ],
)
def test_bad_requests(model, wrong):
    with pytest.raises(ValueError):
        model.sample(**({"n": 2, "length": 4} | wrong))


def test_category_of_a_model_without():
    with pytest.raises(ValueError, match="without categories"):
        MoCoGAN(
            replace(SMOKE, categories=0, category_loss="none", video_discriminator="full")
        ).sample(1, category=0)


def test_mixing_unequal_numbers():
    a, b = (draw_codes(n, 3, content=2, motion=2) for n in (2, 3))
    assert len(code_grid(a, b)) == 6
    with pytest.raises(ValueError, match="2 contents"):
        with_motion(a, b)


@pytest.mark.parametrize(
    "field, value",
    [
        ("image_discriminator", "big"),
        ("norm", "layer"),
        ("category_into", "discriminator"),
        ("size", 48),
        ("length", 9),
    ],
)
def test_impossible_configurations(field, value):
    with pytest.raises(ValueError):
        networks(replace(CONFIGS["paper"], **{field: value}))


@pytest.mark.parametrize("field, value", [("fakes", "fresh"), ("category_loss", "told")])
def test_impossible_recipes(field, value):
    with pytest.raises(ValueError, match=f"{field} is '{value}'; choose one of"):
        make_trainer(replace(SMOKE, **{field: value}))


def test_released_sizes():
    with torch.device("meta"):
        found = {name: count(net) for name, net in networks(CONFIGS["paper"]).items()}
        assert found == {name: count(net) for name, net in networks(Sizes()).items()}
    assert found == {
        "generator": 3_298_836,
        "image_discriminator": 663_296,
        "video_discriminator": 11_253_504,
    }


def test_save_and_load(model, tmp_path):
    model.save(tmp_path / "w.safetensors", data="shapes")
    back = MoCoGAN.load(tmp_path / "w.safetensors")
    assert back.config == model.config and back.facts["data"] == "shapes"
    assert torch.equal(
        back.sample(2, 4, torch.Generator().manual_seed(0)),
        model.sample(2, 4, torch.Generator().manual_seed(0)),
    )


def test_weights_that_are_not(tmp_path, model):
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps({"a": 1}))
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    save_file(
        {"x": torch.zeros(1)},
        tmp_path / "other.safetensors",
        {"vidcourse": json.dumps({"format": 1, "system": "navs", "config": {}})},
    )
    save_file(
        {"x": torch.zeros(1)},
        tmp_path / "old.safetensors",
        {"vidcourse": json.dumps({"format": 1, "system": "mocogan", "config": {"colour": 3}})},
    )
    for name in ("pickle", "foreign", "other", "old"):
        with pytest.raises(ValueError):
            MoCoGAN.load(tmp_path / f"{name}.safetensors")
    with pytest.raises(FileNotFoundError):
        MoCoGAN.load(tmp_path / "none.safetensors")


def test_train_leaves_weights_and_resumes_alike(shapes, tmp_path):
    config = replace(SMOKE, steps=4, decay=False)
    whole = train(shapes, config, steps=4, seed=3, progress=False)
    train(shapes, config, steps=2, seed=3, out=tmp_path, progress=False)
    resumed = train(shapes, config, steps=4, seed=3, out=tmp_path, resume=True, progress=False)
    for a, b in zip(
        whole.networks["generator"].state_dict().values(),
        resumed.networks["generator"].state_dict().values(),
    ):
        assert torch.equal(a, b)
    assert MoCoGAN.load(tmp_path / "weights.safetensors").facts["steps"] == 4


def test_clips_of_another_size(shapes):
    with pytest.raises(ValueError, match="size=32"):
        train(shapes, CONFIGS["laptop"], steps=1, progress=False)


def test_labels_decide_the_categories(shapes):
    two = shapes.select(np.flatnonzero(np.asarray(shapes.labels) < 2))
    assert train(two, SMOKE, steps=1, progress=False).config.categories == len(two.label_names)


@pytest.mark.parametrize(
    "changes",
    [
        dict(category_loss="infogan"),
        dict(category_loss="released", weight_decay=1e-5),
        dict(category_loss="none"),
        dict(image_discriminator="none"),
        dict(spectral=False, r1=0.1),
        dict(norm="batch", spectral=False, noise=0.1, fakes="released"),
        dict(fakes="released", image_discriminator="none"),
        dict(category_into="generator"),
        dict(ema=0.0),
        dict(video_discriminator="patch", category_loss="none"),
        dict(precision="bf16"),
    ],
)
def test_every_recipe_takes_a_step(shapes, changes):
    assert (
        train(shapes, replace(SMOKE, **changes), steps=2, progress=False)
        .sample(1, 3)
        .isfinite()
        .all()
    )


def one_step(shapes, **changes):
    config = replace(SMOKE, **changes)
    trainer = make_trainer(config, seed=0)
    before = trainer.networks["video_discriminator"].kind.weight.detach().clone()
    step_on(shapes, config)(trainer)
    return before, trainer.networks["video_discriminator"].kind.weight.detach()


def test_who_trains_the_category_head(shapes):
    assert torch.equal(*one_step(shapes, category_loss="released", weight_decay=0.0))
    assert not torch.equal(
        *one_step(shapes, category_loss="released", weight_decay=1e-5)
    )  # decay alone moves it, towards zero
    assert not torch.equal(*one_step(shapes, category_loss="infogan"))
    assert not torch.equal(*one_step(shapes, category_loss="labels"))


def test_generator_step_leaves_discriminators_alone(shapes):
    config = replace(SMOKE, rate_discriminator=0.0)
    trainer = make_trainer(config, seed=0)
    before = [p.detach().clone() for p in trainer.networks["image_discriminator"].parameters()]
    step_on(shapes, config)(trainer)
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, trainer.networks["image_discriminator"].parameters())
    )


SEEDS = sorted(
    int(p.stem[-1])
    for p in weights_file("mocogan_shapes_seed0").parent.glob(
        "mocogan_shapes_seed*.safetensors"
    )
)


@pytest.mark.parametrize("seed", SEEDS)
def test_shipped_weights_move(seed):
    clips = load_pretrained("shapes", seed).sample(4, rng=torch.Generator().manual_seed(0))
    assert clips.shape == (4, 3, 16, 32, 32) and clips.diff(dim=2).abs().mean() > 0.005


def test_weights_that_do_not_ship():
    with pytest.raises(FileNotFoundError, match="mocogan_shapes_seed0"):
        load_pretrained("cats")


def test_start_from_a_trained_system(shapes, model):
    frozen = replace(SMOKE, rate_generator=0.0)
    began = train(shapes, frozen, start=model, steps=2, progress=False)
    for (name, a), b in zip(
        model.networks["generator"].named_parameters(), began.networks["generator"].parameters()
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)
    with pytest.raises(ValueError, match="generator of other sizes"):
        train(shapes, replace(SMOKE, width=4), start=model, steps=1, progress=False)


def test_a_shorter_first_stage_ends_at_full_length(shapes):
    from vidcourse.mocogan.study import RECIPES, train_recipe

    assert (
        train_recipe(shapes, SMOKE, RECIPES["first half on 8 frames"], steps=4).config == SMOKE
    )


def test_the_gpu_profile_fits_a_t4_and_is_the_lesson_s_system():
    """Operations of the whole training, counted on one step at full size (in a batch of 2, scaled).

    20 minutes at 4 TFLOP/s, what a T4 does in float32 in practice.
    """
    config, other = CONFIGS["gpu"], CONFIGS["laptop"]
    assert replace(config, size=other.size, steps=other.steps) == other and config.size == 64
    few = replace(config, batch=2, precision="no")
    clips = load("shapes", n=4, size=config.size, length=config.length, seed=0)
    trainer = make_trainer(few, seed=0)
    with FlopCounterMode(display=False) as counter:
        step_on(clips, few)(trainer)
    each = counter.get_total_flops() / few.batch * config.batch
    assert 1e11 < each and each * config.steps < 4.8e15


def test_every_line_of_the_study_is_a_configuration():
    from vidcourse.mocogan.study import RECIPES

    for changes in RECIPES.values():
        networks(
            replace(
                CONFIGS["laptop"],
                size=16,
                **{k: v for k, v in changes.items() if k != "first_length"},
            )
        )


@pytest.mark.parametrize("step, sigma", [(0, 0.2), (5, 0.1), (10, 0.0), (25, 0.0)])
def test_noise_fades(shapes, step, sigma):
    config = replace(SMOKE, noise=0.2, noise_until=10)
    trainer = make_trainer(config, seed=0)
    trainer.step = step
    step_on(shapes, config)(trainer)
    for name in ("image_discriminator", "video_discriminator"):
        assert {
            round(m.sigma, 6)
            for m in trainer.networks[name].modules()
            if isinstance(m, InstanceNoise)
        } == {sigma}


def test_a_bounded_start_is_a_squashed_one():
    torch.manual_seed(0)
    free, bounded = MotionRNN(3, 4, 2), MotionRNN(3, 4, 2, bounded_start=True)
    bounded.load_state_dict(free.state_dict())
    codes = draw_codes(5, 6, content=3, motion=4, categories=2)
    torch.testing.assert_close(bounded(codes), free(replace(codes, start=codes.start.tanh())))
    assert not torch.allclose(bounded(codes), free(codes))


# Found by breaking the code on purpose --------------------------------------------------------


def test_each_frame_hears_its_own_noise():
    torch.manual_seed(0)
    rnn, codes = MotionRNN(3, 4), draw_codes(2, 6, content=3, motion=4)
    noise = codes.noise.clone()
    noise[:, 3] += 1
    changed = (rnn.motion(replace(codes, noise=noise)) - rnn.motion(codes)).abs().sum(-1)
    assert (changed[:, :3] == 0).all() and (changed[:, 3:] > 0).all()


def test_what_stands_where_in_a_latent():
    codes = draw_codes(5, 3, content=3, motion=4, categories=2, category=1)
    latent = MotionRNN(3, 4, 2, "generator")(codes)
    assert torch.equal(latent[:, 1, :3], codes.content) and torch.equal(
        latent[:, 2, 3:5], torch.tensor([[0.0, 1.0]]).expand(5, 2)
    )


def test_grid_rows_are_contents():
    a = draw_codes(2, 3, content=2, motion=2)
    mixed = code_grid(a)
    assert (
        torch.equal(mixed.content[:2], a.content[[0, 0]])
        and torch.equal(mixed.noise[:2], a.noise)
        and torch.equal(with_motion(a[[0]], a[[1]]).content, a.content[[0]])
    )


def test_clips_keep_their_place_in_the_batch_and_their_range(model):
    net = model.networks["generator"]
    codes = net.draw(3, rng=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(net(codes)[:1], net(codes[[0]]))
        assert (
            net.image_generator(1000 * torch.randn(2, net.motion_rnn.width, 1, 1)).abs().max()
            <= 1
        )


def test_discriminators_noise_norm_and_length(shapes):
    clips = shapes.batch(2, 16, torch.Generator().manual_seed(0))
    discriminator = networks(replace(SMOKE, noise=0.5))["video_discriminator"].eval()
    assert torch.equal(discriminator(clips)[0], discriminator(clips)[0])
    assert not torch.equal(discriminator.train()(clips)[0], discriminator(clips)[0])
    convolutions = [m for m in discriminator.trunk if isinstance(m, torch.nn.Conv3d)]
    assert convolutions and all(
        torch.nn.utils.parametrize.is_parametrized(m) for m in convolutions
    )
    with pytest.raises(ValueError, match="16 frames"):
        discriminator(clips[:, :, :12])


def test_r1_ema_decay_and_frame_step(shapes):
    def discriminator_after(**changes):
        config = replace(SMOKE, **changes)
        trainer = make_trainer(config, seed=0)
        trainer.fit(step_on(shapes, config), 2, progress=False)
        return trainer, trainer.networks["video_discriminator"].verdict.weight.detach()

    trainer, plain = discriminator_after(ema=0.9)
    assert not torch.equal(plain, discriminator_after(ema=0.9, r1=100.0)[1])
    a, b = (
        trainer.averaged["generator"].image_generator[0].weight,
        trainer.networks["generator"].image_generator[0].weight,
    )
    assert (
        not torch.equal(a, b)
        and trainer.optimisers["generator"].param_groups[0]["lr"] <= SMOKE.rate_generator
    )
    assert (
        make_trainer(SMOKE).schedule is not None
        and make_trainer(replace(SMOKE, decay=False)).schedule is None
    )
    with pytest.raises(ValueError):
        train(shapes, replace(SMOKE, frame_step=2), steps=1, progress=False)


def decoded(shapes, **changes) -> list[int]:
    "The batches that the image generator decodes in one iteration: pictures each."
    config, calls = replace(SMOKE, **changes), []
    trainer = make_trainer(config, seed=0)
    decoder = trainer.networks["generator"].image_generator
    decoder.register_forward_hook(lambda _, __, made: calls.append(len(made)))
    step_on(shapes, config)(trainer)
    return calls


def test_one_batch_of_fakes_or_the_released_four(shapes):
    n, t = SMOKE.batch, SMOKE.length
    assert decoded(shapes, fakes="shared") == [n * t]
    assert decoded(shapes, fakes="released") == [n * t, n, n * t, n]


def test_released_pictures_are_of_other_clips_real_and_generated(shapes):
    config = replace(SMOKE, fakes="released", precision="no")
    draw = Draws(shapes, config, make_trainer(config, seed=0))
    codes, drawn = draw.codes(), []
    draw.codes = lambda: drawn.append(codes) or codes
    draw.frames = lambda: torch.tensor([2, 0, 3, 1])
    draw.generator.eval()
    draw.generator.image_generator[0].weight.data *= 1000  # frames that differ
    whole, pictures = draw.generator(codes), draw.fake_frames()
    torch.testing.assert_close(pictures, whole[torch.arange(4), :, [2, 0, 3, 1]])
    draw.generator.train()  # batch statistics of pictures alone: no longer the frames of clips
    assert (draw.fake_frames() - draw.generator(codes)[:, :, 0]).abs().max() > 1e-3


def test_every_frame_of_every_clip_is_as_likely():
    "In clips of 2 and 6 frames, each frame of its own brightness, also after a selection."
    from vidcourse.data import Clips

    frames = (
        np.zeros((9, 8, 8, 3), np.uint8) + np.arange(9, dtype=np.uint8)[:, None, None, None]
    )
    clips = Clips(frames, [0, 1, 3, 9]).select([2, 1])
    made = draw_frames(clips, 8000, torch.Generator().manual_seed(0))
    seen = ((made[:, 0, 0, 0] + 1) * 127.5).round().long().bincount(minlength=9)
    assert made.shape == (8000, 3, 8, 8) and seen[0] == 0
    assert (seen[1:] - 1000).abs().max() < 150


def test_same_seed_same_start():
    a, b, c = (
        make_trainer(SMOKE, seed=s).networks["generator"].image_generator[0].weight
        for s in (1, 1, 2)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_black_model_is_empty(model):
    from vidcourse.mocogan.study import measure

    black = MoCoGAN(SMOKE)
    black.decode = lambda codes, at_once=64: -torch.ones(len(codes), 3, 16, 16, 16)
    assert measure(black, contents=3, motions=4)["empty"] == 1


# Who is shown what ----------------------------------------------------------------------------


class Bystander:
    """A trainer that only writes down which loss was to be stepped down.

    Its discriminators' opinion is the mean brightness of what they see.
    """

    step = 1

    def __init__(self, image: bool = True):
        def clip_opinion(clips):
            return (clips.mean((1, 2, 3, 4))[:, None], None)

        self.networks = {"video_discriminator": clip_opinion} | (
            {"image_discriminator": lambda frames: 10 * frames.mean((1, 2, 3))[:, None]}
            if image
            else {}
        )
        self.losses = {}
        self.autocast = contextlib.nullcontext

    def update(self, loss, *names):
        self.losses["+".join(names)] = float(loss)


CLIP = torch.linspace(-1, 1, 4)[None, None, :, None, None].expand(
    2, 3, 4, 8, 8
)  # frames from dark to bright; the mean is 0


def test_discriminators_see_real_clips_as_real_and_fakes_as_fakes():
    trainer = Bystander()
    losses = discriminator_step(
        trainer,
        replace(SMOKE, category_loss="none"),
        CLIP + 0.5,
        None,
        CLIP - 0.25,
        (CLIP + 0.5)[:, :, 3],
        (CLIP - 0.75)[:, :, 3],
    )

    def softplus(x):
        return float(np.log1p(np.exp(x)))

    assert float(losses["video discriminator"]) == pytest.approx(
        softplus(-0.5) + softplus(-0.25), abs=1e-5
    )
    assert float(losses["image discriminator"]) == pytest.approx(
        softplus(-15) + softplus(2.5), abs=1e-5
    ), "the last frame, real 1.5 and fake 0.25, times ten"
    assert trainer.losses["discriminators"] == pytest.approx(
        sum(map(float, losses.values())), abs=1e-5
    )


@pytest.mark.parametrize("step, due", [(0, True), (1, False), (8, True)])
def test_r1_is_lazy_and_weighed(step, due):
    trainer = Bystander(image=False)
    trainer.step = step
    config = replace(SMOKE, category_loss="none", r1=10.0)
    losses = discriminator_step(trainer, config, CLIP + 0.5, None, CLIP, CLIP[:, :, 0], None)
    pixels = CLIP[0].numel()  # the opinion is their mean: a slope of 1 / pixels at each
    penalty = 8 * 10 * (1 / pixels) / 2 if due else 0
    expected = float(losses["video discriminator"]) + penalty
    assert trainer.losses["discriminators"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("image", [True, False])
def test_generator_listens_to_every_discriminator(image):
    trainer = Bystander(image)
    config = replace(SMOKE, category_loss="none")
    losses = generator_step(trainer, config, None, CLIP - 1, (CLIP - 1)[:, :, 3])
    expected = np.log1p(np.exp(1)) + (np.log(2) if image else 0)
    assert trainer.losses["generator"] == pytest.approx(expected, abs=1e-5) and float(
        losses["generator"]
    ) == pytest.approx(expected, abs=1e-5)


def test_control_score_before_and_after_matching(monkeypatch, model):
    asked = []
    monkeypatch.setattr(
        mocogan_study,
        "motion_control_score",
        lambda clips, wanted, classifier, match: (
            asked.append((len(clips), wanted.tolist(), match))
            or SimpleNamespace(score=float(match))
        ),
    )
    assert mocogan_study.category_scores(model, None, 6, torch.Generator().manual_seed(0)) == {
        "mcs": 0.0,
        "mcs_matched": 1.0,
    }
    assert asked == [(6, [0, 1, 2, 3, 0, 1], match) for match in (False, True)]


def test_study_writes_down_what_was_run(shapes, tmp_path):
    study = mocogan_study.study
    records = study(
        shapes,
        SMOKE,
        ["no image discriminator"],
        steps=2,
        seeds=(3, 4),
        results=tmp_path / "r.json",
        progress=False,
    )
    assert [(r["recipe"], r["seed"], r["steps"], r["size"]) for r in records] == [
        ("no image discriminator", 3, 2, 16),
        ("no image discriminator", 4, 2, 16),
    ]
    assert (
        records[0]["losses"]["step"] == 2
        and "image discriminator" in records[0]["losses"]
        and records == json.loads((tmp_path / "r.json").read_text())
    )
    assert (
        study(
            shapes,
            SMOKE,
            ["no image discriminator"],
            steps=3,
            seeds=(3,),
            results=tmp_path / "r.json",
            progress=False,
        )[-1]["steps"]
        == 3
    ), "other steps are another run"
