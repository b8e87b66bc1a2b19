"""Pages a newcomer reads: their commands run as printed, and print what the pages show."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.walk_docs import PAGES, ROOT, Step, compare, run_step, steps, walk, why_not


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md"])
def test_every_quick_command_of_a_page_runs_and_prints_what_is_shown(page: str) -> None:
    assert walk([ROOT / page], quick=True)


def test_a_stale_figure_or_word_is_found() -> None:
    printed = "best: TP8 (trial 2), 1,000 tok/s, TTFT  114 ms\nwrote runs/x"
    assert compare(("best: TP8 (trial 2), 1,010 tok/s, TTFT 114 ms", "best: TP8 ...", "..."), printed, 0.03) == []
    stale = ("best: TP8 (trial 2), 1,100 tok/s, TTFT 114 ms", "best: TP4 (trial 2), 1,000 tok/s, TTFT 114 ms")
    assert compare(stale, printed, 0.03) == list(stale)


def test_a_command_that_fails_or_another_winner_than_named_is_found(tmp_path: Path) -> None:
    plan = "sgtune plan --hardware h200x8 --isl 100 --osl 100 --concurrency 1 --no-mtp"
    for command, sound in ((f"{plan} # TP8 first", True), (f"{plan} # TP8 DP8 first", False), (f"{plan} --x", False)):
        assert run_step(Step("page", (command,), ()), tmp_path, quick=True)[1] is sound, command


def test_most_of_what_newcomers_read_can_be_run_anywhere() -> None:
    commands = [command for page in PAGES for step in steps(ROOT / page) for command in step.commands]
    run = [command for command in commands if why_not(command, quick=False) is None]
    assert len(run) >= 18, "a change that skips commands hides stale pages"
