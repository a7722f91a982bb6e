"""AutoFormer: vision transformers found by one-shot search, ready to run.

Importing the package registers its models with timm. What needs more than the network itself is
imported when it is first used. Without torch and timm there are `OnnxClassifier`, the spaces and
subnets, the counts and `predict_top1`.

Read `space`, `published` (what a model is), `network/` (how it runs), `weights/` (where its numbers
come from), `models/` (timm's registry), `classify/`, `onnx/`, `specialization/`, then `cli/`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from autoformer_zoo.cli.start import IS_COMMAND
from autoformer_zoo.published import SPACES, SUBNETS
from autoformer_zoo.space import SearchSpace, SubnetConfig

if TYPE_CHECKING:
    from autoformer_zoo.classify.attention import attention_maps
    from autoformer_zoo.classify.predict import predict
    from autoformer_zoo.models.factory import create_model, extract_subnet, list_models, save_for_hf
    from autoformer_zoo.network.complexity import count_macs, count_params, official_complexity
    from autoformer_zoo.network.frozen import freeze
    from autoformer_zoo.network.vit import AutoFormer
    from autoformer_zoo.onnx.classifier import OnnxClassifier
    from autoformer_zoo.onnx.export import export_onnx
    from autoformer_zoo.specialization.latency.measure import profile_device
    from autoformer_zoo.specialization.predictor import predict_top1
    from autoformer_zoo.specialization.selection import specialize
    from autoformer_zoo.weights.files import CheckpointError
    from autoformer_zoo.weights.pretrained import load_supernet

__version__ = "0.1.0"

__all__ = [
    "SPACES",
    "SUBNETS",
    "AutoFormer",
    "CheckpointError",
    "OnnxClassifier",
    "SearchSpace",
    "SubnetConfig",
    "attention_maps",
    "count_macs",
    "count_params",
    "create_model",
    "export_onnx",
    "extract_subnet",
    "freeze",
    "list_models",
    "load_supernet",
    "official_complexity",
    "predict",
    "predict_top1",
    "profile_device",
    "save_for_hf",
    "specialize",
]

_LAZY = {
    "AutoFormer": "network.vit",
    "CheckpointError": "weights.files",
    "OnnxClassifier": "onnx.classifier",
    "attention_maps": "classify.attention",
    "count_macs": "network.complexity",
    "count_params": "network.complexity",
    "create_model": "models.factory",
    "export_onnx": "onnx.export",
    "extract_subnet": "models.factory",
    "freeze": "network.frozen",
    "list_models": "models.factory",
    "load_supernet": "weights.pretrained",
    "official_complexity": "network.complexity",
    "predict": "classify.predict",
    "predict_top1": "specialization.predictor",
    "profile_device": "specialization.latency.measure",
    "save_for_hf": "models.factory",
    "specialize": "specialization.selection",
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


if not IS_COMMAND and find_spec("torch") and find_spec("timm"):  # the command imports it itself
    import_module(f"{__name__}.models.factory")  # its import registers the models
