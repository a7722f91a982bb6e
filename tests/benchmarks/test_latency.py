"""Latency: which models run how, and what follows from the times. No figure is asserted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autoformer_zoo.specialization.latency.timing import Call, Stopwatch
from benchmarks import latency
from benchmarks.latency import LatencyOptions, derived_rows, main, measure_latency, validate
from benchmarks.measure.models import (
    build,
    macs_of,
    make_call,
    pairs_of,
)
from benchmarks.measure.rows import Row, Setting
from benchmarks.measure.text_table import format_table
from benchmarks.measure.timing import PRODUCT_SIDE, TimingConfig

NANO = ("autoformer_nano", "autoformer_nano@explicit")
ROW = Row(
    *("latency", "some_model", "eager", "fp32", 8, 2, "224x224", "cpu", "a machine", "torch 9"),
    *("abc", "2026-01-01T00:00:00+00:00", 12.345, 11.0, 14.0, 50, "ms"),
)
FAST = ["--rounds", "3", "--warmup", "0", "--settle", "0", "--threads", "1"]


@pytest.fixture(autouse=True)
def _small_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRODUCT_SIDE, "cpu", 64)  # the machine's peak takes seconds to measure


def run(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Run the command; returns its document, with the rows of latency under "latencies"."""
    assert main([*args, *FAST]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    document["latencies"] = [row for row in document["rows"] if row["what"] == "latency"]
    return document


def test_rows_and_ratios_come_from_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(
        calls: dict[tuple[str, str], Call], config: TimingConfig, _: Stopwatch
    ) -> dict[Any, Any]:
        return {key: [8.0 if "@" in key[0] else 2.0] * config.rounds for key in calls}

    monkeypatch.setattr(latency, "measure", measure)
    options = LatencyOptions(models=NANO, batch_size=(1, 2), threads=(1,), rounds=3)

    rows = [row for group in measure_latency(options) for row in group]

    times = [row for row in rows if row.what == "latency" and not row.baseline]
    assert [(row.model, row.batch, row.value, row.repeats) for row in times] == [
        (NANO[0], 1, 2.0, 3),
        (NANO[1], 1, 8.0, 3),
        (NANO[0], 2, 2.0, 3),
        (NANO[1], 2, 8.0, 3),
    ]
    assert {row.input for row in times} == {"32x32"}
    ratios = [row for row in rows if row.baseline]
    assert [(r.model, r.baseline, r.batch, r.value, r.low, r.high) for r in ratios] == [
        (*NANO, 1, 0.25, 0.25, 0.25),
        (*NANO, 2, 0.25, 0.25, 0.25),
    ]


def test_baseline_competes_and_divides_all_others(capsys: pytest.CaptureFixture[str]) -> None:
    document = run(["--models", *NANO, "--baseline", "test_vit", "--batch-size", "1"], capsys)
    ratios = [(row["model"], row["baseline"]) for row in document["ratios"]]
    assert ratios == [(name, "test_vit") for name in NANO]


def test_image_size_reaches_models_of_fixed_and_of_free_size(
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = ["autoformer_nano", "test_vit", "test_resnet"]
    document = run(["--models", *models, "--img-size", "48", "--batch-size", "1"], capsys)
    assert [row["input"] for row in document["latencies"]] == ["48x48"] * 3


def test_precision_is_that_of_weights_and_images() -> None:
    model, seen = build("autoformer_nano"), []
    model.module.patch_embed.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].dtype)
    )

    make_call(model, "eager", Setting("bf16", 1, 1), "cpu", Path())

    assert {p.dtype for p in model.module.parameters()} == {torch.bfloat16}
    assert seen == [torch.bfloat16]
    assert not model.module.training


def test_inputs_take_turns() -> None:
    model, seen = build("test_vit"), []
    model.module.register_forward_pre_hook(lambda _, inputs: seen.append(float(inputs[0].sum())))

    call = make_call(model, "eager", Setting("fp32", 1, 1), "cpu", Path())
    for _ in range(7):
        call()

    assert len(set(seen)) == 4
    assert seen[:4] == seen[4:]


def test_derived_figures_follow_from_the_latency() -> None:
    row = replace(ROW, batch=8, value=100.0, low=80.0, high=200.0)

    figures = {derived.what: derived for derived in derived_rows(row, macs=5e9, peak=1000.0)}

    assert (figures["throughput"].value, figures["throughput"].low) == (80.0, 40.0)
    assert figures["macs"].value == 5.0
    assert (figures["flops"].value, figures["flops"].unit) == (800.0, "GFLOP/s")
    assert figures["share_of_peak"].value == 80.0
    assert "share_of_peak" not in {derived.what for derived in derived_rows(row, 5e9, None)}


