"""Failures that stop a run: an operator must act, or every further launch would fail alike."""

from __future__ import annotations

import re

from hwprobe.errors import SgtuneError
from tuner.evidence.trial import TrialOutcome, TrialRecord
from tuner.seam import FailureKind, LaunchFailed


class OperatorNeeded(SgtuneError):
    """Nothing the tuner could launch would fare better: the run stops and can be resumed."""

    def __init__(self, failure: LaunchFailed, number: int) -> None:
        super().__init__(
            f"trial {number} stopped the run ({failure.kind}): {failure.evidence}\n"
            "see to it, then continue with --resume: nothing measured is lost"
        )


class AlikeFailures(SgtuneError):
    """Two launches in a row failed alike before they served anything: the next ones would, too."""

    def __init__(self, record: TrialRecord) -> None:
        super().__init__(
            f"two launches in a row failed alike ({record.failure}), which no configuration mends: {record.reason}\n"
            f"see trials/{record.number}/server.log in the run folder, mend what it names, then go on with --resume: "
            "nothing measured is lost"
        )


def stop_where_alike(before: TrialRecord | None, record: TrialRecord) -> None:
    """Raise AlikeFailures when both failed at their start, through no fault of their own, with the same words."""
    if before is None or record.points or before.points or record.failure is FailureKind.NODE_LOST:
        return
    alike = record.outcome is before.outcome is TrialOutcome.FAILED and record.failure is before.failure is not None
    if alike and _words(record.reason) == _words(before.reason):
        raise AlikeFailures(record)


def _words(text: str) -> str:
    """Return a message without what differs between two launches: times, ports, process ids."""
    return re.sub(r"\d+", "#", text)
