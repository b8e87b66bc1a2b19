"""Launch lines and files as people posted them: each is answered right, or said not to be known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CheckRun = Callable[..., tuple[int, dict[str, Any], str]]
R1_CONFIG = json.loads((Path(__file__).parents[2] / "models/configs/deepseek-r1.json").read_text())
ALONE = ["deepseek-ai/DeepSeek-R1", "--tp", "8"]
AWQ = "python3 -m sglang.launch_server --model-path cognitivecomputations/DeepSeek-R1-AWQ --tp 8 --trust-remote-code"


@pytest.fixture
def check(sgtune: Callable[..., Any]) -> CheckRun:
    """Run `sgtune check --json` and return exit code, document and what was said on stderr."""

    def run(*words: str) -> tuple[int, dict[str, Any], str]:
        ran = sgtune("check", "--json", *words)
        assert ran.out.count("\n") == 1, ran.err
        return ran.code, json.loads(ran.out), ran.err

    return run


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str, str], str]:
    """Write a launch file and return its path."""

    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def rules(document: dict[str, Any]) -> set[str]:
    return {violation["rule"] for violation in document["violations"]}


def no_verdict(found: tuple[int, dict[str, Any], str]) -> str:
    """Assert that there is no verdict on anything, and return the sentence."""
    code, document, said = found
    assert code == 2
    assert not {"verdict", "fits", "ledger", "prediction", "accepted"} & document.keys()
    assert document["error"] in said
    return str(document["error"])


# --- 01 to 05: checkpoints ----------------------------------------------------------------------------------------


def weights_gib(document: dict[str, Any]) -> float:
    return sum(gib for owner, gib in document["ledger"]["per_gpu_gib"].items() if owner.startswith("weights"))


@pytest.mark.parametrize("hardware", ["h100x8", "a100x8"])
def test_an_awq_checkpoint_fits_eight_gpus_of_80_gib(check: CheckRun, hardware: str) -> None:
    line = f"{AWQ} --quantization moe_wna16"
    code, document, _ = check("--hardware", hardware, "--sglang-version", "0.4.6", "--", *line.split())
    assert (code, document["verdict"], document["model"]["weights"]) == (0, "runs", "4-bit AWQ")
    assert 42 < weights_gib(document) < 46  # 339.6 GiB of files, plus what every rank holds whole
    assert "fp8-hardware" not in rules(document)
    assert document["prediction"] is not None
    code, document, _ = check("--hardware", hardware, "--sglang-version", "0.4.6", "--", *AWQ.split())
    assert code == 3
    assert "int4-experts-release" in rules(document)


@pytest.mark.parametrize(
    ("quantization", "weights"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, "4-bit AWQ"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4"),
    ],
)
def test_a_config_json_of_four_bits_says_what_the_weights_are(
    check: CheckRun, written: Callable[[str, str], str], quantization: dict[str, Any], weights: str
) -> None:
    config = written("config.json", json.dumps(R1_CONFIG | {"quantization_config": quantization}))
    code, document, _ = check("--hardware", "b200x8", "--model", config, "--", "--model-path", "/m", "--tp", "8")
    assert (code, document["model"]["weights"]) == (0, weights)
    assert 40 < weights_gib(document) < 56


def test_the_int8_export_runs_on_a100(check: CheckRun) -> None:
    code, document, _ = check(
        "--hardware", "2xa800x8", "--sglang-version", "0.4.5", "--", "--model-path", "/models/DeepSeek-R1-Channel-INT8",
        "--tp", "16", "--nnodes", "2", "--node-rank", "0", "--dist-init-addr", "node0:5000", "--quantization",
        "w8a8_int8",
    )  # fmt: skip
    assert (code, document["verdict"]) == (0, "runs")
    assert "fp8-hardware" not in rules(document)
    assert document["model"]["weights"] == "INT8"
    assert document["prediction"] is not None


def test_fp4_runs_on_four_b200(check: CheckRun) -> None:
    line = ["--model-path", "nvidia/DeepSeek-R1-0528-FP4-v2", "--tp", "4", "--moe-runner-backend", "flashinfer_trtllm"]
    for flags in (["--quantization", "modelopt_fp4"], []):
        code, document, _ = check("--hardware", "b200x4", "--sglang-version", "0.5.9", "--", *line, *flags)
        assert (code, document["verdict"], document["model"]["weights"]) == (0, "runs", "NVFP4")
        assert 90 < weights_gib(document) < 96  # the MTP layer, in BF16, is not loaded


def test_a_bf16_export_is_known_by_its_name(check: CheckRun) -> None:
    code, document, _ = check(
        "--hardware", "4xa100x8", "--sglang-version", "0.4.3", "--", "--model-path", "unsloth/DeepSeek-R1-BF16", "--tp",
        "32", "--nnodes", "4", "--node-rank", "0", "--dist-init-addr", "node0:5000", "--trust-remote-code",
    )  # fmt: skip
    weights = sum(gib for owner, gib in document["ledger"]["per_gpu_gib"].items() if owner.startswith("weights"))
    assert (code, document["verdict"]) == (0, "runs")
    assert 38 < weights < 42
    assert not {"expert-width", "fp8-hardware"} & rules(document)
    assert document["kv_tokens_per_rank"] == pytest.approx(302_117, rel=0.05)


DOCKER_V32 = (
    "docker run --gpus all --ipc=host lmsysorg/sglang:v0.5.6-cu129-amd64 python3 -m sglang.launch_server "
    "--model /data/DeepSeek-V3.2 --tp 8 --mem-fraction-static 0.85"
)


def test_sparse_attention_holds_its_indexer(check: CheckRun) -> None:
    code, document, _ = check("--hardware", "h200x8", "--", *DOCKER_V32.split())
    assert (code, document["verdict"]) == (0, "runs")
    assert 80 < weights_gib(document) < 88
    # 61 layers of 1,152 B of latent in BF16 and 132 B of index keys.
    pool = document["ledger"]["per_gpu_gib"]["KV pool"] * 2**30
    assert pool / document["kv_tokens_per_rank"] == pytest.approx(61 * (1152 + 132), rel=0.01)


def test_k2_wants_sixteen_gpus(check: CheckRun) -> None:
    model = ["--model-path", "moonshotai/Kimi-K2-Instruct", "--trust-remote-code"]
    code, document, _ = check("--hardware", "h200x8", "--", *model, "--tp", "8")
    assert (code, document["verdict"]) == (3, "does not fit")
    sixteen = ["--tp", "16", "--nnodes", "2", "--node-rank", "0", "--dist-init-addr", "node0:5000"]
    code, document, _ = check("--hardware", "2xh200x8", "--", *model, *sixteen)
    assert (code, document["verdict"]) == (0, "runs")
    mtp = ["--speculative-algorithm", "EAGLE"]
    _, document, _ = check("--hardware", "2xh200x8", "--", *model, *sixteen, *mtp)
    assert "mtp-without-layer" in rules(document)


@pytest.mark.parametrize(
    "line",
    [
        "--model-path Qwen/Qwen3-235B-A22B --tp 8",
        "--model-path zai-org/GLM-4.6-FP8 --tp 8",
        "--model-path openai/gpt-oss-120b --tp 8",
        "--model-path deepseek-ai/DeepSeek-R1-Distill-Llama-70B --tp 8",
    ],
)
def test_another_model_gets_no_verdict(check: CheckRun, line: str) -> None:
    assert "--model" in no_verdict(check("--hardware", "h200x8", "--", *line.split()))


def test_a_path_that_names_nothing_is_said_to_be_taken_for_r1(check: CheckRun) -> None:
    _, document, _ = check("--hardware", "h200x8", "--", "--model-path", "/m", "--tp", "8")
    assert [(taken["name"], taken["value"]) for taken in document["assumed"]] == [
        ("model", "DeepSeek-R1 with FP8 weights")
    ]


# --- 12, 19, 21, 23, 25: advice, HiCache, EAGLE3, intervals, hardware --------------------------------------------


def test_advice_that_a_release_cannot_write_leaves_the_answer(check: CheckRun) -> None:
    code, document, _ = check(
        "--hardware", "h20x8", "--sglang-version", "0.4.4", "--", "--model-path", "/m/V3", "--tp", "8", "--dp", "8",
        "--enable-dp-attention", "--context-length", "8192", "--mem-fraction-static", "0.8", "--disable-cuda-graph",
    )  # fmt: skip
    assert (code, document["verdict"]) == (3, "does not fit")


def test_hicache_names_the_memory_of_the_host(check: CheckRun) -> None:
    _, document, _ = check(
        "--hardware", "h200x8", "--sglang-version", "0.5.9", "--", "--model-path", *ALONE, "--mem-fraction-static",
        "0.85", "--enable-hierarchical-cache", "--hicache-ratio", "4",
    )  # fmt: skip
    said = next(v["message"] for v in document["violations"] if v["rule"] == "hicache-host-memory")
    pool = document["ledger"]["per_gpu_gib"]["KV pool"]
    assert f"{4 * pool * 8:,.0f} GiB" in said


def test_eagle3_with_the_models_own_draft_is_warned_of(check: CheckRun) -> None:
    code, document, _ = check(
        "--hardware", "h20x8", "--sglang-version", "0.4.5", "--isl", "128", "--osl", "512", "--concurrency", "1", "--",
        "--model-path", "/m/DeepSeek-R1", "--tp", "8", "--mem-fraction-static", "0.9", "--max-running-requests", "64",
        "--enable-ep-moe", "--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path",
        "/m/DeepSeek-R1-NextN", "--speculative-num-steps", "3", "--speculative-eagle-topk", "1",
        "--speculative-num-draft-tokens", "4",
    )  # fmt: skip
    assert code == 0
    assert "eagle3-draft" in rules(document)


def test_h20_is_not_told_of_an_interval_that_is_none(check: CheckRun) -> None:
    _, document, _ = check(
        "--hardware", "h20x8", "--sglang-version", "0.4.9.post2", "--", "--model-path", "/m/R1", "--tp", "8",
        "--enable-ep-moe", "--mem-fraction-static", "0.8", "--cuda-graph-max-bs", "256", "--max-running-requests",
        "256",
    )  # fmt: skip
    fix = next(v["fix"] for v in document["violations"] if v["rule"] == "no-kv-cache")
    ends = [float(word.rstrip(",")) for word in fix.split() if word[:2] == "0."]
    assert ends == sorted(ends)
    assert not any("--nnodes" in advice["flags"] for advice in document["advice"])


@pytest.mark.parametrize(
    "name", ["a800x8", "2xa800x8", "h20-141gx8", "rtx-pro-6000x8", "rtx4090x8", "H200", "2x8xH100"]
)
def test_hardware_is_known_by_the_names_people_use(check: CheckRun, name: str) -> None:
    code, document, _ = check("--hardware", name, "--", "--model-path", *ALONE)
    assert code in (0, 3)
    assert document["question"]["hardware"]


# --- 14, 15, 27: shell values -------------------------------------------------------------------------------------

LAUNCH = "python3 -m sglang.launch_server"
WIDE = f"{LAUNCH} --model-path /m/R1 --nnodes 2 --dist-init-addr n0:1"


@pytest.mark.parametrize(
    ("script", "tp"),
    [
        (f"MODEL=${{MODEL:-deepseek-ai/DeepSeek-R1}}\nPORT=${{PORT:-8888}}\n{LAUNCH} --model-path $MODEL --tp 8", 8),
        (f"{LAUNCH} --model-path /m/R1 --tp ${{TP_OF_A:-8}}", 8),
        (f"num_decode=2\n{WIDE} --tp-size $((${{num_decode}}*8)) --max-running-requests $((${{num_decode}}*2048))", 16),
        (f"TP=8; CONC=64\n{LAUNCH} --model-path /m/R1 --tensor-parallel-size $TP --max-running-requests $CONC", 8),
        (f"{WIDE} --tp 16 --node-rank $1", 16),
        (f'EXTRA=""\n{LAUNCH} --model-path /m/R1 --tp 8 --max-running-requests 64 $EXTRA', 8),
        (f'ARGS=(--model-path /m/R1 --tp-size 16 --nnodes 2)\n{LAUNCH} "${{ARGS[@]}}"', 16),
        ("PORT=39877\nsrun bash -c \"python -m sglang.launch_server --model-path /m/R1 --tp 16 --nnodes 2 --node-rank "
         "\\$SLURM_PROCID --port '$PORT'\"", 16),
    ],
)  # fmt: skip
def test_shell_values_are_what_a_shell_makes_of_them(
    check: CheckRun, written: Callable[[str, str], str], script: str, tp: int
) -> None:
    code, document, _ = check(written("run.sh", script))
    assert (code, document["verdict"], document["typed"]["tp_size"]) == (0, "runs", tp)


def test_values_come_from_the_callers_environment_or_from_set(
    check: CheckRun, written: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(
        "run.sh", f"{LAUNCH} --model-path $MODEL_OF_CASE --tp $TP_OF_CASE --max-running-requests $CONC_OF_CASE"
    )
    said = no_verdict(check(file))
    assert "--set TP_OF_CASE=" in said
    given = ["--set", "TP_OF_CASE=8", "--set", "CONC_OF_CASE=64", "--set", "MODEL_OF_CASE=/m/DeepSeek-R1"]
    assert check(*given, file)[1]["typed"]["tp_size"] == 8
    for name, value in (("TP_OF_CASE", "8"), ("CONC_OF_CASE", "64"), ("MODEL_OF_CASE", "/m/DeepSeek-R1")):
        monkeypatch.setenv(name, value)
    _, document, _ = check(file)
    assert document["typed"]["max_running_requests"] == 64
    assert {taken["name"] for taken in document["assumed"]} == {"TP_OF_CASE", "CONC_OF_CASE", "MODEL_OF_CASE"}


def test_a_composes_default_names_release_and_size(check: CheckRun, written: Callable[[str, str], str]) -> None:
    text = (
        "services:\n  s:\n    image: lmsysorg/sglang:${TAG_OF_CASE:-v0.5.5-cu129}\n"
        f"    command: {LAUNCH} --model-path /m/R1 --tp ${{TP_OF_CASE:-8}}\n"
    )
    _, document, _ = check(written("compose.yaml", text))
    assert (document["question"]["sglang_version"], document["typed"]["tp_size"]) == ("0.5.5", 8)


OME = """
apiVersion: ome.io/v1beta1
kind: ClusterServingRuntime
spec:
  engineConfig:
    runner:
      image: docker.io/lmsysorg/sglang:v0.5.5.post3-cu129-amd64
      command: [python3, -m, sglang.launch_server, --model-path, $(MODEL_PATH), --tp-size, $(PARALLELISM_SIZE),
        --nccl-init, "$(LWS_LEADER_ADDRESS):5000", --nnodes, $(LWS_GROUP_SIZE), --node-rank, $(LWS_WORKER_INDEX),
        --moe-a2a-backend, deepep]
