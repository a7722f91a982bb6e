"""What a search scores: which held-out images, at which size, with which weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import autoformer_zoo as az
from autoformer_zoo.models.factory import extract_subnet
from autoformer_zoo.specialization.evolution import EvolutionConfig
from tests.helpers.made_search import make_task, memory_batches
from tests.helpers.made_training import MINI, MINI_CONFIG, QUICK, make_images, split_in_memory
from training.data import open as data_open
from training.data.batch import Batch
from training.data.cifar10 import Images
from training.run import plots
from training.search import evaluation
from training.search.config import SearchConfig
from training.search.evaluation import accuracy_on, keep_held_out, open_task
from training.search.search import search
from training.settings.config import Stage
from training.train import train

CONFIG = SearchConfig(evolution=EvolutionConfig(4, 2, 2, 1, 1))


class Numbered:
    """A source of held-out images whose labels are their numbers."""

    num_train = 1
    held_out_list: list[int] = []  # noqa: RUF012

    def __init__(self, count: int, has_length: bool = True) -> None:
        self.count, self.num_held_out = count, count if has_length else 0
        self.num_read = 0

    def held_out(self, img_size: int) -> Iterator[Batch]:
        self.num_read += 1
        for labels in torch.arange(self.count).split(4):
            yield Batch(torch.zeros(len(labels), 3, img_size, img_size), labels)


def labels_of(batches: Iterable[Batch]) -> list[int]:
    return [int(label) for batch in batches for label in batch.labels]


@pytest.mark.parametrize("has_length", [True, False])
def test_images_are_spread_evenly_over_a_sorted_set(has_length: bool) -> None:
    batches, identity = keep_held_out(Numbered(20, has_length), 4, 5)
    assert labels_of(batches) == [3, 7, 11, 15, 19]
    assert (identity["held_out"], identity["held_out_of"]) == (5, 20)
    for count, expected in ((0, 20), (20, 20), (99, 20), (7, 7)):
        batches, identity = keep_held_out(Numbered(20, has_length), 4, count)
        assert len(labels_of(batches)) == expected == identity["held_out"]
    with pytest.raises(ValueError, match="images is -1; expected a positive number, or 0 for all"):
        keep_held_out(Numbered(20), 4, -1)


def test_images_that_do_not_fit_into_memory_are_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluation, "MAX_KEPT_BYTES", 100)
    source = Numbered(20)
    batches, _ = keep_held_out(source, 4, 5)
    assert source.num_read == 0
    assert labels_of(batches) == labels_of(batches) == [3, 7, 11, 15, 19]
    assert source.num_read == 2


def test_other_images_have_another_identity() -> None:
    first, more = (keep_held_out(Numbered(count), 4)[1] for count in (20, 21))
    assert first["held_out_sha256"] != more["held_out_sha256"]


def test_score_is_the_accuracy_of_the_extracted_subnet() -> None:
    task = make_task()
    model = extract_subnet(task.supernet, MINI.smallest)
    (batch,) = task.batches
    with torch.no_grad():
        share = (model(batch.x).argmax(1) == batch.labels).float().mean().item()
    assert task.accuracy(MINI.smallest) == pytest.approx(100 * share)


def test_accuracy_leaves_out_images_that_could_not_be_read() -> None:
    images = make_images(8)
    images.labels[4:] = -1

    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.eye(4)[:1].expand(len(x), 4)

    assert accuracy_on(network, memory_batches(images, 16)) == 25
    with pytest.raises(ValueError, match="no image to classify; expected some that can be read in"):
        accuracy_on(network, [])


# Runs


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train at 8 px a supernet whose own size is 16 px."""
    monkeypatch.setattr(data_open, "load_train", split_in_memory)
    monkeypatch.setattr(plots, "plot_search", lambda *rest: None)
    config = replace(MINI_CONFIG, stages=(Stage(1, 8),), batch_size=20)
    train(config, tmp_path, tmp_path / "run", progress=False, resources=QUICK)
    return tmp_path / "run"


def test_task_of_a_run_is_its_rounded_average(run: Path, tmp_path: Path) -> None:
    rounded, exact = (open_task(tmp_path, run, half=half) for half in (True, False))
    assert {t.dtype for t in rounded.supernet.tensors.values()} == {torch.float16}
    assert rounded.identity["held_out"] == 8
    assert rounded.identity["supernet_sha256"] != exact.identity["supernet_sha256"]
    assert rounded.device == "cpu"
    with pytest.raises(ValueError, match="device is 'tpu9', which cannot be used here; expected"):
        open_task(tmp_path, run, device="tpu9")
    with pytest.raises(FileNotFoundError):
        open_task(tmp_path, tmp_path / "nowhere")


def test_supernet_is_not_scored_on_other_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("truck", "ship", "horse", "frog", "dog", "deer", "cat", "bird", "automobile", "plane")

    def load(*_: object) -> list[Images]:
        return [replace(images, class_names=names) for images in split_in_memory()]

    monkeypatch.setattr(data_open, "load_train", load)
    with pytest.raises(ValueError, match=r"classes are 10: airplane, .* the data 10: truck, "):
        open_task(tmp_path, supernet="autoformer_nano", preset="smoke")


def test_costs_and_the_winners_file_have_the_size_that_was_scored(
    run: Path, tmp_path: Path
) -> None:
    task = open_task(tmp_path, run)
    assert (task.scored_space.img_size, task.space.img_size) == (8, 16)
    result = search(task, CONFIG, tmp_path / "out", progress=False)
    best = result["candidates"][result["best"]]
    file = tmp_path / "out" / "subnet.safetensors"
    model = az.create_model("autoformer_subnet", checkpoint_path=file).eval()
    assert model.patch_embed.img_size == (8, 8)
    assert accuracy_on(model, memory_batches(make_images(8, seed=4), 8)) == best["score"]
    assert best["params"] == sum(p.numel() for p in model.parameters())
    assert best["macs"] == az.count_macs(model.cfg, 8, 4, 4)
