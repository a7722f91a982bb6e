"""Check a file of weights, or a folder for the Hub or the web, and print one table.

    python -m hub.verify tiny.safetensors --sha256 DIGEST
    python -m hub.verify FOLDER
    python -m hub.verify official-tiny.safetensors --data-dir imagenet

The exit code is 1 if a check fails. A check that cannot be made is "skipped", with the reason.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
import tyro
from torch import nn

from autoformer_zoo.cli.command import run_command
from autoformer_zoo.models.factory import create_model
from autoformer_zoo.network.complexity import count_params
from autoformer_zoo.onnx.check import TOLERANCES
from autoformer_zoo.onnx.classifier import OnnxClassifier
from autoformer_zoo.published import MODELS, SPACES, SUBNETS
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.checkpoint import (
    Checkpoint,
    open_checkpoint,
)
from autoformer_zoo.weights.files import is_finite, read_tensors
from autoformer_zoo.weights.header import cfg_to_notes
from autoformer_zoo.weights.hub import SUPERNET
from benchmarks.measure.classifiers import of_model
from benchmarks.measure.evaluation import evaluate, open_dataset
from hub.checksums import SUMS, differences, sha256

PROG = "python -m hub.verify"
GOLDEN = "golden.safetensors"  # "input" (B, channels, height, width) and "logits" (B, classes)
MODEL = "model.safetensors"
TOLERANCE = 1e-4  # of the largest logit: float32 on another processor

# Accuracy of the released tiny supernet, by width and depth, on ImageNet's validation images.
# The subnet of 192 is the published one. Others of the same width and depth scatter by about 0.1
# (OoD-ViT-NAS, NeurIPS 2024; ViT-Bench-101, AAAI 2024).
IDENTITY: tuple[tuple[SubnetConfig, float], ...] = (
    (SUBNETS["autoformer_tiny"], 75.3),
    (SubnetConfig.uniform(14, 216, 4, 3.5), 75.4),
    (SubnetConfig.uniform(14, 240, 4, 3.5), 71.4),
)
IDENTITY_TOLERANCE = 0.5  # points: other subnets, other versions of the image library

Status = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class VerifyConfig:
    """Check a file of weights, or a folder for the Hub or the web.

    Args:
        artefact: a .safetensors or upstream file, or a folder.
        sha256: the digest that the file must have.
        data_dir: a folder of labelled images, one folder a class, to measure accuracy on.
        top1: what the top-1 accuracy must be, in percent; by default it is only reported.
        top1_tolerance: how far it may be off, in points.
        limit: images to stop after.
        batch_size: images at a time.
    """

    artefact: tyro.conf.Positional[Path]
    sha256: str | None = None
    data_dir: Path | None = None
    top1: float | None = None
    top1_tolerance: float = 0.1
    limit: int | None = None
    batch_size: int = 100


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    Args:
        what: was checked.
        status: "ok", "failed" or "skipped".
        detail: figures, or the reason.
    """

    what: str
    status: Status
    detail: str


def verify(config: VerifyConfig) -> list[Check]:
    """Check an artefact.

    Returns:
        One result for each check, in the order in which they were made. What fails because an
        earlier check failed is left out.

    Raises:
        ValueError: there is no such artefact, or an argument does not fit it.
    """
    artefact = config.artefact
    if not artefact.exists():
        raise ValueError(f"{artefact} does not exist; expected a file of weights or a folder")
    if config.sha256 and artefact.is_dir():
        raise ValueError(
            f"--sha256 is of a file, and {artefact} a folder, whose SHA256SUMS is read"
        )
    if config.top1 is not None and config.data_dir is None:
        raise ValueError("--top1 is given without --data-dir, the images to measure it on")
    return list(_folder_checks(config) if artefact.is_dir() else _file_checks(config))


