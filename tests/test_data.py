"Clips from every source, and bad input of every source; real clips with VIDCOURSE_DATA."

import os
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from vidcourse.data import (
    FILES,
    Clips,
    check_frames,
    check_offsets,
    held_out,
    load,
    mirrored,
)
from vidcourse.sources import map_member, open_npz, scan
from vidcourse.video import write

try:
    from jaxtyping import (
        TypeCheckError as ShapeError,
    )  # comes first where the shape checks of jaxtyping are switched on
except ImportError:
    ShapeError = ValueError


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


LENGTHS = (5, 9, 3, 20)


@pytest.fixture
def frames():
    return [noise(t, 12, 12, 3, seed=t) for t in LENGTHS]


@pytest.fixture
def clips(frames):
    return Clips.from_list(
        frames,
        [0, 0, 0, 1],
        ("bend", "jack"),
        {"person": np.array([4, 5, 6, 6]), "person_names": np.array(["a", "b"])},
    )


def save_frames(folder, clip, name="{}.png"):
    folder.mkdir(parents=True)
    for i, frame in enumerate(clip):
        Image.fromarray(frame).save(folder / name.format(i))


# --- the class ---


def test_clips_keeps_what_it_was_given(clips, frames):
    assert (
        len(clips) == 4 and clips.size == (12, 12) and clips.lengths.tolist() == list(LENGTHS)
    )
    assert all((clips.clip(i) == frames[i]).all() for i in range(4))
    assert clips.offsets.tolist() == [0, 5, 14, 17, 37]
    assert "4 of 3 to 20 frames" in repr(clips) and "bend" in repr(clips)


def test_windows_lie_inside_one_clip_and_reach_both_ends(clips):
    which, rows = clips.windows(600, 4, generator(), step=2)
    first, last = clips.starts[which], clips.starts[which] + clips.lengths[which] - 1
    assert (rows[:, 0].numpy() >= first).all() and (rows[:, -1].numpy() <= last).all()
    assert (np.diff(rows.numpy(), axis=1) == 2).all() and set(which.tolist()) == {1, 3}
    for i in (1, 3):
        starts = np.bincount(
            (rows[:, 0].numpy() - first)[which == i], minlength=clips.lengths[i] - 6
        )
        assert len(starts) == clips.lengths[i] - 6 and starts.min() > 0.5 * starts.mean(), (
            "some window of a clip is never, or seldom, drawn"
        )


def test_batch_is_the_frames_in_minus_one_to_one(clips):
    which, rows = clips.windows(3, 5, generator(7))
    x, labels = clips.batch(3, 5, generator(7), return_labels=True)
    expected = (
        torch.from_numpy(clips.frames[rows.numpy()]).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    )
    assert torch.allclose(x, expected, atol=1e-6) and x.dtype == torch.float32
    assert labels.tolist() == clips.labels[which.numpy()].tolist()


