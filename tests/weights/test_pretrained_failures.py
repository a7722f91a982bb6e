"""Every reason for missing weights: it is reported with what would work, and nothing is left."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import autoformer_zoo as az
from autoformer_zoo.weights import download, files
from autoformer_zoo.weights.checkpoint import CheckpointError
from tests.helpers.loopback import Loopback, Reply
from tests.helpers.made_downloads import OFFICIAL_FILE, PATH, create, left, redirect
from tests.helpers.made_weights import saved

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
    "nonsense": (Reply(b"nonsense" * 100), "file was refused, is neither safetensors"),
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
    server.replies[PATH] = Reply(OFFICIAL_FILE)
    create(server.url + PATH)  # nothing remains of the failure


def test_refused_connection_says_why(server: Loopback, cache: Path) -> None:
    with pytest.raises(CheckpointError, match="Connection refused"):
        create("http://127.0.0.1:9/supernet-tiny.pth")  # the discard port: nobody listens
    assert left(cache) == []


def _no_space(*args: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


class _FullDisk(io.BufferedWriter):
    write = _no_space


@pytest.mark.parametrize(
    ("module", "function", "fault"),
    [
        (download, "open", lambda path, mode: _FullDisk(io.FileIO(path, mode))),
        (files, "_in_order", _no_space),
    ],
    ids=["download", "conversion"],
)
def test_full_disk_leaves_nothing(
    module: Any,
    function: str,
    fault: Any,
    server: Loopback,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, function, fault, raising=False)
    with pytest.raises(CheckpointError, match=r"cannot write .*: No space left on device"):
        create(server.url + PATH)
    assert left(cache) == []


def test_cache_that_cannot_be_made_is_reported(server: Loopback, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="Not a directory"):
        create(server.url + PATH, cache_dir=tmp_path / "file" / "cache")


def test_wrong_size_is_refused_by_the_header(
    server: Loopback, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = redirect(monkeypatch, "official-tiny", server.url + PATH, size_bytes=1000)
    with pytest.raises(CheckpointError, match=f"has {len(OFFICIAL_FILE)} bytes; expected 1000"):
        create(source.url)
    assert left(cache) == []


def test_model_without_another_tag_names_another_model(server: Loopback) -> None:
    overlay = {"url": server.url + "/missing.pth"}
    with pytest.raises(CheckpointError, match="a model that needs no download, autoformer_nano"):
        timm.create_model("prenas_tiny_6m", pretrained=True, pretrained_cfg_overlay=overlay)


def test_generic_name_has_no_weights_of_its_own() -> None:
    with pytest.raises(CheckpointError, match=r"autoformer_subnet has no weights of its own: name"):
        az.create_model("autoformer_subnet", pretrained=True)
