"""The half hour's checks: expected against measured, a line each, also for places that only a GPU can check."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hwprobe.catalogue import gpu_from_catalogue, match_gpu
from hwprobe.expected import EXPECTED
from hwprobe.first_gpu.folder import ItemEnd, ItemRecord
from hwprobe.inventory.nvml import Inventory, NvmlGpu
from hwprobe.profile import Quantity

REFERENCE = "h200"
# Of one H200: what other people's measurements and NVIDIA's tools say (GB/s, TFLOP/s).
QUICK = {"hbm_copy_gb_s": (4200.0, 4400.0), "bf16_tflops": (750.0, 800.0), "fp8_tflops": (1200.0, 1450.0)}
REPEATED = ("hbm_gb_s", "hbm_copy_gb_s", "stream_gb_s", "graph_node_us", "bf16_tflops", "fp8_tflops")
REPEAT_TOLERANCE = 0.03
DRIFT_TOLERANCE = 0.02
BUS_BITS, POWER_W = 6144, 700.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One expectation against what was seen; `holds` is None where it was not seen. `place` is of the reading."""

    what: str
    expected: str
    seen: str
    holds: bool | None
    place: str = ""


class SeenItems:
    """The records of a half hour by name, and their quantities."""

    def __init__(self, inventory: Inventory, records: Sequence[ItemRecord]) -> None:
        self.inventory = inventory
        self.records = {record.name: record for record in records}

    @property
    def first(self) -> int:
        """The GPU that single items ran on."""
        for name in ("A-repeat-memory", "B-ablation-ablation"):
            if name in self.records and self.records[name].gpus:
                return self.records[name].gpus[0]
        return 0

    @property
    def is_reference(self) -> bool:
        return bool(self.inventory.gpus) and all(
            match_gpu(gpu.name, gpu.memory_mib) == REFERENCE for gpu in self.inventory.gpus
        )

    def get(self, record: str, name: str) -> Quantity | None:
        """Return a quantity of the first GPU from the record called `record`, None if it was not measured."""
        for full in (record, f"{record}-gpu{self.first}"):
            item = self.records.get(full)
            if item is not None and item.report is not None and name in item.report.quantities:
                return item.report.quantities[name]
        return None

    def value(self, record: str, name: str) -> float | None:
        quantity = self.get(record, name)
        return None if quantity is None else quantity.value


def checks(items: SeenItems) -> tuple[Check, ...]:
    """Return every check, in the order of the half hour."""
    results: list[Check] = []
    for part in (_machine, _quick, _repeats, _working, _measuring, _together, _served, _failures):
        results.extend(part(items))
    return tuple(results)


def _range(title: str, value: float | None, span: tuple[float, float], unit: str, place: str = "") -> Check:
    low, high = span
    holds = None if value is None else low <= value <= high
    shown = "not measured" if value is None else f"{value:,.4g} {unit}"
    return Check(what=title, expected=f"{low:,.4g} to {high:,.4g} {unit}", seen=shown, holds=holds, place=place)


def _machine(items: SeenItems) -> Iterator[Check]:
    for gpu in items.inventory.gpus:
        yield from _card(gpu)
    looks = [record for name, record in items.records.items() if "-look-" in name]
    good = [record for record in looks if record.ended is ItemEnd.DONE]
    software = next((record.report.software for record in good if record.report), {})
    yield Check(
        what="torch starts on this driver, in a child of a bare checkout",
        expected="every GPU answers",
        seen=f"{len(good)} of {len(looks)}; " + ", ".join(f"{name} {version}" for name, version in software.items()),
        holds=len(good) == len(looks) if looks else None,
        place="14, 15",
    )
    refused = [record.reason for record in looks if record.ended is ItemEnd.SKIPPED]
    yield Check(
        what="no idle card is refused as busy or for its fabric",
        expected="no refusal",
        seen="; ".join(refused) or "none",
        holds=not refused if looks else None,
        place="5, 6",
    )


