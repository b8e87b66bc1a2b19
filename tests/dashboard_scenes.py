"""Run folders in every state a page may meet, and a made-up measured machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil

from hwprobe.catalogue import hardware_from_catalogue
from hwprobe.files import encode_json
from hwprobe.profile import AllReduce, Basis, GpuProfile, HardwareProfile, Quantity
from tuner.evidence.live_state import LIVE_FILE, LiveTrial, RunState, read_live
from tuner.evidence.trial import TrialOutcome, TrialRecord
from tuner.evidence.trial_lines import read_trials, write_trials
from tuner.seam import FailureKind, Measurement

STATES = ("no run", "empty", "running", "finished", "failed", "torn", "deleted")
RUN = "small"
TUNE = (
    "tune", "--hardware", "h200x8", "--isl", "200", "--osl", "200", "--concurrency", "16", "--engine", "simulated",
    "--sglang-version", "0.5.12", "--slo", "tpot:mean<40ms", "--trials", "5", "--confirm", "1",
)  # fmt: skip


def make_run(root: Path) -> Path:
    """Tune a small question on the simulated engine; return its folder."""
    command = [sys.executable, "-m", "tuner.cli.main", *TUNE, "--runs", str(root), "--run", RUN]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONSAFEPATH": "1"})
    return root / RUN


def put(source: Path, root: Path, state: str) -> Path:
    """Make `root` a folder of runs in one of STATES, from a finished run; return the run's folder."""
    run = root / RUN
    root.mkdir(parents=True, exist_ok=True)
    if state == "no run":
        return run
    shutil.copytree(source, run)
    records = read_trials(source / "trials.jsonl")
    if state == "empty":
        for name in ("trials.jsonl", "trials.head", "result.json", LIVE_FILE):
            (run / name).unlink()
    elif state == "running":
        current = [record for record in records if record.launched][3]
        begin(run, records[: records.index(current)], current)
    elif state == "failed":
        failed = replace(
            records[-1], number=len(records), outcome=TrialOutcome.FAILED, failure=FailureKind.NCCL, points=(),
            repeats=None,
            reason="NCCL watchdog timed out",
        )  # fmt: skip
        write_records(run, [*records, failed])
        write_live(run, state=RunState.FAILED, message="trial 7 stopped the run (gpu_lost): GPU 3 fell off the bus")
    elif state == "torn":
        with (run / "trials.jsonl").open("a") as stream:
            stream.write('{"number":99,"source":"samp')
    return run


def write_records(run: Path, records: list[TrialRecord]) -> None:
    write_trials(run / "trials.jsonl", records)


def write_live(run: Path, **changes: object) -> None:
    """Write live.json as the tuner would, from the one that is there."""
    live = read_live(run)
    assert live is not None
    changed = replace(live, **changes)  # type: ignore[arg-type]  # field names are checked by replace
    temporary = run / ".live.new"
    temporary.write_text(encode_json(changed))
    temporary.replace(run / LIVE_FILE)


def begin(run: Path, done: list[TrialRecord], current: TrialRecord) -> None:
    """Make the run one that this very process is carrying on, with one point of `current` measured."""
    (run / "result.json").unlink()
    write_records(run, done)
    own = psutil.Process()
    write_live(
        run, state=RunState.RUNNING, phase="measuring 8 clients", phase_began_s=time.time(), pid=own.pid,
        born_s=own.create_time(), host=socket.gethostname(), message="", trial=live_trial(current, current.points[:1]),
    )  # fmt: skip


def live_trial(record: TrialRecord, points: tuple[Measurement, ...]) -> LiveTrial:
    predicted = record.predicted
    return LiveTrial(
        number=record.number, source=record.source, config=record.config, predicted_tok_s=predicted["output_tok_s"],
        band_tok_s=(predicted["output_tok_s_low"], predicted["output_tok_s_high"]),
        asked=max(point.concurrency for point in record.points), points=points, began_s=time.time(),
    )  # fmt: skip


RATES = {
    "hbm_gb_s": (4370.0, 4800.0), "hbm_copy_gb_s": (4310.0, 4800.0), "hbm_triad_gb_s": (4320.0, 4800.0),
    "bf16_tflops": (790.0, 989.0), "fp8_tflops": (1350.0, 1979.0),
    "stream_gb_s": (4150.0, None), "graph_node_us": (1.4, None), "eager_launch_us": (4.0, None),
}  # fmt: skip


def measured(value: float, sheet: float | None = None) -> Quantity:
    return Quantity(value=value, basis=Basis.MEASURED, source="made up for tests", spread=0.01, sheet=sheet)


def measured_machine(name: str = "made-up", slow: float = 0.78) -> HardwareProfile:
    """Return the machine; `slow` is what the last GPU reaches of its siblings' memory rates."""
    base = hardware_from_catalogue("h200x8")

    def gpu(index: int) -> GpuProfile:
        def factor(quantity: str) -> float:
            return slow if index == 7 and quantity.startswith("hbm") else 1.0

        found = {each: measured(value * factor(each), sheet) for each, (value, sheet) in RATES.items()}
        return replace(base.gpus[index], measured=found, nvlink_gb_s=measured(380.0, 450.0))

    rates = tuple(tuple(None if r == c else 380.0 - (60.0 if 7 in (r, c) else 0.0) for c in range(8)) for r in range(8))
    return replace(
        base,
        name=name,
        gpus=tuple(gpu(index) for index in range(8)),
        p2p_gb_s=rates,
        p2p_latency_us=tuple(tuple(None if value is None else 2.1 for value in row) for row in rates),
        all_reduce=(AllReduce(ranks=8, message_bytes=2**20, backend="nccl", time_us=measured(31.0)),),
        warnings=("GPU 7 is slower than its siblings",),
        software={"driver": "made up"},
    )
