"""One colour per layout family, the same on every page, told apart with any colour vision (Okabe and Ito's set)."""

from __future__ import annotations

from enum import StrEnum

from models.config import ServerConfig


class Family(StrEnum):
    """What a layout does with attention and experts: the choice that shapes a configuration most."""

    TP = "TP"
    TP_EP = "TP, EP"
    SOME_DP = "DP within TP"
    SOME_DP_EP = "DP within TP, EP"
    DP = "DP = TP"
    DP_EP = "DP = TP, EP"
    DEEPEP = "DP = TP, DeepEP"
    PP = "PP"


COLOURS = {
    Family.TP: "#0072B2",
    Family.TP_EP: "#56B4E9",
    Family.SOME_DP: "#E69F00",
    Family.SOME_DP_EP: "#B8A50F",  # the set's yellow, dark enough for white paper
    Family.DP: "#D55E00",
    Family.DP_EP: "#CC79A7",
    Family.DEEPEP: "#009E73",
    Family.PP: "#808080",
}
# What has no layout family: readable on light and dark ground alike.
NEUTRAL = "#8A8F98"
GOOD = "#2E9E6B"
BAD = "#C8553D"
WEIGHTS, KV_CACHE, OVERHEAD, FREE = "#6C7A96", "#3FA7A0", "#B39B7D", "rgba(138,143,152,0.25)"
# MTP depth by shape: colour is taken.
SYMBOLS = ("circle", "diamond", "square", "triangle-up")


def family_of(config: ServerConfig) -> Family:
    """Return the family of a configuration, whatever its number of GPUs."""
    if config.pp_size > 1:
        return Family.PP
    experts = config.ep_size > 1
    if config.attn_dp_size <= 1:
        return Family.TP_EP if experts else Family.TP
    if config.attn_dp_size < config.tp_size:
        return Family.SOME_DP_EP if experts else Family.SOME_DP
    if not experts:
        return Family.DP
    return Family.DP_EP if config.moe_a2a_backend == "none" else Family.DEEPEP


def colour_of(config: ServerConfig) -> str:
    """Return the colour of a configuration's family."""
    return COLOURS[family_of(config)]


def symbol_of(config: ServerConfig) -> str:
    """Return the marker of a configuration's MTP depth; depths beyond the last share its shape."""
    depth = config.speculative.num_steps if config.speculative else 0
    return SYMBOLS[min(depth, len(SYMBOLS) - 1)]
