"""When launches fail: the safest configuration next, then a diagnosis for the operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.layout import table_of
from tuner.evidence.trial import TrialOutcome, TrialRecord
from tuner.search.configurations import candidates_of
from tuner.search.space import TuningSpace

SAFEST = "safest"
# Launches of the safest configurations that may fail before the run stops.
MOST_FAILURES = 3


@dataclass(frozen=True, slots=True)
class LeastMemoryFallback:
    """Asked when the seeds are used up: the safest configuration while no launch has held, then a diagnosis.

    The diagnosis comes after MOST_FAILURES of them, or when those left have less memory free than one that ran out.

    `patience` is how many launches more the sampler may choose itself first, one that learns memory.
    """

    space: TuningSpace
    records: Sequence[TrialRecord]
    patience: int = 0

    @property
    def _nothing_holds(self) -> bool:
        launched = [record for record in self.records if record.launched]
        of_sampler = sum(record.source == "sampler" for record in launched)
        failed = all(record.outcome is TrialOutcome.INFEASIBLE for record in launched)
        return bool(launched) and failed and of_sampler >= self.patience

    @property
    def params(self) -> dict[str, Any] | None:
        """The parameters with most memory left free that were not launched, None while launches hold."""
        if not self._nothing_holds:
            return None
        rows = candidates_of(self.space)
        tried = {record.config for record in self.records}
        order = np.argsort(-rows.memory.free, kind="stable")
        return next((rows.params[i] for i in order.tolist() if rows.configs[i] not in tried), None)

    @property
    def diagnosis(self) -> str:
        """Why the run should stop, empty while it should go on."""
        launched = [record for record in self.records if record.launched]
        failures = sum(record.source == SAFEST for record in launched)
        hopeless = any(record.source == SAFEST and not record.launched for record in self.records)
        if not self._nothing_holds or (failures < MOST_FAILURES and not hopeless):
            return ""
        free = float(self.space.context.memory(table_of([record.config for record in launched])).free.max())
        kinds = sorted({str(record.failure) for record in launched})
        return (
            f"nothing starts: the safest configuration failed too ({', '.join(kinds)}; {len(launched)} launches), but "
            f"the ledger leaves up to {free:.1f} GiB free per GPU; look for other processes on the GPUs, another model "
            "than asked for, or a machine with less memory than --hardware says"
        )
