"""Reports in a real browser: headless Chromium, driven through a pipe with its DevTools protocol.

Where no chromium is installed the tests skip; with FLAXMED_REQUIRE_ORACLES=1 they fail.
"""

from __future__ import annotations

import base64
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from test_page import full_page, make, page_of, record_of

from flaxmed.evaluation import compare, comparison_figures
from flaxmed.evaluation.comparison_page import comparison_page

WIDTHS = (390, 1280)
READABLE = 14  # CSS pixels
LIMIT = 60  # seconds for any one answer

# Chromium reads commands from file descriptor 3 and answers on 4; first out of the way with ours.
START = (
    "import fcntl, os, sys; "
    "a, b = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]); "
    "os.dup2(a, 3); os.dup2(b, 4); os.execv(sys.argv[3], sys.argv[3:])"
)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


class Browser:
    """One chromium; ``look`` opens a file in a fresh page."""

    def __init__(self, path: str, profile: str):
        to_browser, self.commands = os.pipe()
        self.answers, from_browser = os.pipe()
        command = [sys.executable, "-c", START, str(to_browser), str(from_browser), path]
        self.process = subprocess.Popen(
            [*command, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.buffer, self.number, self.events = b"", 0, []

    def close(self):
        """End it."""
        os.close(self.commands)
        os.close(self.answers)
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(timeout=20)

    def call(self, method, session=None, **options):
        """One command, and its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": options}
        message |= {"sessionId": session} if session else {}
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        answer = self.wait(lambda m: m.get("id") == message["id"])
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def wait(self, wanted):
        """Read until the message that is wanted; events are kept."""
        for event in self.events:
            if wanted(event):
                return event
        limit = time.monotonic() + LIMIT
        while True:
            while b"\0" in self.buffer:
                line, self.buffer = self.buffer.split(b"\0", 1)
                message = json.loads(line)
                self.events += [message] if "method" in message else []
                if wanted(message):
                    return message
            ready, _, _ = select.select([self.answers], [], [], max(0, limit - time.monotonic()))
            assert ready, "chromium does not answer"
            piece = os.read(self.answers, 1 << 20)
            assert piece, "chromium has ended"
            self.buffer += piece

    def look(self, path, width, height=844):
        """Open a file at this width."""
        return View(self, path, width, height)


class View:
    """A file in a page of its own: what it said, what it asked for, how it looks."""

    def __init__(self, browser, path, width, height):
        self.browser = browser
        browser.events = []
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        address = path.resolve().as_uri()
        self.call("Page.navigate", url=address)
        browser.wait(lambda m: m.get("method") == "Page.loadEventFired")
        self.call("Runtime.evaluate", expression="0")  # what was logged meanwhile has arrived
        self.errors = [text for kind, text in self.said() if kind in ("error", "warning")]
        requests = [e["params"] for e in self.named("Network.requestWillBeSent")]
        urls = [request["request"]["url"] for request in requests]
        self.requests = [u for u in urls if u != address and not u.startswith("data:")]

    def call(self, method, **options):
        return self.browser.call(method, self.session, **options)

    def named(self, name):
        events = [e for e in self.browser.events if e["method"] == name]
        return [e for e in events if e.get("sessionId") == self.session]

    def said(self):
        """Console messages, exceptions and what the browser logged (such as a broken policy)."""
        for event in self.named("Runtime.consoleAPICalled"):
            words = [str(a.get("value", a.get("description"))) for a in event["params"]["args"]]
            yield event["params"]["type"], " ".join(words)
        for event in self.named("Runtime.exceptionThrown"):
            yield "error", event["params"]["exceptionDetails"]["text"]
        for event in self.named("Log.entryAdded"):
            yield event["params"]["entry"]["level"], event["params"]["entry"]["text"]

    def value(self, expression):
        """Of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def overflow(self):
        """Elements that reach beyond the window, but for what scrolls inside a box of its own, and
        cells of tables whose text does not fit."""
        return self.value(
            """(() => {
              const width = document.documentElement.clientWidth, found = [];
              if (document.documentElement.scrollWidth > width) found.push("the page");
              for (const e of document.body.querySelectorAll("*")) {
                const box = e.getBoundingClientRect();
                const cell = e.matches("td, th") && e.scrollWidth > e.clientWidth + 1;
                if (cell || (!e.parentElement.closest(".scroll") && box.right > width + 0.5))
                  found.push(e.tagName + " " + e.textContent.trim().slice(0, 40));
              }
              return found;
            })()"""
        )

    def smallest_text(self):
        """Size in CSS pixels of the smallest text that shows."""
        return self.value(
            """(() => {
              const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
              let least = Infinity;
              while (walker.nextNode()) {
                const e = walker.currentNode.parentElement;
                if (walker.currentNode.data.trim() && e.getClientRects().length)
                  least = Math.min(least, parseFloat(getComputedStyle(e).fontSize));
              }
              return least;
            })()"""
        )

    def screenshot(self):
        """The whole page as PNG."""
        taken = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(taken["data"])

    def pdf(self):
        """The page as it prints."""
        return base64.b64decode(self.call("Page.printToPDF")["data"])


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    path = shutil.which("chromium")
    if path is None:
        missing = "no chromium on PATH (Debian: the package chromium)"
        if os.environ.get("FLAXMED_REQUIRE_ORACLES") == "1":
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    started = Browser(path, str(tmp_path_factory.mktemp("profile")))
    yield started
    started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """By kind a report as a file."""
    folder = tmp_path_factory.mktemp("pages")
    made = {}
    texts = {kind: full_page(kind) for kind in ("binary", "multilabel")}
    for kind, text in {**texts, "comparison": comparison()}.items():
        made[kind] = folder / f"{kind}.html"
        made[kind].write_text(text, encoding="utf-8")
    return made


def comparison():
    """The page of a comparison of three networks, one with seeds."""
    names = ("resnet18", "densenet121", "xception")
    given = {name: make(seed=i) for i, name in enumerate(names)}
    given["xception"] = [make(seed=i, skill=1.0) for i in (3, 4, 5)]
    found = compare(given)
    records = {name: record_of(make()) for name in names}
    return comparison_page(found, figures=comparison_figures(found), records=records)


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["binary", "multilabel", "comparison"])
def test_a_report_opens_cleanly(browser, pages, kind, width):
    view = browser.look(pages[kind], width)
    assert view.errors == []
    assert view.requests == []
    assert view.overflow() == []
    assert view.smallest_text() >= READABLE
    assert view.value("document.documentElement.clientWidth") == width
    broken = "[...document.images].filter(i => !i.naturalWidth).length"
    assert view.value("document.images.length") >= 1
    assert view.value(broken) == 0
    assert view.screenshot().startswith(b"\x89PNG")
    view.value("document.querySelectorAll('details').forEach(d => d.setAttribute('open', ''))")
    assert view.overflow() == []
    assert view.smallest_text() >= READABLE
    shown = "[...document.querySelectorAll('.more table')].map(e => e.offsetHeight)"
    assert len(view.value(shown)) == (0 if kind == "comparison" else 1)
    assert all(height > 300 for height in view.value(shown))


@pytest.mark.slow
def test_a_report_prints_whole(browser, pages):
    view = browser.look(pages["binary"], 1280)
    view.value("document.querySelectorAll('details').forEach(d => d.removeAttribute('open'))")
    view.call("Emulation.setEmulatedMedia", media="print")
    heights = "[...document.querySelectorAll('details .scroll')].map(e => e.offsetHeight)"
    shown = "[...document.querySelectorAll('details .scroll')].every(e => e.checkVisibility())"
    assert min(view.value(heights)) > 20
    assert view.value(shown)
    content = view.pdf()
    assert content.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) >= 2


