"""cli.py: list, info and extract, wrong arguments of every verb, and the process itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autoformer_zoo import __version__
from autoformer_zoo.cli import main as cli
from autoformer_zoo.cli import models
from autoformer_zoo.factory import extract_subnet
from autoformer_zoo.network.complexity import count_macs, count_params
from autoformer_zoo.published import SUBNETS
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.checkpoint import open_checkpoint
from autoformer_zoo.weights.pretrained import load_supernet
from tests.helpers.made_cli import SUBNET, Run, assert_refused, runner, write_config, write_supernet


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.fixture
def supernet(tmp_path: Path) -> Path:
    return write_supernet(tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def test_list_shows_every_model_with_published_and_measured_apart(run: Run) -> None:
    code, out, err = run("list")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert "published %  measured %" in lines[0]
    row = next(line.split() for line in lines if line.startswith("autoformer_tiny"))
    macs = f"{count_macs(SUBNETS['autoformer_tiny']) / 1e9:.2f}"
    assert row[:7] == ["autoformer_tiny", "5.9", macs, "224x224", "1000", "75.3", "-"]
    assert {line.split()[0] for line in lines[1:]} >= set(SUBNETS)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("prenas_base", ["prenas_base_42m", "prenas_base_54m", "prenas_base_66m"]),
        ("*_23m", ["prenas_small_23m"]),
        ("prenas_tiny_?m", [f"prenas_tiny_{n}m" for n in (6, 7, 8, 9)]),
    ],
)
def test_list_filters(run: Run, pattern: str, expected: list[str]) -> None:
    code, out, _ = run("list", pattern, "--json")
    assert code == 0
    assert [model["name"] for model in json.loads(out)] == expected


def test_list_without_a_match_is_refused(run: Run) -> None:
    assert_refused(run("list", "resnet"), "no model matches 'resnet'; `autoformer-zoo list` has")


def test_info_tells_architecture_cost_and_origin(run: Run) -> None:
    code, out, err = run("info", "autoformer_tiny")
    subnet = SUBNETS["autoformer_tiny"]
    assert (code, err) == (0, "")
    assert f"heads           {' '.join(map(str, subnet.num_heads))}" in out
    assert "parameters      5,867,944" in out
    assert f"MACs            {count_macs(subnet):,}" in out
    assert "official count  1,344,034,362" in out
    assert "published  75.3 top-1, 92.7 top-5 on ImageNet-1k" in out
    assert "measured   -" in out
    assert "license    unknown: none is stated for the weights" in out
    assert "supernet-tiny.pth" in out


def test_info_json_has_the_same(run: Run) -> None:
    code, out, _ = run("info", "prenas_tiny_6m", "--json")
    info = json.loads(out)
    assert code == 0
    assert (
        SubnetConfig.from_dict(
            {key: info[key] for key in ("depth", "embed_dim", "num_heads", "mlp_ratio")}
        )
        == SUBNETS["prenas_tiny_6m"]
    )
    assert info["params"] == count_params(SUBNETS["prenas_tiny_6m"])
    [weights] = info["weights"]
    assert weights["name"] == "prenas_tiny_6m.in1k"
    assert weights["license"] == "apache-2.0"
    assert (weights["published"]["top1_percent"], weights["measured"]) == (77.1, None)


def test_info_of_a_tag_shows_these_weights_only(run: Run) -> None:
    _, out, _ = run("info", "autoformer_base.nni_in1k", "--json")
    [weights] = json.loads(out)["weights"]
    assert weights["name"] == "autoformer_base.nni_in1k"
    assert weights["published"] is None


def test_info_of_the_generic_model_names_no_weights(run: Run) -> None:
    code, out, _ = run("info", "autoformer_subnet")
    assert code == 0
    assert "weights: none of its own" in out


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "autoformer_smal",
            "no model is called 'autoformer_smal': the nearest are autoformer_smal",
        ),
        ("zzz", "none is close; autoformer_zoo.list_models() or `autoformer-zoo list` shows"),
        ("autoformer_tiny.v9", "no tag 'v9'; expected one of ms_in1k, nni_in1k"),
    ],
)
def test_info_of_an_unknown_name_is_refused(run: Run, name: str, text: str) -> None:
    assert_refused(run("info", name), text)


def test_extract_writes_the_subnet(run: Run, supernet: Path, config: Path, tmp_path: Path) -> None:
    out_file = tmp_path / "subnet.safetensors"
    code, out, err = run("extract", supernet, config, out_file, "--json")
    written = json.loads(out)
    assert (code, err) == (0, "")
    assert written["path"] == str(out_file)
    assert written["size_bytes"] == out_file.stat().st_size
    assert written["params"] == count_params(SUBNET, 32, 4, 10)
    assert SubnetConfig.from_dict(written["subnet"]) == SUBNET

    whole = load_supernet(supernet)
    expected = extract_subnet(whole, SUBNET).state_dict()
    tensors = open_checkpoint(out_file).subnet().tensors
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_extract_at_another_size(run: Run, supernet: Path, config: Path, tmp_path: Path) -> None:
    out_file = tmp_path / "subnet.safetensors"
    code, out, _ = run("extract", supernet, config, out_file, "--img-size", 48)
    assert code == 0
    assert out.startswith(f"{out_file}: {count_params(SUBNET, 48, 4, 10):,} parameters, ")
    assert open_checkpoint(out_file).subnet().img_size == (48, 48)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"num_heads": (2, 4)}, "blocks.1.attn needs 4 heads, the supernet has 3"),
        ({"embed_dim": 256}, "embed_dim 256 needs that width"),
    ],
)
def test_extract_of_what_does_not_fit_leaves_nothing(
    run: Run, supernet: Path, config: Path, tmp_path: Path, changed: Any, text: str
) -> None:
    config.write_text(replace(SUBNET, **changed).to_json())
    before = sorted(tmp_path.iterdir())
    assert_refused(run("extract", supernet, config, tmp_path / "out.safetensors"), text)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "subnet.json: a subnet config is not JSON"),
        ("[1]", "subnet.json: expected an object with the keys of SubnetConfig, got a list"),
        ('{"depth": 2}', "missing keys ['embed_dim', 'num_heads', 'mlp_ratio']"),
    ],
)
def test_extract_with_a_wrong_config_is_refused(
    run: Run, supernet: Path, config: Path, tmp_path: Path, content: str, text: str
) -> None:
    config.write_text(content)
    assert_refused(run("extract", supernet, config, tmp_path / "out.safetensors"), text)


@pytest.mark.parametrize(
    ("out", "text"),
    [
        ("out.pth", "expected a file name that ends in .safetensors"),
        ("no/such/out.safetensors", "does not exist; make it first"),
        ("supernet.safetensors", "is an input as well; give the result another name"),
        ("folder.safetensors", "is a folder; expected the name of a file"),
    ],
)
def test_extract_to_a_wrong_place_is_refused(
    run: Run, supernet: Path, config: Path, tmp_path: Path, out: str, text: str
) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    before = supernet.read_bytes()
    assert_refused(run("extract", supernet, config, tmp_path / out), text)
    assert supernet.read_bytes() == before


def test_extract_without_its_inputs_is_refused(run: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert_refused(run("extract", tmp_path / "no.pth", config, out), "no.pth")
    assert_refused(run("extract", tmp_path / "no.pth", tmp_path / "no.json", out), "no.json")
    assert_refused(run("extract", config, config, out), "subnet.json")
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("predict",), "no image was given"),
        (("predict", "a.png", "--layout", "packed_prefix"), "give --checkpoint with it"),
        (("predict", "a.png", "--layout", "zigzag"), "invalid choice 'zigzag'"),
        (("predict", "a.png", "--top-k", "many"), "Error parsing --top-k"),
        (("predict", "a.png", "--model", "resnet50"), "no model is called 'resnet50'"),
        (("predict", "a.png", "--checkpoint", "no.pth"), "no.pth"),
        (("predict", "--nonsense"), "--nonsense"),
        (("list", "--jsn"), "Unrecognized options: --jsn (perhaps --json); see autoformer-zoo"),
        (("info",), "NAME"),
        (("lisst",), "lisst"),
        (("predict", "a.png", "--backend", "onnxruntime"), "give --checkpoint FILE.onnx, which"),
        (
            ("predict", "a.png", "--backend", "onnxruntime", "--model", "autoformer_nano"),
            "--model and --layout are for torch",
        ),
        (("predict", "a.png", "--checkpoint", "net.onnx"), "give --backend onnxruntime"),
        (("export", "autoformer_nan", "net.onnx"), "no model is called 'autoformer_nan'"),
        (("export", "autoformer_nano", "net.pb"), "expected one that ends in .onnx"),
        (("export", "autoformer_nano", "net.onnx", "--precision", "int4"), "invalid choice"),
        (("export", "autoformer_nano", "net.onnx", "--precision", "int8-static"), "calibration"),
        (("export", "autoformer_nano", "net.onnx", "--layout", "packed_prefix"), "describe a file"),
        (("export", "no.safetensors", "net.onnx"), "no.safetensors"),
        ((), "list, info, predict, extract, export"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(run: Run, arguments: Any, text: str) -> None:
    assert_refused(run(*arguments), text)


def test_help_shows_defaults(run: Run) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert all(
        verb in out for verb in ("list", "info", "predict", "extract", "export", "--version")
    )
    code, out, _ = run("predict", "--help")
    assert code == 0
    assert all(part in out for part in ("(default: 5)", "(default: 32)", "autoformer_nano"))


def test_version_is_printed(run: Run) -> None:
    assert run("--version") == (0, f"autoformer-zoo {__version__}\n", "")


def test_ctrl_c_is_quiet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "describe", interrupt)
    assert run("list") == (130, "", "")


def test_reader_that_leaves_is_no_error(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert cli.main(["list"]) == 141
        stdout.write("what is still buffered goes nowhere")
    assert capsys.readouterr().err == ""


@pytest.mark.slow  # a process imports timm anew
def test_module_runs_as_a_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autoformer_zoo.cli.main", "list", "prenas_tiny", "--json"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)) == 6
