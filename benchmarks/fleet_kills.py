"""What SGLang's router does when a prefill server, a decode server or the router itself is killed under load.

    python benchmarks/fleet_kills.py                       every case
    python benchmarks/fleet_kills.py --servers 2 decode    two servers a role, a decode server is killed
    python benchmarks/fleet_kills.py --whole prefill       answers that are not streamed
    python benchmarks/fleet_kills.py prefill --router="--health-check-interval-secs 5 --cb-timeout-duration-secs 5"

Emulated servers behind the real router; clients send one request after another. After some seconds a process is killed
by SIGKILL; the script prints what became of the requests that were under way, of those sent later, and how long clients
waited for a refusal. Then the process is started anew, and the seconds until a request is answered again are printed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.emulated_fleet import Fleet, emulated_fleet, start_again

CLIENTS, ISL, OSL = 8, 500, 200
BEFORE_S, AFTER_S, PATIENCE_S, BACK_S = 6.0, 60.0, 120.0, 75.0
VICTIMS = ("prefill", "decode", "router")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One request: when it was sent, how long it took, and how it ended ("whole", "broken" or a status)."""

    sent_s: float
    took_s: float
    end: str


@dataclass(slots=True)
class Load:
    """Clients in a closed loop, until `stop` is set."""

    router: str
    stream: bool
    stop: threading.Event = field(default_factory=threading.Event)
    outcomes: list[Outcome] = field(default_factory=list)

    def client(self) -> None:
        """Send one request after another."""
        while not self.stop.is_set():
            sent_s = time.monotonic()
            end = one_request(self.router, stream=self.stream)
            self.outcomes.append(Outcome(sent_s=sent_s, took_s=time.monotonic() - sent_s, end=end))
            if end != "whole":
                time.sleep(0.2)


def one_request(router: str, *, stream: bool) -> str:
    """Send a request and read its answer; return how it ended."""
    connection = http.client.HTTPConnection(router.removeprefix("http://"), timeout=PATIENCE_S)
    sampling = {"max_new_tokens": OSL, "ignore_eos": True}
    body = {"text": "x" * 4 * ISL, "sampling_params": sampling, "stream": stream}
    try:
        connection.request("POST", "/generate", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        lines = [line.removeprefix(b"data: ") for line in response if b"{" in line]
    except TimeoutError:
        return f"nothing in {PATIENCE_S:.0f} s"
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()
    if response.status != 200:
        return f"HTTP {response.status}"
    last = json.loads(lines[-1]) if lines else {}
    reason = (last.get("meta_info", {}).get("finish_reason") or {}).get("type")
    return "whole" if reason == "length" else "aborted" if reason == "abort" or "error" in last else "broken"


def killed(fleet: Fleet, victim: str, *, stream: bool) -> None:
    """Kill a process under load and print what became of it all."""
    load = Load(fleet.router, stream)
    clients = [threading.Thread(target=load.client, daemon=True) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    time.sleep(BEFORE_S)
    killed_s = time.monotonic()
    fleet.processes[victim].kill()
    time.sleep(AFTER_S)
    back_s = start_again(fleet, victim)
    again_s = time.monotonic()
    time.sleep(BACK_S)
    load.stop.set()
    for client in clients:
        client.join(PATIENCE_S)
    print_ends(load.outcomes, killed_s, again_s - back_s)
    ends_s = [outcome.sent_s + outcome.took_s for outcome in load.outcomes if outcome.end == "whole"]
    since_s = [end_s - again_s for end_s in ends_s if end_s > again_s - back_s]
    print(
        f"  started anew, healthy after {back_s:.1f} s; answered again {min(since_s, default=BACK_S):+.1f} s from then"
    )


def print_ends(outcomes: list[Outcome], killed_s: float, until_s: float) -> None:
    """Print how requests ended that were under way at the kill, and those sent after it."""
    under_way = [outcome for outcome in outcomes if outcome.sent_s < killed_s < outcome.sent_s + outcome.took_s]
    later = [outcome for outcome in outcomes if killed_s <= outcome.sent_s < until_s]
    print(f"  under way: {said(under_way)}")
    print(f"  sent in the {AFTER_S:.0f} s after it: {said(later)}")


def said(outcomes: list[Outcome]) -> str:
    """Return outcomes by how they ended, with the longest wait of each."""
    counts = Counter(outcome.end for outcome in outcomes)
    longest = {end: max(outcome.took_s for outcome in outcomes if outcome.end == end) for end in counts}
    return ", ".join(f"{count} {end} (longest {longest[end]:.1f} s)" for end, count in counts.most_common()) or "none"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("victim", nargs="*", help=f"of {', '.join(VICTIMS)}; default: all")
    parser.add_argument("--servers", type=int, default=1, help="servers of each role")
    parser.add_argument("--whole", action="store_true", help="answers that are not streamed")
    parser.add_argument("--router", default="", help="flags of the router")
    options = parser.parse_args()
    for victim in options.victim or VICTIMS:
        answers = "whole" if options.whole else "streamed"
        print(
            f"{options.servers}P + {options.servers}D, {CLIENTS} clients, {answers}: the {victim} is killed", flush=True
        )
        lines, router = ("--tp-size 8",) * options.servers, options.router.split()
        with (
            tempfile.TemporaryDirectory() as name,
            emulated_fleet(Path(name), prefill=lines, decode=lines, router=router) as fleet,
        ):
            killed(fleet, victim if victim == "router" else f"{victim}-0", stream=not options.whole)
    return 0


if __name__ == "__main__":
    sys.exit(main())
