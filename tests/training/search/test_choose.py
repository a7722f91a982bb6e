"""Choosing a subnet of a trained supernet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autoformer_zoo.models.factory import extract_subnet
from autoformer_zoo.network.complexity import count_params
from autoformer_zoo.published import SPACES
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.checkpoint import save_supernet
from autoformer_zoo.weights.header import notes_to_cfg
from autoformer_zoo.weights.pretrained import load_supernet
from tests.helpers.made_search import memory_batches
from tests.helpers.made_training import make_images, train_quickly
from training.data import open as data_open
from training.search import evaluation
from training.search.choose import OURS, choose, main
from training.search.evaluation import accuracy_on, load_averaged
from training.settings.config import Stage, WeightsConfig
from training.settings.presets import SMOKE

NANO = SPACES["nano"]


def test_choose_scores_at_the_runs_size_and_opens_the_test_set_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_up_images: None
) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(data_open, "load_test", lambda root: opened.append(root) or make_images(20))
    config = replace(SMOKE, stages=(Stage(1, 8),), batch_size=20, num_classes=4)
    train_quickly(tmp_path / "run", config)
    out = tmp_path / "nano.safetensors"
    measured = choose(tmp_path / "run", tmp_path, out, 3, 2, progress=False)
    assert len(opened) == 1
    supernet = load_supernet(out)
    assert supernet.sizes == NANO.supernet
    assert {tensor.dtype for tensor in supernet.tensors.values()} == {torch.float16}
    assert notes_to_cfg(supernet.metadata)["interpolation"] == "bicubic"  # of larger images
    chosen = SubnetConfig.from_dict(measured["chosen"])
    best = max(each["acc1_percent"] for each in measured["held_out"])
    assert measured["held_out_acc1_percent"] == best
    assert len(measured["random_test_acc1_percent"]) == 2
    assert measured["params"] == count_params(chosen, 8, NANO.patch_size, 4)
    network = extract_subnet(load_averaged(tmp_path / "run"), chosen, 8)
    assert measured["test_acc1_percent"] == accuracy_on(network, memory_batches(make_images(20), 8))

    def refuse(*arguments: object) -> float:
        raise AssertionError("scored again")

    monkeypatch.setattr(evaluation, "inherited_accuracy", refuse)
    assert choose(tmp_path / "run", tmp_path, out, 3, 2, progress=False) == measured


def test_data_other_than_cifar10_is_refused(tmp_path: Path) -> None:
    config = replace(SMOKE, data=replace(SMOKE.data, source="folder"))
    (tmp_path / "config.json").write_text(config.to_json())
    with pytest.raises(ValueError, match="was trained on folder; expected CIFAR-10"):
        choose(tmp_path, tmp_path, tmp_path / "nano.safetensors")


@pytest.mark.parametrize(
    ("license", "origin", "expected"),
    [
        ("mit", "a friend", "mit"),
        ("unknown", "a friend", "unknown"),
        ("mit", OURS["origin"], "mit"),
        ("unknown", OURS["origin"], "unknown"),
    ],
)
def test_license_and_origin_of_the_weights_that_a_run_began_with_is_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    made_up_images: None,
    license: str,
    origin: str,
    expected: str,
) -> None:
    monkeypatch.setattr(data_open, "load_test", lambda root: make_images(20))
    weights = load_supernet("autoformer_nano")
    notes = {**weights.metadata, "license": license, "origin": origin}
    save_supernet(replace(weights, metadata=notes), tmp_path / "first.safetensors")
    first = WeightsConfig(checkpoint=str(tmp_path / "first.safetensors"))
    config = replace(SMOKE, stages=(Stage(1, 8),), batch_size=20, num_classes=4, weights=first)
    train_quickly(tmp_path / "run", config, stop_at=1)
    then = replace(config, weights=WeightsConfig(), initial=str(tmp_path / "run"))
    train_quickly(tmp_path / "then", then, stop_at=1)
    out = tmp_path / "nano.safetensors"
    choose(tmp_path / "then", tmp_path, out, 1, 0, progress=False)
    chosen = load_supernet(out).metadata
    assert chosen["license"] == expected
    assert ("a friend" in chosen["origin"]) == (origin == "a friend")
    is_ours = (license, origin) == ("mit", OURS["origin"])
    assert (chosen["origin"] == OURS["origin"]) == is_ours


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--out nowhere/c.st", "the folder nowhere does not exist; make it first"),
        ("--plot .", ". is a folder; expected the name of a file"),
        ("", "run/config.json does not exist; expected the directory of a training run"),
    ],
)
def test_mistake_is_one_line_before_anything_is_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--run-dir", "run", "--data-dir", ".", "--out", "x.safetensors"]
    assert main([*arguments, *flags.split()]) == 2
    err = capsys.readouterr().err
    assert text in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
