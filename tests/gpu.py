"""All that waits for a GPU, in order of worth, in pieces that take less than ten minutes each.

    make gpu
    PYTHONPATH=. python3 tests/gpu.py --out DIR --budget 1500 --only time train:mocogan

The pieces, as `--only` names them (a beginning is enough):

    tests                      the tests that need CUDA
    time:SYSTEM:PROFILE        time and operations of an iteration, share of what the device can do
    train:SYSTEM:gpu           the training of the profile `gpu`, stopped and resumed in the middle
    showcase:SYSTEM:DATA       the weights that ship: profile `showcase`, over as many sittings as
                               it takes

Each runs in a process of its own, so that a failure doesn't end the rest; what takes longer leaves
a checkpoint and goes on in the next sitting, or when this is run again. DIR/results.json holds
what was measured, DIR/SYSTEM_DATA.safetensors the weights, DIR/runs (or `--runs`) the checkpoints.
A bare checkout is enough, nothing has to be installed. `--tiny --device cpu` tries it out.
"""

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent
SYSTEMS = ("mocogan", "v3gan", "navs", "layered", "digan")
# What the weights that ship are made from, by the names of benchmark_training.DATA
SHOWCASE = {
    "mocogan": ("black", "weizmann", "characters"),
    "v3gan": ("textured", "scenes", "weizmann"),
    "navs": ("textured", "characters", "weizmann"),
    "layered": ("textured", "scenes", "weizmann"),
    "digan": ("black", "scenes", "weizmann"),
}
LIMIT = 540  # seconds for a piece
LEAST = 45  # seconds under which none is begun
GRACE = 20  # seconds to save and end in, when the time is over


@dataclass(frozen=True)
class Piece:
    "One thing to do, as `kind:system:what`."

    kind: str
    system: str = ""
    what: str = ""  # a profile or a kind of data

    @property
    def name(self) -> str:
        return ":".join(filter(None, (self.kind, self.system, self.what)))


def pieces() -> list[Piece]:
    "Everything there is to do, the most useful first."
    found = [Piece("tests")]
    found += [Piece("time", s, p) for p in ("gpu", "showcase", "laptop") for s in SYSTEMS]
    found += [Piece("train", s, "gpu") for s in SYSTEMS]
    for rank in range(3):
        found += [Piece("showcase", s, SHOWCASE[s][rank]) for s in SYSTEMS]
    return found


# One piece, in its own process ----------------------------------------------------------------


def configuration(package, profile: str, tiny: bool):
    return package.CONFIGS["smoke" if tiny else profile]


def clips_for(system: str, data: str, config, tiny: bool):
    "The clips of a kind at the size of a configuration; FileNotFoundError without their file."
    from benchmark_training import clips_of

    many = 48 if tiny else 128 if system == "navs" else 2000
    return clips_of(data, config.size, config.length * config.frame_step, many)


def tests() -> dict:
    "The tests that need CUDA."
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cuda"]
    command += [
        "--continue-on-collection-errors",
        "tests/test_pretend.py",
        "tests/test_data.py",
    ]
    places = [str(TESTS.parent), os.environ.get("PYTHONPATH", "")]  # and what the caller brings
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}
    done = subprocess.run(
        command, cwd=TESTS.parent, env=environment, capture_output=True, text=True
    )
    return {
        "status": "failed" if done.returncode else "done",
        "output": done.stdout.splitlines()[-30:],
    }


class NotBegun(Exception):
    "Carries the trainer and the step function of a training out of `Trainer.fit`."


def prepared(package, clips, config, device):
    "The trainer and the step function with which a system would train."
    from unittest import mock

    from vidcourse.training import Trainer

    def fit(trainer, step, *args, **options):
        raise NotBegun(trainer, step)

    with mock.patch.object(Trainer, "fit", fit):
        try:
            package.train(clips, config, device=device, progress=False)
        except NotBegun as caught:
            return caught.args
    raise RuntimeError(f"{package.__name__}.train did not call Trainer.fit")


def operations(trainer, step, cycle: int) -> float:
    "Floating point operations of an iteration, mean over a cycle: R1 acts in one of several."
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        trainer.fit(step, trainer.step + cycle, progress=False)
    return counter.get_total_flops() / cycle


