"""The latency command: what it accepts, what it prints, what it refuses. No figure is asserted."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
import torch

from benchmarks import latency
from benchmarks.latency import (
    LatencyOptions,
    build,
    checked,
    format_table,
    main,
    measure_latency,
    pairs_of,
    shortened,
    thread_count,
)
from benchmarks.rows import RatioRow, Row
from benchmarks.timing import Plan, Run, Stopwatch

NANO = ("autoformer_nano", "autoformer_nano@explicit")
FAST = ["--rounds", "3", "--warmup", "0", "--settle", "0", "--threads", "1"]


def test_rows_and_ratios_come_from_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(runs: dict[tuple[str, str], Run], plan: Plan, _: Stopwatch) -> dict[Any, Any]:
        return {key: [8.0 if "@" in key[0] else 2.0] * plan.rounds for key in runs}

    monkeypatch.setattr(latency, "measure", measure)
    options = LatencyOptions(models=NANO, batch_size=(1, 2), threads=(1,), rounds=3)

    rows, ratios = measure_latency(options)

    assert [(row.model, row.batch, row.median_ms, row.repeats) for row in rows] == [
        (NANO[0], 1, 2.0, 3),
        (NANO[1], 1, 8.0, 3),
        (NANO[0], 2, 2.0, 3),
        (NANO[1], 2, 8.0, 3),
    ]
    assert {row.img_size for row in rows} == {"32x32"}
    assert [(r.model, r.baseline, r.batch, r.ratio, r.low, r.high) for r in ratios] == [
        (*NANO, 1, 0.25, 0.25, 0.25),
        (*NANO, 2, 0.25, 0.25, 0.25),
    ]


def test_command_prints_a_table_and_one_json_document_last(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = main(["--models", ",".join(NANO), "test_vit", "--batch-size", "1", "2", *FAST])

    *table, last = capsys.readouterr().out.splitlines()
    document = json.loads(last)
    assert code == 0
    assert table[0].split()[:2] == ["model", "backend"]
    assert len(document["rows"]) == 3 * 2
    assert {row["model"] for row in document["rows"]} == {*NANO, "test_vit"}
    for row in document["rows"]:
        assert list(row) == [field.name for field in fields(Row)]
        assert 0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
        assert row["repeats"] == 3
        assert row["commit"]
    assert document["weights"] == "random"
    assert [ratio["batch"] for ratio in document["ratios"]] == [1, 2]
    assert list(document["ratios"][0]) == [field.name for field in fields(RatioRow)]


def test_command_adds_its_baseline_and_divides_all_others_by_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = ["--models", *NANO, "--baseline", "test_vit", "--batch-size", "1", *FAST]
    assert main(args) == 0

    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    ratios = document["ratios"]
    assert [(r["model"], r["baseline"]) for r in ratios] == [(name, "test_vit") for name in NANO]


def test_image_size_reaches_models_of_fixed_and_of_free_size(
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = ["autoformer_nano", "test_vit", "test_resnet"]
    assert main(["--models", *models, "--img-size", "48", "--batch-size", "1", *FAST]) == 0

    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["img_size"] for row in document["rows"]] == ["48x48"] * 3


def test_precision_is_that_of_weights_and_pictures() -> None:
    competitor = build("autoformer_nano", "bf16", LatencyOptions())
    assert {p.dtype for p in competitor.module.parameters()} == {torch.bfloat16}
    assert not competitor.module.training


@pytest.mark.slow
def test_compiled_models_compete_with_eager_ones(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--models", *NANO, "--backend", "eager", "compile", "--batch-size", "1", *FAST]
    assert main(args) == 0

    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["backend"] for row in document["rows"]] == ["eager", "compile"] * 2
    assert [ratio["backend"] for ratio in document["ratios"]] == ["eager", "compile"]


@pytest.mark.gpu
def test_cuda_is_timed_by_its_events(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--models", *NANO, "--device", "cuda", "--precision", "bf16", *FAST]) == 0

    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {row["device"] for row in document["rows"]} == {torch.cuda.get_device_name()}


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--models", "autoformer_tny"], "no model 'autoformer_tny'; did you mean autoformer_tiny"),
        (["--models", "qqq"], "no model 'qqq'; timm.list_models() lists all"),
        (["--models", "test_vit@explicit"], "test_vit@explicit: only models of this package"),
        (["--models", "autoformer_nano@fused"], "the form of autoformer_nano@fused is 'fused'"),
        (["--models", ","], "models is empty; expected at least one name"),
        (["--models"], "models is empty; expected at least one name"),
        (["--baseline", "deit_tny"], "no model 'deit_tny'"),
        (["--rounds", "0"], "rounds is 0; expected 1 or more"),
        (["--seconds", "-1"], "seconds is -1.0; expected a positive number"),
        (["--batch-size", "0"], "batch_size is (0,); expected positive numbers"),
        (["--threads", "-2"], "threads is (-2,); expected positive numbers"),
        (["--threads"], "threads is empty; expected at least one"),
        (["--img-size", "0"], "img_size is 0; expected a positive number of pixels"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_one_line_and_code_2(
    args: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert text in err


def test_cuda_without_cuda_is_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert main(["--device", "cuda"]) == 2
    assert "device is cuda, but torch finds no CUDA here" in capsys.readouterr().err


def test_default_models_are_real_and_paired() -> None:
    options = checked(LatencyOptions())  # refuses names that timm does not know

    assert pairs_of(options.models, None) == [
        ("autoformer_tiny", "deit_tiny_patch16_224"),
        ("autoformer_tiny", "autoformer_tiny@explicit"),
        ("autoformer_small", "deit_small_patch16_224"),
        ("autoformer_small", "autoformer_small@explicit"),
        ("autoformer_base", "deit_base_patch16_224"),
        ("autoformer_base", "autoformer_base@explicit"),
    ]


def test_models_without_a_partner_have_no_ratio() -> None:
    assert pairs_of(["autoformer_tiny", "test_vit"], None) == []
    assert pairs_of(["autoformer_tiny", "test_vit"], "test_vit") == [
        ("autoformer_tiny", "test_vit")
    ]


def test_names_count_once_and_may_hold_commas() -> None:
    options = LatencyOptions(models=("test_vit, autoformer_nano", "test_vit"), baseline="test_vit")
    assert checked(options).models == ("test_vit", "autoformer_nano")


def test_quick_changes_only_what_was_not_asked_for() -> None:
    quick = shortened(LatencyOptions(quick=True, batch_size=(3,)))

    assert quick.batch_size == (3,)
    assert quick.models == (
        "autoformer_tiny",
        "deit_tiny_patch16_224",
        "autoformer_tiny@explicit",
    )
    assert quick.rounds < LatencyOptions().rounds


@pytest.mark.parametrize("form", ["explicit", "augmented", "decomposed"])
def test_form_after_the_name_is_the_form_that_runs(form: str) -> None:
    by_name = build(f"autoformer_nano@{form}", "fp32", LatencyOptions())
    by_option = build("autoformer_nano", "fp32", LatencyOptions(attention=form))

    for competitor in (by_name, by_option):
        assert {block.attn.form for block in competitor.module.blocks} == {form}


def test_thread_count_is_put_back() -> None:
    before = torch.get_num_threads()
    with thread_count(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_table_shows_every_row_and_ratio() -> None:
    row = Row(
        *("latency", "some_model", "eager", "fp32", 8, 2, "224x224", "a machine", "torch 9", "abc"),
        *("2026-01-01T00:00:00+00:00", 12.345, 11.0, 14.0, 50),
    )
    ratio = RatioRow("latency", "some_model", "other", "eager", "fp32", 8, 2, 1.5, 1.25, 1.75)

    text = format_table([row], [ratio])

    assert "12.35" in text.splitlines()[1]
    assert "1.500 [1.250, 1.750]" in text.splitlines()[-1]
    assert "ratio" not in format_table([row], [])
