"""Spaces and subnets as data: round trips, refusals, sampling, and the published facts."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoformer_zoo.network.complexity import count_params
from autoformer_zoo.published import SPACES, SUBNETS
from autoformer_zoo.space import SearchSpace, SubnetConfig, misfit

FACTS = json.loads((Path(__file__).parent / "golden" / "subnets.json").read_text())
SUBNET = SubnetConfig(depth=2, embed_dim=128, num_heads=(3, 1), mlp_ratio=(2.0, 3.5))
SPACE = SearchSpace(
    embed_dim=(96, 128),
    num_heads=(1, 3),
    mlp_ratio=(2.0, 3.5),
    depth=(2, 3),
    supernet=SubnetConfig(3, 160, (3, 3, 3), (4.0, 4.0, 4.0)),
)


@st.composite
def subnets(draw: st.DrawFn) -> SubnetConfig:
    depth = draw(st.integers(1, 20))
    heads = st.lists(st.integers(1, 12), min_size=depth, max_size=depth)
    ratios = st.lists(st.floats(1, 8), min_size=depth, max_size=depth)
    return SubnetConfig(depth, draw(st.integers(1, 1024)), tuple(draw(heads)), tuple(draw(ratios)))


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    def choices(elements: st.SearchStrategy[Any]) -> tuple[Any, ...]:
        return tuple(draw(st.lists(elements, min_size=1, max_size=4, unique=True)))

    embed_dim, heads = choices(st.integers(8, 640)), choices(st.integers(1, 10))
    ratios, depth = choices(st.sampled_from([1.0, 2.5, 3.0, 3.5, 4.0])), choices(st.integers(1, 6))
    spare = draw(st.integers(0, 2))
    deepest = max(depth) + spare
    supernet = SubnetConfig(
        deepest, max(embed_dim) + spare, (max(heads) + spare,) * deepest, (max(ratios),) * deepest
    )
    return SearchSpace(embed_dim, heads, ratios, depth, supernet)


@given(st.one_of(subnets(), spaces()))
def test_config_survives_json(config: SubnetConfig | SearchSpace) -> None:
    assert type(config).from_json(config.to_json()) == config
    assert type(config).from_dict(config.to_dict()) == config


@given(spaces(), st.integers())
def test_samples_lie_between_the_extremes_and_fit_the_supernet(
    space: SearchSpace, seed: int
) -> None:
    smallest, largest, subnet = space.smallest, space.largest, space.sample(random.Random(seed))

    assert subnet == space.sample(random.Random(seed))
    for each in (smallest, largest, subnet):
        assert space.contains(each)
        assert misfit(each, largest) is None
        assert misfit(each, each) is None
        assert misfit(each, space.supernet) is None


def test_sampling_reaches_every_subnet_of_a_small_space() -> None:
    space = replace(SPACE, depth=(1, 2), num_heads=(1, 2))
    rng = random.Random(0)

    drawn = {space.sample(rng) for _ in range(2000)}

    assert len(drawn) == space.size == 2 * (4 + 16)


@pytest.mark.parametrize(
    "change",
    [
        {"embed_dim": 112},
        {"num_heads": (3, 2)},
        {"mlp_ratio": (2.0, 3.0)},
        {"depth": 1, "num_heads": (3,), "mlp_ratio": (2.0,)},
    ],
    ids=["embed_dim", "num_heads", "mlp_ratio", "depth"],
)
def test_contains_refuses_what_is_no_choice(change: dict[str, Any]) -> None:
    assert SPACE.contains(SUBNET)
    assert not SPACE.contains(replace(SUBNET, **change))


def test_lists_become_tuples_and_ratios_floats() -> None:
    subnet = SubnetConfig(2, 128, [3, 1], [2, 3.5])

    assert len({subnet, SUBNET}) == 1
    assert isinstance(subnet.mlp_ratio[0], float)


def test_widths_follow_heads_and_ratios() -> None:
    subnet = SubnetConfig(2, 131, (3, 1), (2.0, 3.5))

    assert subnet.attn_dims == (192, 64)
    assert subnet.hidden_dims == (262, 458)  # 131 * 3.5 = 458.5, rounded down


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"depth": 0}, "depth is 0; expected a positive whole number"),
        ({"embed_dim": 128.0}, "embed_dim is 128.0; expected a positive whole number"),
        ({"num_heads": 3}, "num_heads is 3; expected 2 numbers, one a block"),
        ({"num_heads": (3, 0)}, "num_heads is 0; expected a positive whole number"),
        ({"mlp_ratio": (2.0, 3.5, 4.0)}, "mlp_ratio has 3 entries; expected depth=2"),
        ({"mlp_ratio": (2.0, float("nan"))}, "mlp_ratio holds nan; expected positive numbers"),
        ({"mlp_ratio": (2.0, 0.001)}, r"mlp_ratio 0\.001 of embed_dim 128 leaves no hidden"),
        ({"mlp_ratio": (2.0, "4")}, "mlp_ratio holds '4'; expected positive numbers"),
    ],
)
def test_illegal_subnet_is_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SubnetConfig.from_dict({**SUBNET.to_dict(), **values})


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"depth": []}, r"depth is \[\]; expected one or more different positive numbers"),
        ({"depth": [2, 2]}, r"depth is \[2, 2\]; expected one or more different"),
        ({"embed_dim": 128}, "embed_dim is 128; expected a list of choices"),
        ({"embed_dim": [96.5, 128]}, "embed_dim holds 96.5; expected positive numbers"),
        ({"img_size": 0}, "img_size is 0; expected a positive whole number"),
        ({"depth": [2, 10**12]}, "does not fit its supernet: depth 1000000000000"),
        ({"supernet": 3}, "expected an object with the keys of SubnetConfig, got a int"),
        ({"detph": 2}, r"SearchSpace: unknown keys \['detph'\]"),
        ({"supernet": {"heads": 3}}, r"SubnetConfig: unknown keys \['heads'\], missing keys"),
        ({"depth": [2, 4]}, "the largest subnet of the space does not fit its supernet: depth 4"),
        ({"num_heads": [1, 4]}, "does not fit its supernet: blocks.0.attn needs 4 heads"),
    ],
)
def test_illegal_space_is_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SearchSpace.from_dict({**SPACE.to_dict(), **values})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "a subnet config is not JSON"),
        ("[1, 2]", "expected an object with the keys of SubnetConfig, got a list"),
        ('"tiny"', "expected an object with the keys of SubnetConfig, got a str"),
        ("[" * 100_000, "a subnet config is not JSON: maximum recursion depth"),
        (
            SUBNET.to_json().replace("128", f"1{'0' * 400}"),
            "embed_dim is 10+; expected at most",
        ),
    ],
)
def test_text_that_is_not_a_config_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        SubnetConfig.from_json(text)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"depth": 4, "num_heads": (1,) * 4, "mlp_ratio": (2.0,) * 4},
            "depth 4 needs 4 blocks, the supernet has 3",
        ),
        ({"embed_dim": 161}, "embed_dim 161 needs that width in every layer, the supernet has 160"),
        ({"num_heads": (3, 5)}, "blocks.1.attn needs 5 heads, the supernet has 3"),
        (
            {"mlp_ratio": (6.0, 1.0)},
            "blocks.0.mlp needs 768 hidden channels (embed_dim 128 x mlp_ratio 6.0), "
            "the supernet has 640",
        ),
    ],
    ids=["depth", "embed_dim", "num_heads", "mlp_ratio"],
)
def test_misfit_names_layer_need_and_limit(change: dict[str, Any], text: str) -> None:
    # What must fit is the hidden width: 96 * 6 = 576 channels of the supernet's 640.
    for fits in (SUBNET, replace(SUBNET, embed_dim=96, mlp_ratio=(6.0, 6.0))):
        assert misfit(fits, SPACE.supernet) is None
    assert misfit(replace(SUBNET, **change), SPACE.supernet) == text


def published_facts() -> list[Any]:
    cases = [
        pytest.param(f"autoformer_{size}", size, fact, id=f"autoformer_{size}")
        for size, fact in FACTS["autoformer"].items()
    ]
    for size, facts in FACTS["prenas"].items():
        for fact in facts:
            name = f"prenas_{size}_{fact['budget_m']:g}m"
            cases.append(pytest.param(name, size, fact, id=name))
    return cases


@pytest.mark.parametrize(("name", "size", "fact"), published_facts())
def test_published_subnet_equals_the_facts(name: str, size: str, fact: dict[str, Any]) -> None:
    subnet = SUBNETS[name]
    architecture = {key: fact[key] for key in ("depth", "embed_dim", "num_heads", "mlp_ratio")}

    assert subnet == SubnetConfig.from_dict(architecture)
    assert count_params(subnet) == fact["params"]
    assert misfit(subnet, SPACES[size].supernet) is None


def test_published_tiny_lies_outside_its_own_space() -> None:
    assert not SPACES["tiny"].contains(SUBNETS["autoformer_tiny"])
    assert SPACES["small"].contains(SUBNETS["autoformer_small"])
    assert SPACES["base"].contains(SUBNETS["autoformer_base"])


@pytest.mark.parametrize(
    ("space", "params"), [("tiny", 11_669_224), ("small", 34_790_440), ("base", 80_160_360)]
)
def test_supernet_has_the_size_of_the_released_one(space: str, params: int) -> None:
    assert count_params(SPACES[space].supernet) == params
