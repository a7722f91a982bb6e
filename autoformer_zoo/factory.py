"""create_model and list_models: timm's, for this package's names, with supernet files and subnets.

Thin on purpose: `timm.create_model` makes the same models once the package is imported. Added
here: files of every known format as `checkpoint_path`, and errors that name what would work.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
from timm.models import parse_model_name
from torch import nn

from autoformer_zoo.autoformer import MODELS, cfg_of, default_cfgs, fill
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.slicing import slice_supernet

if TYPE_CHECKING:  # these cut with this file's functions
    from autoformer_zoo.network.vit import AutoFormer
    from autoformer_zoo.weights.checkpoint import SubnetWeights, SupernetWeights


if TYPE_CHECKING:
    from autoformer_zoo.weights.checkpoint import SubnetWeights

FAMILY = "autoformer"


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    checkpoint_path: str | os.PathLike[str] | None = None,
    subnet: SubnetConfig | Mapping[str, Any] | None = None,
    layout: str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Make a model by name, as `timm.create_model` does.

    Args:
        name: one of `list_models()`, with a tag after a dot if wanted; or timm's "hf-hub:..." and
            "local-dir:...".
        pretrained: load the weights of the name's tag: from `AUTOFORMER_ZOO_WEIGHTS` (a file or
            folder), the cache, or the listed source.
        checkpoint_path: load this file instead: a supernet (official, PreNAS or canonical; the
            model's subnet is cut out of it) or one subnet (NNI's, canonical, or a state dict). All
            has to match. "autoformer_subnet" takes what is not given here from a subnet's file.
        subnet: another subnet than the name's, with weights inherited from the same supernet.
        layout: "packed_prefix" or "packed_interleaved", for supernet files that do not say
            themselves how their q, k and v lie: official ones, and PreNAS'.
        **kwargs: timm's (img_size, num_classes, in_chans, features_only, ...) and those of
            `AutoFormer`.

    Returns:
        The model in training mode, as timm does.

    Raises:
        ValueError: an argument is refused.
        CheckpointError: the weights cannot be had, or the file is refused.
    """
    _require_known(name)
    if checkpoint_path is None:
        if layout is not None:
            raise ValueError(f"layout={layout!r} describes a file: give checkpoint_path= with it")
        made: nn.Module = timm.create_model(name, pretrained, subnet=_as_dict(subnet), **kwargs)
        return made
    if pretrained:
        raise ValueError("pretrained=True and checkpoint_path= both name weights: give one of them")
    if kwargs.get("features_only"):
        raise ValueError(
            "checkpoint_path= loads whole models: leave features_only=True out, or name the file "
            "by AUTOFORMER_ZOO_WEIGHTS with pretrained=True"
        )

    from autoformer_zoo.weights.checkpoint import load_weights

    weights: SubnetWeights | None = None
    overlay = kwargs.get("pretrained_cfg_overlay")
    if name == "autoformer_subnet":
        weights = load_weights(checkpoint_path, _as_subnet(subnet), layout)
        subnet = weights.subnet
        kwargs = {**_sizes(weights), **kwargs}
    model: AutoFormer = timm.create_model(name, subnet=_as_dict(subnet), **kwargs)
    if weights is None:
        weights = load_weights(checkpoint_path, model.cfg, layout)
    _require_same_sizes(model, weights, Path(checkpoint_path), kwargs)
    fill(model, weights)
    # What the file says of itself, unless the caller says something else.
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    cfg.update({**cfg_of(weights), **(overlay or {})})
    return model


def list_models(
    filter: str | Iterable[str] = "",
    pretrained: bool = False,
    **kwargs: Any,
) -> list[str]:
    """List this package's models, as `timm.list_models` does.

    Args:
        filter: wildcards.
        pretrained: only those with weights, with their tags.
        **kwargs: further arguments of `timm.list_models`.
    """
    names: list[str] = timm.list_models(filter, FAMILY, pretrained, **kwargs)
    return names