def _card(gpu: NvmlGpu) -> Iterator[Check]:
    key = match_gpu(gpu.name, gpu.memory_mib)
    if key is None:
        yield Check(what=f"GPU {gpu.index}", expected="a known card", seen=gpu.name, holds=False)
        return
    sheet, state = gpu_from_catalogue(key), gpu.state
    sms = sheet.sm_count.value if sheet.sm_count else None
    sheet_figures: dict[str, float | None] = {
        "MiB": round(sheet.memory_mib.value),
        "SMs": None if sms is None else round(sms),
        "ECC": True,
    }
    card_figures: dict[str, float | None] = {"MiB": round(gpu.memory_mib), "SMs": gpu.sm_count, "ECC": state.ecc}
    if key == REFERENCE:
        sheet_figures |= {"bit": BUS_BITS, "W": POWER_W}
        card_figures |= {"bit": state.memory_bus_bits, "W": state.power_limit_w}
    comparable = {
        name: value for name, value in card_figures.items() if value is not None and sheet_figures[name] is not None
    }
    yield Check(
        what=f"GPU {gpu.index} is the card its name says",
        expected=", ".join(f"{name} {value}" for name, value in sheet_figures.items()),
        seen=", ".join(f"{name} {value}" for name, value in card_figures.items()),
        holds=all(value == sheet_figures[name] for name, value in comparable.items())
        if len(comparable) == len(sheet_figures)
        else None,
    )


def _quick(items: SeenItems) -> Iterator[Check]:
    steps = {"hbm_copy_gb_s": "memory", "bf16_tflops": "gemm", "fp8_tflops": "gemm"}
    for name, step in steps.items():
        unit = "GB/s" if name.endswith("gb_s") else "TFLOP/s"
        for place, gpu in enumerate(items.inventory.gpus):
            record = items.records.get(f"A-quick-{step}-gpu{place}")
            value = record.report.quantities.get(name) if record and record.report else None
            low, high = QUICK[name]
            if not items.is_reference:
                key = match_gpu(gpu.name, gpu.memory_mib)
                sheet = getattr(gpu_from_catalogue(key), name.replace("copy_", ""), None) if key else None
                if sheet is None:
                    continue
                low, high = EXPECTED[name].low * sheet.value, sheet.value
            yield _range(f"GPU {place}: quick {name}", None if value is None else value.value, (low, high), unit)


def _repeats(items: SeenItems) -> Iterator[Check]:
    steps = dict.fromkeys(("hbm_gb_s", "hbm_copy_gb_s"), "memory") | dict.fromkeys(
        ("bf16_tflops", "fp8_tflops"), "gemm"
    )
    steps |= {"stream_gb_s": "stream", "graph_node_us": "launch"}
    for name in REPEATED:
        once, again = (items.value(f"A-{why}-{steps[name]}", name) for why in ("full", "repeat"))
        change = None if once is None or again is None else again / once - 1.0
        yield Check(
            what=f"{name} measured twice",
            expected=f"within {REPEAT_TOLERANCE:.0%}",
            seen="not measured twice" if change is None else f"{once:,.4g} and {again:,.4g} ({change:+.1%})",
            holds=None if change is None else abs(change) <= REPEAT_TOLERANCE,
        )
    yield _range("one node of a CUDA graph", items.value("A-full-launch", "graph_node_us"), (1.0, 2.0), "us")
    drift = [items.value(record, "hbm_copy_gb_s") for record in ("A-quick-memory", "B-drift-memory")]
    change = drift[1] / drift[0] - 1.0 if drift[0] and drift[1] else None
    yield Check(
        what="the copy again, with the card hot",
        expected=f"within {DRIFT_TOLERANCE:.0%}",
        seen="not measured" if change is None else f"{change:+.1%}",
        holds=None if change is None else abs(change) <= DRIFT_TOLERANCE,
    )


