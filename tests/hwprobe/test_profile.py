"""hardware.json: round trip, and errors that name the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hwprobe.catalogue import hardware_from_catalogue
from hwprobe.errors import InputError
from hwprobe.files import write_atomic
from hwprobe.profile import hardware_hash, load_profile, save_profile


def document(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    path = tmp_path / "hardware.json"
    save_profile(hardware_from_catalogue("h200x8"), path)
    return path, json.loads(path.read_text())


def test_round_trip(tmp_path: Path) -> None:
    path, _ = document(tmp_path)
    assert load_profile(path) == hardware_from_catalogue("h200x8")


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda d: d["gpus"][3].pop("hbm_gb_s"), r"missing field 'hbm_gb_s' \(at gpus\[3\]"),
        (lambda d: d["gpus"][0]["memory_mib"].update(value=-1), r"> 0.*at gpus\[0\].memory_mib.value"),
        (lambda d: d["gpus"][0]["memory_mib"].update(value="much"), r"at gpus\[0\].memory_mib.value"),
        (lambda d: d["gpus"][0]["memory_mib"].update(basis="guess"), "guess"),
        (lambda d: d.update(nodes=0), "at nodes"),
        (lambda d: d.update(gpus=[]), "lists no GPU"),
        (lambda d: d.update(schema_version=99), "newer"),
    ],
)
def test_spoiled_fields_are_named(tmp_path: Path, spoil: Any, complaint: str) -> None:
    path, data = document(tmp_path)
    spoil(data)
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=complaint) as caught:
        load_profile(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b"null"])
def test_what_is_not_a_profile_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hardware.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"hardware\.json"):
        load_profile(path)


def test_missing_file_and_folder() -> None:
    with pytest.raises(InputError, match="No such file"):
        load_profile(Path("/nonexistent/hardware.json"))
    with pytest.raises(InputError, match="is a folder"):
        load_profile(Path("/tmp"))


def test_a_failed_write_leaves_the_old_file_whole_and_no_debris(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_atomic(target, "text")
    with pytest.raises(InputError, match="cannot write"):
        write_atomic(Path("/proc/sgtune/file"), "text")
    assert list(tmp_path.iterdir()) == [target]


def test_fields_that_came_later_change_no_hash_and_unknown_ones_are_passed_over(tmp_path: Path) -> None:
    """Exported files hold the hash of their machine, and a newer profile must be read by an older sgtune."""
    assert hardware_hash(hardware_from_catalogue("h200x8")) == "cddae13a1a7fa08a"
    path, data = document(tmp_path)
    assert data["schema_version"] == 1
    for name in ("p2p_both_gb_s", "all_to_all_gb_s"):
        assert data.pop(name) is None
    for gpu in data["gpus"]:
        del gpu["working"]
        gpu["a_field_of_the_future"] = 1
    path.write_text(json.dumps(data))
    assert load_profile(path) == hardware_from_catalogue("h200x8")
