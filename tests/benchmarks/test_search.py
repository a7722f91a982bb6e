"""Methods of search: within limits and evaluations, and as good as what they can ask for."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path

import pytest

from autoformer_zoo.published import SPACES
from benchmarks.search import methods
from benchmarks.search.__main__ import main
from benchmarks.search.landscapes import EnoughError, TableLandscape, choices_of
from benchmarks.search.methods import METHODS, Run
from training.engine.sampling import sample_different


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Accuracies of 800 subnets: more heads and depth are better."""
    subnets = sample_different(SPACES["tiny"], 800, random.Random(0))
    columns = ["top1", "mlp_ratio", "num_heads", "embed_dim", "depth"]
    rows = [
        [
            70 + sum(s.num_heads) / 10 + sum(s.mlp_ratio) / 30,
            *(list(s.mlp_ratio), list(s.num_heads), s.embed_dim, s.depth),
        ]
        for s in subnets
    ]
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"space": "tiny", "columns": columns, "rows": rows}))
    return path


@pytest.mark.parametrize("name", METHODS)
def test_method_asks_for_new_subnets_below_the_limit_until_all_are_known(
    name: str, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "START", 10)
    landscape = TableLandscape(table)
    run = Run(landscape, seed=0, evaluations=500)
    with contextlib.suppress(EnoughError):
        METHODS[name](run)
    assert all(landscape.feasible.contains(subnet) for subnet in run.scores)
    assert len(run.regrets) == len(landscape.top1) < 200
    assert run.regrets == sorted(run.regrets, reverse=True)
    assert run.regrets[-1] == 0 < run.regrets[0]


def test_table_answers_with_the_nearest_subnet_left(table: Path) -> None:
    landscape = TableLandscape(table)
    seen: set[int] = set()
    subnet = landscape.pool[0]
    for _ in range(3):
        landscape.evaluate(subnet, seen, seed=0)
    asked = choices_of(landscape.space, [subnet])
    away = abs(landscape.places[:, 2:] - asked).sum(1)
    same = (landscape.places[:, :2] == [[1000 * subnet.depth, 1000 * subnet.embed_dim]]).all(1)
    nearest = sorted(away[same])[:3]
    assert sorted(away[list(seen)]) == nearest


def test_command_prints_regrets_and_the_best_of_a_size(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--seeds", "2", "--evaluations", "50", "--spaces", "tiny")
    assert main([*small, "--tables", str(table)]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    regrets = {(row["input"], row["model"]): row for row in rows if row["what"] == "regret"}
    assert len(regrets) == 2 * len(METHODS)
    assert all(0 <= row["p10"] <= row["median"] <= row["p90"] for row in regrets.values())
    published, best = (row["median"] for row in rows if row["what"] == "params")
    assert 0.9 * published < best <= published


def test_table_of_another_form_is_refused(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table.write_text('{"space": "nano", "columns": [], "rows": []}')
    assert main(["--tables", str(table)]) == 2
    assert "is no table of measured subnets" in capsys.readouterr().err