def _require_known(name: str) -> None:
    source, model_id = parse_model_name(name)
    if source:
        return
    model, _, tag = model_id.partition(".")
    if model not in MODELS:
        close = difflib.get_close_matches(model, MODELS, n=3, cutoff=0.4)
        nearest = f"the nearest are {', '.join(close)}; " if close else ""
        raise ValueError(
            f"no model is called {model!r}: {nearest}autoformer_zoo.list_models() has them all"
        )
    tags = [known for known in default_cfgs[model].tags if known]
    if tag and tag not in tags:
        raise ValueError(f"{model} has no tag {tag!r}; expected one of {', '.join(tags) or 'none'}")


def _require_same_sizes(
    model: AutoFormer, weights: SubnetWeights, path: Path, kwargs: Mapping[str, Any]
) -> None:
    """Hold a file against the model; only an img_size that was asked for may differ."""
    given = {
        "img_size": model.patch_embed.img_size,
        "patch_size": model.patch_embed.patch_size,
        "in_chans": model.in_chans,
        "num_classes": model.num_classes,
    }
    differing = {
        key: value
        for key, value in _sizes(weights).items()
        if value != given[key] and not (key == "img_size" and key in kwargs)
    }
    if differing:
        wanted = ", ".join(f"{key}={value}" for key, value in differing.items())
        has = ", ".join(f"{key}={given[key]}" for key in differing)
        raise ValueError(f"{path} is for {wanted}; the model has {has}: pass {wanted}")


def _sizes(weights: SubnetWeights) -> dict[str, Any]:
    return {
        "img_size": weights.img_size,
        "patch_size": weights.patch_size,
        "in_chans": weights.in_chans,
        "num_classes": weights.num_classes,
    }


def _as_subnet(subnet: SubnetConfig | Mapping[str, Any] | None) -> SubnetConfig | None:
    if subnet is None or isinstance(subnet, SubnetConfig):
        return subnet
    return SubnetConfig.from_dict(subnet)


def _as_dict(subnet: SubnetConfig | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return subnet.to_dict() if isinstance(subnet, SubnetConfig) else subnet


def extract_subnet(
    supernet: SupernetWeights,
    subnet: SubnetConfig,
    img_size: int | tuple[int, int] | None = None,
) -> AutoFormer:
    """Make the static network of a subnet, with the weights that it inherits.

    Args:
        supernet: from `checkpoint.load_supernet`.
        subnet: anything that fits the supernet, whether or not it is of the trained space.
        img_size: input side, or (height, width), in pixels; the supernet's where None. Another
            size resamples the position embedding, see `AutoFormer.set_input_size`.

    Returns:
        The network in eval mode, in float32 on the CPU, with tensors of its own.

    Raises:
        ValueError: the subnet does not fit (the text names the layer, what it needs and what the
            supernet has), or `img_size` is not a multiple of the patch size.
    """
    from autoformer_zoo.weights.checkpoint import SubnetWeights

    weights = SubnetWeights(
        slice_supernet(supernet.tensors, supernet.sizes, subnet, supernet.bias_rule),
        subnet,
        supernet.img_size,
        supernet.patch_size,
        supernet.in_chans,
        supernet.num_classes,
        supernet.metadata,
    )
    return build_subnet(weights, img_size)


def build_subnet(
    weights: SubnetWeights, img_size: int | tuple[int, int] | None = None
) -> AutoFormer:
    """Make the static network of a subnet's own weights.

    Args:
        weights: from `checkpoint.load_subnet` or `checkpoint.load_weights`.
        img_size: as in `extract_subnet`.

    Returns:
        The network as `extract_subnet` returns it.

    Raises:
        ValueError: `img_size` is not a multiple of the patch size.
    """
    from autoformer_zoo.autoformer import build_static  # which makes it timm's, so it can be saved

    size = weights.img_size if img_size is None else img_size
    return build_static(weights, _checked_size(size, weights.patch_size))


def _checked_size(img_size: int | tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if height < 1 or width < 1 or height % patch_size[0] or width % patch_size[1]:
        raise ValueError(
            f"img_size is {img_size!r}; expected positive multiples of the patch size {patch_size}"
        )
    return height, width
