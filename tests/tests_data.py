"""Where the data that several tests read lie."""

from pathlib import Path

SHIPPED = Path(__file__).parent.parent / "models" / "data" / "published_points.jsonl"
