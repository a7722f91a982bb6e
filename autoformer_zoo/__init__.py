"""AutoFormer: vision transformers found by one-shot search, ready to run.

Importing the package registers its models with timm. What needs more than the network itself is
imported when it is first used. Without torch and timm, `OnnxClassifier` is what there is.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from autoformer_zoo.published import SPACES, SUBNETS
from autoformer_zoo.space import SearchSpace, SubnetConfig

if TYPE_CHECKING:
    from autoformer_zoo.checkpoint import CheckpointError, load_supernet
    from autoformer_zoo.complexity import count_macs, count_params, official_complexity
    from autoformer_zoo.extract import extract_subnet
    from autoformer_zoo.factory import create_model, list_models
    from autoformer_zoo.onnx_classifier import OnnxClassifier
    from autoformer_zoo.onnx_export import export_onnx
    from autoformer_zoo.vit import AutoFormer

__version__ = "0.1.0"

__all__ = [
    "SPACES",
    "SUBNETS",
    "AutoFormer",
    "CheckpointError",
    "OnnxClassifier",
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
    "AutoFormer": "vit",
    "CheckpointError": "checkpoint",
    "OnnxClassifier": "onnx_classifier",
    "load_supernet": "checkpoint",
    "count_macs": "complexity",
    "count_params": "complexity",
    "create_model": "factory",
    "export_onnx": "onnx_export",
    "extract_subnet": "extract",
    "list_models": "factory",
    "official_complexity": "complexity",
}


def __getattr__(name: str) -> Any:  # the objects of _LAZY
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"autoformer_zoo.{name} needs {error.name}, which is not installed: "
            f"pip install {error.name}"
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


if find_spec("torch") and find_spec("timm"):
    import_module(f"{__name__}.factory")  # its import registers the models
