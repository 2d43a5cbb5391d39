"MoCoGAN (Tulyakov et al. 2018), built in notebooks 10 to 13. This file only gathers names; the code is exported from the notebooks."
from vidcourse.mocogan.latents import Codes, MotionRNN, code_grid, draw_codes, with_motion
from vidcourse.mocogan.model import SYSTEM, MoCoGAN, load_pretrained, train
from vidcourse.mocogan.networks import CONFIGS, Config, ImageDiscriminator, VideoDiscriminator, VideoGenerator, networks

__all__ = ["CONFIGS", "SYSTEM", "Codes", "Config", "ImageDiscriminator", "MoCoGAN", "MotionRNN", "VideoDiscriminator", "VideoGenerator",
           "code_grid", "draw_codes", "load_pretrained", "networks", "train", "with_motion"]
