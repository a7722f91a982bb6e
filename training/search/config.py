"""How to search, and within which limits: frozen dataclasses."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from training.search.constraints import INFINITE
from training.search.evolution import DEFAULT_EVOLUTION, EvolutionConfig


@dataclass(frozen=True, slots=True)
class Bounds:
    """Ranges of costs that a subnet has to stay in, ends included; several hold together.

    Raises:
        ValueError: a bound is no number or below 0, or a range is empty.
    """

    min_params: float = 0
    max_params: float = INFINITE
    min_macs: float = 0  # of one image
    max_macs: float = INFINITE
    min_latency_ms: float = 0  # of one call, see `SearchConfig.latency_table`
    max_latency_ms: float = INFINITE

    def __post_init__(self) -> None:
        for name in ("params", "macs", "latency_ms"):
            low, high = (getattr(self, f"{end}_{name}") for end in ("min", "max"))
            for end, value in (("min", low), ("max", high)):
                if not value >= 0:  # nan is not, either
                    raise ValueError(f"bounds.{end}_{name} is {value:g}; expected 0 or more")
            if low > high:
                raise ValueError(
                    f"bounds.min_{name} is {low:g} and bounds.max_{name} {high:g}; expected the "
                    "lower end first"
                )

    @property
    def limits_latency(self) -> bool:
        """Whether latency is limited at all."""
        return self.min_latency_ms > 0 or self.max_latency_ms < INFINITE


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """Everything that decides what a search computes, beside the weights and the images."""

    method: Literal["evolution", "random"] = "evolution"
    bounds: Bounds = Bounds()
    evolution: EvolutionConfig = DEFAULT_EVOLUTION
    latency_table: str = (
        ""  # file of training.search.costs; empty: measured here, where it is limited
    )
    latency_device: Literal["cpu", "cuda"] = "cpu"  # where it is measured then
    latency_batch_size: int = 1  # images a call
    half: bool = True  # score what is left after rounding to fp16, as the published file will be
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16 where it ranks alike: that is checked first


DEFAULT_SEARCH = SearchConfig()


def config_to_dict(config: SearchConfig) -> Any:
    """Return JSON-able values; a bound that limits nothing is None."""
    values = asdict(config)
    bounds = values["bounds"]
    values["bounds"] = {k: v if v != INFINITE else None for k, v in bounds.items()}
    return values
