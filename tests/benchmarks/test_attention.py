"""The attention command: forms agree, what is too large is not run, rows say so."""

from __future__ import annotations

import pytest
import torch

from benchmarks import attention
from benchmarks.attention import (
    AttentionOptions,
    attention_call,
    estimated_bytes,
    make_operands,
    measure_attention,
    sdpa_kernel,
)
from benchmarks.measure.memory import MIB, can_measure
from benchmarks.measure.rows import Row

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
        assert rows["latency", form].value > 0
        assert rows["latency", form].input == "4x4 grid, 2 heads"
        assert rows["error", form].value < 1e-5
    if can_measure("cpu"):
        assert rows["peak_memory", "explicit"].unit == "MiB"


def test_error_is_that_of_the_precision() -> None:
    rows = rows_of(precision="bf16", form=("plain", "explicit", "augmented"))
    for form in ("plain", "explicit", "augmented"):
        assert 1e-4 < rows["error", form].value < 0.1


def test_form_above_the_limit_is_estimated_and_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(attention), "relpos_attention", None)  # a call would fail

    rows = rows_of(grid=(64,), limit_mib=400, form=("explicit", "decomposed"))

    assert list(rows) == [("peak_memory", "explicit"), ("peak_memory", "decomposed")]
    row = rows["peak_memory", "explicit"]
    assert row.value > 15_000
    assert row.repeats == 0
    assert row.note == "estimated; not run, the limit was 400 MiB"


@pytest.mark.skipif(not can_measure("cpu"), reason="the peak is recorded on Linux only")
@pytest.mark.parametrize("form", ["explicit", "decomposed"])
def test_estimate_is_near_what_is_measured(form: str) -> None:
    rows = rows_of(grid=(14,), form=(form,), heads=(8,))
    operands = make_operands((14, 14), 8, 1).to("cpu", torch.float32)

    measured = rows["peak_memory", form].value
    assert estimated_bytes(form, operands) / MIB == pytest.approx(measured, rel=0.5)


def test_wider_plain_attention_gives_the_same_values() -> None:
    operands = make_operands((3, 3), 2, 1)
    narrow, wide = attention_call("plain", operands)(), attention_call("plain-96", operands)()
    assert wide.shape[-1] == 96
    torch.testing.assert_close(wide[..., :64], narrow, rtol=0, atol=1e-12)


def test_kernel_is_named_if_there_is_one() -> None:
    operands = make_operands((3, 3), 2, 1)
    with torch.inference_mode():
        assert sdpa_kernel(attention_call("plain", operands)).endswith("for_cpu")
        assert sdpa_kernel(attention_call("explicit", operands)) == ""
