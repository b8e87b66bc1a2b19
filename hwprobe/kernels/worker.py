"""The measuring child: reads one request from its arguments, prints one report as a line of JSON.

Started by `hwprobe.measure` only. Whatever torch says or breaks stays in this process.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from hwprobe.choices import DeviceName
from hwprobe.errors import SgtuneError
from hwprobe.files import decode_json, encode_json
from hwprobe.kernels.bandwidth import measure_memory, measure_stream
from hwprobe.kernels.compute import measure_gemm, measure_launch
from hwprobe.kernels.interconnect import measure_all_reduce, measure_p2p
from hwprobe.kernels.report import MeasureRequest, Report, Step, TorchDevice
from hwprobe.kernels.timing import timer_for


def answer(request: MeasureRequest) -> Report:
    """Do what is asked on the devices this process may see. Raises SgtuneError when torch has none."""
    device, quick = request.device, request.quick
    if device is DeviceName.CUDA and not torch.cuda.is_available():
        raise SgtuneError(_no_cuda())
    if request.step is Step.DEVICES:
        return Report(devices=_devices() if device is DeviceName.CUDA else ())
    if request.step is Step.ALL_REDUCE:
        return measure_all_reduce(device, ranks=request.ranks, quick=quick)
    if request.step is Step.P2P:
        return measure_p2p([timer_for(device, index) for index in range(torch.cuda.device_count())], quick=quick)
    timer = timer_for(device)
    if request.step is Step.MEMORY:
        return measure_memory(timer, quick=quick)
    if request.step is Step.STREAM:
        return measure_stream(timer, quick=quick)
    if request.step is Step.LAUNCH:
        return measure_launch(timer, quick=quick)
    return measure_gemm(timer, quick=quick)


def _no_cuda() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is a CPU build; install a CUDA (or ROCm) build of torch"
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
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        uuid = getattr(properties, "uuid", None)
        capability = f"{properties.major}.{properties.minor}" if torch.version.hip is None else None
        found.append(
            TorchDevice(
                name=properties.name,
                memory_mib=properties.total_memory / 2**20,
                sm_count=properties.multi_processor_count,
                compute_capability=capability,
                uuid=f"GPU-{uuid}" if uuid else None,
            )
        )
    return tuple(found)


def main() -> int:
    """Answer the request in the first argument; the last line of stderr is the reason of a failure."""
    request = decode_json(sys.argv[1], MeasureRequest, "measuring child")
    try:
        report = replace(answer(request), software=_software())
    except SgtuneError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(encode_json(report, indent=0) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
