"""How to search, and under which constraints: frozen dataclasses.

The comments of the fields are the texts of `--help`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from training.search.constraints import INFINITE
from training.search.evolution import DEFAULT_EVOLUTION, EvolutionConfig


@dataclass(frozen=True, slots=True)
class Bounds:
    """Ranges that the costs of a subnet have to stay in, ends included; all of them at once.

    Raises:
        ValueError: a bound is not a number or below 0, or a range is empty.
    """

    min_params: float = 0  # fewest parameters
    max_params: float = INFINITE  # most parameters
    min_macs: float = 0  # fewest multiply-adds of one image
    max_macs: float = INFINITE  # most multiply-adds of one image
    min_latency_ms: float = 0  # shortest latency of one call, see --latency-table
    max_latency_ms: float = INFINITE  # longest latency of one call, see --latency-table

    def __post_init__(self) -> None:
        for name in ("params", "macs", "latency_ms"):
            low, high = self.range_of(name)
            for end, value in (("min", low), ("max", high)):
                if not value >= 0:  # also if it is NaN
                    raise ValueError(f"bounds.{end}_{name} is {value:g}; expected 0 or more")
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


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """Everything that decides what a search computes, beside the weights and the images."""

    method: Literal["evolution", "random"] = "evolution"  # how candidates are chosen
    bounds: Bounds = Bounds()
    evolution: EvolutionConfig = DEFAULT_EVOLUTION
    latency_table: str = ""  # file of training.search.costs (empty: measure here if needed)
    latency_device: Literal["cpu", "cuda"] = "cpu"  # device to measure latencies on
    latency_batch_size: int = 1  # images per call when latencies are measured
    half: bool = True  # score weights rounded to fp16, as in a published file
    precision: Literal["fp32", "bf16"] = "fp32"  # precision of scoring; bf16 only if it ranks alike


DEFAULT_SEARCH = SearchConfig()


def config_to_dict(config: SearchConfig) -> Any:
    """Return JSON-able values; a bound that excludes nothing is None."""
    values = asdict(config)
    bounds = values["bounds"]
    values["bounds"] = {k: v if v != INFINITE else None for k, v in bounds.items()}
    return values
