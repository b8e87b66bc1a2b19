"""The exported sglang.service under systemd as process 1 of a container: started, ready, restarted, stopped."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from planner.launch_files.targets import Target
from tests.real.dockerd import Dockerd
from tests.real.files import IMAGE, exported, may_raise_limits, wait_until
from tests.real.slurm import free_ports
from tests.real.test_compose import answers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
In = Callable[..., subprocess.CompletedProcess[str]]
NAME = "pid1"
CGROUP = "/sys/fs/cgroup/systemd"
OPTIONS = (
    "--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined", "--tmpfs", "/run", "--tmpfs", "/tmp",
    "--tmpfs", "/run/lock", "--network", "host", "--volume", f"{CGROUP}:{CGROUP}:rw",
)  # fmt: skip
# Where root may not raise limits, systemd may not either, and starts nothing that asks for it.
NO_LIMITS = "[Service]\nLimitMEMLOCK=\nLimitNOFILE=\n"


@pytest.fixture
def inside(daemon: Dockerd, tmp_path: Path) -> Iterator[In]:
    """Run a systemd of its own and return what runs a command beside it."""
    if not Path(CGROUP).is_dir():
        pytest.skip(f"systemd in a container needs {CGROUP} (cgroups v1) here")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return daemon.ask("exec", NAME, *words)

    started = daemon.ask("run", "--detach", "--name", NAME, *OPTIONS, IMAGE, "/sbin/init")
    if started.returncode:
        pytest.skip(f"no systemd starts in a container here: {started.stderr.strip()}")
    wait_until(lambda: run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded"), 60.0)
    yield run
    daemon.ask("rm", "--force", NAME)


def test_a_unit_is_active_when_the_server_is_ready(daemon: Dockerd, inside: In, tmp_path: Path) -> None:
    port = free_ports(1)[0]
    unit = exported(Target.SYSTEMD, tmp_path, port)
    daemon.ask("cp", str(unit), f"{NAME}:/etc/systemd/system/sglang.service")
    verified = inside("systemd-analyze", "verify", "/etc/systemd/system/sglang.service")
    assert (verified.returncode, "sglang.service" in verified.stderr) == (0, False), verified.stderr
    if not may_raise_limits():
        (tmp_path / "limits.conf").write_text(NO_LIMITS)
        inside("mkdir", "/etc/systemd/system/sglang.service.d")
        daemon.ask("cp", str(tmp_path / "limits.conf"), f"{NAME}:/etc/systemd/system/sglang.service.d/limits.conf")
    inside("systemctl", "daemon-reload")

    started = inside("systemctl", "start", "sglang")
    assert started.returncode == 0, inside("journalctl", "--unit=sglang", "--no-pager").stdout[-2000:]
    assert answers(port)
    assert shown(inside, "DynamicUser", "ActiveState") == {"DynamicUser": "yes", "ActiveState": "active"}

    inside("systemctl", "kill", "--signal=KILL", "--kill-who=main", "sglang")
    wait_until(lambda: shown(inside, "NRestarts", "ActiveState") == {"NRestarts": "1", "ActiveState": "active"})
    assert answers(port)

    assert inside("systemctl", "stop", "sglang").returncode == 0
    assert shown(inside, "ActiveState", "MainPID") == {"ActiveState": "inactive", "MainPID": "0"}
    with pytest.raises(OSError, match=r"refused"):
        answers(port)


def shown(inside: In, *names: str) -> dict[str, str]:
    lines = inside("systemctl", "show", "sglang", f"--property={','.join(names)}").stdout
    return dict(line.split("=", 1) for line in lines.splitlines())
