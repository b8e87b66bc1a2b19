"""How many tokens a speculative step yields where that is unmeasured, and how well it is known."""

from __future__ import annotations

from dataclasses import dataclass

# Tokens a verify step yields by draft steps, at 1k in and 1k out. Random tokens: 50 runs on five GPUs, derived from
# their streams (data/accept_lengths.json); text: what SGLang's authors and Ant Group print for R1.
RANDOM_YIELD = {1: 1.83, 2: 2.17, 3: 2.48}
TEXT_YIELD = {1: 1.88, 2: 2.4, 3: 2.8}
# Each further draft step adds this share of what the one before it added.
FALLING = 0.75
# Long answers and long prompts repeat themselves more (2.49 against 2.21 at 8k out, 2.30 against 2.18 at 8k in).
LONG_TOKENS, LONG_OUTPUT_GAIN, LONG_INPUT_GAIN = 4096, 1.09, 1.055
# One relative standard deviation of a yield that was not measured.
RANDOM_SPREAD, TEXT_SPREAD = 0.055, 0.10
# Of one that was derived from a run's own stream.
MEASURED_SPREAD = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """Tokens a verify step yields, and one relative standard deviation of that."""

    tokens: float
    spread: float


def expected_acceptance(steps: int, isl: float, osl: float, *, random_tokens: bool) -> Acceptance:
    """Return the prior yield of a chain of `steps` drafts for prompts and answers of these lengths."""
    by_steps = RANDOM_YIELD if random_tokens else TEXT_YIELD
    tokens, gain = by_steps[min(steps, max(by_steps))], by_steps[3] - by_steps[2]
    for _ in range(steps - max(by_steps)):
        gain *= FALLING
        tokens += gain
    if osl >= LONG_TOKENS:
        tokens *= LONG_OUTPUT_GAIN
    elif isl >= LONG_TOKENS:
        tokens *= LONG_INPUT_GAIN
    spread = RANDOM_SPREAD if random_tokens else TEXT_SPREAD
    return Acceptance(tokens=min(tokens, 1.0 + steps), spread=spread)


def chain_acceptance(tokens: float, steps: int) -> float:
    """Return the acceptance a per drafted token for which 1 + a + ... + a^steps is `tokens`."""
    low, high = 0.0, 1.0
    for _ in range(40):  # bisection: the yield rises with a
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**i for i in range(steps + 1)) < tokens else (low, middle)
    return low
