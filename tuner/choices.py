"""What a user may choose by name. Imports nothing, so that the command line can list it instantly."""

from __future__ import annotations

from enum import StrEnum


class EngineName(StrEnum):
    """Where configurations run."""

    SIMULATED = "simulated"


class Objective(StrEnum):
    """What is maximised or minimised at the asked concurrency."""

    OUTPUT_TOK_S = "output_tok_s"
    TPOT = "tpot"


class SamplerName(StrEnum):
    """Which sampler proposes after the seeds."""

    MODEL = "model"
    TPE = "tpe"
    GP = "gp"
    RANDOM = "random"
    GRID = "grid"
