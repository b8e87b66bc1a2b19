"""Which constants the half hour says are wrong, and a patch of their files and of the machine's own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from hwprobe.expected import EXPECTED
from hwprobe.files import encode_json
from hwprobe.first_gpu.judge import SeenItems
from hwprobe.profile import Basis, HardwareProfile

EXPECTED_FILE = "hwprobe/expected.py"
TRANSFER_FILE = "models/engine/transfer.py"
MACHINES = "examples/hardware"
_STREAM = re.compile(r"^(REFERENCE_STREAM_OVER_READ = )([\d.]+)$", re.MULTILINE)
_STREAM_ERROR = re.compile(r"^(REFERENCE_STREAM_ERROR = )([\d.]+)$", re.MULTILINE)
# One server stands for all: repeats on a card agree within 3 %, and cards differ.
LEAST_ERROR = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """One constant: its file, what it is now and what was seen on the reference; `spread` is between its GPUs."""

    file: str
    name: str
    now: float
    error: float
    seen: float
    spread: float = 0.0

    @property
    def changes(self) -> bool:
        return abs(self.seen - self.now) > 0.005

    @property
    def beyond(self) -> bool:
        """Whether the measured value lies outside the constant's stated error."""
        return abs(self.seen - self.now) > self.error


def proposals(items: SeenItems, profile: HardwareProfile, checkout: Path) -> tuple[Constant, ...]:
    """Return every constant that this machine can check: on the reference card (H200) alone."""
    return tuple(_proposals(profile, checkout)) if items.is_reference else ()


def _proposals(profile: HardwareProfile, checkout: Path) -> Iterator[Constant]:
    for name, expected in EXPECTED.items():
        fractions = [_fraction(profile, place, name) for place in range(len(profile.gpus))]
        shares = [share for share in fractions if share is not None]
        if shares:
            yield Constant(
                file=EXPECTED_FILE,
                name=name,
                now=expected.fraction,
                error=expected.error,
                seen=median(shares),
                spread=max(shares) - min(shares),
            )
    ratios = [
        gpu.measured["stream_gb_s"].value / gpu.measured["hbm_gb_s"].value
        for gpu in profile.gpus
        if {"stream_gb_s", "hbm_gb_s"} <= set(gpu.measured)
    ]
    text = (checkout / TRANSFER_FILE).read_text(encoding="utf-8")
    now, error = _STREAM.search(text), _STREAM_ERROR.search(text)
    if ratios and now and error:
        yield Constant(
            file=TRANSFER_FILE,
            name="REFERENCE_STREAM_OVER_READ",
            now=float(now[2]),
            error=float(error[2]),
            seen=median(ratios),
        )


def _fraction(profile: HardwareProfile, place: int, name: str) -> float | None:
    gpu = profile.gpus[place]
    if name == "nvlink_gb_s":
        link = gpu.nvlink_gb_s
        return link.fraction if link and link.basis is Basis.MEASURED else None
    quantity = gpu.measured.get(name)
    return quantity.fraction if quantity else None


def patch(constants: tuple[Constant, ...], profile: HardwareProfile, name: str, checkout: Path) -> str:
    """Return a unified diff for `patch -p1` or `git apply` in a checkout: the constants, and the machine's file."""
    texts = {file: (checkout / file).read_text(encoding="utf-8") for file in (EXPECTED_FILE, TRANSFER_FILE)}
    after = dict(texts)
    for constant in constants:
        if constant.changes:
            after[constant.file] = _changed(after[constant.file], constant)
    parts = [_diff(file, texts[file], after[file]) for file in texts]
    machine = f"{MACHINES}/{name}.json"
    if not (checkout / machine).exists() and profile.gpus:
        parts.append(_diff(machine, None, encode_json(profile) + "\n"))
    return "".join(parts)


def _changed(text: str, constant: Constant) -> str:
    if constant.file == TRANSFER_FILE:
        return _STREAM.sub(lambda match: f"{match[1]}{constant.seen:.2f}", text)
    pattern = re.compile(rf'("{constant.name}": DataSheetShare\(fraction=)([\d.]+)(, error=)([\d.]+)')

    def written(match: re.Match[str]) -> str:
        error = min(float(match[4]), max(LEAST_ERROR, constant.spread))
        return f"{match[1]}{constant.seen:.2f}{match[3]}{error:.2f}"

    return pattern.sub(written, text)


def _diff(file: str, before: str | None, after: str) -> str:
    old = [] if before is None else before.splitlines(keepends=True)
    source = "/dev/null" if before is None else f"a/{file}"
    return "".join(difflib.unified_diff(old, after.splitlines(keepends=True), source, f"b/{file}"))
