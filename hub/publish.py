"""Upload a folder to the Hugging Face Hub, and check what arrived: `python -m hub.publish`.

    python -m hub.publish FOLDER --repo USER/NAME             # lists what would go up
    python -m hub.publish FOLDER --repo USER/NAME --execute

The folder is verified first. A file that is there and equal is left out; one that is there and
different stops everything unless --replace is given. Files of an upload that was cut are not sent
again. Afterwards everything is downloaded at the new commit and verified. The token is read by
huggingface_hub alone: from its own login, or from HF_TOKEN.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro
from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # 0.20 has no `errors`
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from autoformer_zoo.cli.command import run_command
from hub.checksums import SUMS, differences, files_of, sha256
from hub.verify import VerifyConfig, verify

PROG = "python -m hub.publish"

State = Literal["new", "same", "differs"]


class PublishError(RuntimeError):
    """The Hub refused, or what arrived is not what was sent."""


@dataclass(frozen=True, slots=True)
class PublishConfig:
    """Upload a folder to the Hugging Face Hub.

    Args:
        artefact: a folder that `hub.folder` or `autoformer-zoo export --target web` made.
        repo: USER/NAME on the Hub; made if necessary.
        execute: upload; without it only what would go up is listed.
        replace: replace files that are there and different.
        private: make a new repository private.
        revision: the branch.
    """

    artefact: tyro.conf.Positional[Path]
    repo: str
    execute: bool = False
    replace: bool = False
    private: bool = False
    revision: str = "main"


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of the folder.

    Args:
        name: in the folder and on the Hub.
        size_bytes: its size.
        state: how it compares with the Hub.
    """

    name: str
    size_bytes: int
    state: State


def plan(config: PublishConfig, api: HfApi) -> list[PlannedFile]:
    """Verify a folder, and compare its files with the Hub.

    Raises:
        ValueError: the folder or the name is refused.
        PublishError: the Hub refuses.
    """
    folder = config.artefact
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected one that hub.folder made")
    failed = [check for check in verify(VerifyConfig(folder)) if check.status == "failed"]
    if failed:
        raise ValueError(f"{folder} is not published: {failed[0].what}: {failed[0].detail}")
    there = _remote_files(config, api)
    return [
        PlannedFile(name, (folder / name).stat().st_size, _state(folder / name, there.get(name)))
        for name in files_of(folder)
    ]


def publish(config: PublishConfig, api: HfApi, files: list[PlannedFile]) -> str:
    """Upload what is new or different, download all of it again and verify it.

    Args:
        config: the command's.
        api: the Hub.
        files: from `plan`.

    Returns:
        The commit that has the files.

    Raises:
        ValueError: a file is there and different, and `replace` is False.
        PublishError: the Hub refuses, or what arrived differs.
    """
    different = [file.name for file in files if file.state == "differs"]
    if different and not config.replace:
        raise ValueError(
            f"{config.repo} has other files named {', '.join(different)}: give --replace, or "
            "another --repo"
        )
    try:
        api.create_repo(config.repo, private=config.private or None, exist_ok=True)
        head = str(api.model_info(config.repo, revision=config.revision).sha)
        there = _remote_files(replace(config, revision=head), api)
        for file in files:
            if _state(config.artefact / file.name, there.get(file.name)) != file.state:
                raise PublishError(f"{config.repo}: {file.name} was changed meanwhile: try again")
        wanted = [file.name for file in files if file.state != "same"]
        commit = head
        if wanted:
            commit = api.create_commit(
                config.repo,
                [CommitOperationAdd(name, config.artefact / name) for name in wanted],
                commit_message=f"Add {len(wanted)} files" if not different else "Replace files",
                revision=config.revision,
                parent_commit=head,  # refused if somebody else was faster
            ).oid
        _check_arrival(config, commit)
    except PublishError:
        raise
    except Exception as error:  # of whatever library the client speaks HTTP with
        raise PublishError(f"{config.repo}: {_one_line(error)}") from error
    return commit


def _remote_files(config: PublishConfig, api: HfApi) -> Mapping[str, RepoFile]:
    try:
        tree = list(api.list_repo_tree(config.repo, recursive=True, revision=config.revision))
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return {}
    except HFValidationError as error:
        raise ValueError(f"--repo {config.repo}: {_one_line(error)}") from None
    except Exception as error:  # of whatever library the client speaks HTTP with
        raise PublishError(f"{config.repo}: {_one_line(error)}") from error
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _state(path: Path, remote: RepoFile | None) -> State:
    if remote is None:
        return "new"
    if remote.lfs is not None:
        return "same" if remote.lfs.sha256 == sha256(path) else "differs"
    return "same" if remote.blob_id == git_blob_id(path.read_bytes()) else "differs"


def git_blob_id(content: bytes) -> str:
    """Return git's name of a file's content, 40 hexadecimal digits."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _check_arrival(config: PublishConfig, commit: str) -> None:
    """Download the commit into an empty folder and compare it with the artefact."""
    with tempfile.TemporaryDirectory(prefix="published-") as work:
        folder = Path(work, "folder")
        snapshot_download(config.repo, revision=commit, local_dir=folder, cache_dir=work)
        names = set(files_of(config.artefact))
        for other in set(files_of(folder)) - names:
            (folder / other).unlink()  # what the repository had before
        wrong = [
            name
            for name in sorted(names)
            if not (folder / name).is_file()
            or sha256(folder / name) != sha256(config.artefact / name)
        ]
        if (folder / SUMS).is_file():
            wrong += differences(folder)
        checks = [check for check in verify(VerifyConfig(folder)) if check.status == "failed"]
        wrong += [f"{check.what}: {check.detail}" for check in checks]
        if wrong:
            raise PublishError(f"{config.repo} at {commit[:8]} is not what was sent: {wrong[0]}")


def _one_line(error: Exception) -> str:
    cause = f" ({error.__cause__})" if error.__cause__ else ""
    return " ".join(f"{error}{cause}".split())[:400] or type(error).__name__


def main(argv: list[str] | None = None) -> int:
    """Run the command; exit codes as in `run_command`, 1 if the Hub refuses."""
    return run_command(
        PROG,
        PublishConfig,
        argv,
        _run,
        config=(tyro.conf.FlagCreatePairsOff,),
        failures=(PublishError,),
        log_level=logging.WARNING,
    )


def _run(config: PublishConfig) -> None:
    api = HfApi()
    files = plan(config, api)
    for file in files:
        print(f"{file.state:<8}{file.size_bytes:>12,}  {file.name}")
    result: dict[str, Any] = {"repo": config.repo, "files": [asdict(file) for file in files]}
    if config.execute:
        result["commit"] = publish(config, api, files)
        print(f"{config.repo} has all of it at {result['commit']}, verified after a download")
    else:
        print(f"nothing was sent to {config.repo}: give --execute")
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
