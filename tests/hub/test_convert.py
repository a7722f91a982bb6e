"""The command that converts files: what it writes, what it prints, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.checkpoint import open_checkpoint
from autoformer_zoo.weights.files import same_bits
from autoformer_zoo.weights.pretrained import load_supernet
from hub.convert import main
from tests.helpers.hostile import SIZES, state
from tests.helpers.upstream import nni_state, training_checkpoint

SUBNET = SubnetConfig(2, 24, (1, 2), (2.0, 1.5))


@pytest.fixture
def official(tmp_path: Path) -> Path:
    path = tmp_path / "official.pth"
    torch.save(training_checkpoint(state()), path)
    return path


@pytest.mark.parametrize("layout", ["packed_prefix", "packed_interleaved"])
def test_supernet_is_converted(
    official: Path, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = official.with_name("out.safetensors")
    options = ["--layout", layout, "--origin", "a test", "--license", "unknown"]
    assert main([str(official), str(out), *options]) == 0
    printed, errors = capsys.readouterr()
    report = json.loads(printed.splitlines()[-1])
    assert report["kind"] == "supernet"
    assert report["size_bytes"] == out.stat().st_size
    assert errors == ""
    written, expected = load_supernet(out), load_supernet(official, layout)
    assert written.bias_rule == expected.bias_rule
    assert all(same_bits(written.tensors[k], v) for k, v in expected.tensors.items())
    assert written.metadata["origin"] == "a test"
    assert written.metadata["license"] == "unknown"
    assert len(written.metadata["source_sha256"]) == 64


@pytest.mark.parametrize("as_file", [False, True], ids=["text", "file"])
def test_subnet_is_cut_out(official: Path, as_file: bool) -> None:
    out, config = official.with_name("out.safetensors"), official.with_name("subnet.json")
    config.write_text(SUBNET.to_json())
    given = str(config) if as_file else SUBNET.to_json()
    assert main([str(official), str(out), "--layout", "packed_prefix", "--subnet", given]) == 0
    expected = open_checkpoint(official, "packed_prefix").subnet(SUBNET).tensors
    written = open_checkpoint(out).subnet()
    assert written.subnet == SUBNET
    assert all(same_bits(written.tensors[k], v) for k, v in expected.items())


def test_nni_subnet_is_converted(tmp_path: Path) -> None:
    torch.save(nni_state(SIZES), tmp_path / "nni.pth")
    assert main([str(tmp_path / "nni.pth"), str(tmp_path / "out")]) == 0
    assert open_checkpoint(tmp_path / "out").subnet().subnet == SIZES


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["away.pth", "out"], "away.pth: No such file"),
        (["subnet.json", "out"], "subnet.json: is neither safetensors nor a torch checkpoint"),
        (["official.pth", "official.pth"], "is an input as well; give the result another name"),
        (["official.pth", "out", "--subnet", "away.json"], "No such file or directory: 'away"),
        (["official.pth", "out", "--subnet", "official.pth"], "official.pth: 'utf-8' codec"),
        (
            ["official.pth", "out", "--subnet", SubnetConfig(2, 33, (1, 1), (1.0, 1.0)).to_json()],
            "embed_dim 33 needs that width in every layer, the supernet has 32",
        ),
    ],
)
def test_bad_arguments_are_one_line_and_code_2(
    arguments: list[str],
    reason: str,
    official: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(official.parent)
    Path("subnet.json").write_text(SUBNET.to_json())
    assert main(arguments) == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert reason in errors
    assert errors.count("\n") == 1
    assert {path.name for path in official.parent.iterdir()} == {"official.pth", "subnet.json"}