@pytest.mark.parametrize(
    ("spec", "gmacs"),
    # By hand for DeiT-tiny: patches 0.029, 12 blocks of 0.087 in linear layers and 0.015 in
    # attention, head 0.0002.
    [("deit_tiny_patch16_224", 1.254), ("autoformer_tiny", 1.44), ("resnet18", 1.814)],
)
def test_multiply_adds_are_those_of_the_model(spec: str, gmacs: float) -> None:
    assert macs_of(build(spec)) / 1e9 == pytest.approx(gmacs, abs=0.005)


@pytest.mark.slow
def test_onnx_files_compete_with_torch(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--models", "autoformer_nano", "test_vit", "--backend", "eager", "onnxruntime"]
    args += ["--precision", "fp32", "int8", "int8-static", "--batch-size", "2", "--memory"]
    document = run(args, capsys)

    assert [(r["model"], r["backend"], r["precision"]) for r in document["latencies"]] == [
        ("autoformer_nano", "eager", "fp32"),
        ("autoformer_nano", "onnxruntime", "fp32"),
        ("test_vit", "eager", "fp32"),
        ("test_vit", "onnxruntime", "fp32"),
        ("autoformer_nano", "onnxruntime", "int8"),
        ("test_vit", "onnxruntime", "int8"),
        ("autoformer_nano", "onnxruntime", "int8-static"),
        ("test_vit", "onnxruntime", "int8-static"),
    ]
    memory = [row["median"] for row in document["rows"] if row["what"] == "peak_memory"]
    assert len(memory) == 8
    assert min(memory) > 0
    assert "onnxruntime" in document["rows"][0]["versions"]


@pytest.mark.slow
def test_compiled_models_compete_with_eager_ones(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--models", *NANO, "--backend", "eager", "compile", "--batch-size", "1"]
    document = run(args, capsys)
    assert [row["backend"] for row in document["latencies"]] == ["eager", "compile"] * 2
    assert [ratio["backend"] for ratio in document["ratios"]] == ["eager", "compile"]


@pytest.mark.gpu
def test_cuda_is_timed_by_its_events(capsys: pytest.CaptureFixture[str]) -> None:
    document = run(["--models", *NANO, "--device", "cuda", "--precision", "bf16"], capsys)
    assert {row["device"] for row in document["rows"]} == {"cuda"}
    assert {row["machine"] for row in document["rows"]} == {torch.cuda.get_device_name()}


def test_models_are_paired_with_deit_of_their_size_and_their_explicit_form() -> None:
    models = validate(LatencyOptions()).models  # refuses names that timm does not have
    assert pairs_of(models, None) == [
        (f"autoformer_{size}", other)
        for size in ("tiny", "small", "base")
        for other in (f"deit_{size}_patch16_224", f"autoformer_{size}@explicit")
    ]
    assert pairs_of(["autoformer_tiny", "test_vit"], None) == []
    options = LatencyOptions(models=("test_vit, autoformer_nano", "test_vit"), baseline="test_vit")
    assert validate(options).models == ("test_vit", "autoformer_nano")  # once, split at commas


@pytest.mark.parametrize("form", ["explicit", "augmented", "decomposed"])
def test_form_after_the_name_is_the_form_that_runs(form: str) -> None:
    model = build(f"autoformer_nano@{form}")
    assert {block.attn.form for block in model.module.blocks} == {form}


def test_text_table_has_a_line_for_each_competitor_and_ratio() -> None:
    peak = replace(ROW, what="peak", model="matmul", value=99.6, low=99.6, high=99.6, unit="GFLOP")
    ratio = replace(ROW, baseline="other", value=1.5, low=1.25, high=1.75, unit="")

    header, line, other = format_table([ROW, *derived_rows(ROW, 2e9, 1e3), peak]).splitlines()

    assert header.split()[:6] == ["model", "backend", "precision", "input", "batch", "threads"]
    assert "12.35 (11 to 14)" in line or "12.34 (11 to 14)" in line
    assert "648 (571 to 727)" in line
    assert line.split()[-1] == "-"
    assert other.split()[-1] == "99.6"
    assert "1.5 (1.25 to 1.75)" in format_table([ratio])
