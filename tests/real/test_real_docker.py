"""The docker engine on a real daemon: what it refuses before it starts, what a kill leaves, what verify runs."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import container_kills
from models.config import ServerConfig
from models.serving.estimate import Context
from models.version import NEWEST
from planner.sglang.resolver import resolve
from tests.children import start_sgtune
from tests.real.conftest import need
from tests.real.dockerd import Dockerd, ends_with_us
from tests.real.files import IMAGE, wait_until
from tuner.bench.point import Settings, measure_for_tuner
from tuner.engines.containers import Containers
from tuner.engines.image_check import pull_if_missing
from tuner.engines.live import LiveEngine
from tuner.engines.runners import DockerRunner
from tuner.seam import FailureKind, LaunchFailed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
Sgtune = Callable[..., Any]
TUNE = (
    "tune", "--hardware", "h200x8", "--isl", "32", "--osl", "8", "--concurrency", "2", "--no-mtp", "--trials", "1",
    "--confirm", "0", "--point-time", "2s", "--engine", "docker", "--run", "a",
)  # fmt: skip
REGISTRY = """version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}/registry}}}}
http: {{addr: "{address}"}}
"""
NO_GPU = ("--", "--device", "cpu")  # asks no GPU of this machine; the container still asks for all


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def speak_to(daemon: Dockerd, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in daemon.environment.items():
        monkeypatch.setenv(name, value)


def empty_image(daemon: Dockerd, name: str, folder: Path) -> str:
    """Give the daemon an image that holds nothing."""
    tarfile.open(folder / "empty.tar", "w").close()
    assert daemon.ask("import", str(folder / "empty.tar"), name).returncode == 0
    return name


def test_a_tune_leaves_no_container_and_its_file_is_verified_as_it_stands(
    daemon: Dockerd, folder: Path, sgtune: Sgtune
) -> None:
    ran = sgtune(*TUNE, "--image", IMAGE, "--json", *NO_GPU)
    assert (ran.code, json.loads(ran.out)["launches"]) == (0, 1), ran.err
    assert daemon.containers() == []
    assert sgtune("export", "--run", "a", "--bundle", "bundle").code == 0
    file = folder / "bundle" / "docker-run.sh"
    as_written = file.read_text()
    verify = ("verify", str(file), "--engine", "docker", "--yes", "--point-time", "2s", "--json")
    # a limit that no kernel grants: what the file says cannot start, and verify must not pass it
    file.write_text(as_written.replace("memlock=-1", "nofile=2000000000"))
    refused = sgtune(*verify)
    assert (refused.code, "container_runtime" in refused.err) == (1, True), refused.err
    assert "rlimit" in refused.err
    file.write_text(as_written.replace("memlock=-1", "nofile=4000"))
    assert sgtune(*verify).code == 0
    assert daemon.containers() == []


def test_what_keeps_every_launch_from_working_is_said_before_the_first(
    daemon: Dockerd, daemons: Callable[..., Dockerd], folder: Path, sgtune: Sgtune, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(image: str) -> str:
        ran = sgtune(*TUNE, "--image", image, *NO_GPU)
        assert (ran.code, (folder / "runs").exists()) == (2, False), ran.err
        return ran.err

    assert "docker cannot pull it" in refusal("lmsysorg/no-such-image:v1")
    empty = refusal(empty_image(daemon, "empty:1", folder))
    assert "has no SGLang" in empty
    assert "executable file not found" in empty
    other = sgtune(*TUNE, "--image", IMAGE, "--sglang-version", "0.5.12", *NO_GPU)
    assert (other.code, f"--sglang-version {NEWEST}" in other.err) == (2, True)
    doctor = {part["part"]: part for part in json.loads(sgtune("doctor", "--json").out)["findings"]}
    assert "containers get GPUs" in doctor["engine docker"]["found"]

    without_gpus = daemons(gpus=False)
    speak_to(without_gpus, monkeypatch)
    refused = refusal(empty_image(without_gpus, IMAGE, folder))
    assert 'could not select device driver "" with capabilities: [[gpu]]' in refused
    assert "container toolkit" in refused
    doctor = {part["part"]: part for part in json.loads(sgtune("doctor", "--json").out)["findings"]}
    assert (doctor["engine docker"]["state"], "[[gpu]]" in doctor["engine docker"]["found"]) == ("missing", True)
    without_gpus.kill()
    assert "Is the docker daemon running" in refusal(IMAGE)


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """Run a registry on the loopback address and yield where it is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (folder / "registry.yml").write_text(REGISTRY.format(folder=folder, address=address))
    process = subprocess.Popen(
        ["docker-registry", "serve", str(folder / "registry.yml")], stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, preexec_fn=ends_with_us,
    )  # fmt: skip
    try:
        wait_until(lambda: listens(address))
        yield address
    finally:
        process.terminate()
        process.wait()