def _file_checks(config: VerifyConfig) -> Iterator[Check]:
    file = config.artefact
    yield _attempt("sha256", _digest, file, config.sha256)
    loaded = _attempt("strict load", lambda: _described(open_checkpoint(file)))
    yield loaded
    if loaded.status == "failed":
        return
    checkpoint = open_checkpoint(file)
    yield _attempt("parameters", _parameters, checkpoint)
    finite = _attempt("finite values", _finite, checkpoint)
    yield finite
    if finite.status == "failed":
        return
    if checkpoint.is_supernet:
        yield from _identity_checks(checkpoint, config)
        return
    model = create_model("autoformer_subnet", checkpoint_path=checkpoint).eval()
    yield _attempt("golden output", _golden, model, file.with_name(f"{file.stem}.{GOLDEN}"))
    yield _attempt("accuracy", _accuracy, model, config)


def _folder_checks(config: VerifyConfig) -> Iterator[Check]:
    folder = config.artefact
    yield _attempt("sha256", _recorded, folder)
    onnx_files = sorted(folder.glob("onnx/*.onnx"))
    if not (folder / MODEL).is_file() and not onnx_files:
        yield Check("strict load", "failed", f"holds neither {MODEL} nor onnx/*.onnx")
    for path in onnx_files:
        yield _attempt(f"golden output, {path.name}", _onnx_golden, path, folder / GOLDEN)
    for name in (MODEL, SUPERNET):
        if not (folder / name).is_file():
            continue
        loaded = _attempt(f"strict load, {name}", _load_part, folder, name)
        yield loaded
        if loaded.status == "failed":
            continue
        checkpoint = open_checkpoint(folder / name)
        yield _attempt(f"parameters, {name}", _parameters, checkpoint)
        yield _attempt(f"finite values, {name}", _finite, checkpoint)
        if name == MODEL:
            model = _of_folder(folder)
            yield _attempt("golden output", _golden, model, folder / GOLDEN)
            yield _attempt("accuracy", _accuracy, model, config)
        else:
            yield from _identity_checks(checkpoint, config)


def _attempt(what: str, check: Callable[..., str | Check], *arguments: Any) -> Check:
    """Make one check; what it raises is why it failed."""
    try:
        found = check(*arguments)
    except Exception as error:  # a damaged artefact may break anything
        return Check(what, "failed", " ".join(str(error).split()) or type(error).__name__)
    return replace(found, what=what) if isinstance(found, Check) else Check(what, "ok", found)


def _skipped(reason: str) -> Check:
    return Check("", "skipped", reason)


def _digest(file: Path, expected: str | None) -> str | Check:
    found = sha256(file)
    if expected is None:
        return _skipped(f"{found}; no digest was given to compare with")
    if not expected or not found.startswith(expected.lower()):
        raise ValueError(f"is {found}; expected {expected}")
    return found


def _recorded(folder: Path) -> str | Check:
    if not (folder / SUMS).is_file():
        return _skipped(f"the folder has no {SUMS}")
    if lines := differences(folder):
        raise ValueError("; ".join(lines[:3]) + (f" and {len(lines) - 3} more" * (len(lines) > 3)))
    return "every file as recorded"


def _described(checkpoint: Checkpoint) -> str:
    net = checkpoint.architecture
    return (
        f"{checkpoint.kind or 'state dict'}, {net.sizes.depth} blocks of {net.sizes.embed_dim}, "
        f"{net.img_size[0]} x {net.img_size[1]} px, {net.num_classes} classes"
    )


def _load_part(folder: Path, name: str) -> str:
    checkpoint = open_checkpoint(folder / name)
    if name == MODEL:
        _of_folder(folder)  # raises if config.json describes another network
    elif not checkpoint.is_supernet:
        raise ValueError("holds a subnet, not a supernet")
    return _described(checkpoint)


def _of_folder(folder: Path) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def _parameters(checkpoint: Checkpoint) -> str:
    net = checkpoint.architecture
    formula = count_params(net.sizes, net.img_size, net.patch_size, net.num_classes, net.in_chans)
    found = sum(tensor.numel() for tensor in checkpoint.upstream.values())
    if found != formula:
        raise ValueError(f"the file has {found:,}; the formula gives {formula:,}")
    return f"{found:,}, as the formula gives"


def _finite(checkpoint: Checkpoint) -> str:
    bad = [name for name, tensor in checkpoint.upstream.items() if not is_finite(tensor)]
    if bad:
        raise ValueError(f"{len(bad)} tensors hold NaN or infinity, {bad[0]} first")
    return f"{len(checkpoint.upstream)} tensors"


