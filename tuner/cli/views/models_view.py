"""How the list of known checkpoints looks in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

FEW = 3  # checkpoints of which everything is shown
SHOWN = 3  # machines in a row of the table
WIDE = 120  # columns from which the table shows more


def show_models(documents: Sequence[dict[str, Any]], version: str, screen: Console) -> None:
    """Print a table, or a few checkpoints in full."""
    if len(documents) <= FEW:
        for document in documents:
            _show_whole(document, version, screen)
        return
    wide = screen.width >= WIDE
    table = Table(box=None, pad_edge=False)
    table.add_column("checkpoint", overflow="fold")
    table.add_column("weights", overflow="fold")
    for column in ("GB", "GiB", *(("KV bytes",) if wide else ())):
        table.add_column(column, justify="right")
    table.add_column("smallest machines" if wide else "smallest", overflow="fold")
    for each in documents:
        kv_bytes = [f"{each['kv_bytes_per_token']['bfloat16']:,.0f}"] if wide else []
        table.add_row(
            each["name"],
            each["weights"] if wide else each["weights"].replace("compressed-tensors", "packed"),
            f"{each['bytes'] / 1e9:,.0f}",
            f"{each['weights_gib_per_gpu_tp8']:.1f}",
            *kv_bytes,
            ", ".join(each["runs_on"][: SHOWN if wide else 1]) or "none here",
        )
    screen.print(table)
    for line in (
        f"GB: the whole; GiB: weights on each of eight GPUs (TP8){'; KV bytes: per token, BF16' if wide else ''}.",
        f"Smallest: what holds it and runs it under SGLang {version}.",
        "`sgtune models NAME` shows one in full.",
    ):
        screen.print(line, markup=False)


def _show_whole(each: dict[str, Any], version: str, screen: Console) -> None:
    draft = "with" if each["draft_layer"] else "without"
    published = "no published size is known"
    if each["published_bytes"] is not None:
        published = f"published {each['published_bytes'] / 1e9:,.1f} GB ({each['source']})"
    kv = each["kv_bytes_per_token"]
    lines = (
        each["name"],
        f"  weights: {each['weights']}, {each['bytes']:,} bytes of tensors; {published}",
        f"  {each['parameters'] / 1e9:,.1f} billion parameters, {each['attention']} attention, {draft} an MTP layer",
        f"  {each['weights_gib_per_gpu_tp8']:.1f} GiB on each of eight GPUs (TP8)",
        f"  KV cache: {kv['bfloat16']:,.0f} bytes a token in BF16, {kv['fp8']:,.0f} in FP8",
        f"  smallest machines, SGLang {version}: {', '.join(each['runs_on']) or 'none of up to four nodes'}",
    )
    for line in lines:
        screen.print(line, markup=False)
