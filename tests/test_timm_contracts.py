"""What timm asks of its own vision transformers, asked of every name that this package registers.

The list is that of timm 1.0.31, tests/test_models.py and tests/test_model_input.py. Structure is
checked on the meta device; numbers at the smallest input, with cheap weights. What takes more than
that runs for the small names, and for the others in the slow tier.
"""

from __future__ import annotations

import copy
import fnmatch
import functools
import inspect
from typing import Any

import pytest
import timm
import torch
from timm.models import FeatureInfo
from timm.models._manipulate import group_parameters
from torch import Tensor, nn

import autoformer_zoo as az
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.published import MODELS
from tests.helpers.small_network import timm_fx

NAMES = timm.list_models(module="autoformer")
SMALL = ("autoformer_nano", "autoformer_tiny")
SMALL_FIRST = [
    name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in NAMES
]
MINI = az.SubnetConfig(depth=2, embed_dim=64, num_heads=(1, 2), mlp_ratio=(2.0, 1.5))


def _real(name: str, **arguments: Any) -> AutoFormer:
    """Make a model with weights of any values, faster than initialising them; 2 x 2 patches."""
    arguments.setdefault("img_size", 8 if name == "autoformer_nano" else 32)
    model = timm.create_model(name, device="meta", **arguments).to_empty(device="cpu")
    noise = _noise()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(noise[: parameter.numel()].view_as(parameter))
    return model


@functools.cache
def _noise() -> Tensor:
    return 0.12 * torch.rand(2_000_000, generator=torch.Generator().manual_seed(0)) - 0.06


def _images(model: nn.Module, batch: int) -> Tensor:
    core = getattr(model, "model", model)  # a feature extractor wraps its network
    size = (core.in_chans, *core.patch_embed.img_size)
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward_reach_every_parameter(name: str) -> None:
    model = _real(name, num_classes=42).train()
    out = model(_images(model, 2))
    assert out.shape == (2, 42)
    assert out.isfinite().all()
    out.mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", SMALL_FIRST)
def test_checkpointing_leaves_the_output_alone(name: str) -> None:
    model = _real(name).eval()
    x = _images(model, 1)
    out = model(x)
    assert out.shape == (1, model.default_cfg["num_classes"])
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(x), out)


@pytest.mark.parametrize("name", timm.list_models(module="autoformer", include_tags=True))
def test_default_cfg_describes_the_model(name: str) -> None:
    model = timm.create_model(name, device="meta")
    cfg, names = model.default_cfg, set(model.state_dict())
    architecture, _, tag = name.partition(".")
    assert model.cfg == MODELS[architecture].subnet
    assert (cfg["architecture"], cfg.get("tag") or "") == (architecture, tag)
    assert model.in_chans == cfg["input_size"][0]
    assert model.patch_embed.img_size == tuple(cfg["input_size"][1:])
    assert model.num_classes == cfg["num_classes"] == model.get_classifier().out_features
    assert cfg["classifier"] + ".weight" in names
    assert cfg["first_conv"] + ".weight" in names
    assert cfg["fixed_input_size"]
    assert "arXiv:2107.00651" in cfg["paper_ids"]
    if architecture == "autoformer_nano":
        assert (cfg["input_size"], cfg["num_classes"], cfg["crop_pct"]) == ((3, 32, 32), 10, 1.0)
        assert cfg["mean"] == (0.4914, 0.4822, 0.4465)
        assert len(cfg["label_names"]) == 10
        assert (cfg["license"], cfg.get("url")) == ("mit", None)
    else:
        assert (cfg["input_size"], cfg["num_classes"]) == ((3, 224, 224), 1000)
        assert (cfg["crop_pct"], cfg["interpolation"]) == (0.875, "bicubic")
        assert cfg["mean"] == (0.485, 0.456, 0.406)
    if tag.endswith("in1k"):
        assert cfg["url"].startswith("https://")
        assert cfg["origin_url"].startswith("https://github.com/")
        stated = "apache-2.0" if name.startswith("prenas") else "unknown: none is stated"
        assert cfg["license"].startswith(stated)


@pytest.mark.parametrize("name", SMALL_FIRST)
def test_shapes_follow_the_head(name: str) -> None:
    model = _real(name).eval()
    x = _images(model, 1)
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert features.shape == (1, 1 + model.patch_embed.num_patches, model.num_features)
    assert pooled.shape == (1, model.head_hidden_size)
    model.reset_classifier(0)
    assert model.num_classes == 0
    torch.testing.assert_close(model(x), pooled)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), features)
    assert _real(name, num_classes=0).eval()(x).shape == pooled.shape
    assert _real(name, num_classes=0, global_pool="").eval()(x).shape == features.shape


