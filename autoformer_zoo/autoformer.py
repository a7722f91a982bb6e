"""AutoFormer in timm's registry: names, tags, default configs, and how a named model gets weights.

timm takes the name of the family from this file's name, and `default_cfgs` from this module.
Weights of the tags below come through `pretrained.py`, never through timm's own downloader, which
cannot cut a subnet out of a supernet and waits for minutes without a network. What timm loads
itself (`hf-hub:`, `local-dir:`, a state dict in the overlay) stays timm's way. In either case
weights that cannot be had are an error, and no model starts from random ones by accident.

Source: timm 1.0's registry, timm/models/_registry.py and _builder.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import (
    adapt_input_conv,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.published import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD, SPACES, SUBNETS
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.header import notes_to_cfg
from autoformer_zoo.weights.layouts import UPSTREAM_NAMES
from autoformer_zoo.weights.sources import PRETRAINED, SOURCES

if TYPE_CHECKING:
    from autoformer_zoo.weights.checkpoint import SubnetWeights

__all__: list[str] = ["RegisteredAutoFormer", "build_static", "fill"]  # timm adds the models

NANO_WEIGHTS = Path(__file__).parent / "weights" / "nano.safetensors"

MODELS: Mapping[str, SubnetConfig] = MappingProxyType(
    {
        **SUBNETS,
        "autoformer_nano": SUBNETS.get("autoformer_nano", SPACES["nano"].largest),
        "autoformer_subnet": SUBNETS["autoformer_tiny"],
    }
)
"""Names in the registry, and the subnet that each is where no other is asked for."""


PATCH_SIZES: Mapping[str, int] = MappingProxyType({"autoformer_nano": 4})  # all others: 16


def _cfg(**values: Any) -> dict[str, Any]:
    return {
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "num_classes": 1000,
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "paper_ids": "arXiv:2107.00651",
        **values,
    }


def _source_cfg(source_name: str) -> dict[str, Any]:
    source = SOURCES[source_name]
    return _cfg(
        url=source.url,
        license=source.license_text,
        origin_url=source.page,
        paper_ids=source.paper_ids if len(source.paper_ids) > 1 else source.paper_ids[0],
        notes=(f"{source.origin}, {source.kind}, trained on {source.trained_on}",),
    )


default_cfgs = generate_default_cfgs(
    {
        **{name: _source_cfg(source_name) for name, source_name in PRETRAINED.items()},
        "autoformer_nano.cifar10": _cfg(
            file=str(NANO_WEIGHTS),
            input_size=(3, 32, 32),
            num_classes=10,
            crop_pct=1.0,
            mean=CIFAR10_MEAN,
            std=CIFAR10_STD,
            label_names=CIFAR10_CLASSES,
            license="mit",
            notes=("trained by this project on CIFAR-10",),
        ),
        "autoformer_subnet": _cfg(),
    }
)


class RegisteredAutoFormer(AutoFormer):
    """An AutoFormer as timm's factory makes it: saved as JSON, filled from any known file."""

    # timm keeps a model's keyword arguments in this attribute, sets it after the entry point has
    # returned, and writes it into config.json: the subnet has to be there, and as a dict.
    @property
    def _model_args(self) -> dict[str, Any]:
        patch_size = list(self.patch_embed.patch_size)
        recorded = self.__dict__.get("_recorded_args", {})
        return {**recorded, "subnet": self.cfg.to_dict(), "patch_size": patch_size}

    @_model_args.setter
    def _model_args(self, values: Mapping[str, Any]) -> None:
        self.__dict__["_recorded_args"] = dict(values)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:  # torch's pair of missing and unexpected keys
        """Load as every module does; official and NNI names are turned into ours first.

        timm's `checkpoint_path` comes here with what it read. A supernet is cut to this network;
        official is what one without a layout is taken for, `autoformer_zoo.create_model` can tell.
        """
        if not UPSTREAM_NAMES.isdisjoint(state_dict):
            from autoformer_zoo.weights.checkpoint import load_weights

            state_dict = load_weights(state_dict, self.cfg).tensors
        return super().load_state_dict(state_dict, strict, assign)


def build_static(
    weights: SubnetWeights, img_size: int | tuple[int, int] | None = None, **kwargs: Any
) -> AutoFormer:
    """Make the static network of one subnet's weights, in eval mode.

    It is an `autoformer_subnet` of timm's registry: `timm.models.save_for_hf` can save it.

    Args:
        weights: tensors and sizes of the subnet.
        img_size: input side or (height, width) in pixels; the weights' own where None.
        **kwargs: further arguments of `AutoFormer`.
    """
    sizes = {"in_chans": weights.in_chans, "num_classes": weights.num_classes}
    model: AutoFormer = _build(
        "autoformer_subnet",
        weights.subnet,
        weights,
        pretrained_cfg_overlay=cfg_of(weights),
        img_size=weights.img_size if img_size is None else img_size,
        patch_size=weights.patch_size,
        **{**sizes, **kwargs},
    )
    return model.eval()


def cfg_of(weights: SubnetWeights) -> dict[str, Any]:
    """Return what a file says of its network, as entries of timm's `pretrained_cfg`."""
    return {
        "input_size": (weights.in_chans, *weights.img_size),
        "num_classes": weights.num_classes,
        **notes_to_cfg(weights.metadata),
    }


