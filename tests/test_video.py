"""vidcourse.video: layouts, files there and back, and every kind of bad input."""

import errno
import os
import re
import subprocess
import sys
import textwrap
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from vidcourse import video
from vidcourse.sources import fit, read
from vidcourse.video import (
    apng,
    as_frames,
    atomic,
    film_strip,
    grid,
    show,
    strip,
    to_float,
    to_uint8,
    write,
)

try:
    from jaxtyping import (
        TypeCheckError as ShapeError,
    )  # raised earlier where the shape checks of jaxtyping are switched on
except ImportError:
    ShapeError = TypeError


@pytest.fixture
def clip():
    "A disc that moves over a ramp: uint8 (12, 32, 48, 3)."
    t, y, x = np.mgrid[:12, :32, :48]
    disc = np.hypot(y - 16, x - 8 - 2.5 * t) < 7
    return np.stack(
        [np.where(disc, 250, 20), np.where(disc, 120, 2 * y), 3 * x + t], -1
    ).astype(np.uint8)


class refuses:
    "ValueError whose text matches; or jaxtyping's own error where that came first."

    def __init__(self, pattern):
        self.pattern = pattern

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        assert kind is not None, f"not refused; expected an error like {self.pattern!r}"
        if issubclass(kind, ShapeError):
            return True
        return issubclass(kind, ValueError) and bool(re.search(self.pattern, str(error)))


# ---- the two layouts


def test_all_256_values_survive():
    values = np.arange(256, dtype=np.uint8).reshape(2, 8, 16, 1)
    for frames in (values, values[None], values.repeat(3, -1)):
        assert np.array_equal(to_uint8(to_float(frames)), frames)
    clips = to_float(values)
    assert clips.dtype == torch.float32 and clips.min() == -1 and clips.max() == 1
    assert torch.equal(to_float(torch.as_tensor(values)), clips)


def test_axes(clip):
    clips = to_float(np.stack([clip, clip[::-1]]))
    assert clips.shape == (2, 3, 12, 32, 48)
    assert clips[1, 2, 3, 4, 5] == clip[::-1][3, 4, 5, 2] / 127.5 - 1
    assert to_float(clip).shape == (3, 12, 32, 48)


def test_rounding_is_to_the_nearest():
    x = torch.full((1, 1, 1, 1), 100.4 / 127.5 - 1)
    assert to_uint8(x).item() == 100 and to_uint8(x + 0.2 / 127.5).item() == 101


@pytest.mark.parametrize(
    "bad, pattern",
    [
        (torch.zeros(3, 4, 8, 8, dtype=torch.uint8), "float tensor.*uint8"),
        (np.zeros((3, 4, 8, 8), np.float32), "float tensor.*ndarray"),
        (torch.zeros(4, 8, 8), r"\(4, 8, 8\)"),
        (torch.zeros(1, 1, 3, 4, 8, 8), "shape"),
        (torch.zeros(4, 3, 8, 8), "swapped"),
        ("clip.mp4", "got str"),
        (None, "NoneType"),
    ],
)
def test_to_uint8_refuses(bad, pattern):
    with refuses(pattern):
        to_uint8(bad)


def test_to_uint8_refuses_values_that_are_no_picture():
    clips = torch.zeros(3, 4, 8, 8)
    for value in (float("nan"), float("inf"), -float("inf")):
        clips[0, 1, 2, 3] = value
        with refuses("1 of 768 values are NaN or infinite"):
            to_uint8(clips)
        with refuses("NaN"):
            to_uint8(clips, clamp=True)
    clips[0, 1, 2, 3] = 1.01
    with refuses("clamp=True"):
        to_uint8(clips)
    assert to_uint8(clips, clamp=True).max() == 255
    clips[0, 1, 2, 3] = 1 + 5e-5  # what float arithmetic leaves over is no mistake
    assert to_uint8(clips)[1, 2, 3, 0] == 255


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 8, 8, 3)),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((4, 8, 8, 3), np.int64),
        torch.zeros(4, 8, 8, 3),
        [[1]],
    ],
)
def test_to_float_refuses(bad):
    with refuses("expected uint8 frames"):
        to_float(bad)


# ---- pages and strips


def test_as_frames(clip):
    assert as_frames(clip).shape == (1, 12, 32, 48, 3)
    assert np.array_equal(as_frames(to_float(clip))[0], clip) and np.array_equal(
        as_frames(torch.as_tensor(clip))[0], clip
    )
    assert np.array_equal(as_frames(clip[..., :1])[0], clip[..., :1].repeat(3, -1))
    for bad in (clip.astype(float), clip[..., :2], clip[0], to_float(clip).bool(), "x"):
        with refuses("expected"):
            as_frames(bad)
    with refuses("nothing in it"):
        as_frames(clip[:0])


