"""Launch files: valid, complete, and safe to run whatever the names in them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packaging.version import Version

from hwprobe.errors import InputError
from models.config import ServerConfig, Speculative
from planner.launch import LaunchSpec, launch_spec
from planner.launch_files.files import export_bundle, export_files
from planner.launch_files.parameters import Parameters, Provenance
from planner.launch_files.render import render
from planner.launch_files.targets import Target, possible_targets
from planner.launch_lines.launch_line import LaunchLine
from planner.launch_lines.read import launch_of_file
from planner.plans.space import as_launched
from planner.sglang.arguments import read_arguments
from planner.sglang.dialects import from_values

GOLDEN = Path(__file__).parent.parent / "golden" / "export"
NEWEST = Version("0.5.23")
PROVENANCE = Provenance(lines=(("made by", "a test"), ("predicted", "1.0 tok/s")))
CONFIGS = {
    "tp8": ServerConfig(tp_size=8, mem_fraction_static=0.88, max_running_requests=64, chunked_prefill_size=8192),
    "dp8-ep8-mtp": ServerConfig(
        tp_size=8, attn_dp_size=8, ep_size=8, moe_a2a_backend="deepep", speculative=Speculative.chain(1),
        mem_fraction_static=0.86, max_running_requests=1024, schedule_conservativeness=0.3,
    ),
    "two-nodes-tp16": ServerConfig(tp_size=16, nnodes=2, mem_fraction_static=0.85, max_running_requests=64),
    "cpu": ServerConfig(tp_size=1, mem_fraction_static=0.5, disable_cuda_graph=True),
}  # fmt: skip
CPU_WORDS = ("--device", "cpu", "--cuda-graph-bs-decode", "1", "2")
SCRIPTS = {Target.BASH: "python", Target.DOCKER: "docker", Target.SLURM: "srun"}
# What can be told apart in UTF-8 and begins no flag; docker and compose refuse line breaks in what they mount.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30).filter(
    lambda text: not text.startswith("-")
)
MOUNTABLE = ANY_TEXT.filter(lambda text: not {"\r", "\n", ":"} & set(text))


def spec_of(name: str, parameters: Parameters | None = None) -> LaunchSpec:
    spec = launch_spec(CONFIGS[name], NEWEST, model_path=(parameters or Parameters()).model_path)
    return spec.with_words(CPU_WORDS) if name == "cpu" else spec


def written(target: Target, spec: LaunchSpec, parameters: Parameters, folder: Path) -> Path:
    return export_files(spec, PROVENANCE, folder, [target], parameters)[0]


def config_of(words: list[str]) -> ServerConfig:
    return from_values(read_arguments(words, NEWEST).values, NEWEST)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("target", list(Target))
def test_golden_files(name: str, target: Target) -> None:
    parameters = Parameters(model_path="/models/DeepSeek-R1") if name == "tp8" else Parameters(boot_s=700.0)
    text = render(target, spec_of(name, parameters), parameters, PROVENANCE)
    golden = GOLDEN / name / target.file_name
    if os.environ.get("SGTUNE_WRITE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("target", list(Target))
def test_the_file_read_back_is_the_same_configuration(name: str, target: Target, tmp_path: Path) -> None:
    spec = spec_of(name)
    found = launch_of_file(written(target, spec, Parameters(), tmp_path))
    rank = {"--node-rank", "0", "--dist-init-addr"} if spec.nnodes > 1 else set()
    assert [word for word in found.words if word not in rank] == spec.argv()[3:]
    assert found.environment.items() >= spec.environment.items() or target is Target.YAML
    typed = replace(config_of(spec.argv()[3:]), extra=())
    read = config_of(list(found.words))
    assert replace(read, extra=()) == typed
    assert typed == replace(as_launched(CONFIGS[name], NEWEST), extra=())
    assert read.flag("model_path") == "deepseek-ai/DeepSeek-R1"


def read_back(target: Target, spec: LaunchSpec, parameters: Parameters, folder: Path) -> LaunchLine:
    return launch_of_file(written(target, spec, parameters, folder))


@pytest.mark.parametrize("target", list(Target))
@settings(max_examples=50)
@given(path=MOUNTABLE, served=ANY_TEXT)
@example(path="$$(A)%%h", served=";")
@example(path="a&&b", served="||")
def test_any_name_is_quoted_and_read_back(
    target: Target, tmp_path_factory: pytest.TempPathFactory, path: str, served: str
) -> None:
    parameters = Parameters(model_path="/" + path)
    spec = spec_of("tp8", parameters).with_words(["--served-model-name", served])
    found = read_back(target, spec, parameters, tmp_path_factory.mktemp("file"))
    assert list(found.words) == spec.argv()[3:]
    assert found.left_out == ()


@pytest.mark.parametrize("target", [Target.BASH, Target.SYSTEMD, Target.K8S, Target.SLURM, Target.YAML])
@pytest.mark.parametrize("path", ["/a\nb", "/$HOME/${HOME}/$(HOME)/%h/%%", "/a'b\"c\\d", "/模型 é", "/a#b ;c|d&"])
def test_what_shells_and_units_would_expand_is_quoted(target: Target, path: str, tmp_path: Path) -> None:
    parameters = Parameters(model_path=path)
    assert list(read_back(target, spec_of("tp8", parameters), parameters, tmp_path).words)[1] == path


def argv_of_script(path: Path, program: str, **environment: str) -> list[str]:
    """Run a launch script with a stand-in for the program it starts that prints its arguments, one per NUL."""
    stand_in = path.parent / "bin" / program
    stand_in.parent.mkdir(exist_ok=True)
    stand_in.write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n', encoding="utf-8")
    stand_in.chmod(0o755)
    search = f"{stand_in.parent}:{os.environ['PATH']}"
    given = {"PATH": search, "PYTHON": str(stand_in) if program == "python" else "python3", **environment}
    done = subprocess.run(["bash", str(path)], env=given, capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("target", SCRIPTS)
@settings(max_examples=15)
@given(path=MOUNTABLE, served=ANY_TEXT)
def test_scripts_run_exactly_the_planned_command(
    target: Target, tmp_path_factory: pytest.TempPathFactory, path: str, served: str
) -> None:
    parameters = Parameters(model_path="/" + path)
    spec = spec_of("dp8-ep8-mtp", parameters).with_words(["--served-model-name", served])
    file = written(target, spec, parameters, tmp_path_factory.mktemp("run"))
    argv = argv_of_script(file, SCRIPTS[target])
    assert argv[argv.index("-m") :] == spec.argv()[1:]


@pytest.mark.parametrize("target", [Target.BASH, Target.DOCKER])
def test_several_nodes_ask_for_rank_and_address(target: Target, tmp_path: Path) -> None:
    file = written(target, spec_of("two-nodes-tp16"), Parameters(), tmp_path)
    argv = argv_of_script(file, SCRIPTS[target], NODE_RANK="1", RANK0_HOST="node0")
    assert argv[argv.index("--node-rank") + 1] == "1"
    assert argv[argv.index("--dist-init-addr") + 1] == "node0:20000"
    with pytest.raises(subprocess.CalledProcessError) as failed:
        argv_of_script(file, SCRIPTS[target])
    assert b"set NODE_RANK" in failed.value.stderr


def test_slurm_gives_every_node_its_number(tmp_path: Path) -> None:
    file = written(Target.SLURM, spec_of("two-nodes-tp16"), Parameters(), tmp_path)
    (tmp_path / "bin").mkdir()
    for name, text in (
        ("scontrol", "echo node7; sleep 0.2; echo node8"),  # longer than a reader of one line would wait
        ("python3", 'printf "%s\\0" "$@"'),
        ("srun", 'shift; SLURM_NODEID=1 exec "$@"'),
    ):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    given = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node[7-8]"}
    done = subprocess.run(["bash", str(file)], env=given, capture_output=True, check=True)
    words = done.stdout.decode().split("\0")[:-1]
    spec = spec_of("two-nodes-tp16")
    assert words == [*spec.argv()[1:], "--node-rank", "1", "--dist-init-addr", "node7:20000"]


@pytest.mark.parametrize("target", SCRIPTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_bash_accepts_the_scripts(name: str, target: Target, tmp_path: Path) -> None:
    file = written(target, spec_of(name), Parameters(), tmp_path)
    subprocess.run(["bash", "-n", str(file)], check=True)
    lines = file.read_text().splitlines()
    head = [line for line in lines if line.startswith("#SBATCH ")]
    assert bool(head) == (target is Target.SLURM)
    assert lines[1 : 1 + len(head)] == head  # sbatch reads none after the first command
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=[\w%.:-]+)?", line) for line in head)


@settings(max_examples=25)
@given(st.text(max_size=40))
def test_provenance_cannot_break_out_of_its_comment(text: str) -> None:
    spec, plain = spec_of("tp8"), Provenance(lines=())
    for target in Target:
        body = render(target, spec, Parameters(), plain).split("\n")
        lines = render(target, spec, Parameters(), Provenance(lines=(("note", text),))).split("\n")
        note = next(index for index, line in enumerate(lines) if line.startswith("# note:"))
        assert lines[:note] + lines[note + 1 :] == body


def test_a_shell_line_can_be_pasted() -> None:
    spec = launch_spec(CONFIGS["tp8"], NEWEST, model_path="/a b'c")
    assert shlex.split(spec.shell_line()) == spec.argv()


def test_yaml_holds_every_flag() -> None:
    spec = spec_of("dp8-ep8-mtp")
    loaded = yaml.safe_load(render(Target.YAML, spec, Parameters(), PROVENANCE))
    assert loaded["attn-dp-size"] == 8
    assert loaded["moe-a2a-backend"] == "deepep"
    assert loaded["trust-remote-code"] is True
    assert len(loaded) == len(spec.flags)


def test_compose_is_what_its_specification_asks_for() -> None:
    text = render(Target.COMPOSE, spec_of("tp8"), Parameters(weights="/data", cache="/fast"), PROVENANCE)
    service = yaml.safe_load(text)["services"]["sglang"]
    assert all(isinstance(word, str) for word in service["command"])
    assert all(value is None or isinstance(value, str) for value in service["environment"].values())
    assert [(v["type"], v["source"], v["target"]) for v in service["volumes"]] == [
        ("bind", "/data", "/huggingface"), ("bind", "/fast", "/sglang-cache")
    ]  # fmt: skip
    assert service["healthcheck"]["test"][0] == "CMD"
    assert "/ready" in service["healthcheck"]["test"][-1]
    assert "volumes" not in yaml.safe_load(text)


@pytest.mark.parametrize(("name", "kind"), [("tp8", "Deployment"), ("two-nodes-tp16", "LeaderWorkerSet")])
def test_kubernetes_objects_fit_together(name: str, kind: str) -> None:
    parameters = Parameters(boot_s=700.0, port=31000)
    spec = launch_spec(CONFIGS[name], NEWEST, port=31000)
    work, service = yaml.safe_load_all(render(Target.K8S, spec, parameters, PROVENANCE))
    assert (work["kind"], service["kind"]) == (kind, "Service")
    if kind == "Deployment":
        template = work["spec"]["template"]
        assert work["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    else:
        template = work["spec"]["leaderWorkerTemplate"]["leaderTemplate"]
        worker = work["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]["containers"][0]
        assert not {"startupProbe", "readinessProbe", "livenessProbe"} & worker.keys()
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    container = template["spec"]["containers"][0]
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 2100 + 7200, "three starts, and a first download"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    volumes = {volume["name"] for volume in template["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert all(isinstance(word, str) for word in container["args"])
    assert service["spec"]["ports"][0]["targetPort"] == 31000


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("name", CONFIGS)
def test_systemd_accepts_the_unit(name: str, tmp_path: Path) -> None:
    parameters = Parameters(model_path="/mo del/$x/%h'\"", host="127.0.0.1")
    file = written(Target.SYSTEMD, spec_of(name, parameters), parameters, tmp_path)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True, check=False
    )
    assert [line for line in done.stderr.splitlines() if "sglang.service" in line] == []


def test_old_versions_have_no_yaml(tmp_path: Path) -> None:
    spec = launch_spec(CONFIGS["tp8"], Version("0.4.3"))
    assert Target.YAML not in possible_targets(spec, Parameters())
    assert len(possible_targets(spec, Parameters())) == len(Target) - 1
    with pytest.raises(InputError, match=r"no --config file.*--target bash"):
        export_files(spec, PROVENANCE, tmp_path, [Target.BASH, Target.YAML])
    assert list(tmp_path.iterdir()) == []
    assert "/health_generate" in render(Target.K8S, spec, Parameters(), PROVENANCE)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_path": ""}, "--model-path is ''"),
        ({"model_path": "--x"}, "--model-path is '--x'"),
        ({"model_path": "/a\0b"}, "--model-path"),
        ({"model_path": "/a\udc80b"}, "--model-path"),
        ({"image": "a b"}, "--image is 'a b'"),
        ({"port": 0}, "--port is 0"),
        ({"shm_gib": 0}, "--shm-gib is 0"),
        ({"weights": "../x"}, r"--weights-volume is '\.\./x'"),
        ({"cache": "-v"}, "--cache-volume"),
    ],
)
def test_what_no_file_can_hold_is_refused_by_flag(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        Parameters(**changes).checked()  # type: ignore[arg-type]


def test_a_bundle_has_all_of_it_and_says_how_to_start(tmp_path: Path) -> None:
    spec = spec_of("tp8")
    paths = export_bundle(spec, PROVENANCE, tmp_path, Parameters(replicas=3), {"trial.json": {"number": 1}})
    assert {path.name for path in paths} == {
        *(target.file_name for target in Target), "README.md", "bundle.json", "trial.json",
    }  # fmt: skip
    readme = (tmp_path / "README.md").read_text()
    for target in Target:
        assert f"`{target.file_name}`" in readme
    assert "sglang_router.launch_router" in readme
    assert readme.count("http://SERVER") == 3
    assert os.access(tmp_path / "launch.sh", os.X_OK)


def test_the_readme_of_several_nodes_sends_nobody_to_verify(tmp_path: Path) -> None:
    export_bundle(spec_of("two-nodes-tp16"), PROVENANCE, tmp_path, Parameters(), {})
    readme = (tmp_path / "README.md").read_text()
    assert "NODE_RANK" in readme
    assert "sgtune bench" in readme
    assert "sgtune verify" not in readme


def test_deepep_gets_the_buffer_it_needs() -> None:
    assert spec_of("dp8-ep8-mtp").environment == {"SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK": "256"}
    assert spec_of("tp8").environment == {}
