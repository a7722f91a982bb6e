"""The command in this process, and files for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoformer_zoo.cli import main as cli
from tests.helpers.made_cli import SUBNET, Run, write_image, write_supernet


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*argv: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in argv])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def supernet(tmp_path: Path) -> Path:
    return write_supernet(tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The config of a subnet of it."""
    path = tmp_path / "subnet.json"
    path.write_text(SUBNET.to_json())
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_image(tmp_path)
