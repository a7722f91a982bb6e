"""The trainings of a reproduction: kinds, lengths and what each changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers.made_reproduction import CONFIG
from tests.helpers.made_training import MINI
from training.reproduce.config import PRESETS
from training.reproduce.trainings import (
    TrainingRun,
    compared_supernets,
    scale_stages,
    single_networks,
    supernets,
)
from training.settings.config import DistillConfig, Stage

LONG = replace(
    CONFIG,
    train=replace(CONFIG.train, stages=(Stage(20, 8), Stage(8, 12), Stage(4, 16))),
    sandwich_images_seeds=1,
    sandwich_no_smallest_seeds=1,
    taught_seeds=2,
    distill=DistillConfig(answers="teacher-{seed}.safetensors", share=0.6),
    lengths=(3, 64),
    length_seeds=1,
    one_seed_lengths=(5,),
    alone_subnets=2,
    finetuned_seeds=2,
)


@pytest.mark.parametrize(
    ("epochs", "scaled"),
    [
        (64, ((40, 8), (16, 12), (8, 16))),
        (8, ((5, 8), (2, 12), (1, 16))),
        (3, ((1, 8), (1, 12), (1, 16))),
        (2, ((1, 8), (1, 16))),
        (1, ((1, 16),)),
    ],
)
def test_stages_are_scaled_in_proportion(epochs: int, scaled: tuple[tuple[int, int], ...]) -> None:
    stages = scale_stages(LONG.train.stages, epochs)
    assert stages == tuple(Stage(*values) for values in scaled)


def test_kinds_change_what_they_are_named_for() -> None:
    runs, train = compared_supernets(LONG), LONG.train
    assert runs[TrainingRun("uniform", 1)] == replace(train, seed=1)
    assert runs[TrainingRun("separate", 0)] == train
    sandwich = runs[TrainingRun("sandwich", 0)]
    assert sandwich == replace(train, sampling="sandwich")
    fewer = runs[TrainingRun("sandwich_images", 0)]
    assert fewer.epochs * fewer.subnets_per_step == train.epochs
    assert fewer == replace(sandwich, stages=fewer.stages)
    without = runs[TrainingRun("sandwich_no_smallest", 0)]
    assert without.epochs == round(train.epochs / 3)
    assert without == replace(sandwich, sandwich_smallest=False, stages=without.stages)
    taught = runs[TrainingRun("taught", 1)]
    assert taught.distill == DistillConfig(answers="teacher-1.safetensors", share=0.6)
    lengths = supernets(LONG).items() - runs.items()
    assert {(run.name, config.epochs) for run, config in lengths} == {
        ("uniform_3-0", 3),
        ("uniform_64-0", 64),
        ("uniform_5-0", 5),
    }


def test_single_networks_are_trained_as_the_supernets() -> None:
    winner, others = MINI.largest, [MINI.smallest, MINI.largest]
    runs = single_networks(LONG, winner, others, lambda run: f"{run.name}.safetensors")
    assert [run.name for run in runs] == [
        *("alone-0", "alone-1", "alone_3-0", "alone_64-0", "alone_5-0"),
        *("random-0", "random-1", "finetuned-0", "finetuned-1"),
    ]
    alone = replace(LONG.train, sampling="fixed", subnet=winner.to_json(), seed=1)
    assert runs[TrainingRun("alone", 1)] == alone
    assert runs[TrainingRun("random", 0)].subnet == MINI.smallest.to_json()
    longer, uniform = runs[TrainingRun("alone_64", 0)], supernets(LONG)
    assert longer.stages == uniform[TrainingRun("uniform_64", 0)].stages
    tuned = runs[TrainingRun("finetuned", 1)]
    assert tuned.weights.checkpoint == "uniform-1.safetensors"
    assert (tuned.lr, tuned.stages) == (alone.lr / 10, (Stage(3, 16),))


def test_views_of_the_long_preset_are_those_that_its_teacher_answers() -> None:
    from training.engine.teacher.answers import what_decides_views
    from training.settings.presets import PRESETS as TRAIN_PRESETS

    ours = what_decides_views(PRESETS["cifar10-cpu-long"].train)
    assert ours == what_decides_views(TRAIN_PRESETS["nano-distilled"])