@pytest.mark.parametrize("name", SMALL_FIRST)
def test_meta_device_runs_at_the_full_size(name: str) -> None:
    model = timm.create_model(name, device="meta")
    x = torch.empty(3, *model.default_cfg["input_size"], device="meta")
    assert model(x).shape == (3, model.num_classes)


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="not_an_argument"):
        timm.create_model("autoformer_tiny", device="meta", not_an_argument=1)


@pytest.mark.parametrize("name", NAMES)
def test_optimizers_find_their_groups(name: str) -> None:
    model = timm.create_model(name, device="meta")
    groups = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    assert max(groups.values()) == model.cfg.depth + 1
    parameters = [n for n, _ in model.named_parameters()]
    for pattern in model.no_weight_decay():
        assert fnmatch.filter(parameters, pattern), pattern
    default = inspect.signature(model.reset_classifier).parameters["global_pool"].default
    assert default is None


@pytest.mark.parametrize("name", NAMES)
def test_new_head_follows_device_type_and_mode(name: str) -> None:
    model = timm.create_model(name, device="meta").to(torch.float64).eval()
    model.reset_classifier(0)
    model.reset_classifier(2)
    head = model.get_classifier()
    assert {(p.device.type, p.dtype) for p in head.parameters()} == {("meta", torch.float64)}
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_frozen_weights_stay_frozen(name: str) -> None:
    model = timm.create_model(name, device="meta").requires_grad_(False)
    model.reset_classifier(0)
    model.reset_classifier(0, "")
    model.set_input_size(tuple(2 * side for side in model.default_cfg["input_size"][1:]))
    assert [n for n, p in model.named_parameters() if p.requires_grad] == []


@pytest.mark.parametrize("name", NAMES)
def test_factory_device_and_dtype_hold_for_everything(name: str) -> None:
    model = timm.create_model(name, device="meta", dtype=torch.bfloat16)
    tensors = [*model.parameters(), *model.buffers()]
    assert {(t.device.type, t.dtype) for t in tensors} == {("meta", torch.bfloat16)}


