"""Exports with hostile names never run them; a received file starts only what is SGLang's own or granted."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version

from hwprobe.errors import InputError
from models.config import ServerConfig
from planner.fleets.deployment import Role
from planner.launch import launch_spec
from planner.launch_files.files import export_bundle
from planner.launch_files.fleet import FLEET_TARGETS, FleetFiles, FleetPool, FleetSpec
from planner.launch_files.parameters import Parameters, Provenance
from planner.launch_files.production import Production
from planner.launch_files.record import Record, RecordedPoint, record_line
from planner.launch_files.render import render, render_readme
from planner.launch_files.targets import Target, possible_targets
from planner.sglang.secret_flags import is_secret, without_secrets
from tuner.launch_files.trust import mountable, reaches_out

Sgtune = Callable[..., Any]
NEWEST = Version("0.5.23")
HOSTILE = (
    "a\ntouch canary\n", "$(touch canary)", "`touch canary`", "'; touch canary; '", '"; touch canary; "',
    "x\r\ntouch canary",
    "x\\\ntouch canary", "&& touch canary", "| touch canary", "x\u2028touch canary", "${IFS}touch${IFS}canary", "\\",
    "x\n---\nkind: Pod", "x: y\n- z", "%i %n", "*a &a !!x", "{{ 7 * 7 }}", "{% include 'x' %}", "#", "\x1b[2J",
    "EOF\ntouch canary",
    "$$(touch canary)", "a'b\"c`d$e\\f", "![x](http://a.example/x.png)", "<img src=x>", "-x", "=", " ",
)  # fmt: skip
EXPORTS = int(os.environ.get("SGTUNE_EXPORTS", "60"))  # 1,000 by hand
FILES = 50


def hostile(dice: random.Random) -> str:
    return "".join(dice.choice(HOSTILE) for _ in range(dice.randint(1, 2)))


def record_of_names(dice: random.Random) -> Record:
    point = RecordedPoint(concurrency=1, output_tok_s=1.0, interval=(0.9, 1.1), ttft_mean_ms=1.0, tpot_mean_ms=1.0)
    return Record(
        sgtune=hostile(dice), sglang_version="0.5.23", hardware=hostile(dice), hardware_hash=hostile(dice),
        model=hostile(dice), isl=1, osl=1, range_ratio=1.0, basis=hostile(dice), points=(point,), engine=hostile(dice),
        world=hostile(dice),
    )  # fmt: skip


def run_scripts(folder: Path, tools: Path) -> None:
    """Run every script that was exported, with programs that do nothing in the places of the real ones."""
    environment = {
        "PATH": f"{tools}:/usr/bin:/bin", "HOME": str(folder), "NODE_RANK": "0", "RANK0_HOST": "h", "BIND": "h",
        "HOSTS": "a b c d", "SLURM_JOB_NODELIST": "n[0-3]",
    }  # fmt: skip
    for script in sorted(folder.glob("*.sh")):
        subprocess.run(["bash", script.name], cwd=folder, env=environment, capture_output=True, timeout=20, check=False)


def test_an_exported_script_never_runs_a_name(tmp_path: Path) -> None:
    tools = stand_ins(tmp_path / "tools")
    for number in range(EXPORTS):
        dice = random.Random(number)
        folder = tmp_path / str(number)
        config = ServerConfig(tp_size=16, nnodes=2) if number % 4 == 0 else ServerConfig(tp_size=8)
        spec = launch_spec(config, NEWEST, model_path="m").with_words(
            (f"--a{hostile(dice)}", hostile(dice), f"-b{hostile(dice)}={hostile(dice)}")
        )
        provenance = Provenance(
            lines=tuple((hostile(dice), hostile(dice)) for _ in range(4)), record=record_of_names(dice)
        )
        parameters = Parameters(
            model_path="/" + hostile(dice).replace("\0", ""), python="python3", cache="/c" + hostile(dice),
            host=dice.choice(("0.0.0.0", "127.0.0.1")),
        )  # fmt: skip
        folder.mkdir()
        targets = possible_targets(spec, parameters)
        for target in targets:
            (folder / target.file_name).write_text(render(target, spec, parameters, provenance))
        (folder / "README.md").write_text(render_readme(spec, parameters, provenance, targets))
        run_scripts(folder, tools)
        assert not (folder / "canary").exists(), f"export {number} ran a name"
        for target in targets:
            if target.file_name.endswith(".yaml"):
                documents = list(yaml.safe_load_all((folder / target.file_name).read_text()))
                kinds = [document.get("kind") for document in documents if "kind" in document]
                assert kinds in ([], ["Deployment", "Service"], ["LeaderWorkerSet", "Service"]), (
                    "a name made a document"
                )
        assert "](http" not in (folder / "README.md").read_text().replace("\\]", "")
        shutil.rmtree(folder)


def test_an_exported_fleet_never_runs_a_name(tmp_path: Path) -> None:
    tools = stand_ins(tmp_path / "tools")
    for number in range(EXPORTS // 4):
        dice = random.Random(10_000 + number)
        folder = tmp_path / str(number)
        spec = launch_spec(ServerConfig(tp_size=16, nnodes=2) if number % 2 else ServerConfig(tp_size=8), NEWEST)
        pools = tuple(
            FleetPool(role=role, servers=2, spec=spec.with_words((f"--a{hostile(dice)}", hostile(dice))))
            for role in dice.choice(((Role.PREFILL, Role.DECODE), (Role.MIXED,)))
        )
        key = dice.choice((None, "/k" + "".join(c for c in hostile(dice) if c.isprintable())))
        parameters = Parameters(
            model_path="/" + hostile(dice), python="python3", cache="/c" + hostile(dice),
            host="h" + hostile(dice), production=Production(api_key_file=key),
        )  # fmt: skip
        provenance = Provenance(lines=((hostile(dice), hostile(dice)),), record=record_of_names(dice))
        fleet = FleetSpec(name=hostile(dice), pools=pools)
        files = FleetFiles(fleet=fleet, parameters=parameters, provenance=provenance)
        possible = [target for target in FLEET_TARGETS if target in possible_targets(spec, parameters)]
        files.write(folder, possible)
        run_scripts(folder, tools)
        assert not (folder / "canary").exists(), f"fleet {number} ran a name"
        for file in folder.glob("*.yaml"):
            kinds = {str(each.get("kind")) for each in yaml.safe_load_all(file.read_text())}
            assert kinds <= {"None", *KINDS_OF_A_FLEET}, "a name made a document"
        assert "](http" not in (folder / "README.md").read_text().replace("\\]", "")
        shutil.rmtree(folder)


KINDS_OF_A_FLEET = ("ServiceAccount", "Role", "RoleBinding", "Deployment", "Service", "LeaderWorkerSet")


def stand_ins(folder: Path) -> Path:
    """Return a folder of programs that do nothing, under the names of those that scripts start."""
    folder.mkdir()
    for name in ("python3", "docker", "srun", "scontrol", "mkdir"):
        (folder / name).write_text("#!/bin/sh\nexit 0\n")
        (folder / name).chmod(0o755)
    return folder


def test_a_setting_whose_name_is_none_is_refused() -> None:
    spec = replace(launch_spec(ServerConfig(tp_size=8), NEWEST), environment={"A;touch canary;B": "1"})
    for target in (Target.BASH, Target.DOCKER, Target.COMPOSE, Target.SYSTEMD, Target.K8S, Target.SLURM):
        with pytest.raises(InputError, match="is not a valid name of an environment variable"):
            render(target, spec, Parameters(), Provenance(lines=()))


def test_files_bind_to_this_machine_and_give_no_privileges(tmp_path: Path) -> None:
    parameters = Parameters()
    for config in (ServerConfig(tp_size=8), ServerConfig(tp_size=16, nnodes=2)):
        spec = launch_spec(config, NEWEST, host=parameters.host)
        paths = export_bundle(spec, Provenance(lines=()), tmp_path, parameters, {})
        text = {path.name: path.read_text() for path in paths}
        assert not any("privileged: true" in one or "--privileged" in one for one in text.values())
        for name in ("launch.sh", "docker-run.sh", "compose.yaml", "sglang.service", "slurm.sh"):
            assert "0.0.0.0" not in text[name], name
        pods = text["kubernetes.yaml"]
        assert "0.0.0.0" not in pods
        assert '- "--host"\n' in pods.replace("  ", "")
        assert "$(POD_IP)" in pods
        assert "fieldPath: status.podIP" in pods
        assert "NoNewPrivileges=yes" in text["sglang.service"]
        assert "DynamicUser=yes" in text["sglang.service"]
    opened = render(Target.BASH, spec, Parameters(host="0.0.0.0"), Provenance(lines=()))
    assert "open to the network" in opened


# -- verify -----------------------------------------------------------------------------------

WATCHER = """#!/bin/sh
env > {seen}
echo "$@" >> {seen}
exit 7
"""


def launch_file(extra: str = "", flags: str = "", name: str = "m/x") -> str:
    record = Record(
        sgtune="0", sglang_version="0.5.12", hardware="h200x8", hardware_hash="", model="deepseek-ai/DeepSeek-R1",
        isl=64, osl=16,
        range_ratio=1.0, basis="measured", engine="local",
        points=(
            RecordedPoint(concurrency=1, output_tok_s=1.0, interval=(0.9, 1.1), ttft_mean_ms=1.0, tpot_mean_ms=1.0),
        ),
    )  # fmt: skip
    server = f"exec python3 -m sglang.launch_server --model-path {name} --tp 8 {flags}"
    return f"#!/bin/bash\n{record_line(record)}\n{extra}\n{server}\n"


def hostile_launch(dice: random.Random) -> str:
    """Return a file that would run something if its environment, flags or names were taken as they are."""
    loads = ("LD_PRELOAD", "PYTHONPATH", "PYTHONSTARTUP", "NCCL_NET_PLUGIN", "CUDA_HOME", "LD_LIBRARY_PATH",
             "PATH", "BASH_ENV",
             "SGLANG_EXTERNAL_MODEL_PACKAGE", "PYTHONHOME", "HTTPS_PROXY", "TRITON_CACHE_DIR")  # fmt: skip
    reach = ("--forward-hooks x", "--config evil.yaml", "--custom-weight-loader evil.load",
             "--chat-template /etc/passwd",
             "--tokenizer-path /x", "--load-format remote --model-loader-extra-config x",
             "--json-model-override-args '{}'",
             "--custom-sigquit-handler evil", "--hicache-storage-backend-extra-config x", "--forward-h x",
             "--lora-paths /x",
             "--crash-dump-folder /x", "--dist-init-addr 6.6.6.6:1")  # fmt: skip
    extra = "\n".join(
        dice.choice(("# environment: ", "export ", "")) + f"{dice.choice(loads)}=/tmp/evil.so" for _ in range(3)
    )
    flags = dice.choice(reach) if dice.random() < 0.6 else ""
    return launch_file(extra, flags, dice.choice(("m/x", "'$(touch canary)'", "/", "/etc")))


def test_of_fifty_hostile_files_nothing_runs(sgtune: Sgtune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python, seen = tmp_path / "python3", tmp_path / "seen"
    python.write_text(WATCHER.format(seen=seen))
    python.chmod(0o755)
    evil = tmp_path / "sglang"
    evil.mkdir()
    (evil / "__init__.py").write_text("open('canary', 'w')")
    monkeypatch.chdir(tmp_path)
    started = 0
    for number in range(FILES):
        file = tmp_path / "launch.sh"
        file.write_text(hostile_launch(random.Random(number)))
        words = ("verify", str(file), "--engine", "local", "--python", str(python))
        asked = sgtune(*words)
        assert asked.code == 2, "nobody was there to say yes"
        assert not seen.exists(), "it was started without a yes"
        agreed = sgtune(*words, "--yes")
        assert agreed.code in (1, 2), agreed.err
        if seen.exists():
            text = seen.read_text()
            assert "evil" not in text, text
            started += 1
            seen.unlink()
        assert not list(tmp_path.rglob("canary"))
    assert started > FILES / 10, "files that could be started were among them"


def test_what_is_started_is_shown_and_its_environment_granted_by_name(
    sgtune: Sgtune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, python, seen = tmp_path / "launch.sh", tmp_path / "python3", tmp_path / "seen"
    file.write_text(launch_file("export SGLANG_X=1\nexport NCCL_DEBUG=INFO", "--api-key hush"))
    python.write_text(WATCHER.format(seen=seen))
    python.chmod(0o755)
    words = ("verify", str(file), "--engine", "local", "--python", str(python))
    asked = sgtune(*words)
    assert "NCCL_DEBUG=INFO" in asked.err
    assert "add --yes" in asked.err
    assert "SGLANG_X of the file's environment is left out; --allow-env SGLANG_X takes it" in asked.err
    assert "hush" not in asked.err
    sgtune(*words, "--yes", "--allow-env", "SGLANG_X")
    text = seen.read_text()
    assert "SGLANG_X=1" in text
    assert "NCCL_DEBUG=INFO" in text


def test_containers_run_sglangs_own_image_and_see_a_models_folder_alone(
    sgtune: Sgtune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\nexit 1\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    file = tmp_path / "docker-run.sh"
    line = launch_file().splitlines()[1]
    for image, complaint in (
        ("evil/sglang:v1", "not SGLang's own"),
        ("--privileged", ""),
        ("lmsysorg/sglang-evil", ""),
    ):
        file.write_text(
            f"{line}\nexec docker run --gpus all {image} python3 -m sglang.launch_server --model-path m/x\n"
        )
        ran = sgtune("verify", str(file), "--engine", "docker", "--yes")
        assert ran.code in (1, 2)
        assert complaint in ran.err
    for path in ("/", "/etc", "/home", "/usr/share", str(tmp_path)):
        with pytest.raises(InputError):
            mountable(path, granted=True)
        with pytest.raises(InputError, match="--model-path"):
            mountable(path, granted=False)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    assert mountable(str(model), granted=True) == str(model)
    assert mountable("deepseek-ai/DeepSeek-R1", granted=False) is None


def test_flags_that_say_how_fast_are_taken_and_those_that_reach_out_are_not() -> None:
    for flag in (
        "--tp",
        "--mem-fraction-static",
        "--chunked-prefill-size",
        "--attention-backend",
        "--model-path",
        "--port",
    ):
        assert not reaches_out(flag, NEWEST), flag
    for flag in (
        "--forward-hooks",
        "--forward-ho",
        "--config",
        "--tokenizer-path",
        "--custom-weight-loader",
        "--download-dir",
    ):
        assert reaches_out(flag, NEWEST), flag


# -- secrets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--api-key", "--api-k", "--ap", "--admin-api-key", "--admin",
                                  "--ssl-keyfile-password", "--ssl-keyfile-p", "--api-key=x", "--api_key"])  # fmt: skip
def test_a_secret_flag_is_known_by_any_beginning(flag: str) -> None:
    assert is_secret(flag)
    assert without_secrets(["--tp", "8", flag, *([] if "=" in flag else ["hush"]), "--dp", "2"]) == [
        "--tp",
        "8",
        "--dp",
        "2",
    ]


@pytest.mark.parametrize("flag", ["--ssl-keyfile", "--tp", "--attention-backend", "-a", "--", "api-key"])
def test_other_flags_are_no_secrets(flag: str) -> None:
    assert not is_secret(flag)


@pytest.mark.slow
def test_a_key_given_to_the_server_is_in_no_file_of_the_run(sgtune: Sgtune, tmp_path: Path) -> None:
    from tests.faults.test_tune_faults import question

    ran = sgtune(*question(tmp_path, trials=1), "--json", "--", "--api-k", "hush-hush")
    assert ran.code == 0, ran.err
    run = tmp_path / "runs" / "a"
    assert sgtune("export", "--runs", str(run.parent), "--run", "a", "--bundle", str(tmp_path / "b")).code == 0
    for file in [*run.rglob("*"), *(tmp_path / "b").rglob("*")]:
        if file.is_file() and "hush-hush" in file.read_text(errors="replace"):
            assert file.name == "server.log"
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert "hush-hush" not in ran.out + ran.err
    assert stat.S_IMODE((run / "run.toml").stat().st_mode) == 0o600
    assert json.loads((run / "trials.jsonl").read_text().splitlines()[0])["outcome"] == "measured"
