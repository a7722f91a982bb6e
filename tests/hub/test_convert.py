"""The command that converts files: what it writes, what it prints, what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autoformer_zoo.models.factory import build_subnet
from autoformer_zoo.network.complexity import count_params
from autoformer_zoo.onnx.check import made_inputs
from autoformer_zoo.published import MODELS
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.checkpoint import open_checkpoint
from autoformer_zoo.weights.files import same_bits
from autoformer_zoo.weights.pretrained import load_supernet
from autoformer_zoo.weights.sources import SOURCES
from hub.convert import find_upstream, main
from tests.helpers.hostile import SIZES, state
from tests.helpers.made_weights import SUBNET as MADE
from tests.helpers.made_weights import make_supernet, nni_file, supernet_file
from tests.helpers.upstream import mmrazor_state, nni_state, training_checkpoint

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


def test_mmrazor_supernet_is_converted(tmp_path: Path) -> None:
    torch.save({"state_dict": mmrazor_state(state())}, tmp_path / "mmrazor.pth")
    arguments = [str(tmp_path / "mmrazor.pth"), str(tmp_path / "out"), "--subnet"]
    assert main([*arguments, SUBNET.to_json()]) == 0
    prenas = open_checkpoint(state(), "packed_interleaved").subnet(SUBNET)
    written = open_checkpoint(tmp_path / "out").subnet()
    assert all(torch.equal(written.tensors[k], v) for k, v in prenas.tensors.items())


def test_mmrazors_own_subnet_has_as_many_parameters_as_its_authors_state() -> None:
    text = (Path(__file__).parents[2] / "hub" / "mmrazor-base.json").read_text()
    subnet = SubnetConfig.from_json(text)
    # They count neither relative position tables nor class token and position embedding.
    uncounted = subnet.depth * 4 * 30 * 64 + (1 + 197) * subnet.embed_dim
    assert round((count_params(subnet) - uncounted) / 1e6, 3) == 54.319


@pytest.mark.parametrize(("dtype", "bits"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_rounding_states_what_it_changes(
    dtype: str, bits: torch.dtype, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    path = tmp_path / "net.pth"
    torch.save(state(), path)
    subnet = SUBNET.to_json()
    options = ["--layout", "packed_prefix", "--subnet", subnet, "--dtype", dtype]
    assert main([str(path), str(out), *options]) == 0
    text, last = capsys.readouterr().out.splitlines()
    loss = json.loads(last)["loss"]
    images = torch.from_numpy(made_inputs(8, (32, 32)))
    exact = open_checkpoint(path, "packed_prefix").subnet(SUBNET)
    rounded = open_checkpoint(out).subnet()
    assert {tensor.dtype for tensor in rounded.tensors.values()} == {bits}
    with torch.no_grad():
        difference = (build_subnet(exact)(images) - build_subnet(rounded)(images)).abs().max()
    assert 0 < loss["max_difference"] == pytest.approx(float(difference))
    assert "logits change by at most" in text


def test_values_beyond_fp16_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(state(**{"norm.bias": torch.full((32,), 1e5)}), tmp_path / "net.pth")
    arguments = [str(tmp_path / "net.pth"), str(tmp_path / "out"), "--layout", "packed_prefix"]
    assert main([*arguments, "--dtype", "fp16"]) == 2
    assert "norm.bias has values beyond the range of torch.float16" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two upstream files, whose models are small here."""
    supernet = make_supernet(bias_rule="packed_prefix")
    small = {
        name: replace(spec, subnet=MADE) if spec.space == "tiny" else spec
        for name, spec in MODELS.items()
    }
    monkeypatch.setattr("hub.convert.MODELS", small)
    folder = tmp_path / "downloads"
    folder.mkdir()
    (folder / "official-tiny.pth").write_bytes(supernet_file(supernet))
    nni = SOURCES["nni-tiny"].url.rpartition("/")[2]
    (folder / nni).write_bytes(nni_file(supernet.cut(MADE)))
    return folder


def test_all_that_is_in_a_folder_is_made_once(
    downloads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, made = ["--all", str(downloads), str(tmp_path / "zoo")], []
    for _ in range(2):
        assert main(arguments) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        made.append(sorted(result["made"]))
        assert "not in" in result["missing"]["prenas_tiny_6m.in1k"]
    names = ["autoformer_tiny.ms_in1k", "autoformer_tiny.nni_in1k", "official-tiny"]
    assert made == [names, []]
    assert sorted(path.stem for path in (tmp_path / "zoo").iterdir()) == names

    (tmp_path / "zoo" / "official-tiny.safetensors").unlink()
    kept = tmp_path / "zoo" / "autoformer_tiny.ms_in1k.safetensors"
    kept.write_bytes(kept.read_bytes()[:-100])
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert sorted(result["made"]) == ["autoformer_tiny.ms_in1k", "official-tiny"]
    for more in (["--dtype", "fp16"], []):  # another format is made again
        assert main([*arguments, *more]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["kept"] == []
    subnet = open_checkpoint(kept)
    assert subnet.metadata["license"].startswith("unknown: none is stated")
    assert json.loads(subnet.metadata["crop_pct"]) == 0.875


def test_damaged_download_fails_and_the_others_are_made(
    downloads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (downloads / "official-tiny.pth").write_bytes(b"<html>")
    assert main(["--all", str(downloads), str(tmp_path / "zoo")]) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result["made"]) == ["autoformer_tiny.nni_in1k"]
    assert "is a web page" in result["failed"]["official-tiny"]


def test_file_that_two_origins_call_the_same_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "supernet-tiny.pth").touch()
    with pytest.raises(ValueError, match=r"official-tiny.pth or official/supernet-tiny.pth"):
        find_upstream(tmp_path, SOURCES["official-tiny"])
    (tmp_path / "prenas").mkdir()
    (tmp_path / "supernet-tiny.pth").rename(tmp_path / "prenas" / "supernet-tiny.pth")
    found = find_upstream(tmp_path, SOURCES["prenas-tiny"])
    assert found == tmp_path / "prenas" / "supernet-tiny.pth"


def test_folder_called_as_a_model_is_not_taken_for_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("autoformer_nano").mkdir()
    assert main(["autoformer_nano", "out"]) == 0
    assert "source_sha256" not in open_checkpoint(tmp_path / "out").metadata


def test_name_of_a_source_is_looked_up(downloads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFORMER_ZOO_WEIGHTS", str(downloads))
    (downloads / "official-tiny.pth").rename(downloads / "official-tiny.safetensors")
    assert main(["official-tiny", str(downloads / "out")]) == 0
    assert open_checkpoint(downloads / "out").bias_rule == "packed_prefix"
