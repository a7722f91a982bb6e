"""How to search, and under which constraints: frozen dataclasses.

The comments of the fields are the texts of `--help`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from training.config import config_dataclass
from training.search.constraints import INFINITE
from training.search.evolution import DEFAULT_EVOLUTION, EvolutionConfig

UpperBound = Annotated[float, Field(ge=0, allow_inf_nan=True)]


@config_dataclass("bounds.")
class Bounds:
    """Ranges that the costs of a subnet have to stay in, ends included; all of them at once.

    Raises:
        ValueError: a bound is not a number or below 0, or a range is empty.
    """

    min_params: NonNegativeFloat = 0  # fewest parameters
    max_params: UpperBound = INFINITE  # most parameters
    min_macs: NonNegativeFloat = 0  # fewest multiply-adds of one image
    max_macs: UpperBound = INFINITE  # most multiply-adds of one image
    min_latency_ms: NonNegativeFloat = 0  # shortest latency of one call, see --latency-table
    max_latency_ms: UpperBound = INFINITE  # longest latency of one call, see --latency-table

    def __post_init__(self) -> None:
        for name in ("params", "macs", "latency_ms"):
            low, high = self.range_of(name)
            if low > high:
                raise ValueError(
                    f"bounds.min_{name} is {low:g} and bounds.max_{name} is {high:g}; expected "
                    "the lower end first"
                )

    def range_of(self, name: str) -> tuple[float, float]:
        """Return both ends of a cost's range: params, macs or latency_ms."""
        return getattr(self, f"min_{name}"), getattr(self, f"max_{name}")

    @property
    def constrain_latency(self) -> bool:
        """Whether latency is constrained at all."""
        return self.range_of("latency_ms") != (0, INFINITE)


@config_dataclass()
class SearchConfig:
    """Everything that decides what a search computes, beside the weights and the images."""

    method: Literal["evolution", "random"] = "evolution"  # how candidates are chosen
    bounds: Bounds = Bounds()
    evolution: EvolutionConfig = DEFAULT_EVOLUTION
    latency_table: str = ""  # file of training.search.costs (empty: measure here if needed)
    latency_device: Literal["cpu", "cuda"] = "cpu"  # device to measure latencies on
    latency_batch_size: PositiveInt = 1  # images per call when latencies are measured
    half: bool = True  # score weights rounded to fp16, as in a published file
    precision: Literal["fp32", "bf16"] = "fp32"  # precision of scoring; bf16 only if it ranks alike


DEFAULT_SEARCH = SearchConfig()


def config_to_dict(config: SearchConfig) -> Any:
    """Return JSON-able values; a bound that excludes nothing is None."""
    values = asdict(config)
    bounds = values["bounds"]
    values["bounds"] = {k: v if v != INFINITE else None for k, v in bounds.items()}
    return values
