"""The dashboard in a real Chromium: one server and one browser over a reader's whole visit.

Screenshots of every page go to $SGTUNE_SCREENSHOTS, or to the test's own folder.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from dashboard_scenes import begin, live_trial, measured_machine, write_live, write_records
from playwright.sync_api import Browser, BrowserContext, Error, Page, Request, expect, sync_playwright

from hwprobe.profile import save_profile
from tests.patience import in_one_of_three
from tuner.evidence.live_state import RunState
from tuner.evidence.trial_lines import read_trials

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
WAIT_MS = 60_000
# Streamlit asks for these below the address of a page first, and then at the root.
HARMLESS = re.compile(r"/_stcore/(health|host-config)$")

expect.set_options(timeout=WAIT_MS)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass
class Visit:
    """A browser looking at a served folder of runs, and what it must not do."""

    url: str
    runs: Path
    browser: Browser
    shots: Path
    strangers: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def context(self, width: int = 1440, scheme: str = "light") -> BrowserContext:
        made = self.browser.new_context(
            viewport={"width": width, "height": 1000}, color_scheme=scheme, accept_downloads=True
        )  # type: ignore[arg-type]  # fmt: skip
        made.set_default_timeout(WAIT_MS)
        return made

    def open(self, context: BrowserContext, path: str = "") -> Page:
        """Open a page and wait until its script has run and its figures are drawn."""
        page = context.new_page()
        page.on("request", self._request)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self._console(message.type, message.text, message.location["url"]))
        page.goto(f"{self.url}/{path}")
        self.settle(page)
        return page

    def settle(self, page: Page) -> None:
        """Wait for the heading, and for the script to have ended."""
        expect(page.locator("h3").first).to_be_visible(timeout=WAIT_MS)
        expect(page.get_by_test_id("stStatusWidget")).to_have_count(0, timeout=WAIT_MS)
        expect(page.get_by_test_id("stSkeleton")).to_have_count(0, timeout=WAIT_MS)

    def shoot(self, page: Page, name: str) -> None:
        """Write a picture of the whole page, however long it is."""
        width = page.viewport_size["width"] if page.viewport_size else 1440
        main = page.get_by_test_id("stMain")
        page.set_viewport_size({"width": width, "height": min(4000, int(main.evaluate("e => e.scrollHeight")) + 20)})
        page.mouse.move(0, 0)
        page.wait_for_function("document.fonts.status === 'loaded'")
        page.screenshot(path=self.shots / f"{name}.png", animations="disabled")
        page.set_viewport_size({"width": width, "height": 1000})

    def _request(self, request: Request) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.strangers.append(request.url)

    def _console(self, kind: str, text: str, source: str) -> None:
        if kind == "error" and not HARMLESS.search(source):
            self.complaints.append(f"{text} ({source})")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists():
        why = f"no {CHROMIUM}: apt-get install -y chromium"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield launched
        launched.close()


@contextmanager
def visiting(browser: Browser, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    """A dashboard of its own over a folder of its own; it must end when it is told to, and free its port."""
    runs = tmp_path_factory.mktemp("visited")
    shutil.copytree(finished, runs / "small")
    save_profile(measured_machine(), runs / "measured.json")
    shots = Path(os.environ.get("SGTUNE_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    shots.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "tuner.cli.main", "dashboard", "--runs", str(runs), "--port", str(port), "--no-browser"],
        env=os.environ | {"PYTHONSAFEPATH": "1"},
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_healthy(server, url)
        yield Visit(url, runs, browser, shots)
    finally:
        server.terminate()
        assert server.wait(30) == 0
    with socket.socket() as probe:  # the child that served has ended with it
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def wait_until_healthy(server: subprocess.Popen[bytes], url: str) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail("the server did not become healthy within a minute")


def plan_inputs_change_the_answer_and_the_link_keeps_them(visit: Visit) -> None:
    context = visit.context()
    page = visit.open(context)
    expect(page.locator("h3").first).to_have_text(
        re.compile(
            r"1,024 clients fit on one node at [\d.]+ tok/s each \([\d.]+ with the wait\); KV headroom [\d,]+ GiB\."
        )
    )
    clients = page.get_by_label("Clients", exact=True)
    clients.fill("64")
    clients.press("Enter")
    expect(page.locator("h3").first).to_contain_text("64 clients fit on one node")
    expect(page).to_have_url(re.compile("clients=64"))
    visit.settle(page)
    shown = page.get_by_test_id("stSelectbox").filter(has_text="Configuration shown below").locator("input")
    title = page.get_by_test_id("stMarkdown").filter(has_text="Memory of one GPU")
    expect(title).to_contain_text(shown.input_value().split(". ")[1])
    visit.shoot(page, "plan")
    again = visit.open(context, page.url.removeprefix(visit.url).lstrip("/"))
    expect(again.locator("h3").first).to_contain_text("64 clients fit on one node")
    context.close()


def a_slider_answers_what_if(visit: Visit) -> None:
    context = visit.context()
    page = visit.open(context)
    tile = page.get_by_test_id("stMetric").filter(has_text="Left free")
    expect(tile).to_contain_text("no change")
    page.get_by_role("slider", name="mem_fraction_static").press("ArrowLeft")
    expect(tile).to_contain_text("%")
    context.close()


def a_running_tune_is_followed_without_a_reload(visit: Visit) -> None:
    """The run grows on disk, in the tuner's own files; the page follows, and stops asking when it is over."""
    source = visit.runs / "small"
    run = visit.runs / "growing"
    shutil.copytree(source, run)
    records = read_trials(source / "trials.jsonl")
    launched = [record for record in records if record.launched]
    current = replace(launched[2], points=launched[0].points)  # the baseline's ladder is never cut short
    begin(run, records[: records.index(launched[2])], current)
    context = visit.context()
    page = visit.open(context, "live?run=growing")
    page.evaluate("window.neverReloaded = true")
    expect(page.locator("h3").first).to_contain_text("Running, 2 of 5 launches done")
    expect(page.get_by_text(re.compile("measuring 8 clients for"))).to_be_visible()
    expect(page.get_by_text("1 point so far")).to_be_visible()
    write_live(run, phase="measuring 16 clients", trial=live_trial(current, current.points[:2]))
    (run / "trials" / str(current.number) / "server.log").write_text("Load weight begin\nServer is fired up\n")
    expect(page.get_by_text("2 points so far")).to_be_visible()
    expect(page.get_by_text("Server is fired up")).to_be_visible()
    visit.settle(page)
    visit.shoot(page, "live-running")
    write_records(run, [*records[: records.index(launched[2])], current])
    expect(page.locator("h3").first).to_contain_text("Running, 3 of 5 launches done")
    write_records(run, records)
    write_live(run, state=RunState.FINISHED, phase="ended", trial=None, message="5 launches done")
    expect(page.locator("h3").first).to_contain_text("Finished (5 launches done)")
    assert page.evaluate("window.neverReloaded") is True
    visit.settle(page)
    shutil.rmtree(run)  # nobody looks any more: a page that still refreshed would say that it is gone
    page.wait_for_timeout(3 * 1000)
    expect(page.locator("h3").first).to_contain_text("Finished (5 launches done)")
    context.close()


