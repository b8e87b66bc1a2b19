"""StepTimes: the step times of one configuration, looked up rather than computed, for the event replay."""

from __future__ import annotations

import numpy as np

from models.decode import decode_step
from models.prefill import prefill_s
from models.serving import FRONT_END_S, accepted_tokens, stages_at_work
from models.system import System


class StepTimes:
    """Step times of one configuration: decode by running batch and context, prefill by pass."""

    def __init__(self, system: System, *, acceptance: float, largest_batch: int) -> None:
        """`system` holds exactly one configuration; `largest_batch` is the most requests ever running."""
        self._system = system
        batch = np.arange(1, largest_batch + 1, dtype=np.float64)
        step = decode_step(system, batch, np.zeros(1))
        table = system.table
        self.base_s: list[float] = [0.0, *np.broadcast_to(step.total, batch.shape).tolist()]
        self.slope_s: list[float] = [0.0, *np.broadcast_to(step.kv_slope, batch.shape).tolist()]
        self.accepted = float(accepted_tokens(table, acceptance)[0])
        self.stages_at_work = float(stages_at_work(table)[0])
        self.front_end_s = FRONT_END_S
        self.poll_steps = 0.5 * float(table.recv_interval[0])
        self._cache: dict[tuple[int, int, int], float] = {}

    def decode_s(self, batch: int, context: float) -> float:
        return self.base_s[batch] + self.slope_s[batch] * context

    def prefill_s(self, prompts: int, new_tokens: int, prefix_tokens: int) -> float:
        """Seconds of a pass of `new_tokens` over `prompts` prompts with `prefix_tokens` cached before them."""
        key = (prompts, (new_tokens + 8) // 16, (prefix_tokens + 64) // 128)
        if key not in self._cache:
            new = np.array([max(1, key[1] * 16) / prompts])
            prefix = np.array([key[2] * 128 / prompts])
            self._cache[key] = float(prefill_s(self._system, np.array([float(prompts)]), new, prefix)[0])
        return self._cache[key]
