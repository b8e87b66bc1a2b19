"""What a launch file says of its figures as data: one line of JSON in its header, which `sgtune verify` reads."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from hwprobe.errors import InputError
from hwprobe.files import decode_json
from models.traffic.traced_workload import TrafficMark

MARK = "# record: "


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedPoint:
    """One point: clients, output tokens per second with their interval, and mean latencies in ms.

    `request_rate` (1/s) is what an open loop sends; None for a closed loop of `concurrency` clients.
    """

    concurrency: int
    output_tok_s: float
    interval: tuple[float, float]
    ttft_mean_ms: float
    tpot_mean_ms: float
    request_rate: float | None = None

    @property
    def load(self) -> str:
        """The load in words."""
        if self.request_rate is not None:
            return f"{self.request_rate:g} requests/s"
        return f"{self.concurrency:,} client" + ("s" if self.concurrency != 1 else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The question a launch file answers and the figures it promises.

    `basis` is `predicted`, or `measured` with the engine in `engine`. The intervals are the 95 % interval of a
    measurement and the 90 % band of a prediction. Under `traffic` the one point is of that window of a trace.
    """

    sgtune: str
    sglang_version: str
    hardware: str
    hardware_hash: str
    model: str
    isl: int
    osl: int
    range_ratio: float
    basis: str
    points: tuple[RecordedPoint, ...]
    engine: str | None = None
    world: str | None = None
    nnodes: int = 1
    traffic: TrafficMark | None = None

    @property
    def simulated(self) -> bool:
        """Whether the figures come from a world that was played, not from a machine."""
        return self.world is not None


def record_line(record: Record) -> str:
    """Return the record as a comment line: ASCII only, so that no file format objects."""
    answers = {name: value for name, value in asdict(record).items() if name != "traffic" or value is not None}
    return MARK + json.dumps(answers, ensure_ascii=True)


def record_of(text: str, name: str) -> Record:
    """Read the record out of a launch file's text. Raises InputError when it holds none."""
    line = next((line for line in text.splitlines() if line.startswith(MARK)), None)
    if line is None:
        raise InputError(f"'{name}' carries no figures to verify; give a file or a bundle that sgtune export wrote")
    return decode_json(line.removeprefix(MARK), Record, f"{name}, line '{MARK.strip()}'")
