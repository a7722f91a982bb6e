"""AutoFormer in timm's registry: names, tags, default configs, and how a named model gets weights.

timm takes the name of the family from this file's name, and `default_cfgs` from this module.
Weights of the listed tags come through `pretrained.py`, never through timm's own downloader, which
cannot cut a subnet out of a supernet and waits for minutes without a network. What timm loads by
itself (`hf-hub:`, `local-dir:`, a state dict in the overlay) is left to timm. In either case
missing weights are an error: no model starts from random ones by accident.

Reading files is imported where it is needed: `import autoformer_zoo` should stay fast.

Source: timm 1.0's registry, timm/models/_registry.py and _builder.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
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
from autoformer_zoo.published import GENERIC, MODELS, SPACES, ModelSpec
from autoformer_zoo.space import HEAD_DIM, SubnetConfig
from autoformer_zoo.weights.sources import NANO_WEIGHTS, SOURCES

if TYPE_CHECKING:
    from autoformer_zoo.weights.checkpoint import Checkpoint, SubnetWeights

# timm adds the models
__all__: list[str] = ["RegisteredAutoFormer", "build_static", "load_adapted"]


def _cfg(spec: ModelSpec, **values: Any) -> dict[str, Any]:
    space = SPACES[spec.space]
    return {
        **spec.data,
        "input_size": (3, space.img_size, space.img_size),
        "fixed_input_size": True,
        "num_classes": space.num_classes,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "paper_ids": "arXiv:2107.00651",
        **values,
    }


def _weights_cfg(spec: ModelSpec, source_name: str | None) -> dict[str, Any]:
    if source_name is None:
        notes = ("trained by this project on CIFAR-10",)
        return _cfg(spec, file=str(NANO_WEIGHTS), license="mit", notes=notes)
    source = SOURCES[source_name]
    return _cfg(
        spec,
        url=source.url,
        license=source.license_text,
        origin_url=source.page,
        paper_ids=source.paper_ids if len(source.paper_ids) > 1 else source.paper_ids[0],
        notes=(source.summary,),
    )


default_cfgs = generate_default_cfgs(
    {
        **{
            f"{name}.{tag}": _weights_cfg(spec, weights.source)
            for name, spec in MODELS.items()
            for tag, weights in spec.weights.items()
        },
        GENERIC: _cfg(MODELS[GENERIC]),
    }
)


class RegisteredAutoFormer(AutoFormer):
    """An AutoFormer as timm's factory makes it: saved as JSON, loaded from any known file."""

    __jit_unused_properties__ = ("_model_args",)  # torch.jit.script would compile it

    # timm keeps a model's keyword arguments in this attribute, sets it after the entry point has
    # returned, and writes it into config.json: the subnet has to be in it, and as a dict.
    @property
    def _model_args(self) -> dict[str, Any]:
        patch_size = list(self.patch_embed.patch_size)
        recorded = self.__dict__.get("_recorded_args", {})
        return {**recorded, "subnet": self.cfg.to_dict(), "patch_size": patch_size}

    @_model_args.setter
    def _model_args(self, values: Mapping[str, Any]) -> None:
        self.__dict__["_recorded_args"] = {k: v for k, v in values.items() if k != "checkpoint"}

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head, see `AutoFormer`; names of other classes are forgotten."""
        super().reset_classifier(num_classes, global_pool)
        _drop_foreign_labels(self)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:  # torch's pair of missing and unexpected keys
        """Load as every module does; official and NNI names are turned into ours first.

        timm's `checkpoint_path` comes here with what it read. A supernet is cut to this network,
        and read as the listed file of the model's name is, else as an official one;
        `autoformer_zoo.create_model` takes a layout for others.

        Raises:
            RuntimeError: a tensor is missing, unexpected or of another shape.
            CheckpointError: the state dict holds a larger network, or is refused.
        """
        state_dict = _in_our_names(state_dict, self)
        qkv = state_dict.get("blocks.0.attn.qkv.weight")
        own_size = 3 * HEAD_DIM * self.cfg.num_heads[0] * self.cfg.embed_dim
        if isinstance(qkv, Tensor) and qkv.numel() > own_size:
            from autoformer_zoo.weights.files import refusal

            reason = "holds a larger network; if it is a supernet, give its file to "
            reason += "autoformer_zoo.create_model(checkpoint_path=), which cuts a subnet out"
            raise refusal("the state dict", reason)
        return super().load_state_dict(state_dict, strict, assign)


def _in_our_names(state_dict: Mapping[str, Any], model: AutoFormer) -> Mapping[str, Any]:
    """Return the model's tensors under our names, cut from a supernet; ours as they are."""
    from autoformer_zoo.weights.layouts import UPSTREAM_NAMES

    if UPSTREAM_NAMES.isdisjoint(state_dict):
        return state_dict
    from autoformer_zoo.weights.checkpoint import open_checkpoint
    from autoformer_zoo.weights.pretrained import assuming_listed

    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}  # type: ignore[assignment]
    name, tag = cfg.get("architecture") or "", cfg.get("tag") or ""
    return assuming_listed(open_checkpoint(state_dict), name, tag).subnet(model.cfg).tensors


