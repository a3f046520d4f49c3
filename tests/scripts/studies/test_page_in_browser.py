"""A study's page in a real browser: opened from disk, on a phone and on a desk, in light and in dark, and on paper.

Chromium is driven through its debugging pipe (file descriptors 3 and 4, JSON messages that end in a zero byte), so that
nothing but the browser is needed.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the study's page is not seen in a browser")
SECONDS = 60


class Browser:
    """A headless Chromium with one tab."""

    def __init__(self, profile: str) -> None:
        to_read, self._to_browser = os.pipe()
        self._from_browser, to_write = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "--disable-background-networking"]
        # Descriptors 3 and 4 are the browser's; the shell puts ours there.
        script = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, CHROMIUM, *flags, "about:blank"],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer, self._number, self._session = b"", 0, None
        self.events: list[dict] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters) -> dict:
        """Call a method of the DevTools protocol; events that arrive meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _receive(self) -> dict:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from_browser], [], [], max(deadline - time.monotonic(), 0))
            chunk = os.read(self._from_browser, 1 << 20) if ready else b""
            if not chunk:
                raise TimeoutError("Chromium does not answer")
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer = json.loads(message)
        if "id" not in answer:
            self.events.append(answer)
        return answer

    def open(self, page: Path, width: int, scheme: str) -> None:
        """Load the page in a window of that width, for a reader who prefers that colour scheme."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 700
        )
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.send("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._receive()

    def run(self, script: str):
        """The value of a JavaScript function's body."""
        result = self.send("Runtime.evaluate", expression=f"(() => {{{script}}})()", returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def complaints(self) -> list[dict]:
        """Errors on the console, exceptions, and everything asked of a network."""
        return [event for event in self.events if _is_complaint(event["method"], event.get("params", {}))]

    def close(self) -> None:
        os.close(self._to_browser)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from_browser)


def _is_complaint(method: str, parameters: dict) -> bool:
    if method == "Runtime.consoleAPICalled":
        return parameters["type"] in ("error", "warning")
    if method == "Network.requestWillBeSent":
        return not parameters["request"]["url"].startswith(("file:", "data:"))
    return method in ("Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(profile)
        yield browser
        browser.close()


def test_complaints_are_heard(browser, tmp_path):
    """What the other tests rest on: a page that does wrong is found out."""
    bad = tmp_path / "bad.html"
    bad.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("no"); nothing();</script>')
    browser.open(bad, 390, "light")
    assert {event["method"] for event in browser.complaints()} >= {
        "Runtime.consoleAPICalled",
        "Runtime.exceptionThrown",
        "Network.requestWillBeSent",
    }


WIDTHS = pytest.mark.parametrize("width", [390, 1280])


@WIDTHS
def test_it_opens_from_disk_without_a_complaint_and_fits_the_window(browser, whole_report, width):
    browser.open(whole_report, width, "light")
    assert browser.run("return document.title").startswith("CIFAR-100")
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.complaints() == []


@WIDTHS
def test_every_figure_is_there_and_inside_the_window(browser, whole_report, width):
    browser.open(whole_report, width, "light")
    figures = browser.run(
        """return [...document.querySelectorAll('figure')].map(figure =>
            [...figure.querySelectorAll('svg, img')].map(drawing => drawing.getBoundingClientRect())
                .filter(box => box.width > 0).map(box => [box.left, box.right, box.height]))"""
    )
    assert len(figures) == 8  # seven drawn ones and the panel of an analysis
    for (left, right, height), *others in figures:
        assert not others  # either the wide drawing or the narrow one
        assert 0 <= left < right <= width
        assert right - left > 200
        assert height > 80


@WIDTHS
def test_text_in_figures_can_be_read_and_is_not_cut_off(browser, whole_report, width):
    browser.open(whole_report, width, "light")
    texts = browser.run(
        """return [...document.querySelectorAll('figure svg')].flatMap(svg => {
            const frame = svg.getBoundingClientRect();
            return frame.width ? [...svg.querySelectorAll('text')].map(text => {
                const box = text.getBoundingClientRect();
                const size = parseFloat(getComputedStyle(text).fontSize) * frame.width / svg.viewBox.baseVal.width;
                return [text.textContent, size, box.left - frame.left, frame.right - box.right,
                        box.top - frame.top, frame.bottom - box.bottom];
            }) : [];
        })"""
    )
    assert len(texts) > 100
    for text, size, *margins in texts:
        assert size >= 9.5, f"{text!r} is {size:.1f} pixels high"
        assert min(margins) > -2, f"{text!r} leaves its figure: {margins}"


@WIDTHS
def test_everything_that_is_folded_opens(browser, whole_report, width):
    browser.open(whole_report, width, "light")
    assert browser.run("return document.querySelectorAll('details[open]').length") == 0
    folds = browser.run(
        """return [...document.querySelectorAll('details')].map(fold => {
            fold.querySelector('summary').click();
            const inside = fold.lastElementChild.getBoundingClientRect();
            return [fold.open, inside.height, inside.left, inside.right];
        })"""
    )
    assert len(folds) > 60
    for is_open, height, left, right in folds:
        assert is_open
        assert height > 20
        assert 0 <= left < right <= width
    assert browser.run("return document.documentElement.scrollWidth") <= width


# Contrast as WCAG 2 defines it, of every piece of text against the first background behind it that is not transparent.
CONTRAST = """
const light = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(value => {
    value /= 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
}).reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
const behind = element => {
    for (let at = element; at; at = at.parentElement) {
        const colour = getComputedStyle(at).backgroundColor;
        if (!/, 0\\)$/.test(colour) && colour !== 'transparent') return colour;
    }
    return null;
};
document.querySelectorAll('details').forEach(fold => { fold.open = true; });
return [...document.querySelectorAll('body *')].filter(element =>
    [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()) &&
    element.getBoundingClientRect().width > 0
).map(element => {
    const style = getComputedStyle(element), inSvg = element instanceof SVGElement;
    const colours = [inSvg ? style.fill : style.color, behind(inSvg ? element.ownerSVGElement : element)];
    const [a, b] = colours.map(light);
    return [element.textContent.slice(0, 40), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
});
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast(browser, whole_report, scheme):
    browser.open(whole_report, 1280, scheme)
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    contrasts = browser.run(CONTRAST)
    assert len(contrasts) > 500
    for text, contrast in contrasts:
        assert contrast >= 4.5, f"{text!r} has a contrast of {contrast:.2f}"
    assert browser.complaints() == []


def test_every_anchor_leads_to_its_section(browser, whole_report):
    browser.open(whole_report, 1280, "light")
    missing = browser.run(
        """return [...document.querySelectorAll('a[href^="#"]')].map(link => link.getAttribute('href').slice(1))
            .filter(anchor => !document.getElementById(anchor))"""
    )
    assert missing == []


def test_on_paper_nothing_is_wider_than_the_sheet(browser, whole_report):
    """A4 with the page's own margins: 182 mm, 688 pixels of text."""
    browser.open(whole_report, 688, "light")
    browser.send("Emulation.setEmulatedMedia", media="print")
    try:
        wide = browser.run(
            """document.querySelectorAll('details').forEach(fold => { fold.open = true; });
            return [...document.querySelectorAll('figure, table, pre, p, h1, h2')]
                .filter(element => element.getBoundingClientRect().right > 689).map(element => element.textContent)"""
        )
        assert wide == []
        pdf = base64.b64decode(browser.send("Page.printToPDF", preferCSSPageSize=True)["data"])
        assert pdf.startswith(b"%PDF")
    finally:
        browser.send("Emulation.setEmulatedMedia", media="")
