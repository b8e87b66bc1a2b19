"""StepTimes: the step times of one configuration, looked up rather than computed, for the event replay."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from models.costs.decode import decode_step
from models.costs.launches import launch_floor_s
from models.costs.prefill import pair_s, rank_share, scan_s, token_work_s
from models.costs.system import System
from models.serving.closed_form import FRONT_END_S, FRONT_END_TOKEN_S, accepted_tokens, stages_at_work

# Token counts at which a pass is evaluated; between them it is interpolated (error below 0.3 %).
GRID_POINTS = 96


class StepTimes:
    """Step times of one configuration: decode by running batch and context, prefill by pass.

    `fills_ranks`: a pass is spread over all ranks that have a prompt waiting, as SGLang does it under attention DP. Of
    dense attention alone engine profiles were fitted with passes that a long prompt fills on one rank.
    """

    def __init__(self, system: System, *, acceptance: float, largest_batch: int) -> None:
        """`system` holds exactly one configuration; `largest_batch` is the most requests ever running."""
        batch = np.arange(1, largest_batch + 1, dtype=np.float64)
        step = decode_step(system, batch, np.zeros(1))
        table = system.table
        self.base_s: list[float] = [0.0, *np.broadcast_to(step.total, batch.shape).tolist()]
        self.slope_s: list[float] = [0.0, *np.broadcast_to(step.kv_slope, batch.shape).tolist()]
        self._beyond_s: list[float] = [0.0, *np.broadcast_to(step.kv_beyond, batch.shape).tolist()]
        self._knee = step.kv_knee
        self.accepted = float(accepted_tokens(table, acceptance)[0])
        self.stages_at_work = float(stages_at_work(table)[0])
        self.front_end_s = FRONT_END_S
        self.front_end_token_s = FRONT_END_TOKEN_S
        self.poll_steps = 0.5 * (float(table.recv_interval[0]) - 1.0)
        self.overlap = float(table.pp[0]) <= 1 and (system.mtp_overlap or not float(table.mtp_steps[0]))
        self._ranks = int(table.attn_dp[0])
        self._pair_s = float(np.ravel(pair_s(system))[0])
        self._scan_s = float(np.ravel(scan_s(system))[0])
        self._attention = system.attention if system.arch.is_sparse else None
        self.fills_ranks = system.arch.is_sparse and self._ranks > 1
        self._floor4 = launch_floor_s(system.arch, system.engine.t_pf0_ms) ** 4
        largest = max(2.0, float(table.chunk[0]))
        self._tokens: list[float] = [0.0, *np.geomspace(1.0, largest, GRID_POINTS - 1).tolist()]
        shares = rank_share(system, np.arange(1.0, self._ranks + 1.0))
        work = token_work_s(system, np.array(self._tokens)[None, :], shares[:, None])
        self._share: list[float] = shares.tolist()
        self._work_s: list[list[float]] = np.broadcast_to(work, (self._ranks, GRID_POINTS)).tolist()

    @property
    def ranks(self) -> int:
        """Attention-DP ranks of the server."""
        return self._ranks

    def decode_s(self, batch: int, context: float) -> float:
        if context <= self._knee:  # dense attention has no knee
            return self.base_s[batch] + self.slope_s[batch] * context
        chosen = self.base_s[batch] + self.slope_s[batch] * self._knee
        return chosen + self._beyond_s[batch] * (context - self._knee)

    def prefill_s(self, prompts: int, new_tokens: float, pairs: float) -> float:
        """Seconds of a pass of `new_tokens` over `prompts` prompts, `pairs` of a token and one it attends to."""
        row = min(prompts, self._ranks) - 1
        attended = pairs if self._attention is None else float(self._attention.attended(prompts, new_tokens, pairs))
        gpu = self._row_s(row, new_tokens) + self._pair_s * attended * self._share[row]
        gpu += self._scan_s * pairs * self._share[row]
        return float((gpu**4 + self._floor4) ** 0.25)

    def _row_s(self, row: int, new_tokens: float) -> float:
        """Seconds of what grows with a pass's tokens, where the busiest rank holds one of `row` + 1 equal shares."""
        tokens, work = self._tokens, self._work_s[row]
        upper = min(bisect_left(tokens, new_tokens), GRID_POINTS - 1)
        lower = max(upper - 1, 0)
        span = tokens[upper] - tokens[lower]
        share = (new_tokens - tokens[lower]) / span if span else 1.0
        return work[lower] + share * (work[upper] - work[lower])
