"""Batches from streams: whole epochs, shares of processes, what cannot be read."""

from __future__ import annotations

import io
import logging
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from timm.data import IterableImageDataset

from tests.helpers.made_training import FOLDER, QUICK, log_lines
from training.config import AugmentConfig, DataConfig, Stage, TrainConfig
from training.data import datasets
from training.data.open import open_source
from training.run.distributed import SINGLE, Ranks
from training.run.schedule import Schedule
from training.train import train


class Shards:
    """A reader of a stream: gives its images in order, and says how many there are.

    As timm's readers, it counts a process's share as its length, and skips with a warning.
    """

    dist_num_replicas = 1

    def __init__(self, count: int) -> None:
        self.num_samples = count
        self.broken: frozenset[int] = frozenset()
        self.error: Exception | None = None
        self.epochs: list[int] = []

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        for number in range(self.num_samples):
            if number in self.broken:
                logging.getLogger("timm.data.readers.reader_wds").warning("no image %d", number)
            elif self.error:
                raise self.error
            else:
                yield Image.new("RGB", (16, 16), (number, 0, 0)), number % 4

    def __len__(self) -> int:
        return self.num_samples // self.dist_num_replicas

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


@pytest.fixture
def shards(monkeypatch: pytest.MonkeyPatch) -> Shards:
    reader = Shards(19)
    monkeypatch.setattr(
        datasets, "create_dataset", lambda *_, **__: IterableImageDataset("", reader=reader)
    )
    return reader


STREAM = replace(
    FOLDER,
    data=replace(FOLDER.data, source="wds/shards", held_out_split="held-out"),
    augment=AugmentConfig(crop="none"),
)


def test_stream_gives_whole_batches_and_starts_epochs_anew(shards: Shards, tmp_path: Path) -> None:
    source = open_source(STREAM, tmp_path, SINGLE, QUICK)
    schedule = Schedule(STREAM, source.num_train)
    labels = [batch.labels.tolist() for batch in source.train(schedule, 2, schedule.total)]
    assert len(labels) == 6
    assert labels == [[0, 1, 2, 3]] * 6
    assert shards.epochs == [0, 1]
    assert sum(len(batch.labels) for batch in source.held_out(8)) == 19
    state = train(STREAM, tmp_path, tmp_path / "run", progress=False, resources=QUICK)
    assert state.step == 8


def test_stream_of_more_classes_than_the_network_has_is_refused(
    shards: Shards, tmp_path: Path
) -> None:
    config = replace(STREAM, num_classes=2)
    source = open_source(config, tmp_path, SINGLE, QUICK)
    with pytest.raises(ValueError, match="wds/shards has labels up to 3, 4 classes; the network"):
        next(source.train(Schedule(config, source.num_train), 0, 1))


def test_stream_divided_among_processes_has_the_epoch_of_one(
    shards: Shards, tmp_path: Path
) -> None:
    alone = open_source(STREAM, tmp_path, SINGLE, QUICK).num_train
    assert (
        open_source(STREAM, tmp_path, Ranks(torch.device("cpu"), 1, 2), QUICK).num_train
        == alone
        == 19
    )
    assert len(shards) == 9


def test_broken_images_of_a_stream_are_counted(shards: Shards, tmp_path: Path) -> None:
    shards.broken = frozenset({0, 6, 7, 18})
    for workers in (0, 1):
        resources = replace(QUICK, workers=workers)
        source = open_source(STREAM, tmp_path, SINGLE, resources)
        made = list(source.train(Schedule(STREAM, source.num_train), 0, 3))
        assert [batch.broken for batch in made] == [1, 2, 0]
        assert [batch.labels.tolist() for batch in made] == [
            [1, 2, 3, 0],
            [1, 0, 1, 2],
            [3, 0, 1, 2],
        ]
        held_out = list(source.held_out(8))
        assert sum(batch.broken for batch in held_out) == 4
        assert sum(int((batch.labels < 0).sum()) for batch in held_out) == 4
        assert sum(len(batch.labels) for batch in held_out) == 19
    shards.broken = frozenset({1})
    state = train(STREAM, tmp_path, tmp_path / "run", progress=False, resources=QUICK)
    assert state.broken == 2  # one an epoch
    assert log_lines(tmp_path / "run")[-1]["held_out_broken"] == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_stream_that_cannot_be_read_is_given_up_with_the_reason(
    shards: Shards, tmp_path: Path, workers: int
) -> None:
    resources = replace(QUICK, workers=workers)
    source = open_source(STREAM, tmp_path, SINGLE, resources)
    schedule = Schedule(STREAM, source.num_train)
    shards.broken = frozenset(range(19))
    with pytest.raises(ValueError, match=r"^no image of .* the last: no image 18; .*$"):
        next(source.train(schedule, 0, 1))
    shards.broken, shards.error = frozenset(), OSError("truncated\nhere")
    with pytest.raises(ValueError, match=r"^the stream cannot be read on: truncated here; the .*$"):
        next(source.train(schedule, 0, 1))


def write_shards(root: Path, count: int, broken: int) -> None:
    """Write four WebDataset shards of so many images each, some of them broken."""
    image = io.BytesIO()
    Image.new("RGB", (16, 16)).save(image, "JPEG")
    for shard in range(4):
        with tarfile.open(root / f"a-{shard}.tar", "w") as tar:
            for number in range(count):
                content = b"no image" if number < broken else image.getvalue()
                for name, data in (("jpg", content), ("cls", str(shard).encode())):
                    entry = tarfile.TarInfo(f"{shard}{number:03d}.{name}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # open files
def test_webdataset_in_two_processes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("webdataset")
    write_shards(tmp_path, count=6, broken=1)
    data = DataConfig(source="wds/", train_split="a-{0..3}.tar|24")
    config = replace(STREAM, data=data, held_out_per_class=0, stages=(Stage(1, 8),))
    seen = []
    for rank in range(2):
        source = open_source(config, tmp_path, Ranks(torch.device("cpu"), rank, 2), QUICK)
        assert source.num_train == 24
        made = list(source.train(Schedule(config, source.num_train), 0, 6))
        assert [len(batch.labels) for batch in made] == [2] * 6
        assert sum(batch.broken for batch in made) == 2
        seen.append({int(label) for batch in made for label in batch.labels})
    assert not seen[0] & seen[1]
    assert caplog.text.count("Dataset info file not found") == 1  # of four openings
    assert caplog.text.count("Handling webdataset error") > 1  # each broken image


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (replace(STREAM, data=replace(STREAM.data, held_out_split="")), "nothing can be cut from"),
        (replace(STREAM, augment=AugmentConfig(repeats=3)), "repeats is 3; .* is a stream"),
    ],
    ids=["held out", "repeats"],
)
def test_stream_refuses_what_needs_positions(
    shards: Shards, tmp_path: Path, config: TrainConfig, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        open_source(config, tmp_path, SINGLE, QUICK)
