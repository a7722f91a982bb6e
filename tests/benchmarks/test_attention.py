"""The attention command: forms agree, what is too large is not run, rows say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import attention
from benchmarks.attention import (
    AttentionOptions,
    Row,
    estimated_bytes,
    main,
    make_operands,
    make_run,
    measure_attention,
    sdpa_kernel,
)
from benchmarks.measure.memory import MIB, can_measure
from benchmarks.measure.results import read_rows

SMALL = {"grid": (4,), "heads": (2,), "rounds": 3, "seconds": 0.1, "threads": 1}


def rows_of(**options: object) -> dict[tuple[str, str], Row]:
    values = {**SMALL, **options}
    rows = [row for rows in measure_attention(AttentionOptions(**values)) for row in rows]
    return {(row.what, row.model): row for row in rows}


def test_every_form_has_time_memory_and_a_small_error() -> None:
    rows = rows_of()

    forms = ("plain", "explicit", "decomposed", "augmented")
    assert {model for _, model in rows} == set(forms)
    for form in forms:
        assert rows["latency", form].median > 0
        assert rows["latency", form].input == "4x4 grid, 2 heads"
        assert rows["error", form].median < 1e-5
    if can_measure("cpu"):
        assert rows["peak_memory", "explicit"].unit == "MiB"


def test_error_is_that_of_the_precision() -> None:
    rows = rows_of(precision="bf16", form=("plain", "explicit", "augmented"))
    for form in ("plain", "explicit", "augmented"):
        assert 1e-4 < rows["error", form].median < 0.1


def test_form_above_the_limit_is_estimated_and_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(attention), "relpos_attention", None)  # a call would fail

    rows = rows_of(grid=(64,), limit_mib=400, form=("explicit", "decomposed"))

    assert list(rows) == [("peak_memory", "explicit"), ("peak_memory", "decomposed")]
    row = rows["peak_memory", "explicit"]
    assert row.median > 15_000
    assert row.repeats == 0
    assert row.note == "estimated; not run, the limit was 400 MiB"


def test_estimate_grows_with_the_tokens_as_the_form_does() -> None:
    small, large = (make_operands((side, side), 1, 1) for side in (10, 20))
    growth = {
        form: estimated_bytes(form, large) / estimated_bytes(form, small)
        for form in ("plain", "explicit", "decomposed", "augmented")
    }
    tokens = 401 / 101
    assert growth["plain"] == tokens
    assert growth["explicit"] == pytest.approx(tokens**2)
    assert growth["decomposed"] == pytest.approx(tokens**2)
    assert tokens < growth["augmented"] < 1.5 * tokens


@pytest.mark.skipif(not can_measure("cpu"), reason="the peak is known on Linux only")
@pytest.mark.parametrize("form", ["explicit", "decomposed"])
def test_estimate_is_near_what_is_measured(form: str) -> None:
    rows = rows_of(grid=(14,), form=(form,), heads=(8,))
    operands = make_operands((14, 14), 8, 1).to("cpu", torch.float32)

    measured = rows["peak_memory", form].median
    assert estimated_bytes(form, operands) / MIB == pytest.approx(measured, rel=0.5)


def test_wider_plain_attention_gives_the_same_values() -> None:
    operands = make_operands((3, 3), 2, 1)
    narrow, wide = make_run("plain", operands)(), make_run("plain-96", operands)()
    assert wide.shape[-1] == 96
    torch.testing.assert_close(wide[..., :64], narrow, rtol=0, atol=1e-12)


def test_kernel_is_named_where_there_is_one() -> None:
    operands = make_operands((3, 3), 2, 1)
    with torch.inference_mode():
        assert sdpa_kernel(make_run("plain", operands)).endswith("for_cpu")
        assert sdpa_kernel(make_run("explicit", operands)) == ""


def test_command_prints_saves_and_ends_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--grid", "3", "--heads", "1", "--form", "plain", "augmented", "--threads", "1"]
    args += ["--rounds", "3", "--seconds", "0.1", "--save", "--results", str(tmp_path)]
    assert main(args) == 0

    *table, last = capsys.readouterr().out.splitlines()
    document = json.loads(last)
    assert [line.split()[0] for line in table] == ["form", "plain", "augmented"]
    saved = read_rows(tmp_path / attention.ROWS, Row)
    assert [row.what for row in saved] == [row["what"] for row in document["rows"]]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--grid", "0"], "grid is (0,); expected positive numbers"),
        (["--heads"], "heads is empty; expected at least one"),
        (["--form"], "form is empty; expected at least one"),
        (["--limit-mib", "-1"], "limit_mib is (-1,); expected positive numbers"),
        (["--rounds", "0"], "rounds is 0; expected 1 or more"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_one_line_and_code_2(
    args: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert text in err