def _filter(state_dict: Mapping[str, Any], model: AutoFormer) -> dict[str, Tensor]:
    """Adapt what timm loads by itself: its filter finds the tensors to resample by our names."""
    state_dict = _in_our_names(state_dict.get("model", state_dict), model)
    adapted: dict[str, Tensor] = checkpoint_filter_fn(state_dict, model)
    return adapted


def build_static(weights: SubnetWeights, **kwargs: Any) -> AutoFormer:
    """Make the static network of one subnet's weights, in eval mode.

    It is an `autoformer_subnet` of timm's registry: `timm.models.save_for_hf` can save it.

    Args:
        weights: tensors and architecture of the subnet.
        **kwargs: arguments of `AutoFormer`; sizes that are not given are the weights' own.
    """
    arguments = {**_sizes_of(weights), **kwargs}
    model: AutoFormer = _build(
        GENERIC, weights.subnet, weights, pretrained_cfg_overlay=cfg_of(weights), **arguments
    )
    return model.eval()


def cfg_of(weights: SubnetWeights) -> dict[str, Any]:
    """Return what a file states about its network, as entries of timm's `pretrained_cfg`."""
    from autoformer_zoo.weights.header import notes_to_cfg

    return {
        "input_size": (weights.in_chans, *weights.img_size),
        "num_classes": weights.num_classes,
        **notes_to_cfg(weights.metadata),
    }


def load_adapted(model: AutoFormer, weights: SubnetWeights) -> None:
    """Load weights into a model of other sizes, adapting them as timm does.

    Position and patch embedding are resampled to the model's grid and patch, the input convolution
    is summed or repeated to its channels, and if the number of classes differs the head remains the
    model's own. Everything else must match.

    Raises:
        RuntimeError: a tensor is missing, unexpected or of another shape.
    """
    with torch.autocast("cpu", enabled=False):
        state = _resampled(model, weights)
    if weights.num_classes != model.num_classes:
        for key in ("head.weight", "head.bias"):
            state.pop(key, None)
        state.update({f"head.{key}": value for key, value in model.head.state_dict().items()})
    model.load_state_dict(state)


def _resampled(model: AutoFormer, weights: SubnetWeights) -> dict[str, Tensor]:
    """Return the tensors with the model's grid, patch size and channels."""
    state: dict[str, Tensor] = dict(weights.tensors)
    proj, old_grid = state["patch_embed.proj.weight"], weights.net.grid_size
    if tuple(proj.shape[-2:]) != model.patch_embed.patch_size:
        proj = resample_patch_embed(proj.float(), list(model.patch_embed.patch_size))
    if weights.in_chans != model.in_chans:
        # In float32: it sums, which fp16 rounds.
        proj = adapt_input_conv(model.in_chans, proj.float(), base_chans=weights.in_chans)
    state["patch_embed.proj.weight"] = proj
    if model.patch_embed.grid_size != old_grid:
        state["pos_embed"] = resample_abs_pos_embed(
            state["pos_embed"].float(), model.patch_embed.grid_size, old_grid
        )
    return state


