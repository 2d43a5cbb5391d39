"""NAVS (Aich et al. 2020), built in notebooks 30 to 33.

This file only gathers names; the code is exported from the notebooks.
"""

from vidcourse.navs.latents import (
    ClipCodes,
    ClipDecoder,
    FrameGenerator,
    LatentCodes,
    Recurrent,
    Sizes,
    into_ball,
    laplacian_loss,
    networks,
    pyramid,
    released_join,
)
from vidcourse.navs.model import (
    CONFIGS,
    NAVS,
    SYSTEM,
    Config,
    baselines,
    hold_out,
    load_pretrained,
    low_rank,
    own_pairs,
    shapes_grid,
    ssim,
    train,
)
from vidcourse.navs.triplet import (
    Triplets,
    distances,
    in_order,
    neighbours,
    semi_hard,
    triplet_loss,
)

__all__ = [
    "CONFIGS",
    "NAVS",
    "SYSTEM",
    "ClipCodes",
    "ClipDecoder",
    "Config",
    "FrameGenerator",
    "LatentCodes",
    "Recurrent",
    "Sizes",
    "Triplets",
    "baselines",
    "distances",
    "hold_out",
    "in_order",
    "into_ball",
    "laplacian_loss",
    "load_pretrained",
    "low_rank",
    "neighbours",
    "networks",
    "own_pairs",
    "pyramid",
    "released_join",
    "semi_hard",
    "shapes_grid",
    "ssim",
    "train",
    "triplet_loss",
]
