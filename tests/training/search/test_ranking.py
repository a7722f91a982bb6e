"""A search in bf16: only where it ranks subnets as fp32 does."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from autoformer_zoo.network.supernet import Supernet
from autoformer_zoo.space import SubnetConfig
from benchmarks.candidates import _weights
from tests.helpers.made_training import MINI, make_images
from training.run import plots as search_plot
from training.search import scoring as ranking
from training.search.config import SearchConfig
from training.search.evaluation import MemoryBatches, Subject
from training.search.evolution import EvolutionConfig
from training.search.scoring import COMPARED, compare_rankings, require_same_ranking
from training.search.search import search


def _size(subnets: Sequence[SubnetConfig]) -> list[float]:
    return [subnet.embed_dim + sum(subnet.mlp_ratio) + hash(subnet) % 1009 for subnet in subnets]


def test_rankings_are_of_many_different_subnets() -> None:
    seen: list[SubnetConfig] = []

    def note(subnets: Sequence[SubnetConfig]) -> list[float]:
        seen.extend(subnets)
        return _size(subnets)

    assert compare_rankings(MINI, note, _size) == 1
    assert len(set(seen)) == len(seen) == min(COMPARED, MINI.size)


@pytest.mark.parametrize("other", [lambda s: [-x for x in _size(s)], lambda s: [0.0] * len(s)])
def test_another_ranking_is_refused(other: ranking.Score) -> None:
    require_same_ranking(MINI, _size, lambda subnets: [2 * x for x in _size(subnets)])
    with pytest.raises(ValueError, match=r"Kendall's tau is (-1\.000|nan), expected 0\.98 or more"):
        require_same_ranking(MINI, _size, other)


def test_search_in_bf16_scores_in_bf16_if_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_plot, "plot_search", lambda *rest: None)
    batches = MemoryBatches(make_images(), MINI.img_size)
    subject = Subject(_weights(Supernet(MINI), MINI), MINI, batches, {})
    config = SearchConfig(precision="bf16", evolution=EvolutionConfig(4, 2, 2, 1, 1))
    monkeypatch.setattr(ranking, "LEAST_TAU", 2.0)
    with pytest.raises(ValueError, match="precision is bf16, which ranks 50 random subnets other"):
        search(subject, config, tmp_path / "no", progress=False)
    assert not (tmp_path / "no" / "search.json").exists()
    monkeypatch.setattr(ranking, "LEAST_TAU", -2.0)
    found = search(subject, config, tmp_path / "yes", progress=False)["candidates"]
    half = replace(subject, precision="bf16")
    for each in random.Random(0).sample(found, 3):
        assert each["score"] == half.accuracy(SubnetConfig.from_dict(each["subnet"]))
