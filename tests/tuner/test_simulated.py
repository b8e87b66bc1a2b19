"""Worlds, and the engine that lives in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hwprobe.errors import InputError
from models.config import ServerConfig, Speculative
from models.layout import table_of
from models.serving.estimate import Context, predict
from models.workload import Workload
from planner.sglang.resolver import resolve
from tuner.engines.simulated import SimulatedEngine
from tuner.engines.world import Effect, World, load_world
from tuner.seam import FailureKind, LaunchFailed

MakeContext = Callable[..., Context]
WORKLOAD = Workload.checked(500, 500, 32)


def config(context: Context, **changes: object) -> ServerConfig:
    typed = replace(ServerConfig(tp_size=8, mem_fraction_static=0.85), **changes)
    return resolve(typed, context.arch, context.machine, context.version).config


def measured(world: World, belief: Context, seed: int = 0, **changes: object) -> float:
    engine = SimulatedEngine(world, belief, seed)
    return engine.launch(config(belief, **changes), 0).measure(WORKLOAD).output_tok_s


def test_a_world_that_is_as_believed_measures_what_is_predicted(context: MakeContext) -> None:
    belief = context()
    expected = predict(belief, config(belief), WORKLOAD).output_tok_s
    assert measured(World(noise=0.0), belief) == pytest.approx(expected, rel=0.01)


def test_same_seed_same_figures_another_seed_others(context: MakeContext) -> None:
    world = load_world(None)
    assert measured(world, context(), seed=3) == measured(world, context(), seed=3)
    assert measured(world, context(), seed=3) != measured(world, context(), seed=4)


def test_truth_differs_from_belief_as_the_world_says(context: MakeContext) -> None:
    belief = context()
    plain = measured(World(noise=0.0), belief)
    slow = World(noise=0.0, effects=(Effect(when={"tp_size": 8}, time_factor=1.25),))
    assert measured(slow, belief) == pytest.approx(plain / 1.25, rel=0.03)
    pair = World(noise=0.0, effects=(Effect(when={"attn_dp_size": 8, "mtp_steps": 1}, time_factor=1.5),))
    spec = Speculative.chain(1)
    assert measured(pair, belief) == plain
    both = {"attn_dp_size": 8, "speculative": spec, "max_running_requests": 64, "cuda_graph_max_bs_decode": 64}
    assert measured(pair, belief, **both) < 0.75 * measured(World(noise=0.0), belief, **both)
    assert measured(World(noise=0.0, parameters={"tau_us": 3.0}), belief) < plain


def test_memory_beyond_the_ledger_fails_where_it_would(context: MakeContext) -> None:
    belief = context()

    def kind(extra_gib: float, fraction: float) -> FailureKind | None:
        engine = SimulatedEngine(World(extra_memory_gib=extra_gib), belief, 0)
        try:
            engine.launch(config(belief, mem_fraction_static=fraction), 0).measure(WORKLOAD)
        except LaunchFailed as failure:
            return failure.kind
        return None

    assert kind(0.0, 0.85) is None
    assert kind(0.0, 0.50) is FailureKind.OOM_KV
    filled = belief.memory(table_of([config(belief, mem_fraction_static=0.85)]))
    free, activations = float(filled.free[0]), float(filled.activations[0])
    assert kind(free + 0.5 * activations, 0.85) is FailureKind.OOM_LOAD
    assert kind(free + 1.5 * activations, 0.85) is FailureKind.OOM_GRAPHS


def test_the_interval_reflects_the_noise(context: MakeContext) -> None:
    belief = context()
    quiet = SimulatedEngine(World(noise=0.0), belief, 0).launch(config(belief), 0).measure(WORKLOAD)
    loud = SimulatedEngine(World(noise=0.05), belief, 0).launch(config(belief), 0).measure(WORKLOAD)
    assert quiet.output_tok_s_interval == pytest.approx((quiet.output_tok_s, quiet.output_tok_s))
    assert loud.output_tok_s_interval[0] < loud.output_tok_s < loud.output_tok_s_interval[1]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("noise = 2", "noise"),
        ("boot_s = -1", "boot_s"),
        ("[parameters]\ntauus = 2", "unknown engine parameter 'tauus'; did you mean 'tau_us'"),
        ("[parameters]\ntau_us = 0", "parameters"),
        ("[[effects]]\nwhen = {tp = 8}\ntime_factor = 2", "unknown knob 'tp' in an effect; did you mean"),
        ("[[effects]]\nwhen = {tp_size = 8}", "time_factor"),
        ("noise = ", "not valid TOML"),
    ],
)
def test_spoiled_worlds_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "world.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=complaint):
        load_world(path)


def test_a_slice_shows_what_a_world_lets_it_show(context: MakeContext) -> None:
    """Its weights are made up: they accept no draft and send all tokens to the same experts; its boot is short."""
    whole = context()
    slim = replace(whole, arch=whole.arch.sliced(8))
    for on, slower_whole, slower_slice in (("both", 1.5, 1.5), ("whole", 1.5, 1.0), ("slice", 1.0, 1.5)):
        world = World(noise=0.0, effects=(Effect(when={"tp_size": 8}, time_factor=1.5, on=on),))
        for belief, factor in ((whole, slower_whole), (slim, slower_slice)):
            plain = measured(World(noise=0.0), belief)
            assert measured(world, belief) == pytest.approx(plain / factor, rel=0.12), (on, factor)
    drafts = {"speculative": Speculative.chain(2)}
    assert measured(World(noise=0.0), whole, **drafts) > measured(World(noise=0.0), whole)
    assert measured(World(noise=0.0), slim, **drafts) < measured(World(noise=0.0), slim)
    booted = SimulatedEngine(World(slice_boot_s=10.0), slim, 0).launch(config(slim), 0)
    assert 5.0 <= booted.info().boot_s < 15.0
    few = config(whole).with_flags(max_total_tokens=5000)
    assert SimulatedEngine(World(), slim, 0).launch(few, 0).info().kv_tokens == 5000


def test_a_world_file_says_where_an_effect_shows(tmp_path: Path) -> None:
    file = tmp_path / "w.toml"
    file.write_text('[[effects]]\nwhen = { tp_size = 8 }\ntime_factor = 2.0\non = "whole"\n')
    assert load_world(file).effects[0].on == "whole"
    file.write_text('[[effects]]\nwhen = { tp_size = 8 }\ntime_factor = 2.0\non = "nowhere"\n')
    with pytest.raises(InputError, match="nowhere"):
        load_world(file)
