"""Tables of block latencies: what is refused when one is read or measured."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.made_training import MINI
from training.search import costs
from training.search.costs import BlockLatency, LatencyTable, main, measure_latencies, measure_ms

BLOCK = BlockLatency(32, 1, 1.0, 5)
TABLE = LatencyTable("cpu", 1, 1, 16, 4, {}, {"32": 7}, (BLOCK,))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rest_ns": 5}, "rest_ns is 5; expected an object"),
        ({"rest_ns": {"32": -1}}, "rest_ns['32'] is -1; expected a whole number, 0 or more"),
        ({"rest_ns": {"32": 1.5}}, "rest_ns['32'] is 1.5; expected a whole number, 0 or more"),
        ({"batch_size": 0}, "batch_size is 0; expected a whole number, 1 or more"),
        ({"threads": True}, "threads is True; expected a whole number, 1 or more"),
        ({"device": "gpu"}, "device is 'gpu'; expected cpu or cuda"),
        ({"environment": []}, "environment is []; expected an object"),
        ({"blocks": 3}, "blocks is 3; expected a list"),
        ({"blocks": [3]}, "blocks[0] is 3; expected an object with embed_dim, num_heads, "),
        ({"blocks": [{"embed_dim": 32}]}, "blocks[0] lacks num_heads"),
        ({"more": 1}, "the table has an unknown 'more'"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_table_of_wrong_values_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match="not a table of block latencies") as told:
        LatencyTable.from_json(json.dumps({**asdict(TABLE), **changes}))
    assert text in str(told.value)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("ns", "x", "'x'; expected a whole number, 0 or more"),
        ("ns", float("nan"), "nan; expected a whole number, 0 or more"),
        ("ns", -1, "-1; expected a whole number, 0 or more"),
        ("embed_dim", 0, "0; expected a whole number, 1 or more"),
        ("mlp_ratio", float("nan"), "nan; expected above 0"),
        ("mlp_ratio", "1", "'1'; expected above 0"),
    ],
)
def test_block_of_wrong_values_is_refused(name: str, value: object, text: str) -> None:
    blocks = [asdict(BLOCK), {**asdict(BLOCK), name: value}]
    with pytest.raises(ValueError, match="not a table of block latencies") as told:
        LatencyTable.from_json(json.dumps({**asdict(TABLE), "blocks": blocks}))
    assert f"blocks[1].{name} is {text}" in str(told.value)


@pytest.mark.parametrize("text", ["[]", "3", "{", '{"device": "cpu"}'])
def test_other_json_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="not a table of block latencies") as told:
        LatencyTable.from_json(text)
    assert "\n" not in str(told.value)


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


@pytest.mark.parametrize("changes", [{"batch_size": 0}, {"rounds": 0}, {"seconds": -1.0}])
def test_numbers_out_of_range_are_refused_before_measuring(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(costs, "make_run", lambda *_: pytest.fail("a network was made"))
    (name,) = changes
    with pytest.raises(ValueError, match=f"{name} is .*; expected"):
        measure_latencies(MINI, **changes)


# The command


def test_table_of_another_size_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    few = ["--rounds", "3", "--img-size", "8", "--out", str(out)]
    assert main(["--space", MINI.to_json(), *few]) == 0
    table = LatencyTable.from_json(out.read_text())
    assert table.img_size == 8
    table.cost(replace(MINI, img_size=8))


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--device", "gpu"], "invalid choice"),
        (["--batch-size", "0"], "batch_size is 0; expected a whole number, 1 or more"),
        (["--rounds", "0"], "rounds is 0; expected 1 or more"),
        (["--seconds", "-1"], "seconds is -1.0; expected a positive number"),
        (["--img-size", "0"], "img_size is 0; expected a positive whole number"),
        (["--img-size", "17"], "img_size is 17; expected a multiple of 4"),
        (["--out", "nowhere/x.json"], "nowhere/x.json: there is no folder nowhere; make it first"),
        (["--out", "."], ". is a directory; expected the name of a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistake_is_one_line_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--space", MINI.to_json(), "--out", "x.json", *flags]) == 2
    err = capsys.readouterr().err
    assert text in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