def _working(items: SeenItems) -> Iterator[Check]:
    for name in ("bf16", "fp8"):
        burst = items.value("A-full-gemm", f"{name}_tflops")
        sustained = items.value("A-full-sustained", f"{name}_sustained_tflops")
        share = sustained / burst if sustained and burst else None
        yield _range(f"{name} for ten seconds over the burst", share, (0.85, 1.02), "times")
    record = items.records.get(f"A-full-sustained-gpu{items.first}")
    states = list(record.working.values()) if record else []
    complete = [state for state in states if state.sm_clock_mhz and state.power_w]
    shown = ", ".join(f"{state.sm_clock_mhz:,.0f} MHz at {state.power_w:,.0f} W" for state in complete)
    yield Check(
        what="clock and power beside the sustained rate",
        expected="both noted",
        seen=shown or "not noted",
        holds=bool(complete) if record else None,
        place="17",
    )


def _measuring(items: SeenItems) -> Iterator[Check]:
    of = "B-ablation-ablation"
    yield _range("cycles of the spin kernel", items.value(of, "ablation_spin_mhz"), (1000.0, 2100.0), "MHz", "8")
    for name in ("mm", "scaled_mm", "replay"):
        yield _range(f"queueing one {name}", items.value(of, f"ablation_queue_{name}_us"), (0.1, 50.0), "us", "8")
    best = items.get("A-full-memory", "hbm_gb_s")
    sheet = EXPECTED["hbm_gb_s"]
    reads = {name: items.value("A-full-memory", f"hbm_read_{name}_gb_s") for name in ("sum", "mv", "amax")}
    reads["aligned GEMM"] = items.value("A-full-stream", "stream_256mib_gb_s")
    rates = {name: value for name, value in reads.items() if value}
    of_sheet = _of_sheet(items, "hbm_gb_s", best.value if best else None)
    yield Check(
        what="reading, by four kernels",
        expected=f"the best reaches {sheet.fraction:.2f} +- {sheet.error:.2f} of the sheet",
        seen=", ".join(f"{name} {value:,.0f}" for name, value in rates.items())
        + (f"; {max(rates, key=rates.__getitem__)} is best, {of_sheet:.3f}" if of_sheet and rates else ""),
        holds=None if of_sheet is None else abs(of_sheet - sheet.fraction) <= sheet.error,
        place="7",
    )
    for mib in (4, 16, 64, 256):
        pair = [items.get(of, f"ablation_stream_{mib}mib_{word}_gb_s") for word in ("as_asked", "aligned")]
        ratio = pair[1].value / pair[0].value if pair[0] and pair[1] else None
        kernels = " | ".join(quantity.source.partition("kernels ")[2] for quantity in pair if quantity)
        yield Check(
            what=f"weights of {mib} MiB with aligned columns over those as asked",
            expected="0.98 or more",
            seen="not measured" if ratio is None else f"{ratio:.3f}; {kernels}",
            holds=None if ratio is None else ratio >= 0.98,
            place="1",
        )
    yield from _short(items, of)


def _of_sheet(items: SeenItems, name: str, value: float | None) -> float | None:
    gpus = items.inventory.gpus
    key = match_gpu(gpus[0].name, gpus[0].memory_mib) if gpus else None
    sheet = getattr(gpu_from_catalogue(key), name, None) if key else None
    return value / sheet.value if sheet is not None and value else None


def _short(items: SeenItems, of: str) -> Iterator[Check]:
    record = items.records.get(of)
    names = record.report.quantities if record and record.report else {}
    shapes = sorted({match[1] for name in names if (match := re.match(r"ablation_gemm_(\w+)_graph_cold_us", name))})
    for shape in shapes or ["256 rows"]:
        time = {
            (how, cache): items.value(of, f"ablation_gemm_{shape}_{how}_{cache}_us")
            for how in ("eager", "graph")
            for cache in ("warm", "cold")
        }
        for comparison, above, below, place in (
            ("cold weights over warm", ("graph", "cold"), ("graph", "warm"), "9"),
            ("queued over in a graph", ("eager", "cold"), ("graph", "cold"), "8"),
        ):
            a, b = time[above], time[below]
            ratio = a / b if a and b else None
            yield _range(f"GEMM {shape}, {comparison}", ratio, (0.97, 4.0), "times", place)
    zeros, random = items.value(of, "ablation_bf16_zeros_tflops"), items.value("A-full-gemm", "bf16_tflops")
    yield _range("BF16 of zeros over random data", zeros / random if zeros and random else None, (0.99, 1.2), "times")


