"""The emulated start: SGLang's phases, their log lines and durations, and the ways each can fail."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from models.config import ServerConfig
from models.costs.memory import Memory, MemoryLedger, ledger_of
from models.layout import table_of
from models.serving.estimate import Context, limits_of
from models.serving.role_times import ServerModel, decode_context
from models.serving.step_times import StepTimes
from planner.check.judge import Checked, modelled
from planner.fleets.deployment import Role
from tuner.emulator import family
from tuner.emulator.api_server import ApiServer, address_of, serve
from tuner.emulator.log import say, write
from tuner.emulator.ranks import Ranks, follow
from tuner.emulator.recorder import CountedTimes, Exposed
from tuner.emulator.roles import in_role, keeps_prefixes, role_of, role_played
from tuner.engines.faults import Fault, FaultKind
from tuner.engines.world import World
from tuner.engines.world_memory import boot_failure, fails_under_load
from tuner.seam import NODE_VARIABLE, FailureKind

# Share of the boot time that each phase takes.
SHARES = {"import": 0.05, "distributed": 0.1, "weights": 0.5, "kv pool": 0.05, "graphs": 0.25, "warm-up": 0.05}
FLOOD_LINE = "x" * 1023 + "\n"
MOST_RUNNING = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedMachine:
    """What is started, and what is true where it starts; `server` is its name in a deployment."""

    context: Context
    world: World
    checked: Checked
    faults: tuple[Fault, ...]
    seed: int
    typed: tuple[str, ...] = ()
    server: str = ""

    @property
    def config(self) -> ServerConfig:
        return modelled(self.checked.resolved.config)

    @property
    def boot_s(self) -> float:
        return self.world.start_s(self.context)

    def truth(self) -> Context:
        config = self.config
        truth = self.world.truth(self.context, config, os.environ.get(NODE_VARIABLE, ""), self.server)
        return decode_context(truth, config) if role_of(config) is Role.DECODE else truth


def boot(machine: EmulatedMachine) -> int:
    """Start as SGLang would; serve; return the exit code."""
    config, context = machine.config, machine.truth()
    table = table_of([config])
    filled = context.memory(table)
    ledger = ledger_of(filled, table, 0)
    free = float(filled.card[0] - filled.context[0])
    started = time.monotonic()
    _phase(machine, "import")
    children = [family.start_child(name) for name in ("sglang::scheduler", "sglang::detoken")]
    say("Init parallel begin.")
    ranks = Ranks.of(machine.checked.arguments.values)
    if ranks is not None:
        ranks.meet()
    _phase(machine, "distributed")
    say("Init parallel ends. elapsed=0.05 s")
    say(f"Load weight begin. avail mem={free:.2f} GB")
    _phase(machine, "weights")
    if ledger.weights_gib > free:
        family.die_of_scheduler("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.75 GiB.")
    free -= ledger.weights_gib
    say(
        f"Load weight end. elapsed={time.monotonic() - started:.2f} s, type=DeepseekV3ForCausalLM, "
        f"avail mem={free:.2f} GB, mem usage={ledger.weights_gib:.2f} GB."
    )
    _phase(machine, "kv pool")
    free = _pool(machine, config, filled, ledger, free)
    _phase(machine, "graphs")
    graphs = _capture(machine, config, filled, ledger, free)
    say(
        f"max_total_num_tokens={ledger.kv_tokens_per_rank}, chunked_prefill_size={config.chunked_prefill_size}, "
        f"max_prefill_tokens={config.max_prefill_tokens}, max_running_requests={config.max_running_requests}, "
        f"context_len={config.context_length}, available_gpu_mem={free - graphs:.2f} GB"
    )
    if ranks is not None and ranks.index > 0:
        return follow(ranks, address_of(machine.checked.arguments.values), children[0])
    served = api_server(machine, warm_up=lambda: _phase(machine, "warm-up"))
    leave = ranks.leave if ranks else served.leave
    return serve(replace(served, started=started, children=tuple(children), leave=leave))


def api_server(machine: EmulatedMachine, warm_up: Callable[[], None] = lambda: None) -> ApiServer:
    """Return what the HTTP side of a started server needs to know, but its children and its time."""
    config, context = machine.config, machine.truth()
    table = table_of([config])
    filled = context.memory(table)
    per_rank = ledger_of(filled, table, 0).kv_tokens_per_rank
    most = min(int(table.most_running[0]), MOST_RUNNING)
    limits = replace(limits_of(config, table, float(filled.kv_tokens[0])), max_running=most)
    times = StepTimes(context.system(table), acceptance=context.acceptance, largest_batch=most)
    model = in_role(ServerModel(times=times, limits=limits), config, context)
    arguments = machine.checked.arguments.values
    return ApiServer(
        times=CountedTimes(model.times),
        observed=observed_of(machine, per_rank),
        limits=model.limits,
        played=role_played(config, arguments, machine.world.transfer(context)),
        config=config,
        arguments=arguments,
        typed=machine.typed,
        version=str(context.version),
        device=context.machine.device,
        kv_tokens_per_rank=per_rank,
        noise=machine.world.noise,
        seed=machine.seed,
        oom_under_load=fails_under_load(machine.world, filled),
        faults=tuple(fault for fault in machine.faults if fault.phase == "serving"),
        warm_up=warm_up,
        boot_s=machine.boot_s,
        started=0.0,
        children=(),
        leave=lambda: None,
    )


def observed_of(machine: EmulatedMachine, kv_tokens_per_rank: int) -> Exposed:
    """Return what the server's metrics say of it."""
    config, world = machine.config, machine.world
    reported = machine.checked.arguments.values.get("expert_balancedness_report_mode")
    slow = world.slow_rank
    return Exposed(
        ranks=max(1, config.attn_dp_size),
        attn_tp=config.tp_size // max(1, config.attn_dp_size),
        ep_ranks=config.ep_size,
        tp=config.tp_size,
        graph_max_bs=0 if config.disable_cuda_graph else config.cuda_graph_max_bs_decode or 0,
        kv_tokens=kv_tokens_per_rank,
        context_length=config.context_length or 0,
        page_size=config.page_size or 1,
        mtp_steps=config.speculative.num_steps if config.speculative else 0,
        radix=keeps_prefixes(config),
        late_rank=slow.rank if slow else 0,
        late_share=1.0 - 1.0 / slow.factor if slow else 0.0,
        balancedness=world.balancedness(machine.truth(), config) if reported in ("prometheus", "both") else None,
    )


