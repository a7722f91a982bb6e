"""The cache under stress: many processes, no permission, no space, and death in the middle."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoformer_zoo.weights import pretrained
from tests.helpers.attacked import attack
from tests.helpers.loopback import Loopback, Reply
from tests.helpers.made_downloads import OFFICIAL, OFFICIAL_FILE, PATH, create, left
from tests.helpers.made_weights import assert_has, cut

PROCESSES, DEATHS = 8, 20

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and kills what it forked"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


def start(url: str) -> Any:
    """Make a model in another process; its exit code is 0 if the weights are right."""

    def run() -> None:
        assert_has(create(url), cut(OFFICIAL).tensors)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def test_processes_that_start_together_get_the_same_weights(server: Loopback, cache: Path) -> None:
    processes = [start(server.url + PATH) for _ in range(PROCESSES)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    assert server.requests == [f"GET {PATH}"]
    assert [Path(name).suffix for name in left(cache)] == [".json", ".safetensors"]


def test_after_deaths_in_the_middle_the_next_call_works(
    server: Loopback, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for death in range(DEATHS):
        sent = 1 + death * len(OFFICIAL_FILE) // DEATHS
        server.replies[PATH] = Reply(OFFICIAL_FILE, sent_bytes=sent, stalls=True)
        process = start(server.url + PATH)
        deadline = time.monotonic() + 20
        while not list(cache.glob(".official*")) if cache.exists() else True:
            assert time.monotonic() < deadline
            assert process.is_alive()
            time.sleep(0.005)
        process.kill()
        process.join()
        assert not list(cache.glob("[!.]*.safetensors"))  # nothing that looks complete

    monkeypatch.setattr(pretrained, "ABANDONED_SECONDS", 0.0)
    server.replies[PATH] = Reply(OFFICIAL_FILE)
    assert_has(create(server.url + PATH), cut(OFFICIAL).tensors)
    assert [Path(name).suffix for name in left(cache)] == [".json", ".safetensors"]


@pytest.mark.parametrize("limit", [1, 20_000])
def test_disk_that_is_full_says_so(limit: int, server: Loopback, cache: Path) -> None:
    def run() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        create(server.url + PATH)

    outcome = attack(run)
    assert outcome.error == "CheckpointError"
    assert "cannot write" in outcome.text
    assert "File too large" in outcome.text  # where a limit, not the disk, is what ends
    assert left(cache) == []
    assert_has(create(server.url + PATH), cut(OFFICIAL).tensors)


@pytest.fixture
def readable(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache that other users can reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    monkeypatch.setenv(pretrained.CACHE_VARIABLE, str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("is_filled", [False, True])
def test_folder_that_cannot_be_written_to_is_read(
    is_filled: bool, server: Loopback, readable: Path
) -> None:
    create(server.url + PATH)  # also imports what an unprivileged process may not read
    if not is_filled:
        for path in readable.iterdir():
            path.unlink()
    readable.chmod(0o555)

    def run() -> None:
        if os.geteuid() == 0:  # whom no permission stops
            os.setuid(65534)
        create(server.url + PATH)

    outcome = attack(run)
    if is_filled:
        assert outcome.error == ""
    else:
        assert outcome.error == "CheckpointError"
        assert "Permission denied" in outcome.text
    readable.chmod(0o755)
