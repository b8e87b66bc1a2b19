"""Hypotheses about a table of measurements: every likely way to fill in what the source left out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from packaging.version import Version

from hwprobe.catalogue import gpu_from_catalogue
from models.engine.profile import family_of
from models.engine.tuned import ships_tuned_moe
from models.records.points import Point
from models.version import OLDEST, at_least

# GPUs a table may come from when it does not say: those of the catalogue with published R1 results. The weight is how
# often: eight GB200 are two trays of a rack, and few have a B300.
CANDIDATES = {
    "h200": 1.0, "h100": 1.0, "h20": 1.0, "h20-3e": 1.0, "h800": 1.0, "b200": 1.0, "b300": 0.3, "gb200": 0.1,
    "mi300x": 1.0, "mi325x": 1.0, "mi355x": 1.0,
}  # fmt: skip
# How much a memory size or bandwidth that a table names may differ from a data sheet (141 GB is sold as 140.4 GiB).
SAME_SIZE, SAME_BANDWIDTH = 0.06, 0.03
DESCRIBED = re.compile(r"(?P<gb>\d+(?:\.\d+)?)\s*GB[-\s]+(?P<tbs>\d+(?:\.\d+)?)\s*TB", re.IGNORECASE)
# Prior odds, before any figure counts. Layouts: attention DP and EP of a server of n GPUs.
TP_ALONE, WITH_DP, WITH_EP, WITH_BOTH = 0.7, 0.15, 0.03, 0.12
NO_MTP, PER_MTP_DEPTH = 0.7, 0.1
AS_SHIPPED, TUNED_BY_HAND = 0.85, 0.15
DEFAULT_SETTINGS, WIDE_SETTINGS, FP8_CACHE = 0.65, 0.35, 0.4
READ_AS_OUTPUT, READ_AS_TOTAL = 0.5, 0.5
# Typical settings of a benchmark at full load: graphs to 512 requests, memory to 94 %.
WIDE = "--cuda-graph-max-bs 512 --mem-fraction-static 0.94"
# On these an FP8 cache costs no time, and their vendors' scripts set it.
FP8_KV, FP8_KV_FAMILIES = "--kv-cache-dtype fp8_e4m3", ("blackwell", "cdna3", "cdna4")
SAID = {WIDE: ", graphs to 512, memory fraction 0.94", FP8_KV: ", FP8 KV cache"}
# MTP (NextN) of R1 came with this release.
NEXTN = "0.4.3.post3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """One way to complete every record of a table. `gpu` is a name of the catalogue; `prior` a weight, not normalised.

    `kernels`: "tuned" or "untuned" MoE kernels; `reading`: whether a throughput that is called total counts the
    output alone or input and output tokens; `settings` are flags beyond the layout.
    """

    gpu: str
    tp: int
    attn_dp: int
    ep: int
    mtp_steps: int
    kernels: str
    reading: str
    settings: str = ""
    prior: float = 1.0

    @property
    def deployment(self) -> str:
        """The layout and the settings beyond it."""
        parts = [f"TP{self.tp}", *(f"DP{self.attn_dp}" for _ in range(self.attn_dp > 1))]
        parts += [f"EP{self.ep}" for _ in range(self.ep > 1)]
        return " ".join(parts) + SAID.get(self.settings, "")

    @property
    def mtp(self) -> str:
        return f"{self.mtp_steps} draft steps" if self.mtp_steps else "none"

    def complete(self, point: Point) -> Point:
        """Return the record completed by this hypothesis."""
        flags = " ".join(part for part in (point.launch_args, self.settings) if part) or None
        return replace(
            point, gpu=self.gpu, tp=self.tp, attn_dp=self.attn_dp, ep=self.ep, mtp=self.mtp_steps > 0,
            mtp_steps=self.mtp_steps or None, launch_args=flags,
        )  # fmt: skip


def hypotheses(points: Sequence[Point]) -> Iterator[Hypothesis]:
    """Yield hypotheses that fill in the records' missing fields; a field of one record holds for all of them."""
    version = Version(next((p.engine_version for p in points if p.engine_version), OLDEST))
    gpus = matching_gpus(_given(points, "gpu"))
    readings = [("output", READ_AS_OUTPUT), ("total", READ_AS_TOTAL)] if _ambiguous(points) else [("output", 1.0)]
    whole = sum(CANDIDATES.get(gpu, 1.0) for gpu in gpus)
    for gpu, layout, mtp, reading in product(gpus, _layouts(points), _mtp(points, version), readings):
        (tp, attn_dp, ep), bet = layout
        for setting, (kernels, share) in product(_settings(points, gpu), _kernels(gpu, version, tp, ep)):
            yield Hypothesis(
                gpu=gpu, tp=tp, attn_dp=attn_dp, ep=ep, mtp_steps=mtp[0], kernels=kernels, reading=reading[0],
                settings=setting[0],
                prior=bet * mtp[1] * setting[1] * reading[1] * share * CANDIDATES.get(gpu, 1.0) / whole,
            )  # fmt: skip


