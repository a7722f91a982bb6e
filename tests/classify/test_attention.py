"""attention_maps and the verb `attention`: the weights that the network itself uses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.utils import AttentionExtract
from torch import Tensor, nn

import autoformer_zoo as az
from autoformer_zoo.classify.attention import (
    attention_maps,
    attention_rollout,
    draw_overlay,
    patch_heat,
)
from autoformer_zoo.cli.main import main
from autoformer_zoo.network.relpos import relative_index
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.weights.checkpoint import save_subnet
from autoformer_zoo.weights.header import cfg_to_notes

SUBNET = az.SubnetConfig(3, 96, (2, 1, 3), (2.0, 2.0, 1.5))
GRID = (2, 3)
CAT = Path(__file__).parents[2] / "docs" / "cat.jpg"


@pytest.fixture(scope="module")
def model() -> AutoFormer:
    torch.manual_seed(0)
    model = AutoFormer(SUBNET, (32, 48), 16, num_classes=5).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 32, 48, generator=torch.Generator().manual_seed(1)).double()


def by_definition(model: AutoFormer, x: Tensor, relative: bool) -> list[Tensor]:
    """Softmax of the explicit logits of every block, pair by pair."""
    inputs: list[Tensor] = []
    hooks = [
        b.attn.register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
        for b in model.blocks
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    maps = []
    rows, columns = relative_index(GRID)
    for block, tokens in zip(model.blocks, inputs, strict=True):
        attn: Any = block.attn
        q, k, _ = attn.qkv(tokens).unflatten(-1, (3, attn.num_heads, 64)).permute(2, 0, 3, 1, 4)
        logits = torch.einsum("bhid,bhjd->bhij", q, k)
        if relative:
            table = attn.rel_pos[0][rows] + attn.rel_pos[1][columns]  # (N, N, D)
            logits = logits + torch.einsum("bhid,ijd->bhij", q, table)
        maps.append((logits / 8).softmax(-1).detach())
    return maps


@pytest.mark.parametrize("relative", [True, False])
def test_maps_are_the_weights_of_the_definition(model: AutoFormer, relative: bool) -> None:
    expected = by_definition(model, images(), relative)
    found = attention_maps(model, images(), relative=relative)
    assert [each.shape for each in found] == [(2, h, 7, 7) for h in SUBNET.num_heads]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-12


def test_blocks_are_chosen_by_index(model: AutoFormer) -> None:
    every = attention_maps(model, images())
    for ours, index in zip(attention_maps(model, images(), [2, -3, 1]), (2, 0, 1), strict=True):
        assert torch.equal(ours, every[index])
    with pytest.raises(ValueError, match="there is no block 3; expected -3 to 2"):
        attention_maps(model, images(), [3])


def test_images_are_prepared_as_in_prediction() -> None:
    nano: Any = az.create_model("autoformer_nano", pretrained=True).train()
    [first, *_] = attention_maps(nano, CAT)
    assert first.shape == (1, 2, 65, 65)
    assert nano.training
    frozen = attention_maps(az.freeze(nano), [CAT, Image.open(CAT)])
    assert torch.allclose(frozen[0], first.expand(2, -1, -1, -1), atol=1e-5)


def test_other_networks_are_refused() -> None:
    with pytest.raises(TypeError, match="attention_maps takes an AutoFormer; Linear given"):
        attention_maps(nn.Linear(1, 1), images())
    with pytest.raises(ValueError, match="no image was given"):
        attention_maps(az.create_model("autoformer_nano"), [])


@pytest.mark.parametrize("gradients", [True, False])
def test_timms_extractor_finds_the_maps(model: AutoFormer, gradients: bool) -> None:
    expected = attention_maps(model, images())
    with torch.set_grad_enabled(gradients):
        plain = model(images())
    extractor = AttentionExtract(model, method="hook")
    try:
        with torch.set_grad_enabled(gradients):
            found = extractor(images())
            hooked = model(images())
    finally:
        for block in model.blocks:
            block.attn.attn_drop._forward_hooks.clear()
    assert list(found) == [f"blocks.{i}.attn.attn_drop" for i in range(3)]
    for ours, theirs in zip(found.values(), expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-12
    assert (hooked - plain).abs().max() < 1e-12


def test_hook_may_change_the_weights(model: AutoFormer) -> None:
    with torch.no_grad():
        plain = model(images())
        handle = model.blocks[1].attn.attn_drop.register_forward_hook(lambda m, i, o: 0 * o)
        changed = model(images())
        handle.remove()
        assert torch.equal(model(images()), plain)
    assert not torch.allclose(changed, plain)


def test_rollout_is_a_distribution_over_patches(model: AutoFormer) -> None:
    maps = attention_maps(model, images())
    rollout = attention_rollout(maps)
    assert torch.allclose(rollout.sum(-1), torch.ones(2, 7).double())
    eye = torch.eye(7).double()
    first, second, third = ((each.mean(1)[0] + eye) / 2 for each in maps)
    assert torch.allclose(rollout[0], third @ second @ first)
    heat = patch_heat(rollout, GRID)
    assert heat.shape == (2, *GRID)
    assert heat[1, 1, 2] == rollout[1, 1:, 6].mean()


def test_overlay_is_brightest_where_the_heat_is() -> None:
    heat = np.zeros((4, 4))
    heat[1, 2] = 1
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    drawn = np.asarray(draw_overlay(grey, heat)).astype(int).sum(2)
    assert drawn.shape == (64, 64)
    assert drawn[24, 40] > 2 * drawn[56, 8]
    assert np.ptp(np.asarray(draw_overlay(grey, np.ones((4, 4)))), axis=(0, 1)).max() == 0


@pytest.mark.parametrize("options", [(), ("--block", "-1"), ("--block", "2", "--head", "1")])
def test_command_draws_the_image_and_the_overlay(
    options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cat.png"
    assert main(["attention", str(CAT), str(out), "--size", "64", "--json", *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["label"] == "cat"
    assert np.array(result["heat"]).shape == (8, 8)
    with Image.open(out) as picture:
        assert picture.size == (2 * 64 + 16, 64)
    assert [path.name for path in tmp_path.iterdir()] == ["cat.png"]


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_picture_is_of_the_part_that_the_network_sees(
    mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = az.load_supernet("autoformer_nano").cut(az.SPACES["nano"].smallest)
    notes = {**weights.metadata, **cfg_to_notes({"crop_mode": mode})}
    save_subnet(replace(weights, metadata=notes), tmp_path / "net.safetensors")
    image = Image.new("RGB", (400, 100), "blue")
    image.paste("red", (0, 0, 250, 100))  # the square in the middle is red
    image.save(tmp_path / "wide.png")
    paths = [str(tmp_path / name) for name in ("wide.png", "out.png", "net.safetensors")]
    code = main(["attention", *paths[:2], "--checkpoint", paths[2], "--size", "64"])
    if mode == "border":
        assert (code, Path(paths[1]).exists()) == (2, False)
        assert "crop_mode border with crop_pct 1 pads images" in capsys.readouterr().err
        return
    with Image.open(paths[1]) as picture:
        colours = [picture.getpixel((x, 32)) for x in (8, 56)]
    red, blue = (255, 0, 0), (0, 0, 255)
    assert colours == [red, blue if mode == "squash" else red]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--head", "1"), "--head is of one block: give --block with it"),
        (("--block", "7"), "there is no block 7; expected -6 to 5"),
        (("--block", "0", "--head", "2"), "--head is 2; block 0 has 2"),
        (("--size", "0"), "--size is 0; expected a positive whole number"),
    ],
)
def test_wrong_options_are_one_line_and_code_2(
    options: tuple[str, ...], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["attention", str(CAT), str(tmp_path / "cat.png"), *options]) == 2
    assert reason in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
