"""Scoring: the journal, several processes, and scores in bf16 only if they rank alike."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.specialization.evolution import EvolutionConfig, Scorer
from tests.helpers.made_search import make_task
from tests.helpers.made_training import MINI
from training.run import plots
from training.run.distributed import Ranks
from training.search import scoring
from training.search.config import SearchConfig
from training.search.scoring import (
    COMPARED,
    JournaledScorer,
    require_same_ranking,
)
from training.search.search import search


def refuse(subnet: SubnetConfig) -> NoReturn:
    raise AssertionError(f"{subnet} is scored again")


def test_journal_and_bar_come_with_the_first_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scorer = JournaledScorer(lambda subnet: 1.0, tmp_path / "out", {})
    assert not (tmp_path / "out").exists()
    scorer([MINI.smallest])
    assert "0/1" in capsys.readouterr().err
    assert (tmp_path / "out" / "journal-0.jsonl").exists()
    assert scorer([MINI.smallest]) == [1.0]
    assert scorer.num_scored == 1
    assert capsys.readouterr().err == ""


def test_journals_of_all_ranks_are_read(tmp_path: Path) -> None:
    for rank, subnet in enumerate((MINI.smallest, MINI.largest)):
        JournaledScorer(lambda s: s.depth / 3, tmp_path, {}, progress=False)([subnet])
        (tmp_path / "journal-0.jsonl").rename(tmp_path / f"journal-{rank + 1}.jsonl")
    scorer = JournaledScorer(refuse, tmp_path, {}, progress=False)
    assert scorer([MINI.smallest, MINI.largest]) == [1 / 3, 1.0]


GOOD = MINI.smallest.to_dict()


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[1]",
        json.dumps({"subnet": GOOD}),
        json.dumps({"score": 1.0}),
        json.dumps({"subnet": {"depth": 1}, "score": 1.0}),
        json.dumps({"subnet": GOOD, "score": None}),
        json.dumps({"subnet": {**GOOD, "embed_dim": 10**400}, "score": 1.0}),
        json.dumps({"subnet": GOOD, "score": 10**400}),
        "[" * 100_000,
    ],
    ids=lambda line: line[-24:],
)
def test_damaged_journal_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "journal-3.jsonl").write_text('{"header": {}}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"journal-3\.jsonl is damaged .*; delete it to"):
        JournaledScorer(refuse, tmp_path, {}, progress=False)


class LostRanks(Ranks):
    """Two processes, of which the other one fails in its work."""

    def together(self, work: Callable[[], Any]) -> Any:
        work()
        raise OSError("the disk of rank 1 is full")

    def by_first(self, work: Callable[[], Any]) -> Any:
        return work()


def test_failure_of_another_process_is_raised_and_not_journaled(tmp_path: Path) -> None:
    scored: list[SubnetConfig] = []
    ranks = LostRanks(torch.device("cpu"), rank=0, world=2)
    scorer = JournaledScorer(lambda s: scored.append(s) or 1.0, tmp_path, {}, ranks, False)
    with pytest.raises(OSError, match="the disk of rank 1 is full"):
        scorer([MINI.smallest, MINI.largest])
    assert scored == [MINI.smallest]
    assert not list(tmp_path.iterdir())


# bf16


def made_scores(subnets: Sequence[SubnetConfig]) -> list[float]:
    return [subnet.embed_dim + sum(subnet.mlp_ratio) + hash(subnet) % 1009 for subnet in subnets]


def test_rankings_are_of_many_different_subnets() -> None:
    seen: list[SubnetConfig] = []

    def note(subnets: Sequence[SubnetConfig]) -> list[float]:
        seen.extend(subnets)
        return made_scores(subnets)

    assert require_same_ranking(MINI, note, made_scores) == 1
    assert len(set(seen)) == len(seen) == min(COMPARED, MINI.size)


@pytest.mark.parametrize(
    "other", [lambda s: [-x for x in made_scores(s)], lambda s: [0.0] * len(s)]
)
def test_another_ranking_is_refused(other: Scorer) -> None:
    require_same_ranking(MINI, made_scores, lambda s: [2 * x for x in made_scores(s)])
    with pytest.raises(ValueError, match=r"Kendall's tau is (-1\.000|nan), expected 0\.98 or more"):
        require_same_ranking(MINI, made_scores, other)


def test_search_in_bf16_scores_in_bf16_if_it_ranks_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "plot_search", lambda *rest: None)
    monkeypatch.setattr(scoring, "COMPARED", 4)
    task = make_task()
    config = SearchConfig(precision="bf16", evolution=EvolutionConfig(4, 2, 2, 1, 1))
    monkeypatch.setattr(scoring, "MIN_TAU", 2.0)
    with pytest.raises(ValueError, match="precision is bf16, which ranks 4 random subnets other"):
        search(task, config, tmp_path / "no", progress=False)
    assert not (tmp_path / "no" / "search.json").exists()
    monkeypatch.setattr(scoring, "MIN_TAU", -2.0)
    found = search(task, config, tmp_path / "yes", progress=False)["candidates"]
    bf16 = replace(task, precision="bf16")
    for row in random.Random(0).sample(found, 3):
        assert row["score"] == bf16.accuracy(SubnetConfig.from_dict(row["subnet"]))
