"""Speculative decoding."""

from __future__ import annotations

from planner.rules.core import NEWEST_FAMILY, Question, Rule, RuleOutcome

REFUSED, FAILS, WORSE, CHANGED = RuleOutcome.REFUSED, RuleOutcome.FAILS, RuleOutcome.WORSE, RuleOutcome.CHANGED
NUMBERS = ("speculative_num_steps", "speculative_eagle_topk", "speculative_num_draft_tokens")
TREE_BACKENDS = ("flashinfer", "fa3", "triton")
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
    given = _given(q)
    if not given or q.config.speculative is not None:
        return False
    return not {"speculative_num_steps", "speculative_eagle_topk"} <= set(given)


def _tree_on_pages(q: Question) -> bool:
    spec = q.config.speculative
    topk = spec.eagle_topk if spec else int(q.flag("speculative_eagle_topk") or 1)
    paged = (q.config.page_size or 1) > 1
    return q.algorithm in EAGLE_LIKE and topk > 1 and paged and q.config.attention_backend not in TREE_BACKENDS


RULES: tuple[Rule, ...] = (
    Rule(
        "nextn-is-eagle", CHANGED, lambda q: str(q.flag("speculative_algorithm") or "").upper() == "NEXTN",
        "NEXTN is another name of EAGLE with the model's own draft layer", "nothing to do",
        "speculative_hook.py:109", "2.5/34",
    ),
    Rule(
        "mtp-caps-requests", WORSE,
        lambda q: q.algorithm is not None and q.asked.max_running_requests is None and q.typed is not None
        and q.config.max_running_requests == 48,
        "speculative decoding caps the running requests at {c.max_running_requests} when none are given, "
        "while graphs stay reserved up to batch {c.cuda_graph_max_bs_decode}",
        "set --max-running-requests (and the graph size) yourself", "speculative_hook.py:1086", "2.5/35", "0.4.5",
    ),
    Rule(
        "draft-path-not-needed", CHANGED,
        lambda q: q.flag("speculative_draft_model_path") is not None and q.algorithm == "EAGLE",
        "the draft layer is read from the model's own checkpoint: --speculative-draft-model-path is not needed",
        "leave it out", "speculative_hook.py:1119", "2.5/36", "0.4.7",
    ),
    Rule(
        "speculative-numbers", REFUSED, _incomplete,
        "the speculative numbers go together: steps, topk and draft tokens are all given or none",
        "add the missing of --speculative-num-steps, --speculative-eagle-topk and --speculative-num-draft-tokens "
        "(3, 1, 4 is SGLang's choice for this model)",
        "speculative_hook.py:1159 (bare assert or TypeError)", "2.5/37", "0.4.5",
    ),
    Rule(
        "draft-tokens-follow-steps", CHANGED,
        lambda q: q.asked.speculative is not None and q.config.speculative is not None
        and q.asked.speculative.num_draft_tokens != q.config.speculative.num_draft_tokens,
        "with topk 1 the draft tokens are steps + 1 = {c.speculative.num_draft_tokens}, "
        "not {a.speculative.num_draft_tokens}",
        "give --speculative-num-draft-tokens {c.speculative.num_draft_tokens}", "speculative_hook.py:1255", "2.5/37",
        "0.5.0",
    ),
    Rule(
        "tree-on-pages", REFUSED, _tree_on_pages,
        "topk above 1 does not run on {c.attention_backend} with page_size {c.page_size}",
        "use --speculative-eagle-topk 1, or fa3, triton or flashinfer", "speculative_hook.py:1271", "2.5/38",
        NEWEST_FAMILY,
    ),
    Rule(
        "tree-without-overlap", WORSE,
        lambda q: q.config.speculative is not None and q.config.speculative.eagle_topk > 1,
        "topk {c.speculative.eagle_topk}: the overlapped speculative worker is made for topk 1",
        "use --speculative-eagle-topk 1", "SGLang's attention_backend guide", "2.5/39", NEWEST_FAMILY,
    ),
    Rule(
        "tree-too-small", FAILS,
        lambda q: q.config.speculative is not None and q.config.speculative.eagle_topk > 1
        and q.config.speculative.num_draft_tokens - 1
        > q.config.speculative.eagle_topk
        + (q.config.speculative.num_steps - 1) * q.config.speculative.eagle_topk**2,
        "a tree of {c.speculative.num_steps} steps with topk {c.speculative.eagle_topk} cannot yield "
        "{c.speculative.num_draft_tokens} draft tokens",
        "lower --speculative-num-draft-tokens", "unchecked by SGLang", "2.8",
    ),
    Rule(
        "mixed-chunk-speculation", REFUSED,
        lambda q: q.config.enable_mixed_chunk and q.algorithm == "FROZEN_KV_MTP",
        "--enable-mixed-chunk does not go with {q.algorithm}", "leave --enable-mixed-chunk out",
        "validation_hook.py:231", "2.5/40", NEWEST_FAMILY,
    ),
    Rule(
        "ngram-on-pages", REFUSED,
        lambda q: q.algorithm == "NGRAM" and (q.config.page_size or 1) > 1
        and int(q.flag("speculative_ngram_max_bfs_breadth", 10)) > 1 and q.config.attention_backend != "flashinfer",
        "NGRAM speculation does not run on {c.attention_backend} with page_size {c.page_size}",
        "use --attention-backend flashinfer or triton with --page-size 1", "speculative_hook.py:1355", "2.5/41",
        "0.5.3",
    ),
    Rule(
        "draft-model-missing", REFUSED,
        lambda q: q.algorithm in ("DFLASH", "DSPARK") and q.flag("speculative_draft_model_path") is None,
        "{q.algorithm} needs --speculative-draft-model-path", "name the draft model", "speculative_hook.py:330",
        "2.5/36", NEWEST_FAMILY,
    ),
    Rule(
        "flex-attention-speculation", REFUSED,
        lambda q: q.config.attention_backend == "flex_attention" and q.algorithm is not None,
        "flex_attention has no speculative decoding", "use another attention backend", "attention_hook.py:165",
        "2.4/33", "0.5.3",
    ),
    Rule(
        "rejection-sampling", REFUSED,
        lambda q: bool(q.flag("speculative_use_rejection_sampling"))
        and (q.algorithm not in (None, "EAGLE", "EAGLE3")
             or (q.config.speculative is not None and q.config.speculative.eagle_topk != 1)
             or (q.algorithm is not None and (float(q.flag("speculative_accept_threshold_single", 1.0)) != 1.0
                 or float(q.flag("speculative_accept_threshold_acc", 1.0)) != 1.0))),
        "--speculative-use-rejection-sampling needs EAGLE, topk 1 and acceptance thresholds of 1.0",
        "leave one of them out", "speculative_hook.py:1200", "2.5/39", NEWEST_FAMILY,
    ),
    Rule(
        "eagle-costs", CHANGED, lambda q: q.algorithm == "EAGLE",
        "in this release EAGLE turns the radix cache, the overlap scheduler and chunked prefill off",
        "weigh it, or use a release from 0.4.5 on", "0.4.3 server_args.py:270", "2.10", "0.4.3", "0.4.4",
    ),
)  # fmt: skip
