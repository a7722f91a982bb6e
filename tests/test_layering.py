"""The direction of imports: the runtime stands alone, and nothing imports the training."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("autoformer_zoo", "benchmarks", "hub", "training")
MAY_IMPORT = {
    "autoformer_zoo": {"autoformer_zoo"},
    "benchmarks": {"autoformer_zoo", "benchmarks"},
    "hub": {"autoformer_zoo", "benchmarks", "hub"},
    "training": set(PACKAGES),
}


def _imported(file: Path) -> Iterator[str]:
    """Yield the first part of every module that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "a relative import" if node.level else str(node.module).partition(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_downwards(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    forbidden = {*PACKAGES, "tests", "a relative import"} - MAY_IMPORT[package]
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in _imported(file)
        if name in forbidden
    ]
    assert wrong == []


def test_every_package_is_covered() -> None:
    found = {init.parent.name for init in ROOT.glob("*/__init__.py")}
    assert found - {"tests"} <= set(PACKAGES)
    assert list((ROOT / "autoformer_zoo").glob("*.py"))


@pytest.mark.parametrize("name", ["space", "published", "network.complexity", "weights.sources"])
def test_plain_data_modules_import_nothing_heavy(name: str) -> None:
    # Without the package's own __init__, which registers the models with timm.
    code = f"""
import importlib, sys, types
package = types.ModuleType("autoformer_zoo")
package.__path__ = [{str(ROOT / "autoformer_zoo")!r}]
sys.modules["autoformer_zoo"] = package
importlib.import_module("autoformer_zoo.{name}")
print(sorted({{"torch", "timm", "numpy", "huggingface_hub"}} & set(sys.modules)))
"""
    run = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=600, check=False
    )
    assert run.stderr == ""
    assert run.stdout == "[]\n"


@pytest.mark.slow  # a fresh process imports torch and timm
def test_import_leaves_heavy_libraries_alone() -> None:
    code = """
import sys
import timm
before = set(sys.modules)
import autoformer_zoo
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new & {"onnx", "onnxruntime", "matplotlib", "tyro", "rich", "scipy", "training"}))
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.stdout == "[]\n", run.stderr