"""


def test_a_size_that_is_not_known_is_asked_for(check: CheckRun, written: Callable[[str, str], str]) -> None:
    file = written("runtime.yaml", OME)
    code, document, _ = check("--hardware", "2xh100x8", file)
    assert (code, document["unknown"]) == (2, [{"flag": "--tp-size", "text": "$(PARALLELISM_SIZE)"}])
    assert "--set PARALLELISM_SIZE=" in document["error"]
    code, document, _ = check("--hardware", "2xh100x8", "--set", "PARALLELISM_SIZE=16", file)
    assert (document["typed"]["tp_size"], document["typed"]["nnodes"]) == (16, 2)
    assert "model-path" not in rules(document)
    assert {"model", "--nnodes"} <= {taken["name"] for taken in document["assumed"]}


# --- 16 to 18, 20: several servers, Dynamo, scripts and settings in YAML, LeaderWorkerSet --------------------------


def test_all_servers_of_a_file_are_judged_and_the_worst_decides(
    check: CheckRun, written: Callable[[str, str], str]
) -> None:
    text = (
        f"{LAUNCH} --model-path /m/R1 --tp 8 --disaggregation-mode prefill --port 30000 &\n"
        f"{LAUNCH} --model-path /m/R1 --tp 8 --disaggregation-mode decode --port 30001 --mem-fraction-static 0.99 &\n"
    )
    file = written("two.sh", text)
    code, document, _ = check("--hardware", "h200x8", "--sglang-version", "0.5.5", file)
    assert (code, document["verdict"], document["role"]) == (3, "does not fit", "decode")
    assert [(s["role"], s["where"]["line"], s["verdict"]) for s in document["servers"]] == [
        ("prefill", 1, "runs"), ("decode", 2, "does not fit"),
    ]  # fmt: skip
    assert {server["where"]["file"] for server in document["servers"]} == {file}
    assert "other half" in document["servers"][0]["unpredicted"]


def test_dynamos_worker_is_read(check: CheckRun, written: Callable[[str, str], str]) -> None:
    text = """
