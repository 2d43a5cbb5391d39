"Dragging an object: the session, its widget, a real browser with a real kernel, and with none."

import json
import shutil
import socket
import subprocess
import sys
import time

import nbformat
import pytest
import torch
from torch import nn

from vidcourse.layered.control import centre_of
from vidcourse.layered.drag import DragWidget, Session, discs, sheet, twin
from vidcourse.layered.model import CONFIGS, Layered, hard
from vidcourse.layered.vq import Made

SIZE = 16


class Painter(nn.Module):
    "Paints white where the mask is, and nothing else."

    def forward(self, frame, mask):
        codes = torch.zeros(len(frame), 4, 4, dtype=torch.long)
        return Made((2 * mask - 1).expand_as(frame), torch.zeros(()), codes, codes)


class Bright(nn.Module):
    "Takes what is bright for the object."

    def forward(self, frame):
        return (frame.mean(1, keepdim=True) > 0).float()


def ideal() -> Layered:
    "A system that finds and paints white squares perfectly."
    system = Layered(CONFIGS["smoke"])
    system.networks["generator"].masks = Bright()
    system.networks["generator"].frames = Painter()
    return system


def squares() -> torch.Tensor:
    "Two scenes, a white square of 4 x 4 each."
    frames = -torch.ones(2, 3, SIZE, SIZE)
    frames[0, :, 6:10, 4:8] = 1
    frames[1, :, 2:6, 2:6] = 1
    return frames


@pytest.fixture
def session():
    return Session(ideal(), squares())


def place(session) -> list[float]:
    return centre_of(hard((session.shown[:, :1] + 1) / 2))[0].tolist()


# The session ----------------------------------------------------------------------------------


def test_a_drag_is_a_proposal_and_a_drop_settles(session):
    session.obey({"do": "drag", "matrix": [1, 0, 5, 0, 1, -2]})
    assert place(session) == [10.5, 5.5] and torch.equal(session.frame, squares()[:1])
    session.obey({"do": "drag", "matrix": [1, 0, 1, 0, 1, 0]})
    assert place(session) == [6.5, 7.5], "the second proposal starts from where the first did"
    session.obey({"do": "drop", "matrix": [1, 0, 3, 0, 1, 1]})
    assert place(session) == [8.5, 8.5] and torch.equal(session.frame, session.shown)
    session.obey({"do": "drop", "matrix": [1, 0, -1, 0, 1, 0]})
    assert place(session) == [7.5, 8.5]
    assert session.drift() == (0.0, 1.0)


def test_corners_stretch_about_the_middle(session):
    middle = 5.5, 7.5
    grown = [2, 0, -middle[0], 0, 2, -middle[1]]
    session.obey({"do": "drag", "matrix": grown})
    assert place(session) == [5.5, 7.5] and session.asked.sum() > 50


def test_a_brush_and_a_second_object(session):
    session.obey({"do": "paint", "points": [[12, 12]], "radius": 1.1, "last": True})
    assert place(session) == [12, 12] and session.asked.sum() == 5
    session.obey({"do": "reset"})
    session.obey({"do": "drag", "matrix": [1, 0, 6, 0, 1, 0], "two": True})
    assert session.asked.sum() == 32 and place(session) == [8.5, 7.5]


def test_steps_reset_scenes_and_mimic(session):
    for _ in range(2):
        session.obey({"do": "step", "shift": [2, 1]})
    assert place(session) == [9.5, 9.5] and session.path == [[2.0, 1.0]] * 2
    session.obey({"do": "scene", "scene": 1})
    assert place(session) == [3.5, 3.5]
    session.obey({"do": "mimic"})
    assert place(session) == [7.5, 5.5] and len(session.path) == 2
    session.obey({"do": "reset"})
    assert place(session) == [3.5, 3.5] and session.path == []


