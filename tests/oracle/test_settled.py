"""What the oracle asks a release after its arguments: pieces of files that cannot be imported, run as they stand."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "oracle"))

from extract import function_of, plain, run
from settled import check_context, check_scheduler

SCHEDULER = """
from kernels import nothing

class Scheduler:
    def __init__(self, server_args):
        self.tree = nothing(server_args)
        assert self.tree.size >= 0
        assert server_args.schedule_conservativeness >= 0, "Invalid schedule_conservativeness"
"""
IN_CONSTRUCTOR = """
class ModelConfig:
    def __init__(self, context_length: Optional[int] = None) -> None:
        derived_context_len = get_context_length(self.hf_text_config)
        if context_length is not None:
            if context_length > derived_context_len:
                if get_bool_env_var("SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN", default="False"):
                    logger.warning("longer")
                else:
                    raise ValueError("greater than the derived context_length")
            else:
                self.context_len = context_length
"""


def written(folder: Path, name: str, text: str) -> Path:
    file = folder / "sglang" / "srt" / name
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return folder


def test_the_scheduler_s_assertions_on_arguments_are_asked_and_no_others(tmp_path: Path) -> None:
    folder = written(tmp_path, "managers/scheduler.py", SCHEDULER)
    check_scheduler(folder, SimpleNamespace(schedule_conservativeness=0.3))
    with pytest.raises(AssertionError, match="Invalid schedule_conservativeness"):
        check_scheduler(folder, SimpleNamespace(schedule_conservativeness=-0.5))


@pytest.mark.parametrize("inside", [IN_CONSTRUCTOR, IN_CONSTRUCTOR.replace("__init__", "_derive_context_length")])
def test_a_context_beyond_the_model_is_refused_by_the_release_s_own_words(tmp_path: Path, inside: str) -> None:
    folder = written(tmp_path, "configs/model_config.py", inside)
    for short in (None, 4096, 163840):
        check_context(folder, SimpleNamespace(context_length=short))
    with pytest.raises(ValueError, match="greater than the derived"):
        check_context(folder, SimpleNamespace(context_length=200000))


def test_a_release_without_the_file_says_nothing(tmp_path: Path) -> None:
    check_scheduler(tmp_path, SimpleNamespace(schedule_conservativeness=-1))
    check_context(tmp_path, SimpleNamespace(context_length=200000))


def test_a_function_runs_without_its_annotations_and_imports(tmp_path: Path) -> None:
    file = tmp_path / "utils.py"
    file.write_text("def asked(args: Unknown) -> Nowhere:\n    from kernels import probe\n    return probe() + args\n")
    function = function_of(file, "asked")
    assert function is not None
    names: dict[str, object] = {"probe": lambda: 1}
    run([plain(function)], file, names)
    assert names["asked"](2) == 3  # type: ignore[operator]
    assert function_of(file, "missing") is None
