"""What is read is bounded, what is written keeps what is there, and locks follow no link."""

from __future__ import annotations

import os
import re
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hwprobe.errors import InputError, SgtuneError
from hwprobe.files import append_line, read_bytes, write_atomic
from hwprobe.holds import Held, Hold, own_folder, remove_abandoned, scratch_folder
from hwprobe.parsing import load_json, load_toml, load_yaml
from hwprobe.plain_text import as_markdown, clean, one_line

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)
YAML_BOMBS = {
    "aliases": LAUGHS, "flow depth": "[" * 100_000, "block depth": "- " * 100_000 + "a", "flat": "- a\n" * 60_000,
    "cycle": "&a [*a]", "digits": "a: " + "9" * 5000, "date": "a: 2001-99-99", "tag": "!!int ''", "bool": "!!bool x",
    "key": "? [a]\n: b", "python": "!!python/object/apply:os.system [touch canary]", "nul": "a: \0",
}  # fmt: skip
TOML_BOMBS = {
    "depth": b"a=" + b"[" * 50_000, "dotted": b"a." * 100_000 + b"b=1", "digits": b"a=" + b"9" * 5000,
    "bytes": b"\xff\xfe", "headers": b"[" + b"a." * 100_000 + b"b]",
}  # fmt: skip


@pytest.mark.parametrize("name", YAML_BOMBS)
def test_a_yaml_bomb_is_an_input_error_in_a_moment(name: str) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match="f"):
        load_yaml(YAML_BOMBS[name], "f")
    assert time.monotonic() - began < 5.0


@pytest.mark.parametrize("name", TOML_BOMBS)
def test_a_toml_bomb_is_an_input_error_in_a_moment(name: str) -> None:
    with pytest.raises(InputError, match="f"):
        load_toml(TOML_BOMBS[name], "f")


@pytest.mark.parametrize("text", ["[" * 1_000_000, "9" * 1_000_000, '{"a":1}{"a":1}', "[" * 100 + "]" * 100])
def test_a_json_bomb_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError, match="f"):
        load_json(text, "f")


def test_aliases_as_people_use_them_are_read() -> None:
    text = "x: &x {a: 1}\ny: {<<: *x, b: 2}\nz: [*x, *x]\n"
    assert load_yaml(text, "f") == [{"x": {"a": 1}, "y": {"a": 1, "b": 2}, "z": [{"a": 1}, {"a": 1}]}]


def special(folder: Path) -> dict[str, Path]:
    """Return things that are no file, by kind."""
    paths = {name: folder / name for name in ("fifo", "folder", "loop", "long", "to-fifo")}
    os.mkfifo(paths["fifo"])
    paths["folder"].mkdir()
    paths["loop"].symlink_to(paths["loop"])
    paths["to-fifo"].symlink_to(paths["fifo"])
    return {**paths, "long": folder / ("n" * 300), "zero": Path("/dev/zero"), "nul": folder / "a\0b"}


@pytest.mark.parametrize("kind", ["fifo", "folder", "loop", "long", "to-fifo", "zero", "nul"])
def test_what_is_no_file_is_neither_read_nor_written_and_nobody_waits(tmp_path: Path, kind: str) -> None:
    path = special(tmp_path)[kind]
    with pytest.raises(InputError):
        read_bytes(path, "thing")
    with pytest.raises(InputError):
        write_atomic(path, "text")
    with pytest.raises(InputError):
        append_line(path, "text\n")
    if kind == "fifo":
        assert stat.S_ISFIFO(path.lstat().st_mode), "it was not replaced"


def test_devices_stay_devices(tmp_path: Path) -> None:
    write_atomic(Path(os.devnull), "text")
    link = tmp_path / "null"
    link.symlink_to(os.devnull)
    with pytest.raises(InputError, match="device"):
        write_atomic(link, "text")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


def test_dev_stdout_is_written_through(tmp_path: Path) -> None:
    script = "from pathlib import Path; from hwprobe.files import write_atomic; print('a');\n"
    script += "write_atomic(Path('/dev/stdout'), 'b\\n'); print('c')"
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", script], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "a\nb\nc\n"


def test_a_file_that_is_there_keeps_its_mode_and_its_link(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    write_atomic(link, "new")
    assert link.is_symlink()
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("new", 0o640)
    write_atomic(tmp_path / "own", "x", private=True)
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "own"]


