"""Write models/data/evidence.json: the published records behind each family, and how far predictions are off.

    python tools/write_evidence.py           writes the file
    python tools/write_evidence.py --check   exit 1 where it is not what the records and profiles give today

A family is a machine (GPU and number of nodes) and a kind of configuration: attention DP or not, EP or not, MTP or not.
The error is that of the output rate, or of the TPOT where a record has no rate.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hwprobe.files import encode_json, write_atomic
from models.records.validation import residuals_of
from planner.plans.evidence import EVIDENCE_FILE, ConfigFamily, FamilyRow, family_of
from tuner.calibrate.cases import Setting, read_cases
from tuner.calibrate.predict_cases import predict_cases
from tuner.cli.commands.validate import SHIPPED

PREFERRED = ("output_tok_s", "tpot_mean_ms", "tpot_median_ms")


def rows() -> list[FamilyRow]:
    """Return one row per family of the shipped records, outliers and those without a prediction left out."""
    lines = read_cases(ROOT / "models" / SHIPPED, Setting())
    cases = [line.case for line in lines if line.case is not None and line.role != "outlier" and line.case.measured]
    cases = [case for case in cases if case.prefill is None]  # a fleet says little of one server that does both
    errors: dict[ConfigFamily, list[float]] = defaultdict(list)
    for case, predicted in zip(cases, predict_cases(cases), strict=True):
        percent = {residual.metric: residual.percent for residual in residuals_of(case, *predicted)}
        metric = next((name for name in PREFERRED if name in percent), None)
        if metric is not None:
            errors[family_of(case.config, case.context.machine)].append(percent[metric])
    return [
        FamilyRow(
            family=family,
            records=len(percents),
            mape_percent=round(sum(map(abs, percents)) / len(percents), 1),
            bias_percent=round(sum(percents) / len(percents), 1),
        )
        for family, percents in sorted(errors.items(), key=lambda item: str(item[0]))
    ]


def main(arguments: list[str]) -> int:
    text, path = encode_json(rows()) + "\n", ROOT / "models" / EVIDENCE_FILE
    if "--check" in arguments:
        return 0 if path.read_text(encoding="utf-8") == text else 1
    write_atomic(path, text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