@pytest.mark.parametrize("name", SMALL_FIRST)
def test_features_only_returns_maps(name: str) -> None:
    model = _real(name, features_only=True).eval()
    info = model.feature_info
    x = _images(model, 1)
    maps = model(x)
    assert len(maps) == 3
    for channels, reduction, out in zip(info.channels(), info.reduction(), maps, strict=True):
        assert out.shape == (1, channels, *(side // reduction for side in x.shape[2:]))
        assert out.isfinite().all()


@pytest.mark.parametrize("name", SMALL_FIRST)
@pytest.mark.parametrize("indices", [(0, -1), 2], ids=str)
def test_features_only_returns_the_intermediates(name: str, indices: Any) -> None:
    whole, extractor = _real(name), _real(name, features_only=True, out_indices=indices)
    extractor.load_state_dict(
        {f"model.{key}": value for key, value in whole.state_dict().items()}, strict=False
    )
    x = _images(whole, 2)
    expected = whole.eval().forward_intermediates(x, indices, intermediates_only=True)
    torch.testing.assert_close(extractor.eval()(x), expected)


@pytest.mark.parametrize("name", SMALL_FIRST)
def test_forward_intermediates_agrees_with_features(name: str) -> None:
    model = _real(name).eval()
    x = _images(model, 1)
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        torch.testing.assert_close(final, model.forward_features(x))
    for channels, reduction, out in zip(info.channels(), info.reduction(), maps, strict=True):
        assert out.shape == (1, channels, *(side // reduction for side in x.shape[2:]))
    model.set_grad_checkpointing()
    torch.testing.assert_close(model.forward_intermediates(x)[0], final)


@pytest.mark.parametrize("name", SMALL_FIRST)
def test_pruning_keeps_outputs_and_uses_all_parameters(name: str) -> None:
    model = _real(name).eval()
    x, last = _images(model, 2), model.cfg.depth - 1
    with torch.no_grad():
        expected, maps = model(x), model.forward_intermediates(x, intermediates_only=True)
        pruned = copy.deepcopy(model)
        pruned.prune_intermediate_layers([last], prune_head=False)
        torch.testing.assert_close(pruned(x), expected)
    for i in (0, last // 2, last):
        early = model.forward_intermediates(x, [i], stop_early=True, intermediates_only=True)
        torch.testing.assert_close(early[0], maps[i])
        for prune_norm in (False, True):
            pruned = copy.deepcopy(model)
            taken = pruned.prune_intermediate_layers([i], prune_norm=prune_norm)
            out = pruned.forward_intermediates(x, taken, intermediates_only=True)
            torch.testing.assert_close(out[0], maps[i])
            features = pruned.train().forward_features(x)
            (features.sum() + out[0].sum()).backward()
            assert [n for n, p in pruned.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", SMALL_FIRST)
def test_head_width_survives_pruning(name: str) -> None:
    model = _real(name, num_classes=0).eval()
    x = _images(model, 2)
    model.prune_intermediate_layers([model.cfg.depth - 2], prune_norm=True)
    model.reset_classifier(7, "avg")
    features = model.forward_features(x)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert model(x).shape == (2, 7)


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("name", SMALL_FIRST)
def test_fx_trace_agrees_and_trains(name: str, dynamic: bool) -> None:
    model = _real(name, dynamic_img_size=dynamic).eval()
    x = _images(model, 2)
    (out,) = timm_fx(model)(x).values()
    torch.testing.assert_close(out, model(x))
    out.mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_reset_classifier_keeps_the_pooling() -> None:
    model = _real("autoformer_nano", global_pool="max").eval()
    x = _images(model, 2)
    expected = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(5)
    actual = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(actual, expected)
    model.reset_classifier(5, "avg")
    averaged = model.forward_head(model.forward_features(x), pre_logits=True)
    assert not torch.allclose(averaged, expected)


def test_feature_extractor_trains_with_checkpointing() -> None:
    gradients = []
    for enable in (False, True):
        model = _real("autoformer_nano", features_only=True).train()
        model.model.set_grad_checkpointing(enable)
        sum(out.square().mean() for out in model(_images(model, 2))).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(g is not None for g in gradients[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_weights_and_dtype_may_change_after_a_forward_pass() -> None:
    model, other = _real("autoformer_nano").eval(), _real("autoformer_nano").eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
        x = _images(model, 2)
        for _ in range(3):  # what is kept between calls is in use by now
            before = model(x)
        for parameter, new in zip(model.parameters(), other.parameters(), strict=True):
            parameter.copy_(new)
        torch.testing.assert_close(model(x), other(x))
        assert not torch.allclose(before, model(x))
        model.load_state_dict(_real("autoformer_nano").state_dict())
        torch.testing.assert_close(model(x), before)
        assert model.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
        torch.testing.assert_close(model.double()(x.double()).float(), before, rtol=0, atol=0.05)


@pytest.mark.parametrize("num_classes", [5, 0])
def test_embedded_weights_adapt_to_channels_and_classes(num_classes: int) -> None:
    whole = timm.create_model("autoformer_nano", pretrained=True)
    model = timm.create_model(
        "autoformer_nano", pretrained=True, in_chans=1, num_classes=num_classes
    ).eval()
    assert model(_images(model, 2)).shape == (2, num_classes or model.num_features)
    summed = whole.patch_embed.proj.weight.sum(1, keepdim=True)
    torch.testing.assert_close(model.patch_embed.proj.weight, summed, rtol=0, atol=1e-6)
    kept, original = model.blocks.state_dict(), whole.blocks.state_dict()
    assert all(torch.equal(kept[key], original[key]) for key in original)


def _mini(**arguments: Any) -> AutoFormer:
    model = timm.create_model(
        "autoformer_subnet", subnet=MINI.to_dict(), **{"img_size": (32, 48), **arguments}
    )
    return model.eval()


def test_traits_follow_resizing_and_head() -> None:
    model, other = _mini(in_chans=4, num_classes=7), _mini()
    assert timm.models.get_model_traits(model) == {
        "img_size": (32, 48),
        "fixed_input_size": True,
        "first_conv": "patch_embed.proj",
        "in_chans": 4,
        "num_classes": 7,
    }
    model.set_input_size((48, 64))
    model.reset_classifier(5, "token")
    traits = timm.models.get_model_traits(model)
    assert (traits["img_size"], traits["num_classes"]) == ((48, 64), 5)
    arguments = timm.models.get_model_args(model)
    assert (arguments["img_size"], arguments["global_pool"]) == ((48, 64), "token")
    assert timm.models.get_model_traits(other)["img_size"] == (32, 48)
    assert not timm.models.get_model_traits(_mini(dynamic_img_size=True))["fixed_input_size"]
