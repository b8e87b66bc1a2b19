"""Whole points against servers of a known schedule, and against the emulated server with faults."""

from __future__ import annotations

import itertools
import json
import resource
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from benchmarks.load import measure
from hwprobe.errors import InputError
from models.workload import Workload
from tests.patience import in_one_of_three
from tuner.bench.max_clients import find_knee
from tuner.bench.point import MeasuredPoint, Settings, shares_of
from tuner.bench.requests import Payloads
from tuner.bench.server_side import Address
from tuner.bench.workload_sources import arrivals_s, dataset_prompts, lognormal_lengths, recorded_lengths
from tuner.choices import Arrival
from tuner.seam import Verdict

ADDRESS = Address(host="127.0.0.1", port=1, secure=False)
HALF_NORMAL_MEAN = 0.79788  # of |N(0, 1)|


def recovered(point: MeasuredPoint, ttft_ms: float, tpot_ms: float, within: float) -> None:
    assert point.window.ttft.by["mean"] == pytest.approx(ttft_ms, rel=within)
    assert point.window.tpot.by["mean"] == pytest.approx(tpot_ms, rel=within)
    assert point.window.wrong_lengths == 0.0
    assert point.window.errors == 0


@pytest.mark.slow
@pytest.mark.alone
def test_a_known_schedule_is_recovered_within_2_percent_at_64_streams() -> None:
    def attempt() -> None:
        point = measure(64, 200.0, 20.0, 2.0, 100)
        recovered(point, 200.0 + 2.0 * HALF_NORMAL_MEAN, 20.0, 0.02)
        assert point.window.in_flight > 0.98 * 64
        assert point.verdict is Verdict.OK

    in_one_of_three(attempt)


@pytest.mark.slow
@pytest.mark.alone
def test_a_known_schedule_is_recovered_within_4_percent_at_1024_streams_all_in_flight() -> None:
    def attempt() -> None:
        point = measure(1024, 500.0, 50.0, 5.0, 100, waves=2.0)
        recovered(point, 500.0 + 5.0 * HALF_NORMAL_MEAN, 50.0, 0.04)
        assert point.window.in_flight > 0.98 * 1024

    in_one_of_three(attempt)


@pytest.mark.slow
@pytest.mark.alone
def test_4096_slow_streams_are_carried_without_being_the_limit() -> None:
    def attempt() -> None:
        point = measure(4096, 2000.0, 500.0, 20.0, 16, waves=1.0)
        assert point.window.in_flight > 0.98 * 4096
        assert point.verdict is not Verdict.CLIENT_LIMITED, point.why

    in_one_of_three(attempt)