@pytest.mark.parametrize(
    "message, said",
    [
        (None, "nothing that can be done"),
        ({"do": "fly"}, "'fly'"),
        ({"do": "drag"}, "6 numbers"),
        ({"do": "drag", "matrix": [1, 0, float("nan"), 0, 1, 0]}, "finite"),
        ({"do": "drop", "matrix": [0, 0, 1, 0, 0, 1]}, "squeeze"),
        ({"do": "step", "shift": [1]}, "2 numbers"),
        ({"do": "step", "shift": "ab"}, "2 numbers"),
        ({"do": "paint", "points": []}, "1 to 2,000"),
        ({"do": "paint", "points": [[1, 1]] * 2001, "radius": 1}, "1 to 2,000"),
        ({"do": "paint", "points": [[1, None]], "radius": 1}, "finite"),
        ({"do": "paint", "points": [[1, 1]]}, "finite"),
        ({"do": "scene", "scene": "two"}, "finite"),
    ],
)
def test_messages_that_make_no_sense_change_nothing(session, message, said):
    session.obey({"do": "drop", "matrix": [1, 0, 2, 0, 1, 0]})
    before = session.shown.clone(), session.motion.clone(), list(session.path)
    with pytest.raises(ValueError, match=said):
        session.obey(message)
    assert torch.equal(session.shown, before[0]) and torch.equal(session.motion, before[1])
    assert session.path == before[2]


def test_discs():
    mask = discs([[3, 5], [10, 5]], 2, 12, 16)
    assert mask.shape == (1, 1, 12, 16) and mask.sum() == 26 and mask[0, 0, 5, 3] == 1


def test_the_widget_answers_in_words_and_pictures():
    widget = DragWidget(ideal(), squares())
    first, count = widget.frame, widget.answered
    widget.message = {"do": "drop", "matrix": [1, 0, 4, 0, 1, 0], "id": 1}
    assert widget.frame != first and widget.answered == count + 1
    assert widget.box == [8, 6, 12, 10] and "0.0 px" in widget.say
    widget.message = {"do": "nothing", "id": 2}
    assert widget.answered == count + 2 and "nothing that can be done" in widget.say
    assert [name for name, _ in widget.panels][0] == "mask" and len(widget.panels) == 5
    json.dumps(widget.panels)


# Without a kernel -----------------------------------------------------------------------------


def test_a_sheet_holds_every_shift():
    page = sheet(ideal(), squares(), 3, 2.0)
    assert page.shape == (2 * 3 * SIZE, 3 * SIZE, 3)
    right_down = page[2 * SIZE : 3 * SIZE, 2 * SIZE : 3 * SIZE, 0] / 127.5 - 1
    mask = torch.tensor(right_down)[None, None].float()
    assert centre_of(hard((mask + 1) / 2))[0].tolist() == [7.5, 9.5]


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
real = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with its driver")


