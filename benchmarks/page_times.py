"""How fast the dashboard answers and how much memory it takes: python benchmarks/page_times.py [--trials 300]

Tunes a small question on the simulated engine for so many launches, serves the run, and visits it with Chromium
(Debian's, apt-get install chromium). Prints per page the seconds from asking for its address to its heading and to
its figures (first in a browser that has seen nothing, then again) and the processor time of the server for both, the
milliseconds from a key on a what-if slider to the new figures, and the memory of the server. On a busy machine only
the processor times mean much.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[1]
CHROMIUM = "/usr/bin/chromium"
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
PAGES = ("", "hardware", "live", "trials", "calibration", "export")
PRESSES = 12
WAIT_MS = 60_000
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    trials: int = parser.parse_args().trials
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        tune(runs, trials)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = ["dashboard", "--runs", folder, "--port", str(port), "--no-browser"]
        server = subprocess.Popen([sys.executable, "-m", "tuner.cli.main", *words], env=environment(), cwd=ROOT)
        try:
            began = time.monotonic()
            wait_until_healthy(f"http://127.0.0.1:{port}")
            print(f"server ready after {time.monotonic() - began:.1f} s; load average {os.getloadavg()[0]:.1f}")
            visit(f"http://127.0.0.1:{port}", psutil.Process(server.pid))
            print(f"server memory {memory_mib(server.pid):.0f} MiB (resident)")
        finally:
            server.terminate()
            server.wait(30)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONSAFEPATH": "1"}


def tune(runs: Path, trials: int) -> None:
    words = [
        "tune", "--hardware", "h200x8", "--isl", "200", "--osl", "200", "--concurrency", "16", "--engine", "simulated",
        "--sampler", "grid", "--trials", str(trials), "--confirm", "3", "--runs", str(runs), "--run", "large",
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "tuner.cli.main", *words], check=True, capture_output=True, env=environment())
    file = runs / "large" / "trials.jsonl"
    lines = file.read_text().splitlines()
    launched = sum('"outcome":"ruled_out"' not in line for line in lines)
    print(f"{launched} launches among {len(lines)} trials, {file.stat().st_size / MIB:.1f} MiB of records")


def wait_until_healthy(url: str) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=5):
                return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def visit(url: str, server: psutil.Process) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        print(f"{'page':12} {'heading s':>10} {'figures s':>10} {'again s':>8} {'figures s':>10} {'server CPU s':>13}")
        for path in PAGES:
            page, used = fresh(browser), cpu_s(server)
            first, again = timed(page, f"{url}/{path}"), timed(page, f"{url}/{path}")
            both = cpu_s(server) - used
            print(
                f"{path or 'plan':12} {first[0]:10.2f} {first[1]:10.2f} {again[0]:8.2f} {again[1]:10.2f} {both:13.2f}"
            )
            if not path:
                used = cpu_s(server)
                print(f"{'slider':12} {slider_ms(page):10.0f} ms (median of {PRESSES})", end=", ")
                print(f"{1e3 * (cpu_s(server) - used) / PRESSES:.0f} ms of the server's CPU each")
            page.context.close()
        browser.close()


def fresh(browser: Browser) -> Page:
    page = browser.new_context(viewport={"width": 1440, "height": 1000}).new_page()
    page.set_default_timeout(WAIT_MS)
    return page


def timed(page: Page, url: str) -> tuple[float, float]:
    """Return seconds to the heading, and to the first figure (the end of the script where a page has none)."""
    began = time.monotonic()
    page.goto(url, wait_until="commit")
    page.wait_for_selector("h3")
    heading = time.monotonic() - began
    page.wait_for_selector(".js-plotly-plot .main-svg, [data-testid=stDataFrame], [data-testid=stCode]")
    return heading, time.monotonic() - began


def slider_ms(page: Page) -> float:
    """Return milliseconds from a key on a slider until the browser shows the figures that it leads to."""
    slider = page.get_by_role("slider", name="mem_fraction_static")
    tile = page.get_by_test_id("stMetric").filter(has_text="Left free")
    times_ms = []
    for _ in range(PRESSES):
        before = tile.inner_text()
        began = time.monotonic()
        slider.press("ArrowLeft")
        page.wait_for_function(
            "before => [...document.querySelectorAll('[data-testid=stMetric]')]"
            ".some(e => e.innerText.includes('Left free') && e.innerText !== before)", arg=before,
        )  # fmt: skip
        times_ms.append(1e3 * (time.monotonic() - began))
    return statistics.median(times_ms)


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def memory_mib(pid: int) -> float:
    process = psutil.Process(pid)
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True))) / MIB


if __name__ == "__main__":
    main()
