"""Tables of block latencies: what is refused when one is read or measured, and the command."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import autoformer_zoo as az
from tests.helpers.made_search import make_table
from tests.helpers.made_training import MINI
from training.search import costs
from training.search.costs import BlockLatency, LatencyTable, main, measure_ms

BLOCK = BlockLatency(32, 1, 1.0, 5)
TABLE = LatencyTable("cpu", 1, 1, 16, 4, {}, {"32": 7}, (BLOCK,))
VALUES = asdict(TABLE)


def test_table_is_read_back_and_adds_up() -> None:
    table = make_table()
    assert LatencyTable.from_json(table.to_json()) == table
    subnet = az.SubnetConfig(2, 32, (1, 2), (1.0, 2.0))
    assert table.cost(MINI).value(subnet) == (32_000 + 128_000) / 1e6


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"rest_ns": {"32": -1}}, "rest_ns.32"),
        ({"threads": True}, "threads"),
        ({"device": "gpu"}, "device"),
        ({"blocks": [{"embed_dim": 32}]}, "blocks.0.num_heads"),
        ({"blocks": [{**asdict(BLOCK), "ns": float("inf")}]}, "blocks.0.ns"),
        ({"blocks": [{**asdict(BLOCK), "ns": 10**400}]}, "blocks.0.ns"),
        ({"blocks": [{**asdict(BLOCK), "mlp_ratio": float("nan")}]}, "blocks.0.mlp_ratio"),
        ({"blocks": [asdict(BLOCK), {**asdict(BLOCK), "embed_dim": 0}]}, "blocks.1.embed_dim"),
        ({"more": 1}, "more"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_value_is_named(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=rf"not a table of block latencies \({name} is "):
        LatencyTable.from_json(json.dumps({**VALUES, **changes}))


@pytest.mark.parametrize("text", ["[]", "3", "{", "[" * 100_000, '{"device": "cpu"}', "\ud800"])
def test_other_text_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="not a table of block latencies") as refused:
        LatencyTable.from_json(text)
    assert "\n" not in str(refused.value)


def test_table_of_another_space_is_refused() -> None:
    wide = replace(MINI, num_heads=(3,), supernet=replace(MINI.supernet, num_heads=(3, 3, 3)))
    with pytest.raises(ValueError, match=r"lacks the block .* = \(32, 3, 1.0\); measure another"):
        make_table().cost(wide)
    with pytest.raises(ValueError, match=r"for images and patches of \(16, 4\) px, the space"):
        make_table().cost(az.SPACES["nano"])


# Measuring


def test_winner_is_measured_with_the_tables_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), list[int]()
    run = costs.make_run(MINI, MINI.smallest, "cpu", 1)
    monkeypatch.setattr(
        costs, "make_run", lambda *_: lambda: seen.append(torch.get_num_threads()) or run()
    )
    table = replace(TABLE, threads=before + 1)
    assert measure_ms(MINI, MINI.smallest, table, rounds=3) > 0
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_command_measures_a_table_of_another_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.json"
    common = ["--space", MINI.to_json(), "--rounds", "3", "--out", str(out)]
    assert main([*common, "--img-size", "17"]) == 2
    assert "img_size is 17; expected a multiple of 4" in capsys.readouterr().err
    assert not out.exists()
    assert main([*common, "--img-size", "8"]) == 0
    table = LatencyTable.from_json(out.read_text())
    assert table.img_size == 8
    assert table.cost(replace(MINI, img_size=8)).value(MINI.largest) > 0
