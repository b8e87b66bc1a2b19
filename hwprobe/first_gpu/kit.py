"""Runs the half hour: item after item within the part's limit, each kept at once; a killed kit goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from hwprobe.catalogue import gpu_from_catalogue, match_gpu
from hwprobe.choices import DeviceName
from hwprobe.expected import verdict
from hwprobe.first_gpu.folder import Begun, Folder, ItemEnd, ItemRecord
from hwprobe.first_gpu.items import Item, KitPart, On, of_part
from hwprobe.inventory.looks import LookAt
from hwprobe.inventory.nvml import NvmlGpu
from hwprobe.kernels.report import MeasureRequest, Step
from hwprobe.measure import MeasureTask, TaskOutcome
from hwprobe.probe import assemble
from hwprobe.profile import HardwareProfile, Quantity
from hwprobe.session import NVLS_OFF, merge
from hwprobe.watch import ThrottleWatch

# An item is not begun with less time than this left of its part.
LEAST_S = 10.0
# Quantities that must be near the data sheet before the rest is measured.
GATE = {"hbm_copy_gb_s": "memory", "bf16_tflops": "gemm", "fp8_tflops": "gemm"}


class Doing(Protocol):
    """What runs things: children that measure, and the slice recipe. Stood in for in tests."""

    def measure(self, task: MeasureTask, limit_s: float, *, served: bool) -> TaskOutcome:
        """Run a measuring child, in SGLang's interpreter when `served`."""
        ...

    def recipe(self, depths: str, limit_s: float) -> TaskOutcome | str:
        """Run the slice recipe for these depths; a string says why it cannot run."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class KitLimits:
    """How to run: each part's limit of seconds, whether to pass the gate, and whether failed items run again."""

    limit_s: float = 600.0
    go_on: bool = False
    again: bool = False


Shown = Callable[[str], None]


