"""What the processor is said to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoformer_zoo.network import packed_linear as module
from autoformer_zoo.network.packed_linear import processor


def test_first_processor_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon: 2 GHz\n" * 2)
    monkeypatch.setattr(module, "CPUINFO", path)
    assert processor("vendor_id") == "GenuineIntel"
    assert processor("model name") == "Xeon: 2 GHz"


@pytest.mark.parametrize("content", [None, "CPU part\t: 0xd0c\n"], ids=["not Linux", "ARM"])
def test_python_is_asked_where_linux_does_not_say(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpuinfo"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr(module, "CPUINFO", path)
    monkeypatch.setattr("platform.processor", lambda: "arm")
    assert processor("model name") == "arm"
