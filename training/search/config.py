"""How to search, and under which constraints: frozen dataclasses.

The comments of the fields are the texts of `--help`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from pydantic import PositiveInt

from autoformer_zoo.specialization.constraints import INFINITE, Bounds
from autoformer_zoo.specialization.evolution import DEFAULT_EVOLUTION, EvolutionConfig
from training.settings.config import config_dataclass


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
