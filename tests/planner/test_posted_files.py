"""Launch files as people post them: what is started, what is asked for, and what is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwprobe.errors import InputError
from planner.launch_lines.launch_line import LaunchLine
from planner.launch_lines.read import Given, launches_of_file

SERVER = "python3 -m sglang.launch_server --model-path /m/R1"


def read(folder: Path, name: str, text: str, **given: str) -> list[LaunchLine]:
    (folder / name).write_text(text)
    return launches_of_file(folder / name, Given(values=given))


def words(found: list[LaunchLine]) -> list[str]:
    return [" ".join(line.words) for line in found]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f'pkill -f sglang.launch_server\necho "{SERVER} --tp 4"\nCMD="{SERVER} --tp 8"\nnohup $CMD > log &', "--tp 8"),
        (f"TP=8\nwhile [[ $# -gt 0 ]]; do case $1 in --tp) TP=$2; shift 2;; esac; done\n{SERVER} --tp $TP", "--tp 8"),
        (f"if [ $# -lt 9 ]; then echo usage; exit 1; fi\n{SERVER} --tp 8", "--tp 8"),
        (f"NODES=(a b)\nfor i in 0 1; do\n ssh ${{NODES[$i]}} \"cd /x && {SERVER} --tp 16 --nnodes ${{#NODES[@]}} "
         '--node-rank $i"\ndone', "--tp 16 --nnodes 2 --node-rank 0"),
        (f"tmux new -d -s s '{SERVER} --tp 8'", "--tp 8"),
        (f"numactl --all python3 -u {SERVER[8:]} --tp=8 |& tee log", "--tp=8"),
        (f"{SERVER} --tp 8\r\n", "--tp 8"),
        (f"declare -A C=( [tp]=8 ['ep']=4 )\nC[ep]=8\n{SERVER} --tp ${{C[tp]}} --ep ${{C[ep]}}", "--tp 8 --ep 8"),
        (f"declare -A C=([h200]=8 [h100]=16); G=h200\n{SERVER} --tp ${{C[$G]}}", "--tp 8"),
        (f"N=8; {SERVER} --tp $(( N >= 8 ? 8 : N )) --ep $((N > 8 ? 1 : N == 8 ? 8 : 2))", "--tp 8 --ep 8"),
        (f"#SBATCH --nodes=2 --gpus-per-node=h200:8\n{SERVER} --tp $((SLURM_NNODES * SLURM_GPUS_PER_NODE))", "--tp 16"),
        (f"A=(1 2); A[0]=8; {SERVER} --tp ${{A[0]}}", "--tp 8"),
        (f"if [ -z \"$TP_X\" ]; then TP_X=8; fi\n{SERVER} --tp $TP_X", "--tp 8"),
        (f"case ${{GPU_X:-h200}} in h200) TP=8;; *) TP=16;; esac\n{SERVER} --tp $TP", "--tp 8"),
        (f"A=--tp; B='8 --ep 8'\n{SERVER} $A $B", "--tp 8 --ep 8"),
        (f'X="a b"\n{SERVER} --served-model-name "$X" --tp 8', "--served-model-name a b --tp 8"),
        (f"f() {{ local tp=$1; shift; {SERVER} --tp $tp \"$@\"; }}\nf 8 --ep 8", "--tp 8 --ep 8"),
        (f"{SERVER} --tp 8 --cuda-graph-bs {{1..4}} 8", "--tp 8 --cuda-graph-bs 1 2 3 4 8"),
        (f"{SERVER} --tp 8 --cuda-graph-bs $(seq 2 2 6)", "--tp 8 --cuda-graph-bs 2 4 6"),
        (f"{SERVER} --model-path /m/R1 \\\n --tp 8 # eight\necho done", "--model-path /m/R1 --tp 8"),
    ],
)  # fmt: skip
def test_a_script_starts_one_server(tmp_path: Path, text: str, wanted: str) -> None:
    found = read(tmp_path, "run.sh", text)
    assert words(found) == [f"--model-path /m/R1 {wanted}"]
    assert found[0].unknown == ()


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        (f"N=$(nvidia-smi -L | wc -l)\n{SERVER} --tp $N", "--tp-size"),
        (f"{SERVER} --tp $(nvidia-smi -L | wc -l)", "--tp-size"),
        (f"{SERVER} --tp $TP_X", "--tp-size"),
        (f"{SERVER} --tp $2", "--tp-size"),
        (f"{SERVER} --tp <gpus>", "--tp-size"),
        (f"{SERVER} --mem-fraction-static ${{MEM_X}}", "--mem-fraction-static"),
        (f"if curl -s x; then N=8; else N=16; fi\n{SERVER} --tp $N", "--tp-size"),
        (f"case $ROLE_X in a) F='--tp 8';; b) F='--tp 16';; esac\n{SERVER} $F", ""),
        (f"ARGS=$(cat args)\n{SERVER} $ARGS", ""),
    ],
)
def test_a_value_that_is_not_known_is_asked_for(tmp_path: Path, text: str, flag: str) -> None:
    found = read(tmp_path, "run.sh", text)
    assert [value.flag for value in found[0].unknown] == [flag]


def test_a_variable_can_be_given_and_a_condition_on_it_followed(tmp_path: Path) -> None:
    text = f'if [ "$GPU_X" = b200 ]; then F=0.9; else F=0.8; fi\n{SERVER} --tp $TP_X --mem-fraction-static $F'
    assert words(read(tmp_path, "run.sh", text, TP_X="8", GPU_X="b200")) == [
        "--model-path /m/R1 --tp 8 --mem-fraction-static 0.9"
    ]
    doubtful = read(tmp_path, "run.sh", text, TP_X="8")[0]
    assert ("GPU_X", "") in {(taken.name, taken.value) for taken in doubtful.assumed}


def test_servers_of_all_roles_are_found_though_one_is_chosen_by_default(tmp_path: Path) -> None:
    text = (
        f'MODE=${{1:-prefill}}\nif [ "$MODE" = prefill ]; then\n  {SERVER} --tp 8 --disaggregation-mode prefill\n'
        f"else\n  {SERVER} --tp 16 --disaggregation-mode decode\nfi\n"
    )
    assert [(line.role, line.line) for line in read(tmp_path, "run.sh", text)] == [("prefill", 3), ("decode", 5)]


def test_what_a_shell_would_cut_off_is_said(tmp_path: Path) -> None:
    blank = read(tmp_path, "a.sh", f"{SERVER} \\ \n  --tp 8\n")[0]
    assert blank.words[-2:] == ("--tp", "8")
    assert any("blank follows the backslash" in note for note in blank.notes)
    comment = read(tmp_path, "b.sh", f"{SERVER} --tp 8 \\\n  # --dp 8 \\\n  --ep 8\n")[0]
    assert "--ep" not in comment.words
    assert any("'--ep' stands alone" in note for note in comment.notes)


VALUES = """
global:
  image: {repository: lmsysorg/sglang, tag: v0.5.5}
  model: {path: /data/deepseek_r1_0528}
