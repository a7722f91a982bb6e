"""SHA-256 of files, and the file SHA256SUMS of a folder, in the format of the command sha256sum."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

SUMS = "SHA256SUMS"
_CHUNK = 1 << 20  # bytes
_LINE = re.compile(r"([0-9a-f]{64}) [ *](\S.*)")


def sha256(file: Path) -> str:
    """Return the digest of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def files_of(folder: Path) -> Iterator[str]:
    """Yield the names of all files below a folder, with slashes, sorted; hidden ones are left out.

    Raises:
        ValueError: one of them is a link, which would stand for a file of another place.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in name.split("/")):
            continue
        if path.is_symlink():
            raise ValueError(f"{path} is a link; expected files")
        if path.is_file():
            yield name


def write_sums(folder: Path) -> None:
    """Write the digests of all files of a folder."""
    lines = [f"{sha256(folder / name)}  {name}\n" for name in files_of(folder) if name != SUMS]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def read_sums(folder: Path) -> dict[str, str]:
    """Return the recorded digest of each file.

    Raises:
        ValueError: a line is damaged, or names a file outside the folder.
        OSError: there is no such file.
    """
    sums = {}
    for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
        match = _LINE.fullmatch(line)
        if match is None or not _is_inside(match[2]):
            raise ValueError(f"{folder / SUMS}: {line[:90]!r} is not a digest and a file's name")
        sums[match[2]] = match[1]
    return sums


def differences(folder: Path) -> list[str]:
    """Compare a folder with its record, and return one line for each difference.

    Raises:
        ValueError: the record is damaged.
        OSError: there is none.
    """
    sums, names = read_sums(folder), set(files_of(folder)) - {SUMS}
    lines = [f"{name} is missing" for name in sums if name not in names]
    lines += [f"{name} is not recorded" for name in sorted(names) if name not in sums]
    return lines + [
        f"{name} has another sha256 than recorded"
        for name, digest in sums.items()
        if name in names and sha256(folder / name) != digest
    ]


def _is_inside(name: str) -> bool:
    parts = name.split("/")
    return not name.startswith("/") and "\\" not in name and not {"", ".", ".."} & set(parts)
