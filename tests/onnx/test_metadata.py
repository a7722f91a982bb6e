"""metadata.py: what is written is what is read, and nothing is guessed."""

from __future__ import annotations

import json

import pytest

from autoformer_zoo.onnx.metadata import FORMAT, PREFIX, OnnxMetadata

UNKNOWN = OnnxMetadata((8, 8), 2, None, None, "bicubic", 1.0, None, "fp32", False, False)
METADATA = OnnxMetadata(
    input_size=(32, 48),
    num_classes=2,
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    interpolation="bicubic",
    crop_pct=0.875,
    labels=("cat", "Füchse"),
    precision="fp32",
    preprocess=False,
    softmax=True,
    subnet={"depth": 1, "embed_dim": 64, "num_heads": [1], "mlp_ratio": [2.0]},
    origin="here",
    license="mit",
    checked={"batch_sizes": [1], "max_differences": [1e-7]},
    crop_mode="squash",
)


@pytest.mark.parametrize("metadata", [METADATA, UNKNOWN], ids=["full", "unknown"])
def test_properties_round_trip(metadata: OnnxMetadata) -> None:
    properties = metadata.to_properties()
    assert all(type(text) is str for text in properties.values())
    assert OnnxMetadata.from_properties({**properties, "other": "program"}) == metadata
    assert (f"{PREFIX}crop_mode" in properties) == (metadata is METADATA)  # as version 0.1 wrote


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, "has no metadata of autoformer_zoo"),
        ({"mean": "[0.1"}, "has damaged metadata"),
        ({"mean": "[" * 100_000}, "has damaged metadata"),
        ({"format": json.dumps(FORMAT + 1)}, f"of format {FORMAT + 1}; expected {FORMAT}"),
        ({"colour": "1"}, "colour"),
    ],
    ids=["none", "damaged", "deep", "newer", "unknown"],
)
def test_other_metadata_are_refused(change: dict[str, str], text: str) -> None:
    properties = METADATA.to_properties() if change else {}
    properties |= {PREFIX + key: value for key, value in change.items()}
    with pytest.raises(ValueError, match=text):
        OnnxMetadata.from_properties(properties)