def fill(model: AutoFormer, weights: SubnetWeights) -> None:
    """Load weights into a model, adapting what its arguments ask for, as timm does.

    Position and patch embedding are resampled to the model's grid and patch, the input
    convolution is summed or repeated to its channels, and where the number of classes differs the
    head stays the model's own. All else has to match.

    Raises:
        ValueError: the input convolution cannot be adapted.
        RuntimeError: a tensor is missing, unexpected or of another shape.
    """
    state: dict[str, Tensor] = dict(weights.tensors)
    proj, old_grid = state["patch_embed.proj.weight"], _grid(weights)
    if tuple(proj.shape[-2:]) != model.patch_embed.patch_size:
        proj = resample_patch_embed(proj.float(), list(model.patch_embed.patch_size))
    if weights.in_chans != model.in_chans:
        if weights.in_chans != 3:
            raise ValueError(
                f"weights for {weights.in_chans} channels cannot be adapted to "
                f"in_chans={model.in_chans}; expected {weights.in_chans}"
            )
        proj = adapt_input_conv(model.in_chans, proj.float())  # it sums, which fp16 rounds
    state["patch_embed.proj.weight"] = proj
    if model.patch_embed.grid_size != old_grid:
        state["pos_embed"] = resample_abs_pos_embed(
            state["pos_embed"].float(), model.patch_embed.grid_size, old_grid
        )
    if weights.num_classes != model.num_classes:
        for key in ("head.weight", "head.bias"):
            state.pop(key, None)
        state.update({f"head.{key}": value for key, value in model.head.state_dict().items()})
    model.load_state_dict(state)


def _grid(weights: SubnetWeights) -> tuple[int, int]:
    height, width = weights.patch_size
    return weights.img_size[0] // height, weights.img_size[1] // width


def _create(
    name: str,
    pretrained: bool = False,
    subnet: SubnetConfig | Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:  # as `_build`
    """Make the model of a registered name, as timm's factory calls it."""
    if subnet is None:
        subnet = MODELS[name]
    elif not isinstance(subnet, SubnetConfig):
        subnet = SubnetConfig.from_dict(subnet)
    cfg = resolve_pretrained_cfg(
        name, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay")
    )
    by_timm = cfg.source in ("hf-hub", "local-dir") or cfg.state_dict or cfg.hf_hub_id
    asked = set(kwargs)
    kwargs.setdefault("patch_size", PATCH_SIZES.get(name, 16))
    if not pretrained or by_timm:
        return _build(name, subnet, pretrained=pretrained, **kwargs)

    weights = _weights(name, cfg, subnet, kwargs.get("cache_dir"))
    _require_asked(name, weights, cfg, asked)
    return _build(name, subnet, weights, **kwargs)


def _weights(name: str, cfg: Any, subnet: SubnetConfig, cache_dir: Any) -> SubnetWeights:
    from autoformer_zoo.weights.pretrained import (
        load_named_file,
        load_pretrained_weights,
        source_of,
    )

    name_with_tag = f"{name}.{cfg.tag}" if cfg.tag else name
    source = source_of(name_with_tag, cfg.url)
    file = Path(cfg.file) if cfg.file else None
    if file and file != NANO_WEIGHTS:  # named by the caller, ahead of everything else
        return load_named_file(file, subnet, source)
    return load_pretrained_weights(name_with_tag, subnet, source, file, cache_dir)


def _require_asked(name: str, weights: SubnetWeights, cfg: Any, asked: set[str]) -> None:
    """Refuse weights of other sizes than the name's, unless the caller gave that argument.

    A caller who writes num_classes=7 wants a new head; one who did not would get a random one
    without a word.
    """
    patch_size = PATCH_SIZES.get(name, 16)
    expected = {
        "num_classes": (cfg.num_classes, weights.num_classes),
        "img_size": (tuple(cfg.input_size[-2:]), weights.img_size),
        "patch_size": ((patch_size, patch_size), weights.patch_size),
        "in_chans": (cfg.input_size[0], weights.in_chans),
    }
    for argument, (of_name, of_file) in expected.items():
        if argument not in asked and of_name != of_file:
            raise ValueError(
                f"the weights named for {name} have {argument}={of_file}, the name stands for "
                f"{of_name}: pass {argument}= to say what you want"
            )


def _build(
    name: str,
    subnet: SubnetConfig,
    weights: SubnetWeights | None = None,
    pretrained: bool = False,
    out_indices: Any = 3,
    **kwargs: Any,
) -> Any:  # an AutoFormer, or timm's wrapper with features_only=True
    return build_model_with_cfg(
        partial(_make, weights=weights),
        name,
        pretrained,
        model_cfg=subnet,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **kwargs,
    )


def _make(
    cfg: SubnetConfig, weights: SubnetWeights | None, device: Any = None, **kwargs: Any
) -> AutoFormer:
    if weights is None:
        return RegisteredAutoFormer(cfg, device=device, **kwargs)
    # Initial values would be overwritten: half of the time to build a model goes into them.
    model = RegisteredAutoFormer(cfg, device="meta", **kwargs)
    model.to_empty(device=device if device is not None else torch.get_default_device())
    if isinstance(model.head, nn.Linear):  # the one part that may not come from the file
        nn.init.trunc_normal_(model.head.weight, std=0.02)
        nn.init.zeros_(model.head.bias)
    fill(model, weights)
    return model


def _entry_point(name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        model: nn.Module = _create(name, pretrained, **kwargs)
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = (
        f"Make {name}. `subnet=` (a SubnetConfig or its dict) makes another subnet of its supernet."
    )
    register_model(create)
    return create


for _name in MODELS:
    globals()[_name] = _entry_point(_name)
