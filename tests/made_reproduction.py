"""What tests of the reproduction share: a config of seconds, made-up pictures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.made_training import MINI_CONFIG, make_pictures, split_in_memory
from training import reproduce, search_plot, sources
from training.config import Stage
from training.evolution import EvolutionConfig
from training.reproduce_config import ReproduceConfig
from training.search_config import SearchConfig

CONFIG = ReproduceConfig(
    # The last stage is smaller than the space's size: everything has to be scored at the stage's.
    train=replace(MINI_CONFIG, stages=(Stage(1, 8),), batch_size=20, checkpoint_every=50),
    search=SearchConfig(evolution=EvolutionConfig(4, 2, 2, 1, 1)),
    seeds=2,
    sandwich_seeds=1,
    separate_seeds=1,
    search_seeds=2,
    random_subnets=6,
    compared_subnets=2,
    pictures=6,
)


def use_made_pictures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Train on made-up pictures; returns a list that grows when the test set is opened."""
    opened: list[int] = []
    monkeypatch.setattr(sources, "load_train", split_in_memory)
    monkeypatch.setattr(reproduce, "load_test", lambda root: opened.append(1) or make_pictures(12))
    monkeypatch.setattr(search_plot, "plot_search", lambda result, out: out.write_text("<svg/>"))
    return opened