def test_grid_and_film_strip(clip):
    clips = np.stack([clip, 255 - clip, clip[::-1]])
    page = grid(clips, columns=2)
    assert page.shape == (12, 66, 98, 3)
    assert (
        np.array_equal(page[:, :32, 50:], clips[1])
        and np.array_equal(page[:, 34:, :48], clips[2])
        and (page[:, 34:, 50:] == 255).all()
    )
    assert np.array_equal(grid(clip), clip)
    image = film_strip(clips, every=5)
    assert image.shape == (96, 3 * 48, 3) and np.array_equal(image[32:64, 96:], clips[1, 10])


def test_show_and_strip(clip, monkeypatch):
    shown = []
    monkeypatch.setattr(video, "display", shown.append)
    show(clip, caption="a disc")
    data, metadata = shown[0]._repr_mimebundle_()
    assert "image/png" in data and shown[1].data == "*a disc*"
    monkeypatch.setattr(video.plt, "show", lambda: shown.append(video.plt.gcf()))
    strip(clip, every=3, labels=["disc"])
    assert [tick.get_text() for tick in shown[-1].axes[0].get_xticklabels()] == [
        "0",
        "3",
        "6",
        "9",
    ]
    video.plt.close("all")


def test_apng_keeps_every_frame(tmp_path):
    still = np.full((6, 8, 8, 3), 7, np.uint8)  # some encoders merge equal frames
    path = tmp_path / "still.png"
    path.write_bytes(apng(still))
    assert path.read_bytes().startswith(b"\x89PNG") and np.array_equal(read(path), still)


# ---- files there and back


@pytest.mark.parametrize("suffix", [".npz", ".png", ".apng", ".PNG"])
def test_exact_round_trip(tmp_path, clip, suffix):
    assert np.array_equal(read(write(tmp_path / f"a{suffix}", clip)), clip)
    assert np.array_equal(read(write(tmp_path / f"b{suffix}", to_float(clip))), clip)


@pytest.mark.parametrize("suffix, error", [(".mp4", 12), (".gif", 12)])
def test_lossy_round_trip(tmp_path, clip, suffix, error):
    still = np.concatenate([clip, clip[-1:].repeat(4, 0)])  # equal frames at the end must stay
    back = read(write(tmp_path / f"a{suffix}", still))
    assert (
        back.shape == still.shape
        and np.sqrt(((back.astype(float) - still) ** 2).mean()) < error
    )


def test_gif_with_few_colours_is_exact(tmp_path, clip):
    few = clip // 128 * 128
    assert np.array_equal(read(write(tmp_path / "a.gif", few)), few)


def test_odd_sizes_and_one_frame(tmp_path, clip):
    assert read(write(tmp_path / "odd.mp4", clip[:, :31, :47])).shape == (12, 32, 48, 3)
    for suffix in (".mp4", ".gif", ".apng", ".npz"):
        assert read(write(tmp_path / f"one{suffix}", clip[:1])).shape == (1, 32, 48, 3)
    assert np.array_equal(read(write(tmp_path / "one.png", clip[:1])), clip[:1])


@pytest.mark.parametrize("fps", [8, 12.5, 30])
def test_frames_a_second(tmp_path, clip, fps):
    with av.open(str(write(tmp_path / "a.mp4", clip, fps=fps))) as file:
        assert abs(file.streams.video[0].average_rate - Fraction(fps)) < 1e-3


def test_several_clips(tmp_path, clip):
    clips = np.stack([clip, clip[::-1], 255 - clip])
    assert read(write(tmp_path / "a.apng", clips)).shape == (12, 66, 98, 3)
    for suffix in (".png", ".npz"):
        with pytest.raises(ValueError, match="holds 3 clips, and one is read here"):
            read(write(tmp_path / f"a{suffix}", clips))
    assert np.array_equal(np.load(tmp_path / "a.npz")["frames"], clips)
    np.savez(tmp_path / "b.npz", frames=clips[0], offsets=[0, 5, 12])
    with pytest.raises(ValueError, match="holds 2 clips, and one is read here"):
        read(tmp_path / "b.npz")


def test_size_and_max_frames(tmp_path, clip):
    path = write(tmp_path / "a.mp4", clip)
    assert read(path, size=16, max_frames=3).shape == (3, 16, 16, 3) and read(
        path, size=(10, 20)
    ).shape == (12, 10, 20, 3)
    assert np.array_equal(read(path, max_frames=3), read(path)[:3])
    marked = np.zeros((1, 32, 48, 3), np.uint8)
    marked[:, :, 8:40] = 255  # exactly the middle square
    assert (fit(marked, 16) == 255).all() and np.array_equal(fit(clip, None), clip)
    for size in (0, (-1, 4)):
        with pytest.raises(ValueError, match="positive number of pixels"):
            fit(clip, size)


# ---- files that are bad


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="lost.mp4 does not exist"):
        read(tmp_path / "lost.mp4")


