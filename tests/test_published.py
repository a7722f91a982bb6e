"""The table of models: names, tags and sources agree, and accuracies are the authors'."""

from __future__ import annotations

import pytest

from autoformer_zoo.published import MODELS, PUBLISHED, SPACES, find_model
from autoformer_zoo.space import misfit
from autoformer_zoo.weights.sources import SOURCES


@pytest.mark.parametrize("name", MODELS)
def test_every_model_fits_its_space_and_sources(name: str) -> None:
    spec = MODELS[name]
    assert misfit(spec.subnet, SPACES[spec.space].supernet) is None
    for weights in spec.weights.values():
        assert weights.source is None or SOURCES[weights.source].space == spec.space
        assert find_model(f"{name}.{next(iter(spec.weights))}")[1] is spec


def test_published_figures_are_the_authors() -> None:
    assert {name: (a.top1_percent, a.top5_percent) for name, a in PUBLISHED.items()} == {
        "autoformer_tiny.ms_in1k": (75.3, 92.7),
        "autoformer_small.ms_in1k": (81.7, 95.7),
        "autoformer_base.ms_in1k": (82.4, 95.7),
        "prenas_tiny_6m.in1k": (77.1, 93.4),
        "prenas_small_23m.in1k": (81.8, 95.9),
        "prenas_base_54m.in1k": (82.6, 96.0),
    }
