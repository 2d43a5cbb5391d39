"""Milliseconds of one controlled frame on one thread: the mask, its motion, the next frame.

    python tests/benchmark_control.py [--repeat 50]

Printed beside it, from the same run: how many times as long as one frame of MoCoGAN's generator.
"""

import argparse
import time
from functools import partial

import torch

from vidcourse import layered, mocogan
from vidcourse.course import hardware


def milliseconds(call, repeat: int) -> float:
    "Median over `repeat` calls, after five that don't count."
    spent = []
    for _ in range(repeat + 5):
        began = time.perf_counter()
        call()
        spent.append(time.perf_counter() - began)
    return 1000 * sorted(spent[5:])[repeat // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=50)
    repeat = parser.parse_args().repeat
    torch.set_num_threads(1)
    print(hardware())
    clip = mocogan.load_pretrained("shapes")
    rng = torch.Generator()
    reference = milliseconds(lambda: clip.sample(1, 16, rng), repeat) / 16
    print(f"MoCoGAN, 32 px: {reference:.1f} ms a frame (of 16)")
    for name in ("shapes", "characters", "weizmann"):
        system = layered.load_pretrained(name)
        first, shift = system.sample(1, 1)[:, :, 0], torch.ones(1, 1, 2)
        taken = milliseconds(partial(system.rollout, first, shift), repeat)
        print(
            f"{name}, {system.config.size} px: {taken:.1f} ms a controlled frame, "
            f"{taken / reference:.1f} times the reference"
        )


if __name__ == "__main__":
    main()
