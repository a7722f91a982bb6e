"""Loss scaling under fp16: what is skipped, what counts as bad, what a checkpoint keeps."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.helpers.made_training import (
    ALONE,
    assert_same_run,
    log_lines,
    multiply_losses,
    train_quickly,
)
from training.engine import loop
from training.engine.loop import DivergedError
from training.run.checkpoints import load_checkpoint, save_checkpoint
from training.settings.config import Stage

FP16 = replace(ALONE, precision="fp16", stages=(Stage(2, 8),), max_bad_steps=2)


pytestmark = pytest.mark.usefixtures("made_up_images")


def start_scaler(monkeypatch: pytest.MonkeyPatch, **arguments: float) -> None:
    """Let runs begin with a scaler of these arguments."""
    made = partial(torch.amp.GradScaler, **arguments)
    monkeypatch.setattr(loop.torch.amp, "GradScaler", made)


def assert_same_values(one: Path, other: Path) -> None:
    """Compare what two checkpoints keep, bit by bit."""
    kept = ("network", "ema", "optimizer", "scaler", "step", "skipped", "bad_in_row", "recent")
    first, second = load_checkpoint(one), load_checkpoint(other)
    for name in kept:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)


def test_step_of_a_loss_that_is_nan_is_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        multiply_losses(patch, {2: float("nan")})
        assert train_quickly(tmp_path / "nan", FP16).skipped == 1
    train_quickly(tmp_path / "other", FP16, stop_at=2)
    before = load_checkpoint(tmp_path / "other")
    save_checkpoint({**before, "step": 3, "skipped": 1, "bad_in_row": 1}, tmp_path / "other")
    train_quickly(tmp_path / "other", FP16)
    assert_same_values(tmp_path / "nan", tmp_path / "other")
    assert load_checkpoint(tmp_path / "nan")["scaler"]["scale"] == before["scaler"]["scale"]
    assert "loss" not in log_lines(tmp_path / "nan")[2]


def test_overflows_that_find_the_scale_are_skipped_and_lead_to_no_rollback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_scaler(monkeypatch, init_scale=2.0**28)
    state = train_quickly(tmp_path, FP16, stop_at=4)
    start = loop.make_state(FP16, torch.device("cpu"))
    for part in ("network", "ema"):
        trained, fresh = getattr(state, part).state_dict(), getattr(start, part).state_dict()
        assert all(torch.equal(trained[name], fresh[name]) for name in fresh)
    assert (state.skipped, state.bad_in_row, state.recent) == (4, 0, [])
    assert state.scaler.get_scale() == 2.0**24
    config = replace(FP16, stages=(Stage(6, 8),))
    state = train_quickly(tmp_path / "long", config)
    assert 4 < state.skipped < state.step == 30
    assert (state.rollbacks, state.bad_in_row) == (0, 0)


def test_gradient_that_no_scale_mends_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_scaler(monkeypatch, init_scale=8.0)
    multiply_losses(monkeypatch, dict.fromkeys(range(10), 1e30))  # finite, its gradient is not
    # Scales 8, 4 and 2 are tried; 1 and below count.
    with pytest.raises(DivergedError, match=r"2 steps in a row were not finite .* at step 5"):
        train_quickly(tmp_path, replace(FP16, max_rollbacks=0))


def test_overflow_between_bad_losses_does_not_make_them_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply_losses(monkeypatch, {2: float("nan"), 3: 1e30, 4: float("inf")})
    state = train_quickly(tmp_path, FP16)
    assert (state.skipped, state.rollbacks) == (3, 1)


def test_resumed_run_has_the_same_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start_scaler(monkeypatch, init_scale=4.0, growth_interval=3)
    train_quickly(tmp_path / "whole", FP16)
    train_quickly(tmp_path / "cut", FP16, stop_at=5)
    kept = load_checkpoint(tmp_path / "cut")["scaler"]
    assert (kept["scale"], kept["_growth_tracker"]) == (8.0, 2)
    train_quickly(tmp_path / "cut", FP16)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert_same_values(tmp_path / "whole", tmp_path / "cut")
