"""What `sgtune bench` does: reads the question, measures point by point, writes each before the next."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from hwprobe.bounds import REQUESTS, within
from hwprobe.errors import InputError, SgtuneError
from hwprobe.files import write_atomic
from models.workload import Slo, Workload
from tuner.bench.cross_check import TheirLoad, Theirs, run_theirs
from tuner.bench.each_server import ServerShare, ServerState, read_all, shares
from tuner.bench.formats import json_lines, point_document, point_record, request_lines, sglang_record
from tuner.bench.max_clients import Knee, find_knee
from tuner.bench.plot import plot_html
from tuner.bench.point import LivePoint, MeasuredPoint, Settings, Surroundings, measure_point
from tuner.bench.server_side import Address, ServerFacts, read_facts
from tuner.bench.workload_sources import dataset_prompts, lognormal_lengths, recorded_lengths
from tuner.choices import Arrival, Backend
from tuner.seam import LaunchFailed, Verdict

MOST_CLIENTS = 65_536
SPARE_FILES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchQuestion:
    """What is asked of `sgtune bench`; texts as they were typed."""

    url: str
    workload: Workload
    concurrency: str
    request_rate: str | None
    arrival: Arrival
    lognormal: float | None
    lengths: Path | None
    dataset: Path | None
    shared_prefix: int
    backend: Backend
    model: str | None
    slos: tuple[Slo, ...]
    until_knee: bool
    point_s: float
    most_s: float
    waves: float
    vocabulary: int
    workers: int
    seed: int
    out: Path | None
    sglang_jsonl: Path | None
    requests: Path | None
    plot: Path | None
    cross_check: str | None
    command: str
    servers: tuple[str, ...] = ()
    key: str | None = field(repr=False, default=None)

    def loads(self) -> list[float]:
        """Return the concurrencies or rates. Raises InputError naming the flag."""
        flag, text = ("--request-rate", self.request_rate) if self.request_rate else ("--concurrency", self.concurrency)
        try:
            loads = [float(part) for part in text.split(",")] if text else []
        except ValueError:
            loads = []
        whole = self.request_rate is None
        numbers = bool(loads) and all(0 < load < math.inf for load in loads)
        if not numbers or (whole and any(load != int(load) or load > MOST_CLIENTS for load in loads)):
            raise InputError(f"{flag} is '{text}'; write numbers as in {flag} {'1,16,64' if whole else '0.5,1,2'}")
        for load in loads if not whole else ():
            within(load, flag, REQUESTS["request_rate"])
        return loads

    def checked(self, facts: ServerFacts) -> BenchQuestion:
        """Raise InputError for a load beyond this server or this machine; return the question otherwise."""
        if self.until_knee and (not self.slos or self.request_rate):
            raise InputError(
                "--until-knee looks for the clients at which an SLO breaks: give --slo, not --request-rate"
            )
        if sum(source is not None for source in (self.lognormal, self.lengths, self.dataset)) > 1:
            raise InputError("--lognormal, --lengths and --dataset exclude each other: lengths come from one place")
        if self.request_rate and self.arrival == Arrival.CLOSED:
            raise InputError("--arrival closed has no rate: leave out --request-rate, or take poisson or constant")
        if self.cross_check and (
            self.lognormal or self.lengths or self.dataset or self.shared_prefix or self.backend is not Backend.SGLANG
        ):
            raise InputError(
                "--cross-check compares like with like only on --backend sglang with --isl, --osl and --range-ratio: "
                "leave out --lognormal, --lengths, --dataset and --shared-prefix"
            )
        if self.request_rate and self.cross_check and self.arrival is not Arrival.POISSON:
            raise InputError("--cross-check knows rates with --arrival poisson only, as sglang.benchmark.serving does")
        within(self.waves, "--waves", REQUESTS["waves"])
        within(self.vocabulary, "--vocab-size", REQUESTS["vocabulary"])
        if self.shared_prefix < 0:
            raise InputError(f"--shared-prefix is {self.shared_prefix}; it must not be negative")
        if self.shared_prefix >= self.workload.isl.shortest:
            raise InputError(
                f"--shared-prefix {self.shared_prefix} leaves nothing of --isl {self.workload.isl.nominal}"
            )
        longest = self.workload.longest_request
        if facts.context_length and not self.dataset and longest > facts.context_length:
            raise InputError(
                f"--isl and --osl make {longest:,} tokens; the server's context length is {facts.context_length:,}"
            )
        most = int(max(self.loads())) if not self.request_rate else 1024
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if hard != resource.RLIM_INFINITY and most + SPARE_FILES > hard:
            raise InputError(
                f"{most} connections need more open files than the hard limit of {hard}: raise it with `ulimit -n`"
            )
        return self

    def settings(self, facts: ServerFacts) -> Settings:
        model = self.model or facts.served_model
        if self.backend is not Backend.SGLANG and not model:
            raise InputError("the server names no model; give it with --model")
        longest = facts.context_length
        lengths: tuple[tuple[int, int], ...] = ()
        if self.lognormal is not None:
            nominal = self.workload.isl.nominal, self.workload.osl.nominal
            lengths = lognormal_lengths(*nominal, self.lognormal, longest, self.seed)
        elif self.lengths is not None:
            lengths = recorded_lengths(self.lengths)
            most = max(isl + osl for isl, osl in lengths)
            if longest and most > longest:
                raise InputError(f"--lengths asks for {most:,} tokens; the server's context length is {longest:,}")
        prompts = dataset_prompts(self.dataset) if self.dataset else ()
        return Settings(
            backend=self.backend, model=model, waves=self.waves, least_s=self.point_s, most_s=self.most_s,
            vocabulary=self.vocabulary, shared_prefix=self.shared_prefix, prompts=prompts, lengths=lengths,
            workers=self.workers, key=self.key, slos=tuple(self.slos),
        )  # fmt: skip


class SweepDisplay(Protocol):
    """Shows progress."""

    def live(self, live: LivePoint) -> None: ...

    def point(self, point: MeasuredPoint) -> None: ...

    def server(self, share: ServerShare) -> None: ...


@dataclass(slots=True)
class BenchAnswer:
    """The points, and the documents made of them."""

    facts: ServerFacts
    points: list[MeasuredPoint] = field(default_factory=list)
    theirs: list[Theirs] = field(default_factory=list)
    # What each server behind a router did, a point each.
    shares: list[tuple[ServerShare, ...]] = field(default_factory=list)
    knee: Knee | None = None
    written: list[Path] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        return all(point.verdict is Verdict.OK for point in self.points) and not self.degraded

    @property
    def degraded(self) -> bool:
        """Whether a server was gone during a point: the fleet that was measured is not the one that was meant."""
        return any(share.state is ServerState.LOST for shares in self.shares for share in shares)

    def document(self) -> dict[str, Any]:
        """Return the JSON answer."""
        return {
            "server": {"model": self.facts.served_model, "version": self.facts.version},
            "simulated": self.facts.simulated,
            "degraded": self.degraded,
            "points": [
                {**point_document(point), **({"servers": self.shares[at]} if self.shares else {})}
                for at, point in enumerate(self.points)
            ],
            "knee": None if self.knee is None else {"best": self.knee.best, "broken": self.knee.broken,
                                                    "misses": self.knee.misses},
            "sglang_benchmark": [{name: getattr(their, name) for name in Theirs.__slots__} for their in self.theirs],
            "files": [str(path) for path in self.written],
        }  # fmt: skip


def run_bench(question: BenchQuestion, screen: SweepDisplay) -> BenchAnswer:
    """Measure all loads of the question. Raises InputError or SgtuneError; a point is on disk before the next one
    starts.
    """
    facts = read_facts(Address.parse(question.url), question.key)
    if question.servers:
        facts = _behind(question, facts)
    settings = question.checked(facts).settings(facts)
    answer = BenchAnswer(facts=facts)

    def measure(load: float) -> MeasuredPoint:
        clients = 1 if question.request_rate else int(load)
        point_settings = settings
        if question.request_rate:
            point_settings = replace(settings, arrival=question.arrival, request_rate=load)
        seed = question.seed * 1_000_003 + len(answer.points)
        before = read_all(question.servers, question.key)
        try:
            workload = replace(question.workload, concurrency=clients)
            around = Surroundings(watch=screen.live)
            point = measure_point(question.url, workload, seed=seed, settings=point_settings, around=around)
        except LaunchFailed as failure:
            raise SgtuneError(f"the server stopped answering: {failure.evidence}") from failure
        answer.points.append(point)
        if question.servers:
            answer.shares.append(shares(question.servers, before, read_all(question.servers, question.key)))
        _write(question, answer, point)
        screen.point(point)
        for share in answer.shares[-1] if question.servers else ():
            screen.server(share)
        if question.cross_check:
            isl, osl = question.workload.isl.nominal, question.workload.osl.nominal
            model = str(facts.info.get("model_path") or facts.served_model)
            same = TheirLoad(point=point, isl=isl, osl=osl, model=model, seed=seed + 1)
            answer.theirs.append(run_theirs(question.cross_check, question.url, same))
        return point

    _measure_all(question, answer, measure)
    if question.plot is not None:
        lengths = f"{question.workload.isl.nominal} in, {question.workload.osl.nominal} out"
        title = f"{facts.served_model or question.url}: {lengths}"
        write_atomic(question.plot, plot_html(answer.points, title, question.command))
        answer.written.append(question.plot)
    return answer


def _behind(question: BenchQuestion, router: ServerFacts) -> ServerFacts:
    """Return what is measured: the servers behind a router, of which it says little itself.

    Raises InputError for a server that does not answer or shows no metrics.
    """
    for url, counters in zip(question.servers, read_all(question.servers, question.key), strict=True):
        if counters is None:
            raise InputError(f"--server {url}: nothing answers there; start it, or leave it out")
    behind = [read_facts(Address.parse(url), question.key) for url in question.servers]
    if router.version:
        return router
    simulated = {"simulated": True} if any(facts.simulated for facts in behind) else {}
    return replace(
        behind[0], served_model=router.served_model or behind[0].served_model, info={**behind[0].info, **simulated}
    )


def _measure_all(question: BenchQuestion, answer: BenchAnswer, measure: Callable[[float], MeasuredPoint]) -> None:
    loads = question.loads()
    if question.until_knee:
        most = MOST_CLIENTS if len(loads) == 1 else int(loads[-1])
        answer.knee = find_knee(measure, question.slos, int(loads[0]), most)
        return
    for load in loads:
        measure(load)


def _write(question: BenchQuestion, answer: BenchAnswer, point: MeasuredPoint) -> None:
    """Append the point to the files asked for."""
    isl, osl = question.workload.isl.nominal, question.workload.osl.nominal
    load = f"r{point.settings.request_rate:g}" if point.settings.request_rate else f"c{point.workload.concurrency}"
    name = f"bench-{isl}-{osl}-{load}-s{question.seed}"
    texts: tuple[tuple[Path | None, Callable[[], str]], ...] = (
        (question.out, lambda: json_lines([point_record(point, answer.facts, isl, osl, name)])),
        (question.sglang_jsonl, lambda: json_lines([sglang_record(point, answer.facts, isl, osl, name)])),
        (question.requests, lambda: request_lines(point)),
    )
    for path, text in texts:
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as stream:
                stream.write(text())
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from error
        if path not in answer.written:
            answer.written.append(path)
