"Fetching over a local server that misbehaves: broken lines, damaged files, evil archives."

import http.server
import io
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vidcourse import files
from vidcourse.data import Clips
from vidcourse.files import ACTIONS, PEOPLE, fetch, fetch_weizmann, fetched, unpack, within
from vidcourse.video import write

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # data_scripts is not part of the package

from data_scripts.weizmann import main  # noqa: E402


def drip(file, data):
    "A byte now and then, until nobody listens."
    for k in range(len(data)):
        file.write(data[k : k + 1])
        file.flush()
        threading.Event().wait(0.02)


def download(url, folder, lock, **options):
    "An archive that is put to use: the block around it ends well."
    with fetched(url, folder, lock, **options) as path:
        return path


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, data = self.server, self.server.files.get(self.path)
        server.asked.append(self.path)
        if data is None:
            return self.send_error(404)
        mood = server.moods.pop(0) if server.moods else "well"
        if mood == "busy":
            return self.send_error(503)
        if mood == "painted":
            return self.send_error(500, "\x1b[31mred\x07")
        if mood == "no http":
            return drip(self.wfile, b"220 ftp ready\r\n")
        if mood == "slow head":
            return drip(self.wfile, b"HTTP/1.0 200 OK\r\n" + b"X-Padding: x\r\n" * 100)
        if mood == "damaged":
            data = (
                data[: len(data) // 2]
                + bytes([data[len(data) // 2] ^ 255])
                + data[len(data) // 2 + 1 :]
            )
        self.send_response(200)
        if mood != "cut silently":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if mood == "drip":
            return drip(self.wfile, data)
        self.wfile.write(data[: len(data) // 2] if mood.startswith(("cut", "hang")) else data)
        if mood == "hang":
            self.wfile.flush()
            server.hanging.set()
            server.release.wait(20)
        return None

    def log_message(self, *args):
        pass


def videos(tmp, action):
    "Nine small films of one action, as a zip; a bright bar moves on the right."
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for p, person in enumerate(PEOPLE):
            clip = np.full((6 + p, 36, 45, 3), 60 + 10 * p, np.uint8)
            for t in range(len(clip)):
                clip[t, 4:30, 38 + t % 5] = 250
            path = write(tmp / "film.mp4", clip)
            archive.writestr(
                f"{'sub/' if p == 3 else ''}{person}_{action}.avi", path.read_bytes()
            )
        archive.writestr("readme.txt", "not a film")
    return memory.getvalue()


@pytest.fixture(scope="session")
def archives(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("films")
    return {f"/db/{action}.zip": videos(tmp, action) for action in ACTIONS}


@pytest.fixture
def server(archives, monkeypatch):
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.files, server.moods, server.asked = dict(archives), [], []
    server.hanging, server.release = threading.Event(), threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/db"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


def test_whole_run(server, tmp_path, capsys):
    assert main(["--out", str(tmp_path), "--base-url", server.url + "/"]) == 0
    assert (
        names(tmp_path) == ["weizmann.lock.json", "weizmann64.npz"]
        and not (tmp_path / "weizmann-archives").exists()
    )
    assert str(tmp_path / "weizmann64.npz") in capsys.readouterr().out
    clips = Clips.from_npz(tmp_path / "weizmann64.npz")
    assert len(clips) == 36 and clips.size == (64, 64) and clips.label_names == ACTIONS
    assert clips.lengths.tolist() == [
        6 + p for p in range(9) for _ in range(4)
    ] and clips.extra["person_names"].tolist() == list(PEOPLE)
    columns = clips.clip(0).astype(float).std(0).mean((0, 2))
    assert columns.max() > 20 and columns[-3:].max() < 0.5 * columns.max(), (
        "the moving bar on the right was cut off"
    )


def test_second_run_asks_nobody_and_force_verifies(server, tmp_path):
    fetch_weizmann(tmp_path, server.url)
    server.asked.clear()
    fetch_weizmann(tmp_path, server.url)
    assert not server.asked
    fetch_weizmann(tmp_path, server.url, force=True, keep=True)
    assert len(server.asked) == 4 and len(names(tmp_path / "weizmann-archives")) == 4
    fetch_weizmann(tmp_path, server.url, force=True)
    assert len(server.asked) == 4, "archives that were kept and are right need no download"


@pytest.mark.parametrize("moods", [["cut"], ["cut", "cut"], ["busy", "cut"]])
def test_broken_connection_is_tried_again(server, tmp_path, moods):
    server.moods[:] = moods
    path = download(server.url + "/bend.zip", tmp_path / "in", tmp_path / "lock.json")
    assert (
        path.read_bytes() == server.files["/db/bend.zip"]
        and len(server.asked) == len(moods) + 1
    )


def test_connection_that_never_holds(server, tmp_path, capsys):
    server.moods[:] = ["cut"] * 3
    assert main(["--out", str(tmp_path), "--base-url", server.url]) == 1
    assert names(tmp_path) == [] and "broke off after" in capsys.readouterr().err


def test_run_goes_on_where_it_was_interrupted(server, tmp_path):
    server.moods[:] = ["well", "well", "cut", "cut", "cut"]
    with pytest.raises(ConnectionError, match="wave1.zip"):
        fetch_weizmann(tmp_path, server.url)
    assert names(tmp_path) == [
        "weizmann-archives/bend.zip",
        "weizmann-archives/jack.zip",
        "weizmann.lock.json",
    ]
    server.asked.clear()
    fetch_weizmann(tmp_path, server.url)
    assert server.asked == ["/db/wave1.zip", "/db/wave2.zip"] and "weizmann64.npz" in names(
        tmp_path
    )


def test_a_whole_archive_of_no_use_is_not_the_law(server, tmp_path):
    "What was refused when it was used is neither kept nor recorded, and a repaired server helps."
    lock = tmp_path / "lock.json"
    with (
        pytest.raises(ValueError, match="no good"),
        fetched(server.url + "/bend.zip", tmp_path / "in", lock) as path,
    ):
        assert path.exists() and not lock.exists()
        raise ValueError("no good")
    assert names(tmp_path) == []
    server.files["/db/bend.zip"] = server.files["/db/jack.zip"]
    download(server.url + "/bend.zip", tmp_path / "in", lock)
    assert names(tmp_path) == ["in/bend.zip", "lock.json"]
    with (
        pytest.raises(ValueError, match="no good"),
        fetched(server.url + "/bend.zip", tmp_path / "in", lock),
    ):
        raise ValueError("no good")
    assert names(tmp_path) == ["in/bend.zip", "lock.json"], "what is recorded stays"


def test_a_repaired_server_helps(server, tmp_path):
    whole = server.files["/db/jack.zip"]
    server.files["/db/jack.zip"] = without(whole, "moshe")
    with pytest.raises(
        ValueError, match="1 of the 9 videos are missing in jack.zip: moshe_jack"
    ):
        fetch_weizmann(tmp_path, server.url)
    assert names(tmp_path) == ["weizmann-archives/bend.zip", "weizmann.lock.json"]
    assert list(json.loads((tmp_path / "weizmann.lock.json").read_text())) == ["bend.zip"]
    server.files["/db/jack.zip"] = whole
    assert len(Clips.from_npz(fetch_weizmann(tmp_path, server.url))) == 36


@pytest.mark.parametrize("mood", ["drip", "slow head"])
def test_a_server_that_drips(server, tmp_path, monkeypatch, mood):
    monkeypatch.setattr(files, "PATIENCE", 0.3)
    server.moods[:] = [mood] * 3
    words = "too slow: [0-9]+ bytes in" if mood == "drip" else "no answer within 0.3 seconds"
    with pytest.raises(ConnectionError, match=words):
        download(server.url + "/bend.zip", tmp_path / "in", tmp_path / "lock.json")
    assert len(server.asked) == 3 and names(tmp_path) == []


def test_what_does_not_speak_http_is_tried_again(server, tmp_path):
    server.moods[:] = ["no http"]
    download(server.url + "/bend.zip", tmp_path / "in", tmp_path / "lock.json")
    server.moods[:] = ["no http"] * 3
    with pytest.raises(ConnectionError, match="could not be fetched: .*220 ftp ready"):
        download(server.url + "/jack.zip", tmp_path / "in", tmp_path / "lock.json")
    assert len(server.asked) == 5


def test_no_reason_paints_the_terminal(server, tmp_path):
    server.moods[:] = ["painted"] * 3
    with pytest.raises(ConnectionError) as caught:
        download(server.url + "/bend.zip", tmp_path / "in", tmp_path / "lock.json")
    assert "\x1b" not in str(caught.value) and r"\x1b[31mred\x07" in str(caught.value)
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("\x1b[2Jfilm.avi", bytes(500))
    data = bytearray(memory.getvalue())
    data[100] ^= 255
    server.files["/db/bend.zip"] = bytes(data)
    with pytest.raises(ValueError, match="damaged") as caught:
        download(server.url + "/bend.zip", tmp_path / "in", tmp_path / "lock.json")
    assert str(caught.value).isprintable()


def test_within():
    assert within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)
    with pytest.raises(TimeoutError, match="no answer within 0.05 seconds"):
        within(0.05, lambda: threading.Event().wait(5))


@pytest.mark.parametrize("text", ["{half", "[]", '{"bend.zip": 3}', '{"bend.zip": {}}'])
def test_a_lock_file_that_is_none(server, tmp_path, text):
    (tmp_path / "lock.json").write_text(text)
    with pytest.raises(ValueError, match="no lock file"):
        download(server.url + "/bend.zip", tmp_path / "in", tmp_path / "lock.json")
    assert not server.asked


@pytest.mark.parametrize("mood", ["damaged", "cut silently"])
def test_damage_at_first_fetch_is_neither_kept_nor_recorded(server, tmp_path, mood):
    server.moods[:] = [mood]
    with pytest.raises(ValueError, match="bend.zip is damaged"):
        download(server.url + "/bend.zip", tmp_path / "in", tmp_path / "lock.json")
    assert names(tmp_path) == []
    download(server.url + "/bend.zip", tmp_path / "in", tmp_path / "lock.json")
    assert names(tmp_path) == ["in/bend.zip", "lock.json"]


def test_what_differs_from_the_first_fetch_is_refused(server, tmp_path):
    lock = tmp_path / "lock.json"
    path = download(server.url + "/bend.zip", tmp_path / "in", lock)
    recorded = lock.read_text()
    path.unlink()
    server.files["/db/bend.zip"] = server.files[
        "/db/jack.zip"
    ]  # a sound archive, but another one
    with pytest.raises(ValueError, match="not the file of the first fetch.*lock.json"):
        download(server.url + "/bend.zip", tmp_path / "in", lock)
    assert names(tmp_path) == ["lock.json"] and lock.read_text() == recorded


def test_damaged_archive_on_disk_is_fetched_again(server, tmp_path):
    path = download(server.url + "/bend.zip", tmp_path / "in", tmp_path / "lock.json")
    path.write_bytes(path.read_bytes()[:100])
    download(server.url + "/bend.zip", tmp_path / "in", tmp_path / "lock.json")
    assert path.read_bytes() == server.files["/db/bend.zip"]


def test_missing_on_the_server_is_not_tried_again(server, tmp_path):
    with pytest.raises(ConnectionError, match="404"):
        download(server.url + "/nothing.zip", tmp_path, tmp_path / "lock.json")
    assert server.asked == ["/db/nothing.zip"] and names(tmp_path) == []


def test_nobody_there(tmp_path, monkeypatch):
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    with pytest.raises(ConnectionError, match="could not be fetched"):
        download("http://127.0.0.1:9/bend.zip", tmp_path, tmp_path / "lock.json")


def test_too_large(server, tmp_path):
    with pytest.raises(ValueError, match="larger than"):
        download(server.url + "/bend.zip", tmp_path / "in", tmp_path / "lock.json", limit=1000)
    assert names(tmp_path) == []


def without(data, person, cut=None):
    "An archive without a person's films, or with the first `cut` bytes of each of these."
    memory = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(memory, "w") as new,
    ):
        for info in old.infolist():
            film = old.read(info)
            if person not in info.filename:
                new.writestr(info, film)
            elif cut:
                new.writestr(info.filename, film[:cut])
    return memory.getvalue()


def test_a_video_is_broken(server, tmp_path):
    server.files["/db/jack.zip"] = without(server.files["/db/jack.zip"], "moshe", cut=200)
    with pytest.raises(ValueError, match="moshe_jack.avi"):
        fetch_weizmann(tmp_path, server.url)
    assert names(tmp_path) == ["weizmann-archives/bend.zip", "weizmann.lock.json"]


def test_disk_full_while_writing(server, tmp_path, monkeypatch):
    def half(path, **arrays):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(OSError, match="No space left"):
        fetch_weizmann(tmp_path, server.url)
    assert not [name for name in names(tmp_path) if name.endswith(".npz")]


def make_zip(path, *entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data, *link in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if link else 0o100644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return path


@pytest.mark.parametrize(
    "entries, word",
    [
        ([("../eli_bend.avi", b"x")], "leads out"),
        ([("a/../../eli_bend.avi", b"x")], "leads out"),
        ([("/tmp/eli_bend.avi", b"x")], "leads out"),
        ([("..\\eli_bend.avi", b"x")], "leads out"),
        ([("C:/eli_bend.avi", b"x")], "leads out"),
        ([("eli_bend.avi", b"/etc/passwd", "link")], "leads out"),
        ([("eli_bend.avi", b"x"), ("../notes.txt", b"x")], "leads out"),
        ([("eli_bend.avi", b"x"), ("b/eli_bend.avi", b"y")], "twice"),
        ([("eli_bend.avi", bytes(3000))], "more than the"),
        ([("./../eli_bend.avi", b"x")], "leads out"),
        ([("a//../../eli_bend.avi", b"x")], "leads out"),
        ([("a/./../../eli_bend.avi", b"x")], "leads out"),
        ([("a/C:eli_bend.avi", b"x")], "leads out"),
    ],
)
def test_evil_archives(tmp_path, entries, word):
    archive = make_zip(tmp_path / "evil.zip", *entries)
    with pytest.raises(ValueError, match=word):
        unpack(archive, tmp_path / "out" / "in", r"\w+\.avi", limit=2000)
    assert names(tmp_path) == ["evil.zip"]


def test_unpack_takes_only_what_was_asked_for(tmp_path):
    archive = make_zip(
        tmp_path / "a.zip",
        ("deep/eli_bend.avi", b"film"),
        ("deep/x.sh", b"rm"),
        ("eli_bend.avi.exe", b"x"),
    )
    assert unpack(archive, tmp_path / "out", r"[a-z]+_bend\.avi") == {
        "eli_bend.avi": tmp_path / "out" / "eli_bend.avi"
    }
    assert names(tmp_path / "out") == ["eli_bend.avi"]


def test_unknown_data_set():
    with pytest.raises(ValueError, match="known: weizmann"):
        fetch("wiezmann")
    with pytest.raises(ValueError, match="drawn"):
        fetch("shapes")


def test_help_teaches():
    run = subprocess.run(
        [sys.executable, str(ROOT / "data_scripts" / "weizmann.py"), "--help"],
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert run.returncode == 0 and all(
        word in run.stdout for word in ("--base-url", "--out", "--lock", "SHA-256")
    )


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_stopped_in_the_middle_of_a_download(server, tmp_path, number, status):
    "ctrl-C, or a kill, half-way: nothing half-written has a final name, the next run succeeds."
    server.moods[:] = ["well", "hang"]
    command = [
        sys.executable,
        str(ROOT / "data_scripts" / "weizmann.py"),
        "--out",
        str(tmp_path),
        "--base-url",
        server.url,
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.hanging.wait(60)
    threading.Event().wait(0.3)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == status
    assert {n for n in names(tmp_path) if Path(n).suffix in (".zip", ".npz", ".json")} == {
        "weizmann-archives/bend.zip",
        "weizmann.lock.json",
    }
    assert list(json.loads((tmp_path / "weizmann.lock.json").read_text())) == ["bend.zip"]
    server.release.set()
    fetch_weizmann(tmp_path, server.url)
    assert len(Clips.from_npz(tmp_path / "weizmann64.npz")) == 36