def _golden(model: nn.Module, file: Path) -> str | Check:
    golden = _read_golden(file)
    if isinstance(golden, Check):
        return golden
    with torch.no_grad():
        found = model(golden["input"])
    return _compared(found.numpy(), golden["logits"].numpy(), TOLERANCE)


def _onnx_golden(path: Path, file: Path) -> str | Check:
    classifier = OnnxClassifier(path)
    golden = _read_golden(file)
    if isinstance(golden, Check):
        return golden
    found = classifier.run(golden["input"].numpy())
    tolerance = TOLERANCES[classifier.metadata.precision]
    return _compared(found, golden["logits"].numpy(), tolerance)


def _read_golden(file: Path) -> dict[str, torch.Tensor] | Check:
    if not file.is_file():
        return _skipped(f"there is no {file.name}")
    golden, _ = read_tensors(file)
    if golden.keys() != {"input", "logits"}:
        raise ValueError(f"{file.name} holds {', '.join(golden)}; expected input and logits")
    return golden


def _compared(found: Any, expected: Any, tolerance: float) -> str:
    if found.shape != expected.shape:
        raise ValueError(f"the output is {found.shape}; expected {expected.shape}")
    largest = max(1.0, float(np.abs(expected).max()))
    difference = float(np.abs(found - expected).max())
    if not difference <= tolerance * largest:
        raise ValueError(
            f"logits differ by {difference:.2g}; at most {tolerance * largest:.2g} is allowed"
        )
    return f"logits differ by at most {difference:.2g}"


def _accuracy(model: nn.Module, config: VerifyConfig) -> str | Check:
    if config.data_dir is None:
        return _skipped("give --data-dir")
    top1, images = _top1(model, config)
    text = f"{top1:.2f} % of {images} images"
    if config.top1 is not None and abs(top1 - config.top1) > config.top1_tolerance:
        raise ValueError(f"{text}; expected {config.top1} within {config.top1_tolerance}")
    return text


def _identity_checks(checkpoint: Checkpoint, config: VerifyConfig) -> Iterator[Check]:
    """Tell the released tiny supernet from any other by what three of its subnets reach."""
    what = "identity, {0.embed_dim} x {0.depth}"
    is_tiny = checkpoint.architecture.sizes == SPACES["tiny"].supernet
    if not is_tiny or checkpoint.bias_rule != "packed_prefix":
        yield Check("identity", "skipped", "known of the official tiny supernet only")
        return
    if config.data_dir is None:
        yield Check("identity", "skipped", "give --data-dir")
        return
    noted = {**cfg_to_notes(MODELS["autoformer_tiny"].data), **checkpoint.metadata}
    opened = replace(checkpoint, metadata=noted)
    for subnet, expected in IDENTITY:
        yield _attempt(what.format(subnet), _identity, opened, subnet, expected, config)


def _identity(
    checkpoint: Checkpoint, subnet: SubnetConfig, expected: float, config: VerifyConfig
) -> str:
    model = create_model("autoformer_subnet", checkpoint_path=checkpoint, subnet=subnet)
    top1, images = _top1(model, config)
    text = f"{top1:.2f} % of {images} images, known is about {expected}"
    if abs(top1 - expected) > IDENTITY_TOLERANCE:
        raise ValueError(f"{text}: another supernet, or another packing of its bias")
    return text


def _top1(model: nn.Module, config: VerifyConfig) -> tuple[float, int]:
    assert config.data_dir is not None
    classifier = of_model("accuracy", model, "cpu", "fp32")
    dataset = open_dataset("", config.data_dir, "validation", classifier.labels)
    counts = evaluate(classifier, dataset, config.batch_size, limit=config.limit)
    return counts.percent(1), counts.images


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit code is 1 if a check fails, otherwise as in `run_command`."""
    return run_command(PROG, VerifyConfig, argv, _run, log_level=logging.ERROR)


def _run(config: VerifyConfig) -> int:
    checks = verify(config)
    width = max(len(check.what) for check in checks)
    for check in checks:
        print(f"{check.what:<{width}}  {check.status:<7}  {check.detail}")
    print(json.dumps([asdict(check) for check in checks]))
    return 1 if any(check.status == "failed" for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
