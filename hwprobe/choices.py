"""Choices a command line offers, apart from everything that is slow to import."""

from __future__ import annotations

from enum import StrEnum


class DeviceName(StrEnum):
    """Where to measure; `auto` is the GPUs when there are any."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