def _together(items: SeenItems) -> Iterator[Check]:
    if len(items.inventory.gpus) < 2:
        return
    record = items.records.get("B-together-p2p")
    report = record.report if record else None
    one_way = [rate for row in (report.p2p_gb_s if report else None) or () for rate in row if rate]
    both = [rate for row in (report.p2p_both_gb_s if report else None) or () for rate in row if rate]
    small = [time for row in (report.p2p_latency_us if report else None) or () for time in row if time]
    link = EXPECTED["nvlink_gb_s"]
    share = _of_sheet(items, "nvlink_gb_s", min(one_way, default=0.0) or None)
    yield _range("slowest pair over the sheet's link", share, (link.low, 1.0), "times", "10")
    yield _range(
        "both ways at once over one", min(both) / min(one_way) if both and one_way else None, (1.6, 2.05), "times"
    )
    everyone = report.all_to_all_gb_s.value if report and report.all_to_all_gb_s else None
    yield _range(
        "all to all over one pair", everyone / min(one_way) if everyone and one_way else None, (0.6, 1.1), "times"
    )
    yield _range("torch's copy of 4 KiB, barrier and all", min(small, default=None), (2.0, 40.0), "us", "10")
    nccl = items.records.get("B-together-all-reduce")
    points = nccl.report.all_reduce if nccl and nccl.report else ()
    yield Check(
        what="NCCL's figures, whatever becomes of symmetric memory",
        expected="messages of every size",
        seen=", ".join(f"{point.message_bytes:,} B {point.time_us.value:,.1f} us" for point in points) or "none",
        holds=None if nccl is None else bool(points),
        place="12, 13",
    )


def _served(items: SeenItems) -> Iterator[Check]:
    block, tensor = items.value("C-served-deep-gemm", "fp8_block_tflops"), items.value("A-full-gemm", "fp8_tflops")
    yield _range(
        "DeepGEMM's block-scaled FP8 over per-tensor",
        block / tensor if block and tensor else None,
        (0.5, 1.05),
        "times",
    )
    record = items.records.get("C-served-flash-mla")
    quantities = record.report.quantities if record and record.report else {}
    shown = ", ".join(f"{name} {q.value:,.1f}" for name, q in quantities.items())
    missing = "; ".join(record.report.missing) if record and record.report else ""
    yield Check(
        what="FlashMLA's decode", expected="runs", seen=shown or missing or "not run",
        holds=bool(shown) if record and record.ended is not ItemEnd.SKIPPED else None,
    )  # fmt: skip
    boot = items.records.get("C-boot")
    yield Check(
        what="four layers of R1 boot and are measured, the log kept",
        expected="done",
        seen=f"{boot.ended} {boot.reason}".strip() if boot else "not run",
        holds=boot.ended is ItemEnd.DONE if boot and boot.ended is not ItemEnd.SKIPPED else None,
        place="3, 4, 16",
    )


def _failures(items: SeenItems) -> Iterator[Check]:
    failed = [record for record in items.records.values() if record.ended in (ItemEnd.FAILED, ItemEnd.LATE)]
    named = [record for record in failed if record.reason and "TORCH_USE_CUDA_DSA" not in record.reason]
    yield Check(
        what="every failure names its error",
        expected="a reason each",
        seen=f"{len(named)} of {len(failed)}",
        holds=len(named) == len(failed),
        place="2",
    )
    yield Check(
        what="bytes that are copied are random",
        expected="tests/hwprobe/test_first_run.py",
        seen="needs no GPU",
        holds=True,
        place="11",
    )