def export_downloads_what_it_shows(visit: Visit) -> None:
    context = visit.context()
    page = visit.open(context, "export?run=small&file=sglang.yaml")
    with page.expect_download() as one:
        page.get_by_role("button", name="Download sglang.yaml").click()
    assert one.value.suggested_filename == "sglang.yaml"
    text = Path(one.value.path()).read_text()
    assert "tp-size: 8" in text
    assert "# record: " in text
    with page.expect_download() as every:
        page.get_by_role("button", name="Download all with README and data").click()
    names = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(every.value.path())], capture_output=True, text=True, check=True
    ).stdout
    assert all(f"small/{name}" in names for name in ("launch.sh", "README.md", "bundle.json", "hardware.json"))
    context.close()


def whole(visit: Visit, page: Page, name: str) -> None:
    """Assert that a page shows its figures, no error, and nothing wider than the window; take its picture."""
    visit.settle(page)
    expect(page.get_by_test_id("stException")).to_have_count(0)
    if not name.startswith("export"):
        expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible()
    overflow = page.evaluate("document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth")
    assert overflow <= 0, f"{name} is {overflow} px too wide"
    visit.shoot(page, name)


def every_page_is_whole_on_a_small_screen(visit: Visit) -> None:
    """From page to page by their names, as a reader goes; the run stays chosen."""
    context = visit.context(1280)
    page = visit.open(context, f"hardware?machine={visit.runs / 'measured.json'}&other=h200x8")
    whole(visit, page, "hardware")
    for name, says in (("Live", "Finished"), ("Trials", "leads with"), ("Calibration", "from predicted"),
                       ("Export", "launch files")):  # fmt: skip
        page.get_by_role("link", name=name).click()
        expect(page.locator("h3").first).to_contain_text(says)
        expect(page).to_have_url(re.compile("run=small"))
        whole(visit, page, name.lower())
    context.close()


def the_widest_pages_are_whole_on_a_large_dark_screen(visit: Visit) -> None:
    context = visit.context(2560, "dark")
    page = visit.open(context, "trials?run=small")
    whole(visit, page, "trials-2560-dark")
    page.get_by_role("link", name="Plan").click()
    expect(page.locator("h3").first).to_contain_text("fit on one node")
    whole(visit, page, "plan-2560-dark")
    background = page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
    assert max(int(part) for part in re.findall(r"\d+", background)[:3]) < 60
    context.close()


def test_a_readers_visit(browser: Browser, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One test, so that however tests are spread over processes one server and one browser serve it."""

    def attempt() -> None:
        with visiting(browser, finished, tmp_path_factory) as visit:
            for step in STEPS:
                step(visit)
                assert visit.strangers == [], f"{step.__name__} asked another host"
                assert visit.complaints == [], f"{step.__name__} made the browser complain"

    in_one_of_three(attempt, Error, subprocess.TimeoutExpired)


STEPS = (
    plan_inputs_change_the_answer_and_the_link_keeps_them,
    a_slider_answers_what_if,
    a_running_tune_is_followed_without_a_reload,
    export_downloads_what_it_shows,
    every_page_is_whole_on_a_small_screen,
    the_widest_pages_are_whole_on_a_large_dark_screen,
)
