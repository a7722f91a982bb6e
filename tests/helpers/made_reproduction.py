"""What tests of the reproduction share: a config of seconds, made-up images."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autoformer_zoo.specialization.evolution import EvolutionConfig
from tests.helpers.made_training import MINI_CONFIG, make_images, split_in_memory
from training.data import open as data_open
from training.reproduce.config import ReproduceConfig
from training.run import plots
from training.search.config import SearchConfig
from training.settings.config import Stage

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
    images=6,
)


def use_made_images(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Train on made-up images; returns a list that grows when the test set is opened."""
    opened: list[int] = []
    monkeypatch.setattr(data_open, "load_train", split_in_memory)
    monkeypatch.setattr(data_open, "load_test", lambda root: opened.append(1) or make_images(12))
    monkeypatch.setattr(plots, "plot_search", lambda result, out: out.write_text("<svg/>"))
    return opened
