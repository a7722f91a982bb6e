"""A folder of classes as a data set: ROOT/CLASS/.../IMAGE, read as in prediction.

What training, search and `benchmarks.accuracy` read, so that a class has the same number and an
image the same pixels everywhere.
"""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from timm.utils.misc import natural_key
from torch.utils.data import Dataset

from autoformer_zoo.classify.images import SUFFIXES, contains, image_files, read_image

_logger = logging.getLogger(__name__)
MAX_SHOWN = 8  # class names in an error


class ImageFolder(Dataset[tuple[Any, int]]):
    """Images whose class is the folder directly under the root; deeper folders belong to it.

    Links are followed. Hidden folders, and files that are not images or not in a class folder, are
    left out with one line in the log. timm's `create_loader` can use it: it sets `transform`.

    Args:
        root: folder of class folders.
        class_to_idx: label of each class that is known, such as the training split's; the root may
            then lack some of them. None: the root's own folders are the classes, in natural order
            (2 before 10).

    Raises:
        FileNotFoundError: the root is not a folder.
        ValueError: there is no class folder, one of them holds no image, or its name is unknown.
    """

    def __init__(
        self, root: str | os.PathLike[str], class_to_idx: Mapping[str, int] | None = None
    ) -> None:
        self.root = Path(root)
        self.transform: Callable[[Any], Any] | None = None
        folders, left_out = _class_folders(self.root)
        if class_to_idx is None:
            self.class_to_idx = {name: label for label, name in enumerate(folders)}
        else:
            self.class_to_idx = dict(class_to_idx)
            _require_known(self.root, folders, self.class_to_idx)
        self.samples: list[tuple[str, int]] = []
        for name, folder in folders.items():
            files, others = image_files(folder)
            # A folder without any file is the same as no folder: fine if the class is known.
            if not files and (others or class_to_idx is None):
                raise ValueError(
                    f"the class folder {folder} holds no image ({', '.join(sorted(SUFFIXES))}); "
                    "add some, or remove the folder"
                )
            left_out += others
            self.samples += [(file, self.class_to_idx[name]) for file in files]
        self.samples.sort(key=lambda sample: natural_key(sample[0]))
        if left_out:
            _logger.warning(
                "%s: left out %d files and folders that are hidden or not images of a class, "
                "such as %s",
                *(self.root, len(left_out), left_out[0]),
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, in the order of the labels."""
        return tuple(sorted(self.class_to_idx, key=self.class_to_idx.__getitem__))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return an RGB image, or what `transform` makes of it, and its label.

        Raises:
            ValueError: the file is not an image, or damaged.
        """
        path, label = self.samples[index]
        image = read_image(path)
        return (image if self.transform is None else self.transform(image)), label

    def filenames(self, basename: bool = False) -> list[str]:
        """Return each image's path under the root, or its name alone; as timm's data sets do."""
        shorten = os.path.basename if basename else lambda path: os.path.relpath(path, self.root)
        return [shorten(path) for path, _ in self.samples]


def _class_folders(root: Path) -> tuple[dict[str, str], list[str]]:
    """Return the class folders by name, in natural order, and what else is in the root."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; expected a folder of class folders")
    folders: dict[str, str] = {}
    left_out = []
    for path in sorted(root.iterdir(), key=lambda path: (natural_key(path.name), path.name)):
        # macOS decomposes accents in names: another string for the same name.
        name = unicodedata.normalize("NFC", path.name)
        if not path.is_dir() or name.startswith(".") or contains(os.path.realpath(path), root):
            left_out.append(str(path))
        elif name in folders:
            raise ValueError(f"{root} has two class folders named {name!r}; rename or join them")
        else:
            folders[name] = str(path)
    if not folders:
        raise ValueError(
            f"{root} has no class folders; expected {root}/CLASS/IMAGE, a folder for each class"
        )
    return folders, left_out


def _require_known(root: Path, folders: Iterable[str], known: Mapping[str, int]) -> None:
    unknown = [name for name in folders if name not in known]
    if unknown:
        raise ValueError(
            f"{root} has class folders that are not among the {len(known)} known classes: "
            f"{_listed(unknown)}; known are {_listed(known)}: rename or remove them"
        )


def _listed(names: Iterable[str]) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown[:MAX_SHOWN]) + (", ..." if len(shown) > MAX_SHOWN else "")
