"""Scoring: the journal, several processes, and scores in bf16 only if they rank alike."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from autoformer_zoo.space import SubnetConfig
from tests.helpers.made_search import make_task
from tests.helpers.made_training import MINI
from training.run import plots
from training.search import scoring
from training.search.config import SearchConfig
from training.search.evolution import EvolutionConfig, Scorer
from training.search.scoring import (
    COMPARED,
    JournaledScorer,
    compare_rankings,
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


RANKS = """
import json, sys
from pathlib import Path
from autoformer_zoo.space import SearchSpace
from training.run.distributed import LostProcessError
from training.search.constraints import Feasible
from training.search.evolution import EvolutionConfig, evolve
from training.search.scoring import JournaledScorer, join_ranks

space, out = SearchSpace.from_json(sys.argv[1]), Path(sys.argv[2])
ranks, errors = join_ranks(), [None]
few = EvolutionConfig(6, 3, 3, 2, 2)

def score_one(subnet):
    if ranks.rank == 1 and errors[0]:
        raise errors[0]
    return subnet.embed_dim + sum(subnet.mlp_ratio) - len(subnet.num_heads) / 3

def report(name, folder, header):
    try:
        evolve(Feasible(space), JournaledScorer(score_one, out / folder, header, ranks, False), few)
    except (ValueError, OSError, LostProcessError) as error:
        (out / f"{name}-{ranks.rank}.txt").write_text(str(error))

scorer = JournaledScorer(score_one, out / "good", {"a": 1}, ranks, False)
done = evolve(Feasible(space), scorer, few)
scores = [[candidate.subnet.to_dict(), candidate.score] for candidate in done]
(out / f"done-{ranks.rank}.json").write_text(json.dumps(scores))
report("other", "good", {"a": 2})
report("shut", "shut", {})
errors[0] = OSError("the disk is gone")
report("failed", "failed", {})
errors[0] = SystemExit(3)
report("lost", "lost", {})
"""


@pytest.mark.slow
def test_two_processes_share_candidates_and_failures(tmp_path: Path) -> None:
    (tmp_path / "shut" / "journal-0.jsonl").mkdir(parents=True)  # cannot be read as a file
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RANKS, MINI.to_json(), str(tmp_path)],
            cwd=Path(__file__).resolve().parents[3],
            env={**os.environ, **shared, "RANK": rank, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    outcomes = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 3], outcomes

    def read(name: str) -> str:
        return (tmp_path / name).read_text()

    done = json.loads(read("done-0.json"))
    assert json.loads(read("done-1.json")) == done
    assert len(done) == 18
    assert len(read("good/journal-0.jsonl").splitlines()) == 1 + 18
    for rank in (0, 1):
        assert "was begun with a=1" in read(f"other-{rank}.txt")
        assert "Is a directory" in read(f"shut-{rank}.txt")
        assert "the disk is gone" in read(f"failed-{rank}.txt")
    assert "a process was lost" in read("lost-0.txt")

    scorer = JournaledScorer(refuse, tmp_path / "good", {"a": 1}, progress=False)
    assert scorer([SubnetConfig.from_dict(done[0][0])]) == [done[0][1]]


# bf16


def made_scores(subnets: Sequence[SubnetConfig]) -> list[float]:
    return [subnet.embed_dim + sum(subnet.mlp_ratio) + hash(subnet) % 1009 for subnet in subnets]


def test_rankings_are_of_many_different_subnets() -> None:
    seen: list[SubnetConfig] = []

    def note(subnets: Sequence[SubnetConfig]) -> list[float]:
        seen.extend(subnets)
        return made_scores(subnets)

    assert compare_rankings(MINI, note, made_scores) == 1
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
