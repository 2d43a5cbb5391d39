"33_navs_measured: the two scores by hand, study records."

import json
from dataclasses import replace

import pytest
import torch

from vidcourse.navs import CONFIGS, hold_out, shapes_grid
from vidcourse.navs.model import train
from vidcourse.navs.study import (
    LOSSES,
    RECIPES,
    frame_consistency,
    measure,
    motion_consistency,
    motion_feature,
    study,
)
from vidcourse.study import shipped_study


def clips(n=2, t=5, size=16, seed=0):
    return (
        torch.rand(n, 3, t, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    )


def test_frame_consistency_compares_every_frame_with_the_first():
    from vidcourse.metrics import ssim

    still = clips()[:, :, :1].expand(-1, -1, 5, -1, -1)
    assert frame_consistency(still) == pytest.approx(1, abs=1e-5)
    jump = still.clone()
    jump[:, :, 2] = clips(seed=1)[
        :, :, 2
    ]  # one frame of the four later ones is another picture
    other = ssim(still[:, :, :1], jump[:, :, 2:3]).mean().item()
    assert frame_consistency(jump) == pytest.approx((3 + other) / 4, abs=1e-5) and other < 0.5


def test_motion_feature_counts_every_change_in_either_direction():
    still = clips(1)[:, :, :1].expand(-1, -1, 5, -1, -1)
    assert motion_feature(still).abs().max() == 0
    flicker = still.clone()
    flicker[:, :, 1::2] += 0.1
    once = still.clone()
    once[:, :, 2:] += 0.1
    assert motion_feature(flicker).norm() == pytest.approx(
        4 * motion_feature(once).norm().item(), rel=1e-3
    )  # four changes against one


def test_motion_consistency_by_hand():
    a, b = clips(), clips(seed=1)
    gap = (motion_feature(a) - motion_feature(b)).square().sum(1).log10().mean().item()
    assert motion_consistency(a, b) == pytest.approx(gap, abs=1e-5)
    assert motion_consistency(a, a) == -float("inf")
    assert motion_consistency(a, a + 0.01 * clips(seed=2)) < motion_consistency(a, b)


@pytest.fixture(scope="module")
def toys():
    config = replace(CONFIGS["smoke"], size=16)
    made, cells = shapes_grid(4, 4, 16, config.length)
    held = hold_out(4, 4, 1, torch.Generator().manual_seed(0))[cells[:, 0], cells[:, 1]]
    return made, cells, held, config


def test_measure_tells_trained_from_held_out(toys):
    made, cells, held, config = toys
    system = train(
        made.select(torch.where(~held)[0].numpy()),
        config,
        pairs=cells[~held],
        steps=2,
        progress=False,
    )
    true = system.reconstruct().clamp(-1, 1)
    found = measure(system, true, system.exchange(*cells[held].T).clamp(-1, 1), cells[held])
    assert (
        found["mcs"] == -float("inf")
        and found["held_ssim"] == pytest.approx(1, abs=1e-3)
        and found["train_psnr"] > 60
    )
    worse = measure(system, true.flip(2), true[:4], cells[held])
    assert (
        worse["train_psnr"] < 60
        and worse["fcs"] == found["fcs"]
        and {"order_z", "order_r"} <= set(worse)
    )


def test_study_records_what_it_changed(toys, tmp_path):
    made, cells, held, config = toys
    options = dict(steps=2, data="shapes", results=tmp_path / "study.json")
    records = study(
        made,
        cells,
        held,
        config,
        ["all of it", "no triplet", "no recurrent unit"],
        seeds=(0, 1),
        **options,
    )
    assert [(r["recipe"], r["seed"], r["steps"], r["data"]) for r in records] == [
        (n, s, 2, "shapes")
        for n in ("all of it", "no triplet", "no recurrent unit")
        for s in (0, 1)
    ]
    assert all(r["losses"]["triplet"] == 0 for r in records[2:4]) and all(
        r["losses"]["triplet"] > 0 for r in records[:2]
    )
    assert all(
        r["order_z"] == r["order_r"] for r in records[4:]
    )  # no unit: the outputs are the codes
    assert (tmp_path / "study.json").read_text() == json.dumps(records, indent=1)
    before = (tmp_path / "study.json").read_bytes()
    study(made, cells, held, config, ["all of it"], seeds=(0, 1), **options)
    assert (tmp_path / "study.json").read_bytes() == before


def test_every_recipe_is_a_configuration():
    for name, changes in RECIPES.items():
        assert (
            replace(CONFIGS["laptop"], **changes) != CONFIGS["laptop"] or name == "all of it"
        ), name


def test_shipped_records_hold_three_seeds_of_every_line():
    records = [r for r in shipped_study("navs") if r["data"] in ("weizmann", "shapes")]
    assert {(r["data"], r["recipe"], r["seed"]) for r in records} == {
        (d, n, s) for d in ("weizmann", "shapes") for n in LOSSES for s in range(3)
    }
    assert len(records) == 6 * len(LOSSES)
    assert len({(r["steps"], r["size"], r["output"]) for r in records}) == 1
