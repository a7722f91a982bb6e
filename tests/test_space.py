"""Spaces and subnets as data: round trips, refusals, sampling, and the published facts."""

from __future__ import annotations

import json
import random
from dataclasses import FrozenInstanceError, replace
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
        deepest,
        max(embed_dim) + spare,
        (max(heads) + spare,) * deepest,
        (max(ratios),) * deepest,
    )
    return SearchSpace(embed_dim, heads, ratios, depth, supernet)


@given(subnets())
def test_subnet_survives_json(subnet: SubnetConfig) -> None:
    assert SubnetConfig.from_json(subnet.to_json()) == subnet
    assert SubnetConfig.from_dict(subnet.to_dict()) == subnet


@given(spaces())
def test_space_survives_json(space: SearchSpace) -> None:
    assert SearchSpace.from_json(space.to_json()) == space
    assert SearchSpace.from_dict(space.to_dict()) == space


@given(spaces(), st.integers())
def test_samples_lie_in_the_space_and_fit_its_supernet(space: SearchSpace, seed: int) -> None:
    subnet = space.sample(random.Random(seed))

    assert space.contains(subnet)
    assert misfit(subnet, space.supernet) is None
    assert subnet == space.sample(random.Random(seed))


@given(spaces())
def test_extremes_lie_in_the_space_and_bound_every_sample(space: SearchSpace) -> None:
    smallest, largest = space.smallest, space.largest

    assert space.contains(smallest)
    assert space.contains(largest)
    assert misfit(smallest, largest) is None
    assert misfit(space.sample(random.Random(0)), largest) is None


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


def test_configs_are_frozen_and_hashable() -> None:
    assert len({SUBNET, replace(SUBNET)}) == 1
    with pytest.raises(FrozenInstanceError):
        SUBNET.depth = 3


def test_lists_become_tuples_and_ratios_floats() -> None:
    subnet = SubnetConfig(2, 128, [3, 1], [2, 3.5])

    assert subnet == SUBNET
    assert hash(subnet) == hash(SUBNET)
    assert isinstance(subnet.mlp_ratio[0], float)


def test_widths_follow_heads_and_ratios() -> None:
    subnet = SubnetConfig(2, 131, (3, 1), (2.0, 3.5))

    assert subnet.attn_dims == (192, 64)
    assert subnet.hidden_dims == (262, 458)  # 131 * 3.5 = 458.5, rounded down


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"depth": 0}, "depth is 0; expected a positive whole number"),
        ({"depth": True}, "depth is True; expected"),
        ({"embed_dim": 128.0}, "embed_dim is 128.0; expected a positive whole number"),
        ({"num_heads": 3}, "num_heads is 3; expected 2 numbers, one a block"),
        ({"num_heads": "31"}, "num_heads is '31'; expected 2 numbers"),
        ({"num_heads": (3,)}, "num_heads has 1 entries; expected depth=2, one a block"),
        ({"num_heads": (3, 0)}, "num_heads is 0; expected a positive whole number"),
        ({"mlp_ratio": (2.0, 3.5, 4.0)}, "mlp_ratio has 3 entries; expected depth=2"),
        ({"mlp_ratio": (2.0, -1)}, "mlp_ratio holds -1; expected positive numbers"),
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
        ({"num_heads": [0, 1]}, r"num_heads is \[0, 1\]; expected one or more different"),
        ({"embed_dim": 128}, "embed_dim is 128; expected a list of choices"),
        ({"embed_dim": ["a", 128]}, "embed_dim holds 'a'; expected positive numbers"),
        ({"embed_dim": [96.5, 128]}, "embed_dim holds 96.5; expected positive numbers"),
        ({"embed_dim": [True, 128]}, "embed_dim holds True; expected positive numbers"),
        ({"img_size": 0}, "img_size is 0; expected a positive whole number"),
        ({"patch_size": 0}, "patch_size is 0; expected a positive whole number"),
        ({"num_classes": 0}, "num_classes is 0; expected a positive whole number"),
        ({"depth": [2, 10**12]}, "does not fit its supernet: depth 1000000000000"),
        ({"supernet": 3}, "expected an object with the keys of SubnetConfig, got a int"),
        ({"mlp_ratio": [float("nan")]}, "mlp_ratio is .*; expected one or more different"),
        ({"depth": [2, 4]}, "the largest subnet of the space does not fit its supernet: depth 4"),
        ({"num_heads": [1, 4]}, "does not fit its supernet: blocks.0.attn needs 4 heads"),
    ],
)
def test_illegal_space_is_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SearchSpace.from_dict({**SPACE.to_dict(), **values})


@pytest.mark.parametrize("config", [SUBNET, SPACE], ids=["subnet", "space"])
def test_unknown_and_missing_keys_are_refused(config: SubnetConfig | SearchSpace) -> None:
    values = config.to_dict()
    del values["depth"]
    values["detph"] = 2

    with pytest.raises(ValueError, match=r"unknown keys \['detph'\], missing keys \['depth'\]"):
        type(config).from_dict(values)


def test_unknown_key_of_a_spaces_supernet_is_refused() -> None:
    values = SPACE.to_dict()
    values["supernet"]["heads"] = 3

    with pytest.raises(ValueError, match=r"SubnetConfig: unknown keys \['heads'\]"):
        SearchSpace.from_dict(values)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "a subnet config is not JSON"),
        ("[1, 2]", "expected an object with the keys of SubnetConfig, got a list"),
        ('"tiny"', "expected an object with the keys of SubnetConfig, got a str"),
        ("[" * 100_000, "a subnet config is not JSON: maximum recursion depth"),
        (SUBNET.to_json().replace("128", f"1{'0' * 400}"), "SubnetConfig cannot be made: int too"),
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
        (
            {"embed_dim": 161},
            "embed_dim 161 needs that width in every layer, the supernet has 160",
        ),
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
    assert misfit(SUBNET, SPACE.supernet) is None
    assert misfit(replace(SUBNET, **change), SPACE.supernet) == text


def test_narrow_subnet_may_have_a_larger_ratio_than_its_supernet() -> None:
    # What must fit is the hidden width: 96 * 6 = 576 channels of the supernet's 640.
    subnet = replace(SUBNET, embed_dim=96, mlp_ratio=(6.0, 6.0))
    assert misfit(subnet, SPACE.supernet) is None


@given(subnets())
def test_every_subnet_fits_itself(subnet: SubnetConfig) -> None:
    assert misfit(subnet, subnet) is None


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


def test_nano_space_is_that_of_small_images() -> None:
    nano = SPACES["nano"]

    assert (nano.img_size, nano.patch_size, nano.num_classes) == (32, 4, 10)
    assert count_params(nano.supernet, 32, 4, 10) < 3.3e6


def test_published_tables_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        SPACES["tiny"] = SPACE
    with pytest.raises(TypeError):
        SUBNETS["autoformer_tiny"] = SUBNET
