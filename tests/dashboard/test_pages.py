"""Every page in every state a run folder can be in: it answers, says what is wrong, and never breaks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dashboard_scenes import RUN, STATES, measured_machine, put
from streamlit.testing.v1 import AppTest

import dashboard
from dashboard.readers.plan_inputs import PlanInputs
from hwprobe.files import encode_json
from hwprobe.profile import save_profile
from tuner.evidence.chain import sealed, start_of
from tuner.evidence.live_state import read_live
from tuner.evidence.load_history import LoadSample, append_sample
from tuner.evidence.trial_lines import read_trials

ENTRY = Path(dashboard.__file__).parent / "streamlit_app.py"
PAGES = ("plan", "hardware", "live", "trials", "calibration", "export")
OF_RUNS = PAGES[2:]
MISSING = "There is no run"
# What each page says in each state: a part of its heading, warning or error.
SAYS = {
    ("live", "empty"): "Nothing has been launched yet",
    ("trials", "empty"): "No configuration has been measured yet",
    ("calibration", "empty"): "Nothing has been measured yet",
    ("export", "empty"): "Nothing to export",
    ("live", "running"): "Running, 3 of 5 launches done: best so far",
    ("trials", "running"): " points of 3 launches",
    ("calibration", "running"): "over 3 launches",
    ("export", "running"): "launch files that say the same command",
    ("live", "finished"): "Finished (5 launches done): best is",
    ("trials", "finished"): "leads with",
    ("calibration", "finished"): "lie within the 90 % band",
    ("export", "finished"): "7 launch files that say the same command",
    ("live", "failed"): "GPU 3 fell off the bus",
    ("trials", "failed"): "leads with",
    ("calibration", "failed"): "lie within the 90 % band",
    ("export", "failed"): "launch files that say the same command",
    **{(page, "torn"): "the last line of trials.jsonl is incomplete" for page in OF_RUNS},
    **{(page, "deleted"): "Run 'gone' is not in" for page in OF_RUNS},
    **{(page, "no run"): MISSING for page in OF_RUNS},
    **{("plan", state): "1,024 clients fit on one node" for state in STATES},
    **{("hardware", state): "nothing was measured" for state in STATES},
}


def open_page(page: str, root: Path, monkeypatch: pytest.MonkeyPatch, **query: str) -> AppTest:
    monkeypatch.setenv("SGTUNE_RUNS", str(root))
    app = AppTest.from_file(str(ENTRY), default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    if page != "plan":
        app.switch_page(f"app_pages/{page}.py")
    app.run()
    assert not app.exception, app.exception[0].message
    return app


def said(app: AppTest) -> str:
    return "\n".join(str(each.value) for kind in (app.subheader, app.warning, app.error, app.info) for each in kind)


def tile(app: AppTest, label: str) -> str:
    return next(str(metric.value) for metric in app.metric if metric.label == label)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("page", PAGES)
def test_it_answers_in_every_state(
    page: str, state: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(finished, tmp_path / "runs", state)
    before = sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    app = open_page(page, tmp_path / "runs", monkeypatch, **({"run": "gone"} if state == "deleted" else {}))
    assert SAYS[page, state] in said(app)
    assert app.code, "no command to copy"
    assert before == sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))  # it only reads


def test_a_run_that_vanishes_while_it_is_looked_at(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "another")
    run = put(finished, tmp_path, "finished")
    app = open_page("trials", tmp_path, monkeypatch, run=RUN)
    shutil.rmtree(run)
    app.run()
    assert not app.exception
    assert f"Run '{RUN}' is not in" in said(app)
    assert "leads with" in said(app)


def test_a_broken_run_is_named_and_the_others_can_be_chosen(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = put(finished, tmp_path, "finished")
    (run / "run.toml").write_text("hardware = [")
    app = open_page("live", tmp_path, monkeypatch)
    assert "not valid TOML" in said(app)
    assert app.selectbox(key="run").options == [RUN]


def test_the_running_trial_is_shown_with_its_phase(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = put(finished, tmp_path, "running")
    current = read_live(run)
    assert current
    assert current.trial
    log = run / "trials" / str(current.trial.number) / "server.log"
    log.write_text("Load weight begin\nweights 3%\rweights 98%\n")
    app = open_page("live", tmp_path, monkeypatch)
    assert "measuring 8 clients for" in said(app)
    assert "1 point so far" in "\n".join(str(each.value) for each in app.markdown)
    assert any("weights 98%" in code.value and "weights 3%" not in code.value for code in app.code)
    assert tile(app, "Launches") == "3 of 5"


def test_plan_inputs_change_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_page("plan", tmp_path, monkeypatch)
    before = tile(app, "Per user, tok/s")
    app.number_input(key="clients").set_value(64).run()
    assert "64 clients fit on one node" in said(app)
    assert tile(app, "Per user, tok/s") != before
    app.selectbox(key="hw").set_value("h100x8").run()
    assert "64 clients do not fit on h100x8: every layout is at least" in said(app)
    assert "9999 GPUs in a node" in said(open_page("plan", tmp_path, monkeypatch, hw="h200x9999"))


def test_limits_and_a_link_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_page("plan", tmp_path, monkeypatch, hw="h200x8", clients="256", slo="tpot:mean<1ms", osl="500")
    assert "Target unreachable: tpot:mean<1ms missed" in said(app)
    assert app.code[-1].value.startswith("sgtune plan --hardware h200x8")
    assert "--osl 500 --concurrency 256 --slo 'tpot:mean<1ms'" in app.code[-1].value


def test_what_if_moves_the_figures_and_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_page("plan", tmp_path, monkeypatch)
    planned = [metric.value for metric in app.metric if metric.label == "KV headroom, GiB"]
    assert planned[0] == planned[1]  # the sliders start where it was planned
    slider = next(each for each in app.slider if each.label == "mem_fraction_static")
    slider.set_value(0.98).run()
    assert [metric.value for metric in app.metric if metric.label == "KV headroom, GiB"][1] > planned[1]
    assert "would be left free per GPU" in said(app)
    slider.set_value(0.50).run()
    assert "cannot hold one request" in said(app)


def test_trials_are_compared_two_or_more(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(finished, tmp_path, "finished")
    app = open_page("trials", tmp_path, monkeypatch, run=RUN)
    chooser = app.multiselect(key="compared")
    assert len(chooser.value) == 2, "the best and the baseline"
    chooser.set_value(chooser.options[:3]).run()
    assert not app.exception
    flags = next(each.value for each in app.dataframe if "flag" in each.value.columns)
    assert list(flags.columns) == ["flag", *(f"trial {option.split(':')[0]}" for option in chooser.options[:3])]
    chooser.set_value([]).run()
    assert not app.exception


def test_a_plan_is_downloaded_whole_and_says_what_tokens_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_page("plan", tmp_path, monkeypatch, hw="h200x8", clients="64", slo="ttft:mean<9s", price="2.5")
    assert [each.label for each in app.get("download_button")] == ["Download this plan (JSON)"]
    assert float(tile(app, "Per million output")) > 0.0
    ttft = next(each for each in app.metric if each.label == "TTFT mean, ms")
    assert "limit 9,000" in str(ttft.delta)
    assert "--cost-per-gpu-hour 2.5" in app.code[-1].value
    asked = PlanInputs(hardware="h200x8", sglang_version="0.5.23", isl=1000, osl=1000, concurrency=64)
    assert json.loads(asked.document())["answer"]["nodes"] == 1


def test_where_memory_is_the_answer_its_chart_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_page("plan", tmp_path, monkeypatch, hw="h100x8", clients="64")
    assert "do not fit" in said(app)
    assert any("the layout that lacks least" in str(each.value) for each in app.markdown)
    nearest = PlanInputs(hardware="h100x8", sglang_version="0.5.23", isl=1000, osl=1000, concurrency=64).nearest()
    assert nearest is not None
    assert nearest.ledger.weights_gib > 0.8 * nearest.ledger.card_gib


def test_a_queue_without_end_is_said_and_has_no_ttft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_page("plan", tmp_path, monkeypatch, hw="h200x8", ask="requests/s", rate="60")
    assert "the queue grows without end" in said(app)
    assert tile(app, "TTFT mean, ms") == "grows"


def test_live_shows_the_servers_load_over_time(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = put(finished, tmp_path, "finished")
    assert "the simulated engine starts none" in _captions(open_page("live", tmp_path, monkeypatch))
    folder = run / "trials" / str(read_trials(run / "trials.jsonl")[-1].number)
    folder.mkdir(parents=True, exist_ok=True)
    for second in range(3):
        append_sample(folder, LoadSample(at_s=second, clients=8, running=8.0, queued=0.0, kv_share=0.2))
    assert "the simulated engine starts none" not in _captions(open_page("live", tmp_path, monkeypatch))


def _captions(app: AppTest) -> str:
    return "\n".join(str(each.value) for each in app.caption)


def test_hardware_names_the_slow_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "hardware.json"
    save_profile(measured_machine(), file)
    app = open_page("hardware", tmp_path, monkeypatch, machine=str(file), other="h200x8")
    assert "3 to look at (memory read: GPU 7 is 22% below its siblings)" in said(app)
    assert len(app.get("plotly_chart")) == 2
    assert "They share no measurement" in "\n".join(str(each.value) for each in app.caption)


def test_calibration_shows_what_moved(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(finished, tmp_path, "finished")
    app = open_page("calibration", tmp_path, monkeypatch)
    app.toggle(key="calibrate").set_value(True).run()
    assert not app.exception
    moved = next(each.value for each in app.dataframe if "parameter" in each.value.columns)
    assert {"tau_us", "eta_w", "eta_pf", "t_pf0_ms", "first_wave_s", "mtp_acceptance"} <= set(moved["parameter"])
    assert (moved["after %"] <= moved["known to, before %"]).all()


def test_export_offers_the_file_the_command_line_writes(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = put(finished, tmp_path, "finished")
    app = open_page("export", tmp_path, monkeypatch, file="sglang.yaml")
    written = (run / "export" / "sglang.yaml").read_text().splitlines()
    shown = app.code[0].value.splitlines()
    assert [line for line in shown if not line.startswith("# made by")] == [
        line for line in written if not line.startswith("# made by")
    ]
    assert {each.label for each in app.get("download_button")} == {
        "Download sglang.yaml", "Download all with README and data",
    }  # fmt: skip


def test_unknown_knobs_and_fields_are_shown_not_refused(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = put(finished, tmp_path, "finished")
    records = read_trials(run / "trials.jsonl")
    for record in records:
        record.params["new_knob"] = record.number % 2
    bodies = [encode_json(record, indent=0).replace('{"number"', '{"from_the_future":1,"number"') for record in records]
    chain, lines = start_of(run), []
    for body in bodies:
        line, chain = sealed(body.encode(), chain)
        lines.append(line.decode() + "\n")
    (run / "trials.jsonl").write_text("".join(lines))
    app = open_page("calibration", tmp_path, monkeypatch, knob="new_knob")
    assert app.selectbox(key="knob").value == "new_knob"
    assert not app.warning


def test_a_run_over_deployments_has_no_knobs_and_every_page_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = ("--hardware", "2xh200x8", "--isl", "200", "--osl", "100", "--concurrency", "16", "--no-mtp")
    command = [sys.executable, "-m", "tuner.cli.main", "tune", *question, "--engine", "simulated", "--servers", "pd",
               "--trials", "2", "--confirm", "0", "--runs", str(tmp_path), "--run", "fleet"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONSAFEPATH": "1"})
    for page in OF_RUNS:
        open_page(page, tmp_path, monkeypatch, run="fleet")
