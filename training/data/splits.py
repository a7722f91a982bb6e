"""Which folder or shards a split's name means, and that training never opens the test split.

Splits of other data sets can only be compared by name; a missing one is found when it is opened.
"""

from __future__ import annotations

from importlib.util import find_spec
from itertools import product
from pathlib import Path

from training.settings.config import MEMORY, DataConfig

# What may precede the slash of a data.source, and the package that it needs beside timm's.
KINDS = {
    "torch": "torchvision",
    "hfds": "datasets",
    "hfids": "datasets",
    "tfds": "tensorflow-datasets",
    "wds": "webdataset",
}
FOLDERS = ("folder", "torch/folder", "torch/image_folder")
# A folder may have any of these names, as in timm.
TRAIN_NAMES = ("train", "training")
EVAL_NAMES = ("val", "valid", "validation", "eval", "evaluation")
# torchvision's sets of two parts: every name but those of the training set opens the test set.
TWO_PARTS = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")


def is_folder(source: str) -> bool:
    """Return True if a data.source is a folder of classes."""
    return source.lower() in FOLDERS


def is_shards(source: str) -> bool:
    """Return True if a data.source is WebDataset shards."""
    return source.lower().startswith("wds/")


def require_kind(source: str) -> None:
    """Check that a data.source is of a known kind, and that its package is installed.

    Raises:
        ValueError: it is not.
    """
    if is_folder(source):
        return
    kind, slash, _ = source.lower().partition("/")
    if not slash or kind not in KINDS:
        raise ValueError(
            f"data.source is {source!r}; expected {MEMORY}, folder, or one of "
            f"{'/..., '.join(KINDS)}/..."
        )
    if find_spec(KINDS[kind].replace("-", "_")) is None:
        raise ValueError(
            f"data.source {source!r} needs a package that is not installed: pip install "
            f"{KINDS[kind]}"
        )


def require_split(data: DataConfig, data_dir: Path, split: str) -> None:
    """Check that a split exists, before hours are spent: only in folders and shards.

    Raises:
        FileNotFoundError: the folder or a shard is missing.
    """
    if is_folder(data.source):
        folder_of(data_dir, split)
    elif is_shards(data.source):
        from training.data.shards import shards_of  # needs webdataset

        shards_of(data_dir, split)


def require_apart(data: DataConfig, data_dir: Path) -> None:
    """Check that training, held-out and test splits share no images, as far as names show it.

    Raises:
        ValueError: two splits overlap.
    """
    for name, other_name, reason in (
        ("held_out_split", "train_split", "held-out images must not be trained on"),
        ("train_split", "test_split", "only the final evaluation may open the test split"),
        ("held_out_split", "test_split", "only the final evaluation may open the test split"),
    ):
        split, other = getattr(data, name), getattr(data, other_name)
        if split and _overlap(data.source, data_dir, split, other):
            raise ValueError(
                f"data.{name} {split!r} opens images of data.{other_name} {other!r}; {reason}: "
                f"give another --data.{name.replace('_', '-')} or "
                f"--data.{other_name.replace('_', '-')}"
            )


def has_folder(data_dir: Path, split: str) -> bool:
    """Return True if `folder_of` finds a folder."""
    return _find_folder(data_dir, split) is not None


def folder_of(data_dir: Path, split: str) -> Path:
    """Return the folder of a split: of its name, or of a synonym such as val for validation.

    Raises:
        FileNotFoundError: there is none.
    """
    found = _find_folder(data_dir, split)
    if found is None:
        also = [name for name in _names_of(split) if name != split]
        raise FileNotFoundError(
            f"{data_dir / split} is not there; expected a folder with a folder of images for each "
            "class" + (f" ({', '.join(also)} would do too)" if also else "") + ". If the class "
            f"folders are in {data_dir} itself, give the split the name ."
        )
    return found


def _find_folder(data_dir: Path, split: str) -> Path | None:
    return next(
        (data_dir / name for name in _names_of(split) if (data_dir / name).is_dir()),
        None,
    )


def _names_of(split: str) -> tuple[str, ...]:
    """Return the names of a split, its own first."""
    synonyms = next((names for names in (TRAIN_NAMES, EVAL_NAMES) if split in names), ())
    return (split, *(name for name in synonyms if name != split))


def _overlap(source: str, data_dir: Path, one: str, other: str) -> bool:
    if is_folder(source):
        first, second = _find_folder(data_dir, one), _find_folder(data_dir, other)
        if first is None or second is None:
            return False  # refused when it is opened
        first, second = first.resolve(), second.resolve()
        return first.is_relative_to(second) or second.is_relative_to(first)
    if is_shards(source):
        from training.data.shards import expand  # needs webdataset

        return not {*expand(one)[0]}.isdisjoint(expand(other)[0])
    if source.lower().removeprefix("torch/") in TWO_PARTS:
        return (one in TRAIN_NAMES) == (other in TRAIN_NAMES)
    return any(_share_name(*pair) for pair in product(one.split("+"), other.split("+")))


def _share_name(one: str, other: str) -> bool:
    """Return True if names such as train[:90%] open the same part; two cuts of it are trusted."""
    (name, cut, _), (other_name, other_cut, _) = one.partition("["), other.partition("[")
    is_same = name.strip() in _names_of(other_name.strip())
    return is_same and not (cut and other_cut)
