"""A Slurm cluster of three nodes on one machine: memory and GPUs are enforced, everything listens on loopback alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from tests.real.dockerd import ends_with_us

NODES = ("node1", "node2", "node3")
GPUS, CPUS, MEMORY_MB = 8, 64, 64_000
NULL_DEVICE = os.makedev(1, 3)
CONF = """ClusterName=sgtune
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
AuthType=auth/munge
AuthInfo=socket={home}/munge.sock
SlurmUser=root
SlurmdUser=root
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool/%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerNode=1000
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=5
KillWait=2
NodeName=DEFAULT CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus}
NodeName=node[1-3] NodeHostname={host} NodeAddr=127.0.0.1 Port={first}-{last}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
GRES = "AutoDetect=off\nNodeName=node[1-3] Name=gpu File={home}/dev/gpu[0-{last}]\n"


class Slurm:
    """slurmctld, munged and a slurmd for each node, in one folder."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="sgtune-slurm-"))
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        for folder in ("dev", "state", *(f"spool/{node}" for node in NODES)):
            (self.home / folder).mkdir(parents=True)
        for number in range(GPUS):
            os.mknod(self.home / f"dev/gpu{number}", stat.S_IFCHR | 0o666, NULL_DEVICE)
        key = self.home / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        control, first = free_ports(1)[0], 0
        first = next(start for start in range(control + 1, 65_000) if all(_free(start + n) for n in range(len(NODES))))
        values = {
            "home": self.home, "host": socket.gethostname().partition(".")[0], "control": control, "first": first,
            "last": first + len(NODES) - 1, "cpus": CPUS, "memory": MEMORY_MB, "gpus": GPUS,
        }  # fmt: skip
        (self.home / "slurm.conf").write_text(CONF.format(**values))
        (self.home / "gres.conf").write_text(GRES.format(home=self.home, last=GPUS - 1))

    @property
    def environment(self) -> dict[str, str]:
        """What makes Slurm's commands speak to this cluster."""
        return {"SLURM_CONF": f"{self.home}/slurm.conf", "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}

    def start(self) -> None:
        """Start all daemons and wait until the nodes are idle; raises RuntimeError with what they say otherwise."""
        munge = [f"--{name}={self.home}/{file}" for name, file in (
            ("key-file", "munge.key"), ("socket", "munge.sock"), ("pid-file", "munged.pid"),
            ("log-file", "munged.log"), ("seed-file", "munge.seed"),
        )]  # fmt: skip
        self._start("munged", "munged", "--foreground", "--force", *munge)
        self._wait((self.home / "munge.sock").exists, "munged")
        self._start("slurmctld", "slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        self._wait(lambda: self.states() == dict.fromkeys(NODES, "idle"), "slurmctld")

    def start_node(self, node: str) -> None:
        self._start(node, "slurmd", "-D", "-N", node)

    def lose_node(self, node: str) -> None:
        """Lose a node as a power cut does: its daemon is gone, and what it ran says nothing any more, not even that."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()
        self._signal(node, signal.SIGSTOP)

    def repair_node(self, node: str) -> None:
        """Start it again, with nothing of what it ran before."""
        self._signal(node, signal.SIGKILL)
        self.start_node(node)

    def _signal(self, node: str, number: int) -> None:
        """Signal everything of a node: what it runs has its name in the environment, and its parent is Slurm's own."""
        for process in psutil.process_iter(["environ"]):
            if (process.info["environ"] or {}).get("SLURMD_NODENAME") == node:
                with contextlib.suppress(psutil.Error):
                    own = [process, *(p for p in process.parents() if p.name() == "slurmstepd")]
                    for each in own:
                        each.send_signal(number)

    def states(self) -> dict[str, str]:
        """Return the state of each node, as sinfo abbreviates it."""
        lines = self.ask("sinfo", "--noheader", "--Node", "--format", "%N %t").stdout.splitlines()
        return dict(line.split() for line in lines)

    def ask(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands in the cluster's folder."""
        return subprocess.run(
            words, capture_output=True, text=True, cwd=self.home, check=False,
            env=os.environ | self.environment | environment,
        )  # fmt: skip

    def job(self, number: str) -> dict[str, str]:
        """Return what scontrol knows of a job."""
        text = self.ask("scontrol", "show", "job", number).stdout
        return dict(word.partition("=")[::2] for word in text.split() if "=" in word)

    def close(self) -> None:
        self.ask("scancel", "--user=root")
        time.sleep(0.5)
        for daemon in reversed(list(self._daemons.values())):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self._daemons.values():
            try:
                daemon.wait(timeout=5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in psutil.process_iter(["environ"]):
            own = process.info["environ"] or {}
            if own.get("SLURM_CONF") == f"{self.home}/slurm.conf" and process.pid != os.getpid():
                with contextlib.suppress(psutil.Error):
                    process.kill()
        shutil.rmtree(self.home, ignore_errors=True)

    def _start(self, name: str, *words: str) -> None:
        with (self.home / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.home,
                env=os.environ | self.environment, preexec_fn=ends_with_us,
            )  # fmt: skip

    def _wait(self, true: object, name: str, seconds: float = 60.0) -> None:
        until = time.monotonic() + seconds
        while not true():  # type: ignore[operator]
            if time.monotonic() > until or self._daemons[name].poll() is not None:
                outs = [self.home / f"{part}.out" for part in self._daemons]
                raise RuntimeError(" ".join(file.read_text(errors="replace")[-300:] for file in outs))
            time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
