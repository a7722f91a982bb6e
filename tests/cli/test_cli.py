"""list, info and extract, wrong arguments of every verb, and the process itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autoformer_zoo import __version__
from autoformer_zoo.cli import models
from autoformer_zoo.cli.inputs import load_model
from autoformer_zoo.models.autoformer import default_cfgs
from autoformer_zoo.models.factory import create_model, extract_subnet, list_models
from autoformer_zoo.network.complexity import count_macs, count_params
from autoformer_zoo.published import SUBNETS
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.specialization.slices import load_slices
from autoformer_zoo.weights.checkpoint import open_checkpoint
from autoformer_zoo.weights.pretrained import load_supernet
from tests.helpers.made_cli import SUBNET, Run, assert_refused

ROOT = Path(__file__).parents[2]


def test_list_shows_every_model_with_published_and_measured_apart(run: Run) -> None:
    code, out, err = run("list")
    head, *rows = out.splitlines()
    assert (code, err) == (0, "")
    assert "published %  measured %" in head
    [row] = [line.split() for line in rows if line.startswith("autoformer_tiny ")]
    macs = f"{count_macs(SUBNETS['autoformer_tiny']) / 1e9:.2f}"
    assert row[:7] == ["autoformer_tiny", "5.9", macs, "224x224", "1000", "75.3", "-"]
    assert {line.split()[0] for line in rows} == {*list_models(), *load_slices()}


@pytest.mark.parametrize("name", list_models())
def test_what_is_known_without_timm_is_what_timm_registers(name: str) -> None:
    info, cfgs = models.describe(name), default_cfgs[name]
    assert (3, *info["img_size"]) == cfgs.default.input_size
    assert info["num_classes"] == cfgs.default.num_classes
    assert [known["name"] for known in info["weights"]] == [f"{name}.{t}" for t in cfgs.tags if t]
    for known in info["weights"]:
        assert known["license"] == cfgs.cfgs[known["name"].partition(".")[2]].license


def test_file_of_a_slice_is_taken_under_its_name(tmp_path: Path) -> None:
    name = next(iter(load_slices()))
    model = create_model(name)
    torch.save(model.state_dict(), tmp_path / "slice.pt")
    loaded = load_model(tmp_path / "slice.pt", name, None).state_dict()
    torch.testing.assert_close(dict(loaded), dict(model.state_dict()), rtol=0, atol=0)


def test_list_filters_by_part_and_by_wildcard(run: Run) -> None:
    for pattern, expected in {
        "prenas_base": ["prenas_base_42m", "prenas_base_54m", "prenas_base_66m"],
        "prenas_tiny_?m": [f"prenas_tiny_{n}m" for n in (6, 7, 8, 9)],
    }.items():
        code, out, _ = run("list", pattern, "--json")
        assert code == 0
        assert [model["name"] for model in json.loads(out)] == expected


@pytest.mark.parametrize("is_terminal", [True, False])
def test_list_follows_the_width_of_a_terminal(
    run: Run, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    longest = max(map(len, run("list")[1].splitlines()))
    assert longest == 40 if is_terminal else longest > 80


def test_info_shows_architecture_cost_and_origin(run: Run) -> None:
    code, out, err = run("info", "autoformer_tiny")
    subnet = SUBNETS["autoformer_tiny"]
    assert (code, err) == (0, "")
    for line in (
        f"heads           {' '.join(map(str, subnet.num_heads))}",
        "parameters      5,867,944",
        f"MACs            {count_macs(subnet):,}",
        "official count  1,344,034,362",
        "published  75.3 top-1, 92.7 top-5 on ImageNet-1k",
        "measured   -",
        "license    unknown: none is stated for the weights",
        "supernet-tiny.pth",
    ):
        assert line in out
    assert "weights: none of its own" in run("info", "autoformer_subnet")[1]


def test_info_json_has_the_same(run: Run) -> None:
    info = json.loads(run("info", "prenas_tiny_6m", "--json")[1])
    keys = ("depth", "embed_dim", "num_heads", "mlp_ratio")
    assert SubnetConfig.from_dict({key: info[key] for key in keys}) == SUBNETS["prenas_tiny_6m"]
    [weights] = info["weights"]
    assert (weights["name"], weights["license"]) == ("prenas_tiny_6m.in1k", "apache-2.0")
    assert (weights["published"]["top1_percent"], weights["measured"]) == (77.1, None)
    [one] = json.loads(run("info", "autoformer_base.nni_in1k", "--json")[1])["weights"]
    assert (one["name"], one["published"]) == ("autoformer_base.nni_in1k", None)  # of this tag


def test_extract_writes_the_subnet(run: Run, supernet: Path, config: Path, tmp_path: Path) -> None:
    out_file = tmp_path / "subnet.safetensors"
    code, out, err = run("extract", supernet, config, out_file, "--json")
    written = json.loads(out)
    assert (code, err) == (0, "")
    assert written["path"] == str(out_file)
    assert written["size_bytes"] == out_file.stat().st_size
    assert written["params"] == count_params(SUBNET, 32, 4, 10)
    assert SubnetConfig.from_dict(written["subnet"]) == SUBNET

    expected = extract_subnet(load_supernet(supernet), SUBNET).state_dict()
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
    ("files", "text"),
    [
        (("supernet", "text", "out"), "text.safetensors: a subnet config is not JSON"),
        (("supernet", "large", "out"), "blocks.1.attn needs 4 heads, the supernet"),
        (("supernet", "subnet", "supernet"), "is an input as well"),
        (("supernet", "subnet", "out.pth"), "ends in .safetensors"),
        (("none", "subnet", "out"), "none.safetensors"),
        (("none", "no", "out"), "no.safetensors"),
        (("subnet", "subnet", "out"), "subnet.safetensors"),
    ],
)
def test_extract_of_what_does_not_fit_changes_nothing(
    run: Run, supernet: Path, config: Path, tmp_path: Path, files: tuple[str, ...], text: str
) -> None:
    (tmp_path / "text.safetensors").write_text("{")
    large = replace(SUBNET, num_heads=(2, 4)).to_json()
    (tmp_path / "large.safetensors").write_text(large)
    config.rename(tmp_path / "subnet.safetensors")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    paths = [tmp_path / (name if "." in name else f"{name}.safetensors") for name in files]
    assert_refused(run("extract", *paths), text)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("", "list, info, predict, attention, extract, export, specialize, profile"),
        (
            "lisst",
            "lisst (available subcommands: list, info, predict, attention, extract, export, sp",
        ),
        ("list resnet", "no model matches 'resnet'; `autoformer-zoo list` shows all"),
        ("list --jsn", "Unrecognized options: --jsn (perhaps --json); see autoformer-zoo"),
        ("info", "Missing from autoformer-zoo info: NAME; see autoformer-zoo info --help"),
        ("info autoformer_smal", "'autoformer_smal': the nearest are autoformer_small"),
        ("info zzz", "no model is called 'zzz': none is close; "),
        ("info autoformer_tiny.v9", "no tag 'v9'; expected one of ms_in1k, nni_in1k"),
        ("predict", "no image was given"),
        ("predict no.png", "no.png does not exist"),
        ("predict https://example.org/cat.jpg", "a URL has to be downloaded first"),
        ("predict README.md --layout packed_prefix", "give --checkpoint with it"),
        ("predict README.md --top-k 0", "--top-k is 0; expected a positive whole number"),
        ("predict README.md --threads 0", "--threads is 0; expected a positive whole number"),
        ("predict README.md --checkpoint net.onnx", "give --backend onnxruntime"),
        ("predict README.md --backend onnxruntime", "give --checkpoint FILE.onnx, which"),
        ("predict README.md --backend onnxruntime --model x", "--model and --layout are for torch"),
        (
            "export x",
            "Missing from autoformer-zoo export: OUT.onnx|DIR; see autoformer-zoo export -",
        ),
        ("export autoformer_nano net.pb", "net.pb: expected a file name that ends in .onnx"),
        ("export autoformer_nano n.onnx --precision int8-static", "--calibration FOLDER need each"),
        ("export autoformer_nano n.onnx --calibration docs", "--calibration FOLDER need each"),
        ("export autoformer_nano n.onnx --layout packed_prefix", "describe a file"),
        ("specialize --space smal", "space 'smal' is unknown; expected one of tiny, small, base"),
        ("specialize --space small --max-params 2e6", "the space reaches 13,057,320 to 34,790,4"),
        ("specialize --space small --min-params -1", "min_params is -1; expected a number of 0"),
        ("specialize --space small --top 0", "--top is 0; expected 1 or more"),
        ("specialize --space small --out best.txt", "expected a file name that ends in .json"),
        ("specialize --space small --export a.pb", "expected a file name that ends in .onnx"),
        ("specialize --space small --pareto a.pdf", "a file name that ends in .png or .svg"),
        (
            "specialize --space small --pareto a.png --max-params 2e7 --out a.json --top 2",
            "--pareto draws the whole front; leave --max-params, --out, --top out",
        ),
        ("specialize --space small --precision int8", "eager is profiled in fp32 and bf16"),
        ("specialize --space small --profile README.md", "README.md: not a latency profile"),
        ("attention README.md a.png --size 4097", "--size is 4097; expected at most 4096 pixels"),
        ("profile --space nano --seconds inf", "seconds is inf; expected a positive number that"),
        ("profile --space nano --seconds 0", "seconds is 0.0; expected a positive number"),
        ("profile --space nano --batch-size 0", "batch_size is 0; expected a positive whole nu"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: str, text: str
) -> None:
    monkeypatch.chdir(ROOT)
    assert_refused(run(*arguments.split()), text)


def test_help_and_version_are_printed(run: Run) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    for part in ("list", "info", "predict", "extract", "export", "--version"):
        assert part in out
    assert "[FILTER]" in run("list", "--help")[1]
    out = run("predict", "--help")[1]
    assert all(part in out for part in ("(default: 5)", "(default: 32)", "autoformer_nano"))
    assert "None" not in out
    for arguments in (("--version",), ("--version", "list")):
        assert run(*arguments) == (0, f"autoformer-zoo {__version__}\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_printed(run: Run, shell: str) -> None:
    code, out, err = run("--tyro-print-completion", shell)
    assert (code, err) == (0, "")
    assert all(word in out for word in ("predict", "--skip-unreadable", "int8-static"))


def process(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **pipes, **options)


WITHOUT_TORCH = """
import sys
sys.argv[0] = '/usr/bin/autoformer-zoo'
try:
    from autoformer_zoo.cli.main import main
    main()