command: [python3, -m, dynamo.sglang]
args: [--model-path, deepseek-ai/DeepSeek-R1, --tp, "8", --dp, "8", --enable-dp-attention, --ep-size, "8",
       --disaggregation-mode, decode, --mem-fraction-static, "0.75", --dyn-tool-call-parser, deepseek_v3]
"""
    code, document, _ = check("--hardware", "h200x8", written("deploy.yaml", text))
    assert (code, document["role"], document["typed"]["attn_dp_size"]) == (0, "decode", 8)
    assert any("Dynamo's own" in note for note in document["warnings"])


SKYPILOT = f"""
resources: {{accelerators: "H200:8"}}
num_nodes: 2
run: |
  TP=$(($SKYPILOT_NUM_GPUS_PER_NODE * $SKYPILOT_NUM_NODES))
  {LAUNCH} --model deepseek-ai/DeepSeek-R1 --tp $TP --dp $TP --enable-dp-attention \\
    --nnodes ${{SKYPILOT_NUM_NODES}} --node-rank ${{SKYPILOT_NODE_RANK}} --dist-init-addr $HEAD_OF_CASE:5000
"""
RECIPE = """
model: {path: dsr1-fp8, container: "lmsysorg/sglang:v0.5.5"}
resources: {prefill_nodes: 1, decode_nodes: 2, prefill_workers: 1, decode_workers: 1}
backend:
  sglang_config:
    prefill: {tensor-parallel-size: 8, trust-remote-code: true}
    decode: {tensor-parallel-size: 16, data-parallel-size: 16, enable-dp-attention: true, mem-fraction-static: 0.7}
