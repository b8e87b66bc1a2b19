"""Machine: the few hardware numbers the equations use, in SI units, from a HardwareProfile."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hwprobe.profile import Basis, HardwareProfile, Quantity

GIB = 2**30
# PCIe Gen5 x16 per direction: what GPUs without NVLink have between them.
PCIE_BYTES_S = 63e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One GPU's limits and the links between GPUs. Link rates are per GPU and per direction."""

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
    basis: dict[str, Basis]

    @property
    def gpu_count(self) -> int:
        return self.gpus_per_node * self.nodes

    @property
    def gemm_flops(self) -> float:
        """Peak of the weight GEMMs: FP8 where the GPU has it, else BF16."""
        return self.fp8_flops or self.bf16_flops

    @property
    def is_hopper(self) -> bool:
        return (self.compute_capability or "").startswith("9.")

    @property
    def is_blackwell(self) -> bool:
        return (self.compute_capability or "").startswith("10.")

    def with_nodes(self, nodes: int) -> Machine:
        """Return the same machine as a cluster of `nodes` nodes."""
        return replace(self, nodes=nodes)


def machine_of(profile: HardwareProfile) -> Machine:
    """Return the slowest GPU's numbers of every quantity: a TP group waits for its slowest member."""

    def worst(quantity: str) -> Quantity:
        found = profile.smallest(quantity)
        assert found is not None, quantity  # required fields of GpuProfile
        return found

    memory, hbm, bf16 = worst("memory_mib"), worst("hbm_gb_s"), worst("bf16_tflops")
    fp8, nvlink, sms = (profile.smallest(name) for name in ("fp8_tflops", "nvlink_gb_s", "sm_count"))
    network = profile.internode_gb_s
    basis = {"memory": memory.basis, "hbm": hbm.basis, "bf16": bf16.basis}
    basis |= {name: q.basis for name, q in (("fp8", fp8), ("nvlink", nvlink), ("network", network)) if q}
    return Machine(
        name=profile.name,
        memory_gib=memory.value / 1024,
        hbm_bytes_s=hbm.value * 1e9,
        bf16_flops=bf16.value * 1e12,
        fp8_flops=fp8.value * 1e12 if fp8 else None,
        nvlink_bytes_s=nvlink.value * 1e9 if nvlink else PCIE_BYTES_S,
        network_bytes_s=network.value * 1e9 if network else 50e9,
        gpus_per_node=profile.gpus_per_node,
        nodes=profile.nodes,
        sm_count=int(sms.value) if sms else 132,
        compute_capability=profile.gpus[0].compute_capability,
        basis=basis,
    )
