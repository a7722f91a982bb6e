"""The table of upstream files: complete, consistent with the published names, and listed."""

from __future__ import annotations

import json
import re
from urllib.parse import urlsplit

import pytest

from autoformer_zoo.published import SPACES, SUBNETS
from autoformer_zoo.weights.sources import PRETRAINED, SOURCES
from hub import sources as hub_sources


@pytest.mark.parametrize("name", SOURCES)
def test_source_is_complete(name: str) -> None:
    source = SOURCES[name]
    assert source.name == name
    assert source.space in SPACES
    assert urlsplit(source.url).scheme == "https"
    assert source.paper_ids[-1] == "arXiv:2107.00651"
    assert source.license_text == source.license or source.license_text.startswith("unknown: none")
    assert source.verified.startswith("nothing of the file itself")
    assert source.size_bytes is None


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith("nni")])
def test_nni_hash_is_the_one_in_the_file_name(name: str) -> None:
    source = SOURCES[name]
    match = re.search(r"-subnet-([0-9a-f]{8})\.pth$", source.url)
    assert match
    assert source.sha256 == match[1]
    assert source.kind == "subnet"


def test_layout_tells_official_from_prenas() -> None:
    layouts = {source.origin: source.layout for source in SOURCES.values()}
    assert layouts == {
        "AutoFormer": "packed_prefix",
        "PreNAS": "packed_interleaved",
        "NNI": None,
    }


def test_every_published_subnet_has_a_source_of_its_own_space() -> None:
    models = {tag.partition(".")[0] for tag in PRETRAINED}
    assert models == set(SUBNETS) - {"autoformer_nano"}
    for tag, source_name in PRETRAINED.items():
        assert SOURCES[source_name].space == tag.partition(".")[0].split("_")[1]


def test_official_weights_are_the_default_tag() -> None:
    tags = [tag for tag in PRETRAINED if tag.startswith("autoformer_tiny.")]
    assert tags == ["autoformer_tiny.ms_in1k", "autoformer_tiny.nni_in1k"]


def test_urls_are_different() -> None:
    assert len({source.url for source in SOURCES.values()}) == len(SOURCES)


def test_listing_ends_with_the_whole_table_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert hub_sources.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(SOURCES) + 2
    table = json.loads(lines[-1])
    assert table["nni-tiny"]["sha256"] == "12ed42ff"
    assert "unknown" in next(line for line in lines if line.startswith("official-tiny"))
