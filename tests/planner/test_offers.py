"""Other checkpoints: what is offered where FP8 does not run, and launch lines that each kind's release takes."""

from __future__ import annotations

import pytest
from packaging.version import Version

from hwprobe.catalogue import hardware_from_catalogue
from models.architecture.shipped import checkpoint_named
from planner.launch import launch_spec
from planner.launch_lines.checkpoint import served_model
from planner.plans.make import Plan, PlanQuestion, make_plan
from planner.sglang.arguments import read_arguments
from planner.sglang.flags import flags_of


def planned(model: str, hardware: str, version: str = "0.5.23") -> Plan:
    checkpoint = checkpoint_named(model)
    assert checkpoint is not None
    return make_plan(
        PlanQuestion(
            hardware=hardware_from_catalogue(hardware),
            arch=checkpoint.arch,
            version=Version(version),
            isl=1000,
            osl=1000,
            concurrency=4,
            mtp=False,
        )
    )


def test_eight_a100_are_offered_exports_and_accuracy_is_not_judged() -> None:
    plan = planned("deepseek-ai/DeepSeek-R1", "a100x8")
    assert not plan.fits
    nodes = {offer.label: offer.nodes for offer in plan.offers}
    assert nodes["4-bit AWQ"] == nodes["4-bit GPTQ"] == 1
    assert nodes["INT8 per block"] == nodes["INT8 per channel"] == 2
    assert nodes["BF16"] == 4
    assert not {"W4AFP8", "MXFP4"} & nodes.keys(), "these need units that an A100 lacks"
    for offer in plan.offers:
        assert "accuracy is not judged" in str(offer.as_dict()["accuracy"])
        assert offer.best.ledger.kv_tokens > 0


@pytest.mark.parametrize("hardware", ["h200x8", "b200x8"])
def test_nothing_is_offered_where_the_checkpoint_runs(hardware: str) -> None:
    assert planned("deepseek-ai/DeepSeek-R1", hardware).offers == ()


@pytest.mark.parametrize(
    ("model", "hardware", "version", "quantization"),
    [
        ("deepseek-ai/DeepSeek-R1", "h200x8", "0.4.6", None),
        ("unsloth/DeepSeek-R1-BF16", "4xa100x8", "0.5.9", None),
        ("cognitivecomputations/DeepSeek-R1-AWQ", "a100x8", "0.5.9", None),
        ("OPEA/DeepSeek-R1-int4-gptq-sym-inc", "h100x8", "0.5.9", None),
        ("RedHatAI/DeepSeek-R1-quantized.w4a16", "h100x8", "0.5.9", None),
        ("meituan/DeepSeek-R1-Block-INT8", "2xa100x8", "0.4.6", None),
        ("meituan/DeepSeek-R1-Channel-INT8", "2xa100x8", "0.4.9", "w8a8_int8"),
        ("Barrrrry/DeepSeek-R1-W4AFP8", "h20x8", "0.5.9", None),
        ("nvidia/DeepSeek-R1-0528-FP4-v2", "b200x4", "0.5.9", "modelopt_fp4"),
        ("amd/DeepSeek-R1-MXFP4-Preview", "mi355x8", "0.5.9", None),
        ("deepseek-ai/DeepSeek-V3.2", "h200x8", "0.5.9", None),
        ("moonshotai/Kimi-K2-Instruct", "2xh200x8", "0.5.9", None),
        ("moonshotai/Kimi-K2-Thinking", "h200x8", "0.5.9", None),
    ],
)
def test_each_kinds_launch_line_is_one_its_release_takes(
    model: str, hardware: str, version: str, quantization: str | None
) -> None:
    plan = planned(model, hardware, version)
    assert plan.best is not None
    spec = launch_spec(plan.best.config, Version(version), model_path=model)
    argv = [word for words in spec.words for word in words]
    release = flags_of(Version(version))
    assert all(word in release.by_name for word in argv if word.startswith("--"))
    read = read_arguments(argv, Version(version))
    assert read.faults == ()
    assert read.values.get("quantization") == quantization
    served = served_model(read.values, None)
    assert served.assumed is None
    assert served.arch.weights == plan.context.arch.weights
