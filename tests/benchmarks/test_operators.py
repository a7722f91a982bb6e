"""Where the time goes: operators add up to the call, and small ones are added up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.footprint import operators
from benchmarks.footprint.operators import (
    BETWEEN,
    CALL,
    OTHERS,
    by_operator,
    main,
    merge_small,
    profile_call,
)
from benchmarks.measure.results import read_rows
from benchmarks.report.tables import make_table


def test_operators_and_what_is_between_add_up_to_the_call() -> None:
    x = torch.randn(50, 50)
    times = profile_call(lambda: (x @ x).relu())
    assert times["aten::mm"] > 0
    assert times["aten::relu"] > 0
    assert sum(times.values()) == pytest.approx(2 * times[CALL])


def test_operator_that_a_round_lacks_took_no_time() -> None:
    assert by_operator([{"a": 1.0}, {"a": 2.0, "b": 3.0}]) == {"a": [1.0, 2.0], "b": [0.0, 3.0]}


def test_operators_that_are_small_everywhere_are_added_up() -> None:
    one = {CALL: [100.0, 100.0], BETWEEN: [0.1, 0.1], "a": [90.0, 91.0], "b": [0.5, 0.5]}
    other = {CALL: [10.0, 10.0], "a": [0.05, 0.05], "b": [0.01, 0.02], "c": [0.02, 0.01]}
    merged = merge_small({"one": one, "other": other})
    assert merged["one"] == {
        **{CALL: [100.0, 100.0], BETWEEN: [0.1, 0.1], "a": [90.0, 91.0]},
        OTHERS: [0.5, 0.5],
    }
    assert merged["other"][OTHERS] == pytest.approx([0.03, 0.03])
    assert merged["other"]["a"] == [0.05, 0.05]


def test_table_has_models_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "MIN_SHARE", 0.0)  # on a busy machine any share may be small
    names = ["autoformer_nano", "autoformer_nano@explicit"]
    arguments = ["--quick", "--save", "--results", str(tmp_path), "--models", *names]
    assert main(arguments) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["ms", *names]
    assert any(line.startswith(CALL) for line in table)
    rows = read_rows(tmp_path / "operators.csv")
    assert [row["what"] for row in json.loads(last)["rows"]] == [row.what for row in rows]
    sums = {row.model: row.repeats for row in rows if row.what == BETWEEN}
    assert sums == dict.fromkeys(names, 5)
    text = make_table("operators-cpu", tmp_path)
    assert text.startswith("| input | batch | ms of | `autoformer_nano` | `autoformer_nano@expl")
    (flash,) = (line for line in text.splitlines() if "flash_attention" in line)
    assert flash.endswith(" | - |")  # the explicit form has none
