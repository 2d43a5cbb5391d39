"Files as people have them, made here by PyAV and Pillow: found, named, upright, whole."

import io
import os
import pickle
import re
import struct
import subprocess
import sys
import textwrap
import zipfile
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from vidcourse import sources
from vidcourse.decoder import (
    Facts,
    at_rate,
    check_elements,
    decode,
    fit,
    measure_video,
    middle,
)
from vidcourse.readers import IMAGES, READERS, VIDEOS, Block, kind_of_picture, to_rgb
from vidcourse.sources import Item, gather, in_order, open_npz, read, read_folder, scan
from vidcourse.video import encode, pictures, write

FRAMES = 22


@pytest.fixture(scope="module")
def film():
    "A disc that moves to the right and down over a ramp, with grain: uint8 (22, 64, 96, 3)."
    t, y, x = np.mgrid[:FRAMES, :64, :96]
    disc = np.hypot(y - 20 - t, x - 14 - 3 * t) < 11
    film = np.stack(
        [np.where(disc, 230, 30 + x), np.where(disc, 90, 3 * y), 60 + 0 * x + 4 * t], -1
    )
    grain = np.random.default_rng(0).integers(-8, 9, (*film.shape[:3], 1))
    return (film + grain).clip(0, 255).astype(np.uint8)


CODERS = {  # container: encoder, ffmpeg's name of the container
    "mp4": ("libx264", "mp4"),
    "mov": ("libx264", "mov"),
    "3gp": ("mpeg4", "3gp"),
    "avi": ("mpeg4", "avi"),
    "mkv": ("libx264", "matroska"),
    "webm": ("libvpx", "webm"),
    "wmv": ("wmv2", "asf"),
    "flv": ("flv", "flv"),
    "ogv": ("libvpx", "ogv"),
    "ts": ("mpeg2video", "mpegts"),
    "MTS": ("libx264", "mpegts"),
    "mpg": ("mpeg1video", "mpeg"),
    "vob": ("mpeg2video", "vob"),
}


def coded(frames, suffix, fps=25):
    "A film in one of the containers, as bytes."
    codec, container = CODERS[suffix]
    return encode(pictures(frames), frames.shape[1:3], fps, codec, container, "yuv420p")


def paged(frames, kind, **options):
    "A picture file of several frames, as bytes."
    memory, images = io.BytesIO(), [Image.fromarray(frame) for frame in frames]
    images[0].save(memory, kind, save_all=True, append_images=images[1:], **options)
    return memory.getvalue()


def phone(path, frames, matrix=None, pixel=None, fps=25, **options):
    "An mp4 with notes on how to hold it (a b u c d v of the matrix) and how wide its pixels are."
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=fps, options={"crf": "8", **options})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        if pixel:
            stream.codec_context.sample_aspect_ratio = pixel
        for frame in pictures(frames):
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    if matrix:
        data = bytearray(path.read_bytes())
        place = data.index(b"tkhd") + 4 + 40  # ISO 14496-12, track header, version 0
        numbers = [round(v * 65536) for v in matrix] + [0, 0, 1 << 30]
        data[place : place + 36] = struct.pack(">9i", *numbers)
        path.write_bytes(data)
    return path


def stored(folder, frames, name="{:03d}.png", **options):
    "A folder of numbered pictures."
    folder.mkdir(parents=True, exist_ok=True)
    for k, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / name.format(k), **options)
    return folder


def put(path, data):
    "Bytes into a file, whose folder is made."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def apart(a, b):
    "Mean distance of two clips, in grey levels."
    return abs(a.astype(float) - b).mean()


# ---- whole, cut, trimmed, damaged: every container


@pytest.mark.parametrize("suffix", CODERS)
def test_a_whole_video(tmp_path, film, suffix):
    path = put(tmp_path / f"a.{suffix}", coded(film, suffix))
    facts = measure_video(path)
    assert facts.frames >= FRAMES and facts.size == (64, 96) and abs(facts.fps - 25) < 0.1
    back = read(path)
    assert back.shape == film.shape and apart(back, film) < 16
    assert f".{suffix}".lower() in VIDEOS


@pytest.mark.parametrize("suffix", CODERS)
@pytest.mark.parametrize("share", [0.3, 0.55, 0.8, 0.97])
def test_a_cut_video(tmp_path, film, suffix, share):
    whole = coded(film, suffix)
    path = put(tmp_path / f"a.{suffix}", whole[: int(share * len(whole)) | 1])
    if suffix in ("mpg", "vob") and frames_by_ffmpeg(path) == FRAMES:
        return  # these end in filling, and only that was cut
    with pytest.raises(
        ValueError, match=rf"a\.{suffix} (is cut short|can't be read|is damaged)"
    ):
        read(path)
    if suffix not in (
        "mpg",
        "vob",
    ):  # these promise nothing, and it takes the decoder to see it
        sound, broken = sources.check([Item(path, "video")], progress=False)
        assert not sound and list(broken) == [path]


def frames_by_ffmpeg(path):
    try:
        with av.open(str(path)) as file:
            return sum(1 for _ in file.decode(video=0))
    except av.error.FFmpegError:
        return None


@pytest.mark.parametrize("suffix", ["avi", "mkv", "webm", "wmv", "flv", "ogv", "ts"])
def test_a_cut_that_the_decoder_does_not_notice(tmp_path, film, suffix):
    "Between two packets, or anywhere: the walk over the elements finds it at all places tried."
    whole, missed = coded(film, suffix), []
    with av.open(io.BytesIO(whole)) as file:
        container = file.format.name
    for end in range(len(whole) // 3 | 1, len(whole) - 1, len(whole) // 23 * 2):
        path = put(tmp_path / f"a.{suffix}", whole[:end])
        try:
            check_elements(path, container)
            missed.append(end)
        except ValueError:
            pass
    assert not missed
    check_elements(put(path, whole), container)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "avi", "mkv", "webm", "wmv"])
