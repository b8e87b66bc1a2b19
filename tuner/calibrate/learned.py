"""Learns an engine profile with MTP's acceptance from measurements, or gives the reason why it cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from hwprobe.errors import InputError
from models.engine.profile import EngineParameters, EngineProfile
from models.records.calibration import ACCEPTANCE, OF_FLEETS, Calibration, calibrate
from models.records.case import Case
from models.serving.estimate import Context
from models.workload import Workload
from tuner.calibrate.cases import teaching_points, trial_case
from tuner.choices import SIMULATED
from tuner.evidence.trial import TrialRecord

# Priors (relative standard deviation): R1's published acceptance is 0.55 to 0.9, random tokens less; the cost of a
# rank's synchronisation and of expert dispatch is known to a factor of two, a network's rate to a factor of three, the
# speed of prefill and decode servers to 30 and 15 %.
SPREAD = {
    ACCEPTANCE: 0.25, "dp_layer_us": 0.7, "ep_layer_us": 0.7, "transfer_gb_s": 1.2, "prefill_role": 0.3,
    "decode_role": 0.15,
}  # fmt: skip
# If more than this share of the points has to be discounted, the model does not describe the measurements.
MOST_DISCOUNTED = 0.2
ALWAYS_ALLOWED = 1
# With fewer points a share is meaningless: they are named as discounted instead.
FEWEST_JUDGED = 5
MOST_NAMED = 3


def learn(cases: Sequence[Case], base: EngineProfile, *, simulated: bool = False) -> Calibration:
    """Calibrate `base` to the cases, with MTP's acceptance where it is a guess.

    What a layer costs under attention DP and under EP is learned where the cases have both sides. Raises InputError
    where nothing can be learned, and with the reason where more than MOST_DISCOUNTED of the cases were discounted.
    """
    calibration = calibrate(cases, base, further=_further(cases))
    _refuse_what_does_not_fit(calibration, cases)
    profile = replace(
        calibration.profile,
        mtp_acceptance=calibration.acceptance,
        parameters=_without_unsaid_transfer(calibration, base),
    )
    return replace(calibration, profile=_stamped(profile) if simulated else profile)


def _without_unsaid_transfer(calibration: Calibration, base: EngineProfile) -> EngineParameters:
    """Return the parameters, with the transfer's rate as it was where the points left it open: it is still assumed."""
    determined = any(item.name == "transfer_gb_s" and item.by_data for item in calibration.parameters)
    parameters = calibration.profile.parameters
    return parameters if determined else replace(parameters, transfer_gb_s=base.parameters.transfer_gb_s)


def learn_from_run(records: Sequence[TrialRecord], workload: Workload, context: Context) -> Calibration | None:
    """Learn from the trials of a run, None where none was measured. Raises InputError as `learn` does."""
    cases = [trial_case(record, point, workload, context) for record, point in teaching_points(records)]
    if not cases:
        return None
    return learn(cases, context.engine, simulated=any(record.simulated for record in records))


def sentence(calibration: Calibration) -> str:
    """Name the parameters that moved, in words."""
    moved = [
        f"{item.name} {item.value_before:.3g} -> {item.value_after:.3g}"
        for item in calibration.parameters
        if item.by_data and item.name != ACCEPTANCE
    ]
    accepted = "" if calibration.acceptance is None else f"; {calibration.acceptance:.2f} of drafted tokens accepted"
    return ("; ".join(moved) or "no figure of the machine was determined") + accepted


def _further(cases: Sequence[Case]) -> dict[str, float]:
    """Return the further parameters that the cases determine, with their spread."""
    if len({case.context.arch.num_hidden_layers for case in cases}) > 1:
        return {}  # slices determine a step's fixed cost instead
    determined = {
        ACCEPTANCE: any(not case.acceptance_known for case in cases),
        "dp_layer_us": len({case.config.attn_dp_size > 1 for case in cases}) > 1,
        "ep_layer_us": len({case.config.ep_size > 1 for case in cases}) > 1,
        **dict.fromkeys(OF_FLEETS, any(case.prefill is not None for case in cases)),
    }
    return {name: SPREAD[name] for name, is_determined in determined.items() if is_determined}


def _refuse_what_does_not_fit(calibration: Calibration, cases: Sequence[Case]) -> None:
    """Raise InputError where the profile would be a compromise; one point that is off is an outlier."""
    off = [case for case in cases if case.id in calibration.outliers]
    if len(cases) < FEWEST_JUDGED or len(off) <= max(ALWAYS_ALLOWED, MOST_DISCOUNTED * len(cases)):
        return
    families = Counter(case.config.label for case in off).most_common(MOST_NAMED)
    named = ", ".join(f"{label} ({count})" for label, count in families)
    raise InputError(
        f"no profile: {len(off)} of {len(cases)} points lie further from the model than measurements scatter, most "
        f"with {named}. One profile cannot describe them all: something differs between them that the model does not "
        "know (another build, clock or machine, flags no equation prices). sgtune validate --points shows each"
    )


def _stamped(profile: EngineProfile) -> EngineProfile:
    warning = f"{SIMULATED}: the profile was learned in a world that was played, it describes no machine"
    return replace(profile, source=f"{SIMULATED}: {profile.source}", warnings=(*profile.warnings, warning))
