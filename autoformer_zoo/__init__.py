"""AutoFormer: vision transformers found by one-shot search, ready to run.

Importing the package registers its models with timm. What needs more than the network itself is
imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from autoformer_zoo.factory import create_model, list_models  # its import registers the models
from autoformer_zoo.published import SPACES, SUBNETS
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.vit import AutoFormer

if TYPE_CHECKING:
    from autoformer_zoo.checkpoint import CheckpointError, load_supernet
    from autoformer_zoo.complexity import count_macs, count_params, official_complexity
    from autoformer_zoo.extract import extract_subnet
    from autoformer_zoo.onnx_export import export_onnx

__version__ = "0.1.0"

__all__ = [
    "SPACES",
    "SUBNETS",
    "AutoFormer",
    "CheckpointError",
    "SearchSpace",
    "SubnetConfig",
    "count_macs",
    "count_params",
    "create_model",
    "export_onnx",
    "extract_subnet",
    "list_models",
    "load_supernet",
    "official_complexity",
]

_LAZY = {
    "CheckpointError": "checkpoint",
    "load_supernet": "checkpoint",
    "count_macs": "complexity",
    "count_params": "complexity",
    "official_complexity": "complexity",
    "extract_subnet": "extract",
    "export_onnx": "onnx_export",
}


def __getattr__(name: str) -> Any:  # the objects of _LAZY
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
