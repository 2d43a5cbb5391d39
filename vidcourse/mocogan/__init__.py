"MoCoGAN (Tulyakov et al. 2018), built in notebooks 10 to 13. This file only gathers names."

from vidcourse.mocogan.latents import Codes, MotionRNN, code_grid, draw_codes, with_motion
from vidcourse.mocogan.model import CONFIGS, SYSTEM, Config, MoCoGAN, load_pretrained, train
from vidcourse.mocogan.networks import (
    ImageDiscriminator,
    Sizes,
    VideoDiscriminator,
    VideoGenerator,
    networks,
)

__all__ = [
    "CONFIGS",
    "SYSTEM",
    "Codes",
    "Config",
    "ImageDiscriminator",
    "MoCoGAN",
    "MotionRNN",
    "Sizes",
    "VideoDiscriminator",
    "VideoGenerator",
    "code_grid",
    "draw_codes",
    "load_pretrained",
    "networks",
    "train",
    "with_motion",
]
