"""Verify: boot exactly the command of a launch file, measure its recorded points again, and compare."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from packaging.version import Version

from hwprobe.errors import InputError, SgtuneError
from hwprobe.files import LAUNCH_FILE_BYTES, decode_json, read_bytes
from models.config import ServerConfig
from models.serving.estimate import Context
from models.traffic.traced_workload import TracedLoad
from models.version import parse_version
from models.workload import Workload
from planner.launch_files.files import BUNDLE_FILE
from planner.launch_files.record import Record, RecordedPoint, record_of
from planner.launch_files.targets import Target
from planner.launch_lines.launch_line import LaunchLine
from planner.launch_lines.read import launch_of_file
from planner.sglang.arguments import read_arguments
from planner.sglang.dialects import from_values
from planner.sglang.resolver import resolve
from tuner.choices import SIMULATED_ENGINES
from tuner.seam import LaunchFailed, LaunchOrder, Measurement, OrderedEngine, Server, Verdict


class Agreement(StrEnum):
    """What a measurement says of a recorded figure; `inconclusive`: it was disturbed too much to say either."""

    AGREES = "agrees"
    DIFFERS = "differs"
    INCONCLUSIVE = "inconclusive"


# What the machine or the load generator did, not the server: no evidence against a file.
DISTURBED = frozenset({Verdict.UNSTEADY, Verdict.CLIENT_LIMITED, Verdict.CLOCK_JUMP})
# What a launcher of several nodes gives to each of them.
RANKS = frozenset({"--node-rank", "--dist-init-addr", "--nccl-init-addr"})
# What verify gives itself, whatever the file says.
OURS = RANKS | {"--host", "--port"}
SURROUNDINGS = ("SGLANG_CACHE_DIR", "HF_HOME", "HOME", "MODEL_PATH", "PYTHON")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a launch file says: its command, as it stands, and the figures it records.

    `comments` is the environment that SGLang's own YAML can only ask for in its header. `traffic` is the window of the
    trace that its figures were measured under.
    """

    file: Path
    line: LaunchLine
    record: Record
    hardware: Path | None = None
    comments: dict[str, str] = field(default_factory=dict)
    traffic: TracedLoad | None = None

    @property
    def version(self) -> Version:
        return parse_version(self.record.sglang_version)

    @property
    def model_path(self) -> str:
        return str(read_arguments(self.line.words, self.version).values.get("model_path", ""))

    @property
    def environment(self) -> dict[str, str]:
        """Return the command's environment, without the places that belong to the file's own container or unit."""
        variables = self.line.environment | self.comments
        return {name: value for name, value in variables.items() if name not in SURROUNDINGS}

    def workload(self, figure: RecordedPoint) -> Workload:
        if self.traffic is not None:
            return self.traffic.workload(figure.concurrency)
        closed = Workload.checked(self.record.isl, self.record.osl, figure.concurrency, self.record.range_ratio)
        return replace(closed, request_rate=figure.request_rate)

    def config(self, context: Context) -> ServerConfig:
        """Return the configuration the command means on this machine."""
        typed = from_values(read_arguments(self.line.words, self.version).values, self.version)
        return resolve(typed, context.arch, context.machine, self.version).config


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bundle:
    record: Record | None
    files: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One recorded point and its measurement now.

    They agree when their rates differ by no more than both intervals together allow, in log units: the root of the
    sum of the squared half widths, which is what two independent measurements of one rate differ by. Under a trace
    (`traced`) their TPOTs may differ by no more either: a rate that holds is the trace's own.
    """

    recorded: RecordedPoint
    measured: Measurement
    traced: bool = False

    @property
    def agrees(self) -> bool:
        return self.measured.verdict is Verdict.OK and self._near and self._as_fast

    @property
    def agreement(self) -> Agreement:
        """A disturbed measurement is no evidence against the file; errors, wrong lengths and the like are."""
        if self.measured.verdict in DISTURBED:
            return Agreement.INCONCLUSIVE
        return Agreement.AGREES if self.agrees else Agreement.DIFFERS

    @property
    def resolves(self) -> float:
        """The smallest relative difference that would be noticed."""
        halves = (_half(self.recorded.interval), _half(self.measured.output_tok_s_interval))
        return math.expm1(math.hypot(*halves))

    @property
    def _near(self) -> bool:
        now = self.measured.output_tok_s
        return now > 0.0 and abs(math.log(now / self.recorded.output_tok_s)) <= math.log1p(self.resolves)

    @property
    def _as_fast(self) -> bool:
        """Whether a token takes as long as recorded, where that is compared."""
        if not self.traced or not self.recorded.tpot_mean_ms or not self.measured.tpot_ms["mean"]:
            return True
        return abs(math.log1p(self.tpot_change)) <= math.log1p(self.resolves)

    @property
    def tpot_change(self) -> float:
        """The measured mean TPOT over the recorded one, less one."""
        return self.measured.tpot_ms["mean"] / max(self.recorded.tpot_mean_ms, 1e-9) - 1.0

    @property
    def change(self) -> float:
        """The measured rate over the recorded one, less one."""
        return self.measured.output_tok_s / self.recorded.output_tok_s - 1.0

    @property
    def why(self) -> str:
        """Say why the point does not agree; empty where it does."""
        if self.measured.verdict is not Verdict.OK:
            return f"unreliable ({self.measured.verdict}): {self.measured.why}"
        if not self._near:
            return f"{self.change:+.1%} is outside the interval"
        return "" if self._as_fast else f"TPOT {self.tpot_change:+.1%} is outside the interval"

    def document(self) -> dict[str, Any]:
        return {
            "concurrency": self.recorded.concurrency,
            "request_rate": self.recorded.request_rate,
            "recorded": self.recorded,
            "measured": self.measured,
            "change": self.change,
            "resolves": self.resolves,
            "agrees": self.agrees,
            "agreement": self.agreement,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """The answer: every point compared, and how long the start took, in seconds.

    `simulated`: the command was not started on a machine but played in a world. Of a deployment `claim` is that of its
    first pool.
    """

    claim: Claim
    boot_s: float
    points: tuple[Compared, ...]
    simulated: bool = False
    deployment: str | None = None

    @property
    def agrees(self) -> bool:
        return all(point.agrees for point in self.points)

    @property
    def agreement(self) -> Agreement:
        """One point that differs decides; else one that is inconclusive does."""
        points = {point.agreement for point in self.points}
        worst_first = (Agreement.DIFFERS, Agreement.INCONCLUSIVE)
        return next((agreement for agreement in worst_first if agreement in points), Agreement.AGREES)

    def document(self) -> dict[str, Any]:
        """Return the document of `sgtune verify --json`."""
        return {
            "file": str(self.claim.file),
            "argv": list(self.claim.line.words),
            "basis": self.claim.record.basis,
            "simulated": self.simulated,
            "agrees": self.agrees,
            "agreement": self.agreement,
            "boot_s": self.boot_s,
            "points": [point.document() for point in self.points],
            **({} if self.deployment is None else {"deployment": self.deployment}),
        }


def _half(interval: tuple[float, float]) -> float:
    """Return half the width of an interval in log units."""
    low, high = interval
    return math.log(high / low) / 2.0 if 0.0 < low <= high else math.inf


def read_claim(path: Path, target: Target = Target.BASH) -> Claim:
    """Read a launch file, or the bundle's file of `target`. Raises InputError naming what is missing.

    A bundle whose file and bundle.json record different figures was changed by hand: SgtuneError.
    """
    file = path / target.file_name if path.is_dir() else path
    if path.is_dir() and not (path / BUNDLE_FILE).exists():
        planned = "it is a fleet that was planned, not measured; " if (path / "router.sh").exists() else ""
        make = "sgtune tune --servers, then " if planned else ""
        raise InputError(
            f"'{path}' is not a bundle: {planned}it has no {BUNDLE_FILE}; make one with {make}sgtune export --bundle"
        )
    text = read_bytes(file, "launch file", most_bytes=LAUNCH_FILE_BYTES).decode("utf-8", errors="replace")
    record = record_of(text, str(file))
    beside = path / "hardware.json" if path.is_dir() else file.parent / "hardware.json"
    if path.is_dir():
        bundle = decode_json(read_bytes(path / BUNDLE_FILE, "bundle"), _Bundle, str(path / BUNDLE_FILE))
        if bundle.record != record:
            raise SgtuneError(f"'{file}' and '{path / BUNDLE_FILE}' record different figures: one was changed by hand")
    claim = Claim(
        file=file,
        line=launch_of_file(file),
        record=record,
        hardware=beside if beside.exists() else None,
        comments=dict(re.findall(r"^# environment: (\w+)=(.*)$", text, re.MULTILINE)),
    )
    return _checked(claim)


def _checked(claim: Claim) -> Claim:
    """Return a claim that can be verified, without what tells ranks apart. Raises InputError for any other."""
    if not claim.record.points:
        raise InputError(f"'{claim.file}' records no figures: nothing was measured or predicted when it was made")
    for point in claim.record.points:
        low, high = point.interval
        if not 0.0 < low <= point.output_tok_s <= high:
            raise SgtuneError(
                f"'{claim.file}' records {point.output_tok_s:,.1f} tok/s for {point.load}, which its "
                f"own interval ({low:,.1f} to {high:,.1f}) does not hold: the figure was changed by hand"
            )
    claim = replace(claim, line=_without_ranks(claim.line))
    unknown = [*claim.line.left_out, *(value.flag for value in claim.line.unknown)]
    if unknown:
        raise InputError(f"'{claim.file}': the value of {unknown[0]} is a variable, unknown here")
    return claim


def _without_ranks(line: LaunchLine) -> LaunchLine:
    """Leave out which rank a command is and where ranks meet: whoever starts several nodes says so."""
    words: list[str] = []
    flags = iter(line.words)
    for word in flags:
        name, equals, _ = word.partition("=")
        if name not in RANKS:
            words.append(word)
        elif not equals:
            next(flags, None)
    return replace(line, words=tuple(words), left_out=tuple(flag for flag in line.left_out if flag not in OURS))


def verify(
    claim: Claim,
    engine: OrderedEngine,
    order: LaunchOrder,
    shown: Callable[[str], None] = lambda text: None,
) -> Verified:
    """Boot what of the claim's command may be started (`order`) and measure its points, fewest clients first.

    Raises SgtuneError when the server does not start or dies.
    """
    try:
        server = engine.launch_order(order)
        try:
            return measured_again(claim, server, shown, simulated=engine.name in SIMULATED_ENGINES)
        finally:
            server.stop()
    except LaunchFailed as failure:
        raise SgtuneError(f"'{claim.file}' did not run ({failure.kind}): {failure.evidence}") from failure


def measured_again(claim: Claim, server: Server, shown: Callable[[str], None], *, simulated: bool) -> Verified:
    """Measure the claim's points on what runs, fewest clients first. Raises LaunchFailed when it dies."""
    boot_s = server.info().boot_s
    shown(f"ready after {boot_s:.0f} s")
    points = []
    for figure in sorted(claim.record.points, key=lambda figure: figure.concurrency):
        shown(f"measuring {figure.load}")
        measured = server.measure(claim.workload(figure))
        if measured.verdict is not Verdict.OK:
            shown(f"measuring {figure.load} once more: {measured.verdict}, {measured.why}")
            measured = server.measure(claim.workload(figure))
        points.append(Compared(recorded=figure, measured=measured, traced=claim.traffic is not None))
    return Verified(claim=claim, boot_s=boot_s, points=tuple(points), simulated=simulated)
