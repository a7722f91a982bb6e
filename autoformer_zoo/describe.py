"""What is known of a named model, put together from the package's tables; builds no network.

Architecture from `published.py`, costs from `complexity.py`, tags and data configs from
`autoformer.py`, files from `sources.py`, accuracies from `accuracies.py`.
"""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass
from typing import Any

from timm.models import PretrainedCfg

from autoformer_zoo.accuracies import MEASURED, PUBLISHED, Accuracy
from autoformer_zoo.autoformer import MODELS, default_cfgs
from autoformer_zoo.complexity import count_macs, count_params, official_complexity
from autoformer_zoo.published import SPACES
from autoformer_zoo.sources import PRETRAINED, SOURCES
from autoformer_zoo.space import SubnetConfig


@dataclass(frozen=True, slots=True)
class WeightsInfo:
    """One set of weights of a model.

    Args:
        name: model.tag, as `create_model` takes it.
        source: address of the file, or that it comes with the package.
        page: where its authors describe it; None for the package's own.
        licence: SPDX name, or that it is unknown and why.
        checked: what was verified on the file itself.
        published: accuracy stated by the authors; None where they state none.
        measured: accuracy measured with this package; None where it was not.
    """

    name: str
    source: str
    page: str | None
    licence: str
    checked: str
    published: Accuracy | None
    measured: Accuracy | None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model of the registry.

    Args:
        name: of the model, without a tag.
        subnet: its architecture.
        img_size: input (height, width) in pixels.
        patch_size: patch side in pixels.
        num_classes: outputs of the head.
        params: number of parameters.
        macs: multiply-adds of one picture, see `complexity.count_macs`.
        official_complexity: what the official code counts, for comparison only.
        weights: the sets of weights, the default first.
    """

    name: str
    subnet: SubnetConfig
    img_size: tuple[int, int]
    patch_size: int
    num_classes: int
    params: int
    macs: int
    official_complexity: float
    weights: tuple[WeightsInfo, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "subnet"}
        values["img_size"] = list(self.img_size)
        values["weights"] = [asdict(weights) for weights in self.weights]
        return {"name": self.name, **self.subnet.to_dict(), **values}


def known_models() -> tuple[str, ...]:
    """Return the names of all models, family by family, small ones first."""
    return tuple(MODELS)


def describe(name: str) -> ModelInfo:
    """Gather what is known of a model.

    Args:
        name: one of `known_models`, or one with a tag, which leaves the other weights out.

    Raises:
        ValueError: no such model, or no such tag.
    """
    model, _, tag = name.partition(".")
    if model not in MODELS:
        close = difflib.get_close_matches(model, MODELS, n=3, cutoff=0.4)
        nearest = f"the nearest are {', '.join(close)}" if close else "none is close"
        raise ValueError(f"no model is called {model!r}: {nearest}; `list` has them all")
    cfgs = {tag: cfg for tag, cfg in default_cfgs[model].cfgs.items() if tag}
    if tag and tag not in cfgs:
        raise ValueError(f"{model} has no tag {tag!r}; expected one of {', '.join(cfgs) or 'none'}")
    cfg = default_cfgs[model].default
    space = SPACES.get(model.split("_")[1])  # autoformer_subnet is of none
    subnet, patch_size = MODELS[model], space.patch_size if space else 16
    img_size = (int(cfg.input_size[1]), int(cfg.input_size[2]))
    return ModelInfo(
        name=model,
        subnet=subnet,
        img_size=img_size,
        patch_size=patch_size,
        num_classes=cfg.num_classes,
        params=count_params(subnet, img_size, patch_size, cfg.num_classes),
        macs=count_macs(subnet, img_size, patch_size, cfg.num_classes),
        official_complexity=official_complexity(subnet, img_size, patch_size, cfg.num_classes),
        weights=tuple(
            _weights_info(f"{model}.{key}", cfgs[key]) for key in ([tag] if tag else cfgs)
        ),
    )


def _weights_info(name: str, cfg: PretrainedCfg) -> WeightsInfo:
    source = SOURCES.get(PRETRAINED.get(name, ""))
    return WeightsInfo(
        name=name,
        source=source.url if source else "comes with the package",
        page=source.page if source else None,
        licence=source.licence_text if source else str(cfg.license or "unknown"),
        checked=source.verified if source else "trained and measured by this project",
        published=PUBLISHED.get(name),
        measured=MEASURED.get(name),
    )
