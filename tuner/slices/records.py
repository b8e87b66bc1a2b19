"""Slices in the tuner: which slice stands for a model, its engine, the time it may save, and the evidence."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hwprobe.errors import InputError
from hwprobe.files import append_line, decode_json, encode_json
from models.architecture import ModelArchitecture
from models.config import ServerConfig
from tuner.choices import Objective
from tuner.engines.live import LiveEngine
from tuner.engines.simulated import SimulatedEngine
from tuner.evidence.chain import Link, sealed, start_of, whole_lines
from tuner.evidence.trial_lines import EvidenceSpoiled, cut_torn_line
from tuner.seam import Engine

SLICE_LAYERS = 8
# The source of a launch: the slices, or the sampler without them.
SLICED = "slice"
SAMPLER = "sampler"
# Slices that may be tried before the first promotion, and before each one after it.
MOST_SLICES_FIRST, MOST_SLICES = 5, 2
TRY_AGAIN = "move it away, and its slices are tried again"
# Objectives that one measured point of a slice can rank.
RANKED = (
    Objective.OUTPUT_TOK_S, Objective.OUTPUT_TOK_S_PER_GPU, Objective.OUTPUT_TOK_S_PER_COST, Objective.TPOT,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceRecord:
    """One slice that was tried: when (after so many records of the run), its configuration, and its figures.

    `figures` are natural logarithms by metric; none where the slice did not run. `unfit` says that the configuration,
    not the moment, was at fault.
    """

    after: int
    params: dict[str, Any]
    config: ServerConfig
    figures: dict[str, float] = field(default_factory=dict)
    unfit: bool = False
    reason: str = ""
    spent_s: float = 0.0


def check_objective(objective: Objective) -> None:
    """Raise InputError for an objective that slices cannot rank."""
    if objective not in RANKED:
        raise InputError(f"--fidelity slice ranks {', '.join(RANKED)}; the objective is {objective}")


def slice_for(whole: ModelArchitecture, layers: int = SLICE_LAYERS) -> ModelArchitecture:
    """Return the slice that stands for a model. Raises InputError for a model too small to have one."""
    depth = max(layers, whole.dense_layers + 1)
    if depth >= whole.num_hidden_layers:
        raise InputError(f"--fidelity slice: {whole.name} has {whole.num_hidden_layers} layers, too few to cut it")
    return whole.sliced(depth)


def slices_outlook(whole: ModelArchitecture, trials: int, boot_s: float, slice_boot_s: float) -> dict[str, Any]:
    """Return the hours of boots that slices may cost and save, in a run of so many launches."""
    most = MOST_SLICES_FIRST + MOST_SLICES * max(0, trials - 2)  # the baseline needs none
    return {
        "layers": slice_for(whole).num_hidden_layers,
        "of_layers": whole.num_hidden_layers,
        "most": most,
        "boot_hours": most * slice_boot_s / 3600.0,
        "boot_hours_saved": most * (boot_s - slice_boot_s) / 3600.0,
    }


def sliced_engine(engine: Engine, arch: ModelArchitecture, trials: Path) -> Engine:
    """Return the engine that launches slices: the same machine and locks, the model cut to `arch`."""
    if isinstance(engine, SimulatedEngine):
        return replace(engine, belief=replace(engine.belief, arch=arch))
    if isinstance(engine, LiveEngine):
        return replace(engine, context=replace(engine.context, arch=arch), trials=trials)
    raise InputError(f"--fidelity slice: the {engine.name} engine cannot boot a slice")


class SliceFile:
    """The evidence of slices: one fsynced line each, chained to the one before; a torn last line is cut off."""

    def __init__(self, path: Path) -> None:
        """Read what earlier sessions tried. Raises EvidenceSpoiled for a changed line."""
        self._path = path
        self._chain = start_of(path.parent)
        self.records: list[SliceRecord] = []
        cut_torn_line(path)
        for number, line in enumerate(whole_lines(path) if path.exists() else (), 1):
            link = Link.of(line)
            if not link.follows(self._chain):
                raise EvidenceSpoiled(path, f", line {number}: it is not what was written", TRY_AGAIN)
            self.records.append(decode_json(link.body, SliceRecord, f"{path}, line {number}"))
            self._chain = link.stated

    def append(self, record: SliceRecord) -> None:
        """Add a record: on disk before this returns."""
        line, chain = sealed(encode_json(record, indent=0).encode(), self._chain)
        append_line(self._path, line.decode() + "\n")
        self._chain = chain
        self.records.append(record)
