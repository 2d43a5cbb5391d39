"For every test: one torch thread, shapes in signatures enforced, real data by fixture."

import os
import signal
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "agg")

# A suite started in the background ignores ctrl-C, and so would the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

sys.path.insert(0, str(Path(__file__).parent))

import signatures  # noqa: E402

signatures.install()  # before the first import of the package

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent

STARTUP = f"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
__import__("signatures").install()
del sys
"""


@pytest.fixture(scope="session")
def root() -> Path:
    "The top of the repository."
    return ROOT


@pytest.fixture(scope="session")
def checked_kernels(tmp_path_factory):
    "Kernels of notebooks enforce the package's signatures: a file that they run first."
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