@contextmanager
def starved_half_the_time() -> Iterator[None]:
    """Stop the load generator's processes for 60 of every 120 ms, as a machine with too few cores does."""
    over = threading.Event()

    def starve() -> None:
        while not over.wait(0.06):
            for worker in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if "tuner.bench.worker" in worker.cmdline():
                        worker.suspend()
                        over.wait(0.06)
                        worker.resume()

    thread = threading.Thread(target=starve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.slow
def test_fault_15_a_client_that_cannot_keep_up_is_not_believed() -> None:
    with starved_half_the_time():
        point = measure(64, 100.0, 20.0, 0.0, 50, waves=2.0)
    assert point.verdict is Verdict.CLIENT_LIMITED
    assert "late" in point.why


def test_fault_34_too_few_open_files_is_an_error_that_names_ulimit() -> None:
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64));"
        "from tuner.cli.main import main; sys.argv = ['sgtune', *sys.argv[1:]]; main()"
    )
    stub = Path(__file__).parents[3] / "benchmarks" / "load_stub.py"
    with subprocess.Popen([sys.executable, str(stub), "--port", "31987"], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        done = subprocess.run(
            [sys.executable, "-c", limited, "bench", "--url", "http://127.0.0.1:31987", "--concurrency", "100"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        server.kill()
    assert done.returncode == 2
    assert "ulimit -n" in done.stderr
    assert "Traceback" not in done.stderr
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 64


def test_prompts_are_unique_by_request_seed_and_worker_but_for_the_shared_prefix() -> None:
    settings = Settings(shared_prefix=10, workers=2)
    shares = shares_of(ADDRESS, Workload.checked(50, 5, 4), settings, seed=1)
    other = shares_of(ADDRESS, Workload.checked(50, 5, 4), settings, seed=2)
    prompts = [tuple(Payloads(share).ids(n)) for share in [*shares, *other] for n in range(20)]
    assert len(set(prompts)) == 80
    assert all(len(prompt) == 50 for prompt in prompts)
    assert len({prompt[:10] for prompt in prompts}) == 2
    assert len({prompt[10:20] for prompt in prompts}) == 80


def test_a_payload_is_a_whole_request_with_its_exact_length() -> None:
    share = shares_of(ADDRESS, Workload.checked(3, 5, 1), Settings(vocabulary=100), seed=0)[0]
    head, _, body = Payloads(share).request(0).partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(body) in head
    sent = json.loads(body)
    assert sent["input_ids"] == Payloads(share).ids(0)
    assert len(sent["input_ids"]) == 3
    assert sent["sampling_params"]["max_new_tokens"] == 5


def test_an_open_loop_has_its_rate_and_its_law() -> None:
    poisson = arrivals_s(Arrival.POISSON, 50.0, 120.0, seed=0)
    constant = arrivals_s(Arrival.CONSTANT, 50.0, 120.0, seed=0)
    assert len(constant) == 6000
    assert len(poisson) == pytest.approx(6000, abs=4 * 6000**0.5)
    assert poisson[-1] < 120.0
    spaces = [b - a for a, b in itertools.pairwise(poisson)]
    assert statistics.stdev(spaces) == pytest.approx(statistics.mean(spaces), rel=0.05), "exponential gaps"
    gaps = [b - a for a, b in itertools.pairwise(constant)]
    assert max(gaps) == pytest.approx(min(gaps))


def test_lengths_and_prompts_come_from_files_as_people_have_them(tmp_path: Path) -> None:
    lengths = tmp_path / "lengths.jsonl"
    lengths.write_text('{"isl": 10, "osl": 2}\n{"input_length": 20, "output_length": 3}\n')
    assert recorded_lengths(lengths) == ((10, 2), (20, 3))
    lengths.write_text('{"isl": "x"}\n')
    with pytest.raises(InputError, match="line 1"):
        recorded_lengths(lengths)
    chats = tmp_path / "sharegpt.json"
    chat = '{"conversations": [{"from": "human", "value": "Why is the sky blue?"}]}'
    chats.write_text(f'[{chat}, {{"prompt": "Hello there"}}]')
    assert dataset_prompts(chats) == ("Why is the sky blue?", "Hello there")
    chats.write_text("[]")
    with pytest.raises(InputError, match="no prompts"):
        dataset_prompts(chats)


def test_lognormal_lengths_have_the_means_asked_and_fit_the_context() -> None:
    drawn = lognormal_lengths(1000, 200, 0.6, 10_000, seed=0)
    assert sum(isl for isl, _ in drawn) / len(drawn) == pytest.approx(1000, rel=0.05)
    assert sum(osl for _, osl in drawn) / len(drawn) == pytest.approx(200, rel=0.05)
    assert max(isl + osl for isl, osl in drawn) <= 10_000


class Knees:
    """Points whose objective breaks above a number of clients."""

    def __init__(self, breaks_above: int) -> None:
        self.breaks_above = breaks_above
        self.asked: list[int] = []

    def measure(self, clients: int) -> MeasuredPoint:
        self.asked.append(clients)
        return self  # type: ignore[return-value]

    @property
    def verdict(self) -> Verdict:
        return Verdict.OK

    @property
    def ttft_ms(self) -> dict[str, float]:
        return {"mean": 1.0}

    e2e_ms = ttft_ms

    @property
    def tpot_ms(self) -> dict[str, float]:
        return {"mean": 40.0 if self.asked[-1] <= self.breaks_above else 60.0}

    def measurement(self) -> Knees:
        return self


@pytest.mark.parametrize("breaks_above", [0, 1, 7, 64, 100, 999, 5000])
def test_the_knee_is_found_to_five_percent_in_few_points(breaks_above: int) -> None:
    from models.workload import Slo

    server = Knees(breaks_above)
    knee = find_knee(server.measure, (Slo.parse("tpot:mean<50ms"),), 4, 2048)
    if breaks_above >= 2048:
        assert (knee.best, knee.broken) == (2048, None)
    elif breaks_above == 0:
        assert (knee.best, knee.broken) == (None, 1)
    else:
        assert knee.best is not None
        assert knee.broken is not None
        assert knee.best <= breaks_above < knee.broken
        assert knee.broken - knee.best <= max(1, 0.05 * knee.broken)
    assert len(server.asked) <= 16
