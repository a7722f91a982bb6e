"""The wheel: built by the project's own backend, it holds the runtime package alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of what is needed, so that the working tree stays clean."""
    source = tmp_path_factory.mktemp("source")
    for name in ("autoformer_zoo", "training", "hub", "benchmarks", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "golden")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source)
    # What another run in this folder could have left lying about.
    (source / "stray.py").touch()
    out = source / "dist"
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(out)!r}))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return out / run.stdout.split()[-1]


def test_wheel_holds_all_of_the_runtime_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"autoformer_zoo"}
    assert len(tops) == 2
    files = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "autoformer_zoo").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert files <= set(names)


def test_wheel_names_its_command_and_license(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    [entry_points, metadata] = (
        next(archive.read(name).decode() for name in archive.namelist() if name.endswith(end))
        for end in (".dist-info/entry_points.txt", ".dist-info/METADATA")
    )
    assert "autoformer-zoo = autoformer_zoo.cli.main:main" in entry_points
    assert "License-Expression: MIT" in metadata
    assert "Requires-Dist: timm>=" in metadata
