"""The static network against its definition, in every precision and copy."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import DropPath

from autoformer_zoo.network.vit import POOLS, AutoFormer
from autoformer_zoo.space import SubnetConfig
from tests.helpers.network_definition import defined_network
from tests.helpers.small_network import CFG, FORMS, SIZE, make_images, make_model


@pytest.mark.parametrize("size", [(96, 160), (256, 32)], ids=str)
def test_network_follows_its_definition(size: tuple[int, int]) -> None:
    model = make_model(img_size=size).double()
    x = make_images(size=size).double()
    with torch.no_grad():
        expected = defined_network(x, model.state_dict(), CFG)
        for form in FORMS:
            for block in model.blocks:
                block.attn.form = form
            torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-11, msg=form)


def test_init_follows_upstream() -> None:
    model = AutoFormer(SubnetConfig(1, 192, (3,), (4.0,)), num_classes=1000)
    for name, parameter in model.named_parameters():
        if name.endswith(("fc1.weight", "head.weight", "qkv.weight", "rel_pos", "pos_embed")):
            assert 0.019 < parameter.std() < 0.021, name
        elif name.endswith("bias") and not name.startswith("patch_embed"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name


@pytest.mark.parametrize("poison", [float("nan"), 1e4])
def test_init_weights_fills_what_to_empty_left(poison: float) -> None:
    model = AutoFormer(CFG, img_size=SIZE, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(poison)
    model.init_weights()
    for name, parameter in model.named_parameters():
        assert parameter.abs().max() <= 1, name
    assert 0.019 < model.blocks[0].attn.rel_pos.std() < 0.021


def test_drop_path_rises_over_the_depth_of_the_supernet() -> None:
    def rates(**arguments: Any) -> list[float]:
        blocks = AutoFormer(CFG, img_size=SIZE, drop_path_rate=0.12, **arguments).blocks
        paths = [block.drop_path for block in blocks]
        return [path.drop_prob if isinstance(path, DropPath) else 0.0 for path in paths]

    assert rates() == pytest.approx([0, 0.06, 0.12])
    assert rates(drop_path_depth=13) == pytest.approx([0, 0.01, 0.02])


@pytest.mark.parametrize(
    "rate", ["drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"]
)
def test_drop_rate_acts_in_training_only(rate: str) -> None:
    plain, dropping = make_model(), make_model(**{rate: 0.5})
    x = make_images(8)
    assert torch.equal(dropping(x), plain(x))
    assert not torch.allclose(dropping.train()(x), plain.train()(x))


@pytest.mark.parametrize("pool", POOLS)
def test_global_pool_turns_tokens_into_one_vector(pool: str) -> None:
    model, x = make_model(global_pool=pool, num_classes=0), make_images()
    tokens = model.forward_features(x)
    expected = {
        "": tokens,
        "avg": tokens[:, 1:].mean(1),
        "max": tokens[:, 1:].amax(1),
        "avgmax": (tokens[:, 1:].mean(1) + tokens[:, 1:].amax(1)) / 2,
        "token": tokens[:, 0],
    }
    torch.testing.assert_close(model(x), expected[pool])
    assert model(x[:0]).shape == (0, *expected[pool].shape[1:])


@pytest.mark.parametrize("form", FORMS)
def test_autocast_trains(form: str) -> None:
    model, x = make_model(attention=form, attn_drop_rate=0.1).train(), make_images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copy_is_equal_and_independent(duplicate: Any) -> None:
    model, x = make_model(), make_images()
    twin = duplicate(model)
    expected = model(x)
    assert torch.equal(twin(x), expected)
    with torch.no_grad():
        twin.pos_embed.zero_()
    assert torch.equal(model(x), expected)
    assert not torch.equal(twin(x), expected)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: make_model(global_pool="map"), "global_pool is 'map'; expected one of '', 'avg',"),
        (lambda: make_model().reset_classifier(3, "mean"), "global_pool is 'mean'; expected one"),
        (lambda: make_model(attention="flash"), "attention is 'flash'; expected one of auto, expl"),
    ],
)
def test_unknown_arguments_are_refused(call: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()
