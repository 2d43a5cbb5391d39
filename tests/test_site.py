"""The site in a real browser: nothing clipped, nothing asked of other hosts, all pictures there.

Skips where Chromium or its driver is missing (on Debian: apt install chromium chromium-driver).
"""

import json
import shutil
from pathlib import Path

import pytest

from vidcourse.runner import find_notebooks, stored_course

PAGES = ["index", "10_content_and_motion", "32_navs", "03_checkpoints"]
WIDTHS = {"desk": 1280, "phone": 390}
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
QUIET = """
--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-sync
--disable-background-networking --disable-component-update
""".split()

pytestmark = [
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with its driver"),
]


@pytest.fixture(scope="module")
def browser():
    selenium = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = selenium.ChromeOptions()
    options.binary_location = BROWSER
    for argument in QUIET:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = selenium.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def site(tmp_path_factory, root) -> Path:
    "The stored pages of a few notebooks."
    out = tmp_path_factory.mktemp("site")
    books = [page for page in PAGES if page != "index"]
    stored_course(find_notebooks(books, root / "nbs"), out)
    return out


LOOK = """
const done = arguments[arguments.length - 1];
const pictures = [...document.images];
pictures.forEach(picture => picture.loading = "eager");
Promise.all(pictures.map(picture => picture.decode().catch(() => 0))).then(() => {
  const scrolls = box => ["auto", "scroll"].includes(getComputedStyle(box).overflowX);
  done({
    width: document.documentElement.clientWidth,
    needed: document.documentElement.scrollWidth,
    clipped: [...document.querySelectorAll("pre")].filter(
      box => box.scrollWidth > box.clientWidth + 1 && !scrolls(box)).map(box => box.innerText),
    missing: pictures.filter(picture => !picture.naturalWidth).map(picture => picture.src),
    open: document.querySelectorAll("details[open]").length,
    folded: document.querySelectorAll("details").length,
    title: document.title,
  });
});
"""
OPEN = """
const still = document.createElement("style");  // what folds open fades in
still.textContent = "* { animation: none !important; transition: none !important; }";
document.head.append(still);
document.querySelectorAll("details").forEach(box => { box.open = true; });
"""
AXE = """
const done = arguments[arguments.length - 1];
axe.run().then(found => done(found.violations.map(
  v => [v.impact, v.id, String(v.nodes[0].target), v.nodes[0].failureSummary].join(" | "))));
"""


def visit(browser, path: Path) -> None:
    "Open a page; a driver may say that it is there when the last one still is."
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get(path.as_uri())
    there = "return document.readyState == 'complete' && location.href == arguments[0]"
    WebDriverWait(browser, 60).until(lambda b: b.execute_script(there, path.as_uri()))
    WebDriverWait(browser, 60).until(lambda b: b.execute_script("return document.links.length"))


def asked_for(browser) -> set[str]:
    "Addresses that the browser has asked for since the last call."
    messages = (
        json.loads(entry["message"])["message"] for entry in browser.get_log("performance")
    )
    return {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_in_a_browser(browser, site, page, width):
    size = dict(width=WIDTHS[width], height=900, deviceScaleFactor=1, mobile=width == "phone")
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("browser")
    asked_for(browser)
    visit(browser, site / f"{page}.html")
    seen = browser.execute_async_script(LOOK)
    assert seen["needed"] <= seen["width"], "the page scrolls sideways"
    assert not seen["clipped"] and not seen["missing"], seen
    assert seen["open"] == 0 and (seen["folded"] or page == "index"), seen
    assert "vidcourse" in seen["title"]
    outside = {a for a in asked_for(browser) if not a.startswith(("file:", "data:", "blob:"))}
    assert not outside, outside
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors, errors


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_page_for_everybody(browser, site, page, dark):
    "axe finds nothing serious, in folded things neither."
    axe = Path(pytest.importorskip("axe_core_python").__file__).parent / "axe.min.js"
    visit(browser, site / f"{page}.html")
    theme = "dark" if dark else "light"
    browser.execute_script(f"document.body.dataset.theme = {theme!r}")
    browser.execute_script(OPEN)  # what is folded lies, for axe, behind what is not
    browser.execute_script(axe.read_text(encoding="utf-8"))
    found = browser.execute_async_script(AXE)
    serious = [line for line in found if line.startswith(("serious", "critical"))]
    assert not serious, serious
