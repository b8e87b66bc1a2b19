"""Speculative decoding."""

from __future__ import annotations

from models.version import at_least
from planner.rules.core import NEWEST_FAMILY, Question, Rule, RuleOutcome
from planner.sglang.dialects import DRAFT_EXPORT, DRAFT_IN_CHECKPOINT

REFUSED, FAILS, WORSE, CHANGED = RuleOutcome.REFUSED, RuleOutcome.FAILS, RuleOutcome.WORSE, RuleOutcome.CHANGED
NUMBERS = ("speculative_num_steps", "speculative_eagle_topk", "speculative_num_draft_tokens")
TREE_BACKENDS = ("flashinfer", "fa3", "triton")
TREE_BACKENDS_SINCE = (("0.5.13", TREE_BACKENDS), ("0.5.6", ("flashinfer", "fa3")), ("0.5.3", ("flashinfer",)))
MIXED_CHUNK = ("EAGLE", "EAGLE3", "DFLASH", "DSPARK")
EAGLE_LIKE = ("EAGLE", "EAGLE3", "STANDALONE")


def _given(q: Question) -> list[str]:
    """The speculative numbers that were typed while others were not."""
    return [name for name in NUMBERS if q.flag(name) is not None]


def _incomplete(q: Question) -> bool:
    """One or two of the three numbers: steps without topk is a TypeError, topk or drafts alone an assertion.

    Steps and topk 1 are enough: the draft tokens follow from them.
    """
    if q.algorithm not in EAGLE_LIKE or q.flag("speculative_adaptive"):
        return False
    numbers = _given(q)
    if not numbers or q.config.speculative is not None:
        return False
    if "speculative_num_steps" in numbers and not at_least(q.version, "0.5.3"):
        paged = (q.asked.page_size or 1) > 1 and not at_least(q.version, "0.4.9")
        return paged and "speculative_eagle_topk" not in numbers
    return not {"speculative_num_steps", "speculative_eagle_topk"} <= set(numbers)


def _no_topk(q: Question) -> bool:
    """Steps without topk, where no check of the release meets them."""
    steps = q.algorithm in EAGLE_LIKE and q.flag("speculative_num_steps") is not None and q.config.speculative is None
    return steps and q.flag("speculative_eagle_topk") is None and not _incomplete(q)


def _backend(q: Question) -> str | None:
    """The attention backend these checks see: until 0.5.4 the model runner chose its default after them."""
    return (q.config if at_least(q.version, "0.5.5") else q.asked).attention_backend


def _tree_on_pages(q: Question) -> bool:
    spec = q.config.speculative
    topk = spec.eagle_topk if spec else int(q.flag("speculative_eagle_topk") or 1)
    paged = (q.config.page_size or 1) > 1
    able = next((names for since, names in TREE_BACKENDS_SINCE if at_least(q.version, since)), ())
    return q.algorithm in EAGLE_LIKE and topk > 1 and paged and _backend(q) not in able


