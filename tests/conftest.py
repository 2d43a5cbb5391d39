"For every test: one torch thread, shapes in signatures enforced, real data by fixture."

import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "agg")

# A suite started in the background ignores ctrl-C, and so would the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

sys.path.insert(0, str(Path(__file__).parent))

import signatures  # noqa: E402

signatures.install()  # before the first import of the package

import pretend  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# The first backward of a process counts the devices: one that comes later has no queue, and which
# test runs first is up to the workers.
if pretend.available():
    pretend.install()

torch.set_num_threads(1)
# On every processor float32 is what suits it, so that a test sees the same numbers everywhere.
torch.cpu._is_avx512_bf16_supported = torch.cpu._is_amx_tile_supported = lambda: False
ROOT = Path(__file__).resolve().parent.parent

STARTUP = f"""
import os, sys, torch
sys.path.append({str(Path(__file__).parent)!r})
torch.cpu._is_avx512_bf16_supported = torch.cpu._is_amx_tile_supported = lambda: False
if os.environ.get("VIDCOURSE_DEVICE") == "pretend":
    __import__("pretend").install()
__import__("signatures").install()
del os, sys, torch
"""


@pytest.fixture(scope="session")
def root() -> Path:
    "The top of the repository."
    return ROOT


@pytest.fixture(scope="session")
def checked_kernels(tmp_path_factory):
    """A file that kernels of notebooks run first.

    They enforce the package's signatures, compute in float32, and have the device "pretend" when
    VIDCOURSE_DEVICE asks for it.
    """
    first = tmp_path_factory.mktemp("startup") / "signatures.py"
    first.write_text(STARTUP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDCOURSE_STARTUP", str(first))
        yield first


@pytest.fixture
def real_data():
    "A function from a file's name to its path in VIDCOURSE_DATA; skips where it isn't there."

    def find(name: str) -> Path:
        folder = os.environ.get("VIDCOURSE_DATA")
        if not folder:
            pytest.skip("VIDCOURSE_DATA is not set: no real clips")
        path = Path(folder) / name
        if not path.is_file():
            pytest.skip(f"VIDCOURSE_DATA holds no {name}")
        return path

    return find


def pytest_terminal_summary(terminalreporter) -> None:
    "After the tests of the house: its longest modules and cells. Is one of them two ideas?"
    passed = terminalreporter.stats.get("passed", [])
    if not any("test_house" in report.nodeid for report in passed):
        return
    modules, cells = Counter(), Counter()
    for path in (ROOT / "vidcourse").rglob("[a-z]*.py"):
        modules[path.relative_to(ROOT / "vidcourse").as_posix()] = len(
            path.read_text(encoding="utf-8").splitlines()
        )
    for path in (ROOT / "nbs").glob("[0-9]*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            cells[path.stem] += cell["cell_type"] == "code" and len(cell["source"]) > 35
    for title, counts in (("longest modules", modules), ("cells over 35 lines", cells)):
        told = ", ".join(f"{name} {n}" for name, n in counts.most_common(8) if n)
        terminalreporter.write_line(f"{title}: {told}")
