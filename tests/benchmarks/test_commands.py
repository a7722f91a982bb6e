"""What every benchmark command does: tables, JSON, saved rows, one line for wrong input."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from autoformer_zoo.cli.command import parse_arguments
from autoformer_zoo.specialization.latency import measure
from benchmarks.accuracy import AccuracyOptions
from benchmarks.attention import AttentionOptions
from benchmarks.budgets import checked, profiles
from benchmarks.budgets.gains import GainOptions
from benchmarks.budgets.slices import SliceOptions
from benchmarks.footprint.operators import OperatorOptions
from benchmarks.footprint.startup import StartupOptions
from benchmarks.latency import QUICK, LatencyOptions
from benchmarks.measure.options import BenchmarkOptions, apply_quick
from benchmarks.measure.results import RESULTS, read_rows, to_columns
from benchmarks.measure.timing import PRODUCT_SIDE
from benchmarks.search.__main__ import SearchOptions
from benchmarks.training.candidates import CandidateOptions
from benchmarks.training.train_step import StepOptions

SMALL = {  # a run of a second: its flags and the quantities of its rows
    "attention": (
        "--grid 3 --heads 1 --form plain augmented --threads 1 --rounds 3 --seconds 0.1",
        {"error", "peak_memory", "latency"},
    ),
    "latency": (
        "--models autoformer_nano,autoformer_nano@explicit test_vit --batch-size 1 --rounds 3 "
        "--warmup 0 --settle 0 --threads 1",
        {"latency", "throughput", "macs", "flops", "share_of_peak", "peak"},
    ),
    "budgets.profiles": (
        "--space nano --design 4 --unseen 3 --threads 1 --seconds 0.1",
        set(profiles.FIGURES),
    ),
    "training.train_step": (
        "--batch-size 2 --rounds 3 --form decomposed --no-memory",
        {"supernet step", "throughput"},
    ),
}


def main_of(command: str) -> Callable[[list[str]], int]:
    main: Callable[[list[str]], int] = import_module(f"benchmarks.{command}").main
    return main


@pytest.fixture(autouse=True)
def _small_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRODUCT_SIDE, "cpu", 64)  # the machine's peak takes seconds to measure
    monkeypatch.setattr(measure, "MAX_NOISE_PERCENT", float("inf"))


@pytest.mark.parametrize("command", SMALL)
def test_command_prints_a_table_and_json_and_saves_the_same_rows(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, quantities = SMALL[command]
    args = [*flags.split(), "--save", "--results", str(tmp_path), "--file", "mine"]
    assert main_of(command)(args) == 0

    *table, last = capsys.readouterr().out.splitlines()
    document = json.loads(last)
    assert table[0].startswith("model ")
    assert document["what"] == command
    figures, ratios = (read_rows(tmp_path / name) for name in ("mine.csv", "mine_ratios.csv"))
    for key, saved in (("rows", figures), ("ratios", ratios)):
        assert [list(row) for row in document[key]] == [list(to_columns(row)) for row in saved]
        assert [row["model"] for row in document[key]] == [row.model for row in saved]
    assert {row.what for row in figures} == quantities
    assert {row.repeats for row in figures if row.unit == "ms"} <= {3}
    for row in (*figures, *ratios):
        assert row.low <= row.value <= row.high
        assert row.commit


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("latency --models autoformer_tny", "no model 'autoformer_tny'; did you mean autoformer_t"),
        ("latency --models test_vit@explicit", "test_vit@explicit: only models of this package"),
        ("latency --models autoformer_nano@fused", "the form of autoformer_nano@fused is 'fused'"),
        ("latency --models", "models is empty; expected at least one name"),
        ("latency --rounds 0", "rounds is 0; expected 1 or more"),
        ("latency --seconds -1", "seconds is -1.0; expected a positive number"),
        ("latency --threads", "threads is empty; expected at least one"),
        ("latency --precision int8", "no backend of eager runs in int8"),
        ("latency --backend cudagraphs", "cudagraphs needs --device cuda"),
        ("latency --device cuda", "device is cuda, but torch finds no CUDA here; use --device cpu"),
        ("attention --grid 0", "grid is (0,); expected positive numbers"),
        ("footprint.operators --rounds 0", "rounds is 0; expected positive numbers"),
        (
            "footprint.startup --supernet huge",
            "no space 'huge'; expected some of tiny, small, base, nano",
        ),
        ("footprint.startup --rounds 0", "rounds is 0; expected positive numbers"),
        ("footprint.startup --state", "models, supernet or state leave nothing to measure"),
        ("training.train_step --space huge", "space 'huge' is unknown; expected one of tiny"),
        ("training.candidates --images 0", "images is 0; expected positive numbers"),
        ("accuracy", "no model was named; expected --models, --published or --subnets"),
        ("accuracy --models test_vit=gone.pth", "gone.pth does not exist; expected the weights of"),
        ("accuracy --models gone.pth", "gone.pth does not exist; expected the weights of"),
        ("accuracy --models autoformer_nano@explicit", "not depend on a form; leave @explicit out"),
        ("accuracy --subnets x.json", "--supernet and --subnets go together"),
        ("accuracy --models test_vit --root gone", "gone does not exist; expected the folder"),
        ("accuracy --models autoformer_nano --data torch/qqq", "cannot open torch/qqq"),
        ("budgets.checked --root gone", "gone does not exist; expected the folder"),
        ("budgets.gains --space tiny", "space tiny holds no published subnet; expected small or b"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(
    line: str,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    command, *args = line.split()
    assert main_of(command)(args) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"python -m benchmarks.{command}: ")
    assert err.count("\n") == 1
    assert text in err


OPTIONS: dict[str, type[BenchmarkOptions]] = {
    "accuracy": AccuracyOptions,
    "attention": AttentionOptions,
    "training.candidates": CandidateOptions,
    "budgets.checked": checked.CheckedOptions,
    "budgets.profiles": profiles.ProfileOptions,
    "latency": LatencyOptions,
    "footprint.operators": OperatorOptions,
    "footprint.startup": StartupOptions,
    "search": SearchOptions,
    "training.train_step": StepOptions,
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_is_explained_in_help(options: type[BenchmarkOptions]) -> None:
    # tyro takes the comment of a field's first line: behind a default of several lines it is lost.
    source = inspect.getsource(BenchmarkOptions) + inspect.getsource(options)
    for field in fields(options):
        assert re.search(rf"(?m)^    {field.name}: .* = .*  # \S", source), field.name


def test_quick_changes_only_options_that_have_their_default() -> None:
    quick = apply_quick(LatencyOptions(batch_size=(3,)), QUICK)
    assert quick.batch_size == (3,)
    assert quick.models == ("autoformer_tiny", "deit_tiny_patch16_224", "autoformer_tiny@explicit")
    assert quick.rounds < LatencyOptions().rounds


def test_commands_that_make_the_tables_can_be_parsed() -> None:
    text = (RESULTS.parent / "report" / "all.sh").read_text().replace("\\\n", " ")
    lines = re.findall(r"(?m)^ *python -m benchmarks\.([\w.]+) (.*)$", text)
    commands = [(name, flags) for name, flags in lines if name != "report"]
    others = {"budgets.gains": GainOptions, "budgets.slices": SliceOptions}  # save no rows
    assert {name for name, _ in commands} == {*OPTIONS, *others}
    for name, flags in commands:
        words = flags.replace("$models", "test_vit").replace('"$batch"', "8").split()
        parsed: Any = parse_arguments(name, {**OPTIONS, **others}[name], words)
        assert name in others or parsed.save


@pytest.mark.parametrize(
    ("engine", "budgets"),
    [
        (("eager", "fp32"), 2),
        pytest.param(("onnxruntime", "int8"), 1, marks=pytest.mark.slow),  # exports two networks
    ],
)
def test_budgets_are_checked_by_what_was_found(
    engine: Any,
    budgets: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(checked, "SETTINGS", [engine])
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / name / "0.png")
    where = f"--root {tmp_path} --data= --budgets {budgets} --threads 1 --seconds 0.1"
    assert checked.main(where.split()) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {(r["what"], r["input"]): r["median"] for r in document["rows"]}
    assert len(document["rows"]) == len(rows) == 6 * budgets
    assert {row["backend"] for row in document["rows"]} == {engine[0]}
    places = [f"budget {i + 1} of {budgets}" for i in range(budgets)]
    allowed = [rows["budget", place] for place in places]
    assert allowed == sorted(set(allowed))
    for place in places:
        assert rows["predicted latency", place] <= rows["budget", place]
        assert rows["top-1", place] in (0, 50, 100)