def wait(device) -> None:
    "Until a GPU has done all that it was given."
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(trainer, step, cycle: int, budget: float) -> float:
    "Seconds of an iteration, mean over whole cycles, after one that doesn't count."
    trainer.fit(step, trainer.step + cycle, progress=False)
    wait(trainer.device)
    began, first = time.perf_counter(), trainer.step
    while (spent := time.perf_counter() - began) < budget:
        trainer.fit(step, trainer.step + cycle, progress=False)
        wait(trainer.device)
    return spent / (trainer.step - first)


def ceiling(device, precision: str, budget: float = 2.0) -> float:
    "Floating point operations a second of a large matrix product in the precision."
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}[precision]
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, dtype=dtype, device=device) for _ in range(2))

    for _ in range(3):
        a @ b
    wait(device)
    began, products = time.perf_counter(), 0
    while time.perf_counter() - began < budget:
        for _ in range(5):
            a @ b
        wait(device)
        products += 5
    return 2 * n**3 * products / (time.perf_counter() - began)


def time_piece(piece: Piece, asked) -> dict:
    "Time and operations of an iteration."
    import torch

    from vidcourse.adversarial import LAZY_EVERY
    from vidcourse.course import choose_device

    device = choose_device(asked.device)
    package = importlib.import_module(f"vidcourse.{piece.system}")
    config = configuration(package, piece.what, asked.tiny)
    clips = clips_for(piece.system, "black", config, asked.tiny)
    trainer, step = prepared(package, clips, config, device)
    cycle = 2 if asked.tiny else LAZY_EVERY
    counted = operations(trainer, step, cycle)
    seconds = seconds_of(trainer, step, cycle, 1.0 if asked.tiny else 20.0)
    best = ceiling(device, trainer.precision)
    found = {
        "status": "done",
        "precision": trainer.precision,
        "batch": config.batch,
        "size": config.size,
        "milliseconds an iteration": 1000 * seconds,
        "TFLOP an iteration": counted / 1e12,
        "TFLOP/s": counted / seconds / 1e12,
        "TFLOP/s of a matrix product": best / 1e12,
        "share of the ceiling": counted / seconds / best,
        "steps": config.steps,
        "minutes for the whole training": seconds * config.steps / 60,
        "TFLOP for the whole training": counted * config.steps / 1e12,
    }
    if device.type == "cuda":
        found["GB of memory"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def train_piece(piece: Piece, asked) -> dict:
    "A sitting of a training: from the checkpoint where there is one, to half the steps at first."
    from vidcourse.checkpoints import Interrupted
    from vidcourse.course import choose_device

    began = time.monotonic()
    package = importlib.import_module(f"vidcourse.{piece.system}")
    profile, data = ("showcase", piece.what) if piece.kind == "showcase" else ("gpu", "black")
    config = configuration(package, profile, asked.tiny)
    steps = 12 if asked.tiny else config.steps
    run = asked.runs / piece.name.replace(":", "_")
    resume = (run / "state.json").is_file()

    def look(trainer):
        first_half_done = not resume and trainer.step >= steps / 2
        if first_half_done or time.monotonic() - began > asked.seconds:
            signal.raise_signal(signal.SIGTERM)  # as a cluster would: the loop saves and ends

    try:
        system = package.train(
            clips_for(piece.system, data, config, asked.tiny),
            config,
            out=run,
            steps=steps,
            resume=resume,
            device=choose_device(asked.device),
            on_log=look,
            log_every=2 if asked.tiny else 50,
        )
    except Interrupted as stop:
        return {"status": "stopped", "step": stop.step, "steps": steps}
    target = f"{piece.system}_{data}" + ("" if piece.kind == "showcase" else f"_{profile}")
    shutil.copy(run / "weights.safetensors", asked.out / f"{target}.safetensors")
    return {"status": "done", "step": steps, "steps": steps, "facts": system.facts}


def do(piece: Piece, asked) -> dict:
    "One sitting of a piece."
    if piece.kind == "tests":
        return tests()
    return (time_piece if piece.kind == "time" else train_piece)(piece, asked)


# All of them ----------------------------------------------------------------------------------


def sitting(piece: Piece, asked, seconds: float) -> dict:
    "A piece in a process of its own; what it found, or how it failed."
    with tempfile.TemporaryDirectory() as folder:
        found, log = Path(folder) / "found.json", Path(folder) / "log"
        command = [sys.executable, __file__, "--piece", piece.name, "--found", str(found)]
        command += ["--out", str(asked.out), "--runs", str(asked.runs)]
        command += ["--seconds", str(seconds)] + ["--tiny"] * asked.tiny
        command += ["--device", asked.device] if asked.device else []
        began = time.monotonic()
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            status = wait_for(process, seconds)
        if found.is_file():
            result = json.loads(found.read_text())
        else:
            with log.open(errors="replace") as file:
                last = [line.rstrip()[:300] for line in deque(file, 25)]
            result = {"status": "failed", "exit": status, "output": last}
    return result | {"wall seconds": round(time.monotonic() - began, 1)}


def wait_for(process: subprocess.Popen, seconds: float) -> int:
    "The exit status of a process that is asked to end after so long, and then made to."
    for ask, grace in ((process.terminate, seconds + GRACE), (process.kill, GRACE)):
        try:
            return process.wait(grace)
        except subprocess.TimeoutExpired:
            ask()
    return process.wait()


def short(result: dict) -> str:
    "A result in one line."
    shown = {
        name: f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in result.items()
        if name not in ("facts", "output", "sittings", "status")
    }
    return ", ".join(f"{name} {value}" for name, value in shown.items())


class Results:
    "What was found so far, in a file that is whole at any time."

    def __init__(self, path: Path):
        self.path = path
        self.pieces = json.loads(path.read_text())["pieces"] if path.is_file() else {}

    def status(self, piece: Piece) -> str:
        return self.pieces.get(piece.name, {}).get("status", "new")

    def add(self, piece: Piece, result: dict, hardware: str) -> None:
        sittings = self.pieces.get(piece.name, {}).get("sittings", 0) + 1
        self.pieces[piece.name] = result | {"sittings": sittings, "hardware": hardware}
        text = json.dumps({"pieces": self.pieces}, indent=1)
        new = self.path.with_suffix(".new")
        new.write_text(text + "\n")
        os.replace(new, self.path)


def all_of(chosen: list[Piece], asked) -> int:
    "Do what is not done yet, within the budget; the number of pieces that failed."
    from vidcourse.course import choose_device, hardware

    results = Results(asked.out / "results.json")
    where, failed = hardware(choose_device(asked.device)), 0
    end = time.monotonic() + asked.budget
    print(where)
    for piece in chosen:
        progress = None
        while results.status(piece) != "done":
            left = end - time.monotonic()
            if left < LEAST:
                print(f"the budget is spent before {piece.name}")
                return failed
            result = sitting(piece, asked, min(asked.limit, left - LEAST / 3))
            results.add(piece, result, where)
            print(f"{piece.name}: {result['status']}: {short(result)}", flush=True)
            stuck = result["status"] == "stopped" and result.get("step") == progress
            progress = result.get("step")
            if result["status"] == "failed" or stuck:
                failed += 1
                print("\n".join(f"    {line}" for line in result.get("output", [])))
                break
    return failed


def arguments() -> argparse.Namespace:
    "What was asked for on the command line."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("_gpu"), help="folder of the results")
    parser.add_argument(
        "--runs", type=Path, help="folder of the checkpoints; default: OUT/runs"
    )
    parser.add_argument("--only", nargs="+", default=[""], metavar="PIECE")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds for all")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for one sitting")
    parser.add_argument("--device", help="default: cuda where it is, else cpu")
    parser.add_argument("--tiny", action="store_true", help="smoke sizes, to try this out")
    parser.add_argument("--list", action="store_true", help="name the pieces, do nothing")
    # for the process of one piece
    parser.add_argument("--piece", help=argparse.SUPPRESS)
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=LIMIT, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.runs = asked.runs or asked.out / "runs"
    return asked


def main() -> int:
    "The command; returns the exit status."
    asked = arguments()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.piece:
        result = do(Piece(*asked.piece.split(":")), asked)
        asked.found.write_text(json.dumps(result))
        return 0
    chosen = [piece for piece in pieces() if piece.name.startswith(tuple(asked.only))]
    if asked.list or not chosen:
        print(*(piece.name for piece in chosen or pieces()), sep="\n")
        return 0 if chosen else 2
    return 1 if all_of(chosen, asked) else 0


if __name__ == "__main__":
    sys.exit(main())
