"""The wheel: built, installed by itself into a fresh environment, and used there.

The fresh environment borrows the dependencies of this one through a .pth file, so that the test
takes seconds; VIDCOURSE_FULL_WHEEL=1 installs them too.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FULL = os.environ.get("VIDCOURSE_FULL_WHEEL") == "1"


def shell(*words, cwd, **env):
    done = subprocess.run(
        list(map(str, words)),
        cwd=cwd,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | env,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The wheel of a copy of the project (building leaves folders behind)."
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("nbs", "vidcourse"):
        shutil.copytree(
            ROOT / name,
            copy / name,
            ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"),
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shell(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        out,
        copy,
        cwd=out,
    )
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    "A fresh environment with the wheel: its folder of programs."
    home = tmp_path_factory.mktemp("fresh") / "env"
    shell(
        sys.executable,
        "-m",
        "venv",
        *([] if FULL else ["--without-pip"]),
        home,
        cwd=home.parent,
    )
    bin = home / ("Scripts" if os.name == "nt" else "bin")
    if FULL:
        shell(
            bin / "python",
            "-m",
            "pip",
            "install",
            "-q",
            "-c",
            ROOT / "constraints.txt",
            wheel,
            cwd=home,
        )
    else:
        site = Path(
            shell(
                bin / "python",
                "-c",
                "import sysconfig; print(sysconfig.get_path('purelib'))",
                cwd=home,
            ).strip()
        )
        (site / "dependencies.pth").write_text(
            "\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
        )
        shell(
            sys.executable,
            "-m",
            "pip",
            "--python",
            bin / "python",
            "install",
            "-q",
            "--no-deps",
            wheel,
            cwd=home,
        )
    return bin


def test_what_is_in_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()

    def has(end):
        return any(name.endswith(end) for name in names)

    assert (
        has("vidcourse/mocogan/model.py")
        and has("vidcourse/weights/mocogan_shapes_seed0.safetensors")
        and has("share/vidcourse/nbs/12_mocogan.ipynb")
        and has("LICENSE")
    )
    assert not [
        name for name in names if "test" in name.lower().split("/")[0] or "__pycache__" in name
    ]
    assert wheel.stat().st_size < 80 * 2**20


def test_import_and_sample(environment, tmp_path):
    code = (
        "import vidcourse\n"
        "from vidcourse.mocogan import CONFIGS, MoCoGAN, load_pretrained, networks\n"
        "print(vidcourse.__file__)\n"
        "assert networks(CONFIGS['smoke'])\n"
        "print(tuple(load_pretrained('shapes').sample(2, 5).shape))"
    )
    said = shell(environment / "python", "-c", code, cwd=tmp_path).split("\n")
    assert str(environment.parent) in said[0], "another vidcourse was imported"
    assert said[1] == "(2, 3, 5, 32, 32)"


def test_every_system_samples(environment, tmp_path):
    code = (
        "from vidcourse.cli import find_system, systems\n"
        "for name in systems():\n"
        "    module = find_system(name)\n"
        "    clips = module.SYSTEM(module.CONFIGS['smoke']).sample(2)\n"
        "    print(name, tuple(clips.shape))"
    )
    assert shell(environment / "python", "-c", code, cwd=tmp_path).split("\n")[:-1] == [
        "digan (2, 3, 8, 16, 16)",
        "layered (2, 3, 4, 16, 16)",
        "mocogan (2, 3, 16, 16, 16)",
        "navs (2, 3, 8, 16, 16)",
        "v3gan (2, 3, 8, 16, 16)",
    ]


def test_command(environment, tmp_path):
    assert "Usage: vidcourse" in shell(environment / "vidcourse", "--help", cwd=tmp_path)
    shell(
        environment / "vidcourse",
        "sample",
        "mocogan_shapes_seed0",
        "--out",
        "clips.gif",
        "--n",
        "2",
        cwd=tmp_path,
    )
    assert (tmp_path / "clips.gif").stat().st_size > 1000


def test_the_course_runs_from_the_wheel(environment, tmp_path):
    shell(
        environment / "vidcourse",
        "run",
        "00_start",
        "--profile",
        "smoke",
        "--out",
        "out",
        cwd=tmp_path,
    )
    assert (tmp_path / "out" / "00_start_here.html").is_file() and '"ok"' in (
        tmp_path / "out" / "results.json"
    ).read_text()
