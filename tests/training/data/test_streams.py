"""Batches from streams: whole epochs, shares of processes, what cannot be read; shards' members."""

from __future__ import annotations

import io
import json
import multiprocessing
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from timm.data import IterableImageDataset

from tests.helpers.made_training import (
    FOLDER,
    batches_of,
    log_lines,
    open_quickly,
    train_quickly,
)
from training.data import open as data_open
from training.data.batch import DataError
from training.run.distributed import Ranks
from training.run.schedule import Schedule
from training.settings.config import AugmentConfig, DataConfig, Stage, TrainConfig


class Reader:
    """A reader of a stream: gives its images in order, and has their number."""

    def __init__(self, count: int) -> None:
        self.num_samples = count
        self.broken: frozenset[int] = frozenset()
        self.error: Exception | None = None
        self.epochs: list[int] = []

    def __iter__(self) -> Iterator[tuple[Image.Image | bytes, int]]:
        for number in range(self.num_samples):
            if number in self.broken:
                yield b"no image", number % 4
            elif self.error:
                raise self.error
            else:
                yield Image.new("RGB", (16, 16), (number, 0, 0)), number % 4

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    made = Reader(19)
    monkeypatch.setattr(data_open, "open_dataset", lambda *_: IterableImageDataset("", reader=made))
    monkeypatch.setattr(data_open, "require_kind", lambda _: None)
    return made


STREAM = replace(
    FOLDER,
    data=replace(FOLDER.data, source="hfids/made-up", held_out_split="held-out"),
    augment=AugmentConfig(crop="none"),
)


def test_stream_gives_whole_batches_and_starts_epochs_again(reader: Reader, tmp_path: Path) -> None:
    source = open_quickly(STREAM)
    schedule = Schedule(STREAM, source.num_train)
    labels = [batch.labels.tolist() for batch in source.train(schedule, 2, schedule.total)]
    assert labels == [[0, 1, 2, 3]] * 6
    assert reader.epochs == [0, 1]
    assert sum(len(batch.labels) for batch in source.held_out(8)) == 19
    reader.broken = frozenset({1})
    state = train_quickly(tmp_path, STREAM)
    assert (state.step, state.broken) == (8, 2)  # one an epoch
    assert log_lines(tmp_path)[-1]["held_out_broken"] == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_images_of_a_stream_are_counted(
    reader: Reader, tmp_path: Path, workers: int
) -> None:
    reader.broken = frozenset({0, 6, 7, 18})
    source = open_quickly(STREAM, workers=workers)
    made = list(source.train(Schedule(STREAM, source.num_train), 0, 3))
    assert [batch.broken for batch in made] == [1, 2, 0]
    assert [batch.labels.tolist() for batch in made] == [[1, 2, 3, 0], [1, 0, 1, 2], [3, 0, 1, 2]]
    held_out = list(source.held_out(8))
    assert sum(batch.broken for batch in held_out) == 4
    assert sum(int((batch.labels < 0).sum()) for batch in held_out) == 4
    assert sum(len(batch.labels) for batch in held_out) == 19


