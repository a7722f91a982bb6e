"""The class names of a run, kept in its directory: a label is only a number.

Folders come and go. Were they numbered again when a run is resumed or its subnets are searched, the
labels would silently mean other classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from training.run.directory import write_text

CLASSES = "classes.json"


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
    path = run / CLASSES
    if not path.exists():
        return []
    try:
        names = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # the latter by thousands of brackets
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} is damaged: expected a list of names")
    return names
