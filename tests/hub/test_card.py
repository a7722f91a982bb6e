"""Model cards: metadata that huggingface_hub reads back, and figures that stay apart."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load

import autoformer_zoo as az
from autoformer_zoo.published import MODELS, SPACES, Accuracy
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.layouts import Architecture
from hub.card import CardFacts, make_card

NANO = CardFacts(
    "autoformer_nano.cifar10",
    "someone/nano",
    replace(Architecture.of_space(SPACES["nano"]), sizes=az.SUBNETS["autoformer_nano"]),
    has_supernet=True,
    origin="trained on CIFAR-10",
    license="mit",
    measured=MODELS["autoformer_nano"].weights["cifar10"].measured,
)
TINY = CardFacts(
    "autoformer_tiny.ms_in1k",
    "someone/tiny",
    replace(Architecture.of_space(SPACES["tiny"]), sizes=az.SUBNETS["autoformer_tiny"]),
    license="unknown: none is stated",
    published=MODELS["autoformer_tiny"].weights["ms_in1k"].published,
)
PREDICTED = replace(TINY, name="fast", published=None, predicted=Accuracy(74.9, None, "x", "y"))


@pytest.mark.parametrize("facts", [NANO, TINY, PREDICTED], ids=lambda facts: facts.name)
def test_metadata_comes_back_from_the_file(facts: CardFacts, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(make_card(facts), encoding="utf-8")
    metadata: Any = metadata_load(tmp_path / "README.md")
    assert metadata["library_name"] == "timm"
    assert metadata["pipeline_tag"] == "image-classification"
    assert metadata["license"] == ("mit" if facts is NANO else "unknown")
    results = ModelCard.load(tmp_path / "README.md").data.eval_results
    values = [result.metric_value for result in results or ()]
    assert values == ([94.18] if facts is NANO else [])  # measured ones only


@pytest.mark.parametrize(
    ("facts", "row"),
    [
        (NANO, "| measured | 94.18 | - | CIFAR-10 test"),
        (NANO, "| published | - | - |"),
        (TINY, "| published | 75.30 | 92.70 | ImageNet-1k validation"),
        (TINY, "| measured | - | - |"),
        (PREDICTED, "| predicted | about 74.90 | - | x | y |"),
    ],
)
def test_published_measured_and_predicted_figures_stay_apart(facts: CardFacts, row: str) -> None:
    assert row in make_card(facts)


def test_card_has_the_counts_of_the_network() -> None:
    card = make_card(TINY)
    assert f"| parameters | {az.count_params('autoformer_tiny'):,} |" in card
    assert f"| multiply-adds | {az.count_macs('autoformer_tiny'):,} |" in card
    assert "The license of the weights is unknown (none is stated)" in card
    assert re.search(r"\| eager \| fp32 \| 1 \| 2 \| 33.4 \| Intel", card)
    assert not re.search(r"\$\w", card)  # no gap of the template is left
    assert "Not measured." in make_card(PREDICTED)


def test_supernets_card_cuts_a_subnet_that_fits() -> None:
    text = re.search(r"from_json\('(.*)'\)", make_card(NANO))
    assert text
    assert SPACES["nano"].contains(SubnetConfig.from_json(text[1]))
    assert "from_json" not in make_card(TINY)
