"""How well slices of a model predict_whole a deeper one on the real SGLang: everything is booted and measured here.

    python benchmarks/slices.py --cpu                                  tiny DeepSeek-V3 on this machine's CPU: 2, 4 -> 8
    python benchmarks/slices.py --hardware h200x1 --python /opt/sglang/bin/python --model-path /models/r1 \\
        --slices 4,5 --whole 6 --decode 128/256@1,16,64,256 -- --tp 1   R1's own dimensions on a GPU

On the CPU all servers run side by side and take turns, so that the machine's moods hit all of them. Prints, for every
load, the medians with their spread, what the slices predict for the deepest, and the error: from medians, and from
the fastest of the repeats, because other work on a machine only ever adds time.

With --points every point is kept the moment it is measured, and servers' logs lie in a folder beside that file. Run
again, only what is missing there is measured: whole slices, or the loads and repeats that a limit of time cut off.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "sglang_cpu"))

from run import FLAGS, install

from hwprobe.catalogue import hardware_from_catalogue
from hwprobe.files import append_line, encode_json, write_atomic
from models.architecture import ModelArchitecture, load_architecture
from models.engine.versions import profile_for
from models.machine import machine_of
from models.records.calibration import Calibration, calibrate
from models.records.case import Case
from models.records.points import point_of
from models.records.slice_fit import FIGURES, WholeFigure, predict_whole
from models.serving.estimate import Context
from models.version import parse_version
from planner.point_case import case_of
from tuner.choices import EngineName
from tuner.engines.world import World
from tuner.slices.launch import LEFT_OUT, SliceLoad, layout_of, loads_of, slices_of
from tuner.slices.run import SliceQuestion, run_slices

CPU_FLAGS = (*FLAGS, "--sleep-on-idle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One load: what the slices and the whole showed (every repeat), and what was foretold for the whole."""

    load: str
    metric: str
    seen: dict[int, list[float]]
    foretold: WholeFigure

    @property
    def measured(self) -> float:
        return statistics.median(self.seen[max(self.seen)])

    @property
    def error(self) -> float:
        return self.measured / self.foretold.dummy - 1.0

    @property
    def scatter(self) -> float:
        """Relative standard error of the comparison: of what was foretold, and of the whole's median."""
        values = self.seen[max(self.seen)]
        own = statistics.stdev(map(math.log, values)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        return math.hypot(self.foretold.deviation, 1.25 * own)


def cases_of(records: Sequence[dict[str, Any]], whole: ModelArchitecture, context: Context) -> list[Case]:
    """Return the usable points as cases of the whole and its slices."""
    usable = [record for record in records if record["role"] != LEFT_OUT]
    return [case_of(point_of(record), context.engine, whole, context.machine) for record in usable]


def fastest(cases: Sequence[Case]) -> list[Case]:
    """Return one case per load and depth, with the best of every figure over the repeats."""
    groups: dict[tuple[Any, int], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.run, case.context.arch.num_hidden_layers), []).append(case)
    fastest_cases = []
    for members in groups.values():
        values_of = {name: [case.measured[name] for case in members if name in case.measured] for name in FIGURES}
        best = {name: (max if name == "output_tok_s" else min)(values) for name, values in values_of.items() if values}
        fastest_cases.append(replace(members[0], measured=best))
    return fastest_cases


def settled(records: Sequence[dict[str, Any]], within: float = 0.1) -> bool:
    """Whether of every load and depth the two fastest repeats agree `within`: nothing held them up."""
    values_of: dict[tuple[Any, ...], list[float]] = {}
    for record in records:
        own = values_of.setdefault(
            (record["isl"], record["osl"], record["concurrency"], record["num_hidden_layers"]), []
        )
        if record["role"] != LEFT_OUT:
            own.append(record["tpot_mean_ms"])
    return all(len(own) > 1 and sorted(own)[1] <= (1.0 + within) * min(own) for own in values_of.values())


def compare(cases: Sequence[Case], whole: ModelArchitecture, context: Context) -> tuple[list[Compared], Calibration]:
    """Calibrate from the slices alone and compare the whole they predict_whole with the whole that was measured."""
    slices = [case for case in cases if case.context.arch.sliced_from]
    calibration = calibrate(slices, context.engine)
    compared = []
    for figure in predict_whole(slices, whole, calibration.profile):
        values_of: dict[int, list[float]] = {}
        for case in cases:
            if case.run == figure.run and figure.metric in case.measured:
                values_of.setdefault(case.context.arch.num_hidden_layers, []).append(case.measured[figure.metric])
        if whole.num_hidden_layers in values_of:
            run = figure.run
            load = f"{run.isl.nominal}/{run.osl.nominal} c={run.concurrency}"
            compared.append(Compared(load=load, metric=figure.metric, seen=values_of, foretold=figure))
    return compared, calibration


