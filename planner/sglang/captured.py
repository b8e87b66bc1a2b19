"""The batch sizes of decode graphs in releases whose graph runner settles them: before 0.5.13.

Read from cuda_graph_runner.py (get_batch_sizes_to_capture) of 0.4.3.post4 to 0.5.12, and compared by the oracle.
"""

from __future__ import annotations

from packaging.version import Version

from models.config import ServerConfig
from models.machine import Machine
from models.phases import decode_graphs
from models.version import at_least
from planner.sglang.defaults import (
    LISTED_BEFORE,
    SMALL_MIB,
    decode_graph_sizes,
    memory_defaults,
    speculates,
)

SETTLED_WITH_ARGUMENTS = "0.5.13"
TABLE = "0.5.3"  # from here on the sizes come with the arguments, and the runner only drops some
EXTENDS = "0.4.6.post4"  # a size beyond the list makes the list longer, in steps of 16
DIVIDES = "0.4.9.post6"  # sizes that attention TP does not divide are dropped
COUNTS_DRAFTS = "0.5.9"  # it divides the tokens of a batch, draft tokens among them
NGRAM_DRAFTS, OWN_DRAFTS = 12, 4  # where no number is given
STEP = 16
LARGEST_LISTED = 8192  # a typed size beyond this is listed no further


def graphs_captured(config: ServerConfig) -> bool:
    """Say whether decode graphs are captured; DeepEP's normal mode turns them off."""
    normal = config.moe_a2a_backend == "deepep" and config.flag("deepep_mode") == "normal"
    eager = config.attention_backend in ("torch_native", "flex_attention")
    return decode_graphs(config) and not normal and not eager


def captured_sizes(typed: ServerConfig, machine: Machine, version: Version) -> list[int]:
    """Return the decode batches a release before 0.5.13 captures for what was typed; nothing where none is left."""
    largest = typed.cuda_graph_max_bs_decode
    listed = [size for size in typed.flag("cuda_graph_bs") or () if isinstance(size, int)]
    multiple = _multiple(typed, version)
    if at_least(version, TABLE):
        top = min(largest or memory_defaults(typed, machine, version)[1], LARGEST_LISTED)
        sizes = listed or _listed_with_arguments(typed, top, version)
        tokens = _tokens_per_request(typed) if at_least(version, COUNTS_DRAFTS) else 1
        return sorted({size for size in sizes if size * tokens % multiple == 0})
    sizes = [size for size in listed or _listed_by_runner(typed, machine, version) if size % multiple == 0]
    if typed.flag("enable_two_batch_overlap") and not at_least(version, DIVIDES):
        sizes = [size for size in sizes if size > 1]
    largest = largest or _largest_argument(typed, machine, version)
    if largest:
        sizes = [size for size in sizes if size <= largest]
        if sizes and at_least(version, EXTENDS):
            sizes += range(max(sizes), min(largest, LARGEST_LISTED) + 1, STEP)
    return sorted(set(sizes))


def _largest_argument(typed: ServerConfig, machine: Machine, version: Version) -> int | None:
    """What cuda_graph_max_bs is where none is given: a number at first, later on small cards only."""
    mib = machine.memory_gib * 1024
    if mib < (35 * 1024 if at_least(version, "0.4.7.post1") else SMALL_MIB):
        return memory_defaults(typed, machine, version)[1]
    return None if at_least(version, "0.4.4.post4") else LISTED_BEFORE


def _listed_with_arguments(typed: ServerConfig, largest: int, version: Version) -> list[int]:
    padding = not typed.flag("disable_cuda_graph_padding")
    if at_least(version, "0.5.4") or not padding:
        return decode_graph_sizes(largest, speculative=speculates(typed), padding=padding)
    sizes = decode_graph_sizes(2 * LARGEST_LISTED, speculative=speculates(typed), padding=True)
    dropped = {64} if speculates(typed) else set()  # its list ended before 64, and did not end at what was asked for
    return [size for size in sizes if size <= largest and size not in dropped]


def _listed_by_runner(typed: ServerConfig, machine: Machine, version: Version) -> list[int]:
    padding = not typed.flag("disable_cuda_graph_padding")
    early, late = not at_least(version, "0.4.4.post4"), at_least(version, "0.4.7")
    if speculates(typed):
        tail = [*range(40, 64, 8), *range(80, 161, 16)] if late else range(40, 161, 16)
        sizes = list(range(1, 33)) if early else [*range(1, 9), *range(10, 33, 2), *tail]
    elif not padding:
        sizes = [*range(1, 33), *((64, 96, 128, 160) if early else range(48 if late else 40, 161, 16))]
    else:
        sizes = [1, 2, 4, 8, *range(16, 161, 8)]
    most = memory_defaults(typed, machine, version)[1]  # what the card's memory adds to the list
    more = [*range(LISTED_BEFORE, min(most, 256) + 1, 8), *range(256, most + 1, STEP)]
    return [*sizes, *(more if most > LISTED_BEFORE else ())]


def _multiple(typed: ServerConfig, version: Version) -> int:
    """What every size must be a multiple of: two of a pair of batches, and the attention TP group's ranks."""
    if not at_least(version, DIVIDES):
        return 1
    ranks = max(1, typed.tp_size // (max(1, typed.attn_dp_size) * int(typed.flag("attn_cp_size", 1))))
    multiple = (2 if typed.flag("enable_two_batch_overlap") else 1) * (ranks if _gathers(typed) else 1)
    cp = int(typed.flag("attn_cp_size", 1))
    return multiple if multiple % cp == 0 else multiple * cp


def _tokens_per_request(typed: ServerConfig) -> int:
    """Return the tokens one request verifies in a decode pass, by what was typed; one in pairs of batches."""
    if not speculates(typed) or typed.flag("enable_two_batch_overlap"):
        return 1
    spec = typed.speculative
    steps = spec.num_steps if spec else typed.flag("speculative_num_steps")
    drafts = spec.num_draft_tokens if spec else typed.flag("speculative_num_draft_tokens")
    if str(typed.flag("speculative_algorithm") or "").upper() == "NGRAM":
        return int(drafts or NGRAM_DRAFTS)
    chain = spec is None or spec.eagle_topk == 1
    return int(steps) + 1 if chain and steps else int(drafts or OWN_DRAFTS)


def _gathers(typed: ServerConfig) -> bool:
    """Say whether activations are gathered around the MLP or the attention (utils: require_gathered_buffer)."""
    dense, under_dp, a2a = typed.flag("moe_dense_tp_size"), typed.attn_dp_size > 1, typed.moe_a2a_backend != "none"
    if under_dp and (dense is None or not typed.enable_dp_lm_head or not a2a):
        return True
    if under_dp and dense > typed.tp_size // typed.attn_dp_size:
        return True
    return (a2a or dense == 1) and (not under_dp or typed.attn_dp_size < typed.tp_size)
