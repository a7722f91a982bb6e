"""Where weights come from: the user's files, the cache, a server; and what is in a file."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import autoformer_zoo as az
from autoformer_zoo.published import MODELS
from autoformer_zoo.weights import pretrained
from autoformer_zoo.weights.checkpoint import (
    CheckpointError,
    open_checkpoint,
    save_subnet,
    save_supernet,
)
from autoformer_zoo.weights.sources import SOURCES
from tests.helpers.loopback import Loopback, Reply, serve
from tests.helpers.made_downloads import (
    OFFICIAL,
    OFFICIAL_FILE,
    PATH,
    assert_has,
    create,
    left,
    own_cache,
    redirect,
    serve_official,
)
from tests.helpers.made_weights import (
    SIZES,
    SUBNET,
    cut,
    make_supernet,
    nni_file,
    saved,
    supernet_file,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_cache(tmp_path, monkeypatch)


@pytest.fixture
def server() -> Iterator[Loopback]:
    with serve_official() as loopback:
        yield loopback


# The order


def test_first_call_downloads_and_second_opens_only_the_safetensors(
    server: Loopback, cache: Path
) -> None:
    url = server.url + PATH

    first = create(url)
    assert server.requests == [f"GET {PATH}"]
    kept = [path for path in cache.iterdir() if path.suffix == ".safetensors"]
    assert len(kept) == 1
    for path in cache.iterdir():
        if path not in kept:
            path.unlink()
    second = create(url)

    assert server.requests == [f"GET {PATH}"]
    assert_has(first, cut(OFFICIAL).tensors)
    assert_has(second, cut(OFFICIAL).tensors)


def test_cache_keeps_the_converted_file_and_a_record_of_the_original(
    server: Loopback, cache: Path
) -> None:
    create(server.url + PATH)

    names = left(cache)
    assert [Path(name).suffix for name in names] == [".json", ".safetensors"]
    record = json.loads((cache / names[0]).read_text())
    assert record == {
        "url": server.url + PATH,
        "layout": "packed_prefix",
        "size_bytes": len(OFFICIAL_FILE),
        "sha256": hashlib.sha256(OFFICIAL_FILE).hexdigest(),
    }
    metadata = open_checkpoint(cache / names[1]).subnet(SUBNET).metadata
    assert metadata["license"].startswith("unknown: none is stated")
    assert metadata["source_sha256"] == record["sha256"]


def test_file_of_the_user_comes_before_cache_and_source(
    server: Loopback, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(server.url + PATH)
    own = make_supernet(bias_rule="packed_prefix", seed=1)
    (tmp_path / "own.pth").write_bytes(supernet_file(own))
    monkeypatch.setenv(pretrained.WEIGHTS_VARIABLE, str(tmp_path / "own.pth"))

    assert_has(create(server.url + PATH), cut(own).tensors)


@pytest.mark.parametrize(
    "file_name",
    ["official-tiny.safetensors", "supernet-tiny.pth"],
)
def test_folder_of_the_user_is_searched_by_name(
    file_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / file_name).write_bytes(OFFICIAL_FILE)
    monkeypatch.setenv(pretrained.WEIGHTS_VARIABLE, str(tmp_path))

    model = az.create_model("autoformer_tiny", pretrained=True, subnet=SUBNET, **SIZES)

    assert_has(model, cut(OFFICIAL).tensors)


def test_folder_without_the_file_leaves_it_to_the_source(
    server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(pretrained.WEIGHTS_VARIABLE, str(tmp_path))
    assert_has(create(server.url + PATH), cut(OFFICIAL).tensors)


def test_prenas_tag_reads_the_same_keys_by_its_own_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prenas = make_supernet(bias_rule="prefix")
    content = supernet_file(prenas, "packed_interleaved")
    (tmp_path / "supernet-tiny.pth").write_bytes(content)
    monkeypatch.setenv(pretrained.WEIGHTS_VARIABLE, str(tmp_path))

    model = az.create_model("prenas_tiny_6m", pretrained=True, subnet=SUBNET, **SIZES)

    assert_has(model, cut(prenas).tensors)
    assert "supernet-tiny.pth is read as PreNAS's file" in caplog.text


@pytest.mark.parametrize("kind", ["supernet", "subnet", "nni", "state dict"])
def test_file_of_the_user_may_be_of_any_kind(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = make_supernet(seed=2)
    path = tmp_path / "own"
    if kind == "supernet":
        save_supernet(own, path)
    elif kind == "subnet":
        save_subnet(cut(own), path)
    elif kind == "nni":
        path.write_bytes(nni_file(cut(own)))
    else:
        path.write_bytes(saved(cut(own).tensors))
    monkeypatch.setenv(pretrained.WEIGHTS_VARIABLE, str(path))

    model = az.create_model("autoformer_tiny", pretrained=True, subnet=SUBNET, **SIZES)

    assert_has(model, cut(own).tensors)


def test_user_file_that_does_not_exist_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(pretrained.WEIGHTS_VARIABLE, "/nowhere/weights.pth")
    with pytest.raises(CheckpointError, match=r"AUTOFORMER_ZOO_WEIGHTS names /nowhere/weights.pth"):
        az.create_model("autoformer_tiny", pretrained=True)


def test_cache_dir_argument_moves_the_cache(server: Loopback, cache: Path, tmp_path: Path) -> None:
    create(server.url + PATH, cache_dir=tmp_path / "elsewhere")
    assert not cache.exists()
    assert len(list((tmp_path / "elsewhere").glob("*.safetensors"))) == 1


def test_cache_is_in_torch_hubs_folder_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(pretrained.CACHE_VARIABLE)
    path = pretrained.cache_path(SOURCES["official-tiny"])
    assert path.parent == Path(torch.hub.get_dir(), "checkpoints", "autoformer_zoo")
    assert path.name.startswith("official-tiny-")


def test_sources_of_the_same_file_name_are_separate_in_the_cache() -> None:
    assert len({pretrained.cache_path(source) for source in SOURCES.values()}) == len(SOURCES)


def test_damaged_cache_is_reported_with_the_way_out(server: Loopback, cache: Path) -> None:
    create(server.url + PATH)
    kept = next(cache.glob("*.safetensors"))
    kept.write_bytes(kept.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"\.safetensors: .*; delete it, and it will be"):
        create(server.url + PATH)


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


def test_nni_tag_holds_one_subnet_only() -> None:
    with pytest.raises(ValueError, match=r"nni_in1k .* holds the published subnet only.*ms_in1k"):
        az.create_model("autoformer_tiny.nni_in1k", pretrained=True, subnet=SUBNET)


def test_subnet_that_does_not_fit_is_refused_before_the_download() -> None:
    wide = az.SubnetConfig(12, 320, (4,) * 12, (4.0,) * 12)
    with pytest.raises(ValueError, match=r"autoformer_tiny.ms_in1k: embed_dim 320 .* has 256"):
        az.create_model("autoformer_tiny", pretrained=True, subnet=wide)


def test_changed_file_is_reported_with_both_hashes(server: Loopback, cache: Path) -> None:
    create(server.url + PATH)
    next(cache.glob("*.safetensors")).unlink()
    changed = supernet_file(make_supernet(bias_rule="packed_prefix", seed=4))
    server.replies[PATH] = Reply(changed)

    old, new = (hashlib.sha256(content).hexdigest() for content in (OFFICIAL_FILE, changed))
    with pytest.raises(CheckpointError, match=f"{new}, at the first download it was {old}"):
        create(server.url + PATH)
    assert [Path(name).suffix for name in left(cache)] == [".json"]

    next(cache.glob("*.json")).unlink()
    create(server.url + PATH)


def test_damaged_record_is_reported(server: Loopback, cache: Path) -> None:
    create(server.url + PATH)
    next(cache.glob("*.safetensors")).unlink()
    next(cache.glob("*.json")).write_text("[]")
    with pytest.raises(CheckpointError, match=r"\.json is not a record of a download: delete it"):
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


def test_after_a_failed_download_the_next_succeeds(server: Loopback, cache: Path) -> None:
    server.replies[PATH] = Reply(OFFICIAL_FILE, sent_bytes=5000)
    with pytest.raises(CheckpointError, match="cut"):
        create(server.url + PATH)
    server.replies[PATH] = Reply(OFFICIAL_FILE)
    assert_has(create(server.url + PATH), cut(OFFICIAL).tensors)


def test_address_of_ones_own_may_hold_a_subnet(server: Loopback) -> None:
    weights = cut(make_supernet(seed=5))
    server.replies["/mine.pth"] = Reply(saved(weights.tensors))
    assert_has(create(server.url + "/mine.pth"), weights.tensors)
    generic = create(server.url + "/mine.pth?generic", "autoformer_subnet")
    assert_has(generic, weights.tensors)


# Real sizes


@pytest.mark.slow
@pytest.mark.parametrize("space", ["tiny", "small", "base"])
def test_supernet_of_real_size_is_fetched_and_cut(space: str, cache: Path) -> None:
    supernet = make_supernet(
        az.SPACES[space].supernet, "packed_prefix", img_size=224, num_classes=1000
    )
    content = supernet_file(supernet)
    megabytes = {"tiny": 46.7, "small": 139.2, "base": 320.6}[space]
    assert len(content) == pytest.approx(megabytes * 1e6, rel=0.002)
    name = f"autoformer_{space}"
    with serve({PATH: Reply(content)}) as loopback:
        overlay = {"url": loopback.url + PATH}
        for _ in range(2):
            model = az.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
            assert_has(model, cut(supernet, az.SUBNETS[name]).tensors)
        assert loopback.requests == [f"GET {PATH}"]


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
