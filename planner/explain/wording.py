"""An explanation as a JSON document, and in words: what speaks for and against the likeliest settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planner.explain.weigh import NEGLIGIBLE, Explanation

# A figure this many deviations from its prediction speaks against a hypothesis.
AGAINST = 1.645
# A rival is worth a sentence from this weight on.
RIVAL = 0.05


def explain_document(explanations: Sequence[Explanation]) -> dict[str, Any]:
    """Return the document of `sgtune explain --json`: every hypothesis that has any weight, best first."""
    weighty = [each for each in explanations if each.weight >= NEGLIGIBLE] or list(explanations[:1])
    total = sum(each.weight for each in weighty)
    return {
        "hypotheses": [
            {
                "gpu": each.hypothesis.gpu,
                "deployment": each.hypothesis.deployment,
                "mtp": each.hypothesis.mtp,
                "kernels": each.hypothesis.kernels,
                "reading": each.hypothesis.reading,
                "weight": each.weight / total,
                "residuals": {name: round(value, 1) for name, value in each.residuals.items()},
            }
            for each in weighty
        ],
        "evidence": evidence(explanations),
    }


def evidence(explanations: Sequence[Explanation]) -> list[str]:
    """State the evidence for the best hypothesis, and for it against the next."""
    best = explanations[0]
    sentences = [_own(best)]
    named: set[tuple[str, ...]] = set()
    for rival in explanations[1:]:
        apart = _apart(best, rival)
        if len(apart) != 1 or tuple(apart) in named:
            continue
        named.add(tuple(apart))
        (field,) = apart
        mine, theirs = getattr(best.hypothesis, field), getattr(rival.hypothesis, field)
        sentences.append(f"{field} {mine} rather than {theirs}: {_odds(best, rival)}{_worst(rival)}")
    return sentences


def _own(best: Explanation) -> str:
    outside = [f"{each.id} {each.metric}" for each in best.figures if _away(each.log_ratio, each.deviation)]
    if not outside:
        return f"every figure lies within its 90 % band under {best.hypothesis.gpu}, {best.hypothesis.deployment}"
    return f"outside its 90 % band even under the best hypothesis: {', '.join(outside)}"


def _away(log_ratio: float, deviation: float) -> bool:
    return abs(log_ratio) > AGAINST * deviation


def _apart(best: Explanation, rival: Explanation) -> list[str]:
    names = ("gpu", "deployment", "mtp", "kernels", "reading")
    return [name for name in names if getattr(best.hypothesis, name) != getattr(rival.hypothesis, name)]


def _odds(best: Explanation, rival: Explanation) -> str:
    times = best.weight / max(rival.weight, 1e-300)
    return "about as likely" if times < 1.5 else f"{times:,.0f} times as likely" if times < 1e4 else "ruled out"


def _worst(rival: Explanation) -> str:
    """Name the figure that contradicts a rival most, if one does."""
    worst = max(rival.figures, key=lambda each: abs(each.log_ratio) / each.deviation)
    if not _away(worst.log_ratio, worst.deviation):
        return ""
    return f" ({worst.id}: {worst.measured:,.1f} measured, {worst.predicted:,.1f} predicted {worst.metric})"
