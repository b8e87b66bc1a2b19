"""Launches as people post them in files of other tools: read as they run, asked for what is unknown, or not known."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.version import Version

from hwprobe.catalogue import hardware_from_catalogue
from hwprobe.errors import InputError
from models.architecture import deepseek_r1
from models.workload import Workload
from planner.check.answer import CheckQuestion, answer_check
from planner.launch_lines.launch_line import LaunchLine
from planner.launch_lines.read import launches_of_file, launches_of_words

R1 = "--model-path deepseek-ai/DeepSeek-R1"
SERVER = f"python3 -m sglang.launch_server {R1}"
SUPERVISOR = f"""[supervisord]
nodaemon=true
[program:sglang]
command={SERVER} --tp %(ENV_TP)s --port %(ENV_PORT)s
  --mem-fraction-static 0.9
environment=NCCL_DEBUG="INFO",TP="8"
autorestart=true
"""
READ = {
    "supervisord.conf": (SUPERVISOR, f"{R1} --tp 8 --mem-fraction-static 0.9"),
    "uv.sh": (f'uv run --with "sglang[all]==0.5.9" {SERVER} --tp 8\n', f"{R1} --tp 8"),
    "pbs.sh": (
        "#PBS -l select=2:ngpus=8\nHEAD=$(head -n1 $PBS_NODEFILE)\n"
        f'pbsdsh -- bash -c "{SERVER} --tp 16 --nnodes 2 --node-rank \\$PBS_NODENUM --dist-init-addr $HEAD:5000"\n',
        f"{R1} --tp 16 --nnodes 2",
    ),
    "srun.sh": (
        f"#SBATCH -N 2\nsrun bash -c '{SERVER} --tp 16 --nnodes $SLURM_NNODES --node-rank $SLURM_NODEID'\n",
        f"{R1} --tp 16 --nnodes 2",
    ),
    "kubectl.sh": (f"kubectl run r1 --image=lmsysorg/sglang:v0.5.9 --command -- {SERVER} --tp 8\n", f"{R1} --tp 8"),
    "podman.sh": (
        f"podman run --ipc=host docker.io/lmsysorg/sglang:v0.5.9 \\\n  {SERVER} --tp-size 8\n", f"{R1} --tp-size 8"
    ),
    "ssh.sh": (f'for i in 0 1; do\n  ssh node$i "nohup {SERVER} --tp 16 --nnodes 2 --node-rank $i &"\ndone\n',
               f"{R1} --tp 16 --nnodes 2 --node-rank 0"),
    "tmux.sh": (f"tmux new-session -d -s r1 '{SERVER} --tp 8'\n", f"{R1} --tp 8"),
    "words.sh": (f'args="{R1}"\nargs+=" --tp 8"\n[[ -n "$EXTRA" ]] && args+=" $EXTRA"\n'
                 "numactl --interleave=all python3 -m sglang.launch_server $args\n", f"{R1} --tp 8"),
    "main.tf": (f'resource "x" "y" {{\n  user_data = <<-EOF\n    {SERVER} --tp 8\n  EOF\n}}\n', f"{R1} --tp 8"),
    "job.yaml": (f"entrypoint: {SERVER} --tp 8\nruntime_env: {{pip: ['sglang==0.5.9']}}\n", f"{R1} --tp 8"),
    "map.yaml": (
        f"kind: ConfigMap\ndata:\n  start.sh: |\n    NGPU=$(( 4 * 2 ))\n    exec {SERVER} --tp $NGPU\n", f"{R1} --tp 8"
    ),
}  # fmt: skip


def read(folder: Path, name: str, text: str) -> LaunchLine:
    file = folder / name
    file.write_text(text)
    return launches_of_file(file)[0]


@pytest.mark.parametrize("name", READ)
def test_a_launch_in_another_tools_file_is_read_as_it_runs(name: str, tmp_path: Path) -> None:
    text, words = READ[name]
    line = read(tmp_path, name, text)
    assert " ".join(line.words).startswith(words)
    assert not line.unknown


@pytest.mark.parametrize(
    ("name", "text", "unknown"),
    [
        ("supervisord.conf", SUPERVISOR.replace('TP="8"', 'X="8"'), "${TP}"),
        ("play.yaml", f"- tasks:\n  - shell: |\n      nohup {SERVER} --tp {{{{ tp }}}} &\n", "{{ tp }}"),
        ("Makefile", f"TP ?= 8\nserve:\n\t{SERVER} --tp $(TP)\n", "$(TP)"),
    ],
)
def test_a_size_that_the_file_does_not_say_is_asked_for(name: str, text: str, unknown: str, tmp_path: Path) -> None:
    line = read(tmp_path, name, text)
    assert [(value.flag, value.text) for value in line.unknown if value.flag == "--tp-size"] == [("--tp-size", unknown)]


@pytest.mark.parametrize(
    "text",
    [
        "vllm serve deepseek-ai/DeepSeek-R1 --tensor-parallel-size 8\n",
        "trtllm-serve deepseek-ai/DeepSeek-R1 --tp_size 8 --backend pytorch\n",
        'import sglang as sgl\nllm = sgl.Engine(model_path="deepseek-ai/DeepSeek-R1", tp_size=8)\n',
        'cmd = [sys.executable, "-m", "sglang.launch_server", "--tp", "8"]\n',
        "[program:other]\ncommand=sleep 5\n",
        "[program:broken\n[program:x]\nno key\n",
    ],
)
def test_other_engines_and_programs_are_not_known(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="starts no SGLang server"):
        read(tmp_path, "run.sh", text)


@pytest.mark.parametrize(
    ("text", "release"),
    [
        (f"pip install 'sglang[all]==0.4.6.post5'\n{SERVER} --tp 8\n", "0.4.6.post5"),
        (f"pip install sglang==0.5.9 sglang-router==0.3.1\n{SERVER} --tp 8\n", "0.5.9"),
        (f"# pip install sglang==0.5.9\n{SERVER} --tp 8\n", None),
        (f"pip install sglang==0.5.9\npip install sglang==0.5.12\n{SERVER} --tp 8\n", None),
        (f"pip install vllm==0.8.5\n{SERVER} --tp 8\n", None),
    ],
)
def test_the_release_that_a_script_installs_is_the_one_it_runs(text: str, release: str | None, tmp_path: Path) -> None:
    assert read(tmp_path, "run.sh", text).pinned_version == release


def test_so_is_the_one_that_a_command_installs() -> None:
    (line,) = launches_of_words(["uv", "run", "--with", "sglang[all]==0.5.9", *SERVER.split(), "--tp", "8"])
    assert line.pinned_version == "0.5.9"


def test_a_podman_unit_names_its_image_and_command(tmp_path: Path) -> None:
    text = f"[Container]\nImage=docker.io/lmsysorg/sglang:v0.5.9\nEnvironment=TP=8\nExec={SERVER} --tp $TP\n"
    line = read(tmp_path, "sglang.container", text)
    assert (line.image_version, line.words[-2:]) == ("0.5.9", ("--tp", "8"))


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (f"export CUDA_VISIBLE_DEVICES=0,1,2,3\n{SERVER} --tp 8\n", False),
        (f"CUDA_VISIBLE_DEVICES=0,1,2,3 {SERVER} --tp 8\n", False),
        (f"CUDA_VISIBLE_DEVICES=0,1,2,3 {SERVER} --tp 4\n", True),
        (f"CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 {SERVER} --tp 16 --nnodes 2\n", True),
        (f"CUDA_VISIBLE_DEVICES=$GPUS {SERVER} --tp 8\n", True),
    ],
)
def test_a_server_that_sees_fewer_gpus_than_its_ranks_fails(text: str, seen: bool, tmp_path: Path) -> None:
    line = read(tmp_path, "run.sh", text)
    question = CheckQuestion(
        launch=line, hardware=hardware_from_catalogue("2xb200x8"), arch=deepseek_r1(), version=Version("0.5.9"),
        workload=Workload.checked(1000, 1000, 8, 1.0),
    )  # fmt: skip
    answer = answer_check(question)
    assert ("visible-gpus" in {violation.rule for violation in answer.violations}) != seen
