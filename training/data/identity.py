"""What a run remembers of its training data: class names, and which images are held out.

Folders come and go. Were classes numbered again when a run is resumed or its subnets are searched,
labels would silently mean other classes; were held-out images cut again from a folder that has
grown, candidates would be scored on images that were trained on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.data.batch import DataSource
from training.run.directory import write_text
from training.run.journal import read_json, write_json

CLASSES = "classes.json"
HELD_OUT_LIST = "held_out.json"
COUNTS = "data.json"


def keep_data(source: DataSource, run: Path) -> None:
    """Write what a run remembers of its data, as far as it is not there; after `check_data`."""
    keep_classes(source.class_names, run)
    if source.held_out_list and not (run / HELD_OUT_LIST).exists():
        write_text(run / HELD_OUT_LIST, json.dumps(source.held_out_list) + "\n")
    if not (run / COUNTS).exists():
        write_json({"num_train": source.num_train}, run / COUNTS)


def check_data(source: DataSource, run: Path) -> None:
    """Check that a run's training data has the classes and images that the run began with.

    Images are compared by their number, and by the positions of those that are cut from them to be
    held out. Of runs without such a file, nothing is compared.

    Raises:
        ValueError: it has others; the text says what changed.
    """
    check_classes(source.class_names, run)
    changes = []
    if (path := run / COUNTS).exists():
        before = read_json(path, "num_train")["num_train"]
        if before != source.num_train:
            changes.append(f"{source.num_train} images to train on, {before} before")
    path = run / HELD_OUT_LIST
    if path.exists() and _read_list(path, int) != source.held_out_list:
        changes.append("other images are held out")
    if changes:
        raise ValueError(
            f"the training data is not that of {run}: {', '.join(changes)}; what is held out now "
            "may have been trained on: restore the data, or train another run"
        )


def keep_classes(names: Sequence[str], run: Path) -> None:
    """Write the class names of a run's training data, or check that they are still the same.

    Args:
        names: name of each class, in the order of the labels; empty if the data has none.
        run: the run directory.

    Raises:
        ValueError: the run began with other names.
    """
    check_classes(names, run)
    if names and not (run / CLASSES).exists():
        write_text(run / CLASSES, json.dumps(list(names), indent=1, ensure_ascii=False) + "\n")


def check_classes(names: Sequence[str], run: Path) -> None:
    """Check that a run's training data has the classes that the run began with.

    Raises:
        ValueError: it has others; the text names them.
    """
    known = read_classes(run)
    if known and list(names) != known:
        changes = [f"{name!r} is new" for name in names if name not in known]
        changes += [f"{name!r} is missing" for name in known if name not in names]
        raise ValueError(
            f"{run} was trained on {len(known)} classes, the training data has {len(names)}: "
            f"{', '.join(changes) or 'in another order'}; restore the data, or train another run"
        )


def read_classes(run: Path) -> list[str]:
    """Return the class names of a run, in the order of the labels; empty if none are kept.

    Raises:
        ValueError: the file is damaged.
    """
    return _read_list(run / CLASSES, str) if (run / CLASSES).exists() else []


def _read_list(path: Path, kind: type) -> list[Any]:
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # the latter by thousands of brackets
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise ValueError(f"{path} is damaged: expected a list of {kind.__name__}")
    return values