class Kit:
    """One machine's half hour in one folder."""

    def __init__(self, folder: Folder, started: Begun, items: Sequence[Item], doing: Doing) -> None:
        self.folder, self.started, self.items, self._doing = folder, started, tuple(items), doing
        self._known: dict[str, ItemRecord] = {}

    def read(self, name: str) -> ItemRecord | None:
        """Return an item's record, None for one that was not run."""
        if name not in self._known and (record := self.folder.read(name)) is not None:
            self._known[name] = record
        return self._known.get(name)

    def records(self) -> list[ItemRecord]:
        """Return the records of all items, in order."""
        return [record for item in self.items if (record := self.read(item.name)) is not None]

    def went_well(self) -> bool:
        """Return whether everything that ran is done; an item that cannot run here (no SGLang) does not count as
        failed.
        """
        return not any(record.ended in FAILURES for record in self.records())

    def run(self, part: KitPart, limits: KitLimits, look: LookAt, shown: Shown) -> bool:
        """Run what is left of a part; return whether it is complete, False when its time is over before."""
        end = time.monotonic() + limits.limit_s
        fresh = True
        for item in of_part(self.items, part):
            earlier = self.read(item.name)
            if earlier is not None and earlier.stands and not (limits.again and earlier.ended is not ItemEnd.DONE):
                continue
            left_s = end - time.monotonic()
            if left_s < min(LEAST_S, limits.limit_s / 2):
                shown(f"part {part}: out of time before '{item.title}'; run it again to go on")
                return False
            shown(f"{item.name}: {item.title} ...")
            record = self._one(item, limits, look, (left_s, fresh))
            self.folder.write(record)
            self._known[record.name] = record
            fresh = False
            shown(f"{item.name}: {record.ended}{f' ({record.reason})' if record.reason else ''}")
            if not record.stands:
                return False
        return True

    def _one(self, item: Item, limits: KitLimits, look: LookAt, time_left: tuple[float, bool]) -> ItemRecord:
        places, why = self._places(item, limits)
        if why:
            return ItemRecord(name=item.name, title=item.title, ended=ItemEnd.SKIPPED, gpus=places, reason=why)
        limit = min(item.limit_s, time_left[0])
        # Cut off by the part's end it may do better next time, unless it had all of a part to itself.
        cut = limit < item.limit_s and not time_left[1]
        if item.depths is not None:
            return self._recipe(item, places, limit, cut)
        assert item.step is not None
        watch = ThrottleWatch(lambda task: self._doing.measure(task, limit, served=item.served), look)
        outcome = watch(self._task(item, places))
        outcome = self._second_try(item, watch, outcome)
        ended = _ended(outcome, cut)
        return ItemRecord(
            name=item.name,
            title=item.title,
            ended=ended,
            gpus=places,
            reason=outcome.failure or "",
            report=outcome.report,
            working={str(place): state for place in places for state in watch.working(place).values()},
            remarks=tuple(watch.remarks()),
            said=self.folder.say(item.name, outcome.stderr),
        )

    def _second_try(self, item: Item, watch: ThrottleWatch, outcome: TaskOutcome) -> TaskOutcome:
        """Return the outcome of an all-reduce without NVLink SHARP where the first failed, with both reasons."""
        if item.step is not Step.ALL_REDUCE or not outcome.failure or not outcome.task.visible:
            return outcome
        second = watch(replace(outcome.task, settings=(NVLS_OFF,)))
        word = "fails too" if second.failure else "works"
        failure = f"{outcome.failure}; with {NVLS_OFF[0]}={NVLS_OFF[1]} it {word}"
        report = second.report if not second.failure else outcome.report
        return replace(outcome, failure=failure, report=report)

    def _recipe(self, item: Item, places: tuple[int, ...], limit_s: float, cut: bool) -> ItemRecord:
        outcome = self._doing.recipe(item.depths or "", limit_s)
        if isinstance(outcome, str):
            return ItemRecord(name=item.name, title=item.title, ended=ItemEnd.SKIPPED, reason=outcome)
        log = self.folder.say(item.name, outcome.stderr)
        return ItemRecord(
            name=item.name,
            title=item.title,
            ended=_ended(outcome, cut),
            gpus=places,
            reason=outcome.failure or "",
            said=log,
        )

    def _task(self, item: Item, places: tuple[int, ...]) -> MeasureTask:
        gpus = self.started.inventory.gpus
        device = DeviceName.CPU if item.on is On.HOST else DeviceName.CUDA
        assert item.step is not None
        return MeasureTask(
            request=MeasureRequest(step=item.step, device=device, quick=item.quick, ranks=max(2, len(places))),
            gpus=places,
            visible=tuple(gpus[place].uuid or str(gpus[place].index) for place in places),
        )

    def _places(self, item: Item, limits: KitLimits) -> tuple[tuple[int, ...], str]:
        """Return the GPUs of an item, and why it is left out ('' for one that runs)."""
        if item.on is On.HOST:
            return (), ""
        if item.on is On.ONE:
            if item.step is Step.DEVICES:
                return (item.place,), self.started.refused.get(item.place, "")
            quick = item.name.startswith("A-quick")
            return (item.place,), self.unsound(item.place) if quick else self.left_out(item.place, limits)
        sound = [place for place in range(len(self.started.inventory.gpus)) if not self.left_out(place, limits)]
        if item.on is On.ALL and len(sound) < 2:
            return tuple(sound), "fewer than two sound GPUs"
        if not sound:
            return (), "no sound GPU: " + self.left_out(0, limits)
        return tuple(sound if item.on is On.ALL else sound[:1]), ""

    def unsound(self, place: int) -> str:
        """Return why a GPU must not or cannot be measured, '' for one that can."""
        if place in self.started.refused:
            return self.started.refused[place]
        look = self.read(f"A-look-devices-gpu{place}")
        if look is not None and look.stands and look.ended is not ItemEnd.DONE:
            return f"GPU {place} does not answer: {look.reason}"
        return ""

    def left_out(self, place: int, limits: KitLimits) -> str:
        """Return why a GPU is left out after its quick probe: unsound, or far from its data sheet."""
        why = self.unsound(place)
        if why or limits.go_on:
            return why
        for name, step in GATE.items():
            record = self.read(f"A-quick-{step}-gpu{place}")
            quantity = record.report.quantities.get(name) if record and record.report else None
            bad = verdict(name, of_sheet(self.started.inventory.gpus[place], name, quantity))
            if quantity and bad not in ("", "normal"):
                return f"GPU {place}: {name} is {quantity.value:,.0f}, {bad}; stopped here, --go-on measures on"
        return ""

    def profile(self, records: Sequence[ItemRecord]) -> HardwareProfile:
        """Return the machine as these records know it; of two records of one measurement the later counts."""
        outcomes = [
            TaskOutcome(task=MeasureTask(request=_NO_REQUEST, gpus=record.gpus), seconds=0.0, report=record.report)
            for record in records
            if record.report is not None
        ]
        failed = tuple(f"{record.title}: {record.reason}" for record in records if record.ended in FAILURES)
        measured = merge(outcomes)
        working = {
            place: {record.title: record.working[str(place)] for record in records if str(place) in record.working}
            for place in range(len(self.started.inventory.gpus))
        }
        remarks = (*failed, *(remark for record in records for remark in record.remarks), *measured.remarks)
        profile = assemble(self.started.inventory, replace(measured, remarks=remarks, working=working))
        return replace(profile, created=self.started.when, command="tools/first_gpu.py")


FAILURES = (ItemEnd.FAILED, ItemEnd.LATE)
_NO_REQUEST = MeasureRequest(step=Step.DEVICES, device=DeviceName.CUDA, quick=False)


def _ended(outcome: TaskOutcome, cut: bool) -> ItemEnd:
    if not outcome.failure:
        return ItemEnd.DONE
    late = outcome.failure.startswith("not done within")
    return (ItemEnd.CUT if cut else ItemEnd.LATE) if late else ItemEnd.FAILED


def of_sheet(gpu: NvmlGpu, name: str, quantity: Quantity | None) -> float | None:
    """Return a measurement's fraction of the data sheet of the card NVML names, None where either is not known."""
    key = match_gpu(gpu.name, gpu.memory_mib)
    field = "hbm_gb_s" if name.startswith("hbm_") else name
    sheet = getattr(gpu_from_catalogue(key), field, None) if key else None
    return quantity.value / sheet.value if sheet is not None and quantity is not None else None
