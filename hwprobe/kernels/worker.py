"""The measuring child: reads one request from its arguments, prints reports as lines of JSON, the whole last.

Started by `hwprobe.measure` only. Torch's output and crashes stay in this process.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from hwprobe.choices import DeviceName
from hwprobe.errors import SgtuneError
from hwprobe.files import decode_json, encode_json
from hwprobe.holds import end_with_parent
from hwprobe.kernels.ablation import measure_ablation
from hwprobe.kernels.bandwidth import measure_memory, measure_stream
from hwprobe.kernels.collectives import measure_all_reduce, measure_symmetric
from hwprobe.kernels.compute import measure_gemm, measure_launch, measure_sustained
from hwprobe.kernels.pairs import measure_p2p
from hwprobe.kernels.report import CPU_BUILD, Emit, MeasureRequest, Report, Step, TorchDevice, nowhere
from hwprobe.kernels.served import measure_deep_gemm, measure_flash_mla
from hwprobe.kernels.timing import Timer, timer_for


def answer(request: MeasureRequest, emit: Emit = nowhere) -> Report:
    """Do what is asked on the devices this process may see, emitting parts. Raises SgtuneError when torch has none."""
    device, quick = request.device, request.quick
    if device is DeviceName.CUDA and not torch.cuda.is_available():
        raise SgtuneError(_no_cuda())
    if request.step is Step.DEVICES:
        return Report(devices=_devices() if device is DeviceName.CUDA else ())
    if request.step is Step.ALL_REDUCE:
        return measure_all_reduce(device, ranks=request.ranks, quick=quick, emit=emit)
    if request.step is Step.SYMMETRIC:
        return measure_symmetric(device, ranks=request.ranks, quick=quick, emit=emit)
    if request.step is Step.P2P:
        timers = [timer_for(device, index) for index in range(torch.cuda.device_count())]
        return measure_p2p(timers, quick=quick, emit=emit)
    return _alone(request, timer_for(device), emit)


def _alone(request: MeasureRequest, timer: Timer, emit: Emit) -> Report:
    """Do a step that concerns one device."""
    quick = request.quick
    if request.step is Step.MEMORY:
        return measure_memory(timer, quick=quick)
    if request.step is Step.STREAM:
        return measure_stream(timer, quick=quick, emit=emit)
    if request.step is Step.LAUNCH:
        return measure_launch(timer, quick=quick)
    if request.step is Step.SUSTAINED:
        return measure_sustained(timer, quick=quick, emit=emit)
    if request.step is Step.DEEP_GEMM:
        return measure_deep_gemm(timer, quick=quick)
    if request.step is Step.FLASH_MLA:
        return measure_flash_mla(timer, quick=quick)
    if request.step is Step.ABLATION:
        return measure_ablation(timer, quick=quick, emit=emit)
    return measure_gemm(timer, quick=quick, emit=emit)


def _no_cuda() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} {CPU_BUILD}; install a CUDA (or ROCm) build of torch"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f"torch {torch.__version__} cannot start CUDA: {str(error).splitlines()[0]}"
    return f"torch {torch.__version__} sees no GPU (CUDA_VISIBLE_DEVICES?)"


def _software() -> dict[str, str]:
    versions = {"torch": torch.__version__, "torch_cuda": torch.version.cuda, "torch_hip": torch.version.hip}
    if torch.cuda.is_available() and torch.version.cuda:
        versions["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return {name: str(version) for name, version in versions.items() if version}


def _devices() -> tuple[TorchDevice, ...]:
    devices = []
    for index in range(torch.cuda.device_count()):
        # A kernel: the properties of a dead card can still be read.
        torch.zeros(1, device=torch.device("cuda", index)).add_(1.0).item()
        properties = torch.cuda.get_device_properties(index)
        uuid = getattr(properties, "uuid", None)
        capability = f"{properties.major}.{properties.minor}" if torch.version.hip is None else None
        devices.append(
            TorchDevice(
                name=properties.name,
                memory_mib=properties.total_memory / 2**20,
                sm_count=properties.multi_processor_count,
                compute_capability=capability,
                uuid=f"GPU-{uuid}" if uuid else None,
            )
        )
    return tuple(devices)


def main() -> int:
    """Answer the request in the first argument; stderr names the error that ended it."""
    end_with_parent()
    request = decode_json(sys.argv[1], MeasureRequest, "measuring child")
    _told(Report(software=_software()))
    try:
        report = replace(answer(request, _told), software=_software())
    except SgtuneError as error:
        sys.stderr.write(f"SgtuneError: {error}\n")
        return 1
    _told(report)
    return 0


def _told(part: Report) -> None:
    """Print what is known so far as one line; the parent keeps it even if this process dies."""
    sys.stdout.write(encode_json(part, indent=0) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
