"""The static network's part of timm's model protocol."""

from __future__ import annotations

import pytest
import torch
from timm.models._manipulate import group_parameters
from torch import Tensor, nn

from autoformer_zoo.space import SubnetConfig
from tests.helpers.network_definition import defined_network
from tests.helpers.small_network import CFG, make_images, make_model


@pytest.mark.parametrize("fmt", ["NCHW", "NLC"])
def test_forward_intermediates_returns_what_the_blocks_return(fmt: str) -> None:
    model, x = make_model(), make_images()
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, out: seen.append(out))
    final, intermediates = model.forward_intermediates(x, output_fmt=fmt)
    torch.testing.assert_close(final, model.forward_features(x))
    assert len(intermediates) == 3
    for tokens, out in zip(seen, intermediates, strict=False):
        patches = tokens[:, 1:]
        if fmt == "NCHW":
            patches = patches.reshape(2, 2, 3, 100).permute(0, 3, 1, 2)
        assert torch.equal(out, patches)


def test_forward_intermediates_flags() -> None:
    model, x = make_model(), make_images()
    final, maps = model.forward_intermediates(x)
    chosen = model.forward_intermediates(x, [0, -1], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(chosen, (maps[0], maps[2]), strict=True))
    last_two = model.forward_intermediates(x, 2, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(last_two, maps[1:], strict=True))

    pairs = model.forward_intermediates(
        x, norm=True, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
    )
    assert torch.equal(torch.cat([pairs[-1][1], pairs[-1][0]], 1), final)

    named = model.forward_intermediates(x, [1], output_dict=True, return_prefix_tokens=True)
    assert set(named) == {"image_features", "image_intermediates", "image_intermediates_prefix"}
    assert torch.equal(named["image_features"], final)
    assert torch.equal(named["image_intermediates"][0], maps[1])
    assert named["image_intermediates_prefix"][0].shape == (2, 1, 100)
    with pytest.raises(ValueError, match="output_fmt is 'NHWC'; expected NCHW or NLC"):
        model.forward_intermediates(x, output_fmt="NHWC")
    assert "image_features" not in model.forward_intermediates(
        x, output_dict=True, intermediates_only=True
    )
    model.blocks[2].register_forward_pre_hook(lambda *_: 1 / 0)  # is not reached
    final, [early] = model.forward_intermediates(x, [1], stop_early=True)
    torch.testing.assert_close(final[:, 1:], model.norm(early.flatten(2).transpose(1, 2)))


def test_get_intermediate_layers_is_dinos_interface() -> None:
    model, x = make_model(), make_images()
    _, maps = model.forward_intermediates(x)
    tokens = model.get_intermediate_layers(x, 2)
    assert [t.shape for t in tokens] == [(2, 6, 100)] * 2
    reshaped = model.get_intermediate_layers(x, [0, 2], reshape=True)
    assert all(torch.equal(a, b) for a, b in zip(reshaped, (maps[0], maps[2]), strict=True))
    ((patches, prefix),) = model.get_intermediate_layers(x, norm=True, return_prefix_tokens=True)
    assert torch.equal(torch.cat([prefix, patches], 1), model.forward_features(x))


def test_prune_intermediate_layers_drops_blocks_norm_and_head() -> None:
    model, x = make_model(), make_images()
    assert model.prune_intermediate_layers([0, 1], prune_norm=True) == [0, 1]
    assert len(model.blocks) == 2
    assert model.cfg == SubnetConfig(2, 100, (2, 3), (3.5, 3.005))
    assert isinstance(model.norm, nn.Identity)
    assert isinstance(model.head, nn.Identity)
    assert model(x).shape == (2, 7, 100)


def test_tokens_pooling_and_initial_weights_are_asked_for_as_of_a_vit() -> None:
    model = make_model()
    assert (model.num_prefix_tokens, model.num_reg_tokens, model.has_class_token) == (1, 0, True)
    tokens = model.forward_features(make_images())
    assert torch.equal(model.pool(tokens), tokens[:, 1:].mean(1))
    assert torch.equal(model.pool(tokens, "max"), tokens[:, 1:].amax(1))
    assert model.pool(tokens, "") is tokens
    with pytest.raises(TypeError, match="positional"):
        model.init_weights("jax")  # timm's name of a scheme


def test_set_input_size_resamples_the_position_embedding() -> None:
    model = make_model()
    cls, patches = model.pos_embed[:, :1], model.pos_embed[:, 1:].unflatten(1, (2, 3))
    model.set_input_size((64, 160))
    assert model.patch_embed.grid_size == (4, 10)
    assert torch.equal(model.pos_embed[:, :1], cls)
    expected = nn.functional.interpolate(
        patches.permute(0, 3, 1, 2), (4, 10), mode="bicubic", antialias=True
    )
    torch.testing.assert_close(model.pos_embed[:, 1:], expected.flatten(2).transpose(1, 2))
    x = make_images(size=(64, 160)).double()
    model.double()
    expected = defined_network(x, model.state_dict(), CFG)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-11)
    model.set_input_size((32, 40), patch_size=8)
    assert model.patch_embed.grid_size == (4, 5)
    assert [info["reduction"] for info in model.feature_info] == [8, 8, 8]
    assert model.pos_embed.requires_grad
    assert model.pos_embed.is_leaf


@pytest.mark.parametrize("size", [(48, 80), (16, 16), (32, 48)], ids=str)
def test_dynamic_img_size_equals_set_input_size(size: tuple[int, int]) -> None:
    fixed, dynamic = make_model(), make_model(dynamic_img_size=True)
    fixed.set_input_size(size)
    x = make_images(size=size)
    torch.testing.assert_close(dynamic(x), fixed(x))
    maps = dynamic.forward_intermediates(x, intermediates_only=True)
    assert maps[0].shape == (2, 100, size[0] // 16, size[1] // 16)


def test_dynamic_img_pad_equals_a_padded_image() -> None:
    model = make_model(dynamic_img_size=True, dynamic_img_pad=True)
    x = make_images(size=(40, 50))
    padded = nn.functional.pad(x, (0, 14, 0, 8))
    torch.testing.assert_close(model(x), model(padded))
    assert model.forward_intermediates(x, intermediates_only=True)[0].shape == (2, 100, 3, 4)


def test_group_matcher_orders_all_layers() -> None:
    model = make_model()
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(layers) == {name for name, _ in model.named_parameters()}
    assert {layers[name] for name in ("cls_token", "pos_embed", "patch_embed.proj.bias")} == {0}
    assert [layers[f"blocks.{i}.attn.rel_pos"] for i in range(3)] == [1, 2, 3]
    assert layers["norm.weight"] == 3
    assert layers["head.weight"] == 4
    assert model.no_weight_decay() == {"cls_token", "pos_embed"} | {
        f"blocks.{i}.attn.rel_pos" for i in range(CFG.depth)
    }