RULES: tuple[Rule, ...] = (
    Rule(
        id="nextn-is-eagle",
        outcome=CHANGED,
        broken=lambda q: str(q.flag("speculative_algorithm") or "").upper() == "NEXTN",
        sentence="NEXTN is another name of EAGLE with the model's own draft layer",
        fix="nothing to do",
        source="speculative_hook.py:109",
    ),
    Rule(
        id="mtp-caps-requests",
        outcome=WORSE,
        broken=lambda q: (
            q.algorithm is not None
            and q.asked.max_running_requests is None
            and q.typed is not None
            and q.config.max_running_requests == 48
        ),
        sentence="speculative decoding caps the running requests at {c.max_running_requests} when none are given, "
        "while graphs stay reserved up to batch {c.cuda_graph_max_bs_decode}",
        fix="set --max-running-requests (and the graph size) yourself",
        source="speculative_hook.py:1086",
        since="0.4.5",
    ),
    Rule(
        id="mtp-without-layer",
        outcome=FAILS,
        broken=lambda q: (
            q.algorithm == "EAGLE" and not q.arch.has_mtp and q.flag("speculative_draft_model_path") is None
        ),
        sentence="MTP needs the model's draft layer, and {arch.name} holds none (num_nextn_predict_layers 0)",
        fix="leave the --speculative flags out, or name a draft model with --speculative-draft-model-path",
        source="models/deepseek_nextn.py",
    ),
    Rule(
        id="draft-path-not-needed",
        outcome=CHANGED,
        broken=lambda q: q.flag("speculative_draft_model_path") is not None and q.algorithm == "EAGLE",
        sentence=(
            "the draft layer is read from the model's own checkpoint: --speculative-draft-model-path is not needed"
        ),
        fix="leave it out",
        source="speculative_hook.py:1119",
        since="0.4.7",
    ),
    Rule(
        id="eagle3-draft",
        outcome=WORSE,
        broken=lambda q: q.algorithm == "EAGLE3",
        sentence="EAGLE3 wants a draft trained for it; this model's own MTP layer (NextN) goes with EAGLE and was "
        "reported to gain nothing under EAGLE3. What an EAGLE3 draft gains is not modelled: the speed is without it",
        fix="write --speculative-algorithm EAGLE for the model's own draft layer",
        source="sglang issue 5513; speculative/eagle_worker.py",
    ),
    Rule(
        id="speculative-numbers",
        outcome=REFUSED,
        broken=_incomplete,
        sentence="the speculative numbers go together: steps, topk and draft tokens are all given or none",
        fix="add the missing of --speculative-num-steps, --speculative-eagle-topk and --speculative-num-draft-tokens "
        "(3, 1, 4 is SGLang's choice for this model)",
        source="speculative_hook.py:1159 (bare assert or TypeError)",
        since="0.4.5",
    ),
    Rule(
        id="speculative-topk-missing",
        outcome=FAILS,
        broken=_no_topk,
        sentence="this release takes steps without a topk, and its draft worker has none to draft with",
        fix="add --speculative-eagle-topk and --speculative-num-draft-tokens, or leave the steps out",
        source="server_args.py of 0.4.5 to 0.5.2: only the steps are looked at; speculative/eagle_worker.py",
        since="0.4.5",
        before="0.5.3",
    ),
    Rule(
        id="draft-tokens-follow-steps",
        outcome=CHANGED,
        broken=lambda q: (
            q.asked.speculative is not None
            and q.config.speculative is not None
            and q.asked.speculative.num_draft_tokens != q.config.speculative.num_draft_tokens
        ),
        sentence="with topk 1 the draft tokens are steps + 1 = {c.speculative.num_draft_tokens}, "
        "not {a.speculative.num_draft_tokens}",
        fix="give --speculative-num-draft-tokens {c.speculative.num_draft_tokens}",
        source="speculative_hook.py:1255; server_args.py of 0.4.5.post3",
        since="0.4.5.post3",
    ),
    Rule(
        id="tree-on-pages",
        outcome=REFUSED,
        broken=_tree_on_pages,
        sentence="topk above 1 does not run on {c.attention_backend} with page_size {c.page_size}",
        fix="use --speculative-eagle-topk 1, or --attention-backend flashinfer",
        source="speculative_hook.py:1271; server_args.py of 0.5.3 to 0.5.12",
        since="0.5.3",
    ),
    Rule(
        id="tree-without-overlap",
        outcome=WORSE,
        broken=lambda q: q.config.speculative is not None and q.config.speculative.eagle_topk > 1,
        sentence="topk {c.speculative.eagle_topk}: the overlapped speculative worker is made for topk 1",
        fix="use --speculative-eagle-topk 1",
        source="SGLang's attention_backend guide",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="tree-too-small",
        outcome=FAILS,
        broken=lambda q: (
            q.config.speculative is not None
            and q.config.speculative.eagle_topk > 1
            and q.config.speculative.num_draft_tokens - 1
            > q.config.speculative.eagle_topk
            + (q.config.speculative.num_steps - 1) * q.config.speculative.eagle_topk**2
        ),
        sentence="a tree of {c.speculative.num_steps} steps with topk {c.speculative.eagle_topk} cannot yield "
        "{c.speculative.num_draft_tokens} draft tokens",
        fix="lower --speculative-num-draft-tokens",
        source="unchecked by SGLang",
    ),
    Rule(
        id="mixed-chunk-speculation",
        outcome=REFUSED,
        broken=lambda q: q.config.enable_mixed_chunk and q.algorithm == "FROZEN_KV_MTP",
        sentence="--enable-mixed-chunk does not go with {q.algorithm}",
        fix="leave --enable-mixed-chunk out",
        source="validation_hook.py:231",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="ngram-on-pages",
        outcome=REFUSED,
        broken=lambda q: (
            q.algorithm == "NGRAM"
            and (q.config.page_size or 1) > 1
            and int(q.flag("speculative_ngram_max_bfs_breadth", 10)) > 1
            and _backend(q) != "flashinfer"
        ),
        sentence="NGRAM speculation does not run on {c.attention_backend} with page_size {c.page_size}",
        fix="use --attention-backend flashinfer or triton with --page-size 1",
        source="speculative_hook.py:1355",
        since="0.5.3",
    ),
    Rule(
        id="draft-model-missing",
        outcome=REFUSED,
        broken=lambda q: q.algorithm in ("DFLASH", "DSPARK") and q.flag("speculative_draft_model_path") is None,
        sentence="{q.algorithm} needs --speculative-draft-model-path",
        fix="name the draft model",
        source="speculative_hook.py:330",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="flex-attention-speculation",
        outcome=REFUSED,
        broken=lambda q: q.config.attention_backend == "flex_attention" and q.algorithm is not None,
        sentence="flex_attention has no speculative decoding",
        fix="use another attention backend",
        source="attention_hook.py:165",
        since="0.5.3",
    ),
    Rule(
        id="rejection-sampling",
        outcome=REFUSED,
        broken=lambda q: (
            bool(q.flag("speculative_use_rejection_sampling"))
            and (
                q.algorithm not in (None, "EAGLE", "EAGLE3")
                or (q.config.speculative is not None and q.config.speculative.eagle_topk != 1)
                or (
                    q.algorithm is not None
                    and (
                        float(q.flag("speculative_accept_threshold_single", 1.0)) != 1.0
                        or float(q.flag("speculative_accept_threshold_acc", 1.0)) != 1.0
                    )
                )
            )
        ),
        sentence="--speculative-use-rejection-sampling needs EAGLE, topk 1 and acceptance thresholds of 1.0",
        fix="leave one of them out",
        source="speculative_hook.py:1200",
        since=NEWEST_FAMILY,
    ),
    Rule(
        id="eagle-costs",
        outcome=CHANGED,
        broken=lambda q: q.algorithm == "EAGLE",
        sentence="in this release EAGLE turns the radix cache, the overlap scheduler and chunked prefill off",
        fix="weigh it, or use a release from 0.4.3.post3 on, which keep the radix cache and chunked prefill",
        source="0.4.3 server_args.py:270",
        since="0.4.3",
        before="0.4.3.post3",
    ),
    Rule(
        id="eagle-without-overlap",
        outcome=CHANGED,
        broken=lambda q: q.algorithm in ("EAGLE", "EAGLE3"),
        sentence="in this release EAGLE turns the overlap scheduler off",
        fix="nothing to do",
        source="server_args.py of 0.4.3.post3 to 0.4.10",
        since="0.4.3.post3",
        before="0.5.0",
    ),
    Rule(
        id="draft-path-needed",
        outcome=FAILS,
        broken=lambda q: (
            q.asked_line
            and q.algorithm == "EAGLE"
            and q.config.speculative is not None
            and q.flag("speculative_draft_model_path") is None
        ),
        sentence="this release reads the draft layer from an export of its own, which the line does not name",
        fix=f"add --speculative-draft-model-path {DRAFT_EXPORT}",
        source="server_args.py: the model's own path is taken from 0.4.6.post2 on",
        before=DRAFT_IN_CHECKPOINT,
    ),
)