def _pool(machine: EmulatedMachine, config: ServerConfig, filled: Memory, ledger: MemoryLedger, free: float) -> float:
    """Allocate the KV pool, or die of it; return what is free then, in GiB."""
    if boot_failure(machine.world, filled) is FailureKind.OOM_KV:
        fraction = config.mem_fraction_static or 0.0
        least = 1.0 - free / float(filled.card[0] - filled.context[0])
        family.die_of_scheduler(
            f"ValueError: Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static="
            f"{fraction:g}. "
            f"Raise --mem-fraction-static above {least:.3f} (minimum viable = 1 - available/pre = {least:.4f})."
        )
    pool = ledger.per_gpu_gib["KV pool"]
    say(f"KV Cache is allocated. dtype: torch.bfloat16, #tokens: {ledger.kv_tokens_per_rank}, KV size: {pool:.2f} GB")
    free -= pool
    say(f"Memory pool end. avail mem={free:.2f} GB")
    return free


def _capture(
    machine: EmulatedMachine, config: ServerConfig, filled: Memory, ledger: MemoryLedger, free: float
) -> float:
    """Capture CUDA graphs, or die of it; return what they take, in GiB."""
    if config.disable_cuda_graph:
        return 0.0
    if boot_failure(machine.world, filled) is FailureKind.OOM_GRAPHS:
        family.die_of_scheduler(
            "Exception: Capture cuda graph failed: CUDA out of memory. Tried to allocate 448.00 MiB.\n"
            "Possible solutions:\n1. set --mem-fraction-static to a smaller value (e.g., 0.8 or 0.7)"
        )
    graphs = ledger.per_gpu_gib.get("CUDA graphs", 0.0)
    say(f"Capture target decode CUDA graph begin. backend=full, num_tokens_per_req=1, avail mem={free:.2f} GB")
    say(
        f"Capture target decode CUDA graph end. bs=[1, 2, 4], elapsed=1.00 s, mem usage={graphs:.2f} GB, "
        f"avail mem={free - graphs:.2f} GB."
    )
    return graphs


def _phase(machine: EmulatedMachine, name: str) -> None:
    """Take the phase's time, and suffer its faults."""
    time.sleep(SHARES[name] * machine.boot_s)
    for fault in machine.faults:
        if fault.phase == name:
            suffer(fault)


def suffer(fault: Fault) -> None:
    """Do what a fault says; returns where the server goes on with it. Raises KeyError for one of serving."""
    DEEDS[fault.kind](fault)


def _exit(fault: Fault) -> None:
    write(fault.text + "\n")
    if fault.code < 0:
        os.kill(os.getpid(), -fault.code)
    os._exit(fault.code)


def _port_taken(fault: Fault) -> None:
    say("ERROR:    [Errno 98] error while attempting to bind on address: address already in use")
    os._exit(1)


def _flood(fault: Fault) -> None:
    for _ in range(fault.count):
        write(FLOOD_LINE * 1024)


def _hang(fault: Fault) -> None:
    """Say the text, then make no further progress."""
    if fault.text:
        write(fault.text + "\n")
    family.idle()


DEEDS: dict[FaultKind, Callable[[Fault], object]] = {
    FaultKind.EXIT: _exit,
    FaultKind.PORT_TAKEN: _port_taken,
    FaultKind.FLOOD: _flood,
    FaultKind.HANG: _hang,
    FaultKind.FREEZE: lambda _: os.kill(os.getpid(), signal.SIGSTOP),
    FaultKind.IGNORE_SIGTERM: lambda _: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    FaultKind.ESCAPE: lambda _: family.start_escapee(),
    FaultKind.HOLD_STDOUT: lambda _: family.start_holder(),
}