def _settings(points: Sequence[Point], gpu: str) -> list[tuple[str, float]]:
    """Flags beyond the layout: those of the records; else the defaults, the largest settings, or an FP8 KV cache."""
    weighted_flags = [("", DEFAULT_SETTINGS)]
    if not any(p.launch_args or p.mem_fraction_static for p in points):
        weighted_flags.append((WIDE, WIDE_SETTINGS))
    chip = gpu_from_catalogue(gpu_name(gpu))
    cache_known = any(p.launch_args or p.kv_dtype for p in points)
    if not cache_known and family_of(chip.name, chip.compute_capability) in FP8_KV_FAMILIES:
        weighted_flags.append((FP8_KV, FP8_CACHE))
    total = sum(weight for _, weight in weighted_flags)
    return [(flags, weight / total) for flags, weight in weighted_flags]


def matching_gpus(text: object) -> list[str]:
    """Return the catalogue's GPUs that a name or a description such as "141GB-4.8TBs" allows; all when it is empty."""
    described = DESCRIBED.search(str(text or ""))
    if described is None:
        return [str(text)] if text else list(CANDIDATES)
    gigabytes, bandwidth = float(described["gb"]), 1000.0 * float(described["tbs"])
    gpus = []
    for name in CANDIDATES:
        gpu = gpu_from_catalogue(name)
        size = gpu.memory_mib.value / 1024.0
        same = abs(size / gigabytes - 1.0) < SAME_SIZE and abs(gpu.hbm_gb_s.value / bandwidth - 1.0) < SAME_BANDWIDTH
        gpus += [name] if same else []
    return gpus or list(CANDIDATES)


def _given(points: Sequence[Point], name: str) -> object:
    return next((value for p in points if (value := getattr(p, name)) not in (None, "")), None)


def _ambiguous(points: Sequence[Point]) -> bool:
    """Whether a throughput is called total without saying which tokens it counts."""
    return any(p.output_tok_s is None and p.extra.get("total_tok_s") for p in points)


def _layouts(points: Sequence[Point]) -> list[tuple[tuple[int, int, int], float]]:
    gpus = max(p.n_gpus for p in points)
    tp, attn_dp, ep = (_given(points, name) for name in ("tp", "attn_dp", "ep"))
    whole = int(str(tp)) if tp else gpus
    bets = [((1, 1), TP_ALONE), ((whole, 1), WITH_DP), ((1, whole), WITH_EP), ((whole, whole), WITH_BOTH)]
    consistent = [
        ((whole, d, e), bet) for (d, e), bet in bets
        if (attn_dp is None or int(str(attn_dp)) == d) and (ep is None or int(str(ep)) == e)
    ]  # fmt: skip
    return consistent or [((whole, int(str(attn_dp or 1)), int(str(ep or 1))), 1.0)]


def _mtp(points: Sequence[Point], version: Version) -> list[tuple[int, float]]:
    mtp_flags = [p.mtp for p in points if p.mtp is not None]
    steps = _given(points, "mtp_steps")
    if steps is not None and any(mtp_flags):
        return [(int(str(steps)), 1.0)]
    depths = [(depth, PER_MTP_DEPTH) for depth in (1, 2, 3)]
    if any(mtp_flags):
        return depths
    if mtp_flags or not at_least(version, NEXTN):
        return [(0, 1.0)]
    return [(0, NO_MTP), *depths]


def _kernels(gpu: str, version: Version, tp: int, ep: int) -> list[tuple[str, float]]:
    """Kernels as the release ships them, or tuned by the source where the release ships none."""
    device = gpu_from_catalogue(gpu_name(gpu)).name
    if ep > 1 or not device.startswith("NVIDIA H") or ships_tuned_moe(version, device, tp):
        return [("tuned", 1.0)]
    return [("untuned", AS_SHIPPED), ("tuned", TUNED_BY_HAND)]


def gpu_name(text: str) -> str:
    """Return the catalogue's spelling of a GPU: 'NVIDIA H200' is h200."""
    words = [word for word in re.split(r"[\s_]+", text.lower()) if word not in ("nvidia", "amd", "sxm", "sxm5", "gpu")]
    return "-".join(words)
