"""Hardware: what a machine measures against its data sheet, and against another machine."""

import shlex
from pathlib import Path

import streamlit as st

from dashboard.charts import plan_charts as charts
from dashboard.charts import tables
from dashboard.readers.roots import within_roots
from dashboard.widgets import BOUND, command, machines_of_runs, stop, table
from hwprobe.catalogue import hardware_names
from hwprobe.errors import InputError
from hwprobe.findings import ProbeFinding, compare, findings
from hwprobe.plain_text import as_markdown
from hwprobe.profile import HardwareProfile, read_profile
from planner.inputs import read_hardware

NOBODY = "nothing"


def read(name: str) -> HardwareProfile:
    """Return the machine of a catalogue name or file; a file may be of a machine without GPUs."""
    try:
        allowed_name = within_roots(name)
        return read_profile(Path(allowed_name)) if allowed_name.endswith(".json") else read_hardware(allowed_name)
    except InputError as error:
        stop(str(error))


def answer(profile: HardwareProfile, quantities: tuple[ProbeFinding, ...]) -> str:
    """Describe the machine in one sentence."""
    if profile.gpus:
        gpu = profile.gpus[0]
        nodes = f"{profile.nodes} nodes of " if profile.nodes > 1 else ""
        machine = f"{nodes}{len(profile.gpus)} x {gpu.name}, {gpu.memory_mib.value / 1024:.1f} GiB each"
    else:
        machine = "A machine without GPUs"
    if not quantities:
        return f"{machine}: nothing was measured, every figure is the data sheet's."
    bad = [one for one in quantities if one.verdict not in ("", "normal") and one.sheet]
    if bad:
        why = bad[0].verdict.removeprefix("normal; ")
        return f"{machine}: {len(quantities)} quantities measured, {len(bad)} to look at ({bad[0].label}: {why})."
    return f"{machine}: {len(quantities)} quantities measured, all as a healthy card's."


def show_measured(profile: HardwareProfile, quantities: tuple[ProbeFinding, ...]) -> None:
    """Draw measurements and the links between GPUs."""
    if quantities:
        left_column, right_column = st.columns([3, 2]) if profile.p2p_gb_s else (st.container(), None)
        with left_column:
            st.markdown("**Measured against the data sheet**")
            st.plotly_chart(
                charts.against_sheet(quantities), key="sheet", alt="Measured rates in percent of the data sheet"
            )
        if right_column is not None:
            with right_column:
                show_pairs(profile)
        with st.expander("Every measurement"):
            table(tables.measured(quantities), "measured")
    elif profile.topology:
        st.markdown("**Topology, as NVML words it**")
        st.dataframe(list(profile.topology), key="topology")


def show_pairs(profile: HardwareProfile) -> None:
    """Draw what GPUs measure between each other."""
    quantity = st.segmented_control(
        "GPU to GPU", ["GB/s", "latency"], default="GB/s", required=True, key="pairs", bind=BOUND
    )
    matrix, unit = (profile.p2p_gb_s, "GB/s") if quantity == "GB/s" else (profile.p2p_latency_us, "us")
    if matrix is None:
        st.caption("not measured")
    else:
        st.plotly_chart(charts.heat_map(matrix, unit), key="heat", alt=f"{unit} from each GPU to each other")


own = machines_of_runs()
names = [*own, *hardware_names()]
with st.sidebar:
    machine_name = st.selectbox(
        "Machine", names, key="machine", bind=BOUND, accept_new_options=True,
        help="Machines of the runs, catalogue names, or the path of a hardware.json",
    )  # fmt: skip
    other = st.selectbox("Compare with", [NOBODY, *names], key="other", bind=BOUND, accept_new_options=True)
first, second = own.get(machine_name or "", machine_name or names[0]), own.get(other or "", other or NOBODY)
profile = read(first)
measured_quantities = findings(profile)
st.subheader(as_markdown(answer(profile, measured_quantities)))
for warning in profile.warnings:
    st.warning(as_markdown(warning))
show_measured(profile, measured_quantities)
st.markdown("**What predictions use**")
machines = {"this machine": profile}
if second != NOBODY:
    machines["the other"] = read(second)
table(tables.used_by_predictions(machines), "used")
if len(machines) > 1:
    changes = [one for one in compare(profile, machines["the other"]) if one.change is not None]
    st.markdown(f"**{as_markdown(str(other))}** against **{as_markdown(str(machine_name))}**, measured")
    if changes:
        st.plotly_chart(charts.changes_between(changes), key="changes", alt="Change of each measured quantity, percent")
        table(tables.compared(changes), "compared")
    else:
        st.caption("They share no measurement: data sheets are compared above.")
if profile.host:
    host = profile.host
    st.caption(as_markdown(f"Host: {host.cpu}, {host.logical_cpus} CPUs, {host.memory_gib:.0f} GiB, {host.os}"))
if profile.software:
    st.caption(as_markdown(", ".join(f"{name} {version}" for name, version in profile.software.items())))
if first.endswith(".json") and second.endswith(".json"):
    command(shlex.join(["sgtune", "probe", "--compare", first, second]))
else:
    command("sgtune probe --out hardware.json", "Measure the machine you are on")