finally:
    print(sorted({'torch', 'timm', 'numpy', 'onnx'} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [("--help",), ("list", "--json"), ("lsit",)])
def test_command_answers_without_torch_and_timm(arguments: tuple[str, ...]) -> None:
    out, err = process("-c", WITHOUT_TORCH, *arguments).communicate()
    assert err.endswith("[]\n")
    assert out or "lsit" in err


def test_module_runs_like_the_command() -> None:
    child = process("-m", "autoformer_zoo", "list", "prenas_tiny", "--json")
    out, err = child.communicate()
    assert (child.returncode, err) == (0, "")
    assert len(json.loads(out)) == 6


@pytest.mark.parametrize(("imported", "code"), [("tyro", -signal.SIGINT), ("torch", 130)])
def test_ctrl_c_while_starting_is_quiet(tmp_path: Path, imported: str, code: int) -> None:
    (tmp_path / f"{imported}.py").write_text(
        "print(end='.', flush=True)\nimport time\ntime.sleep(60)"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    arguments = ("-m", "autoformer_zoo", "predict", "docs/cat.jpg")
    child = process(*arguments, env={**os.environ, "PYTHONPATH": path})
    assert child.stdout.read(1) == "."  # the import has begun
    child.send_signal(signal.SIGINT)
    assert child.communicate() == ("", "")
    assert child.returncode == code