def _create(
    name: str,
    pretrained: bool = False,
    subnet: SubnetConfig | Mapping[str, Any] | None = None,
    checkpoint: Checkpoint | None = None,
    **kwargs: Any,
) -> Any:  # as `_build`
    """Make the model of a registered name, as timm's factory calls it.

    Args:
        name: model without tag.
        pretrained: load the weights of the config's tag.
        subnet: another subnet than the name's.
        checkpoint: load this one instead; `factory.create_model` has opened it. With `pretrained`
            it is adapted as the name's own weights are.
        **kwargs: timm's, and those of `AutoFormer`.
    """
    if subnet is not None and not isinstance(subnet, SubnetConfig):
        subnet = SubnetConfig.from_dict(subnet)
    spec = MODELS[name]
    cfg = resolve_pretrained_cfg(
        name, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay")
    )
    overlay = kwargs.pop("pretrained_cfg_overlay", None) or {}
    if cfg.hf_hub_id and cfg.file == str(NANO_WEIGHTS):
        overlay = {**overlay, "file": None}  # timm ranks a file above the Hub
    chosen = set(kwargs) | ({"img_size"} if "input_size" in overlay else set())
    adaptable = chosen if pretrained else {"img_size"} & chosen
    by_timm = cfg.source in ("hf-hub", "local-dir") or cfg.state_dict or cfg.hf_hub_id
    origin: dict[str, Any] = {}
    if checkpoint is not None:
        from autoformer_zoo.weights.pretrained import assuming_listed

        checkpoint = assuming_listed(checkpoint, name, cfg.tag or "")
        origin = _origin_of(checkpoint)
    elif pretrained and not by_timm:
        from autoformer_zoo.weights.pretrained import find_checkpoint

        tagged = f"{name}.{cfg.tag}" if cfg.tag else name
        # The generic name stands for whatever the file holds.
        wanted = subnet if subnet or name == GENERIC else spec.subnet
        checkpoint = find_checkpoint(tagged, wanted, cfg.url, cfg.file, kwargs.get("cache_dir"))
    if checkpoint is None:
        kwargs.setdefault("patch_size", SPACES[spec.space].patch_size)
        kwargs["pretrained_cfg_overlay"] = overlay
        return _build(name, subnet or spec.subnet, pretrained=pretrained, **kwargs)

    weights = checkpoint.subnet(subnet if subnet or name == GENERIC else spec.subnet)
    if name == GENERIC:
        kwargs = {**_sizes_of(weights), **kwargs}
    named = {
        "img_size": tuple(cfg.input_size[-2:]),  # a list if it comes from JSON
        "patch_size": SPACES[spec.space].patch_size,
        "in_chans": cfg.input_size[0],
        "num_classes": cfg.num_classes,
    }
    sizes = {key: kwargs.setdefault(key, value) for key, value in named.items()}
    _require_same_sizes(checkpoint.source, weights, sizes, adaptable)
    kwargs["pretrained_cfg_overlay"] = {**origin, **cfg_of(weights), **overlay}
    return _build(name, weights.subnet, weights, **kwargs)


def _origin_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Remove URL, license and tag of the name's own weights: a user's file has another origin."""
    nothing = dict.fromkeys(("url", "file", "tag", "origin_url", "license"))
    return {**nothing, "notes": (f"the file {Path(checkpoint.source).name}",)}


def _sizes_of(weights: SubnetWeights) -> dict[str, Any]:
    return {
        "img_size": weights.img_size,
        "patch_size": weights.patch_size,
        "in_chans": weights.in_chans,
        "num_classes": weights.num_classes,
    }


def _require_same_sizes(
    source: str, weights: SubnetWeights, sizes: Mapping[str, Any], adaptable: Collection[str]
) -> None:
    """Refuse weights of other sizes than the model's, except where the caller chose the size.

    A caller who writes num_classes=7 wants a new head; without that argument, a head that does not
    fit would silently be random.
    """
    wrong = {
        key: value
        for key, value in _sizes_of(weights).items()
        if key not in adaptable and value not in (sizes[key], (sizes[key], sizes[key]))
    }
    if wrong:
        wanted = ", ".join(f"{key}={value}" for key, value in wrong.items())
        has = ", ".join(f"{key}={sizes[key]}" for key in wrong)
        raise ValueError(f"{source} is for {wanted}; the model has {has}: pass {wanted}")


def _build(
    name: str,
    subnet: SubnetConfig,
    weights: SubnetWeights | None = None,
    pretrained: bool = False,
    out_indices: Any = 3,
    **kwargs: Any,
) -> Any:  # an AutoFormer, or timm's wrapper with features_only=True
    model = build_model_with_cfg(
        partial(_make, weights=weights),
        name,
        pretrained,
        model_cfg=subnet,
        pretrained_filter_fn=_filter,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **kwargs,
    )
    _drop_foreign_labels(model)
    return model


def _drop_foreign_labels(model: Any) -> None:  # an AutoFormer, or timm's wrapper of features
    """Forget the class names of the weights' config if the head has another number of classes."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    if len(cfg.get("label_names") or ()) != getattr(model, "num_classes", 0):
        cfg.pop("label_names", None)
        cfg.pop("label_descriptions", None)


def _make(
    cfg: SubnetConfig, weights: SubnetWeights | None, device: Any = None, **kwargs: Any
) -> AutoFormer:
    if weights is None:
        return RegisteredAutoFormer(cfg, device=device, **kwargs)
    # Initial values would be overwritten, and take half of the time to build a model.
    model = RegisteredAutoFormer(cfg, device="meta", **kwargs)
    model.to_empty(device=device if device is not None else torch.get_default_device())
    if isinstance(model.head, nn.Linear):  # the one part that the file may not have
        nn.init.trunc_normal_(model.head.weight, std=0.02)
        nn.init.zeros_(model.head.bias)
    load_adapted(model, weights)
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
