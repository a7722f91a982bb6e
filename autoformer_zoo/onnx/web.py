"""A folder for the web: the network as ONNX files under the names that clients look for.

transformers.js (in browsers and in Node) and optimum's `ORTModelForImageClassification` load it as
it is. `model_type` says "vit" because they choose by it what to do with the file; the network in it
is whatever was exported.

Source: the readers of transformers.js 4.3 and of optimum-onnx 0.1.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image
from timm.data import resolve_model_data_config
from torch import nn

from autoformer_zoo.classify.predict import input_size
from autoformer_zoo.onnx.check import OnnxReport
from autoformer_zoo.onnx.classifier import OnnxClassifier
from autoformer_zoo.onnx.export import export_onnx
from autoformer_zoo.onnx.metadata import OLDEST_OPSET, OnnxMetadata, Precision
from autoformer_zoo.weights.whole_files import write_whole

# The second is what transformers.js takes in a browser unless it is told otherwise.
FILES: Mapping[str, Precision] = MappingProxyType(
    {"model.onnx": "fp32", "model_quantized.onnx": "int8-dynamic"}
)


def export_web(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    img_size: int | None = None,
    opset: int = OLDEST_OPSET,
) -> list[OnnxReport]:
    """Write a classifier as a folder that transformers.js and optimum load.

    Args:
        model: an AutoFormer, or another timm classifier with a `pretrained_cfg`; left as it is.
        folder: made if necessary; its files of these names are replaced when all are complete,
            config.json last.
        img_size: input side in pixels; the model's by default.
        opset: version of the ONNX operator set, as in `export_onnx`.

    Returns:
        For each ONNX file what was written, and how near it is to PyTorch.

    Raises:
        ValueError: as `export_onnx`; or images are not prepared in a way that the clients know.
        OSError: a file cannot be written.
    """
    _require_known_preparation(model, img_size)
    out = Path(folder)
    nearest = next(path for path in (out / "onnx", out, *out.parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(f"{nearest} is a file; expected the name of a folder")
    reports = []
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=nearest) as made:
        work = Path(made)
        for name, precision in FILES.items():
            report = export_onnx(
                model, work / name, img_size=img_size, opset=opset, precision=precision
            )
            reports.append(replace(report, path=str(out / "onnx" / name)))
        metadata = OnnxClassifier(work / "model.onnx").metadata
        _write_json(work / "preprocessor_config.json", preprocessor_config(metadata))
        _write_json(work / "config.json", model_config(metadata))
        (out / "onnx").mkdir(parents=True, exist_ok=True)
        for name in FILES:
            os.replace(work / name, out / "onnx" / name)
        for name in ("preprocessor_config.json", "config.json"):
            os.replace(work / name, out / name)
    return reports


def model_config(metadata: OnnxMetadata) -> dict[str, Any]:
    """Return config.json: what the clients need, and the subnet for whoever reads it."""
    labels = metadata.labels or tuple(f"class {i}" for i in range(metadata.num_classes))
    return {
        "model_type": "vit",
        "architectures": ["ViTForImageClassification"],
        "image_size": metadata.input_size[0],
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in reversed(list(enumerate(labels)))},
        "autoformer_zoo": {
            "name": metadata.name,
            "subnet": metadata.subnet,
            "origin": metadata.origin,
            "license": metadata.license,
            "package_version": metadata.package_version,
        },
    }


def preprocessor_config(metadata: OnnxMetadata) -> dict[str, Any]:
    """Return preprocessor_config.json: resize the shorter side, crop the centre, normalise.

    The filter is Lanczos, also where the network was trained with another: it is the only one that
    transformers.js computes with antialiasing, in Node. It reduces images by the bilinear or the
    bicubic one without, which can change the best class.
    """
    height, width = metadata.input_size
    assert metadata.mean is not None
    assert metadata.std is not None
    return {
        # Both clients know this one; transformers.js alone knows ViTImageProcessor's crop.
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": math.floor(height / metadata.crop_pct)},
        "resample": int(Image.Resampling.LANCZOS),
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(metadata.mean),
        "image_std": list(metadata.std),
    }


def _require_known_preparation(model: Any, img_size: int | None) -> None:
    """Refuse before the export what `preprocessor_config` cannot describe."""
    if not getattr(model, "pretrained_cfg", None):
        raise ValueError(
            "images cannot be normalised: the model has no pretrained_cfg; make it with "
            "create_model, or set model.pretrained_cfg"
        )
    config = resolve_model_data_config(model)
    channels = getattr(model, "in_chans", None) or config["input_size"][0]
    if channels != 3:
        raise ValueError(f"the model takes {channels} channels; a folder for the web needs 3, RGB")
    height, width = (img_size, img_size) if img_size else input_size(model)
    if height != width or config["crop_mode"] != "center":
        raise ValueError(
            f"the input is {height} x {width} with crop mode {config['crop_mode']}; a folder for "
            "the web needs a square and center: give another size, or export a file"
        )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