@pytest.fixture(scope="module")
def browser():
    selenium = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = selenium.ChromeOptions()
    options.binary_location = BROWSER
    quiet = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run"
    for argument in (*quiet.split(), "--window-size=1200,1400"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = selenium.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


WHITE = """
const canvas = arguments[0], pen = canvas.getContext("2d");
const data = pen.getImageData(0, 0, canvas.width, canvas.height).data;
let n = 0, x = 0, y = 0;
for (let i = 0; i < data.length; i += 4) if (data[i + 2] > 120) {
  n++; x += (i / 4) % canvas.width; y += Math.floor(i / 4 / canvas.width);
}
const scale = SIZE / canvas.width;
return n ? [(x / n + 0.5) * scale - 0.5, (y / n + 0.5) * scale - 0.5] : null;
""".replace("SIZE", str(SIZE))


def drag(browser, canvas, start, end):
    "Press at a pixel of the frame, move, let go at another."
    from selenium.webdriver import ActionChains

    wide = canvas.size["width"] / SIZE

    def off(pixel):
        return [round((p + 0.5) * wide - canvas.size["width"] / 2) for p in pixel]

    chain = ActionChains(browser, duration=50).move_to_element_with_offset(canvas, *off(start))
    chain.click_and_hold()
    half = [(a + b) / 2 for a, b in zip(start, end)]
    for pixel in (half, end):
        chain.move_to_element_with_offset(canvas, *off(pixel))
    chain.release().perform()


def becomes(browser, canvas, wanted, seconds=30):
    "Wait until the white square is where it should be; where it is in the end."
    until = time.time() + seconds
    while time.time() < until:
        at = browser.execute_script(WHITE, canvas)
        if at and max(abs(a - b) for a, b in zip(at, wanted)) < 0.6:
            break
        time.sleep(0.3)
    return at


@real
def test_the_twin_answers_without_a_kernel(browser, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    page = twin(ideal(), squares(), count=9)
    assert len(page) < 1_000_000
    path = tmp_path / "twin.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><body>{page}", encoding="utf-8")
    browser.get_log("performance")
    browser.get(path.as_uri())
    canvas = browser.find_element(By.TAG_NAME, "canvas")
    assert becomes(browser, canvas, [5.5, 7.5]) == pytest.approx([5.5, 7.5], abs=0.6)
    drag(browser, canvas, [5, 7], [8, 9])
    assert becomes(browser, canvas, [8.5, 9.5], 5) == pytest.approx([8.5, 9.5], abs=0.6)
    canvas.send_keys(Keys.ARROW_LEFT)
    assert becomes(browser, canvas, [7.5, 9.5], 5) == pytest.approx([7.5, 9.5], abs=0.6)
    asked = [json.loads(entry["message"]) for entry in browser.get_log("performance")]
    addresses = [
        entry["message"]["params"]["request"]["url"]
        for entry in asked
        if entry["message"]["method"] == "Network.requestWillBeSent"
    ]
    assert not [a for a in addresses if not a.startswith(("file:", "data:", "chrome:"))]


# With a kernel --------------------------------------------------------------------------------


CELL = """
import sys
sys.path.insert(0, TESTS)
from test_layered_drag import ideal, squares
from vidcourse.layered.drag import DragWidget
DragWidget(ideal(), squares())
"""


@pytest.fixture
def lab(tmp_path, root):
    "The address of a JupyterLab that shows one notebook with the widget."
    pytest.importorskip("jupyterlab")
    about = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = nbformat.v4.new_notebook(metadata={"kernelspec": about})
    book.cells = [nbformat.v4.new_code_cell(CELL.replace("TESTS", repr(str(root / "tests"))))]
    nbformat.write(book, tmp_path / "drag.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
    ]
    command += [f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token="]
    command += [f"--ServerApp.root_dir={tmp_path}", "--LabApp.news_url=None"]
    with (tmp_path / "log.txt").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path)
        try:
            for _ in range(120):
                with socket.socket() as knock:
                    if knock.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/doc/tree/drag.ipynb"
        finally:
            server.terminate()
            server.wait(20)


@real
def test_a_drag_in_a_browser_moves_the_object_in_a_kernel(browser, lab):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(lab)
    wait = WebDriverWait(browser, 90)
    cell = wait.until(lambda b: b.find_element(By.CSS_SELECTOR, ".jp-CodeCell .cm-content"))
    time.sleep(3)
    cell.click()
    ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(
        Keys.SHIFT
    ).perform()
    canvas = wait.until(lambda b: b.find_element(By.CSS_SELECTOR, ".vc-drag canvas"))
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    assert becomes(browser, canvas, [5.5, 7.5]) == pytest.approx([5.5, 7.5], abs=0.6)
    drag(browser, canvas, [5, 7], [9, 10])
    assert becomes(browser, canvas, [9.5, 10.5]) == pytest.approx([9.5, 10.5], abs=0.6)
    canvas.send_keys(Keys.ARROW_LEFT)
    assert becomes(browser, canvas, [7.5, 10.5]) == pytest.approx([7.5, 10.5], abs=0.6)
