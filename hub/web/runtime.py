"""onnxruntime-web beside the page: taken from npm's package, or from a folder that holds it.

Only two files of it are taken: its module for WebAssembly, and the WebAssembly itself.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"  # that the page was tested with
# Where the files are in the package, and what they are called beside the page.
FILES = {
    "dist/ort.wasm.bundle.min.mjs": "ort.mjs",
    "dist/ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}
DESCRIPTION = "package.json"
TIMEOUT = 300  # seconds for npm
HINT = f"or give --runtime FOLDER, an unpacked {PACKAGE}"


def place_runtime(folder: Path, out: Path) -> str:
    """Copy the files of an unpacked package, and return its version.

    Args:
        folder: has `dist/` and package.json.
        out: made if necessary.

    Raises:
        ValueError: the folder lacks a file.
    """
    missing = [name for name in (*FILES, DESCRIPTION) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks {', '.join(missing)}; expected an unpacked {PACKAGE} such as {VERSION}"
        )
    out.mkdir(parents=True, exist_ok=True)
    for name, placed in FILES.items():
        shutil.copyfile(folder / name, out / placed)
    description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    return str(description["version"])


def download_runtime(out: Path) -> str:
    """Fetch the package by npm, copy its files, and return its version.

    Raises:
        ValueError: npm is missing or fails; one line that says what to do.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError(f"{PACKAGE} is fetched by npm, which is missing: install Node.js, {HINT}")
    with tempfile.TemporaryDirectory() as work:
        command = [npm, "pack", "--silent", f"{PACKAGE}@{VERSION}"]
        try:
            done = subprocess.run(
                command, cwd=work, capture_output=True, text=True, timeout=TIMEOUT, check=False
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"npm did not answer within {TIMEOUT} s: try again, {HINT}") from None
        archives = list(Path(work).glob("*.tgz"))
        if done.returncode or not archives:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            reason = lines[0].strip() if lines else f"npm pack gave exit code {done.returncode}"
            raise ValueError(f"{PACKAGE} {VERSION} cannot be fetched ({reason}): try again, {HINT}")
        unpacked = Path(work, "package")
        _unpack(archives[0], unpacked)
        return place_runtime(unpacked, out)


def _unpack(archive: Path, out: Path) -> None:
    """Write the files that are needed, and no other of the archive."""
    with tarfile.open(archive) as content:
        for name in (*FILES, DESCRIPTION):
            file = content.extractfile(f"package/{name}")
            assert file is not None
            target = out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as written:
                shutil.copyfileobj(file, written)
