"""Point records: published or own measurements, one JSON object a line, as read from a file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hwprobe.bounds import POINT, within
from hwprobe.errors import InputError
from hwprobe.files import MOST_RECORD_BYTES, read_bytes

METRICS = ("ttft_mean_ms", "ttft_median_ms", "tpot_mean_ms", "tpot_median_ms", "output_tok_s")
KINDS = ("serving", "steady", "single_stream", "decode_step", "one_batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measurement and its load. None means unknown: SGLang's default is taken.

    Lengths are uniform on [range_ratio x L, L] (None: fixed at L). `context_tokens` is the mean context of a request
    (decode_step). `gpu` is empty where the machine is given separately. `launch_args` holds the other SGLang flags of
    the run, verbatim. A run on a slice of the model says so with `num_hidden_layers`, and `first_k_dense_replace` where
    the slice has fewer dense layers than the model; `load_format` dummy marks made-up weights. Unknown fields are kept
    in `extra`.
    """

    id: str
    gpu: str = ""
    n_gpus: int = 0
    metric_kind: str = "serving"
    engine: str = "sglang"
    engine_version: str | None = None
    tp: int | None = None
    attn_dp: int | None = None
    ep: int | None = None
    pp: int | None = None
    n_nodes: int | None = None
    disaggregated: bool = False
    mtp: bool | None = None
    mtp_steps: int | None = None
    mtp_topk: int | None = None
    mtp_draft_tokens: int | None = None
    accept_length: float | None = None
    kv_dtype: str | None = None
    attention_backend: str | None = None
    mem_fraction_static: float | None = None
    max_total_num_tokens: int | None = None
    isl: float | None = None
    osl: float | None = None
    range_ratio: float | None = None
    concurrency: float | None = None
    request_rate: float | None = None
    num_prompts: int | None = None
    context_tokens: float | None = None
    launch_args: str | None = None
    num_hidden_layers: int | None = None
    first_k_dense_replace: int | None = None
    load_format: str | None = None
    ttft_mean_ms: float | None = None
    ttft_median_ms: float | None = None
    tpot_mean_ms: float | None = None
    tpot_median_ms: float | None = None
    output_tok_s: float | None = None
    role: str = "primary"
    trust: str = "A"
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def measured(self) -> dict[str, float]:
        """Return the metrics that were measured, by name."""
        values = {name: getattr(self, name) for name in METRICS}
        return {name: value for name, value in values.items() if value is not None and value > 0}


_KNOWN = {item.name: item.type for item in fields(Point) if item.name != "extra"}
_WHOLE = {name for name, kind in _KNOWN.items() if "int" in str(kind)}
_NUMBERS = {name for name, kind in _KNOWN.items() if "float" in str(kind)} | _WHOLE
# Written where a number is meant: published records say "inf" for a rate, "2.5-3" for an acceptance length.
_UNBOUNDED = ("inf", "infinity")


def read_lines(path: Path, record_kind: str = "point records") -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of a JSON-lines file that hold something. Raises InputError if unreadable."""
    try:
        text = read_bytes(path, record_kind, most_bytes=MOST_RECORD_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file ({error.reason})") from error
    yield from ((number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip())


def parse_point(line: str, number: int) -> Point:
    """Parse one record. Raises InputError naming the line and the field that is wrong."""
    try:
        record = json.loads(line)  # accepts Infinity, which SGLang's benchmark writes
    except (ValueError, RecursionError) as error:
        raise InputError(f"line {number}: not a JSON object ({error})") from error
    if not isinstance(record, dict):
        raise InputError(f"line {number}: not a JSON object")
    return point_of(_of_benchmark(record, number) if is_benchmark(record) else record, number)


def is_benchmark(record: dict[str, Any]) -> bool:
    """Whether a record is a line of SGLang's own benchmark (sglang.bench_serving, sglang.benchmark.serving)."""
    return "gpu" not in record and "output_throughput" in record


def _of_benchmark(record: dict[str, Any], number: int) -> dict[str, Any]:
    """Translate a line of SGLang's benchmark into a point without a machine.

    Lengths are the means that were sent and came back; `random_range_ratio` r means uniform on [r L, L].
    """
    completed = record.get("completed") or record.get("num_prompts")
    ratio = record.get("random_range_ratio")
    random = str(record.get("dataset_name") or "").startswith("random")
    mean = (1.0 + ratio) / 2.0 if random and isinstance(ratio, int | float) else 1.0
    sent, back = record.get("total_input_tokens"), record.get("total_output_tokens")
    info = record.get("server_info")
    server: dict[str, Any] = info if isinstance(info, dict) else {}
    point = {
        "id": record.get("tag") or f"line-{number}",
        "isl": sent / completed / mean if sent and completed else record.get("random_input_len"),
        "osl": back / completed / mean if back and completed else record.get("random_output_len"),
        "range_ratio": ratio if random else None,
        "concurrency": record.get("max_concurrency"),
        "request_rate": record.get("request_rate"),
        "num_prompts": completed,
        "accept_length": record.get("accept_length"),
        "output_tok_s": record.get("output_throughput"),
        "dataset": record.get("dataset_name"),
        "engine_version": server.get("version"),
        "simulated": server.get("simulated"),
        "tp": server.get("tp_size"),
        "attn_dp": server.get("attn_dp_size"),
        "ep": server.get("ep_size"),
        "mem_fraction_static": server.get("mem_fraction_static"),
        "max_total_num_tokens": server.get("max_total_num_tokens"),
    }
    for name, theirs in (("ttft", "ttft_ms"), ("tpot", "tpot_ms")):
        for statistic in ("mean", "median"):
            point[f"{name}_{statistic}_ms"] = record.get(f"{statistic}_{theirs}")
    return {name: value for name, value in point.items() if value is not None}


def point_of(record: dict[str, Any], number: int = 1) -> Point:
    """Build a point from a decoded record. Raises InputError naming the field that is wrong."""
    values: dict[str, Any] = {"id": record.get("id") or f"line-{number}"}
    for name, value in record.items():
        if name in _KNOWN and value is not None and name != "id":
            values[name] = _value(name, value, number)
    values["id"] = str(values["id"])
    extra = {name: value for name, value in record.items() if name not in _KNOWN}
    return Point(**{name: value for name, value in values.items() if value is not None}, extra=extra)


def _value(name: str, value: Any, number: int) -> Any:
    """Convert a field to its type; None where the text means "not limited" or is a remark."""
    if name in _NUMBERS:
        return _number(name, value, number)
    if _KNOWN[name] in ("bool", "bool | None"):
        return bool(value)
    return str(value)


def _number(name: str, value: Any, number: int) -> float | int | None:
    if isinstance(value, str):
        text = value.strip().lower()
        if text in _UNBOUNDED:
            return None
        low, dash, high = text.partition("-")
        try:
            value = (float(low) + float(high)) / 2 if dash and low and high else float(text)
        except ValueError:
            raise InputError(f"line {number}: {name} is '{value}', which is not a number") from None
    if value == math.inf:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"line {number}: {name} is {value!r}, which is not a number")
    if value < 0:
        raise InputError(f"line {number}: {name} is {value:g}; it cannot be negative")
    within(value, name, POINT[name], f"line {number}")
    return int(value) if name in _WHOLE else float(value)
