"Fetching the characters over a local server that misbehaves: broken lines, damaged sheets."

import http.server
import io
import os
import re
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidcourse import files, pixel_art
from vidcourse.pixel_art import (
    COUNTS,
    FILE,
    cut_sheet,
    digest,
    fetch_sprites,
    load_art,
    paper_dolls,
)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # data_scripts is not part of the package

from data_scripts.sprites import main  # noqa: E402

ARCHIVE = "/sheets.zip"


def sheet_of(frames: np.ndarray) -> np.ndarray:
    "The sheet that the frames of a garment are cut from; magenta under what is clear."
    cells = np.zeros((273, 64, 64, 4), np.uint8)
    begins = [begin + 13 * face for begin in (13, 117, 169) for face in range(3)]
    steps = [k for k in ((0, 1, 2, 3, 4, 5, 6), range(1, 9), (0, 1, 2, 3, 4, 5)) for _ in "123"]
    for action, (begin, poses) in enumerate(zip(begins, steps)):
        for k, pose in enumerate(poses):
            cells[begin + pose] = frames[action, k]
    cells[cells[..., 3] == 0] = (200, 0, 200, 0)
    return cells.reshape(21, 13, 64, 64, 4).swapaxes(1, 2).reshape(1344, 832, 4)


def png(pixels: np.ndarray) -> bytes:
    memory = io.BytesIO()
    Image.fromarray(pixels).save(memory, "PNG", compress_level=1)
    return memory.getvalue()


def zipped(sheets: dict[str, bytes]) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("Sprites-1234/README.md", "sheets")
        for name, data in sheets.items():
            archive.writestr(f"Sprites-1234/{name}", data)
    return memory.getvalue()


@pytest.fixture(scope="session")
def sheets():
    return {
        f"{part}/{k}.png": png(sheet_of(layer[k]))
        for part, layer in looped(paper_dolls()).items()
        for k in range(len(layer))
    }


def looped(art):
    "The dolls as sheets hold them: 7 frames of a spell and 6 of a blow, then again from the sheet."
    layers = {}
    for part, layer in art.layers.items():
        layer = layer.copy()
        layer[:, :3, 7] = layer[:, :3, 0]
        layer[:, 6:, 6] = layer[:, 6:, 5]
        layer[:, 6:, 7] = layer[:, 6:, 0]
        layers[part] = layer
    return layers


@pytest.fixture
def known(monkeypatch):
    "The course knows the dolls' pixels."
    for part, layer in looped(paper_dolls()).items():
        monkeypatch.setitem(pixel_art.DIGESTS, part, digest(layer))


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, data = self.server, self.server.files.get(self.path)
        server.asked.append(self.path)
        mood = server.moods.pop(0) if server.moods else "well"
        if data is None or mood == "busy":
            self.send_error(503 if data else 404)
            return
        if mood == "damaged":
            data = data[:5000] + bytes([data[5000] ^ 255]) + data[5001:]
        self.send_response(200)
        if mood != "cut silently":  # as an archive made on the fly is sent
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if mood.startswith(("cut", "hang")) else data)
        if mood == "hang":
            self.wfile.flush()
            server.hanging.set()
            server.release.wait(20)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(sheets, monkeypatch):
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.files, server.moods, server.asked = {ARCHIVE: zipped(sheets)}, [], []
    server.hanging, server.release = threading.Event(), threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}{ARCHIVE}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


def test_whole_run(server, known, tmp_path, capsys):
    assert main(["--out", str(tmp_path), "--url", server.url]) == 0
    assert str(tmp_path / FILE) in capsys.readouterr().out
    assert names(tmp_path) == [FILE, "sprites.lock.json"]
    art, dolls = load_art(tmp_path / FILE), looped(paper_dolls())
    for part in COUNTS:
        assert np.array_equal(art.layers[part], dolls[part]), part
    with np.load(tmp_path / FILE, allow_pickle=False) as file:
        assert all((file[part][file[part][..., 3] == 0] == 0).all() for part in COUNTS)


def test_the_real_sheets_are_known(real_data):
    "What is cut from a sheet that holds the real art is what the course was made with."
    with np.load(real_data(FILE), allow_pickle=False) as file:
        for part, known in pixel_art.DIGESTS.items():
            again = np.stack([cut_sheet(sheet_of(layer)) for layer in file[part]])
            assert digest(again) == known, part


def test_second_run_asks_nobody_and_force_verifies(server, known, tmp_path):
    fetch_sprites(tmp_path, server.url)
    server.asked.clear()
    fetch_sprites(tmp_path, server.url)
    assert not server.asked
    fetch_sprites(tmp_path, server.url, force=True, keep=True)
    assert server.asked == [ARCHIVE] and "sprites-archive/sheets.zip" in names(tmp_path)
    fetch_sprites(tmp_path, server.url, force=True)
    assert server.asked == [ARCHIVE], "an archive that was kept and is right needs no download"


@pytest.mark.parametrize("moods", [["cut"], ["busy", "cut"]])
def test_broken_connection_is_tried_again(server, known, tmp_path, moods):
    server.moods[:] = moods
    fetch_sprites(tmp_path, server.url)
    assert len(server.asked) == len(moods) + 1 and FILE in names(tmp_path)


