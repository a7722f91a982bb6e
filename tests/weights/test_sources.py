"""The table of upstream files: complete, consistent with the models, and listed."""

from __future__ import annotations

import json
import re

import pytest

from autoformer_zoo.published import GENERIC, MODELS, SPACES
from autoformer_zoo.weights.sources import SOURCES
from hub import sources as hub_sources


@pytest.mark.parametrize("name", SOURCES)
def test_source_is_complete(name: str) -> None:
    source = SOURCES[name]
    layouts = {"official": "packed_prefix", "prenas": "packed_interleaved", "nni": None}
    assert source.name == name
    assert source.space in SPACES
    assert source.url.startswith("https://")
    assert source.paper_ids[-1] == "arXiv:2107.00651"
    assert source.license_text == source.license or source.license_text.startswith("unknown: none")
    assert source.layout == layouts[name.split("-")[0]]
    if name.startswith("nni"):
        assert re.search(r"-subnet-([0-9a-f]{8})\.pth$", source.url)[1] == source.sha256
        assert source.kind == "subnet"


def test_every_source_has_a_model_and_its_own_address() -> None:
    used = {weights.source for spec in MODELS.values() for weights in spec.weights.values()}
    assert used == {*SOURCES, None}
    assert len({source.url for source in SOURCES.values()}) == len(SOURCES)
    assert [name for name, spec in MODELS.items() if not spec.weights] == [GENERIC]
    assert list(MODELS["autoformer_tiny"].weights) == ["ms_in1k", "nni_in1k"]  # the default first


def test_listing_ends_with_the_whole_table_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert hub_sources.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(SOURCES) + 2
    table = json.loads(lines[-1])
    assert table["nni-tiny"]["sha256"] == "12ed42ff"
    assert "unknown" in next(line for line in lines if line.startswith("official-tiny"))
