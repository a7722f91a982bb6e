"""What is opened under a split's name, without opening it: one part may have several names.

timm takes `val` and `validation` for the same folder, torchvision's CIFAR has two parts whatever is
asked for, and Hugging Face and TFDS know sums and cuts such as `train[:90%]+extra`. Training must
not reach the test split under any of its names.

Source: `create_dataset` and `_search_split` in timm.data.dataset_factory.
"""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

from timm.data import dataset_factory as timm_names

from training.config import MEMORY, DataConfig

KINDS = ("torch", "hfds", "hfids", "tfds", "wds")  # of create_dataset; all others are a folder
_TORCH_FOLDERS = ("folder", "image_folder")
_TORCH_PARTS = {  # what torchvision calls the parts that timm has synonyms for
    "inaturalist": ("2021_train", "2021_valid"),
    "inat": ("2021_train", "2021_valid"),
    "places365": ("train-standard", "val"),
    "imagenet": ("train", "val"),
}
_BOUND = re.compile(r"(-?)(\d+)(\D*)")  # of a cut: 500, -500, 90%
OPENED = "(opened)"  # as test split: the final evaluation has it in the held-out split's place


def require_kind(source: str) -> None:
    """Check that a source KIND/NAME is of a kind that timm knows: it would read a folder instead.

    Raises:
        ValueError: it is of none, and no folder of that name is there either.
    """
    kind, slash, _ = source.partition("/")
    if slash and kind.lower() not in KINDS and not Path(source).is_dir():
        raise ValueError(
            f"data.source is {source!r}, of a kind that timm does not know; expected folder, or "
            f"one of {'/..., '.join(KINDS)}/..."
        )


def require_split(data: DataConfig, data_dir: Path, split: str) -> None:
    """Check that a split is there, where that shows without opening it: in folders and shards.

    Raises:
        FileNotFoundError: timm would find no folder of that name or of a synonym, or not all of the
            shards.
    """
    if _is_shards(data.source):
        _require_shards(data_dir, split)
    if not _is_folder(data.source) or _folder_of(data_dir, split) is not None:
        return
    same = (timm_names._TRAIN_SYNONYM, timm_names._EVAL_SYNONYM)
    others = [name for names in same if split in names for name in names if name != split]
    also = f"; {', '.join(others)} would do too" if others else ""
    raise FileNotFoundError(
        f"{data_dir / split} is not there; expected a folder of images for each class in it{also}"
    )


def _require_shards(data_dir: Path, split: str) -> None:
    paths = [data_dir / name for name in _expand(split)]
    # With a colon it is a URL or a command.
    missing = [path for path in paths if ":" not in str(path) and not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]} is not there ({len(missing)} of {len(paths)} shards of {split!r} are "
            "missing); expected all of them: mend the split's name or get the files"
        )


def require_apart(data: DataConfig, data_dir: Path) -> None:
    """Check that no image is in two of the training, held-out and test splits, by their names.

    Raises:
        ValueError: two names open the same part, or parts that overlap.
    """
    if data.held_out_split and _overlap(data, data_dir, data.held_out_split, data.train_split):
        raise ValueError(
            f"data.held_out_split {data.held_out_split!r} opens images of data.train_split "
            f"{data.train_split!r}; held-out images must not be trained on: name another split"
        )
    for name in ("train_split", "held_out_split"):
        split = getattr(data, name)
        if split and data.test_split != OPENED and _overlap(data, data_dir, split, data.test_split):
            raise ValueError(
                f"data.{name} {split!r} opens images of the test split {data.test_split!r}; only "
                "the final evaluation opens that one: name another split"
            )


def _overlap(data: DataConfig, data_dir: Path, one: str, other: str) -> bool:
    if _is_folder(data.source):
        first, second = _folder_of(data_dir, one), _folder_of(data_dir, other)
        if first is None or second is None:
            return False  # what is missing is refused when it is opened
        return first in (second, *second.parents) or second in first.parents
    kind, _, name = data.source.partition("/")
    if kind.lower() == "torch":
        return _torch_part(name, one) == _torch_part(name, other)
    if _is_shards(data.source):
        return not _shards(one).isdisjoint(_shards(other))
    return any(_meet(*pair) for pair in product(one.split("+"), other.split("+")))


def _is_shards(source: str) -> bool:
    return source.lower().startswith("wds/")


def _is_folder(source: str) -> bool:
    kind, slash, name = source.lower().partition("/")
    if slash and kind == "torch":
        return name in _TORCH_FOLDERS
    return source != MEMORY and not (slash and kind in KINDS)


def _folder_of(data_dir: Path, split: str) -> Path | None:
    """Return the folder that timm takes; None where it finds none and would take them all."""
    root = str(data_dir)
    found = timm_names._search_split(root, split)
    return Path(found).resolve() if found != root and Path(found).is_dir() else None


def _torch_part(name: str, split: str) -> str:
    """Return torchvision's name of the part that timm opens."""
    name = name.rpartition("/")[2].lower()
    if name in timm_names._TORCH_BASIC_DS or name == "qmnist":
        return "train" if split in timm_names._TRAIN_SYNONYM else "test"
    if name.startswith("inat"):
        split = split.rpartition("/")[2]  # before it stands a kind of label
    train, test = _TORCH_PARTS.get(name, ("train", split))
    if split in timm_names._TRAIN_SYNONYM:
        return train
    return test if split in timm_names._EVAL_SYNONYM else split


def _shards(split: str) -> set[str]:
    """Return the shards of WebDataset's notation, a-{000..009}.tar|5000, or the split's name."""
    return set(_expand(split)) or {split}


def _expand(split: str) -> list[str]:
    """Return the shards that WebDataset's notation names; none where it is no notation."""
    if "tar" not in split and ".." not in split:
        return []
    try:
        from webdataset import shardlists  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return []  # opening it will ask for the package
    names: list[str] = shardlists.expand_urls(split.partition("|")[0])
    return names


def _meet(one: str, other: str) -> bool:
    """Tell whether two of Hugging Face's or TFDS's names, such as train[:90%], may overlap."""
    (name, begin, end), (other_name, other_begin, other_end) = map(_parse_cut, (one, other))
    if name != other_name:
        return "all" in (name, other_name)
    return not (_is_before(end, other_begin) or _is_before(other_end, begin))


def _parse_cut(text: str) -> tuple[str, str, str]:
    name, _, cut = text.strip().rstrip("]").partition("[")
    begin, _, end = cut.partition(":")
    return name.strip(), begin.strip(), end.strip()


def _is_before(end: str, begin: str) -> bool:
    """Tell whether a cut surely ends where another one begins, or earlier: in the same unit."""
    one, other = _BOUND.fullmatch(end), _BOUND.fullmatch(begin)
    if one is None or other is None or one.group(1, 3) != other.group(1, 3):
        return False
    return int(one[1] + one[2]) <= int(other[1] + other[2])
