"""Which networks the page shows, and what is known of them: nano's front, or models and files.

Along the front: for budgets of multiply-adds from the smallest subnet to the published one, the
subnet with the highest predicted accuracy; where the space has no predictor, any subnet that uses
the budget.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from autoformer_zoo.cli.inputs import load_model
from autoformer_zoo.models.factory import create_model
from autoformer_zoo.onnx.classifier import OnnxClassifier
from autoformer_zoo.published import MODELS, SPACES
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.specialization.constraints import (
    Bounds,
    Constraint,
    Feasible,
    macs_cost,
    params_cost,
    reachable,
)
from autoformer_zoo.specialization.predictor import FOLDER
from autoformer_zoo.specialization.selection import Choices
from autoformer_zoo.specialization.slices import load_slices

NANO = "autoformer_nano"
ALONG_FRONT = 4
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
FILTERS = ("bicubic", "bilinear")  # that page/prepare.js knows


@dataclass(frozen=True, slots=True)
class ShownTop1:
    """A top-1 accuracy and where it is known from.

    Args:
        percent: of right answers, of the network in fp32.
        kind: who says so.
        low: lower end of the 90 % interval of a predicted one.
        high: upper end.
    """

    percent: float
    kind: Literal["measured", "published", "predicted"]
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ShownNetwork:
    """One network of the page.

    Args:
        name: on the page.
        source: a model to export, or an ONNX file to copy.
        top1: its accuracy; None if it is not known.
    """

    name: str
    source: Any  # nn.Module | Path
    top1: ShownTop1 | None = None


def nano_front() -> list[ShownNetwork]:
    """Return four subnets of nano's supernet, the published one last."""
    spec = MODELS[NANO]
    chosen = [*_below(spec.space, spec.subnet), spec.subnet]
    known = _known_top1(NANO)
    top1s = [*_predicted(spec.space, chosen, known)[:-1], known]
    return [
        _of_subnet(spec.space, subnet, top1) for subnet, top1 in zip(chosen, top1s, strict=True)
    ]


def has_predictor(space: str) -> bool:
    """Return True if the accuracy of a space's subnets can be predicted."""
    return (FOLDER / f"{space}.npz").is_file()


def open_networks(sources: tuple[str, ...]) -> Iterator[ShownNetwork]:
    """Open models of `autoformer-zoo list`, files of weights, and exported ONNX files.

    Raises:
        ValueError: one is unknown or refused, or an ONNX file takes other inputs than the page
            gives.
        CheckpointError: weights are missing or refused.
        FileNotFoundError: there is no such ONNX file.
    """
    for source in sources:
        path = Path(source)
        if path.suffix == ".onnx":
            _require_usable(path)
            yield ShownNetwork(path.stem, path)
        elif path.suffix in WEIGHT_SUFFIXES or path.is_file():
            yield ShownNetwork(path.stem, load_model(path, None, None).eval())
        else:
            model = create_model(source, pretrained=True).eval()
            yield ShownNetwork(source, model, _known_top1(source))


def _below(space_name: str, largest: SubnetConfig) -> list[SubnetConfig]:
    """Return subnets for budgets from the smallest to less than `largest`, evenly spaced."""
    space = SPACES[space_name]
    cost = macs_cost(space)
    low, high = reachable(space, cost)[0], cost.value(largest)
    budgets = [float(budget) for budget in np.linspace(low, high, ALONG_FRONT)[:-1]]
    if has_predictor(space_name):
        choices = Choices.of(space_name)
        return [choices.search(Bounds(max_macs=budget))[0].subnet for budget in budgets]
    step = (high - low) / 100
    return [
        Feasible(space, [Constraint(cost, budget - step, budget)]).sample(random.Random(0))
        for budget in budgets
    ]


def _predicted(
    space: str, subnets: list[SubnetConfig], last: ShownTop1 | None
) -> list[ShownTop1 | None]:
    """Predict accuracies, relative to the known one of the last subnet.

    Predictions are for held-out images, which are easier for the subnet that was chosen on them
    than the test images, of which its accuracy is known.
    """
    if not has_predictor(space):
        return [None] * len(subnets)
    found = Choices.of(space).predictor.intervals(subnets)
    shift = last.percent - found[-1].value if last else 0.0
    return [
        ShownTop1(each.value + shift, "predicted", each.low + shift, each.high + shift)
        for each in found
    ]


def _of_subnet(space_name: str, subnet: SubnetConfig, top1: ShownTop1 | None) -> ShownNetwork:
    space = SPACES[space_name]
    params = int(params_cost(space).value(subnet))
    return ShownNetwork(
        f"{space_name} {params / 1e6:.1f}M",
        create_model(NANO, pretrained=True, subnet=subnet).eval(),
        top1,
    )


def _known_top1(name: str) -> ShownTop1 | None:
    if (found := load_slices().get(name)) is not None:
        return ShownTop1(found.top1_percent, "predicted", found.top1_low, found.top1_high)
    model, _, tag = name.partition(".")
    spec = MODELS.get(model)
    weights = spec and spec.weights.get(tag or next(iter(spec.weights), ""))
    if weights and weights.measured:
        return ShownTop1(weights.measured.top1_percent, "measured")
    if weights and weights.published:
        return ShownTop1(weights.published.top1_percent, "published")
    return None


def _require_usable(path: Path) -> None:
    classifier = OnnxClassifier(path)
    metadata, [given] = classifier.metadata, classifier.session.get_inputs()
    if metadata.preprocess:
        raise ValueError(f"{path} prepares images itself: export it without --preprocess")
    if metadata.interpolation not in FILTERS:
        raise ValueError(
            f"{path} resizes by {metadata.interpolation}; the page knows {' and '.join(FILTERS)}"
        )
    if given.type != "tensor(float)" or given.shape[0] not in (1, "batch"):
        raise ValueError(
            f"{path} takes {given.type} {given.shape}; the page gives one image in float: export "
            "it with this package, without --batch-size"
        )
