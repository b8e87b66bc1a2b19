"""Before the first launch in containers: the daemon, the image and the GPU runtime, each found out in seconds."""

from __future__ import annotations

import subprocess

from packaging.version import InvalidVersion, Version

from hwprobe.errors import InputError
from hwprobe.plain_text import clean
from tuner.engines.containers import REFUSED, Containers, run_client

# Starting a container of a large image from a cold disk, and Python in it.
TRY_S = 180.0
MOST_LINES = 4
ASK = "import importlib.metadata as m; print(m.version('sglang'))"
# A daemon says so where no NVIDIA runtime is installed, and podman where no device of that name is.
NO_GPU_RUNTIME = "install NVIDIA's container toolkit: nvidia-ctk runtime configure, then restart the daemon"


def pull_if_missing(docker: str, image: str) -> None:
    """Pull an image that the daemon lacks, showing the progress: inside a launch it would count as silence.

    Raises InputError when the daemon does not answer or the registry does not give the image.
    """
    code, _, complaint = run_client((docker, "image", "inspect", "--format", "{{.Id}}", image))
    if code == 0:
        return
    if run_client((docker, "version", "--format", "{{.Server.Version}}"))[0]:
        raise InputError(f"--engine docker: {_short(complaint)}; start the daemon, or join its group")
    pulled = subprocess.run(
        (docker, "pull", image), stdin=subprocess.DEVNULL, stdout=2, stderr=subprocess.PIPE, text=True, check=False
    )
    if pulled.returncode:
        raise InputError(f"--image {image} is not here, and docker cannot pull it: {_short(pulled.stderr)}")


def image_problems(docker: str, image: str, version: Version | None = None) -> list[str]:
    """Return what would make every launch of an image fail: try it once as launches do, with GPUs, without a server.

    `version` is the release that is asked for, None for whichever it holds.
    """
    words = (docker, "run", "--rm", *Containers(docker=docker).labels, "--gpus", "all", "--network", "none",
             image, "python3", "-c", ASK)  # fmt: skip
    code, output, complaint = run_client(words, TRY_S)
    if code == REFUSED:
        remedy = f": {NO_GPU_RUNTIME}" if gpus_refused(complaint) else ""
        return [f"docker does not start '{image}' with --gpus all ({_short(complaint)}){remedy}"]
    if code:
        return [f"'{image}' has no SGLang that python3 finds ({_short(complaint)}): name one that has with --image"]
    try:
        its_version = Version(output.splitlines()[-1])
    except (InvalidVersion, IndexError):
        return []  # a build that names itself otherwise: its flags decide
    if version is not None and its_version.release[:3] != version.release[:3]:
        return [
            f"'{image}' has SGLang {its_version}, the question is for {version}: ask with --sglang-version "
            f"{its_version.base_version}, or name another image with --image"
        ]
    return []


def gpus_refused(complaint: str) -> bool:
    """Whether a client's complaint says that containers get no GPUs."""
    return any(text in complaint for text in ("could not select device driver", "nvidia-container", "nvidia.com/gpu"))


def _short(complaint: str) -> str:
    """Return the last lines of a complaint, all that was output in them, without the pointer to --help."""
    lines = [line for line in clean(complaint).splitlines() if line.strip() and "run --help" not in line]
    return " ".join(line.strip() for line in lines[-MOST_LINES:]) or "it does not say why"
