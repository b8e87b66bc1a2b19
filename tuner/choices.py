"""What a user may choose by name. Imports nothing, so that the command line can list it instantly."""

from __future__ import annotations

from enum import StrEnum


class EngineName(StrEnum):
    """Where configurations run."""

    SIMULATED = "simulated"
    EMULATED = "emulated"
    LOCAL = "local"
    DOCKER = "docker"


# Engines whose figures describe a world, not a machine; all that is made of them says so.
SIMULATED_ENGINES = frozenset({EngineName.SIMULATED, EngineName.EMULATED})
# The word by which files and titles say so.
SIMULATED = "SIMULATED"


class Objective(StrEnum):
    """What is improved: rates and TPOT at a concurrency, users at a speed, goodput at a request rate."""

    OUTPUT_TOK_S = "output_tok_s"
    OUTPUT_TOK_S_PER_GPU = "output_tok_s_per_gpu"
    OUTPUT_TOK_S_PER_COST = "output_tok_s_per_cost"
    TPOT = "tpot"
    USERS = "users"
    GOODPUT = "goodput"


class SamplerName(StrEnum):
    """Which sampler proposes after the seeds."""

    MODEL = "model"
    TPE = "tpe"
    GP = "gp"
    RANDOM = "random"
    GRID = "grid"


class Fidelity(StrEnum):
    """What a configuration is tried on before it is launched in full: nothing, or a slice of the model."""

    WHOLE = "whole"
    SLICE = "slice"


class Backend(StrEnum):
    """Which API a load generator speaks."""

    SGLANG = "sglang"
    OPENAI = "openai"
    OPENAI_CHAT = "openai-chat"


class Arrival(StrEnum):
    """How requests come: a closed loop of clients, or an open loop at a rate."""

    CLOSED = "closed"
    POISSON = "poisson"
    CONSTANT = "constant"


class ServersChoice(StrEnum):
    """Which servers a plan may use: those that do both phases, prefill/decode fleets, or whichever is better."""

    ANY = "any"
    MIXED = "mixed"
    PD = "pd"
