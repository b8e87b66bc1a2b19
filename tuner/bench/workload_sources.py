"""Where arrivals, lengths and prompts come from when they are not plain numbers: laws and recorded files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from hwprobe.bounds import LONGEST_TOKENS
from hwprobe.errors import InputError
from hwprobe.files import MOST_RECORD_BYTES, read_bytes
from hwprobe.parsing import ODD
from tuner.choices import Arrival

DRAWN = 8192
SHORTEST_PROMPT = 4  # characters


def arrivals_s(arrival: Arrival, rate: float, horizon_s: float, seed: int) -> tuple[float, ...]:
    """Return the send times of an open loop of `rate` requests per second, in seconds from 0 to `horizon_s`."""
    if arrival is Arrival.CONSTANT:
        return tuple(number / rate for number in range(math.ceil(rate * horizon_s)))
    rng, sent_s = np.random.default_rng((seed, 1)), np.zeros(0)
    while not len(sent_s) or sent_s[-1] < horizon_s:
        gaps = rng.exponential(1.0 / rate, size=math.ceil(rate * horizon_s) + 16)
        sent_s = np.concatenate([sent_s, np.cumsum(gaps) + (sent_s[-1] if len(sent_s) else 0.0)])
    return tuple(sent_s[sent_s < horizon_s].tolist())


def lognormal_lengths(isl: int, osl: int, sigma: float, longest: int | None, seed: int) -> tuple[tuple[int, int], ...]:
    """Draw lengths whose means are `isl` and `osl` and whose logarithms spread by `sigma`, none above `longest`."""
    if not 0.0 < sigma <= 3.0:
        raise InputError(f"--lognormal is {sigma:g}; it must be above 0 and at most 3 (0.5 to 1 is usual)")
    rng = np.random.default_rng((seed, 2))
    room = longest or 10**9
    drawn = []
    for mean, share in ((isl, isl / (isl + osl)), (osl, osl / (isl + osl))):
        values = rng.lognormal(math.log(mean) - sigma**2 / 2, sigma, DRAWN)
        drawn.append(np.clip(np.rint(values), 1, max(1, int(room * share))).astype(int).tolist())
    return tuple(zip(*drawn, strict=True))


def recorded_lengths(path: Path) -> tuple[tuple[int, int], ...]:
    """Read `{"isl": ..., "osl": ...}` lines (also input_length/output_length, as traces have them).

    Raises InputError naming the line.
    """
    lengths = []
    for number, line in enumerate(
        read_bytes(path, "lengths", most_bytes=MOST_RECORD_BYTES).decode(errors="replace").splitlines(), 1
    ):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            isl = record["isl"] if "isl" in record else record["input_length"]
            osl = record["osl"] if "osl" in record else record["output_length"]
            if not all(0 <= length <= LONGEST_TOKENS for length in (isl, osl)):
                raise ValueError
            lengths.append((max(1, int(isl)), max(1, int(osl))))
        except ODD:
            raise InputError(
                f'{path}, line {number}: not of the form {{"isl": 1000, "osl": 200}}, tokens from 0 '
                f"to {LONGEST_TOKENS:,}"
            ) from None
    if not lengths:
        raise InputError(f"{path} holds no lengths")
    return tuple(lengths)


def dataset_prompts(path: Path) -> tuple[str, ...]:
    """Read prompts of a ShareGPT-style file: a JSON list of conversations, or lines with `prompt` or `text`.

    Of a conversation the first turn is taken. Raises InputError when a conversation has no turn.
    """
    text = read_bytes(path, "dataset", most_bytes=MOST_RECORD_BYTES).decode(errors="replace")
    try:
        records: Any = json.loads(text)
    except ODD:
        records = [_line(path, number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not isinstance(records, list):
        records = [records]
    prompts = [prompt for record in records if len(prompt := _prompt(record)) >= SHORTEST_PROMPT]
    if not prompts:
        raise InputError(
            f'{path}: no prompts; it should be a ShareGPT JSON list ({{"conversations": [{{"value": ...}}]}}) or lines '
            'with {"prompt": ...}'
        )
    return tuple(prompts)


def _line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ODD:
        raise InputError(f"{path}, line {number}: not JSON") from None


def _prompt(record: Any) -> str:
    if isinstance(record, str):
        return record
    if not isinstance(record, dict):
        return ""
    turns = record.get("conversations") or record.get("messages")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict):
        return str(turns[0].get("value") or turns[0].get("content") or "")
    return str(record.get("prompt") or record.get("text") or "")