def test_same_generator_same_batch_from_memory_file_and_selection(clips, tmp_path):
    mapped = Clips.from_npz(clips.save(tmp_path / "c.npz"), mmap=True)
    assert isinstance(mapped.frames, np.memmap) and "in a file" in repr(mapped)
    a, b, c = (
        source.batch(8, 3, generator(3), balanced=True)
        for source in (clips, mapped, clips.select(slice(None)))
    )
    assert torch.equal(a, b) and torch.equal(a, c)
    assert not torch.equal(a, clips.batch(8, 3, generator(4), balanced=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batch_on_cuda_equals_cpu(clips):
    there = clips.to("cuda").batch(8, 3, generator(3))
    assert there.is_cuda and torch.equal(there.cpu(), clips.batch(8, 3, generator(3)))


def test_plain_sampling_is_even_over_clips_and_balanced_over_labels(clips):
    plain = np.bincount(clips.windows(4000, 3, generator())[0], minlength=4) / 4000
    even = (
        np.bincount(clips.windows(4000, 3, generator(), balanced=True)[0], minlength=4) / 4000
    )
    np.testing.assert_allclose(plain, [0.25] * 4, atol=0.03)
    np.testing.assert_allclose(even, [1 / 6, 1 / 6, 1 / 6, 1 / 2], atol=0.03)


def test_clips_shorter_than_asked(clips):
    assert set(clips.windows(100, 10, generator())[0].tolist()) == {3}
    with pytest.raises(
        ValueError,
        match="clips of 21 frames are needed, and the longest has 20; use longer clips",
    ):
        clips.batch(2, 21, generator())
    with pytest.raises(ValueError, match="clips of 21 frames"):
        clips.batch(2, 11, generator(), step=2)


@pytest.mark.parametrize("n, length, step", [(0, 3, 1), (2, 0, 1), (2, 3, 0), (2, 3, -1)])
def test_senseless_batches(clips, n, length, step):
    with pytest.raises(ValueError, match="at least 1"):
        clips.batch(n, length, generator(), step)


def test_labels_asked_for_where_there_are_none(frames):
    bare = Clips.from_list(frames)
    with pytest.raises(ValueError, match="no labels"):
        bare.batch(2, 3, generator(), return_labels=True)
    with pytest.raises(ValueError, match="needs labels"):
        bare.batch(2, 3, generator(), balanced=True)


def test_select_shares_frames_and_carries_everything(clips):
    some = clips.select([3, 0])
    assert (
        some.frames is clips.frames
        and some.labels.tolist() == [1, 0]
        and some.extra["person"].tolist() == [6, 4]
    )
    assert (
        some.extra["person_names"].tolist() == ["a", "b"]
        and (some.clip(1) == clips.clip(0)).all()
    )
    with pytest.raises(ValueError, match="starts and lengths"):
        _ = some.offsets
    with pytest.raises(ValueError, match="nothing selected"):
        clips.select([])
    assert len(clips.select(clips.labels == 0)) == 3


def test_selection_saves_only_itself(clips, tmp_path):
    back = Clips.from_npz(clips.select([3, 0]).save(tmp_path / "s.npz"))
    assert (
        back.lengths.tolist() == [20, 5]
        and len(back.frames) == 25
        and back.label_names == ("bend", "jack")
    )
    assert (back.clip(0) == clips.clip(3)).all() and back.extra["person"].tolist() == [6, 4]


def test_failed_save_leaves_the_old_file(clips, tmp_path, monkeypatch):
    path = clips.save(tmp_path / "c.npz")
    before = path.read_bytes()

    def full(path, **arrays):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        clips.save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["c.npz"]


def test_usable_are_the_clips_that_are_drawn(clips):
    for length, step in ((3, 1), (4, 2), (5, 4), (20, 1), (21, 1)):
        usable = clips.usable(length, step)
        assert usable.tolist() == [i for i, t in enumerate(LENGTHS) if t > (length - 1) * step]
        if len(usable):
            drawn = clips.windows(200, length, generator(), step)[0]
            assert set(drawn.tolist()) == set(usable.tolist())


def test_resize(clips):
    small = clips.resize(6)
    assert (
        small.size == (6, 6)
        and small.lengths.tolist() == list(LENGTHS)
        and small.extra["person"].tolist() == [4, 5, 6, 6]
    )
    assert abs(small.frames.mean() - clips.frames.mean()) < 2


def test_mirrored(clips):
    both = mirrored(clips)
    assert (
        both.lengths.tolist() == [*LENGTHS, *LENGTHS]
        and both.labels.tolist() == [0, 0, 0, 1] * 2
    )
    assert both.extra["person"].tolist() == [4, 5, 6, 6] * 2 and both.extra[
        "person_names"
    ].tolist() == ["a", "b"]
    assert (both.clip(5)[:, :, 0] == clips.clip(1)[:, :, -1]).all() and (
        both.clip(1) == clips.clip(1)
    ).all()


def test_held_out(clips):
    rest, out = held_out(clips, person=[6])
    assert out.lengths.tolist() == [3, 20] and len(rest) == 2
    for fields in (dict(person=6, label="bend"), dict(label="bend", person=6)):
        rest, out = held_out(clips, **fields)
        assert out.lengths.tolist() == [3] and len(rest) == 3
    with pytest.raises(ValueError, match="label, person"):
        held_out(clips, colour=1)
    with pytest.raises(ValueError, match="0 of 4"):
        held_out(clips, person=9)


# --- wrong arrays ---


@pytest.mark.parametrize(
    "bad, word",
    [
        (np.zeros((4, 8, 8, 3)), "to_uint8"),
        (np.full((4, 8, 8, 3), np.nan, np.float32), "NaN"),
        (np.zeros((4, 8, 8, 3), np.int64), "int64"),
        (np.zeros((4, 3, 8, 8), np.uint8), "1 or 3 channels"),
        (np.zeros((0, 8, 8, 3), np.uint8), "at least one frame"),
        (np.zeros((4, 8, 8), np.uint8), "frame h w c"),
        ([[1, 2]], "list"),
        (torch.zeros(4, 8, 8, 3, dtype=torch.uint8), "Tensor"),
    ],
)
def test_wrong_frames(bad, word):
    with pytest.raises(ValueError, match=word):
        check_frames(bad)
    with pytest.raises((ValueError, ShapeError)):
        Clips(bad, [0, 4])
    with pytest.raises((ValueError, ShapeError)):
        Clips.from_list([bad])


@pytest.mark.parametrize(
    "offsets",
    [
        [0, 3],
        [1, 4],
        [0, 2, 2, 4],
        [0, 3, 2, 4],
        [0.0, 4.0],
        [4],
        [[0, 4]],
        np.array([0, 5, 4], np.uint32),
    ],
)
def test_wrong_offsets(offsets):
    with pytest.raises(ValueError, match="offsets must rise"):
        check_offsets(offsets, 4)
    with pytest.raises((ValueError, ShapeError)):
        Clips(noise(4, 8, 8, 3), offsets)


@pytest.mark.parametrize(
    "labels, names",
    [([0], ()), ([0, -1], ()), ([0, 2], ("a", "b")), ([0.5, 1], ()), ([[0, 1]], ())],
)
def test_wrong_labels(labels, names):
    with pytest.raises(ValueError, match="label"):
        Clips.from_array(noise(2, 3, 8, 8, 3), labels, names)


def test_labels_that_would_make_a_hundred_million_names(tmp_path):
    frames = noise(3, 4, 8, 8, 3)
    for largest in (10**8, 2**62):
        with pytest.raises(
            ValueError, match=f"labels go up to {largest} for 3 clips; number them"
        ):
            Clips.from_array(frames, [0, 1, largest])
        np.savez(tmp_path / "a.npz", video=frames, labels=[0, 1, largest])
        with pytest.raises(ValueError, match="a.npz: labels go up to"):
            load(tmp_path / "a.npz")
    assert len(Clips.from_array(frames, [0, 1, 399]).label_names) == 400
    with pytest.raises(ValueError, match=r"label 7 has no name; the names are a, b"):
        Clips.from_array(frames, [0, 1, 7], ["a", "b"])


def test_wrong_extra_and_lists():
    with pytest.raises(ValueError, match="extra 'person' has 3 rows"):
        Clips.from_array(noise(2, 3, 8, 8, 3), extra={"person": np.arange(3)})
    with pytest.raises(ValueError, match="clip 1 has frames"):
        Clips.from_list([noise(2, 8, 8, 3), noise(2, 8, 9, 3)])
    with pytest.raises(ValueError, match="no clips"):
        Clips.from_list([])
    with pytest.raises((ValueError, ShapeError), match="n t h w c"):
        Clips.from_array(noise(2, 8, 8, 3))


# --- archives ---


def test_npz_with_video(tmp_path):
    np.savez_compressed(
        tmp_path / "v.npz",
        video=noise(3, 4, 8, 8, 3),
        action=np.array([1, 0, 1]),
        action_names=np.array(["x", "y"]),
    )
    clips = load(tmp_path / "v.npz")
    assert (
        len(clips) == 3
        and clips.label_names == ("x", "y")
        and clips.labels.tolist() == [1, 0, 1]
    )
    assert load(tmp_path / "v.npz", size=4).size == (4, 4)


def test_npz_of_write_and_of_the_weizmann_kind(tmp_path, clips):
    write(tmp_path / "w.npz", noise(2, 5, 8, 8, 3))
    assert load(tmp_path / "w.npz").lengths.tolist() == [5, 5]
    np.savez(
        tmp_path / "z.npz",
        frames=clips.frames,
        offsets=clips.offsets,
        action=clips.labels,
        action_names=np.array(["p", "q"]),
        person=np.arange(4),
        source_id=np.arange(4),
    )
    back = load(tmp_path / "z.npz")
    assert back.label_names == ("p", "q") and sorted(back.extra) == ["person", "source_id"]


def test_missing_file_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDCOURSE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="vidcourse data weizmann"):
        load("weizmann")
    for name in ("sky", "coil"):  # no command fetches these, and none is suggested
        with pytest.raises(FileNotFoundError, match=FILES[name]) as caught:
            load(name)
        assert "vidcourse data" not in str(caught.value) and "VIDCOURSE_DATA" in str(
            caught.value
        )
    with pytest.raises(FileNotFoundError, match="neither a path nor a name"):
        load("wiezmann")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Clips.from_npz(tmp_path / "no.npz")


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "npy"])
def test_broken_archives(tmp_path, clips, damage):
    path = clips.save(tmp_path / "c.npz")
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 255
    if damage == "npy":
        np.save(tmp_path / "c.npy", clips.frames)
        data = (tmp_path / "c.npy").read_bytes()
    path.write_bytes(
        {"empty": b"", "text": b"hello", "cut": data[: len(data) // 2]}.get(damage, data)
    )
    with pytest.raises(ValueError, match="c.npz"):
        Clips.from_npz(path)


@pytest.mark.parametrize(
    "arrays, word",
    [
        (dict(pictures=noise(2, 3, 8, 8, 3)), "neither `frames` nor `video`"),
        (dict(frames=noise(4, 8, 8, 3)), "no `offsets`"),
        (dict(frames=noise(4, 8, 8, 3), offsets=[0, 9]), "offsets must rise"),
        (dict(video=np.full((2, 3, 8, 8, 3), np.nan)), "NaN"),
        (dict(video=noise(2, 3, 8, 8, 3), labels=[0, 1, 2]), "labels"),
    ],
)
@pytest.mark.parametrize("mmap", [False, True])
def test_archives_of_the_wrong_content(tmp_path, arrays, word, mmap):
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(ValueError, match=word) as caught:
        Clips.from_npz(tmp_path / "w.npz", mmap=mmap)
    assert "w.npz" in str(caught.value)


def test_mapping(tmp_path):
    video = noise(3, 4, 8, 8, 3)
    np.savez(tmp_path / "a.npz", other=np.arange(5), video=video)
    mapped = map_member(tmp_path / "a.npz", "video")
    assert (
        isinstance(mapped, np.memmap) and (mapped == video).all() and not mapped.flags.writeable
    )
    np.savez_compressed(tmp_path / "b.npz", video=video)
    with pytest.raises(ValueError, match="compressed"):
        open_npz(tmp_path / "b.npz", mmap=True)


# --- folders ---


def test_folder_of_videos_with_labels(tmp_path):
    smooth = np.linspace(0, 200, 6).astype(np.uint8)[:, None, None, None] + np.zeros(
        (6, 16, 16, 3), np.uint8
    )
    for label, name in (("jack", "a.mp4"), ("bend", "b.gif"), ("bend", "c.mp4")):
        write(tmp_path / label / name, smooth)
    clips = load(tmp_path)
    assert (
        clips.label_names == ("bend", "jack")
        and clips.labels.tolist() == [0, 0, 1]
        and clips.extra["name"].tolist() == ["b", "c", "a"]
    )
    assert np.abs(clips.clip(0).astype(int) - smooth).max() < 12
    assert load(tmp_path, size=8).size == (8, 8)


@pytest.mark.parametrize("labelled", [False, True])
def test_folder_of_frame_folders(tmp_path, frames, labelled):
    for i, clip in enumerate(frames):
        save_frames(
            tmp_path / (f"label{i % 2}" if labelled else "") / f"clip{i}", clip, "frame{}.png"
        )
    clips = load(tmp_path)
    assert (
        sorted(clips.lengths.tolist()) == sorted(LENGTHS)
        and (clips.labels is not None) == labelled
    )
    for i, name in enumerate(clips.extra["name"]):
        assert (clips.clip(i) == frames[int(name[-1])]).all(), (
            "frames out of order (frame10 before frame2?)"
        )


def test_one_folder_of_frames_is_one_clip(tmp_path, frames):
    save_frames(tmp_path / "only", frames[3])
    clips = load(tmp_path / "only")
    assert len(clips) == 1 and (clips.clip(0) == frames[3]).all() and clips.labels is None


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_folder_of_strips(tmp_path, frames, labelled, upright):
    for i, clip in enumerate(frames):
        folder = tmp_path / (f"label{i % 2}" if labelled else "")
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.concatenate(list(clip), 0 if upright else 1)).save(
            folder / f"s{i}.png"
        )
    assert {item.kind for item in scan(tmp_path).items} == {"film strip"}
    clips = load(tmp_path)
    assert (clips.labels is not None) == labelled
    for i, name in enumerate(clips.extra["name"]):
        assert (clips.clip(i) == frames[int(name[-1])]).all()


def test_strips_with_a_note_about_frames(tmp_path):
    clip = noise(4, 8, 12, 3)
    write(tmp_path / "s.png", clip)
    assert (load(tmp_path).clip(0) == clip).all()


def test_kind_overrules(tmp_path):
    save_frames(tmp_path / "wide", noise(4, 8, 24, 3))
    assert load(tmp_path / "wide").lengths.tolist() == [3] * 4
    assert load(tmp_path / "wide", kind="frames").lengths.tolist() == [4]
    with pytest.raises(ValueError, match="kind 'films' is unknown"):
        Clips.from_folder(tmp_path, kind="films")


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(ValueError, match="holds no clips"):
        load(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="holds no clips"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Clips.from_folder(tmp_path / "nowhere")


def test_truncated_video_and_image(tmp_path):
    write(tmp_path / "v" / "a.mp4", noise(20, 32, 32, 3))
    data = (tmp_path / "v" / "a.mp4").read_bytes()
    (tmp_path / "v" / "a.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="a.mp4"):
        load(tmp_path / "v")
    save_frames(tmp_path / "f", noise(3, 32, 32, 3))
    data = (tmp_path / "f" / "1.png").read_bytes()
    (tmp_path / "f" / "1.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="1.png"):
        load(tmp_path / "f")


def test_different_sizes_need_a_size(tmp_path):
    write(tmp_path / "a.mp4", noise(3, 16, 16, 3))
    write(tmp_path / "b.mp4", noise(3, 24, 16, 3))
    with pytest.raises(ValueError, match="24 x 16 .b.mp4.; give size="):
        load(tmp_path)
    assert load(tmp_path, size=12).size == (12, 12)


def test_one_file_is_a_set_of_one_clip(tmp_path):
    clip = noise(6, 16, 16, 3)
    assert (load(write(tmp_path / "a.apng", clip)).clip(0) == clip).all()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="notes.txt has the suffix .txt, and isn't read"):
        load(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="is an address; download it"):
        load("https://example.org/films/a.mp4")


def test_options_of_load_reach_the_reader(tmp_path, capsys):
    smooth = np.linspace(0, 200, 20).astype(np.uint8)[:, None, None, None]
    smooth = smooth + np.zeros((20, 16, 16, 3), np.uint8)
    write(tmp_path / "a.mp4", smooth, fps=10)
    write(tmp_path / "b.mp4", smooth, fps=20)
    assert load(tmp_path).lengths.tolist() == [20, 20]
    assert "frames a second differ" in capsys.readouterr().out
    assert load(tmp_path, fps=10).lengths.tolist() == [20, 10]
    (tmp_path / "c.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:-100])
    with pytest.raises(ValueError, match="1 of 3 clips can't be read"):
        load(tmp_path, size=8)
    assert len(load(tmp_path, size=8, skip_broken=True, progress=False)) == 2


# --- by name ---


def test_shapes_by_name():
    clips = load("shapes", n=6, length=5, size=16, seed=2, backdrop="plain")
    assert (
        len(clips) == 6
        and clips.lengths.tolist() == [5] * 6
        and clips.label_names == ("rise", "drift", "circle", "bounce")
    )
    assert clips.extra["colour"].shape == (6, 3) and set(clips.extra["backdrop"]) == {1}
    with pytest.raises(ValueError, match="only go with"):
        load("weizmann", n=6)


needs_data = pytest.mark.skipif(
    not os.environ.get("VIDCOURSE_DATA"), reason="VIDCOURSE_DATA is not set: no real clips here"
)


@needs_data
def test_weizmann():
    clips = load("weizmann", size=32)
    assert (
        len(clips) == 36
        and clips.size == (32, 32)
        and sorted(clips.label_names) == ["bend", "jack", "wave1", "wave2"]
    )
    assert len({(p, a) for p, a in zip(clips.extra["person"], clips.labels)}) == 36
    rest, out = held_out(clips, person=[7, 8])
    assert (len(rest), len(out)) == (28, 8) and not set(rest.extra["person"]) & set(
        out.extra["person"]
    )
    assert rest.batch(4, 16, generator(), step=2).shape == (4, 3, 16, 32, 32)


@needs_data
@pytest.mark.parametrize("name", ["sky", "coil"])
def test_other_real_sets(name):
    from vidcourse.course import data_root

    if not (data_root() / FILES[name]).exists():
        pytest.skip(f"{FILES[name]} is not in VIDCOURSE_DATA")
    assert load(name).batch(2, 16, generator()).shape == (2, 3, 16, 64, 64)


def test_zip_is_closed_after_reading(tmp_path, clips):
    path = clips.save(tmp_path / "c.npz")
    Clips.from_npz(path)
    path.unlink()
    assert not zipfile.is_zipfile(path)
