"""Where weights come from: the user's files, the cache, a server; and what is in a file."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch

import autoformer_zoo as az
from autoformer_zoo.published import MODELS
from autoformer_zoo.weights import pretrained
from autoformer_zoo.weights.checkpoint import CheckpointError, open_checkpoint, save_supernet
from autoformer_zoo.weights.sources import SOURCES
from tests.helpers.loopback import Loopback, Reply
from tests.helpers.made_downloads import OFFICIAL, OFFICIAL_FILE, PATH, create, left, redirect
from tests.helpers.made_weights import (
    SIZES,
    SUBNET,
    assert_has,
    cut,
    make_supernet,
    nni_file,
    saved,
    supernet_file,
)

# The order


def test_first_call_downloads_and_second_opens_only_the_safetensors(
    server: Loopback, cache: Path
) -> None:
    url = server.url + PATH
    assert_has(create(url), cut(OFFICIAL).tensors)
    names = left(cache)
    assert [Path(name).suffix for name in names] == [".json", ".safetensors"]
    record = json.loads((cache / names[0]).read_text())
    assert record == {
        "url": url,
        "layout": "packed_prefix",
        "size_bytes": len(OFFICIAL_FILE),
        "sha256": hashlib.sha256(OFFICIAL_FILE).hexdigest(),
    }
    metadata = open_checkpoint(cache / names[1]).subnet(SUBNET).metadata
    assert metadata["license"].startswith("unknown: none is stated")
    assert metadata["source_sha256"] == record["sha256"]

    (cache / names[0]).unlink()
    assert_has(create(url), cut(OFFICIAL).tensors)
    assert server.requests == [f"GET {PATH}"]


@pytest.mark.parametrize("is_folder", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize("name", ["official-tiny.safetensors", "supernet-tiny.pth"])
def test_weights_of_the_user_come_before_cache_and_source(
    name: str,
    is_folder: bool,
    server: Loopback,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(pretrained.WEIGHTS_VARIABLE, str(tmp_path))  # without the file: no matter
    assert_has(create(server.url + PATH), cut(OFFICIAL).tensors)
    own = make_supernet(bias_rule="packed_prefix", seed=1)
    (tmp_path / name).write_bytes(supernet_file(own))
    monkeypatch.setenv(pretrained.WEIGHTS_VARIABLE, str(tmp_path if is_folder else tmp_path / name))
    assert_has(create(server.url + PATH), cut(own).tensors)


@pytest.mark.parametrize("way", ["folder", "file", "checkpoint", "timm"])
def test_prenas_tag_reads_the_same_keys_by_its_own_rule(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prenas = make_supernet(bias_rule="prefix")
    path = tmp_path / "supernet-tiny.pth"
    path.write_bytes(supernet_file(prenas, "packed_interleaved"))
    is_named = way in ("folder", "file")
    if is_named:
        monkeypatch.setenv(pretrained.WEIGHTS_VARIABLE, str(tmp_path if way == "folder" else path))
    given = {"pretrained": True} if is_named else {"checkpoint_path": str(path)}
    create_model = timm.create_model if way == "timm" else az.create_model

    model = create_model("prenas_tiny_6m", subnet=SUBNET, **SIZES, **given)

    assert_has(model, cut(prenas).tensors)
    name = "the state dict" if way == "timm" else "supernet-tiny.pth"
    assert f"{name} is read as PreNAS's file" in caplog.text


def test_supernet_of_a_slice_is_that_of_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFORMER_ZOO_WEIGHTS", "missing.pth")
    for name in ("autoformer_tiny", "autoformer_tiny_slice_6m"):
        with pytest.raises(CheckpointError, match=r"names missing\.pth, which does not"):
            az.load_supernet(name)
    with pytest.raises(ValueError, match="describes a file: give its path, not the name autoform"):
        az.load_supernet("autoformer_nano", layout="packed_prefix")


def test_user_file_that_does_not_exist_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(pretrained.WEIGHTS_VARIABLE, "/nowhere/weights.pth")
    with pytest.raises(CheckpointError, match=r"AUTOFORMER_ZOO_WEIGHTS names /nowhere/weights.pth"):
        az.create_model("autoformer_tiny", pretrained=True)


def test_cache_is_where_the_caller_wants_it(
    server: Loopback, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(server.url + PATH, cache_dir=tmp_path / "elsewhere")
    assert not cache.exists()
    assert len(list((tmp_path / "elsewhere").glob("*.safetensors"))) == 1
    monkeypatch.delenv(pretrained.CACHE_VARIABLE)
    path = pretrained.cache_path(SOURCES["official-tiny"])
    assert path.parent == Path(torch.hub.get_dir(), "checkpoints", "autoformer_zoo")
    assert path.name.startswith("official-tiny-")
    # Sources of the same file name are apart.
    assert len({pretrained.cache_path(source) for source in SOURCES.values()}) == len(SOURCES)


def test_folder_is_spelled_in_every_way_that_timm_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repo: str, file: str, **_: object) -> str:
        assert repo == "someone/nets"
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    save_supernet(OFFICIAL, tmp_path / "supernet.safetensors")
    for name in (f"Local-Dir:{tmp_path}", "hf_hub:someone/nets", "HF-Hub:someone/nets"):
        assert az.load_supernet(name).sizes == OFFICIAL.sizes
        model = az.create_model(name, pretrained=True, subnet=SUBNET)
        assert_has(model, cut(OFFICIAL).tensors)


# What is in the file


def test_nni_file_is_checked_against_the_start_of_its_hash(
    server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = cut(make_supernet(seed=3))
    content = nni_file(weights)
    server.replies["/nni.pth"] = Reply(content)
    digest = hashlib.sha256(content).hexdigest()
    tiny = replace(MODELS["autoformer_tiny"], subnet=SUBNET)
    models = {**MODELS, "autoformer_tiny": tiny}
    monkeypatch.setattr(pretrained, "MODELS", models)

    source = redirect(monkeypatch, "nni-tiny", server.url + "/nni.pth", sha256=digest[:8])
    model = create(source.url, "autoformer_tiny.nni_in1k")
    assert_has(model, weights.tensors)

    source = redirect(monkeypatch, "nni-tiny", server.url + "/nni.pth?2", sha256="12ed42ff")
    with pytest.raises(CheckpointError, match=f"sha256 is {digest}; expected .* 12ed42ff"):
        create(source.url, "autoformer_tiny.nni_in1k")


WIDE = az.SubnetConfig(12, 320, (4,) * 12, (4.0,) * 12)


@pytest.mark.parametrize(
    ("name", "subnet", "text"),
    [
        ("autoformer_tiny.nni_in1k", SUBNET, "nni_in1k .* the published subnet only.*ms_in1k"),
        ("autoformer_tiny", WIDE, r"autoformer_tiny.ms_in1k: embed_dim 320 .* has 256"),
    ],
)
def test_subnet_that_a_source_does_not_hold_is_refused_before_the_download(
    name: str, subnet: az.SubnetConfig, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        az.create_model(name, pretrained=True, subnet=subnet)


def test_changed_file_is_reported_with_both_hashes(server: Loopback, cache: Path) -> None:
    create(server.url + PATH)
    next(cache.glob("*.safetensors")).unlink()
    changed = supernet_file(make_supernet(bias_rule="packed_prefix", seed=4))
    server.replies[PATH] = Reply(changed)

    old, new = (hashlib.sha256(content).hexdigest() for content in (OFFICIAL_FILE, changed))
    with pytest.raises(CheckpointError, match=f"{new}, at the first download it was {old}"):
        create(server.url + PATH)
    assert [Path(name).suffix for name in left(cache)] == [".json"]

    record = next(cache.glob("*.json"))
    record.write_text("[]")
    with pytest.raises(CheckpointError, match=r"\.json is not a record of a download: delete it"):
        create(server.url + PATH)
    record.unlink()
    create(server.url + PATH)
    kept = next(cache.glob("*.safetensors"))
    kept.write_bytes(kept.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"\.safetensors: .*; delete it, and it will be"):
        create(server.url + PATH)


# Together


def test_two_that_start_together_download_once(server: Loopback, cache: Path) -> None:
    models: list[torch.nn.Module] = []
    threads = [
        threading.Thread(target=lambda: models.append(create(server.url + PATH))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(models) == 3
    for model in models:
        assert_has(model, cut(OFFICIAL).tensors)
    assert server.requests == [f"GET {PATH}"]
    assert [Path(name).suffix for name in left(cache)] == [".json", ".safetensors"]


def test_address_of_ones_own_may_hold_a_subnet(server: Loopback) -> None:
    weights = cut(make_supernet(seed=5))
    server.replies["/mine.pth"] = Reply(saved(weights.tensors))
    assert_has(create(server.url + "/mine.pth"), weights.tensors)
    generic = create(server.url + "/mine.pth?generic", "autoformer_subnet")
    assert_has(generic, weights.tensors)


# Real sizes


PROCESS = """
import sys
import autoformer_zoo as az
from tests.helpers.made_weights import SIZES, SUBNET
overlay = {"url": sys.argv[1]}
az.create_model("autoformer_tiny", True, subnet=SUBNET, pretrained_cfg_overlay=overlay, **SIZES)
"""


@pytest.mark.slow
def test_two_processes_that_start_together_end_well(server: Loopback, cache: Path) -> None:
    command = [sys.executable, "-c", PROCESS, server.url + PATH]
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert server.requests == [f"GET {PATH}"]
    assert [Path(name).suffix for name in left(cache)] == [".json", ".safetensors"]