def question_of(options: argparse.Namespace, where: Path) -> SliceQuestion:
    """Return what to run; `where` keeps the servers' logs."""
    if options.cpu:
        installed = install()
        options.python, options.model_path, options.together = str(installed.python), str(installed.deep), True
        options.flags = [*CPU_FLAGS, *options.flags]
    machine = hardware_from_catalogue(options.hardware)
    version = parse_version(options.sglang_version)
    arch = load_architecture(Path(options.model_path))
    whole = arch.sliced(options.whole or arch.num_hidden_layers)
    whole = replace(whole, sliced_from=0)  # as deep as this measurement goes
    context = Context(arch=whole, machine=machine_of(machine), engine=profile_for(version), version=version)
    write_atomic(where / "hardware.json", encode_json(machine) + "\n")
    return SliceQuestion(
        here=layout_of(context, options.flags),
        slices=(*slices_of(whole, options.slices, None), whole),
        loads=(*loads_of(options.decode, "--decode"), *loads_of(options.prefill, "--prefill")),
        engine=EngineName.LOCAL, world=World(), where=where, model_path=options.model_path, python=options.python,
        repeats=options.repeats, rounds=options.rounds, together=options.together, point_s=options.point_s,
    ).checked()  # fmt: skip


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cpu", action="store_true", help="the tiny model on this machine's CPU")
    arguments.add_argument("--hardware", default="h200x1")
    arguments.add_argument("--python", default="python3")
    arguments.add_argument("--model-path", default="")
    arguments.add_argument("--sglang-version", default="0.5.23")
    arguments.add_argument("--slices", default="2,4")
    arguments.add_argument("--whole", type=int, default=0, help="layers of the deepest; default: all of the model")
    arguments.add_argument("--decode", default="32/16@1,4")
    arguments.add_argument("--prefill", default="")
    arguments.add_argument("--repeats", type=int, default=20)
    arguments.add_argument("--rounds", type=int, default=1)
    arguments.add_argument("--point-s", type=float, default=0.3)
    arguments.add_argument("--together", action="store_true")
    arguments.add_argument("--points", type=Path, help="keep the measured points in this file; measure what it lacks")
    arguments.add_argument("--only", type=int, default=0, help="measure only this depth (layers), and compare nothing")
    arguments.add_argument("flags", nargs="*", help="SGLang flags, after --")
    return arguments


def kept_points(path: Path | None) -> list[dict[str, Any]]:
    """Return the points of a file, if it exists; a last line that was cut off is taken out of it."""
    if path is None or not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_atomic(path, whole)
    return [json.loads(line) for line in whole.splitlines()]


def lacking(question: SliceQuestion, records: Sequence[dict[str, Any]], only: int = 0) -> list[SliceQuestion]:
    """Return what is left to measure: a question per slice (one for all that run side by side), none for whole ones."""
    counts = Counter(
        (record["num_hidden_layers"], record["isl"], record["osl"], record["concurrency"]) for record in records
    )

    def short(depth: int, load: SliceLoad) -> int:
        return question.rounds * question.repeats - counts[depth, load.isl, load.osl, load.clients]

    slices_asked = [arch for arch in question.slices if only in (0, arch.num_hidden_layers)]
    groups = [tuple(slices_asked)] if question.together else [(arch,) for arch in slices_asked]
    questions = []
    for group in groups:
        slices = tuple(
            arch for arch in group if any(short(arch.num_hidden_layers, load) > 0 for load in question.loads)
        )
        loads = [load for load in question.loads if any(short(arch.num_hidden_layers, load) > 0 for arch in slices)]
        most = max((short(arch.num_hidden_layers, load) for arch in slices for load in loads), default=0)
        rounds = question.rounds if most == question.rounds * question.repeats else 1
        if slices:
            questions.append(
                replace(question, slices=slices, loads=tuple(loads), rounds=rounds, repeats=-(-most // rounds))
            )
    return questions


def measure_lacking(question: SliceQuestion, points: Path | None, only: int = 0) -> list[dict[str, Any]]:
    """Measure what the file of points lacks, keep every point at once, and return all of them."""
    records = kept_points(points)
    names = {record["id"] for record in records}
    for lacked in lacking(question, records, only):
        for record in run_slices(lacked, lambda text: print(text, file=sys.stderr)):
            record = record | {"id": record["id"] if record["id"] not in names else f"{record['id']}.{len(names)}"}
            names.add(record["id"])
            records.append(record)
            if points:
                append_line(points, encode_json(record, indent=0) + "\n")
    return records


def logs_beside(points: Path | None, folder: str) -> Path:
    """Return where servers' logs go: beside the points, where a message that names one is still true afterwards."""
    where = points.resolve().with_name(f"{points.name}.logs") if points else Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    return where


def main() -> None:
    options = parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="sgtune-slices-") as folder:
        question = question_of(options, logs_beside(options.points, folder))
        records = measure_lacking(question, options.points, options.only)
    if options.only:
        print(f"{options.only} layers: {sum(record['num_hidden_layers'] == options.only for record in records)} points")
        return
    context = question.here.context
    cases = cases_of(records, context.arch, context)
    for title, chosen in ((f"medians of {options.repeats}", cases), (f"fastest of {options.repeats}", fastest(cases))):
        compared, calibration = compare(chosen, context.arch, context)
        print(
            f"{title} (lowest to highest); prior widened {calibration.width:.0f} times; "
            "foretold over measured, less one"
        )
        show(compared)


def show(compared: Sequence[Compared]) -> None:
    for item in compared:
        cells = [
            f"{layers} layers {statistics.median(values):,.2f} ({min(values):,.2f} to {max(values):,.2f})"
            for layers, values in sorted(item.seen.items())
        ]
        figure = item.foretold
        print(
            f"{item.load} | {item.metric} | {' | '.join(cells)} | foretold {figure.dummy:,.2f} +- "
            f"{100 * figure.deviation:.0f} % | error {100 * item.error:+.1f} %"
        )


if __name__ == "__main__":
    main()
