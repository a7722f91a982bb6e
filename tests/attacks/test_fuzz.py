"""Random damage to what the readers read: only their documented exceptions come out, soon.

AUTOFORMER_ZOO_FUZZ sets the number of inputs for each reader, AUTOFORMER_ZOO_FUZZ_SEED the seed.
"""

from __future__ import annotations

import io
import itertools
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import autoformer_zoo as az
from autoformer_zoo.classify.images import read_image
from autoformer_zoo.onnx.metadata import OnnxMetadata
from autoformer_zoo.weights.checkpoint import CheckpointError, open_checkpoint
from tests.helpers import fuzz

COUNT = int(os.environ.get("AUTOFORMER_ZOO_FUZZ", "150"))
SEED = int(os.environ.get("AUTOFORMER_ZOO_FUZZ_SEED", "0"))
SECONDS = 2.0  # of processor time, for one input
ABOUT = OnnxMetadata(
    (4, 4), 2, (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, ("a", "b"), "fp32", False, False,
    subnet={"depth": 1}, checked={"tolerance": 1.0},
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged images


def run(
    inputs: Iterator[Any], read: Callable[[Any], Any], allowed: tuple[type[Exception], ...]
) -> None:
    accepted = 0
    for given in itertools.islice(inputs, COUNT):
        start = time.process_time()
        try:
            read(given)
            accepted += 1
            text = ""
        except allowed as error:
            text = str(error)
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error} for {given!r}") from error
        assert len(text) < 3000, given
        assert time.process_time() - start < SECONDS, given
    assert accepted < COUNT  # some damage is harmless; all of it would not be damage


def test_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        checkpoint = open_checkpoint(path)
        if checkpoint.is_supernet:
            checkpoint.supernet()
        else:
            checkpoint.subnet()

    run(fuzz.odd_checkpoints(tmp_path, random.Random(SEED)), read, (CheckpointError,))
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_configs() -> None:
    def read(text: str) -> None:
        reader = az.SearchSpace if '"supernet"' in text else az.SubnetConfig
        reader.from_json(text)

    run(fuzz.odd_configs(random.Random(SEED)), read, (ValueError,))


def test_onnx_metadata() -> None:
    properties = ABOUT.to_properties()
    run(
        fuzz.odd_properties(properties, random.Random(SEED)),
        OnnxMetadata.from_properties,
        (ValueError,),
    )


def test_images() -> None:
    run(
        fuzz.odd_images(random.Random(SEED)),
        lambda content: read_image(io.BytesIO(content)),
        (ValueError,),
    )
