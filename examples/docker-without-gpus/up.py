#!/usr/bin/env python3
"""A docker daemon that grants GPUs it does not have, with an image that stands in for SGLang's, until Ctrl-C.

Needs root and Debian, whose packages it installs; README.md beside this file says what to try.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.version import NEWEST
from tests.real.dockerd import Dockerd, import_image
from tests.real.packages import install
from tests.real.stage import stay

if __name__ == "__main__":
    if why := install("docker", "rootfs", "compose"):
        sys.exit(f"error: {why}")
    daemon = Dockerd()
    try:
        daemon.start()
        image = import_image(daemon, str(NEWEST))
        stay(daemon.environment, daemon.home / "env", f"docker image ls; the image is {image} (see README.md)")
    finally:
        daemon.close()
