"""The small files of a run: written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.run.directory import write_text


def test_text_that_cannot_be_put_in_place_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "x.json" / "inside").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match=r"x\.json'$"):
        write_text(tmp_path / "x.json", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_error_names_the_file_not_the_temporary_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere/x\.json'$"):
        write_text(tmp_path / "nowhere" / "x.json", "text")
