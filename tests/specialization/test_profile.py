"""Latency profiles: their fit, adapting, and what is refused when one is read."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

import autoformer_zoo as az
from autoformer_zoo.specialization.latency.measure import draw_design
from autoformer_zoo.specialization.latency.profile import (
    NS_PER_MS,
    BlockLatency,
    LatencyProfile,
    RunSetting,
    fit,
)
from tests.helpers.made_search import make_profile
from tests.helpers.made_training import MINI

SMALL = az.SPACES["small"]
PROFILE = make_profile()
VALUES = json.loads(PROFILE.to_json())
BLOCK = VALUES["blocks"][0]


def made_ms(subnet: az.SubnetConfig, speed: float = 1.0) -> float:
    """Make up a latency with steps that multiply-adds do not have."""
    attention = {5: 0.9, 6: 1.3, 7: 1.25}
    mlp = {3.0: 1.0, 3.5: 1.5, 4.0: 1.4}
    blocks = zip(subnet.num_heads, subnet.mlp_ratio, strict=True)
    width = subnet.embed_dim / 384 * (1.1 if subnet.embed_dim == 384 else 1)
    return speed * (2 + width * sum(attention[h] + mlp[r] for h, r in blocks))


def errors(found: Any, speed: float = 1.0) -> Any:
    """Return relative errors for 100 unseen subnets, in percent."""
    rng = random.Random("unseen")
    unseen = [SMALL.sample(rng) for _ in range(100)]
    predicted = [
        found.rest_ms[s.embed_dim]
        + sum(
            found.block_ms[s.embed_dim, h, r] for h, r in zip(s.num_heads, s.mlp_ratio, strict=True)
        )
        for s in unseen
    ]
    return 100 * np.abs(np.array(predicted) / [made_ms(s, speed) for s in unseen] - 1)


def as_profile(found: Any) -> LatencyProfile:
    return replace(
        PROFILE,
        img_size=SMALL.img_size,
        patch_size=SMALL.patch_size,
        rest_ns={str(dim): round(ms * NS_PER_MS) for dim, ms in found.rest_ms.items()},
        blocks=tuple(BlockLatency(*k, round(ms * NS_PER_MS)) for k, ms in found.block_ms.items()),
    )


def test_sums_of_parts_are_found_and_the_error_is_known() -> None:
    rng = np.random.default_rng(0)
    subnets = draw_design(SMALL, 60)
    for noise in (0.0, 0.01, 0.05):
        times = [made_ms(s) * (1 + noise * rng.normal()) for s in subnets]
        found = fit(SMALL, subnets, times)
        assert np.median(errors(found)) < 0.5 + 70 * noise
        median, high = found.error_percent  # of subnets that are as noisy
        assert 40 * noise < median < 0.6 + 110 * noise
        assert high > median


def test_ten_subnets_adapt_a_profile_of_another_machine() -> None:
    subnets = draw_design(SMALL, 60)
    other = as_profile(fit(SMALL, subnets, [made_ms(s) for s in subnets]))
    ten = draw_design(SMALL, 10)
    times = [made_ms(s, 2.5) for s in ten]
    assert errors(fit(SMALL, ten, times, other), 2.5).max() < 1
    assert errors(fit(SMALL, ten, times), 2.5).max() > 2  # so it is the profile that helps


def test_too_few_subnets_are_refused() -> None:
    with pytest.raises(ValueError, match="2 timed subnets given; expected 3 or more"):
        fit(MINI, [MINI.smallest, MINI.largest], [1.0, 2.0])


def test_profile_is_read_back_and_adds_up() -> None:
    assert LatencyProfile.from_json(PROFILE.to_json()) == PROFILE
    subnet = az.SubnetConfig(2, 32, (1, 2), (1.0, 2.0))
    assert PROFILE.cost(MINI).value(subnet) == (32_000 + 128_000) / 1e6


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"rest_ns": {"32": -1}}, "rest_ns.32"),
        ({"num_timed": True}, "num_timed"),
        ({"setting": {**asdict(RunSetting()), "device": "gpu"}}, "device"),
        ({"setting": {**asdict(RunSetting()), "threads": 0}}, "threads"),
        ({"blocks": [{"embed_dim": 32}]}, "BlockLatency: unknown keys"),
        ({"blocks": [{**BLOCK, "ns": float("inf")}]}, "blocks.0.ns"),
        ({"blocks": [{**BLOCK, "ns": 10**400}]}, "blocks.0.ns"),
        ({"blocks": [BLOCK, {**BLOCK, "mlp_ratio": float("nan")}]}, "blocks.1.mlp_ratio"),
        ({"more": 1}, "more"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_value_is_named(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=rf"not a latency profile \(.*{name}"):
        LatencyProfile.from_json(json.dumps({**VALUES, **changes}))


@pytest.mark.parametrize("text", ["[]", "3", "{", "[" * 100_000, '{"machine": "x"}', "\ud800"])
def test_other_text_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="not a latency profile") as refused:
        LatencyProfile.from_json(text)
    assert "\n" not in str(refused.value)


def test_profile_of_another_space_is_refused() -> None:
    wide = replace(MINI, num_heads=(3,), supernet=replace(MINI.supernet, num_heads=(3, 3, 3)))
    with pytest.raises(ValueError, match=r"lacks the block .* = \(32, 3, 1.0\); measure another"):
        PROFILE.cost(wide)
    with pytest.raises(ValueError, match=r"for images and patches of \(16, 4\) px, the space"):
        PROFILE.cost(az.SPACES["nano"])


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"backend": "tvm"}, "backend is 'tvm'; expected one of eager, compile, onnxruntime"),
        ({"precision": "int8"}, "precision is 'int8'; eager is profiled in fp32 and bf16"),
        ({"device": "cuda", "backend": "onnxruntime"}, "onnxruntime is profiled on the CPU only"),
        ({"batch_size": 0}, "batch_size is 0; expected a positive whole number"),
    ],
)
def test_meaningless_settings_are_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        RunSetting(**values)
