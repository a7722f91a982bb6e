"""The latency command: what it accepts, what it prints, what it refuses. No figure is asserted."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import latency
from benchmarks.latency import (
    QUICK,
    ROWS,
    LatencyOptions,
    checked,
    derived_rows,
    format_table,
    main,
    measure_latency,
)
from benchmarks.measure.competitors import (
    OnnxFiles,
    Track,
    build,
    macs_of,
    make_run,
    pairs_of,
    runs_in,
    takes_part,
    thread_count,
)
from benchmarks.measure.options import shortened
from benchmarks.measure.results import read_rows
from benchmarks.measure.rows import RatioRow, Row, Setting
from benchmarks.measure.timing import SIDE, Plan, Run, Stopwatch

NANO = ("autoformer_nano", "autoformer_nano@explicit")
ROW = Row(
    *("latency", "some_model", "eager", "fp32", 8, 2, "224x224", "cpu", "a machine", "torch 9"),
    *("abc", "2026-01-01T00:00:00+00:00", 12.345, 11.0, 14.0, 50, "ms"),
)
FAST = ["--rounds", "3", "--warmup", "0", "--settle", "0", "--threads", "1"]


@pytest.fixture(autouse=True)
def _small_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIDE, "cpu", 64)  # the machine's peak takes seconds to measure


def latencies(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in document["rows"] if row["what"] == "latency"]


def test_rows_and_ratios_come_from_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(runs: dict[tuple[str, str], Run], plan: Plan, _: Stopwatch) -> dict[Any, Any]:
        return {key: [8.0 if "@" in key[0] else 2.0] * plan.rounds for key in runs}

    monkeypatch.setattr(latency, "measure", measure)
    options = LatencyOptions(models=NANO, batch_size=(1, 2), threads=(1,), rounds=3)

    rows, ratios = measure_latency(options)

    times = [row for row in rows if row.what == "latency"]
    assert [(row.model, row.batch, row.median, row.repeats) for row in times] == [
        (NANO[0], 1, 2.0, 3),
        (NANO[1], 1, 8.0, 3),
        (NANO[0], 2, 2.0, 3),
        (NANO[1], 2, 8.0, 3),
    ]
    assert {row.input for row in times} == {"32x32"}
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
    times = latencies(document)
    assert len(times) == 3 * 2
    assert {row["model"] for row in times} == {*NANO, "test_vit"}
    for row in times:
        assert list(row) == [field.name for field in fields(Row)]
        assert 0 < row["p10"] <= row["median"] <= row["p90"]
        assert (row["repeats"], row["unit"]) == (3, "ms")
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
    assert [row["input"] for row in latencies(document)] == ["48x48"] * 3


def test_precision_is_that_of_weights_and_images() -> None:
    competitor = build("autoformer_nano")
    seen = []
    competitor.module.patch_embed.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].dtype)
    )

    make_run(competitor, "eager", Setting("bf16", 1, 1), Track("cpu", 0, OnnxFiles(Path())))

    assert {p.dtype for p in competitor.module.parameters()} == {torch.bfloat16}
    assert seen == [torch.bfloat16]
    assert not competitor.module.training


def test_inputs_take_turns() -> None:
    competitor = build("test_vit")
    seen = []
    competitor.module.register_forward_pre_hook(
        lambda _, inputs: seen.append(float(inputs[0].sum()))
    )

    run = make_run(competitor, "eager", Setting("fp32", 1, 1), Track("cpu", 0, OnnxFiles(Path())))
    for _ in range(7):
        run()

    assert len(set(seen)) == 4
    assert seen[:4] == seen[4:]


def test_saved_rows_replace_older_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--models", "test_vit", "--batch-size", "1", *FAST, "--save", "--results"]
    assert main([*args, str(tmp_path)]) == 0
    first = read_rows(tmp_path / ROWS, Row)
    assert main([*args, str(tmp_path)]) == 0
    second = read_rows(tmp_path / ROWS, Row)

    assert [row.what for row in first] == [
        *("latency", "throughput", "macs", "flops", "share_of_peak", "peak")
    ]
    assert [row.key for row in second] == [row.key for row in first]
    assert second[0].median != first[0].median


def test_derived_figures_follow_from_the_latency() -> None:
    row = replace(ROW, batch=8, median=100.0, p10=80.0, p90=200.0)

    figures = {each.what: each for each in derived_rows(row, macs=5e9, peak=1000.0)}

    assert (figures["throughput"].median, figures["throughput"].p10) == (80.0, 40.0)
    assert figures["macs"].median == 5.0
    assert (figures["flops"].median, figures["flops"].unit) == (800.0, "GFLOP/s")
    assert figures["share_of_peak"].median == 80.0
    assert "share_of_peak" not in {each.what for each in derived_rows(row, 5e9, None)}


@pytest.mark.parametrize(
    ("spec", "gmacs"),
    # By hand for DeiT-tiny: patches 0.029, 12 blocks of 0.087 in linear layers and 0.015 in
    # attention, head 0.0002.
    [("deit_tiny_patch16_224", 1.254), ("autoformer_tiny", 1.44), ("resnet18", 1.814)],
)
def test_multiply_adds_are_those_of_the_model(spec: str, gmacs: float) -> None:
    assert macs_of(build(spec)) / 1e9 == pytest.approx(gmacs, abs=0.005)


def test_onnxruntime_is_measured_where_the_exporter_has_a_choice() -> None:
    assert takes_part("autoformer_nano", "onnxruntime")
    assert not takes_part("autoformer_nano@explicit", "onnxruntime")
    assert runs_in("onnxruntime", "int8")
    assert not runs_in("onnxruntime", "bf16")
    assert not runs_in("eager", "int8")


@pytest.mark.slow
def test_onnx_files_compete_with_torch(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--models", "autoformer_nano", "test_vit", "--backend", "eager", "onnxruntime"]
    args += ["--precision", "fp32", "int8", "--batch-size", "2", "--memory", *FAST]
    assert main(args) == 0

    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(row["model"], row["backend"], row["precision"]) for row in latencies(document)] == [
        ("autoformer_nano", "eager", "fp32"),
        ("autoformer_nano", "onnxruntime", "fp32"),
        ("test_vit", "eager", "fp32"),
        ("test_vit", "onnxruntime", "fp32"),
        ("autoformer_nano", "onnxruntime", "int8"),
        ("test_vit", "onnxruntime", "int8"),
    ]
    memory = [row["median"] for row in document["rows"] if row["what"] == "peak_memory"]
    assert len(memory) == 6
    assert min(memory) > 0
    assert "onnxruntime" in document["rows"][0]["versions"]


@pytest.mark.slow
def test_compiled_models_compete_with_eager_ones(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--models", *NANO, "--backend", "eager", "compile", "--batch-size", "1", *FAST]
    assert main(args) == 0

    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["backend"] for row in latencies(document)] == ["eager", "compile"] * 2
    assert [ratio["backend"] for ratio in document["ratios"]] == ["eager", "compile"]


@pytest.mark.gpu
def test_cuda_is_timed_by_its_events(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--models", *NANO, "--device", "cuda", "--precision", "bf16", *FAST]) == 0

    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {row["device"] for row in document["rows"]} == {"cuda"}
    assert {row["machine"] for row in document["rows"]} == {torch.cuda.get_device_name()}


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
        (["--img-size", "0"], "img_size is (0,); expected positive numbers"),
        (["--precision", "int8"], "no backend of eager runs in int8"),
        (["--backend", "cudagraphs"], "cudagraphs needs --device cuda"),
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
    quick = shortened(LatencyOptions(quick=True, batch_size=(3,)), QUICK)

    assert quick.batch_size == (3,)
    assert quick.models == (
        "autoformer_tiny",
        "deit_tiny_patch16_224",
        "autoformer_tiny@explicit",
    )
    assert quick.rounds < LatencyOptions().rounds


@pytest.mark.parametrize("form", ["explicit", "augmented", "decomposed"])
def test_form_after_the_name_is_the_form_that_runs(form: str) -> None:
    by_name = build(f"autoformer_nano@{form}")
    by_option = build("autoformer_nano", attention=form)

    for competitor in (by_name, by_option):
        assert {block.attn.form for block in competitor.module.blocks} == {form}


def test_thread_count_is_put_back() -> None:
    before = torch.get_num_threads()
    with thread_count(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_table_shows_every_row_and_ratio() -> None:
    ratio = RatioRow(
        *("latency", "some_model", "other", "eager", "fp32", 8, 2, "224x224", "cpu", "a machine"),
        *("torch 9", "abc", "2026-01-01T00:00:00+00:00", 1.5, 1.25, 1.75, 50),
    )
    peak = replace(ROW, what="peak", model="matmul", median=99.6, unit="GFLOP/s")

    text = format_table([ROW, *derived_rows(ROW, 2e9, 1e3), peak], [ratio])

    line = text.splitlines()[1].split()
    assert line[6:] == ["12.35", "11.00", "14.00", "648.0", "2.00", "2592.1", "259.2", "-"]
    assert "100 GFLOP/s" in text.splitlines()[2]
    assert "1.500 [1.250, 1.750]" in text.splitlines()[-1]
    assert "ratio" not in format_table([ROW], [])
