"""Machine: the few hardware numbers the equations use, in SI units, from a HardwareProfile."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hwprobe.profile import Basis, HardwareProfile, Quantity
from models.engine.profile import CDNA4, HOPPER, family_of
from models.engine.transfer import sheet_equivalent

GIB = 2**30
# PCIe Gen5 x16 per direction: what GPUs without NVLink have between them.
PCIE_BYTES_S = 63e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One GPU's limits and the links between GPUs. Link rates are per GPU and per direction.

    Rates are in terms of data sheets, which engine profiles were fitted with: a measured rate appears as the sheet rate
    it stands for (`models.engine.transfer.sheet_equivalent`). `basis` says where each came from; `family` is that of
    its engine profiles, `device` CUDA's name of the GPU.
    """

    name: str
    memory_gib: float
    hbm_bytes_s: float
    bf16_flops: float
    fp8_flops: float | None
    nvlink_bytes_s: float
    network_bytes_s: float
    gpus_per_node: int
    nodes: int
    sm_count: int
    compute_capability: str | None
    basis: dict[str, Basis] = field(hash=False)
    family: str = HOPPER
    device: str = ""

    @property
    def gpu_count(self) -> int:
        return self.gpus_per_node * self.nodes

    @property
    def gemm_flops(self) -> float:
        """Peak of the weight GEMMs: FP8 where the GPU has it, else BF16."""
        return self.fp8_flops or self.bf16_flops

    @property
    def is_amd(self) -> bool:
        return self.device.upper().startswith("AMD")

    @property
    def is_hopper(self) -> bool:
        return (self.compute_capability or "").startswith("9.")

    @property
    def is_blackwell(self) -> bool:
        return (self.compute_capability or "").startswith("10.")

    @property
    def has_fp4(self) -> bool:
        """Tensor cores that multiply FP4: Blackwell's, and those of CDNA 4."""
        return self.is_blackwell or self.family == CDNA4

    def with_nodes(self, nodes: int) -> Machine:
        """Return the same machine as a cluster of `nodes` nodes."""
        return replace(self, nodes=nodes)


def machine_of(profile: HardwareProfile) -> Machine:
    """Return the slowest GPU's numbers of every quantity: a TP group waits for its slowest member."""

    def worst(name: str) -> Quantity:
        slowest = _slowest(profile, name)
        assert slowest is not None, name  # required fields of GpuProfile
        return slowest

    memory, hbm, bf16 = worst("memory_mib"), worst("hbm_gb_s"), worst("bf16_tflops")
    fp8, sms = _slowest(profile, "fp8_tflops"), _slowest(profile, "sm_count")
    link, network = _slowest(profile, "nvlink_gb_s") or _measured_pcie(profile), profile.internode_gb_s
    basis = {"memory": memory.basis, "hbm": hbm.basis, "bf16": bf16.basis}
    basis |= {name: q.basis for name, q in (("fp8", fp8), ("nvlink", link), ("network", network)) if q}
    return Machine(
        name=profile.name,
        memory_gib=memory.value / 1024,
        hbm_bytes_s=hbm.value * 1e9,
        bf16_flops=bf16.value * 1e12,
        fp8_flops=fp8.value * 1e12 if fp8 else None,
        nvlink_bytes_s=link.value * 1e9 if link else PCIE_BYTES_S,
        network_bytes_s=network.value * 1e9 if network else 50e9,
        gpus_per_node=profile.gpus_per_node,
        nodes=profile.nodes,
        sm_count=int(sms.value) if sms else 132,
        compute_capability=profile.gpus[0].compute_capability,
        basis=basis,
        family=family_of(profile.gpus[0].name, profile.gpus[0].compute_capability),
        device=profile.gpus[0].name,
    )


def _slowest(profile: HardwareProfile, name: str) -> Quantity | None:
    """Return the worst GPU's quantity in data-sheet terms, or None where a GPU lacks it.

    GPUs that were not measured (busy ones) count with their data sheet, so the basis is that of the worst.
    """
    quantities: list[Quantity] = []
    for gpu in profile.gpus:
        quantity: Quantity | None = getattr(gpu, name)
        if quantity is None:
            return None
        quantities.append(replace(quantity, value=sheet_equivalent(name, quantity)))
    # Of equals a measured one: it confirms what the others only claim.
    return min(quantities, key=lambda quantity: (quantity.value, quantity.basis is not Basis.MEASURED))


def _measured_pcie(profile: HardwareProfile) -> Quantity | None:
    """Return the slowest measured pair of GPUs without NVLink, or None when no pair was measured."""
    rates = [rate for row in profile.p2p_gb_s or () for rate in row if rate]
    return Quantity(value=min(rates), basis=Basis.MEASURED, source="slowest pair of GPUs") if rates else None
