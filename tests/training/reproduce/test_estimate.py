"""The expected time grows with the work, and one step and one evaluation are enough to know it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.made_reproduction import CONFIG, use_made_images
from tests.helpers.made_training import QUICK
from training.reproduce import estimate
from training.reproduce.config import PhaseName, ReproduceConfig
from training.reproduce.estimate import Measured, describe_plan, expected_seconds, measure
from training.settings.config import Stage

ONE = replace(CONFIG, seeds=1, sandwich_seeds=0, separate_seeds=0, search_seeds=1)
MEASURED = Measured(step=1, extraction=0, image=0, num_train=40, num_held_out=8)


@pytest.mark.parametrize(
    ("config", "measured", "phase", "seconds"),
    [
        (ONE, MEASURED, "train", 2),  # 40 images in batches of 20
        (replace(ONE, sandwich_seeds=1), MEASURED, "train", 2 + 4 * 2),
        (replace(ONE, separate_seeds=1), MEASURED, "train", 2 + 2),
        (
            replace(ONE, train=replace(ONE.train, stages=(Stage(4, 8), Stage(1, 16)))),
            MEASURED,
            "train",
            2 * (4 / 4 + 1),
        ),
        (ONE, replace(MEASURED, image=1.0, extraction=2.0), "search", 2 * 8 * (6 + 2)),
        (ONE, replace(MEASURED, num_held_out=4, image=1.0), "search", 2 * 8 * 4),
        (replace(ONE, seeds=3), MEASURED, "retrain", 3 * 2),
        (replace(ONE, sandwich_images_seeds=1), MEASURED, "train", 2 + 4 * 2),  # one epoch at least
        (replace(ONE, sandwich_no_smallest_seeds=1), MEASURED, "train", 2 + 3 * 2),
        (replace(ONE, lengths=(5,), length_seeds=1), MEASURED, "train", 2 + 5 * 2),
        (replace(ONE, lengths=(5,), length_seeds=1), MEASURED, "retrain", 2 + 5 * 2),
        (replace(ONE, alone_subnets=2, finetuned_seeds=1), MEASURED, "retrain", 4 * 2),
        (replace(ONE, alone_subnets=2), replace(MEASURED, image=1.0), "evaluate", (6 + 2) * 6),
    ],
    ids=[
        *("uniform", "sandwich", "separate", "sizes", "search", "few images", "retrain"),
        *("equal images", "no smallest", "longer", "longer alone", "single", "scored alone"),
    ],
)
def test_expected_time_grows_with_the_work(
    config: ReproduceConfig, measured: Measured, phase: PhaseName, seconds: float
) -> None:
    assert expected_seconds(config, measured)[phase] == seconds


def test_plan_shows_what_remains() -> None:
    seconds = expected_seconds(ONE, MEASURED) | {"extract": 30.0}
    lines = describe_plan(ONE, ("search", "extract"), ("extract",), seconds)
    by_name = {line.split()[0]: line for line in lines}
    assert by_name["train"].endswith("not requested")
    assert by_name["search"].endswith("done")
    assert by_name["extract"].endswith("about 30 s")
    assert "Expected in all: about 30 s," in lines[-1]


def test_large_batches_are_timed_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_made_images(monkeypatch)

    def one_second(call: Callable[[], object], device: object) -> float:
        call()
        return 1.0

    monkeypatch.setattr(estimate, "_seconds", one_second)
    whole = measure(ONE.train, tmp_path, QUICK)
    assert (whole.step, whole.num_train, whole.num_held_out) == (1.0, 40, 8)
    monkeypatch.setattr(estimate, "MAX_PIXELS", 10 * 8 * 8)
    assert measure(ONE.train, tmp_path, QUICK).step == 2.0