PAPER = 687  # CSS pixels: A4 within the margins


@pytest.mark.slow
def test_every_metric_of_many_subgroups_fits_on_paper(browser, tmp_path):
    p = make()
    sites = {i: f"Hospital {j % 8}" for j, i in enumerate(p.ids.tolist())}
    path = tmp_path / "sites.html"
    path.write_text(page_of(p, subgroups={"site": sites})[0], encoding="utf-8")
    view = browser.look(path, PAPER)
    folded = "[...document.querySelectorAll('.more .scroll')]"
    assert view.value(f"{folded}.filter(e => e.checkVisibility()).length") == 0
    view.call("Emulation.setEmulatedMedia", media="print")
    assert view.value(f"{folded}.filter(e => e.checkVisibility()).length") == 2
    assert view.value(f"Math.max(...{folded}.map(e => e.scrollWidth - e.clientWidth))") <= 0
    assert view.value("getComputedStyle(document.querySelector('.more summary')).display") == "none"


BROKEN = {
    "a console error": "<script>console.error('broken')</script>",
    "an outside picture": '<img src="https://outside.invalid/a.png" alt="">',
    "an outside style": '<link rel="stylesheet" href="https://outside.invalid/a.css">',
    "a wide element": '<div style="width: 2000px; height: 5px"></div>',
    "a full cell": '<div class="scroll"><table><tr><th style="max-width: 40px">'
    "optimizerlearningrate</th><td>1</td></tr></table></div>",
    "small print": '<p style="font-size: 9px">small print</p>',
}


@pytest.mark.slow
@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("policy", [True, False])
def test_what_is_wrong_is_seen(browser, pages, tmp_path, what, policy):
    """Each check above must find what it is there to find; without the policy as well."""
    text = pages["binary"].read_text(encoding="utf-8").replace("</main>", BROKEN[what] + "</main>")
    if not policy:
        text = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", text)
    path = tmp_path / "broken.html"
    path.write_text(text, encoding="utf-8")
    view = browser.look(path, 390)
    seen = {
        "a console error": view.errors,
        "an outside picture": view.requests,
        "an outside style": view.requests,
        "a wide element": view.overflow(),
        "a full cell": view.overflow(),
        "small print": view.smallest_text() < READABLE,
    }
    assert seen[what]
    if not what.startswith(("a console", "an outside")):
        assert view.errors == []


def test_the_page_that_is_looked_at_is_a_whole_one():
    assert np.all([part in full_page("binary") for part in ("ROC curve", "The worst errors")])
