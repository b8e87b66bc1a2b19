"""What a model of the family is: shapes, parameter counts, bytes, read from config.json. Knows no machine."""

from __future__ import annotations

from models.architecture.config_json import load_architecture, parse_architecture
from models.architecture.shapes import ModelArchitecture
from models.architecture.shipped import deepseek_r1

__all__ = ["ModelArchitecture", "deepseek_r1", "load_architecture", "parse_architecture"]
