"""Moves an engine profile from the machine it was fitted on to a measured one: which parameters scale, with which
error.

Engine profiles were fitted with data-sheet rates of H200 servers. A rate measured elsewhere therefore is not
used raw (a healthy H200 measures 91 % of its sheet, and eta_w already holds that loss): it becomes the rate of
the data sheet that would explain it. Two engine parameters depend on the card beyond its rates: eta_w, by how
well small GEMMs stream on it, and tau, which cannot be below what one graph node costs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from packaging.version import Version

from hwprobe.expected import EXPECTED
from hwprobe.profile import Basis, GpuProfile, HardwareProfile, Quantity
from models.engine.profile import FITTED, EngineParameters, EngineProfile, as_matrix, family_of
from models.engine.versions import profile_for

# Small-GEMM streaming over large-buffer reads on the reference (H200): 0.84 to 0.90 of the sheet for BF16
# and FP8 GEMMs of few rows over 0.91 for reads. Assumed until an H200 has been probed; error about 6 %.
REFERENCE_STREAM_OVER_READ = 0.95
REFERENCE_STREAM_ERROR = 0.06


def sheet_equivalent(name: str, quantity: Quantity) -> float:
    """Return the data-sheet rate a measured one stands for, in the unit of the quantity.

    measured / the fraction a healthy reference reaches. Within the error of that fraction the card is taken for healthy
    and keeps its data sheet's rate; beyond it the rate moves continuously with the measurement. Unmeasured quantities
    are returned unchanged. `name` is that of the field in GpuProfile.
    """
    expected = EXPECTED.get(name)
    if quantity.basis is not Basis.MEASURED or expected is None:
        return quantity.value
    implied = quantity.value / expected.fraction
    if quantity.sheet is None:
        return implied
    return quantity.sheet * _beyond(implied / quantity.sheet, expected.error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transferred:
    """Engine parameters for a machine, what was changed and why, and the relative error that adds to eta_w."""

    parameters: EngineParameters
    notes: tuple[str, ...] = ()
    eta_w_error: float = 0.0


def transfer(
    parameters: EngineParameters, gpu: GpuProfile, *, stream_over_read: float = REFERENCE_STREAM_OVER_READ
) -> Transferred:
    """Return the parameters moved from the reference machine to this measured GPU.

    eta_w is scaled by how well the GPU streams small weights relative to its own large reads, over the same ratio of
    the reference (`stream_over_read`); a difference within REFERENCE_STREAM_ERROR counts as zero. It stays below 1.
    tau_us is raised to the GPU's latency of one CUDA-graph node where it was below. Without those measurements the
    parameters are returned unchanged.
    """
    notes: list[str] = []
    error = 0.0
    stream, read, node = (gpu.measured.get(name) for name in ("stream_gb_s", "hbm_gb_s", "graph_node_us"))
    if stream is not None and read is not None:
        error = REFERENCE_STREAM_ERROR
        factor = _beyond(stream.value / read.value / stream_over_read, REFERENCE_STREAM_ERROR)
        if factor != 1.0:
            moved = min(parameters.eta_w * factor, 1.0)
            notes.append(f"eta_w {parameters.eta_w:.2f} to {moved:.2f}: this GPU's small GEMMs stream {factor:.2f} x")
            parameters = replace(parameters, eta_w=moved)
    if node is not None and node.value > parameters.tau_us:
        notes.append(f"tau {parameters.tau_us:.2f} to {node.value:.2f} us: what one graph node costs here")
        parameters = replace(parameters, tau_us=node.value)
    return Transferred(parameters=parameters, notes=tuple(notes), eta_w_error=error)


def profile_on(hardware: HardwareProfile, version: Version) -> EngineProfile:
    """Return the shipped profile of a version, moved to a measured machine (its slowest GPU as to weights).

    The error that the transfer adds to eta_w goes into the covariance; the warnings list the changes.
    """
    gpu = hardware.gpus[0]
    shipped = profile_for(version, family_of(gpu.name, gpu.compute_capability))
    transferred = min(
        (transfer(shipped.parameters, each) for each in hardware.gpus),
        key=lambda moved: (moved.parameters.eta_w, -moved.parameters.tau_us),
    )
    if not transferred.notes:
        return shipped
    covariance = np.array(shipped.covariance)
    place = FITTED.index("eta_w")
    covariance[place, place] += transferred.eta_w_error**2
    return replace(
        shipped,
        name=f"{shipped.name}-on-{hardware.name}",
        parameters=transferred.parameters,
        covariance=as_matrix(covariance),
        warnings=(*shipped.warnings, *(f"engine profile moved to this machine: {note}" for note in transferred.notes)),
    )


def _beyond(ratio: float, error: float) -> float:
    """Return 1 within the error of 1, else the ratio shrunk towards 1 by it: continuous and growing."""
    if ratio < 1.0 - error:
        return ratio / (1.0 - error)
    return ratio / (1.0 + error) if ratio > 1.0 + error else 1.0
