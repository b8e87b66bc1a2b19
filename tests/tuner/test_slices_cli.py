"""`sgtune calibrate --slice`: slices are launched, measured and kept, and predict the whole model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hwprobe.errors import InputError
from models.architecture import deepseek_r1
from models.serving.estimate import Context
from tuner.engines.build import world_toml
from tuner.engines.world import Effect, World
from tuner.slices.launch import SliceLoad, launch_words, layout_of, loads_of, override_text, slice_of, slices_of

Sgtune = Callable[..., Any]
R1 = deepseek_r1()
SHORT = ("--decode", "64/32@1,8", "--prefill", "1024/4@1", "--repeats", "2")


def world(folder: Path, **settings: Any) -> Path:
    file = folder / "world.toml"
    file.write_text(world_toml(World(**{"noise": 0.01, **settings})))
    return file


def sliced(sgtune: Sgtune, folder: Path, *more: str, hardware: str = "h200x8") -> Any:
    return sgtune(
        "calibrate", "--slice", "4,8", "--hardware", hardware, "--engine", "simulated",
        "--out", str(folder / "here.json"), *SHORT, *more,
    )  # fmt: skip


def test_slices_of_a_world_foretell_its_whole_model(sgtune: Sgtune, tmp_path: Path) -> None:
    truth = world(tmp_path, parameters={"tau_us": 1.3, "host_ms": 2.0})
    ran = sliced(sgtune, tmp_path, "--world", str(truth), "--json")
    assert ran.code == 0, ran.err
    assert ran.out.count("\n") == 1
    assert "describe a world, not a machine" in ran.err
    document = json.loads(ran.out)
    assert document["parameters"]["host_ms"]["after"] == pytest.approx(1.0, rel=0.1)
    told = document["slices"]
    assert (told["layers"], told["whole_layers"]) == ([4, 8], 61)
    tpot = next(f for f in told["figures"] if (f["metric"], f["concurrency"], f["osl"]) == ("tpot_mean_ms", 1, 32))
    expected = tpot["all_else_ms"] + 58 * tpot["moe_layer_ms"]
    assert tpot["whole_with_dummy_weights"] == pytest.approx(expected)
    assert tpot["band"][0] < tpot["whole"] < tpot["band"][1]
    assert set(tpot["measured"]) == {"4", "8"}
    said = " ".join(told["not_from_slices"])
    assert all(word in said for word in ("KV cache", "MTP acceptance", "expert routing"))
    # the points are there, and say the same again
    points = tmp_path / "here.points.jsonl"
    assert len(points.read_text().splitlines()) == 12
    again = sgtune(
        "calibrate", "--points", str(points), "--hardware", "h200x8", "--out", str(tmp_path / "b.json"), "--json"
    )
    assert json.loads(again.out)["slices"]["figures"] == told["figures"]


def test_one_gpu_speaks_for_eight_and_says_what_it_cannot(sgtune: Sgtune, tmp_path: Path) -> None:
    ran = sliced(sgtune, tmp_path, "--target", "h200x8", "--target-args", "--tp 8 --dp 8 --enable-dp-attention",
                 "--json", "--sglang-version", "0.5.12", hardware="h200x1")  # fmt: skip
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)["slices"]
    assert told["figures"] == []  # 671B do not fit one H200
    assert {answer["layout"] for answer in told["on_target"]} == {"TP8 DP8"}
    said = " ".join(told["not_from_slices"])
    assert "collectives of TP8 DP8" in said
    assert "rank synchronisation" in said
    refused = sliced(sgtune, tmp_path, hardware="h200x1")
    assert (refused.code, "holds measured points" in refused.err) == (2, True)
    shown = sliced(sgtune, tmp_path, "--target", "h200x8", "--save-points", str(tmp_path / "b.jsonl"),
                   hardware="h200x1")  # fmt: skip
    assert "the whole model on h200x8, TP8, by the calibrated profile" in shown.out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--points", "x.jsonl"), "leave --points out"),
        (("--decode", "64@1"), "--decode is '64@1'"),
        (("--decode", "", "--prefill", ""), "nothing would be measured"),
        (("--repeats", "0"), "--repeats is 0"),
        (("--engine", "docker"), "--engine docker needs --image"),
        (("--engine", "local", "--python", "no-such-python"), "no program 'no-such-python'"),
        (("--slice-dense", "5"), "5 dense layers"),
        (("--", "--speculative-algorithm", "EAGLE", "--speculative-num-steps", "1"), "without MTP"),
        (("--", "--no-such-flag"), "refuses a flag"),
        (("--", "--tp", "16"), "ask for 16 GPUs"),
    ],
)
def test_a_question_that_has_no_meaning_is_refused_before_anything_starts(
    sgtune: Sgtune, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    ran = sliced(sgtune, tmp_path, *more)
    assert ran.code == 2, ran.err
    assert message in ran.err
    assert not list(tmp_path.glob("*.jsonl"))


@pytest.mark.parametrize("text", ["4", "x", "4,80", "3,8", "0,8"])
def test_slices_that_tell_nothing_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--slice"):
        slices_of(R1, text, None)


def test_calibrate_without_anything_says_what_to_give(sgtune: Sgtune, tmp_path: Path) -> None:
    ran = sgtune("calibrate", "--out", str(tmp_path / "p.json"))
    assert (ran.code, "--slice 4,8" in ran.err) == (2, True)
    ran = sgtune("calibrate", "--slice", "4,8", "--out", str(tmp_path / "p.json"))
    assert (ran.code, "--slice needs --hardware" in ran.err) == (2, True)


def test_the_launch_line_keeps_the_layout_and_holds_the_whole_models_cache(context: Callable[..., Context]) -> None:
    here = layout_of(context("h200x8", "0.5.23"), ("--tp", "8", "--ep-size", "8"))
    slim = R1.sliced(4)
    words = launch_words(here, slim, "/models/r1", here.kv_tokens_per_rank)
    assert words[words.index("--tp") + 1] == words[words.index("--ep-size") + 1] == "8"
    assert words[words.index("--load-format") + 1] == "dummy"
    assert 400_000 < int(words[words.index("--max-total-tokens") + 1]) < 900_000
    assert slice_of(R1, words[words.index("--json-model-override-args") + 1]) == slim
    plain = layout_of(context("h200x8", "0.5.23"), ())
    assert plain.config.tp_size == 8
    assert slice_of(R1, override_text(R1)) is R1
    with pytest.raises(InputError, match="override"):
        slice_of(R1, "{")


def test_rungs_are_read_as_written() -> None:
    assert loads_of("128/16@1,8", "--decode") == (
        SliceLoad(isl=128, osl=16, clients=1),
        SliceLoad(isl=128, osl=16, clients=8),
    )
    assert loads_of("", "--decode") == ()


@pytest.mark.slow
def test_the_emulated_server_boots_slices_too(sgtune: Sgtune, tmp_path: Path) -> None:
    hidden = Effect(when={"tp_size": 8}, time_factor=3.0, on="whole")
    truth = world(tmp_path, slice_boot_s=0.2, boot_s=300.0, noise=0.0, effects=(hidden,))
    ran = sliced(sgtune, tmp_path, "--engine", "emulated", "--world", str(truth), "--together", "--point-time", "1s",
                 "--decode", "64/64@1,4", "--prefill", "", "--repeats", "1", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    figures = json.loads(ran.out)["slices"]["figures"]
    one = next(f for f in figures if f["metric"] == "tpot_mean_ms" and f["concurrency"] == 1)
    assert 1.2 < one["measured"]["8"] / one["measured"]["4"] < 2.0
    assert 4.0 < one["whole"] < 20.0
