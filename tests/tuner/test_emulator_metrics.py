"""The emulated server's /metrics is SGLang's: names, types, labels and histograms of the release it plays."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from packaging.version import Version
from prometheus_client.parser import text_string_to_metric_families

from models.layout import table_of
from models.serving.scheduler import Limits
from models.serving.step_times import StepTimes
from planner.inputs import read_question
from tests.typical import filled
from tuner.emulator.driver import Driver, Habits
from tuner.emulator.metrics import Exposition, metrics_of
from tuner.emulator.recorder import CountedTimes, Exposed, Recorder

REAL = Path(__file__).parents[1] / "data" / "logs" / "cpu_0.5.23_metrics.txt"
OSL, CLIENTS, ISL = 40, 8, 300
CONTEXT = read_question(
    hardware="h200x8", model=None, sglang_version="0.5.23", slo=None, profile=None, isl=1, osl=1, concurrency=1
).context()


class Played:
    """A driver in virtual time, with the metrics of a release."""

    def __init__(self, release: str, *, ranks: int = 1, recv_interval: int = 1, radix: bool = True) -> None:
        config = filled(attn_dp_size=ranks, max_running_requests=64)
        times = CountedTimes(StepTimes(CONTEXT.system(table_of([config])), acceptance=0.0, largest_batch=64))
        observed = Exposed(
            ranks=ranks, attn_tp=8 // ranks, ep_ranks=1, tp=8, graph_max_bs=4, kv_tokens=100_000, context_length=4096,
            page_size=1, mtp_steps=0, radix=True,
        )  # fmt: skip
        self.shown = Exposition(Version(release), model_name="r1", pid=7)
        self.now_s = 0.0
        self.driver = Driver(
            times,
            Limits(kv_tokens=100_000, max_running=64, chunk=8192, longest_stride=1.0),
            Habits(recv_interval=recv_interval, radix=radix),
            recorder=Recorder(self.shown, observed, times),
            clock=lambda: self.now_s,
        )

    def play(self) -> None:
        """Serve every request that is on its way."""
        while self.driver.live:
            self.now_s = self.driver.step()
            self.driver.tell()

    def samples(self) -> dict[str, float]:
        """Return values by name, of all labels together."""
        values: dict[str, float] = {}
        for family in text_string_to_metric_families(self.shown.text().decode()):
            for sample in family.samples:
                name = sample.name.removeprefix("sglang:")
                values[name] = values.get(name, 0.0) + sample.value
        return values


def _shapes(text: str) -> dict[str, tuple[str, frozenset[str]]]:
    return {
        family.name: (family.type, frozenset().union(*(sample.labels for sample in family.samples)))
        for family in text_string_to_metric_families(text)
    }


def test_names_types_and_labels_are_those_of_a_real_server() -> None:
    played = Played("0.5.23")
    for _ in range(CLIENTS):
        played.driver.submit(ISL, OSL, streaming=True)
    played.play()
    real, ours = _shapes(REAL.read_text()), _shapes(played.shown.text().decode())
    assert len(ours) > 35
    assert {name: shape for name, shape in ours.items() if real.get(name, shape) != shape} == {}
    # the captured server served one request without a stream: these it had no reason to show
    assert set(ours) - set(real) == {"sglang:inter_token_latency_seconds"}


def test_counters_and_histograms_hold_what_was_served() -> None:
    played = Played("0.5.23")
    for _ in range(CLIENTS):
        played.driver.submit(ISL, OSL, streaming=True)
    played.play()
    seen = played.samples()
    assert seen["num_requests_total"] == CLIENTS
    assert seen["prompt_tokens_total"] == CLIENTS * ISL
    assert seen["generation_tokens_total"] == CLIENTS * OSL
    assert seen["realtime_tokens_total"] > 0
    assert seen["e2e_request_latency_seconds_count"] == CLIENTS
    assert seen["time_to_first_token_seconds_sum"] < seen["e2e_request_latency_seconds_sum"]
    assert math.isclose(seen["inter_token_latency_seconds_count"], CLIENTS * (OSL - 1))
    # eight run at once, graphs end at four
    assert 'mode="decode_none"' in played.shown.text().decode()


@pytest.mark.parametrize(
    ("release", "there", "not_there"),
    [
        ("0.4.3.post2", "time_per_output_token_seconds", "inter_token_latency_seconds"),
        ("0.4.6", "cached_tokens_total", "queue_time_seconds"),
        ("0.5.9", "cuda_graph_passes_total", "request_time_per_output_token_seconds"),
        ("0.5.23", "request_time_per_output_token_seconds", "num_running_reqs_offline_batch"),
    ],
)
def test_a_release_has_its_own_names(release: str, there: str, not_there: str) -> None:
    names = metrics_of(Version(release))
    assert there in names
    assert not_there not in names


def test_every_attention_dp_rank_speaks_for_itself() -> None:
    played = Played("0.5.23", ranks=4)
    for _ in range(CLIENTS):
        played.driver.submit(ISL, OSL)
    played.play()
    running = [
        line for line in played.shown.text().decode().splitlines() if line.startswith("sglang:num_running_reqs{")
    ]
    assert [f'dp_rank="{rank}"' in line for rank, line in enumerate(running)] == [True] * 4
    assert "dp_attention_sync_wait_seconds_bucket" in played.shown.text().decode()


def test_an_old_release_knows_no_ranks() -> None:
    played = Played("0.4.3.post2")
    played.driver.submit(ISL, OSL)
    played.play()
    assert 'sglang:num_running_reqs{model_name="r1"} 0.0' in played.shown.text().decode()


def test_a_long_receive_interval_keeps_late_requests_waiting() -> None:
    def wait_s(interval: int) -> float:
        played = Played("0.5.23", recv_interval=interval)
        played.driver.submit(ISL, 200)
        for _ in range(5):
            played.now_s = played.driver.step()
            played.driver.tell()
        before = played.samples()["time_to_first_token_seconds_sum"]
        played.driver.submit(ISL, OSL)
        played.play()
        return played.samples()["time_to_first_token_seconds_sum"] - before

    assert wait_s(60) > 2 * wait_s(1)


def test_without_the_radix_cache_nothing_is_cached() -> None:
    prompt = tuple(range(640))
    for radix, cached in ((True, 600), (False, 0)):
        played = Played("0.5.23", radix=radix)
        played.driver.submit(prompt, 1)
        played.play()
        second = played.driver.submit((*prompt[:600], *range(40)), 1)
        played.play()
        assert second.cached == cached
