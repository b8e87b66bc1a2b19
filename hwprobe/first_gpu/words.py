"""The half hour in words: what was expected, what was seen, what failed and why, which constants should change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hwprobe.files import encode_json, write_atomic
from hwprobe.first_gpu.constants import Constant, patch, proposals
from hwprobe.first_gpu.folder import ItemEnd, ItemRecord
from hwprobe.first_gpu.items import Item
from hwprobe.first_gpu.judge import Check, SeenItems, checks
from hwprobe.first_gpu.kit import Kit
from hwprobe.profile import save_profile

# Records that make up the machine's file: full measurements, not the quick and repeated ones they are compared with.
FULL = ("A-look", "A-full", "B-together", "C-served", "A-cpu")
PATCH = "constants.patch"


def write_report(kit: Kit, name: str, checkout: Path) -> Path:
    """Write report.md, hardware.json and the patch from what is in the folder; return the report's path.

    Nothing but the records goes into them: a kit that was killed and went on ends with the same files.
    """
    records = kit.records()
    items = SeenItems(kit.started.inventory, records)
    profile = kit.profile([record for record in records if record.name.startswith(FULL)])
    save_profile(profile, kit.folder.path / "hardware.json")
    constants = proposals(items, profile, checkout)
    write_atomic(kit.folder.path / PATCH, patch(constants, profile, name, checkout))
    results = checks(items)
    write_atomic(kit.folder.path / "checks.json", encode_json(results) + "\n")
    text = "\n".join(_report(kit.items, records, results, constants))
    path = kit.folder.path / "report.md"
    write_atomic(path, text + "\n")
    return path


def _report(
    items: Sequence[Item], records: Sequence[ItemRecord], results: Sequence[Check], constants: Sequence[Constant]
) -> Iterator[str]:
    yield "# The first half hour\n"
    yield from _summary(items, records, results)
    failed = [record for record in records if record.ended is not ItemEnd.DONE]
    if failed:
        yield "\n## What did not end well\n"
        yield from map(_failure, failed)
    yield "\n## Expected and seen\n"
    yield "Places are those of the reading before the first run; 'not seen' waits for the next run.\n"
    yield "| place | what | expected | seen | |\n|---|---|---|---|---|"
    for check in results:
        mark = {True: "as expected", False: "OTHERWISE", None: "not seen"}[check.holds]
        yield f"| {check.place} | {check.what} | {check.expected} | {check.seen} | {mark} |"
    yield "\n## Measured\n"
    yield from (line for record in records for line in _measured(record))
    yield "\n## Constants\n"
    yield from _constants(constants)
    yield from _served(records)


def _summary(items: Sequence[Item], records: Sequence[ItemRecord], results: Sequence[Check]) -> Iterator[str]:
    count = {ended: sum(record.ended is ended for record in records) for ended in ItemEnd}
    to_run = len(items) - sum(record.stands for record in records)
    endings = ", ".join(f"{number} {ended}" for ended, number in count.items() if number)
    yield f"{len(items)} items: {endings or 'none run'}{f', {to_run} still to run' if to_run else ''}."
    otherwise = [check for check in results if check.holds is False]
    good = sum(check.holds is True for check in results)
    yield f"{good} of {len(results)} checks as expected, {len(otherwise)} otherwise."


def _failure(record: ItemRecord) -> str:
    measured = []
    if record.report is not None:
        measured = [*record.report.quantities, *(["pairs"] if record.report.p2p_gb_s else [])]
        measured += [f"{point.backend} {point.message_bytes} B" for point in record.report.all_reduce]
    before = f"; measured before: {', '.join(measured)}" if measured else ""
    log = f"; all it said: {record.said}" if record.said else ""
    return f"- {record.title}: {record.ended}: {record.reason or 'no reason'}{before}{log}"


def _measured(record: ItemRecord) -> Iterator[str]:
    """Yield the figures of one item, and what could not be measured by it."""
    if record.report is None:
        return
    figures = [f"{name} {quantity.value:,.4g}" for name, quantity in record.report.quantities.items()]
    figures += [f"{p.backend} {p.message_bytes:,} B {p.time_us.value:,.1f} us" for p in record.report.all_reduce]
    figures += [f"not measured: {missing_quantity}" for missing_quantity in record.report.missing]
    if figures:
        yield f"- {record.title}: {'; '.join(figures)}"


def _served(records: Sequence[ItemRecord]) -> Iterator[str]:
    """Yield what R1's own FP8 kernel says of the FP8 rate that predictions use."""
    for record in records:
        block = record.report.quantities.get("fp8_block_tflops") if record.report else None
        if block is not None and record.name.startswith("C-served"):
            yield (
                f"\nDeepGEMM, which R1 runs, reaches {block.value:,.0f} TFLOP/s. Predictions take the data sheet's FP8 "
                "rate as the one that a healthy card measures per tensor; an engine profile fitted to that holds the "
                "rest (eta_pf). No constant follows from it: compare before the prefill of another card is believed."
            )


def _constants(constants: Sequence[Constant]) -> Iterator[str]:
    if not constants:
        yield "None: constants are those of an H200, and none was measured here."
        return
    yield "| file | constant | now | seen | |\n|---|---|---|---|---|"
    for constant in constants:
        word = "stays"
        if constant.changes:
            word = "CHANGE: beyond its error" if constant.beyond else "change, within its error"
        yield (
            f"| {constant.file} | {constant.name} | {constant.now:.2f} +- {constant.error:.2f} | "
            f"{constant.seen:.3f} | {word} |"
        )
    yield f"\n`git apply {PATCH}` in the checkout makes these changes and adds the machine's file."
    yield "Then: `python tools/fit_profiles.py`, `python tools/cross_validate.py`, and the tests."