def test_connection_that_never_holds(server, tmp_path, capsys):
    server.moods[:] = ["cut"] * 3
    assert main(["--out", str(tmp_path), "--url", server.url]) == 1
    assert names(tmp_path) == [] and "broke off after" in capsys.readouterr().err


@pytest.mark.parametrize("mood", ["damaged", "cut silently"])
def test_damage_is_neither_kept_nor_recorded(server, known, tmp_path, mood):
    server.moods[:] = [mood]
    with pytest.raises(ValueError, match="damaged"):
        fetch_sprites(tmp_path, server.url)
    assert names(tmp_path) == []
    fetch_sprites(tmp_path, server.url)
    assert names(tmp_path) == [FILE, "sprites.lock.json"]


def wrong(sheets, kind):
    sheets = dict(sheets)
    if kind == "missing":
        del sheets["hair/9.png"]
    if kind == "no picture":
        sheets["hair/9.png"] = b"<html>not found</html>"
    if kind == "cut picture":
        sheets["hair/9.png"] = sheets["hair/9.png"][:2000]
    if kind == "other size":
        sheets["hair/9.png"] = png(np.zeros((64, 64, 4), np.uint8))
    if kind == "other kind":
        memory = io.BytesIO()
        Image.fromarray(np.zeros((1344, 832, 3), np.uint8)).save(memory, "BMP")
        sheets["hair/9.png"] = memory.getvalue()
    if kind == "bomb":
        sheets["hair/9.png"] = bytes(2**23)
    if kind == "other art":
        sheets["hair/9.png"] = sheets["hair/8.png"]
    return zipped(sheets)


SAID = {
    "missing": "lacks 1 of 34 sheets: hair/9.png",
    "bomb": "lacks 1 of 34 sheets: hair/9.png",
    "no picture": "hair/9.png is no sheet of 832 x 1344",
    "cut picture": "hair/9.png is no sheet of 832 x 1344",
    "other size": "hair/9.png is no sheet of 832 x 1344 pixels .it is 64 x 64",
    "other kind": "hair/9.png is no sheet of 832 x 1344",
    "other art": "hair: the pixels are not those",
}


@pytest.mark.parametrize("kind", SAID)
def test_a_whole_archive_with_the_wrong_things_in_it(server, known, sheets, tmp_path, kind):
    "It is refused with the sheet's name, and once the server is mended the same call works."
    good = server.files[ARCHIVE]
    server.files[ARCHIVE] = wrong(sheets, kind)
    with pytest.raises(ValueError, match=SAID[kind]):
        fetch_sprites(tmp_path, server.url)
    assert names(tmp_path) == []
    server.files[ARCHIVE] = good
    fetch_sprites(tmp_path, server.url)
    assert names(tmp_path) == [FILE, "sprites.lock.json"]


def test_other_art_can_be_accepted(server, sheets, tmp_path):
    assert main(["--out", str(tmp_path), "--url", server.url, "--any-art"]) == 0
    assert FILE in names(tmp_path)


def test_what_differs_from_the_first_fetch_is_refused(server, known, sheets, tmp_path):
    fetch_sprites(tmp_path, server.url)
    server.files[ARCHIVE] = zipped(dict(sheets) | {"new.txt": b"a sound archive, but another"})
    with pytest.raises(ValueError, match="not the file of the first fetch"):
        fetch_sprites(tmp_path, server.url, force=True)
    assert names(tmp_path) == [FILE, "sprites.lock.json"]


def test_names_that_lead_elsewhere_are_not_looked_at(server, known, sheets, tmp_path):
    evil = {"../../body/0.png": b"x", "/etc/body/0.png": b"x", "deep/er/body/0.png": b"x"}
    memory = io.BytesIO(zipped(sheets))
    with zipfile.ZipFile(memory, "a") as archive:
        for name, data in evil.items():
            archive.writestr(name, data)
    server.files[ARCHIVE] = memory.getvalue()
    fetch_sprites(tmp_path, server.url)
    assert names(tmp_path) == [FILE, "sprites.lock.json"]


def test_disk_full_while_writing(server, known, tmp_path, monkeypatch):
    def half(path, **arrays):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", half)
    with pytest.raises(OSError, match="No space left"):
        fetch_sprites(tmp_path, server.url)
    assert not [name for name in names(tmp_path) if name.endswith(".npz")]


def test_help_teaches():
    command = [sys.executable, str(ROOT / "data_scripts" / "sprites.py"), "--help"]
    run = subprocess.run(command, capture_output=True, text=True, cwd="/")
    words = ("--url", "--out", "--lock", "--any-art", "SHA-256", "CC-BY-SA 3.0")
    assert run.returncode == 0 and all(word in run.stdout for word in words)
    assert re.search(r"Liberated\s+Pixel Cup", run.stdout)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_stopped_in_the_middle_of_the_download(server, tmp_path):
    server.moods[:] = ["hang"]
    script = str(ROOT / "data_scripts" / "sprites.py")
    command = [sys.executable, script, "--out", str(tmp_path), "--url", server.url, "--any-art"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.hanging.wait(60)
    threading.Event().wait(0.3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    kept = {name for name in names(tmp_path) if Path(name).suffix in (".zip", ".npz", ".json")}
    assert kept == set()
    server.release.set()
    fetch_sprites(tmp_path, server.url, any_art=True)
    assert FILE in names(tmp_path)
