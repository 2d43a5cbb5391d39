"DIGAN (Yu et al. 2022), built in notebooks 50 to 53. This file only gathers names."

from vidcourse.digan.model import CONFIGS, DIGAN, SYSTEM, Config, load_pretrained, train
from vidcourse.digan.networks import (
    WINDOW,
    Codes,
    ConcatenatedGenerator,
    Discriminator,
    ModulatedLayer,
    Sizes,
    SpaceTimeFeatures,
    VideoGenerator,
    draw_codes,
    networks,
    pair_input,
)

__all__ = [
    "CONFIGS",
    "DIGAN",
    "SYSTEM",
    "WINDOW",
    "Codes",
    "Config",
    "ConcatenatedGenerator",
    "Discriminator",
    "ModulatedLayer",
    "Sizes",
    "SpaceTimeFeatures",
    "VideoGenerator",
    "draw_codes",
    "load_pretrained",
    "networks",
    "pair_input",
    "train",
]
