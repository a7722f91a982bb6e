"""Images of every data set come from the package's one reader, as prediction sees them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionFolder

from autoformer_zoo.classify.images import read_image
from tests.helpers.made_training import FOLDER, batches_of, open_quickly
from training.data.open import open_test
from training.data.transforms import eval_transform
from training.settings.config import AugmentConfig, TrainConfig

SIZE = 16


def grey_16_bit(path: Path) -> None:
    Image.fromarray(np.linspace(0, 65535, 400).reshape(20, 20).astype(np.uint16)).save(path)


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    pixels = np.linspace(0, 255, 400).reshape(20, 20).astype(np.uint8)
    Image.fromarray(pixels).convert("RGB").save(path, "JPEG", exif=exif)


def transparent(mode: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        alpha = Image.fromarray(np.linspace(0, 255, 400).reshape(20, 20).astype(np.uint8))
        image = Image.new("RGB", (20, 20), (90, 20, 10))
        image.putalpha(alpha)
        if mode == "P":
            image.quantize(16).save(path, transparency=3)
        else:
            image.convert(mode).save(path)

    return write


ODD = {
    "16.png": grey_16_bit,
    "rotated.jpg": rotated,
    "rgba.png": transparent("RGBA"),
    "la.png": transparent("LA"),
    "palette.png": transparent("P"),
}


@pytest.fixture(params=ODD)
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Write an odd image twice, as classes a and b of the splits train, val and test."""
    for split in ("train", "val", "test"):
        for label in ("a", "b"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            ODD[request.param](folder / request.param)
    return tmp_path / "train" / "a" / request.param


def require_same_images(config: TrainConfig, root: Path, image: Path) -> None:
    """Check training, held-out and test images against the package's reader."""
    expected = eval_transform(config.data, SIZE)(read_image(image))
    plain = np.asarray(Image.open(image).convert("RGB"))
    assert not np.array_equal(plain, np.asarray(read_image(image)))  # else nothing is tested
    batches = [*batches_of(config, root), *open_quickly(config, root).held_out(SIZE)]
    batches += open_test(config, root, workers=0).held_out(SIZE)
    assert len(batches) == 3
    for batch in batches:
        assert sorted(batch.labels.tolist()) == [0, 1]
        for x in batch.x:
            torch.testing.assert_close(x, expected)


def config_of(source: str, splits: tuple[str, str, str] = ("train", "val", "test")) -> TrainConfig:
    train, held_out, test = splits
    data = replace(
        FOLDER.data, source=source, train_split=train, held_out_split=held_out, test_split=test
    )
    plain = AugmentConfig(crop="none")
    return replace(FOLDER, data=data, augment=plain, batch_size=2, stages=FOLDER.stages[1:])


def test_images_of_a_folder(image: Path) -> None:
    require_same_images(config_of("folder"), image.parents[2], image)


def test_images_of_torchvisions_data_sets(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = image.parents[2]
    monkeypatch.setattr(
        "training.data.datasets.create_dataset",
        lambda _, root, split, **__: TorchvisionFolder(str(Path(root, split))),
    )
    require_same_images(config_of("torch/imagenet"), root, image)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # open shards
def test_images_of_shards(image: Path, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            for number, label in enumerate("ab"):
                tar.add(image, f"{number}{image.suffix}")
                entry = tarfile.TarInfo(f"{number}.cls")
                entry.size = 1
                tar.addfile(entry, io.BytesIO(label.encode()))
    config = config_of("wds/", ("train.tar|2", "val.tar", "test.tar"))
    require_same_images(config, tmp_path, image)
