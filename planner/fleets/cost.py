"""What tokens cost on a deployment: GPU hours shared between input and output by who works on which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hwprobe.errors import InputError
from models.workload import Workload
from planner.plans.candidates import Candidate

SECONDS = 3600.0
MILLION = 1e6
LARGEST_PRICE = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What is paid, in one currency: a GPU for an hour, and an API for a million input and output tokens."""

    gpu_hour: float
    api_input: float | None = None
    api_output: float | None = None

    def checked(self) -> Prices:
        """Raise InputError naming the option whose price is not a positive number; return the prices otherwise."""
        named = {"--cost-per-gpu-hour": self.gpu_hour, "--api-price-input": self.api_input,
                 "--api-price-output": self.api_output}  # fmt: skip
        for option, price in named.items():
            if price is not None and not 0.0 < price <= LARGEST_PRICE:
                raise InputError(f"{option} is {price:g}; it must be positive, and at most {LARGEST_PRICE:,.0f}")
        if (self.api_input is None) != (self.api_output is None):
            raise InputError("--api-price-input and --api-price-output go together: an API bills both")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCost:
    """Cost per million tokens, in the currency of the prices.

    `prefill_share` of the GPU hours is the input's; `ratio` is the whole load's cost over an API's bill for it.
    """

    input_per_million: float
    output_per_million: float
    prefill_share: float
    how: str
    ratio: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the cost as JSON-ready values."""
        return {
            "input_per_million": self.input_per_million,
            "output_per_million": self.output_per_million,
            "prefill_share": self.prefill_share,
            "how": self.how,
            "over_api": self.ratio,
        }

    @property
    def sentence(self) -> str:
        """Say it in words."""
        api = "" if self.ratio is None else f"; the same tokens from the API cost {1.0 / self.ratio:.2f} times as much"
        return (
            f"Cost: {self.input_per_million:.3f} per million input tokens, {self.output_per_million:.3f} per million "
            f"output tokens ({self.how}: {self.prefill_share:.0%} of the GPU hours are the input's){api}."
        )


def token_cost(candidate: Candidate, workload: Workload, prices: Prices) -> TokenCost:
    """Return what a deployment's tokens cost at its predicted rate, all GPUs paid for, whether they work or wait."""
    share, how = _prefill_share(candidate)
    second = candidate.gpus * prices.gpu_hour / SECONDS
    output_s = candidate.output_tok_s
    input_s = output_s * workload.isl.mean / workload.osl.mean
    ratio = None
    if prices.api_input is not None and prices.api_output is not None:
        ratio = second * MILLION / (input_s * prices.api_input + output_s * prices.api_output)
    return TokenCost(
        input_per_million=share * second / input_s * MILLION,
        output_per_million=(1.0 - share) * second / output_s * MILLION,
        prefill_share=share,
        how=how,
        ratio=ratio,
    )


def _prefill_share(candidate: Candidate) -> tuple[float, str]:
    """Return the share of GPU hours that is the input's: of pools their GPUs, of a mixed server its time."""
    if candidate.prefill is not None:
        gpus = candidate.prefill.servers * candidate.prefill.config.gpu_count
        return gpus / candidate.gpus, "split by the GPUs of each role"
    prediction = candidate.prediction
    decode_ms = prediction.step_ms / prediction.accepted_tokens
    share = prediction.stall_ms / (prediction.stall_ms + decode_ms)
    return share, "split by the time of prefill passes and decode steps"
