"""The comparison of search speeds: every way is timed, rankings of two precisions are compared."""

from __future__ import annotations

import json

import pytest
import torch

from tests.made_training import MINI, make_pictures
from training.evaluate import MemoryBatches
from training.search import Subject
from training.search_speed import BASELINE, _weights, main, tau_of_bf16
from training.supernet import Supernet


def test_every_way_is_told_against_the_explicit_one(capsys: pytest.CaptureFixture[str]) -> None:
    few = "--pictures 4 --batch-size 2 --explicit-batch-size 4 --rounds 3 --bf16"
    assert main(["--space", MINI.to_json(), *few.split()]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["what"] for row in rows] == [BASELINE, "extracted", "extracted bf16"]
    assert rows[0]["speed_over_explicit"] == 1
    assert all(row["pictures_per_s"] == pytest.approx(4 * row["candidates_per_s"]) for row in rows)


def test_unknown_space_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--space", "huge"]) == 2
    assert "space 'huge' is unknown" in capsys.readouterr().err


def test_ranking_of_bf16_is_compared_with_fp32() -> None:
    supernet = Supernet(MINI)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.normal_(std=0.3)
    batches = MemoryBatches(make_pictures(), MINI.img_size)
    subject = Subject(_weights(supernet, MINI), MINI, batches, {})
    assert 0.5 < tau_of_bf16(subject, 12) <= 1