def listens(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) == 0


def test_an_image_is_pulled_before_the_launch(daemon: Dockerd, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    need("registry")
    with registry(folder) as address:
        image = empty_image(daemon, f"{address}/lmsysorg/sglang:v1", folder)
        assert daemon.ask("push", image).returncode == 0
        daemon.ask("rmi", image)
        pull_if_missing("docker", image)
        assert daemon.ask("image", "inspect", image).returncode == 0
    assert "Pulling from lmsysorg/sglang" in capfd.readouterr().err


@pytest.fixture
def engine(daemon: Dockerd, context: Callable[..., Context], folder: Path) -> Iterator[LiveEngine]:
    belief = context("h200x8", str(NEWEST))
    runner = DockerRunner(
        image=IMAGE, model_path="deepseek-ai/DeepSeek-R1", cache=folder / "kernels", hub=folder / "hub"
    )
    made = LiveEngine(
        runner=runner, context=belief, model_path=runner.model_path, trials=folder / "trials",
        measure=measure_for_tuner(1, Settings(least_s=0.3, vocabulary=129_280)), drain_s=2.0,
    )  # fmt: skip
    yield made
    made.abort()
    runner.containers.sweep()


def test_a_container_has_the_users_downloads_and_token(
    daemon: Dockerd, engine: LiveEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_user")
    server = engine.launch(config_of(engine), 0)
    try:
        seen = json.loads(daemon.ask("inspect", server.process.launch.name).stdout)[0]
    finally:
        server.stop()
    assert "HF_TOKEN=hf_of_this_user" in seen["Config"]["Env"]
    downloads = next(mount for mount in seen["Mounts"] if mount["Source"] == str(folder / "hub"))
    assert f"HF_HUB_CACHE={downloads['Destination']}" in seen["Config"]["Env"]
    assert downloads["RW"]
    assert "hf_of_this_user" not in "".join(file.read_text() for file in (folder / "trials/0").iterdir())


def config_of(engine: LiveEngine) -> ServerConfig:
    belief = engine.context
    return resolve(ServerConfig(tp_size=8), belief.arch, belief.machine, belief.version).config


def test_the_daemons_refusal_is_for_the_operator_and_keeps_its_words(engine: LiveEngine) -> None:
    runner = replace(engine.runner, image="lmsysorg/no-such-image:v1")
    with pytest.raises(LaunchFailed) as failed:
        replace(engine, runner=runner).launch(config_of(engine), 0)
    assert failed.value.kind is FailureKind.CONTAINER_RUNTIME
    assert "Unable to find image" in failed.value.evidence
    assert "Error response from daemon" in failed.value.evidence


def test_nothing_is_measured_beside_another_runs_container(daemon: Dockerd, engine: LiveEngine) -> None:
    other = Containers()
    words = ("--detach", "--name", "other", *other.labels, IMAGE, "sleep", "60")
    assert daemon.ask("run", "--network", "none", *words).returncode == 0
    impatient = replace(engine, gate=replace(engine.gate, wait_s=0.3))
    with pytest.raises(LaunchFailed) as failed:
        impatient.launch(config_of(engine), 0)
    assert failed.value.kind is FailureKind.GPU_BUSY
    assert "docker rm --force other" in failed.value.evidence
    assert daemon.containers() == ["other"]  # what is not ours stays
    other.sweep()
    assert daemon.containers() == []


def test_two_tuners_do_not_share_a_daemon(daemon: Dockerd, folder: Path, sgtune: Sgtune) -> None:
    first = start_sgtune(*TUNE, "--point-time", "60s", "--image", IMAGE, *NO_GPU, cwd=folder)
    wait_until((folder / "runs/a/trials/0/server.log").exists)
    second = sgtune(*TUNE[:-1], "b", "--image", IMAGE, *NO_GPU)
    assert (second.code, "in use by another sgtune: process " in second.err) == (2, True), second.err
    wait_until(daemon.containers)  # the first one's, which the second has let be
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=120)
    assert (first.returncode, daemon.containers()) == (130, [])


@pytest.mark.deep
@pytest.mark.timeout(1200)
def test_no_kill_of_any_part_leaves_or_spoils_anything(daemon: Dockerd) -> None:
    parts = ("shim", "tuner and shim", "daemon")  # benchmarks/container_kills.py kills all, more often
    struck, faults, outcomes = container_kills.storm(daemon, parts, len(parts), random.Random(24))
    assert dict(struck) == dict.fromkeys(parts, 1)
    assert (dict(faults), set(outcomes)) == ({}, {"measured"})
