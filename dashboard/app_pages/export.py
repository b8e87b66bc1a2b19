"""Export: launch files with where they come from, to copy and to download."""

import io
import shlex
import zipfile

import streamlit as st

from dashboard.charts import tables
from dashboard.readers.commands import tune_command
from dashboard.readers.runs import RunView, Stamp
from dashboard.widgets import BOUND, choose_run, command, stop, table
from hwprobe.errors import InputError
from hwprobe.holds import scratch_folder
from hwprobe.plain_text import as_markdown
from models.config import ServerConfig
from models.version import parse_version
from planner.launch import launch_spec
from planner.launch_files.parameters import Parameters
from planner.launch_files.render import render
from planner.launch_files.targets import possible_targets
from planner.plans.seeds import sglang_default
from tuner.launch_files.trial_export import Exportable, ExportedTrial, chosen_trial, trial_export

WINNER = "the winner"

run = choose_run()


def choose(view: RunView) -> int | None:
    """Let the reader choose a trial; None is the winner."""
    labels = [WINNER, *(f"{r.number}: {r.label} ({r.source})" for r in view.launched)]
    if st.session_state.get("trial", WINNER) not in labels:
        st.session_state["trial"] = WINNER
    picked = st.selectbox("Trial", labels, key="trial", bind=BOUND)
    return None if picked == WINNER else int(picked.split(":", maxsplit=1)[0])


def parameters() -> Parameters:
    """Read the files' parameters beyond the command."""
    first, second, third = st.columns([3, 3, 1])
    texts = {
        "model_path": first.text_input("Model path", run.manifest.served_path, key="model", bind=BOUND),
        "image": second.text_input("Image", "", key="image", bind=BOUND, placeholder="SGLang's own of the release"),
    }
    port = third.number_input("Port", 1, 65535, 30000, key="port", bind=BOUND)
    return Parameters(model_path=texts["model_path"], image=texts["image"] or None, port=port).checked()


def line_of(number: int | None, options: Parameters) -> str:
    """Return the command that writes the files shown."""
    words = ["sgtune", "export", "--runs", str(run.path.parent), "--run", run.name]
    words += [] if number is None else ["--trial", str(number)]
    words += [] if options.model_path == run.manifest.served_path else ["--model-path", options.model_path]
    words += ["--image", options.image] if options.image else []
    words += [] if options.port == Parameters().port else ["--port", str(options.port)]
    return shlex.join([*words, "--bundle", "launch/"])


@st.cache_data(max_entries=16, show_spinner=False)
def bundle(line: str, stamp: Stamp, _made: Exportable) -> bytes:
    """Return every possible file with README and data, zipped: once for a command line and state of the run."""
    packed = io.BytesIO()
    with scratch_folder("bundle") as folder, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in _made.write_bundle(folder):
            archive.write(path, f"{run.name}/{path.name}")
    return packed.getvalue()


def show_default_difference(config: ServerConfig, exportable: Exportable) -> None:
    """Show which flags the command sets that SGLang's plain start does not."""
    with st.expander("Flags beyond SGLang's defaults"):
        plain = sglang_default(run.context.machine)
        default = launch_spec(plain, parse_version(run.manifest.sglang_version), model_path=exportable.spec.model_path)
        table(tables.flag_difference({"SGLang's default": default, "this command": exportable.spec}), "beyond")
        st.caption(as_markdown(config.label))


answer = st.container()
try:
    number = choose(run)
    options = parameters()
    record = chosen_trial(run.records, number, run.path, run.manifest.servers)
    trial = ExportedTrial(record=record, records=run.records, manifest=run.manifest)
    exportable = trial_export(trial, options, line_of(number, options), {"hardware.json": run.hardware})
    targets = possible_targets(exportable.spec, exportable.parameters)
except InputError as error:
    command(tune_command(run, resume=True), "Go on with the run")
    stop(f"Nothing to export: {error}")
answer.subheader(
    as_markdown(f"{record.label}, trial {record.number}: {len(targets)} launch files that say the same command.")
)
st.table({as_markdown(k): as_markdown(v) for k, v in exportable.provenance.lines}, border="horizontal")
target = st.segmented_control(
    "File", targets, default=targets[0], required=True, key="file", bind=BOUND,
    format_func=lambda each: each.file_name,
)  # fmt: skip
text = render(target, exportable.spec, exportable.parameters, exportable.provenance)
with st.container(horizontal=True):
    st.download_button(
        f"Download {target.file_name}",
        text,
        target.file_name,
        "text/plain",
        icon=":material/download:",
        key="one",
        on_click="ignore",
    )
    st.download_button(
        "Download all with README and data", bundle(line_of(number, options), run.stamp, exportable), f"{run.name}.zip",
        "application/zip", on_click="ignore",
        icon=":material/folder_zip:", key="every",
    )  # fmt: skip
st.code(text, language=target.record.language, wrap_lines=True)
if run.hardware is not None:
    show_default_difference(record.config, exportable)
command(line_of(number, options), "The same files from a terminal")
