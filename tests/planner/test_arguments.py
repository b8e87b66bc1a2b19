"""Launch arguments are read as the release's own parser reads them, and every fault is named with its fix."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from hwprobe.errors import InputError
from models.config import ServerConfig, Speculative
from planner.check.answer import guessed_version
from planner.sglang.arguments import knows_flags, read_arguments, readable_int
from planner.sglang.dialects import from_values, to_argv
from planner.sglang.flags import first_release_of, flags_of, life_of, listed_releases
from planner.violation import Severity

NEWEST = Version("0.5.23")


def faults(words: str, version: str = "0.5.23") -> dict[str, str]:
    return {
        fault.rule: f"{fault.message} | {fault.fix}" for fault in read_arguments(words.split(), Version(version)).faults
    }


def test_values_by_field_name_whatever_the_spelling() -> None:
    for words in (
        "--tp-size 8",
        "--tp 8",
        "--tensor-parallel-size=8",
        "--tp-size=8",
        "--tensor-par 8",
        "--tp 4 --tp 8",
    ):
        read = read_arguments(words.split(), NEWEST)
        assert read.values == {"tp_size": 8}
        assert read.faults == ()


def test_negative_numbers_are_values_and_lists_take_all_words() -> None:
    words = ["--chunked-prefill-size", "-1", "--cuda-graph-bs-decode", "1", "2", "4", "--trust-remote-code"]
    assert read_arguments(words, NEWEST).values == {
        "chunked_prefill_size": -1, "cuda_graph_bs_decode": [1, 2, 4], "trust_remote_code": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "rule", "said"),
    [
        ("--attn-dp-sise 8", "unknown-flag", "did you mean --attn-dp-size?"),
        ("--tp_size 8", "unknown-flag", "did you mean --tp-size?"),
        ("--cuda-graph-max-bs 64", "ambiguous-flag", "write --cuda-graph-max-bs-decode"),
        ("--pp 2", "ambiguous-flag", "write --pp-size"),
        ("--enable-ep-moe", "flag-of-other-release", "write --ep-size N"),
        ("--torchao-config int8", "flag-of-other-release", "SGLang 0.5.23 has no --torchao-config"),
        ("--kv-cache-dtype fp16", "flag-value", "did you mean bf16?"),
        ("--attention-backend cutlass_mla", "flag-value", "choose one of|did you mean"),
        ("--tp-size eight", "flag-value", "give a whole number"),
        ("--mem-fraction-static 88%", "flag-value", "give a number"),
        ("--context-length 1m", "flag-value", "case-sensitive"),
        ("--port", "flag-value", "lacks its value"),
        ("--trust-remote-code=true", "flag-value", "takes no value"),
        ("stray --tp 8", "unexpected-word", "'stray' belongs to no flag"),
        ("--tp 8 16", "unexpected-word", "'16' belongs to no flag"),
        ("-tp 8", "unknown-flag", "write --tp"),
        ("--enable-dp-attention", "deprecated-flag", "write --attn-dp-size"),
        ("--max-running-requests 99999999999999999999", "number-out-of-range", "sensible size"),
        ("--mem-fraction-static nan", "number-out-of-range", "sensible size"),
    ],
)
def test_faults_name_the_flag_and_the_fix(words: str, rule: str, said: str) -> None:
    found = faults(words)
    assert rule in found
    assert any(part in found[rule] for part in said.split("|"))


def test_all_faults_are_told_not_only_the_first() -> None:
    assert set(faults("--tp-sise 8 --kv-cache-dtype fp16 --pp 2 --port 1 stray")) == {
        "unknown-flag", "flag-value", "ambiguous-flag", "unexpected-word",
    }  # fmt: skip


def test_a_flag_of_a_later_release_names_it() -> None:
    found = faults("--attn-dp-size 8", "0.5.12")
    assert "it came with 0.5.22" in found["flag-of-other-release"]
    assert "--dp-size N --enable-dp-attention" in found["flag-of-other-release"]


@pytest.mark.parametrize(
    ("text", "value"), [("16k", 16_000), ("1M", 10**6), ("4Ki", 4096), ("25.6k", 25_600), ("8192", 8192)]
)
def test_readable_integers(text: str, value: int) -> None:
    assert readable_int(text) == value


def test_decimals_and_wrong_case_are_no_integers() -> None:
    for text in ("1.5Ki", "1m", "1K", "", "k"):
        with pytest.raises(ValueError, match=r".*"):
            readable_int(text)


def test_the_lists_are_those_of_the_wheels() -> None:
    assert listed_releases()[0] == "0.4.3"
    assert listed_releases()[-1] == "0.5.23"
    newest = flags_of(NEWEST)
    assert len({flag.dest for flag in newest.by_name.values()}) > 500
    assert newest.by_name["--attn-dp-size"].type == "int"
    assert "cutlass_mla" not in (newest.by_name["--attention-backend"].choices or ())
    assert life_of("--cuda-graph-max-bs") == ("0.4.3", "0.5.19")
    assert first_release_of("attn_dp_size") == ("--attn-dp-size", "0.5.22", "0.5.23")


def test_a_release_between_two_listed_ones_has_the_older_flags() -> None:
    assert flags_of(Version("0.5.12.post9")).release == "0.5.12.post1"
    assert flags_of(Version("0.5.12.post1")).release == "0.5.12.post1"


configs = st.builds(
    ServerConfig,
    tp_size=st.sampled_from([1, 8, 16]),
    pp_size=st.sampled_from([1, 2]),
    attn_dp_size=st.sampled_from([1, 2, 8]),
    ep_size=st.sampled_from([1, 8]),
    nnodes=st.sampled_from([1, 2]),
    speculative=st.sampled_from([None, Speculative.chain(1), Speculative.chain(3)]),
    mem_fraction_static=st.sampled_from([None, 0.82, 0.9]),
    max_running_requests=st.none() | st.integers(1, 4096),
    chunked_prefill_size=st.none() | st.integers(-1, 65536),
    cuda_graph_max_bs_decode=st.none() | st.integers(1, 512),
    attention_backend=st.sampled_from([None, "fa3", "triton"]),
    kv_cache_dtype=st.sampled_from([None, "auto", "fp8_e4m3"]),
    disable_radix_cache=st.booleans(),
    enable_mixed_chunk=st.booleans(),
    stream_interval=st.sampled_from([None, 1, 10]),
)
extras = st.dictionaries(
    st.sampled_from(["node_rank", "decode_log_interval", "watchdog_timeout"]), st.integers(0, 99), max_size=2
)


@given(configs, extras, st.sampled_from(["0.5.5", "0.5.12", "0.5.14", "0.5.23"]))
def test_what_is_written_is_read_back(config: ServerConfig, extra: dict[str, int], version: str) -> None:
    wanted, release = config.with_flags(**extra), Version(version)
    read = read_arguments(to_argv(wanted, release), release)
    assert [fault for fault in read.faults if fault.severity is Severity.ERROR] == []
    assert from_values(read.values, release) == wanted


def test_an_extra_flag_a_release_lacks_is_named_with_those_that_have_it() -> None:
    config = ServerConfig(tp_size=8).with_flags(enable_two_batch_overlap=True)
    with pytest.raises(InputError, match=r"0\.4\.3.*--enable-two-batch-overlap.*0\.4\.7"):
        to_argv(config, Version("0.4.3"))


def test_old_words_mean_todays_fields() -> None:
    words = "--tp 8 --dp 8 --enable-dp-attention --enable-deepep-moe --cuda-graph-max-bs 64"
    read = read_arguments(words.split(), Version("0.4.6"))
    config = from_values(read.values, Version("0.4.6"))
    assert (config.attn_dp_size, config.ep_size, config.moe_a2a_backend) == (8, 8, "deepep")
    assert config.cuda_graph_max_bs_decode == 64


def test_replicas_are_not_attention_dp() -> None:
    config = from_values(read_arguments(["--tp", "4", "--dp", "2"], NEWEST).values, NEWEST)
    assert config.attn_dp_size == 1
    assert config.flag("dp_size") == 2


@pytest.mark.parametrize(
    "words", ["--tp 8", "--tp-siz 8", "--no-such x", "--enable-ep-moe", "--tp=8 --cuda-graph-max 4"]
)
def test_a_release_knows_the_flags_that_it_does_not_complain_of(words: str) -> None:
    strange = {"unknown-flag", "flag-of-other-release", "ambiguous-flag"}
    for release in listed_releases():
        told = faults(words, release)
        assert knows_flags(words.split(), Version(release)) == (not strange & set(told))


def test_a_hundred_misspelt_flags_are_answered_in_a_second() -> None:
    words = tuple(f"--no-such-flag-{number}" for number in range(100))
    began = time.process_time()
    assert guessed_version(words, NEWEST) is None
    assert time.process_time() - began < 3.0


def test_flags_that_053_retired_stop_it() -> None:
    assert faults("--enable-ep-moe", "0.5.3").keys() == {"removed-flag"}
    assert "--moe-a2a-backend deepep" in faults("--enable-deepep-moe", "0.5.3")["removed-flag"]
    assert faults("--enable-ep-moe", "0.4.9.post6") == {}
