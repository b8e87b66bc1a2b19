"""System: the inputs of a step time apart from its load."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.architecture import ModelArchitecture
from models.costs.attention import Attention, attention_of
from models.costs.kernels import MOE_TILE_ROWS
from models.engine.profile import EngineParameters
from models.layout import Array, ConfigTable
from models.machine import Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A model on a machine under one or many configurations of one engine build.

    `sigma` is the log-normal spread of expert popularity in the workload's text; `independence` the share
    of the running tokens that choose experts on their own (the others repeat what one token chooses).
    `moe_tile_rows`: the least rows that a Triton MoE kernel sharded by width multiplies for an expert it touches.
    `mtp_overlap`: speculation runs under the overlap scheduler (SGLang's spec v2).
    """

    arch: ModelArchitecture
    machine: Machine
    table: ConfigTable
    engine: EngineParameters
    sigma: float
    independence: float = 1.0
    mtp_overlap: bool = True
    moe_tile_rows: Array | float = MOE_TILE_ROWS

    @property
    def parts(self) -> tuple[ModelArchitecture, Machine, ConfigTable, EngineParameters]:
        """Return model, machine, configurations and engine, to be unpacked."""
        return self.arch, self.machine, self.table, self.engine

    @property
    def attention(self) -> Attention:
        """Return what attention over the context costs in this model."""
        return attention_of(self.arch)

    @property
    def nodes(self) -> Array:
        """Return the NVLink domains each server spans: trays of one rack that NVLink joins are one."""
        joined = self.machine.network_bytes_s >= self.machine.nvlink_bytes_s
        return np.ones_like(self.table.nodes) if joined else self.table.nodes
