"Layered Controllable Video Generation (Huang et al. 2022), notebooks 40 to 43; gathers names."

from vidcourse.layered.control import about, by_shift, centre_of, fit_affine, fit_shift, shifted, warp
from vidcourse.layered.masks import MaskNetwork, MaskRecipe, MaskSizes
from vidcourse.layered.model import (
    CONFIGS,
    SYSTEM,
    Config,
    Layered,
    LayeredGenerator,
    Sizes,
    Steering,
    first_frame,
    load_pretrained,
    networks,
    train,
)
from vidcourse.layered.vq import FrameGenerator, FrameSizes, Quantiser, patch_discriminator

__all__ = [
    "CONFIGS",
    "SYSTEM",
    "Config",
    "FrameGenerator",
    "FrameSizes",
    "Layered",
    "LayeredGenerator",
    "MaskNetwork",
    "MaskRecipe",
    "MaskSizes",
    "Quantiser",
    "Sizes",
    "Steering",
    "about",
    "by_shift",
    "centre_of",
    "first_frame",
    "fit_affine",
    "fit_shift",
    "load_pretrained",
    "networks",
    "patch_discriminator",
    "shifted",
    "train",
    "warp",
]
