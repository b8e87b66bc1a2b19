"""Writes launch files: some targets into a folder, or a bundle with all of them, a README and the data behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hwprobe.files import encode_json, write_atomic
from planner.launch import LaunchSpec
from planner.launch_files.parameters import Parameters, Provenance
from planner.launch_files.render import render, render_readme
from planner.launch_files.targets import Target, possible_targets

BUNDLE_FILE = "bundle.json"


def export_files(
    spec: LaunchSpec,
    provenance: Provenance,
    folder: Path,
    targets: Sequence[Target],
    parameters: Parameters | None = None,
) -> list[Path]:
    """Write the files of the given targets and return their paths.

    Raises InputError when a target cannot say this command or the folder is not writable; nothing is written then.
    """
    checked_parameters = (parameters or Parameters(model_path=spec.model_path)).checked()
    texts = [(target, render(target, spec, checked_parameters, provenance)) for target in targets]
    for target, text in texts:
        write_atomic(folder / target.file_name, text, executable=target.record.executable)
    return [folder / target.file_name for target, _ in texts]


def export_bundle(
    spec: LaunchSpec,
    provenance: Provenance,
    folder: Path,
    parameters: Parameters,
    documents: Mapping[str, Any],
) -> list[Path]:
    """Write all targets, README.md, bundle.json (provenance and record) and `documents` by file name."""
    targets = possible_targets(spec, parameters.checked())
    paths = export_files(spec, provenance, folder, targets, parameters)
    texts = {
        "README.md": render_readme(spec, parameters, provenance, targets),
        BUNDLE_FILE: encode_json({
            "record": provenance.record,
            "simulated": provenance.simulated,
            "provenance": dict(provenance.lines),
            "files": {str(target): target.file_name for target in targets},
            "parameters": parameters,
            "argv": spec.argv(),
            "environment": spec.environment,
        }) + "\n",
        **{name: encode_json(document) + "\n" for name, document in documents.items()},
    }  # fmt: skip
    for name, text in texts.items():
        write_atomic(folder / name, text)
    return [*paths, *(folder / name for name in texts)]
