"""Closed forms against built networks, an independent counter and the official values."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from autoformer_zoo.network.attention import FORM_VARIABLE
from autoformer_zoo.network.complexity import count_macs, count_params, official_complexity
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.published import SPACES, SUBNETS
from autoformer_zoo.space import SubnetConfig

GOLDEN = Path(__file__).parents[1] / "golden"
OFFICIAL = json.loads((GOLDEN / "official_complexity.json").read_text())
FACTS = json.loads((GOLDEN / "subnets.json").read_text())
FORMS = ("explicit", "augmented", "decomposed")
SMALL = SubnetConfig(depth=2, embed_dim=128, num_heads=(3, 1), mlp_ratio=(2.0, 3.5))


def built_params(subnet: SubnetConfig, **kwargs: object) -> int:
    model = AutoFormer(subnet, device="meta", **kwargs)
    return sum(parameter.numel() for parameter in model.parameters())


def executed_macs(model: AutoFormer, *shape: int, device: str = "cpu") -> float:
    """Count by torch's own counter, taught the two operations of the CPU that it does not know."""

    def attention_flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])

    def baddbmm_flops(_: Any, a: Any, b: Any, **__: Any) -> int:
        return 2 * a[0] * a[1] * a[2] * b[2]

    known = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
        torch.ops.aten.baddbmm_: baddbmm_flops,
    }
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=known) as counter:
        model(torch.zeros(shape, device=device))
    return counter.get_total_flops() / 2 / shape[0]


@pytest.mark.parametrize("space", SPACES)
def test_count_params_equals_fifty_random_built_networks(space: str) -> None:
    rng = random.Random(space)
    named = [subnet for name, subnet in SUBNETS.items() if space in name]
    for subnet in [*named, *(SPACES[space].sample(rng) for _ in range(50))]:
        assert count_params(subnet, 224, 16, 1000) == built_params(subnet), subnet


@pytest.mark.parametrize(
    "kwargs",
    [
        {"img_size": (96, 160)},
        {"img_size": (40, 56), "patch_size": (8, 14), "in_chans": 1, "num_classes": 7},
        {"img_size": 32, "patch_size": 4, "num_classes": 0},
        {"img_size": 230, "in_chans": 5},
    ],
    ids=["rectangle", "all-odd", "no-head", "rest-of-a-patch"],
)
def test_counts_follow_every_argument(kwargs: dict[str, object]) -> None:
    model = AutoFormer(SMALL, **kwargs).eval()
    height, width = model.patch_embed.img_size

    assert count_params(SMALL, **kwargs) == built_params(SMALL, **kwargs)
    assert count_macs(SMALL, **kwargs) == executed_macs(model, 1, model.in_chans, height, width)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(64, 64), (64, 160), (320, 320)], ids=["4x4", "4x10", "20x20"])
def test_count_macs_equals_what_runs_on_the_cpu(
    form: str, size: tuple[int, int], batch: int
) -> None:
    model = AutoFormer(SMALL, img_size=size, attention=form).eval()
    executed = executed_macs(model, batch, 3, *size)
    assert count_macs(SMALL, img_size=size, form=form) == executed


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *(("autoformer_tiny", form) for form in FORMS),
        *(pytest.param(name, "decomposed", marks=pytest.mark.slow) for name in SUBNETS),
    ],
)
def test_count_macs_holds_on_other_devices_and_in_training(name: str, form: str) -> None:
    # They have other products for the class token.
    model = AutoFormer(SUBNETS[name], device="meta", attention=form)
    executed = executed_macs(model, 2, 3, 224, 224, device="meta")
    assert count_macs(SUBNETS[name], 224, 16, 1000, form=form) == pytest.approx(executed, rel=0.01)


def test_count_macs_follows_the_form_that_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for side in (32, 224):
        model = AutoFormer(SMALL, img_size=side).eval()
        assert count_macs(SMALL, img_size=side) == executed_macs(model, 1, 3, side, side)
    monkeypatch.setenv(FORM_VARIABLE, "explicit")
    assert (
        count_macs(SMALL)
        == count_macs(SMALL, form="explicit")
        > count_macs(SMALL, form="augmented")
    )


@pytest.mark.parametrize("case", OFFICIAL, ids=lambda case: case["origin"])
def test_official_complexity_equals_the_official_values(case: dict[str, object]) -> None:
    subnet = SubnetConfig.from_dict(
        {name: case[name] for name in ("depth", "embed_dim", "num_heads", "mlp_ratio")}
    )
    sizes = {"img_size": case["img_size"], "num_classes": case["num_classes"]}

    assert official_complexity(subnet, **sizes) == case["official_complexity"]
    assert count_params(subnet, **sizes) == case["params"]


@given(seed=st.integers(0, 2**32), space=st.sampled_from(sorted(SPACES)))
@settings(max_examples=50, deadline=None)
def test_more_of_anything_never_costs_less(seed: int, space: str) -> None:
    subnet = SPACES[space].sample(random.Random(seed))
    for bound, sign in ((SPACES[space].smallest, 1), (SPACES[space].largest, -1)):
        for count in (count_params, count_macs, official_complexity):
            # At given sizes: a published subnet would be counted at its own.
            assert sign * (count(subnet, 224, 16, 1000) - count(bound, 224, 16, 1000)) >= 0


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"img_size": 8}, "img_size 8 x 8 is smaller than a patch of 16 x 16"),
        ({"img_size": (224, 224, 3)}, r"img_size is \(224, 224, 3\)"),
        ({"patch_size": 16.0}, r"patch_size is 16.0; expected a positive whole number"),
        ({"num_classes": -1}, r"num_classes is -1; expected 0 or more"),
        ({"in_chans": 0}, r"in_chans is 0; expected 1 or more"),
        ({"form": "fused"}, "form is 'fused'; expected one of auto, explicit"),
    ],
)
def test_impossible_arguments_are_refused(kwargs: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        count_macs(SMALL, **kwargs)


def test_published_subnet_is_counted_at_its_own_sizes() -> None:
    for size, fact in FACTS["autoformer"].items():
        assert official_complexity(f"autoformer_{size}") == fact["official_complexity"]
    nano = SUBNETS["autoformer_nano"]
    for subnet in (nano, "autoformer_nano", "autoformer_nano.cifar10"):
        assert count_params(subnet) == count_params(nano, 32, 4, 10) == 1_850_314
        assert count_macs(subnet) == count_macs(nano, 32, 4, 10)
        assert official_complexity(subnet) == official_complexity(nano, 32, 4, 10)
    assert count_params(nano, 224, 16, 1000) == 2_146_024
    assert count_params("autoformer_tiny") == 5_867_944
    with pytest.raises(ValueError, match="no model is called 'nano'"):
        count_params("nano")