"""


def test_a_script_inside_yaml_is_read(check: CheckRun, written: Callable[[str, str], str]) -> None:
    _, document, _ = check(written("skypilot.yaml", SKYPILOT))
    assert (document["typed"]["tp_size"], document["typed"]["nnodes"], document["where"]["line"]) == (16, 2, 6)


def test_settings_at_any_depth_are_servers(check: CheckRun, written: Callable[[str, str], str]) -> None:
    _, document, _ = check(written("recipe.yaml", RECIPE))
    assert [(s["role"], s["typed"]["tp_size"], s["typed"].get("nnodes", 1)) for s in document["servers"]] == [
        ("prefill", 8, 1), ("decode", 16, 2),
    ]  # fmt: skip
    assert {server["question"]["sglang_version"] for server in document["servers"]} == {"0.5.5"}


def test_a_leader_worker_sets_size_is_its_number_of_nodes(check: CheckRun, written: Callable[[str, str], str]) -> None:
    text = """
kind: LeaderWorkerSet
apiVersion: leaderworkerset.x-k8s.io/v1
spec:
  leaderWorkerTemplate:
    size: 2
    leaderTemplate: {spec: {containers: [{name: sglang, image: "lmsysorg/sglang:latest", command: [
      python3, -m, sglang.launch_server, --model-path, /m/R1, --tp-size, "16", --nnodes, $(LWS_GROUP_SIZE),
      --node-rank, $(LWS_WORKER_INDEX), --dist-init-addr, "$(LWS_LEADER_ADDRESS):20102"]}]}}
"""
    code, document, _ = check(written("d.yaml", text))
    assert (code, document["typed"]["nnodes"], document["question"]["hardware"]) == (0, 2, "2xh200x8")


def test_a_line_that_is_not_modelled_leaves_the_other_servers_their_answers(
    check: CheckRun, written: Callable[[str, str], str]
) -> None:
    text = f"{LAUNCH} --model-path /m/R1 --tp 8 &\n{LAUNCH} --model-path Qwen/Qwen3-8B --tp 1 --port 2 &\n"
    code, document, _ = check(written("both.sh", text))
    assert code == 2
    assert [server.get("verdict") for server in document["servers"]] == ["runs", None]