@pytest.mark.parametrize("workers", [0, 1])
def test_stream_that_cannot_be_read_is_given_up_with_the_reason(
    reader: Reader, tmp_path: Path, workers: int
) -> None:
    source = open_quickly(STREAM, workers=workers)
    schedule = Schedule(STREAM, source.num_train)
    reader.broken = frozenset(range(19))
    with pytest.raises(DataError, match=r"^no image of .* the last: .*cannot identify .*; .*$"):
        next(source.train(schedule, 0, 1))
    reader.broken, reader.error = frozenset(), OSError("truncated\nhere")
    with pytest.raises(DataError, match=r"^reading the stream failed: truncated here; the .*$"):
        next(source.train(schedule, 0, 1))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (replace(STREAM, data=replace(STREAM.data, held_out_split="")), "nothing can be cut from"),
        (replace(STREAM, augment=AugmentConfig(repeats=3)), "repeats is 3; .* is a stream"),
    ],
    ids=["held out", "repeats"],
)
def test_stream_refuses_what_needs_positions(
    reader: Reader, tmp_path: Path, config: TrainConfig, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        open_quickly(config, tmp_path)


# WebDataset shards


def encoded(color: Any = "red", kind: str = "JPEG", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (16, 16), color).save(file, kind)
    return file.getvalue()


def write_shard(path: Path, samples: Sequence[Mapping[str, bytes]]) -> None:
    """Write samples, each as its members by suffix."""
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(samples):
            for suffix, content in sample.items():
                entry = tarfile.TarInfo(f"{path.stem}{number:03d}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def shard_config(train_split: str, held_out_split: str = "", **fields: str) -> TrainConfig:
    data = DataConfig("wds/", train_split, held_out_split, **fields)
    return replace(STREAM, data=data, held_out_per_class=0, stages=(Stage(1, 8),), batch_size=2)


pytestmark = pytest.mark.filterwarnings(  # webdataset leaves files open
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


def test_shards_are_divided_among_processes(tmp_path: Path) -> None:
    for shard in range(4):
        contents = [b"no image", *[encoded()] * 5]
        write_shard(
            tmp_path / f"a-{shard}.tar",
            [{"jpg": content, "cls": str(shard).encode()} for content in contents],
        )
    config = replace(shard_config("a-{0..3}.tar|24"), batch_size=4)
    seen = []
    for rank in range(2):
        source = open_quickly(config, tmp_path, Ranks(torch.device("cpu"), rank, 2))
        assert source.num_train == 24
        made = list(source.train(Schedule(config, source.num_train), 0, 5))
        assert [len(batch.labels) for batch in made] == [2] * 5
        assert sum(batch.broken for batch in made) in (1, 2)
        seen.append({int(label) for batch in made for label in batch.labels})
    assert len(seen[0]) == len(seen[1]) == 2
    assert not seen[0] & seen[1]


def as_json(value: object) -> dict[str, bytes]:
    return {"json": json.dumps(value).encode()}


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ([{"cls": b"0"}, {"cls": b"1\n"}, {"cls": b"2"}], (), [2, 0]),
        ([{"cls": b"dog"}, {"cls": b"cat"}, {"cls": b"eel"}], ("cat", "dog", "eel"), [2, 1]),
        ([{"txt": b"dog"}, {"txt": b"cat"}, {"txt": b"eel"}], ("cat", "dog", "eel"), [2, 1]),
        ([as_json({"label": n, "width": 9}) for n in range(3)], (), [2, 0]),
        ([as_json({"class": n}) for n in ("b", "a", "c")], ("a", "b", "c"), [2, 1]),
        ([as_json(n) for n in ("b", "a", "c")], ("a", "b", "c"), [2, 1]),
    ],
    ids=["cls", "cls name", "txt", "json", "json name", "json text"],
)
def test_labels_of_shards_are_found(
    tmp_path: Path, labels: list[dict[str, bytes]], names: tuple[str, ...], expected: list[int]
) -> None:
    images = [{"jpg": encoded()}, {"jpeg": encoded()}, {"webp": encoded(kind="WEBP")}]
    write_shard(tmp_path / "a.tar", [a | b for a, b in zip(images, labels, strict=True)])
    write_shard(tmp_path / "b.tar", [images[0] | labels[2], images[0] | labels[0]])
    source = open_quickly(shard_config("a.tar|3", "b.tar"), tmp_path)
    assert (source.class_names, source.num_classes) == (names, 3)
    (held_out,) = source.held_out(8)
    assert held_out.labels.tolist() == expected


@pytest.mark.parametrize(
    ("sample", "text"),
    [
        (
            {"jpg": b"", "label.txt": b"1"},
            r"no label among its members .*label.txt.*label-key",
        ),
        ({"jpg": b"", "json": b'{"id": 7}'}, r"among the fields \['id'\] of its json; .*label-key"),
        ({"jpg": b"", "json": b"{"}, "its json cannot be read"),
        ({"jpg": b"", "json": b"[" * 100_000}, "its json cannot be read"),
        (
            {"jpg": b"", "json": b'{"label": [1]}'},
            r"label is \[1\]; expected a number or a name",
        ),
        ({"jpg": b"", "cls": b"-1"}, "has the label '-1'; expected a class number"),
        ({"jxl": b"", "cls": b"1"}, r"no image among its members \['jxl', 'cls'\]; .*--data.image"),
    ],
)
def test_members_that_are_not_found_are_listed_with_the_flag_that_names_them(
    tmp_path: Path, sample: Mapping[str, bytes], text: str
) -> None:
    write_shard(tmp_path / "a.tar", [sample])
    config = shard_config("a.tar|2")
    with pytest.raises(DataError, match=f"^sample a000 of .*a.tar.*{text}"):
        batches_of(config, tmp_path)


def test_captions_are_not_taken_for_classes(tmp_path: Path) -> None:
    captions = [{"jpg": encoded(), "txt": f"cat number {n}".encode()} for n in range(12)]
    write_shard(tmp_path / "a.tar", captions)
    with pytest.raises(DataError, match="12 samples have 12 different labels, such as 'cat number"):
        open_quickly(shard_config("a.tar|12"), tmp_path)


def test_members_may_be_named(tmp_path: Path) -> None:
    sample = {"a.png": encoded("blue", "PNG"), "b.png": encoded(kind="PNG"), "json": b'{"id": 1}'}
    write_shard(tmp_path / "a.tar", [sample, sample])
    config = shard_config("a.tar|2", image_key="b.png", label_key="id")
    (batch,) = batches_of(config, tmp_path)
    assert batch.labels.tolist() == [1, 1]
    assert batch.x[0, 0].mean() > batch.x[0, 2].mean()  # red


def test_class_that_the_training_shards_do_not_have_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [{"jpg": encoded(), "cls": name} for name in (b"cat", b"dog")])
    write_shard(tmp_path / "b.tar", [{"jpg": encoded(), "cls": b"emu"}])
    source = open_quickly(shard_config("a.tar|2", "b.tar"), tmp_path)
    with pytest.raises(DataError, match=r"sample b000 .* 'emu', which is not in the training"):
        list(source.held_out(8))