def test_bad_archives(tmp_path):
    path = tmp_path / "a.npz"
    for content in (
        {"video": np.zeros(3)},
        {"frames": np.zeros((4, 8, 8, 3))},
        {"frames": np.zeros((8, 8), np.uint8)},
        {"frames": np.array([{}], object)},
    ):
        np.savez(path, **content)
        with pytest.raises(ValueError, match="a.npz"):
            read(path)


# ---- writing that fails


@pytest.mark.parametrize(
    "bad, pattern",
    [
        (torch.full((3, 4, 8, 8), float("nan")), "768 of 768 values are NaN"),
        (torch.full((3, 4, 8, 8), 2.0), r"to_uint8\(clips, clamp=True\)"),
        (np.zeros((4, 8, 8, 3)), "float64"),
        (np.zeros((8, 8, 3), np.uint8), r"\(8, 8, 3\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), "nothing in it"),
        (None, "NoneType"),
    ],
)
def test_write_refuses_bad_clips(tmp_path, bad, pattern):
    for suffix in (".mp4", ".npz"):
        with refuses(pattern):
            write(tmp_path / f"a{suffix}", bad)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.avi", "a", "a.jpg"])
def test_unknown_suffix(tmp_path, clip, name):
    with pytest.raises(ValueError, match=r"use one of \.mp4, \.gif"):
        write(tmp_path / name, clip)
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_written(tmp_path, clip):
    (tmp_path / "file").write_text("I am no folder")
    with pytest.raises(OSError, match=r"could not write .*file/a.mp4"):
        write(tmp_path / "file" / "a.mp4", clip)
    assert (tmp_path / "file").read_text() == "I am no folder"


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_read_only_folder(tmp_path, clip):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match="could not write"):
            write(tmp_path / "a.mp4", clip)
    finally:
        tmp_path.chmod(0o700)


def test_parents_are_made(tmp_path, clip):
    assert read(write(tmp_path / "new" / "folder" / "a.npz", clip)).shape == clip.shape


def test_full_disk(tmp_path, clip, monkeypatch):
    path = write(tmp_path / "a.npz", clip)
    before = path.read_bytes()

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", full)
    with pytest.raises(OSError, match="could not write .*a.npz.*No space left") as caught:
        write(path, 255 - clip)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file size")
def test_file_size_limit_in_a_real_process(tmp_path):
    code = f"""
        import resource, signal, numpy as np
        from vidcourse.video import write
        path = {str(tmp_path / "a.npz")!r}
        write(path, np.zeros((2, 8, 8, 3), np.uint8))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        noise = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
        try: write(path, noise)
        except OSError as error: print("refused:", error)
    """
    run = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert "refused:" in done.stdout and "could not write" in done.stdout, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    assert read(tmp_path / "a.npz").shape == (2, 8, 8, 3)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_writing_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic(path) as temporary:
        temporary.write_text("half")
        assert (
            temporary.parent == path.parent
            and temporary.suffix == ".txt"
            and path.read_text() == "old"
        )
        raise error
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_atomic_needs_a_file(tmp_path):
    with pytest.raises(OSError, match="could not write"), atomic(tmp_path / "a.txt"):
        pass
    assert not list(tmp_path.iterdir())


# ---- found by breaking the module on purpose


def test_the_new_file_is_the_temporary_one_renamed(tmp_path):
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        number = temporary.stat().st_ino
    assert (tmp_path / "a.txt").stat().st_ino == number


def test_fit_averages_and_keeps_the_middle(clip):
    fine = (
        (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[None, :, :, None].repeat(3, -1)
    )
    assert abs(fit(fine, 16)[0, 4:12, 4:12].astype(int) - 127).max() <= 8
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::4] = 255  # without averaging: all black or all white
    assert abs(fit(stripes, 16).mean() - 64) < 16
    tall = np.zeros((1, 48, 32, 3), np.uint8)
    tall[:, 8:40] = 255
    assert (fit(tall, 16) == 255).all()


def test_archives_never_run_code(tmp_path):
    class Canary:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    np.savez(tmp_path / "a.npz", frames=np.array([Canary()], object))
    with pytest.raises(ValueError, match="no archive of clips"):
        read(tmp_path / "a.npz")
    assert not (tmp_path / "ran").exists()


def test_damaged_archive(tmp_path, clip):
    whole = write(tmp_path / "a.npz", clip).read_bytes()
    for place in range(200, 2000, 150):
        data = bytearray(whole)
        data[place : place + 8] = bytes(255 - b for b in data[place : place + 8])
        (tmp_path / "a.npz").write_bytes(data)
        with pytest.raises(ValueError, match="no archive of clips"):
            read(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_text("<html>")
    with pytest.raises(ValueError, match="a web page saved under this name"):
        read(tmp_path / "a.npz")


def test_animated_png_repeats_for_ever(clip):
    data = apng(clip)
    start = data.index(b"acTL") + 4
    assert (
        int.from_bytes(data[start : start + 4], "big") == 12
        and int.from_bytes(data[start + 4 : start + 8], "big") == 0
    )