@pytest.mark.parametrize("more", [b"\n", b"<!-- kept by a proxy -->", bytes(5000)])
def test_bytes_after_the_end_do_no_harm(tmp_path, film, suffix, more):
    path = put(tmp_path / f"a.{suffix}", coded(film, suffix) + more)
    assert len(read(path)) == FRAMES


def damaged(whole, size=60):
    "A film with `size` bytes turned over in its largest packet but the first ones."
    with av.open(io.BytesIO(whole)) as file:
        packets = [(p.size, p.pos) for p in file.demux(video=0) if p.size and p.pos]
    length, start = max(packet for packet in packets if packet[1] > len(whole) // 4)
    hole = start + min(length, 2000) // 2
    return (
        whole[:hole] + bytes(255 - b for b in whole[hole : hole + size]) + whole[hole + size :]
    )


@pytest.mark.parametrize("suffix", ["mov", "avi", "3gp", "flv", "ts", "vob"])
def test_a_damaged_video(tmp_path, film, suffix):
    size = 400 if suffix == "mov" else 60  # H.264 takes much for a picture
    path = put(tmp_path / f"a.{suffix}", damaged(coded(film, suffix), size))
    with pytest.raises(
        ValueError, match=rf"a\.{suffix} (is damaged: frame|can't be read|is cut)"
    ):
        read(path)


def elst(data, hidden, ticks):
    "An mp4 as a phone leaves it that trims without encoding: its edit list hides the first frames."
    at = data.index(b"elst") + 4
    assert int.from_bytes(data[at + 4 : at + 8], "big") == 1, "one entry"
    duration = int.from_bytes(data[at + 8 : at + 12], "big")
    begin = int.from_bytes(data[at + 12 : at + 16], "big")
    shorter = duration - round(hidden * 40)  # the film's clock: thousandths; 25 frames a second
    entry = shorter.to_bytes(4, "big") + (begin + hidden * ticks).to_bytes(4, "big")
    return data[: at + 8] + entry + data[at + 16 :]


def test_a_trimmed_video(tmp_path, film):
    data = phone(tmp_path / "a.mp4", film, g="5").read_bytes()  # a key frame now and then
    with av.open(str(tmp_path / "a.mp4")) as file:
        ticks = int(Fraction(1, 25) / file.streams.video[0].time_base)
    trimmed = elst(data, 9, ticks)
    path = put(tmp_path / "trimmed.mp4", trimmed)
    with av.open(str(path)) as file:
        assert sum(packet.size > 0 for packet in file.demux(video=0)) < FRAMES, (
            "some are skipped"
        )
    back = read(path)
    assert len(back) == FRAMES - 9, "what the edit list hides is not shown"
    assert apart(back, film[9:]) < 6 < apart(back, film[:-9])
    with pytest.raises(ValueError, match="cut short|can't be read"):
        read(put(tmp_path / "both.mp4", trimmed[: len(trimmed) // 2]))


def in_front(path, frames):
    "An mp4 with its table in front, as on the web: what is left after a broken download opens."
    with av.open(str(path), "w", options={"movflags": "faststart"}) as file:
        stream = file.add_stream("libx264", rate=8, options={"crf": "5", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in pictures(frames):
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path.read_bytes()


def test_an_mp4_cut_between_two_frames(tmp_path, film):
    whole = in_front(tmp_path / "a.mp4", film)
    with av.open(str(tmp_path / "a.mp4")) as file:
        starts = sorted(packet.pos for packet in file.demux(video=0) if packet.size)
    put(tmp_path / "a.mp4", whole[: starts[8]])
    with pytest.raises(ValueError, match=f"cut short: 8 of {FRAMES} frames are there"):
        read(tmp_path / "a.mp4")


def test_a_live_recording_of_unknown_length(tmp_path, film):
    memory = io.BytesIO()
    with av.open(memory, "w", format="matroska", options={"live": "1"}) as file:
        stream = file.add_stream("libvpx", rate=25)
        stream.height, stream.width, stream.pix_fmt = *film.shape[1:3], "yuv420p"
        for frame in pictures(film):
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    whole = memory.getvalue()
    assert b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff" in whole, (
        "a segment of unknown size"
    )
    assert len(read(put(tmp_path / "a.webm", whole))) == FRAMES
    with pytest.raises(ValueError, match="cut short"):
        read(put(tmp_path / "a.webm", whole[: len(whole) * 2 // 3]))


def test_an_avi_cut_in_its_index(tmp_path, film):
    whole = coded(film, "avi")
    for end in range(whole.index(b"idx1"), len(whole) - 2, 17):
        with pytest.raises(ValueError, match="a.avi"):
            read(put(tmp_path / "a.avi", whole[:end]))


def test_a_transport_stream_may_begin_anywhere(tmp_path, film):
    whole = encode(
        pictures(np.concatenate([film, film])),
        (64, 96),
        25,
        "mpeg2video",
        "mpegts",
        "yuv420p",
        g="8",
    )
    packets = len(whole) // 188
    path = put(tmp_path / "a.ts", whole[packets // 3 * 188 :])
    assert 15 < len(read(path)) < 2 * FRAMES


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_cut_moving_picture(tmp_path, film, kind, share):
    whole = paged(film, kind)
    path = put(
        tmp_path / f"a.{kind.lower()}".replace("png", "apng"), whole[: int(share * len(whole))]
    )
    with pytest.raises(ValueError, match="cut short|can't be read as a picture"):
        read(path)


@pytest.mark.parametrize("suffix", [".npz", ".png", ".jpg"])
@pytest.mark.parametrize("share", [0, 0.05, 0.5, 0.8])
def test_other_files_that_are_cut(tmp_path, film, suffix, share):
    if suffix == ".jpg":
        stored(tmp_path / "clip", film[:3], "{}.jpg")
        path, clip = tmp_path / "clip" / "1.jpg", tmp_path / "clip"
    else:
        path = clip = write(tmp_path / f"a{suffix}", film)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=re.escape(path.name)):
        read(clip)


def test_gifs_as_the_web_has_them(tmp_path, film):
    whole = paged(film, "GIF", duration=40)
    assert whole.endswith(b";")
    for more in (b"", b"\n", b"appended by a server"):
        assert len(read(put(tmp_path / "a.gif", whole + more))) == FRAMES
    assert len(read(put(tmp_path / "a.gif", whole[:-1]))) == FRAMES, "its last byte is no frame"
    with pytest.raises(ValueError, match="cut short|can't be read as a picture"):
        read(put(tmp_path / "a.gif", whole[:-2]))
    control = whole.rindex(b"!\xf9")  # what stands before each picture
    with pytest.raises(ValueError, match="cut short|can't be read as a picture"):
        read(put(tmp_path / "a.gif", whole[: control + 4]))


def test_a_web_page_under_every_name(tmp_path):
    for suffix in (*VIDEOS, *IMAGES, ".npz", ".xyz", ""):
        path = tmp_path / f"page{suffix}"
        path.write_text("<html>404 not found</html>" * 50)
        with pytest.raises(ValueError, match=re.escape(f"page{suffix}")):
            read(path)


def test_sound_without_pictures(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    with pytest.raises(ValueError, match="no video in it"):
        read(tmp_path / "a.mp4")


# ---- upright, square pixels, one size, one rate


WAYS = {  # a, b, c, d of x' = ax + cy, y' = bx + dy, and what that does to an array (t h w c)
    "as it is": ((1, 0, 0, 1), lambda f: f),
    "90 clockwise": ((0, 1, -1, 0), lambda f: np.rot90(f, -1, (1, 2))),
    "180": ((-1, 0, 0, -1), lambda f: np.rot90(f, 2, (1, 2))),
    "90 the other way": ((0, -1, 1, 0), lambda f: np.rot90(f, 1, (1, 2))),
    "mirrored": ((-1, 0, 0, 1), lambda f: f[:, :, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda f: f[:, ::-1]),
    "transposed": ((0, 1, 1, 0), lambda f: f.swapaxes(1, 2)),
    "the other diagonal": ((0, -1, -1, 0), lambda f: f[:, ::-1, ::-1].swapaxes(1, 2)),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_hold_a_phone(tmp_path, film, way):
    (a, b, c, d), hold = WAYS[way]
    path = phone(tmp_path / "a.mp4", film, (a, b, 0, c, d, 0))
    upright = hold(film)
    assert measure_video(path).size == upright.shape[1:3]
    assert apart(read(path), upright) < 6
    for size in (32, (40, 20)):
        small = read(path, size=size)
        assert apart(small, fit(np.ascontiguousarray(upright), size)) < 4
        assert small.flags.c_contiguous


@pytest.mark.parametrize("turned", [False, True])
def test_pixels_that_are_not_square(tmp_path, film, turned):
    matrix = (0, 1, 0, -1, 0, 0) if turned else None
    path = phone(tmp_path / "a.mp4", film, matrix, pixel=Fraction(4, 3))
    size = (128, 64) if turned else (64, 128)
    assert measure_video(path).size == size and read(path).shape[1:3] == size
    shown = read(path, size=64)  # a square of the picture: 48 of the 96 columns
    upright = np.rot90(shown, 1, (1, 2)) if turned else shown
    squeezed = np.stack([np.array(Image.fromarray(f).resize((48, 64))) for f in upright])
    assert apart(squeezed, film[:, :, 24:72]) < 12


def test_the_middle_of_a_frame():
    assert middle(64, 96, (32, 32)) == (0, 16, 64, 64)
    assert middle(64, 96, (32, 32), pixel=4 / 3) == (0, 24, 64, 48)
    assert middle(96, 64, (10, 20)) == (32, 0, 32, 64)


def test_colours_of_every_standard(tmp_path):
    "BT.601 and BT.709, limited and full range: a plain red comes back red at any size."
    for space in (1, 5):
        for span in (1, 2):
            with av.open(str(tmp_path / "a.mp4"), "w") as file:
                stream = file.add_stream("libx264", rate=10, options={"crf": "1"})
                stream.width = stream.height = 64
                stream.pix_fmt = "yuv420p"
                stream.codec_context.colorspace = space
                stream.codec_context.color_range = span
                red = np.full((64, 64, 3), (220, 40, 60), np.uint8)
                for _ in range(3):
                    frame = av.VideoFrame.from_ndarray(red, format="rgb24")
                    frame = frame.reformat(
                        format="yuv420p", dst_colorspace=space, dst_color_range=span
                    )
                    frame.colorspace, frame.color_range = space, span
                    file.mux(stream.encode(frame))
                file.mux(stream.encode())
            for size in (None, 16):
                assert abs(read(tmp_path / "a.mp4", size=size) - (220.0, 40, 60)).max() < 6


def test_scaling_in_the_decoder_equals_fit(tmp_path, film):
    path = phone(tmp_path / "a.mp4", film)
    for size in (24, 64, (30, 50)):
        assert apart(read(path, size=size), fit(read(path), size)) < 2.5


def test_frames_of_two_sizes_in_one_video(tmp_path, film):
    small = fit(film, (32, 48))
    path = put(tmp_path / "a.mpg", coded(film, "mpg") + coded(small, "mpg"))
    with pytest.raises(ValueError, match="changes from 64 x 96 to 32 x 48 pixels; give size="):
        read(path)
    assert read(path, size=16).shape[1:] == (16, 16, 3)


def test_on_screen_at_a_rate():
    even = [(k / 10, k) for k in range(10)]
    assert list(at_rate(even, None)) == list(at_rate(even, 10)) == list(range(10))
    assert list(at_rate(even, 5)) == [0, 2, 4, 6, 8]
    assert list(at_rate(even, 30)) == sorted([*range(10)] * 3)
    assert list(at_rate([(round(s + 7, 3), k) for s, k in even], 5)) == [0, 2, 4, 6, 8]
    thousandths = [(round(k / 30, 3), k) for k in range(30)]
    assert list(at_rate(thousandths, 30)) == list(range(30))
    assert list(at_rate(thousandths, 15)) == list(range(0, 30, 2))
    assert list(at_rate([], 5)) == [] and list(at_rate([(3.0, "x")], 5)) == ["x"]


@pytest.mark.parametrize("suffix", ["mp4", "webm", "flv", "avi", "ts"])
def test_a_second_at_every_rate(tmp_path, film, suffix):
    "The same motion at 10, 25 and 50 frames a second is the same clip at 10."
    t, y, x = np.mgrid[:50, :48, :96]
    second = np.where(np.hypot(y - 24, x - 10 - 1.5 * t) < 8, 240, 20).astype(np.uint8)
    second = second[..., None].repeat(3, -1)
    paths = []
    for rate in (10, 25, 50):
        if suffix == "ts" and rate == 10:
            continue  # MPEG-2 has no such rate
        paths.append(
            put(tmp_path / f"{rate}.{suffix}", coded(second[:: 50 // rate], suffix, rate))
        )
        assert abs(measure_video(paths[-1]).fps - rate) < 0.2
    clips = [read(path, fps=10) for path in paths]
    for clip in clips:
        assert len(clip) == 10 and apart(clip, second[::5]) < 12


def test_moving_pictures_follow_a_rate(tmp_path, film):
    for kind, suffix in (("GIF", "gif"), ("PNG", "png"), ("WEBP", "webp")):
        path = put(tmp_path / f"a.{suffix}", paged(film, kind, duration=100))
        assert len(read(path)) == FRAMES and len(read(path, fps=5)) == FRAMES // 2
        assert len(read(path, fps=20)) == 2 * FRAMES
    uneven = put(tmp_path / "b.gif", paged(film[:4], "GIF", duration=[100, 100, 600, 100]))
    shown = read(uneven, fps=10)
    assert len(shown) == 9 and (shown[2:8] == shown[2]).all()
    stack = put(tmp_path / "a.tif", paged(film, "TIFF"))
    assert len(read(stack, fps=5)) == FRAMES, "a TIFF has no clock"


# ---- pictures


@pytest.mark.parametrize("way", range(1, 9))
def test_pictures_are_held_as_exif_says(tmp_path, film, way):
    note = Image.Exif()
    note[0x0112] = way
    hold = list(WAYS)[[0, 4, 2, 5, 6, 1, 7, 3][way - 1]]  # EXIF's order, 1 to 8
    stored(tmp_path / "clip", film[:4], "{}.jpg", exif=note, quality=98)
    expected = WAYS[hold][1](film[:4])
    assert read(tmp_path / "clip").shape == expected.shape
    assert apart(read(tmp_path / "clip"), expected) < 6
    assert READERS["folder of frames"].measure(tmp_path / "clip").size == expected.shape[1:3]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits(tmp_path, suffix):
    deep = np.linspace(0, 65535, 32 * 40).astype(np.uint16).reshape(32, 40)
    for k in range(3):
        path = tmp_path / "clip" / f"{k}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(deep).save(path)
    frames = read(tmp_path / "clip")
    assert frames.shape == (3, 32, 40, 3)
    assert (frames[0, ..., 0] == np.round(deep / 257)).all() and (
        frames[..., 0] == frames[..., 2]
    ).all()


def test_values_whose_white_nobody_knows(tmp_path):
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(
        tmp_path / "a.tif"
    )
    with pytest.raises(ValueError, match="a.tif.*values from 0 to 1, expected 8 or 16 bits"):
        read(tmp_path)
    Image.fromarray(np.full((8, 8), 70000, np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="70000"):
        read(tmp_path)


def test_what_is_transparent_is_black():
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[..., :3], pixels[:, :3, 3] = (200, 100, 50), 255
    shown = to_rgb(Image.fromarray(pixels))
    assert (shown[:, :3] == (200, 100, 50)).all() and (shown[:, 3:] == 0).all()
    memory = io.BytesIO()
    Image.fromarray(pixels).quantize(4).save(memory, "PNG")
    with Image.open(memory) as image:
        assert image.mode == "P" and (to_rgb(image)[:, 3:] == 0).all()


@pytest.mark.parametrize(
    "kind, suffix, error",
    [("GIF", "gif", 12), ("PNG", "png", 0), ("PNG", "apng", 0), ("WEBP", "webp", 0)]
    + [("TIFF", "tif", 0), ("TIFF", "TIFF", 0), ("AVIF", "avif", 12)],
)
def test_an_image_with_several_frames_is_a_clip(tmp_path, film, kind, suffix, error):
    options = {"lossless": True} if kind == "WEBP" else {}
    for k in range(3):
        put(tmp_path / f"clip{k}.{suffix}", paged(film, kind, **options))
    assert kind_of_picture(tmp_path / f"clip0.{suffix}") == "moving picture"
    frames, offsets, labels, _, extra = read_folder(tmp_path, progress=False)
    assert np.diff(offsets).tolist() == [FRAMES] * 3 and labels is None
    assert extra["name"].tolist() == ["clip0", "clip1", "clip2"]
    assert apart(frames[:FRAMES], film) <= error
    assert apart(read(tmp_path / f"clip1.{suffix}"), film) <= error


def test_an_image_with_a_second_view_is_no_clip(tmp_path, film):
    for k in range(3):  # a phone's .jpg that is an MPO, and a TIFF with a thumbnail
        path = tmp_path / "mpo" / f"{k}.jpg"
        put(path, paged(film[k : k + 2], "MPO"))
        assert kind_of_picture(path) == "picture"
        memory, large = io.BytesIO(), Image.fromarray(film[k])
        large.save(memory, "TIFF", save_all=True, append_images=[large.resize((24, 16))])
        path = put(tmp_path / "thumb" / f"{k}.tif", memory.getvalue())
        assert kind_of_picture(path) == "picture"
    assert read(tmp_path / "mpo").shape == read(tmp_path / "thumb").shape == (3, 64, 96, 3)


def test_the_default_image_of_an_apng_is_no_frame(tmp_path, film):
    path = put(tmp_path / "a.png", paged(film[:5], "PNG", default_image=True, duration=100))
    assert (read(path) == film[1:5]).all() and READERS["moving picture"].measure(
        path
    ).frames == 4


def test_single_frames_as_gif(tmp_path, film):
    few = film // 128 * 128
    stored(tmp_path / "clip", few, "{}.gif")
    assert scan(tmp_path).items[0].kind == "folder of frames"
    assert (read(tmp_path / "clip") == few).all()
    assert (read(tmp_path / "clip" / "3.gif") == few[3:4]).all()


# ---- strips


def strip_of(frames, path, down=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(list(frames), 0 if down else 1)).save(path)
    return path


def test_frames_twice_as_wide_as_high_are_frames(tmp_path, film):
    wide = fit(film, (32, 64))
    for city in ("city0", "city1"):
        stored(tmp_path / city, wide, "frame_{:06d}.png")
    frames, offsets, labels, _, extra = read_folder(tmp_path, progress=False)
    assert np.diff(offsets).tolist() == [FRAMES] * 2 and labels is None
    assert extra["name"].tolist() == ["city0", "city1"] and (frames[:FRAMES] == wide).all()


@pytest.mark.parametrize("down", [False, True])
def test_what_is_clearly_longer_is_a_strip(tmp_path, film, down):
    square = fit(film, 20)
    for k, count in enumerate((3, 7, 22)):
        strip_of(square[:count], tmp_path / "auto" / f"{k}.png", down)
    assert [item.kind for item in scan(tmp_path / "auto").items] == ["film strip"] * 3
    frames, offsets, *_ = read_folder(tmp_path / "auto", progress=False)
    assert np.diff(offsets).tolist() == [3, 7, 22] and (frames[3:10] == square[:7]).all()


def test_what_says_that_it_is_a_strip(tmp_path, film):
    write(tmp_path / "two.png", film[:2])
    write(tmp_path / "one.png", film[:1])
    assert kind_of_picture(tmp_path / "two.png") == "film strip"
    assert kind_of_picture(tmp_path / "one.png") == "picture"
    assert (read(tmp_path / "two.png") == film[:2]).all() and read(tmp_path / "one.png").shape[
        0
    ] == 1


def test_a_lone_picture_is_no_clip(tmp_path, film):
    Image.fromarray(film[0]).save(tmp_path / "photo.png")
    strip_of(fit(film[:2], 32), tmp_path / "pair.png")
    for name, size in (("photo", "64 x 96"), ("pair", "32 x 64")):
        with pytest.raises(ValueError, match=f"{name}.png is one picture of {size}"):
            read(tmp_path / f"{name}.png")
    Image.fromarray(film[0, :, :64]).save(tmp_path / "square.png")
    assert read(tmp_path / "square.png").shape == (1, 64, 64, 3)


def test_kind_overrules_what_pictures_look_like(tmp_path, film):
    wide = fit(film, (16, 48))
    stored(tmp_path / "clip", wide)
    assert [item.kind for item in scan(tmp_path).items] == ["film strip"] * FRAMES
    forced = scan(tmp_path, kind="frames")
    assert [item.kind for item in forced.items] == ["folder of frames"]
    assert (read_folder(tmp_path, kind="frames", progress=False)[0] == wide).all()
    pairs = fit(film, (16, 32))
    stored(tmp_path / "pairs", pairs)
    _, offsets, *_ = read_folder(tmp_path / "pairs", kind="strips", progress=False)
    assert np.diff(offsets).tolist() == [2] * FRAMES


# ---- archives


def test_archives_in_a_folder_are_clips(tmp_path, film):
    for k in range(3):
        write(tmp_path / "walk" / f"{k}.npz", film[: k + 5])
    _, offsets, labels, names, _ = read_folder(tmp_path, size=16, progress=False)
    assert np.diff(offsets).tolist() == [5, 6, 7] and names == ("walk",)
    np.savez(tmp_path / "walk" / "many.npz", frames=film, offsets=[0, 4, FRAMES])
    with pytest.raises(ValueError, match="many.npz holds 2 clips"):
        read_folder(tmp_path, size=16, progress=False)


def test_an_archive_of_many_clips_is_not_unpacked_to_say_so(tmp_path, film, monkeypatch):
    write(tmp_path / "many.npz", np.stack([film, film]))
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(ValueError, match="many.npz holds 2 clips, and one is read here"):
        read(tmp_path / "many.npz")


class Evil:
    def __reduce__(self):
        return os.system, (f"touch {os.environ['EVIL_MARK']}",)


@pytest.mark.parametrize("how", ["object array", "bare pickle", "object array, mapped"])
def test_pickles_are_never_run(tmp_path, monkeypatch, how):
    monkeypatch.setenv("EVIL_MARK", str(tmp_path / "ran"))
    path = tmp_path / "evil.npz"
    if how == "bare pickle":
        path.write_bytes(pickle.dumps(Evil()))
    else:
        np.savez(path, frames=np.array([Evil()], dtype=object))
    with pytest.raises(ValueError, match="run code"):
        open_npz(path, mmap="mapped" in how)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["frames", "extra"])
def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch, name):
    "A hundred kilobytes that would become a hundred megabytes, as pictures or as anything else."
    arrays = {"frames": np.zeros((1, 4, 8, 8, 3), np.uint8)}
    arrays[name] = np.zeros((100, 1000, 1000, 1), np.uint8)
    np.savez_compressed(tmp_path / "bomb.npz", **arrays)
    unpacked = []
    monkeypatch.setattr(np, "load", lambda *a, **k: unpacked.append(a))
    for mmap in (False, True):
        with pytest.raises(
            ValueError, match=rf"bomb.npz.*{name}.npy takes 0.1 MB.* 95 MB in mem"
        ):
            open_npz(tmp_path / "bomb.npz", mmap=mmap)
    assert not unpacked


def test_plain_films_shrink_a_lot_and_are_no_bombs(tmp_path, film):
    dark = np.zeros((3, 40, 64, 64, 3), np.uint8)
    write(tmp_path / "dark.npz", dark)  # a thousandfold, but small
    assert open_npz(tmp_path / "dark.npz")[0]["frames"].shape == dark.shape


def test_a_header_that_promises_more_than_there_is(tmp_path):
    memory = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        memory, {"descr": "|u1", "fortran_order": False, "shape": (1000, 64, 64, 3)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("frames.npy", memory.getvalue() + bytes(1000))
    for mmap in (False, True):
        with pytest.raises(ValueError, match="a.npz is no archive of clips: frames.npy takes"):
            open_npz(tmp_path / "a.npz", mmap=mmap)


# ---- what lies in a folder


def said(capsys):
    return capsys.readouterr().out


def test_labels_of_different_kinds(tmp_path, film, capsys):
    for k in range(2):
        put(tmp_path / "walk" / f"{k}.mp4", coded(film, "mp4"))
        stored(tmp_path / "run" / f"clip{k}", film[:18])
    frames, offsets, labels, names, extra = read_folder(tmp_path, size=16, progress=False)
    assert names == ("run", "walk") and labels.tolist() == [0, 0, 1, 1]
    assert np.diff(offsets).tolist() == [18, 18, FRAMES, FRAMES]
    assert extra["name"].tolist() == ["clip0", "clip1", "0", "1"] and not said(capsys)


def test_loose_clips_beside_labels(tmp_path, film, capsys):
    for path in ("intro", "walk/0", "walk/1", "run/0"):
        put(tmp_path / f"{path}.mp4", coded(film, "mp4"))
    *_, names, extra = read_folder(tmp_path, size=16, progress=False)
    assert names == ("run", "walk") and len(extra["name"]) == 3
    assert "left out: 1 video (intro.mp4) beside the label folders" in said(capsys)
    for k in range(4):
        put(tmp_path / f"{k}.avi", coded(film, "avi"))
    *_, names, extra = read_folder(tmp_path, size=16, progress=False)
    assert names == () and len(extra["name"]) == 5
    assert "left out: 3 videos in sub-folders" in said(capsys)


def test_every_suffix_is_read_or_named(tmp_path, film, capsys):
    for suffix in ("mp4", "MTS", "wmv", "3gp", "flv"):
        put(tmp_path / f"{suffix}.{suffix}", coded(film, suffix))
    for name in (
        "a.heic",
        "b.heic",
        "sound.wav",
        "README",
        "notes.txt",
        ".hidden.mp4",
        "x.json",
    ):
        (tmp_path / name).write_bytes(b"?")
    *_, extra = read_folder(tmp_path, size=16, progress=False)
    assert sorted(extra["name"]) == ["3gp", "MTS", "flv", "mp4", "wmv"]
    out = said(capsys)
    assert "left out: 2 files .heic, 1 file, 1 file .wav" in out
    assert "notes" not in out and "hidden" not in out and "json" not in out


def test_posters_and_previews(tmp_path, film, capsys):
    for k in range(3):
        put(tmp_path / "films" / f"{k}.mp4", coded(film, "mp4"))
        Image.fromarray(film[k]).save(tmp_path / "films" / f"{k}.jpg")
    *_, extra = read_folder(tmp_path / "films", size=16, progress=False)
    assert len(extra["name"]) == 3 and "left out: 3 pictures beside clips" in said(capsys)
    stored(tmp_path / "clip", film)
    put(tmp_path / "clip" / "preview.gif", paged(film[:4], "GIF"))
    frames, *_ = read_folder(tmp_path / "clip", progress=False)
    assert (frames == film).all() and (read(tmp_path / "clip") == film).all()
    assert "left out: 1 moving picture (preview.gif) beside the frames of a clip" in said(
        capsys
    )


def test_what_lies_too_deep(tmp_path, film, capsys):
    for part in ("train", "test"):
        for label in ("walk", "run"):
            for k in range(2):
                put(tmp_path / part / label / f"{k}.mp4", coded(film, "mp4"))
    with pytest.raises(ValueError) as caught:
        scan(tmp_path)
    text = str(caught.value)
    assert "8 videos lie deeper, in test/run, test/walk, train/run, train/walk" in text
    assert f"give the folder of the labels: {tmp_path / 'test'} or {tmp_path / 'train'}" in text
    assert len(scan(tmp_path / "train").items) == 4
    put(tmp_path / "front.mp4", coded(film, "mp4"))
    read_folder(tmp_path, size=16, progress=False)
    assert "left out: 8 videos further down" in said(capsys)


def test_nothing_to_use(tmp_path):
    with pytest.raises(ValueError, match="holds no clips. Expected are videos"):
        scan(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "notes.txt").write_text("x")
    with pytest.raises(
        ValueError, match=r"holds no clips \(left out: 1 file .txt \(notes.txt\)\)"
    ):
        scan(tmp_path)
    for what, words in (("nowhere", "does not exist"), ("http://a.b/c.mp4", "is an address")):
        with pytest.raises(FileNotFoundError, match=words):
            scan(what if "//" in what else tmp_path / what)
    with pytest.raises(ValueError, match="notes.txt has the suffix .txt, and isn't read"):
        scan(tmp_path / "a" / "notes.txt")
    with pytest.raises(ValueError, match="kind 'films' is unknown; choose auto, videos"):
        scan(tmp_path, kind="films")


def test_a_file_and_names_with_colons(tmp_path, film, monkeypatch):
    put(tmp_path / "take:2.mp4", coded(film, "mp4"))
    put(tmp_path / "http:x%d.avi", coded(film, "avi"))
    monkeypatch.chdir(tmp_path)
    assert len(read("take:2.mp4")) == len(read("http:x%d.avi")) == FRAMES
    _, offsets, labels, _, extra = read_folder("take:2.mp4", size=16, progress=False)
    assert offsets.tolist() == [0, FRAMES] and labels is None and extra["name"] == ["take:2"]
    assert len(scan(".").items) == 2


@pytest.mark.skipif(os.name == "nt", reason="no such names there")
def test_no_name_of_a_file_paints_the_terminal(tmp_path, film, capsys):
    painted = "\x1b[31mred\x07"
    put(tmp_path / f"{painted}.heic", b"?")
    with pytest.raises(ValueError, match="red.*[.]heic") as caught:
        scan(tmp_path)
    assert "\x1b" not in str(caught.value)
    put(tmp_path / f"{painted}.mp4", b"<html>")
    put(tmp_path / "a.mp4", coded(film, "mp4"))
    with pytest.raises(ValueError, match="1 of 2 clips can't be read") as caught:
        read_folder(tmp_path, size=16, progress=False)
    assert "\x1b" not in str(caught.value) and r"\x1b[31mred\x07.mp4" in str(caught.value)
    read_folder(tmp_path, size=16, skip_broken=True, progress=False)
    out = said(capsys)
    assert "\x1b" not in out and out.count(r"\x1b[31mred\x07") == 2


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_that_lead_back_up(tmp_path, film):
    put(tmp_path / "walk" / "0.mp4", coded(film, "mp4"))
    (tmp_path / "walk" / "again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "run").symlink_to(tmp_path / "walk", target_is_directory=True)
    inventory = scan(tmp_path)
    assert [item.label for item in inventory.items] == ["run", "walk"]


def test_names_in_counting_order(tmp_path):
    for name in ("a10b2.png", "a10b1.png", "a9b3.png", "7.png", "²x.png", "07.png", ".x.png"):
        (tmp_path / name).touch()
    assert [p.stem for p in in_order(tmp_path)] == ["a9b3", "a10b1", "a10b2", "²x", "07", "7"]


# ---- all of them


def broken_set(folder, film):
    "Two sound clips, and four that are broken in different ways."
    whole = coded(film, "mp4")
    put(folder / "a" / "sound0.mp4", whole)
    put(folder / "b" / "sound1.mkv", coded(film, "mkv"))
    put(folder / "a" / "half.mp4", whole[: len(whole) // 2])
    put(folder / "b" / "cut.webm", coded(film, "webm")[:-500])
    put(folder / "b" / "page.gif", b"<html>")
    put(folder / "a" / "damaged.flv", damaged(coded(film, "flv")))
    assert measure_video(folder / "a" / "damaged.flv"), "only the decoder will notice"


def test_broken_clips_are_all_named_at_once(tmp_path, film, capsys):
    broken_set(tmp_path, film)
    with pytest.raises(ValueError) as caught:
        read_folder(tmp_path, size=16, progress=False)
    text = str(caught.value)
    assert text.startswith("4 of 6 clips can't be read:") and "skip_broken=True" in text
    assert all(name in text for name in ("half.mp4", "cut.webm", "page.gif", "damaged.flv"))
    frames, offsets, labels, names, extra = read_folder(
        tmp_path, size=16, skip_broken=True, progress=False
    )
    assert extra["name"].tolist() == ["sound0", "sound1"] and names == ("a", "b")
    assert np.diff(offsets).tolist() == [FRAMES] * 2 and len(frames) == 2 * FRAMES
    assert apart(frames[FRAMES:], fit(film, 16)) < 8, "the place of a broken clip is used again"
    assert said(capsys).count("left out:") == 4


def test_when_all_are_broken_there_is_nothing_to_go_on_with(tmp_path):
    put(tmp_path / "a.mp4", b"<html>")
    with pytest.raises(ValueError, match="1 of 1 clips can't be read"):
        read_folder(tmp_path, size=16, skip_broken=True, progress=False)


def test_rates_that_differ_are_said(tmp_path, film, capsys):
    for rate in (10, 60):
        put(tmp_path / f"at{rate}.mp4", coded(film, "mp4", rate))
    stored(tmp_path / "frames", film[:5])
    _, offsets, *_ = read_folder(tmp_path, size=16, progress=False)
    assert "frames a second differ (10 in 1, 60 in 1 clips); fps=" in said(capsys)
    _, offsets, *_ = read_folder(tmp_path, size=16, fps=10, progress=False)
    out = said(capsys)
    assert "fps=" not in out and "1 of 3 clips don't say their rate" in out
    assert np.diff(offsets).tolist() == [FRAMES, 4, 5]


def test_clips_of_several_sizes(tmp_path, film):
    put(tmp_path / "a.mp4", coded(film, "mp4"))
    put(tmp_path / "b.mp4", coded(film[:, :48], "mp4"))
    phone(tmp_path / "c.mp4", film, (0, 1, 0, -1, 0, 0))
    with pytest.raises(
        ValueError, match=r"3 sizes: 64 x 96 \(a.mp4\), 48 x 96 \(b.mp4\), 96 x 64"
    ):
        read_folder(tmp_path, progress=False)
    assert read_folder(tmp_path, size=(20, 30), progress=False)[0].shape[1:] == (20, 30, 3)
    stored(tmp_path / "f" / "clip", [film[0], film[1, :50]])
    with pytest.raises(
        ValueError, match="001.png is 50 x 96, the first frame 64 x 96; give size="
    ):
        read_folder(tmp_path / "f", progress=False)


def test_more_than_the_memory_holds(tmp_path, film, monkeypatch):
    put(tmp_path / "a.mp4", coded(film, "mp4"))
    monkeypatch.setattr(sources, "machine_memory", lambda: 10_000)
    with pytest.raises(
        ValueError, match=f"{FRAMES} frames of 64 x 96 take .* give a smaller size="
    ):
        read_folder(tmp_path, progress=False)


def test_a_block_grows_when_more_comes_than_was_said(film):
    block = Block(2, (64, 96))
    for frame in film:
        block.add(frame)
    assert (block.take() == film).all()
    with pytest.raises(ValueError, match="a frame of 10 x 96 among frames of 64 x 96"):
        block.add(film[0, :10])
    assert Facts(100, (1, 1), 25.0).most(10) >= 40 and Facts(7, (1, 1)).most(10) == 7


def test_every_long_step_has_a_bar_with_a_name_and_a_total(tmp_path, film, monkeypatch):
    for k in range(3):
        put(tmp_path / f"{k}.mp4", coded(film, "mp4"))
    bars, real = [], sources.tqdm

    def watched(things, **options):
        bars.append(real(things, **options | {"file": io.StringIO()}))
        return bars[-1]

    monkeypatch.setattr(sources, "tqdm", watched)
    read_folder(tmp_path, size=16)
    assert [(b.desc, b.n, b.total) for b in bars] == [
        ("looking", 3, 3),
        ("checking", 3, 3),
        ("reading", 3 * FRAMES, 3 * FRAMES),
    ]
    read_folder(tmp_path, size=16, progress=False)
    assert all(b.disable for b in bars[3:])


@pytest.mark.skipif(
    not os.path.exists("/proc/self/status"), reason="needs Linux's account of memory"
)
def test_memory_is_what_is_kept_and_little_more(tmp_path):
    "300 frames of 1280 x 720 (830 MB) for 64 x 64 (4 MB), in a process of its own."
    ramp = np.mgrid[:720, :1280].sum(0)[..., None].repeat(3, -1)
    data = encode(
        pictures((ramp + 3 * t).astype(np.uint8) for t in range(300)),
        *((720, 1280), 30, "libx264", "mp4", "yuv420p"),
        preset="ultrafast",
    )
    put(tmp_path / "long.mp4", data)
    code = f"""
        import resource
        from vidcourse.sources import read_folder
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        before = peak()
        frames, *_ = read_folder({str(tmp_path)!r}, size=64, progress=False)
        print(len(frames), peak() - before)
    """
    run = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300)
    count, more = map(int, done.stdout.split())
    assert count == 300 and more < 150, f"{more} MB more than before"


def test_gather_reads_only_what_it_is_told(tmp_path, film):
    path = put(tmp_path / "a.mp4", coded(film, "mp4"))
    item = Item(path, "video")
    frames, items, lengths, broken = gather(
        [(item, Facts(3, (8, 8), 25.0))], (8, 8), progress=False
    )
    assert (
        lengths == [FRAMES] and items == [item] and not broken and frames.shape[1:] == (8, 8, 3)
    )


def test_decode_is_lazy(tmp_path, film):
    path = put(tmp_path / "a.mp4", coded(film, "mp4"))
    frames = decode(path)
    assert next(frames).shape == (64, 96, 3)
    frames.close()
    assert len(read(path, max_frames=3)) == 3
