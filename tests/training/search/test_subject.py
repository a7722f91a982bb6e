"""What a search scores: which held-out images, at which size, and the file that it leaves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import autoformer_zoo as az
from tests.helpers.made_training import MINI, MINI_CONFIG, QUICK, make_images, split_in_memory
from training.config import Stage
from training.data import open as data_open
from training.data.batch import Batch
from training.run import plots as search_plot
from training.search import evaluation as subject_module
from training.search import search as search_module
from training.search.config import Bounds, SearchConfig
from training.search.evaluation import MemoryBatches, accuracy_on, keep_held_out, open_subject
from training.search.evolution import EvolutionConfig
from training.search.search import search
from training.train import train

CONFIG = SearchConfig(evolution=EvolutionConfig(4, 2, 2, 1, 1))


class Numbered:
    """A source of held-out images whose label is their number."""

    num_train = 1
    held_out_list: list[int] = []  # noqa: RUF012

    def __init__(self, count: int, told: bool = True) -> None:
        self.count, self.num_held_out = count, count if told else 0
        self.read = 0

    def held_out(self, img_size: int) -> Iterator[Batch]:
        self.read += 1
        for labels in torch.arange(self.count).split(4):
            yield Batch(torch.zeros(len(labels), 3, img_size, img_size), labels)


def _labels(batches: object) -> list[int]:
    return [int(label) for batch in batches for label in batch.labels]  # type: ignore[attr-defined]


@pytest.mark.parametrize("told", [True, False])
def test_images_are_spread_evenly_over_a_sorted_set(told: bool) -> None:
    batches, identity = keep_held_out(Numbered(20, told), 4, 5)
    assert _labels(batches) == [3, 7, 11, 15, 19]
    assert (identity["held_out"], identity["held_out_of"]) == (5, 20)
    for count, expected in ((0, 20), (20, 20), (99, 20), (7, 7)):
        batches, identity = keep_held_out(Numbered(20, told), 4, count)
        assert len(_labels(batches)) == expected == identity["held_out"]
    with pytest.raises(ValueError, match="images is -1; expected 0 for all, or how many"):
        keep_held_out(Numbered(20), 4, -1)


def test_images_that_are_too_many_for_memory_are_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subject_module, "MOST_KEPT_BYTES", 100)
    source = Numbered(20)
    batches, _ = keep_held_out(source, 4, 5)
    assert source.read == 0
    assert _labels(batches) == _labels(batches) == [3, 7, 11, 15, 19]
    assert source.read == 2


def test_other_images_are_another_search() -> None:
    first, more = (keep_held_out(Numbered(count), 4)[1] for count in (20, 21))
    assert first["held_out_sha256"] != more["held_out_sha256"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train at 8 px a supernet whose own size is 16 px."""
    monkeypatch.setattr(data_open, "load_train", split_in_memory)
    monkeypatch.setattr(search_plot, "plot_search", lambda *rest: None)
    config = replace(MINI_CONFIG, stages=(Stage(1, 8),), batch_size=20)
    train(config, tmp_path, tmp_path / "run", progress=False, resources=QUICK)
    return tmp_path / "run"


def test_winners_file_opens_at_the_size_that_was_scored(run: Path, tmp_path: Path) -> None:
    subject = open_subject(tmp_path, run)
    result = search(subject, CONFIG, tmp_path / "out", progress=False)
    best = result["candidates"][result["best"]]
    file = tmp_path / "out" / "subnet.safetensors"
    model = az.create_model("autoformer_subnet", checkpoint_path=file).eval()
    assert model.patch_embed.img_size == (8, 8)
    assert accuracy_on(model, MemoryBatches(make_images(8, seed=4), 8)) == best["score"]
    assert best["params"] == sum(p.numel() for p in model.parameters())


def test_device_that_is_not_here_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device is 'tpu9', which cannot be used here; expected"):
        open_subject(tmp_path, run, device="tpu9")
    assert open_subject(tmp_path, run).device == "cpu"


def test_costs_are_counted_at_the_size_that_is_scored(run: Path, tmp_path: Path) -> None:
    small = open_subject(tmp_path, run)
    assert (small.scored_space.img_size, small.space.img_size) == (8, 16)
    batches = list(MemoryBatches(make_images(8), 16))
    whole = replace(small, img_size=None, batches=batches)
    assert whole.scored_space == MINI
    macs = [
        search(each, CONFIG, tmp_path / name, progress=False)["candidates"][0]["macs"]
        for name, each in (("small", small), ("whole", whole))
    ]
    assert macs[0] < macs[1] / 2


def test_limits_on_latency_that_none_keeps_leave_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = open_subject(tmp_path, run)
    tight = replace(CONFIG, bounds=Bounds(max_latency_ms=1e-6))
    measure = search_module.measure_latencies
    monkeypatch.setattr(
        search_module, "measure_latencies", lambda *rest: measure(*rest, rounds=3, seconds=0.1)
    )
    with pytest.raises(ValueError, match="no subnet of the space has latency_ms"):
        search(subject, tight, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    wide = replace(CONFIG, bounds=Bounds(max_latency_ms=1e6))
    search(subject, wide, tmp_path / "out", progress=False)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"latency.json", "search-config.json", "search.json"} <= names
