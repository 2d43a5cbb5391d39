"""V3GAN (Keshari, Gupta, Das 2021), built in notebooks 20 to 22.

This file only gathers names; the code is exported from the notebooks.
"""

from vidcourse.v3gan.masking import (
    Layers,
    MaskingLayer,
    composite,
    layer_scores,
    mask_prior,
    object_mask,
)
from vidcourse.v3gan.model import CONFIGS, SYSTEM, V3GAN, Config, load_pretrained, train
from vidcourse.v3gan.networks import (
    ImageDiscriminator,
    LayerCodes,
    LayeredGenerator,
    Sizes,
    VideoDiscriminator,
    code_grid,
    draw_codes,
    with_background,
    with_motion,
)
from vidcourse.v3gan.warping import WarpGenerator, networks

__all__ = [
    "CONFIGS",
    "SYSTEM",
    "Config",
    "ImageDiscriminator",
    "LayerCodes",
    "LayeredGenerator",
    "Layers",
    "MaskingLayer",
    "Sizes",
    "V3GAN",
    "VideoDiscriminator",
    "WarpGenerator",
    "code_grid",
    "composite",
    "draw_codes",
    "layer_scores",
    "load_pretrained",
    "mask_prior",
    "networks",
    "object_mask",
    "train",
    "with_background",
    "with_motion",
]