decode:
  leaderWorkerSet: {size: 2}
  config: {memFractionStatic: "0.849", tpSize: "16", dpSize: "16", enableDpAttention: true, maxRunningRequests: "2048"}
"""
RECIPE = """
base:
  model: {path: dsr1, container: "lmsysorg/sglang:v0.5.8", precision: fp4}
  resources: {decode_nodes: 1, decode_workers: 1}
  backend: {sglang_config: {decode: {tensor-parallel-size: 8, mem-fraction-static: 0.75}}}
zip_override_a: {backend: {sglang_config: {decode: {max-running-requests: [1, 2]}}}}
"""
CHART = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: x}
spec:
  {{- with .Values.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 8 }}
  {{- end }}
  containers:
  - image: "{{ .Values.image }}"
    command: [python3, -m, sglang.launch_server]
    args: ["--model-path", {{ .Values.model | quote }}, "--tp", "{{ .Values.tp | default 8 }}", "--ep={{ .Values.ep }}"]
"""
CONFIG_MAP = f"""
apiVersion: v1
kind: ConfigMap
metadata: {{name: c}}
data: {{TP: "8"}}
---
apiVersion: v1
kind: Pod
spec:
  containers:
  - image: lmsysorg/sglang:v0.5.5
    envFrom: [{{configMapRef: {{name: c}}}}]
    command: [sh, -c]
    args: ["{SERVER} --tp $TP --ep $(TP)"]
    readinessProbe: {{exec: {{command: [pgrep, -f, sglang.launch_server]}}}}
"""


def test_a_charts_values_are_settings(tmp_path: Path) -> None:
    found = read(tmp_path, "values.yaml", VALUES)
    assert [(line.role, line.image_version) for line in found] == [("decode", "0.5.5")]
    assert "--tp-size 16" in words(found)[0]
    assert words(found)[0].endswith("--model-path /data/deepseek_r1_0528 --disaggregation-mode decode --nnodes 2")


def test_a_recipes_precision_and_variants_are_not_lost(tmp_path: Path) -> None:
    found = read(tmp_path, "recipe.yaml", RECIPE)
    assert "--model-path dsr1-fp4" in words(found)[0]
    assert any("zip_override_a" in note for note in found[0].notes)


def test_a_template_takes_its_defaults_and_asks_for_the_rest(tmp_path: Path) -> None:
    found = read(tmp_path, "deployment.yaml", CHART)
    assert words(found) == ["--tp 8"]
    assert [value.flag for value in found[0].unknown] == ["--ep"]
    given = {".Values.ep": "8", ".Values.model": "deepseek-ai/DeepSeek-R1"}
    assert words(read(tmp_path, "deployment.yaml", CHART, **given)) == [
        "--model-path deepseek-ai/DeepSeek-R1 --tp 8 --ep=8"
    ]


def test_a_config_map_of_the_same_file_counts(tmp_path: Path) -> None:
    assert words(read(tmp_path, "pod.yaml", CONFIG_MAP)) == ["--model-path /m/R1 --tp 8 --ep 8"]


def test_a_script_takes_its_arguments(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text(f"{SERVER} --tp $1 --node-rank $2")
    found = launches_of_file(tmp_path / "run.sh", Given(arguments=["16", "1"]))
    assert words(found) == ["--model-path /m/R1 --tp 16 --node-rank 1"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.sh", f"echo 'open\n{SERVER} --tp 8 --x $((1/0)) ${{A:-'\"}}\n"),
        ("b.yaml", "a: &a\n  b: [*a]\nrun: python3 -m sglang.launch_server --model-path /m/R1 --tp 8\n"),
        ("c.sh", "X=x\n" + "X=$X$X\n" * 60 + f"{SERVER} --tp 8\n"),
        ("d.sh", "for a in {1..999999}; do for b in {1..999999}; do echo; done; done\n" + f"{SERVER} --tp 8\n"),
        ("e.sh", "f() { f; }\nf\n" + "(" * 500 + f"\n{SERVER} --tp 8\n"),
    ],
)
def test_a_text_that_no_shell_would_end_ends_here(tmp_path: Path, name: str, text: str) -> None:
    try:
        found = read(tmp_path, name, text)
    except InputError:
        return
    assert all("--model-path /m/R1" in line for line in words(found))
