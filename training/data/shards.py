"""WebDataset shards: tar files in which the members of one sample share a name.

Reads what is common: an image under any suffix of `autoformer_zoo.classify.images.SUFFIXES`, and a
label, a number or a name, in a member `cls`, `txt` or `json`. Nothing is decoded here.
"""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.utils.misc import natural_key
from torch.utils.data import get_worker_info
from webdataset import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
    shardlists,
    shuffle,
    tarfile_samples,
)

from autoformer_zoo.classify.images import SUFFIXES
from training.data.batch import DataError
from training.settings.config import DataConfig

INFO_FILES = ("_info.json", "info.json")  # beside the shards, as timm reads them
LABEL_MEMBERS = ("cls", "txt", "label", "json")
LABEL_FIELDS = ("label", "cls", "class", "target", "category", "class_name", "label_name")
MAX_RARE = 10  # classes that may have one image each; more of them are no classes
SHUFFLED = 8192  # samples in memory that the next one is drawn from, and how many at first; timm's
SHUFFLED_FIRST = 2048

_log = logging.getLogger(__name__)
Sample = Mapping[str, Any]  # of webdataset: members as bytes by suffix, and __key__, __url__


class ShardReader:
    """Samples of shards as (encoded image, label), divided among processes and workers.

    Args:
        shards: paths, URLs or commands, as webdataset opens them.
        num_samples: images in all shards; 0 if unknown.
        data: names the members to read.
        class_to_idx: label of each class name; empty if labels are numbers.
        seed: of the order of shards and samples; None: as they are stored.
        share: (rank, world): this process among all.
    """

    def __init__(
        self,
        shards: Sequence[str],
        num_samples: int,
        data: DataConfig,
        class_to_idx: Mapping[str, int],
        seed: int | None,
        share: tuple[int, int],
    ) -> None:
        self.num_samples = num_samples
        self._shards, self._data, self._class_to_idx = shards, data, class_to_idx
        self._seed, self._share = seed, share
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw another order."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        """Yield a worker's samples once.

        Raises:
            DataError: a sample has no image or label, or its class is unknown.
        """
        rng = random.Random(f"{self._seed}/{self._epoch}")
        shards = list(self._shards)
        if self._seed is not None:
            rng.shuffle(shards)
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        rank, world = self._share
        samples = read_samples(shards[rank * workers + number :: world * workers])
        if self._seed is not None:
            samples = shuffle(SHUFFLED, initial=SHUFFLED_FIRST, rng=rng)(samples)
        for sample in samples:
            label = label_of(sample, self._data.label_key)
            yield image_of(sample, self._data.image_key), self._number_of(label, sample)

    def _number_of(self, label: str, sample: Sample) -> int:
        if self._class_to_idx:
            if label not in self._class_to_idx:
                raise DataError(
                    f"{_name(sample)} is of the class {label!r}, which is not in the training split"
                )
            return self._class_to_idx[label]
        if not label.isdecimal():
            raise DataError(f"{_name(sample)} has the label {label!r}; expected a class number")
        return int(label)


def shards_of(data_dir: Path, split: str) -> tuple[list[str], int]:
    """Return the shards of a split and its number of images; 0 if that is not given.

    Args:
        data_dir: root of the data; may have an info file with splits by name.
        split: in WebDataset's notation, a-{000..009}.tar|5000, or a name in the info file.

    Raises:
        FileNotFoundError: a shard is missing, or no such split is in the info file.
        ValueError: the number of images is not a number.
    """
    shards, count = _named(data_dir, split) or expand(split)
    # With a colon it is a URL or a command.
    paths = [shard if ":" in shard else str(data_dir / shard) for shard in shards]
    missing = [path for path in paths if ":" not in path and not Path(path).exists()]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]} is not there ({len(missing)} of {len(paths)} shards of {split!r} are "
            "missing); expected all of them: correct the split's name or get the files"
        )
    return paths, count


def expand(split: str) -> tuple[list[str], int]:
    """Return the shards that WebDataset's notation names, and the number of images or 0."""
    names, _, count = split.partition("|")
    return list(shardlists.expand_urls(names)), int(count or 0)