def test_a_full_disk_is_no_input_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old\n")
    before, soft = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, soft[1]))
    try:
        with pytest.raises(SgtuneError, match="make room") as failed:
            write_atomic(file, "x" * 100)
        with pytest.raises(SgtuneError, match="make room"):
            append_line(file, "x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
        signal.signal(signal.SIGXFSZ, before)
    assert not isinstance(failed.value, InputError)
    assert file.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_larger_than_any_of_its_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"x" * 2000)
    assert len(read_bytes(file, "thing", most_bytes=2000)) == 2000
    with pytest.raises(InputError, match="larger than 1 KiB"):
        read_bytes(file, "thing", most_bytes=1024)


def test_a_prepared_link_makes_nobody_write_elsewhere(tmp_path: Path) -> None:
    treasure, lock = tmp_path / "treasure", tmp_path / "lock"
    treasure.write_text("gold")
    lock.symlink_to(treasure)
    with pytest.raises(OSError, match=r"symbolic|links"):
        Hold(lock)
    assert treasure.read_text() == "gold"


def test_the_lock_folder_is_of_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = own_folder("sgtune-test")
    assert (folder.parent, stat.S_IMODE(folder.stat().st_mode)) == (tmp_path, 0o700)
    folder.chmod(0o777)
    with pytest.raises(InputError, match="not a folder of yours alone"):
        own_folder("sgtune-test")
    (tmp_path / "sgtune-link").symlink_to(tmp_path)
    with pytest.raises(InputError, match="not a folder of yours alone"):
        own_folder("sgtune-link")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("hwprobe.holds.tempfile.gettempdir", lambda: str(tmp_path))
    assert own_folder("sgtune-test").name == f"sgtune-test-{os.getuid()}"


def test_one_holder_at_a_time_who_is_named_and_leaves_nothing_when_killed(tmp_path: Path) -> None:
    hold = Hold(tmp_path / "lock", "me")
    with pytest.raises(Held, match="me"):
        Hold(tmp_path / "lock")
    hold.release()
    pid = os.fork()
    if not pid:
        Hold(tmp_path / "lock", "child")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    Hold(tmp_path / "lock").release()


def test_what_a_killed_process_left_in_the_temporary_folder_goes_with_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pid = os.fork()
    if not pid:
        with scratch_folder("test") as folder:
            (folder / "file").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    with scratch_folder("living") as living:
        left = [path for path in tmp_path.iterdir() if path != living]
        assert left == []
        assert remove_abandoned() == []
        assert living.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_cross_check_leaves_what_the_next_start_removes(tmp_path: Path) -> None:
    theirs = tmp_path / "python"
    theirs.write_text("#!/bin/sh\nkill -9 $PPID\n")
    theirs.chmod(0o755)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    code = (
        "from types import SimpleNamespace as N\n"
        "from tuner.bench.cross_check import TheirLoad, run_theirs\n"
        "workload = N(concurrency=1, isl=N(range_ratio=1.0))\n"
        "point = N(workload=workload, settings=N(request_rate=None), window=N(requests=1))\n"
        f"run_theirs({str(theirs)!r}, 'http://127.0.0.1:1', TheirLoad(point=point, isl=1, osl=1, model='', seed=0))\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(scratch)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name.rpartition("-")[0] for path in scratch.iterdir()] == ["sgtune-scratch-cross"]
    again = "from hwprobe.holds import remove_abandoned; print(len(remove_abandoned()))"
    subprocess.run([sys.executable, "-c", again], env=os.environ | {"TMPDIR": str(scratch)}, check=True)
    assert list(scratch.iterdir()) == []


def test_temporary_files_come_from_one_place_that_cleans_up() -> None:
    root = Path(__file__).parents[2]
    makers = re.compile(r"\b(TemporaryDirectory|NamedTemporaryFile|TemporaryFile|mkdtemp|mkstemp)\(")
    found = [
        path.relative_to(root).as_posix()
        for package in ("hwprobe", "models", "planner", "tuner", "dashboard")
        for path in (root / package).rglob("*.py")
        if makers.search(path.read_text())
    ]
    assert found == ["hwprobe/holds.py"]


def test_text_acts_on_nothing() -> None:
    text = "a\x1b[31mb\x07\x9bc\u202ed\ud800\r\ne"
    assert clean(text) == "a\ufffd[31mb\ufffd\ufffdc\ufffdd?\ne"
    assert one_line("a\nb\t c") == "a b c"
    assert as_markdown("![x](http://a) `b` $c$") == "!\\[x\\](http://a) \\`b\\` \\$c\\$"
