"23_v3gan_measured: rulers for motion, the shuffle game as a number, study records."

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from vidcourse.course import weights_file
from vidcourse.data import load
from vidcourse.perceptual import VideoClassifier, load_classifier
from vidcourse.study import shipped_study
from vidcourse.v3gan import CONFIGS, V3GAN
from vidcourse.v3gan.study import (
    RECIPES,
    finds_swapped,
    known_paths,
    measure,
    object_paths,
    path_distance,
    study,
)


def real(n, size=16, seed=3):
    return load("shapes", n=n, size=size, length=16, seed=seed, backdrop="textured").batch(
        n, 16, torch.Generator().manual_seed(0)
    )


def test_path_distance_by_hand():
    t = torch.linspace(-1, 1, 4)
    line = torch.stack([t, t], -1)
    known = torch.stack([line, torch.stack([t, -t], -1)])
    moved = line + torch.tensor([0.3, -0.2])  # where on the screen doesn't matter
    assert path_distance(moved[None], known).item() == pytest.approx(0, abs=1e-4)
    off = line.clone()
    off[0] += torch.tensor(
        [0.4, 0.0]
    )  # one point of four off by 0.4: after centring 0.3 and three times 0.1
    assert path_distance(off[None], known).item() == pytest.approx(
        ((0.3**2 + 3 * 0.1**2) / 4) ** 0.5, abs=1e-4
    )


def test_path_distance_takes_the_nearest_of_all():
    known = known_paths(50, 16)
    assert path_distance(known[[49, 0]], known).max() < 1e-3
    assert path_distance(known[:1], known[1:]).item() > 1e-3


def test_known_paths_are_those_of_the_drawn_clips():
    from vidcourse.shapes import moving_shapes
    from vidcourse.video import to_float

    made = moving_shapes(6, length=16, size=32, seed=7, backdrop="textured")
    tracked, known = object_paths(to_float(made.frames)), known_paths(6, 16, seed=7)
    assert (tracked - known).abs().max() < 0.1  # a pixel and a half


def test_clips_without_an_object_are_left_out():
    clips = real(4)
    clips[1] = -1.0
    assert object_paths(clips).shape == (3, 16, 2)
    clips[2, :, 5] = -1.0  # one dark frame: the gap is filled
    assert object_paths(clips).isfinite().all()


def test_motion_that_is_spoilt_is_farther_away():
    clips, known = real(32), known_paths(2000)

    def away(c):
        return path_distance(object_paths(c), known).mean()

    assert away(clips) < 0.5 * away(clips.flip(2)) and away(clips) < 0.5 * away(
        clips[:, :, :1].expand_as(clips)
    )


class Clock(nn.Module):
    "Rates a clip by how evenly it brightens: knows order when the clips are made so."

    def __init__(self, sign):
        super().__init__()
        self.sign = sign

    def forward(self, clips):
        return 5 + self.sign * -clips.mean((1, 3, 4)).diff(dim=1).abs().mean(1, keepdim=True)


def test_finds_swapped_counts_the_clips_preferred():
    brighter = torch.linspace(-1, 1, 16).view(1, 1, 16, 1, 1).expand(16, 3, -1, 16, 16)
    assert (
        finds_swapped(Clock(1.0), brighter) == 1.0
        and finds_swapped(Clock(-1.0), brighter) == 0.0
    )
    assert finds_swapped(Clock(0.0), brighter) == 0.0  # no opinion is no find


def test_measure_is_repeatable_and_complete():
    system, classifier = (
        V3GAN(replace(CONFIGS["smoke"], length=16)),
        VideoClassifier(["a", "b"], size=16, width=4).eval(),
    )
    first = measure(system, classifier, real(8), known_paths(100), n=8)
    again = measure(system, classifier, real(8), known_paths(100), n=8)
    assert again == pytest.approx(first, nan_ok=True) and again != pytest.approx(
        measure(system, classifier, real(8), known_paths(100), n=8, seed=6), nan_ok=True
    )
    assert {"mask_iou", "background_psnr", "path_distance", "frechet", "empty"} <= set(first)


def test_study_records_what_it_changed(tmp_path):
    clips, classifier = (
        load("shapes", n=8, size=16, length=16, seed=0, backdrop="textured"),
        VideoClassifier(["a", "b"], size=16, width=4).eval(),
    )
    config = replace(CONFIGS["smoke"], length=16)
    options = dict(
        steps=2,
        classifier=classifier,
        real=real(8),
        known=known_paths(100),
        results=tmp_path / "study.json",
    )
    records = study(
        clips, config, ["all of it", "no background stream"], seeds=(0, 1), **options
    )
    assert [(r["recipe"], r["seed"], r["steps"]) for r in records] == [
        (n, s, 2) for n in ("all of it", "no background stream") for s in (0, 1)
    ]
    assert all(r["mask_mean"] == 1.0 for r in records[2:]) and all(
        r["mask_mean"] < 1.0 for r in records[:2]
    )  # the change reached the networks
    assert [c["step"] for c in records[0]["curve"]] == [1, 2] and 0 <= records[0][
        "finds_swapped"
    ] <= 1
    assert (tmp_path / "study.json").read_text() == json.dumps(
        records, indent=1
    )  # as text: NaN is not equal to itself
    before = (tmp_path / "study.json").read_bytes()
    assert (
        len(study(clips, config, ["all of it"], seeds=(0, 1), **options)) == 4
        and (tmp_path / "study.json").read_bytes() == before
    )


def test_every_recipe_is_a_configuration():
    for name, changes in RECIPES.items():
        assert (
            replace(CONFIGS["laptop"], **changes) != CONFIGS["laptop"] or name == "all of it"
        ), name


def test_shipped_records_hold_three_seeds_of_the_main_lines():
    records = shipped_study("v3gan")
    assert len({r["steps"] for r in records}) == 1 and {r["recipe"] for r in records} <= set(
        RECIPES
    )
    for name in (
        "all of it",
        "add, expand (released motion)",
        "add, recur",
        "warp, expand",
        "no mask prior",
        "binary prior",
        "both priors",
        "released shuffle",
        "global shuffle",
        "no shuffle",
    ):
        assert sorted(r["seed"] for r in records if r["recipe"] == name) == [0, 1, 2], name


def test_the_judge_of_textured_shapes_was_tested_on_clips_of_its_own():
    classifier, about = load_classifier(weights_file("classifier_textured32"))
    assert about["held_out_accuracy"] > 0.95 and classifier.size == 32
