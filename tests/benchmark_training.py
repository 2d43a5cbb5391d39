"""Does every system learn on every kind of data that the course names? About a minute for each.

    make bench
    python tests/benchmark_training.py --minutes 3 --systems navs --data black scenes --seeds 0 1 2

A row is one training by the recipe of a profile (default: laptop; on a CPU at 16 pixels), with as
many steps as fit into the minutes. It has to come nearer to the real clips than the mean clip is,
the baseline, by the distance that `vidcourse train` prints at its end; a system that learns clips
by heart has to be nearer to them than their mean frames are. Exit status 1 when one isn't.

On a GPU machine a bare checkout is enough: PYTHONPATH=. python3 tests/benchmark_training.py
"""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch

from vidcourse.course import choose_device, hardware
from vidcourse.data import Clips, load

SYSTEMS = ("mocogan", "v3gan", "navs", "layered", "digan")
# By their names on the command line: the course's name and its options
DATA = {
    "black": ("shapes", {"backdrop": "black"}),
    "plain": ("shapes", {"backdrop": "plain"}),
    "textured": ("shapes", {"backdrop": "textured"}),
    "weizmann": ("weizmann", {}),
    "characters": ("sprites", {"background": "black"}),
    "scenes": ("sprites", {"background": "scene"}),
}
CLIPS = {"navs": 64}  # of drawn ones; NAVS learns a code for each, and a minute is short
MANY = 512


@dataclass
class Row:
    "What became of one training."

    system: str
    data: str
    seed: int
    size: int = 0
    steps: int = 0
    seconds: float = 0.0
    distance: float = float("nan")  # to the real clips; see vidcourse.systems.energy_distance
    baseline: float = float("nan")  # of the mean clip to the real clips
    floor: float = float("nan")  # of other real clips
    spread: float = float("nan")  # over clips; 1: as the real ones
    saturated: float = float("nan")  # share of pixels at -1 or 1
    psnr: float = float("nan")  # of the clips that were learned; for systems that learn clips
    mean_frame_psnr: float = float("nan")  # of their mean frames
    verdict: str = ""

    @property
    def good(self) -> bool:
        return self.distance < self.baseline and not self.psnr <= self.mean_frame_psnr


COLUMNS = {
    "system": "8",
    "data": "11",
    "seed": "4",
    "steps": "6",
    "seconds": "8.0f",
    "distance": "9.3f",
    "baseline": "9.3f",
    "floor": "7.3f",
    "spread": "7.2f",
    "saturated": "10.2f",
    "verdict": "",
}


def header() -> str:
    "The line above the table."
    # text to the left, numbers to the right, as their values stand
    align = {"system": "<", "data": "<", "verdict": "<"}
    cells = []
    for name, form in COLUMNS.items():
        cells.append(f"{name:{align.get(name, '>')}{form.split('.')[0]}}")
    return " ".join(cells)


def line(row: Row) -> str:
    "One line of the table."
    return " ".join(f"{getattr(row, name):{form}}" for name, form in COLUMNS.items())


@cache
def clips_of(data: str, size: int, length: int, n: int) -> Clips:
    "Clips of one of the kinds; FileNotFoundError when their file isn't there."
    name, options = DATA[data]
    if name in ("shapes", "sprites"):
        options = {**options, "n": n, "length": length}
    return load(name, size=size, **options)


def clock(device: torch.device) -> float:
    "Seconds that a GPU's owner waits; on a CPU those that were computed, however busy it is."
    if device.type == "cpu":
        return time.process_time() / torch.get_num_threads()
    return time.perf_counter()


def steps_in(train: Callable, seconds: float) -> int:
    "How many steps of a training fit into the seconds, by a few steps that are timed."
    marks = []

    def mark(trainer):  # the loop has just waited for the device
        marks.append((trainer.step, clock(trainer.device)))

    train(steps=12, log_every=6, on_log=mark)  # too few looks to be called dead
    (before, began), (after, ended) = marks
    return max(10, int(seconds * (after - before) / max(1e-6, ended - began)))


def bench(system: str, data: str, seed: int, asked: argparse.Namespace) -> Row:
    "One training, and what it reached."
    package = importlib.import_module(f"vidcourse.{system}")
    config = package.CONFIGS[asked.profile]
    if asked.size:
        config = replace(config, size=asked.size)
    row = Row(system, data, seed, config.size)
    length = config.length * config.frame_step
    clips = clips_of(data, config.size, length, CLIPS.get(system, MANY))

    def train(**options):
        return package.train(
            clips, config, seed=seed, device=asked.device, progress=False, **options
        )

    row.steps = steps_in(train, 60 * asked.minutes)
    began = clock(asked.device)
    trained = train(steps=row.steps, log_every=max(1, row.steps // 4))
    row.seconds = clock(asked.device) - began
    for name, value in trained.facts["reached"].items():
        if hasattr(row, name):
            setattr(row, name, value)
    row.verdict = "ok" if row.good else "NO BETTER THAN ITS BASELINE"
    if row.psnr == row.psnr:
        row.verdict += f", {row.psnr:.1f} dB (mean frame {row.mean_frame_psnr:.1f} dB)"
    return row


def as_json(rows: list[Row], where: str) -> str:
    "The rows for a file; what was not measured is null."
    plain = [
        {name: None if value != value else value for name, value in asdict(row).items()}
        for row in rows
    ]
    return json.dumps({"hardware": where, "rows": plain}, indent=1) + "\n"


def main() -> int:
    "The command; returns the exit status."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="for each training")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--data", nargs="+", choices=DATA, default=tuple(DATA))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--profile", default="laptop", help="whose sizes and rates")
    parser.add_argument(
        "--size", type=int, help="pixels; default: 16 on a CPU, else the profile's"
    )
    parser.add_argument("--device", help="default: cuda where it is, else cpu")
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    asked = parser.parse_args()
    asked.device = choose_device(asked.device)
    if asked.size is None and asked.device.type == "cpu":
        asked.size = 16
    rows, absent, where = [], set(), hardware(asked.device)
    print(f"{where}; profile {asked.profile}, {asked.minutes:g} min a training")
    print(header(), flush=True)
    for seed in asked.seeds:
        for data in asked.data:
            for system in asked.systems:
                try:
                    row = bench(system, data, seed, asked)
                except FileNotFoundError as error:
                    absent.add(f"left out: {data}: {error}")
                    continue
                except KeyboardInterrupt:
                    print(f"stopped in {system} on {data}")
                    return 130
                except Exception as error:  # one failure doesn't end the rest
                    reason = str(error).split("\n")[0]
                    row = Row(system, data, seed, verdict=f"{type(error).__name__}: {reason}")
                rows.append(row)
                print(line(row), flush=True)
                if asked.out:
                    asked.out.write_text(as_json(rows, where))
    print(*sorted(absent), sep="\n")
    bad = [row for row in rows if not row.good]
    print(f"{len(rows) - len(bad)} of {len(rows)} trainings beat their baseline")
    return 1 if bad or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
