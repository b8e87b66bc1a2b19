"""What a launch takes of the host's memory: the hierarchical cache's pools, which no GPU figure shows."""

from __future__ import annotations

from planner.check.judge import Checked, Weighed
from planner.violation import Severity, Violation

# GB a rank are powers of ten in SGLang (memory_pool_host.py: hicache_size * 1e9).
GB_IN_GIB = 1e9 / 2**30
DEFAULT_RATIO = 2.0


def host_violations(checked: Checked, weighed: Weighed) -> list[Violation]:
    """Return the memory that --enable-hierarchical-cache pins on every node: each rank has a pool of its own."""
    config = checked.resolved.config
    pool_gib = max(0.0, weighed.ledger.per_gpu_gib["KV pool"])
    if not config.flag("enable_hierarchical_cache") or pool_gib <= 0.0:
        return []
    ranks = config.gpu_count // max(1, config.nnodes)
    size, ratio = float(config.flag("hicache_size") or 0), float(config.flag("hicache_ratio") or DEFAULT_RATIO)
    per_rank, sum_in_words = (
        (size * GB_IN_GIB, f"{size:g} GB") if size else (ratio * pool_gib, f"{ratio:g} x {pool_gib:.1f}")
    )
    return [
        Violation(
            rule="hicache-host-memory",
            severity=Severity.WARNING,
            message=f"the hierarchical cache pins {sum_in_words} x {ranks} ranks = {per_rank * ranks:,.0f} GiB of a "
            "node's RAM, beside the page cache of the weights: SGLang stops with 'Not enough host memory available' "
            "where it is not there",
            fix="lower --hicache-ratio or give --hicache-size (GB a rank), if the node has less",
        )
    ]
