"A small GAN on 8 x 8 pictures for the tests of training; also run in processes of its own."

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import torch

# Kept as text, so that a child process can run it too.
TOY = """
import os, signal, sys, time
import torch
from torch import nn
from torch.nn.functional import softplus
from vidcourse.checkpoints import capture, named_tensors, optimiser_tensors, save_weights
from vidcourse.training import Trainer, decay

def toy(weights=0, norm=True, drop=0.1, fused=True, **options):
    "Every kind of state: moments, running statistics, spectral norm, dropout, channels last."
    torch.manual_seed(weights)
    G = nn.Sequential(
        nn.Linear(4, 16),
        nn.BatchNorm1d(16) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Linear(16, 64),
        nn.Unflatten(1, (1, 8, 8)),
    )
    conv = nn.Conv2d(1, 4, 3)
    D = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(conv) if norm else conv,
        nn.LeakyReLU(0.2),
        nn.Dropout(drop),
        nn.Flatten(),
        nn.Linear(144, 1),
    ).to(memory_format=torch.channels_last)
    groups = [
        {"params": list(D[0].parameters())},
        {"params": list(D[4].parameters()), "lr": 3e-3},
    ]
    optimisers = {
        "G": torch.optim.Adam(G.parameters(), 1e-2, (0.5, 0.9), fused=fused),
        "D": torch.optim.AdamW(groups, 1e-2, fused=fused),
    }
    standard = dict(ema={"G": 0.9}, schedule=decay, clip_grad=1.0, log_every=7, save_every=5)
    standard |= dict(device="cpu", precision="no")
    return Trainer({"G": G, "D": D}, optimisers, **{**standard, **options})

def step(t, poison=None):
    x = t.share(torch.rand(8, 1, 8, 8, generator=t.rng))
    z = t.share(torch.randn(8, 4, generator=t.rng))
    if poison is not None:
        x = x * poison
    with t.autocast():
        fake = t.networks["G"](z)
        d = softplus(-t.networks["D"](x)) + softplus(t.networks["D"](fake.detach()))
    d = d.float().mean()
    t.update(d, "D")
    with t.autocast():
        g = softplus(-t.networks["D"](fake))
    g = g.float().mean()
    t.update(g, "G")
    return {"d": d, "g": g}

def everything(t):
    return capture(t)[0]
"""
space: dict = {}
exec(TOY, space)
toy, step, everything = space["toy"], space["step"], space["everything"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}


def script(tmp_path, body, *arguments, env=None, **options):
    "Runs TOY and `body` in a process of its own."
    file = tmp_path / "script.py"
    file.write_text(TOY + textwrap.dedent(body))
    return subprocess.run(
        [sys.executable, str(file), *map(str, arguments)],
        env={**ENV, **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for k in a:
        assert a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]), k


def copied(t):
    "What a run holds now, kept aside."
    return {k: v.clone() for k, v in everything(t).items()}


def no_clock(history):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]
