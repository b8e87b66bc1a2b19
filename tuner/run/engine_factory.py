"""The engine that --engine names, built from a tuning question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from models.serving.estimate import Context
from tuner.choices import SIMULATED_ENGINES, EngineName
from tuner.cluster.require import join
from tuner.engines.build import LiveSettings, emulated_runner, live_engine, run_mark
from tuner.engines.containers import Containers
from tuner.engines.image_check import image_problems, pull_if_missing
from tuner.engines.on_nodes import NodeSetup, cluster_engine
from tuner.engines.runners import DockerRunner, LocalRunner, Runner, hub_folder
from tuner.engines.simulated import SimulatedEngine
from tuner.evidence.trial import TrialRecord
from tuner.run.question import TuneQuestion
from tuner.seam import Engine
from tuner.server.preflight import Preflight
from tuner.server.readiness import Smoke


def engine_of(question: TuneQuestion, context: Context, folder: Path, records: Sequence[TrialRecord] = ()) -> Engine:
    """Build the engine of --engine for a run folder that holds `records`: on a cluster, repeats avoid their nodes.

    Raises InputError when another tuner holds one of this machine's GPUs, or where --cluster names no cluster.
    """
    if question.engine is EngineName.SIMULATED:
        return SimulatedEngine(question.world, context, question.seed, slos=question.plan.slos)
    live = LiveSettings(
        model_path=question.model_path,
        trials=folder / "trials",
        point_s=question.point_s,
        seed=question.seed,
        extra_flags=question.server_flags,
        smoke=smoke_of(question.smoke),
        slos=question.plan.slos,
    )
    if question.cluster is None:
        return live_engine(_runner(question, context, folder), context, replace(live, run=run_mark(folder)))
    setup = NodeSetup(
        hardware=question.plan.hardware, context=context, engine=question.engine, world=question.world, live=live,
        python=question.python,
    )  # fmt: skip
    engine = cluster_engine(question.cluster, setup, folder)
    engine.remember((record.config, record.place.nodes) for record in records if record.place is not None)
    return engine


def preflight(question: TuneQuestion) -> None:
    """Raise InputError where every launch on a real engine would fail alike, before anything is written."""
    if question.cluster is not None:
        join(question.cluster)
        return
    if question.engine in SIMULATED_ENGINES:
        return
    plan = question.plan
    in_container = question.engine is EngineName.DOCKER
    if in_container:
        pull_if_missing("docker", str(question.image))
    Preflight(
        python=None if in_container else question.python,
        image=partial(image_problems, "docker", str(question.image), plan.version) if in_container else list,
        version=plan.version,
        gpus=plan.hardware.gpus_per_node,
        model_path=question.model_path,
        flags=question.server_flags,
    ).check()


def smoke_of(text: str | None) -> Smoke | None:
    """Read --smoke's PROMPT=TEXT."""
    if text is None:
        return None
    prompt, _, expected = text.partition("=")
    return Smoke(prompt, expected)


def _runner(question: TuneQuestion, context: Context, folder: Path) -> Runner:
    if question.engine is EngineName.LOCAL:
        return LocalRunner(python=question.python)
    if question.engine is EngineName.DOCKER:
        containers = Containers(run=run_mark(folder))
        return DockerRunner(
            image=str(question.image), model_path=question.model_path, hub=hub_folder(), containers=containers
        )
    return emulated_runner(folder.absolute(), context, question.world, question.seed)