def find_classes(
    shards: Sequence[str], label_key: str, is_count_known: bool
) -> tuple[dict[str, int], int]:
    """Read the labels of all shards, and no image, if that is needed to know the classes.

    Args:
        shards: of the training split.
        label_key: as in `label_of`.
        is_count_known: the number of classes need not be found; names must be, in any case.

    Returns:
        The label of each class name, in natural order, empty if the labels are numbers; and the
        number of classes, 0 if it was not found.

    Raises:
        DataError: a sample has no label.
    """
    first = next(read_samples(shards, labels_only=True), None)
    if first is not None and _is_number(label_of(first, label_key)):
        if is_count_known:
            return {}, 0
        if any(":" in shard for shard in shards):  # not worth a second download
            _log.warning("labels of remote shards are not counted: give --num-classes")
            return {}, 0
    _log.info("reading the labels of %d shards", len(shards))
    labels = Counter(label_of(sample, label_key) for sample in read_samples(shards, True))
    if all(map(_is_number, labels)):
        return {}, max(map(int, labels), default=-1) + 1
    if len(labels) > MAX_RARE and len(labels) > labels.total() / 2:
        raise DataError(
            f"{labels.total()} samples have {len(labels)} different labels, such as "
            f"{next(iter(labels))!r:.60}: these seem to be captions; name the labels with "
            "--data.label-key"
        )
    names = sorted(labels, key=lambda name: (natural_key(name), name))
    return {name: number for number, name in enumerate(names)}, len(names)


def read_samples(shards: Iterable[str], labels_only: bool = False) -> Iterator[Sample]:
    """Yield the samples of shards; one that is damaged ends early, with a line in the log."""
    select = None if not labels_only else lambda name: not _is_image(name)
    sources = ({"url": shard} for shard in shards)
    return iter(tarfile_samples(sources, handler=_log_damage, select_files=select))


def image_of(sample: Sample, key: str = "") -> bytes:
    """Return the encoded image of a sample: the member `key`, or the first that is an image.

    Raises:
        DataError: there is none.
    """
    found = [name for name in _members(sample) if (name == key if key else _is_image(name))]
    # Beside an image there may be others, such as depth.png or a mask as png.
    found.sort(key=lambda name: ("." in name, name not in ("jpg", "jpeg")))
    if not found:
        raise DataError(
            f"{_name(sample)} has no image{f' {key!r}' if key else ''} among its members "
            f"{_members(sample)}; name one with --data.image-key"
        )
    image: bytes = sample[found[0]]
    return image


def label_of(sample: Sample, key: str = "") -> str:
    """Return the label of a sample, a number or a name, as text.

    Args:
        sample: its members.
        key: a member, or a field of the member json; empty: the first of `LABEL_MEMBERS`, and of
            `LABEL_FIELDS` in it.

    Raises:
        DataError: there is none; the text lists what was found.
    """
    members = _members(sample)
    wanted = (key, "json") if key else LABEL_MEMBERS
    member = next((name for name in wanted if name in members), None)
    if member is None:
        raise DataError(
            f"{_name(sample)} has no label among its members {members}; expected one of "
            f"{', '.join(LABEL_MEMBERS)}, or name one with --data.label-key"
        )
    text: str = sample[member].decode(errors="replace").strip()
    return _field_of(text, key, sample) if member == "json" else text


def _field_of(text: str, key: str, sample: Sample) -> str:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{_name(sample)}: its json cannot be read: {error}") from None
    if isinstance(values, dict):
        fields = (key,) if key and key != "json" else LABEL_FIELDS
        found = next((name for name in fields if name in values), None)
        if found is None:
            raise DataError(
                f"{_name(sample)} has no label among the fields {sorted(values)} of its json; name "
                "one with --data.label-key"
            )
        values = values[found]
    if isinstance(values, bool) or not isinstance(values, int | str):
        raise DataError(f"{_name(sample)}: its label is {values!r}; expected a number or a name")
    return str(values)


def _named(data_dir: Path, split: str) -> tuple[list[str], int] | None:
    """Return the shards and the number of images of a split in the info file."""
    for path in (data_dir / name for name in INFO_FILES):
        if path.exists():
            try:
                splits = json.loads(path.read_text()).get("splits", {})
                if split in splits:
                    return list(splits[split]["filenames"]), int(splits[split]["num_samples"])
            except Exception as error:  # whatever a damaged file breaks
                raise DataError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    return None


def _members(sample: Sample) -> list[str]:
    return [name for name in sample if not name.startswith("__")]


def _is_image(name: str) -> bool:
    return f".{name.rpartition('.')[2].lower()}" in SUFFIXES


def _is_number(label: str) -> bool:
    return label.removeprefix("-").isdecimal()


def _name(sample: Sample) -> str:
    return f"sample {sample['__key__']} of {sample['__url__']}"


def _log_damage(error: Exception) -> bool:
    _log.warning("a shard is damaged, its other samples are left out: %s", error)
    return True
