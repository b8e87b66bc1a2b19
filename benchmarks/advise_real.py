#!/usr/bin/env python3
"""Whether `sgtune advise` sees what a load generator knows, on the real SGLang on this machine's CPU.

    python3 dev.py sglang-cpu --port 30000 --enable-metrics &      and, when it is ready:
    python benchmarks/advise_real.py --url http://127.0.0.1:30000

Four clients send requests of drawn lengths; the window is from before the first to after the last. Compared are the
number of requests, their rate, both mean lengths, the output rate and the mean time of a request: within 3 %.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tuner.bench.server_side import Address
from tuner.scrape.observed import observe
from tuner.scrape.samples import ScrapeWindow
from tuner.scrape.source import LiveSource

WITHIN = 0.03
CLIENTS = 4
# SGLang's front end and scheduler write their figures a moment after the answer.
SETTLED_S = 2.0


def send(url: str, isl: int, osl: int, seed: int) -> float:
    """Send one request and wait for its answer; return how long it took in seconds."""
    ids = random.Random(seed).choices(range(5, 400), k=isl)
    sampling = {"max_new_tokens": osl, "ignore_eos": True, "temperature": 0}
    body = json.dumps({"input_ids": ids, "sampling_params": sampling}).encode()
    request = urllib.request.Request(f"{url}/generate", data=body, headers={"Content-Type": "application/json"})
    began = time.monotonic()
    with urllib.request.urlopen(request, timeout=600) as answer:
        generated = json.loads(answer.read())["meta_info"]["completion_tokens"]
    assert generated == osl
    return time.monotonic() - began


def main(arguments: list[str]) -> int:
    """Print what was sent beside what was seen; return 1 where they differ by more than 3 %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--requests", type=int, default=24)
    options = parser.parse_args(arguments)
    dice = random.Random(1)
    lengths = [(dice.randint(40, 160), dice.randint(8, 24)) for _ in range(options.requests)]
    source = LiveSource(address=Address.parse(options.url))
    before = source.scrape()
    began = time.monotonic()
    with ThreadPoolExecutor(max_workers=CLIENTS) as clients:
        took = list(clients.map(lambda each: send(options.url, *each[1], each[0]), enumerate(lengths)))
    time.sleep(SETTLED_S)
    after = source.scrape()
    seconds = time.monotonic() - began
    assert before is not None
    assert after is not None
    observed = observe(ScrapeWindow(before=before, after=after))
    count, out = len(lengths), sum(osl for _, osl in lengths)
    rows = (
        ("requests", count, observed.requests),
        ("requests/s", count / seconds, observed.request_rate),
        ("tokens in", sum(isl for isl, _ in lengths) / count, observed.isl),
        ("tokens out", out / count, observed.osl),
        # a request's first token comes out of prefill, which decode passes do not count
        ("decode tok/s", (out - count) / seconds, observed.output_tok_s),
        ("E2E mean, s", sum(took) / count, (observed.e2e_ms["mean"]) / 1e3),
    )
    worst = 0.0
    for name, sent, scraped in rows:
        apart = (scraped or 0.0) / sent - 1.0
        worst = max(worst, abs(apart))
        print(f"{name:14} sent {sent:10.3f}  seen {scraped or 0.0:10.3f}  {100 * apart:+.2f} %")
    return 0 if worst <= WITHIN else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
