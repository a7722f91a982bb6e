"""The small files of a run: written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.run.directory import LOG, cut_log, read_log, write_text
from training.run.plots import plot_curve


def test_text_that_cannot_be_put_in_place_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "x.json" / "inside").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match=r"x\.json'$"):  # not the temporary file's name
        write_text(tmp_path / "x.json", "text")
    with pytest.raises(FileNotFoundError, match=r"nowhere/x\.json'$"):
        write_text(tmp_path / "nowhere" / "x.json", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    cut_log(log, 2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        "[1]",
        '{"step": "1"}',
        '{"step": 1, "loss": 2.0}',
        '{"step": 1, "img_size": 8, "held_out_acc1_percent": {"subnet": null}}',
        "\xff",
    ],
    ids=lambda line: line[:60],
)
def test_damaged_log_is_reported_with_its_line(tmp_path: Path, line: str) -> None:
    log = tmp_path / LOG
    log.write_bytes(b'{"step": 1}\n' + line.encode("latin-1") + b"\n")
    for read in (lambda: cut_log(log, 1), lambda: plot_curve(tmp_path), lambda: read_log(log)):
        with pytest.raises(ValueError, match=r"^[^\n]*log\.jsonl is damaged \(line 2: [^\n]*$"):
            read()
