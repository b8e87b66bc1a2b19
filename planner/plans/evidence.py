"""Evidence: the published records that stand behind a family of configurations on a machine, and their error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from hwprobe.files import decode_json
from models.architecture import ModelArchitecture
from models.config import ServerConfig
from models.machine import Machine

# Written by tools/write_evidence.py from the shipped records and engine profiles; below models/.
EVIDENCE_FILE = "data/evidence.json"
# Two machines are of one kind when memory and bandwidth differ by less than this (log units): a probe measures both.
SAME_MACHINE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFamily:
    """A kind of configuration on a kind of machine."""

    compute_capability: str
    memory_gib: float
    hbm_tb_s: float
    nodes: int
    attention_dp: bool
    expert_parallel: bool
    mtp: bool

    @property
    def where(self) -> str:
        """Name the kind of configuration."""
        kinds = [
            "attention DP" if self.attention_dp else "TP",
            *(["EP"] if self.expert_parallel else []),
            *(["MTP"] if self.mtp else []),
        ]
        return " + ".join(kinds) + (f" on {self.nodes} nodes" if self.nodes > 1 else " on one node")

    def is_like(self, other: ConfigFamily) -> bool:
        """Say whether both are the same kind of configuration on the same kind of machine."""
        mine, theirs = (
            (f.compute_capability, f.nodes, f.attention_dp, f.expert_parallel, f.mtp) for f in (self, other)
        )
        return mine == theirs and all(
            abs(math.log(one / two)) < SAME_MACHINE
            for one, two in ((self.memory_gib, other.memory_gib), (self.hbm_tb_s, other.hbm_tb_s))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyRow:
    """The records of one family: how many, and what they measured over predicted, in percent."""

    family: ConfigFamily
    records: int
    mape_percent: float
    bias_percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedEvidence:
    """What stands behind a prediction: published records, their mean absolute error in percent (None without any)."""

    records: int
    mape_percent: float | None
    where: str

    def as_dict(self) -> dict[str, Any]:
        """Return the evidence as JSON-ready values."""
        return {"records": self.records, "mape_percent": self.mape_percent, "where": self.where}

    @property
    def sentence(self) -> str:
        """Return the evidence in words."""
        if self.mape_percent is None:
            return f"no published record of {self.where} on this machine stands behind it"
        plural = "s" if self.records > 1 else ""
        return f"{self.records} published record{plural} of {self.where} on this machine: {self.mape_percent:g} % off"


def family_of(config: ServerConfig, machine: Machine) -> ConfigFamily:
    """Return the family of a configuration on a machine."""
    return ConfigFamily(
        compute_capability=machine.compute_capability or "",
        memory_gib=round(machine.memory_gib, 1),
        hbm_tb_s=round(machine.hbm_bytes_s / 1e12, 3),
        nodes=config.nnodes,
        attention_dp=config.attn_dp_size > 1,
        expert_parallel=config.ep_size > 1,
        mtp=config.speculative is not None,
    )


def evidence_for(config: ServerConfig, machine: Machine, arch: ModelArchitecture) -> PublishedEvidence:
    """Return the published records behind this family on this machine; all of them are of FP8 R1 and V3."""
    family = family_of(config, machine)
    if arch.is_unconfirmed or not arch.is_fp8:
        where = f"{family.where} with {arch.weights} weights of {arch.name}"
        return PublishedEvidence(records=0, mape_percent=None, where=where)
    rows = [row for row in _rows() if row.family.is_like(family)]
    records = sum(row.records for row in rows)
    if not records:
        return PublishedEvidence(records=0, mape_percent=None, where=family.where)
    mape = sum(row.mape_percent * row.records for row in rows) / records
    return PublishedEvidence(records=records, mape_percent=round(mape, 1), where=family.where)


@cache
def _rows() -> tuple[FamilyRow, ...]:
    return decode_json(files("models").joinpath(EVIDENCE_FILE).read_bytes(), tuple[FamilyRow, ...], "evidence.json")
