"""A folder of classes: which folder is which class, and which files belong to it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from PIL import Image
from timm.data import create_loader

from autoformer_zoo.classify.folders import ImageFolder
from autoformer_zoo.classify.images import image_files

KNOWN = {"blue": 0, "green": 1, "red": 2}


def write(root: Path, names: Iterable[str]) -> Path:
    """Write an image of 2 px for each name with an image's suffix, other files without content."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".txt", ".json", ".psd"):
            path.touch()
        else:
            Image.new("RGB", (2, 2)).save(path)
    return root


def found(folder: ImageFolder) -> list[tuple[str, str]]:
    """Return the path and the class name of each image."""
    names = folder.class_names
    labels = [names[label] for _, label in folder.samples]
    return list(zip(folder.filenames(), labels, strict=True))


def test_folders_of_the_first_level_are_the_classes(tmp_path: Path) -> None:
    names = ["dog/s1/0.png", "dog/s2/deep/0.tif", "cat/0.png", "cat/s1/1.JPG", "cat10/0.PPM"]
    folder = ImageFolder(write(tmp_path, [*names, "cat9/0.webp"]))
    assert folder.class_names == ("cat", "cat9", "cat10", "dog")
    assert {path: name for path, name in found(folder)} == {
        name: name.partition("/")[0] for name in [*names, "cat9/0.webp"]
    }
    assert sorted(folder.filenames(basename=True))[-1] == "1.JPG"


def test_hidden_folders_and_stray_files_are_left_out_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strays = [".ipynb_checkpoints/0.png", "cat/.hidden/0.png", "cat/.0.png", "0.png", "cat/a.txt"]
    folder = ImageFolder(write(tmp_path, ["cat/0.png", "dog/0.png", *strays]))
    assert found(folder) == [("cat/0.png", "cat"), ("dog/0.png", "dog")]
    (line,) = caplog.messages
    assert "left out 5 files and folders" in line


@pytest.mark.parametrize("names", [["blue/0.png"], ["red/0.png"], ["red/0.png", "green/0.png"]])
def test_known_classes_keep_their_labels_in_a_split_without_some(
    tmp_path: Path, names: list[str]
) -> None:
    (tmp_path / "green").mkdir()  # empty: as if it were not there
    folder = ImageFolder(write(tmp_path, names), KNOWN)
    assert folder.class_names == ("blue", "green", "red")
    assert all(label == KNOWN[Path(path).parent.name] for path, label in folder.samples)


@pytest.mark.parametrize(
    ("names", "known", "text"),
    [
        (["blue/0.png", "Red/0.png"], KNOWN, r"not among the 3 known classes: 'Red'; known are"),
        (["blue/0.png", "red/0.psd"], KNOWN, r"class folder .*red holds no image"),
        (["blue/0.png", "red/0.txt"], None, r"class folder .*red holds no image"),
        (["0.png", "1.png"], None, r"no class folders; expected .*/CLASS/IMAGE"),
        ([".hidden/0.png"], None, r"no class folders"),
    ],
)
def test_folder_whose_classes_are_unclear_is_refused(
    tmp_path: Path, names: list[str], known: Mapping[str, int] | None, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        ImageFolder(write(tmp_path, names), known)
    with pytest.raises(FileNotFoundError, match="none is not a folder"):
        ImageFolder(tmp_path / "none", known)


def test_links_are_followed_once_and_without_loops(tmp_path: Path) -> None:
    write(tmp_path, ["train/cat/0.png", "train/cat/a/1.png", "else/2.png", "else/b/3.png"])
    root = tmp_path / "train"
    for link, target in {
        "dog": tmp_path / "else",
        "self": root,
        "cat/up": root,
        "cat/same": root / "cat" / "a",
        "cat/around": root / "cat",
        "cat/more": tmp_path / "else" / "b",
    }.items():
        (root / link).symlink_to(target)
    assert found(ImageFolder(root)) == [
        ("cat/0.png", "cat"),
        ("cat/a/1.png", "cat"),
        ("cat/more/3.png", "cat"),
        ("dog/2.png", "dog"),
        ("dog/b/3.png", "dog"),
    ]
    assert len(image_files(root / "cat")[1]) == 3


def test_names_of_macos_are_the_same_names(tmp_path: Path) -> None:
    name = "caf\u00e9"
    decomposed = unicodedata.normalize("NFD", name)
    assert ImageFolder(write(tmp_path, [f"{decomposed}/0.png"]), {name: 7}).samples[0][1] == 7
    write(tmp_path, [f"{name}/0.png"])
    with pytest.raises(ValueError, match="two class folders named"):
        ImageFolder(tmp_path, {name: 7})


def test_timms_loader_prepares_the_images(tmp_path: Path) -> None:
    folder = ImageFolder(write(tmp_path, ["cat/0.png", "dog/0.png"]))
    assert folder[1][0].mode == "RGB"
    (batch,) = create_loader(folder, (3, 8, 8), 2, use_prefetcher=False, num_workers=0)
    assert (batch[0].shape, batch[1].tolist()) == ((2, 3, 8, 8), [0, 1])
