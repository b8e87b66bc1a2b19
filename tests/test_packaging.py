"""The wheel as a stranger would install it."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "streamlit", "optuna", "pandas", "plotly", "sglang", "ray")


@pytest.mark.slow
def test_wheel_holds_all_data_and_runs_without_the_source_tree(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    wheel = next(tmp_path.glob("sgtune-*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "hwprobe", "models", "planner", "tuner", "dashboard",
    }  # fmt: skip
    for needed in (
        "hwprobe/gpus.toml",
        "hwprobe/servers.toml",
        "models/configs/deepseek-r1.json",
        "models/profiles/hopper/sglang-0.5.12.json",
        "models/founding_case.toml",
        "planner/launch_files/templates/launch.sh.j2",
        "planner/launch_files/templates/kubernetes.yaml.j2",
        "planner/sglang/flags.json",
        "tuner/worlds/default.toml",
        "dashboard/streamlit_app.py",
        "dashboard/app_pages/plan.py",
        "dashboard/icon.png",
    ):
        assert needed in names
    # A fresh environment that sees this one's libraries, but the wheel's packages instead of the checkout's.
    home = tmp_path / "env"
    venv.create(home, with_pip=False, symlinks=True)
    site = next((home / "lib").glob("python*")) / "site-packages"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site), str(wheel)],
        check=True,
        capture_output=True,
    )
    libraries = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "libraries.pth").write_text(libraries + "\n", encoding="utf-8")
    command = [
        str(home / "bin" / "python"),
        "-P",
        "-c",
        "import tuner, tuner.cli.main as m; print(tuner.__file__); m.main()",
    ]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert str(site) in done.stdout
    assert "plan" in done.stdout


def modules_after(*arguments: str) -> set[str]:
    """Return the top-level modules loaded after running a command in a fresh process."""
    code = (
        "import sys, contextlib, io\n"
        "from tuner.cli.main import main\n"
        f"sys.argv = ['sgtune', *{list(arguments)!r}]\n"
        "try:\n"
        "    with contextlib.redirect_stdout(io.StringIO()): main()\n"
        "except SystemExit: pass\n"
        "print('\\n'.join(sorted({name.split('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_plan_is_light() -> None:
    loaded = modules_after(
        "plan", "--hardware", "h200x8", "--isl", "100", "--osl", "100", "--concurrency", "4", "--json"
    )  # fmt: skip
    assert "planner" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_help_does_not_even_load_numpy() -> None:
    loaded = modules_after("--help")
    assert "typer" in loaded
    assert loaded.isdisjoint({*HEAVY, "numpy", "planner", "models"})
