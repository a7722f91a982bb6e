"""Every reason for missing weights: it is reported with what would work, and nothing is left."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from io import BufferedWriter
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import autoformer_zoo as az
from autoformer_zoo.weights import download, pretrained
from autoformer_zoo.weights.checkpoint import CheckpointError
from tests.helpers.loopback import Loopback, Reply
from tests.helpers.made_downloads import (
    OFFICIAL_FILE,
    PATH,
    create,
    left,
    own_cache,
    redirect,
    serve_official,
)
from tests.helpers.made_weights import saved


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_cache(tmp_path, monkeypatch)


@pytest.fixture
def server() -> Iterator[Loopback]:
    with serve_official() as loopback:
        yield loopback


REPLIES = {
    "not found": (Reply(status=404), "the server answered 404 Not Found"),
    "server error": (Reply(status=503), "the server answered 503 Service Unavailable"),
    "cut": (
        Reply(OFFICIAL_FILE, sent_bytes=5000),
        rf"the connection was cut at 5000 of {len(OFFICIAL_FILE)} bytes",
    ),
    "silent": (Reply(OFFICIAL_FILE, sent_bytes=5000, stalls=True), "the server was silent for 0 s"),
    "web page": (
        Reply(b"<html>Log in</html>", content_type="text/html; charset=utf-8"),
        "the server sent a web page",
    ),
    "web page in disguise": (
        Reply(b"<!DOCTYPE html><html>Log in</html>"),
        "the downloaded file was refused, is a web page",
    ),
    "nonsense": (
        Reply(b"nonsense" * 100),
        "file was refused, is neither safetensors",
    ),
    "empty": (Reply(b""), "the downloaded file was refused, is empty"),
    "cut, length unknown": (
        Reply(OFFICIAL_FILE[:5000], announces_length=False),
        "the downloaded file was refused, damaged or truncated",
    ),
    "other model": (
        Reply(saved({"model": {"conv1.weight": torch.zeros(3)}})),
        "the downloaded file was refused, its 1 tensors are not an AutoFormer's",
    ),
}


@pytest.mark.parametrize("case", REPLIES)
def test_failed_download_says_why_and_what_to_do(
    case: str, server: Loopback, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply, cause = REPLIES[case]
    server.replies[PATH] = reply
    if reply.stalls:
        monkeypatch.setattr(download, "SILENCE_SECONDS", 0.3)

    with pytest.raises(CheckpointError, match=cause) as caught:
        create(server.url + PATH)

    text = str(caught.value)
    assert "\n" not in text
    assert f"no weights of autoformer_tiny.ms_in1k from {server.url}{PATH}: " in text
    assert "AUTOFORMER_ZOO_WEIGHTS=FILE or checkpoint_path=" in text
    assert "another tag, autoformer_tiny.nni_in1k" in text
    assert left(cache) == []


def test_refused_connection_says_why(server: Loopback, cache: Path) -> None:
    with pytest.raises(CheckpointError, match="Connection refused"):
        create("http://127.0.0.1:9/supernet-tiny.pth")  # the discard port: nobody listens
    assert left(cache) == []


def test_full_disk_says_so(server: Loopback, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullDisk(BufferedWriter):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_full(path: Path, mode: str) -> FullDisk:
        return FullDisk(open(path, mode, buffering=0))  # type: ignore[arg-type]

    monkeypatch.setattr(download, "open", open_full, raising=False)
    with pytest.raises(CheckpointError, match=r"cannot write .*: No space left on device"):
        create(server.url + PATH)
    assert left(cache) == []


def test_disk_that_fills_up_at_the_conversion_leaves_nothing(
    server: Loopback, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pretrained, "save_supernet", no_space)
    with pytest.raises(CheckpointError, match=r"cannot write .*\.safetensors: No space left"):
        create(server.url + PATH)
    assert left(cache) == []


def test_cache_that_cannot_be_made_is_reported(
    server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(pretrained.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(CheckpointError, match="Not a directory"):
        create(server.url + PATH)


def test_wrong_size_is_refused_by_the_header(
    server: Loopback, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = redirect(monkeypatch, "official-tiny", server.url + PATH, size_bytes=1000)
    with pytest.raises(CheckpointError, match=f"has {len(OFFICIAL_FILE)} bytes; expected 1000"):
        create(source.url)
    assert left(cache) == []


def test_prenas_without_another_tag_names_another_model(server: Loopback) -> None:
    with pytest.raises(CheckpointError, match="a model that needs no download, autoformer_nano"):
        create(server.url + "/missing.pth", "prenas_tiny_6m")


def test_timm_raises_the_same_error(server: Loopback) -> None:
    with pytest.raises(CheckpointError, match=r"no weights of autoformer_tiny.ms_in1k"):
        timm.create_model(
            "autoformer_tiny",
            pretrained=True,
            pretrained_cfg_overlay={"url": server.url + "/missing.pth"},
        )


def test_generic_name_has_no_weights_of_its_own() -> None:
    with pytest.raises(CheckpointError, match=r"autoformer_subnet has no weights of its own: name"):
        az.create_model("autoformer_subnet", pretrained=True)