def test_splits_of_an_info_file_are_shards(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [{"jpg": encoded(), "cls": b"1"}] * 2)
    split = {"num_samples": 2, "filenames": ["a.tar"], "shard_lengths": [2], "name": "train"}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
    assert open_quickly(shard_config("train"), tmp_path).num_train == 2
    for damaged in ("[]", '{"splits": {"train": []}}', "[" * 100_000):
        (tmp_path / "_info.json").write_text(damaged)
        with pytest.raises(DataError, match=r"_info\.json is damaged"):
            open_quickly(shard_config("train"), tmp_path)


@pytest.mark.parametrize(
    ("train_split", "held_out_split", "text"),
    [
        ("a-{0..3}.tar|4", "", r"a-2\.tar is not there \(2 of 4 shards .*; expected all of them"),
        ("a-0.tar|4", "b.tar", r"b\.tar is not there \(1 of 1 shards"),
        ("a-0.tar", "", "does not give its number of images; expected SHARDS|NUMBER"),
        ("named|4", "", "named is not there"),
        ("a-{0..1}.tar|4", "a-{1..1}.tar", r"opens images of data\.train_split"),
    ],
)
def test_shards_that_cannot_be_used_are_refused_before_training(
    tmp_path: Path, train_split: str, held_out_split: str, text: str
) -> None:
    for name in ("a-0.tar", "a-1.tar"):
        write_shard(tmp_path / name, [{"jpg": encoded(), "cls": b"1"}])
    config = shard_config(train_split, held_out_split)
    with pytest.raises((FileNotFoundError, ValueError), match=text):
        open_quickly(config, tmp_path)
