"""How many kernels one pass through the model launches: what latency per launch is multiplied by."""

from __future__ import annotations

from models.architecture import ModelArchitecture
from models.costs.attention import INDEX_NODES

# CUDA-graph nodes: counted in SGLang's DeepSeek forward pass.
NODES_PER_MOE_LAYER = 26
NODES_PER_DENSE_LAYER = 20
NODES_PER_STEP = 12
# The whole of R1 (58 MoE layers, 3 dense), which t_pf0_ms of every engine profile stands for.
NODES_OF_R1 = 1580


# One kernel instead of three where an all-reduce takes in the residual and the norm after it; two of them a layer.
# 8xB200 with it decodes a token in 8.2 ms, without in 9.2 (0.5.6 to 0.5.8, one to two requests).
SAVED_BY_FUSION = 4


def fused_nodes(arch: ModelArchitecture) -> float:
    """Return the kernels of one decode step that fused all-reduces spare."""
    return SAVED_BY_FUSION * arch.num_hidden_layers


def graph_nodes(arch: ModelArchitecture) -> float:
    """Return the kernels of one decode step."""
    own = NODES_PER_MOE_LAYER * arch.moe_layers + NODES_PER_DENSE_LAYER * arch.dense_layers + NODES_PER_STEP
    return own + INDEX_NODES * arch.num_hidden_layers if arch.is_sparse else own


def launch_floor_s(arch: ModelArchitecture, t_pf0_ms: float) -> float:
    """Return the seconds the CPU needs to launch an eager pass: R1's own t_pf0_ms, by the share of its kernels."""
    return t_pf0_ms * 1e-3 * graph_nodes(arch) / NODES_OF_R1
