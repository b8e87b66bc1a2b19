"""How evenly experts load the GPUs they are spread over, when nothing rebalances them."""

from __future__ import annotations

import math
from statistics import NormalDist


def expert_balancedness(experts: int, ranks: int, sigma: float) -> float:
    """Return the mean over the largest of the GPUs' shares of tokens, as SGLang's eplb_balancedness has it.

    `experts` of log-normal popularity of spread `sigma` lie on `ranks` GPUs as they are numbered. The largest of
    the ranks' sums is taken as normal (Blom's quantile of the largest of `ranks` values).
    """
    if ranks <= 1:
        return 1.0
    spread = math.sqrt(math.expm1(sigma * sigma) * ranks / experts)
    largest = NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))
    return 1.0 / (1.0 + largest * spread)
