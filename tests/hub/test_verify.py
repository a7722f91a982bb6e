"""The command that checks artefacts: every check can fail, and says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from autoformer_zoo.published import SPACES
from autoformer_zoo.weights.checkpoint import save_subnet, save_supernet
from hub import verify as hub_verify
from hub.checksums import SUMS, differences, sha256, write_sums
from hub.folder import main as make_folder
from hub.verify import GOLDEN, IDENTITY, MODEL, VerifyConfig, main, verify
from tests.helpers.made_weights import cut, make_supernet


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder") / "nano"
    assert make_folder(["autoformer_nano", str(folder), "--supernet"]) == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A folder that may be damaged."""
    copy = tmp_path / "nano"
    copy.mkdir()
    for path in made.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def statuses(config: VerifyConfig) -> dict[str, str]:
    return {check.what: check.status for check in verify(config)}


def test_folder_passes_every_check(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(made)]) == 0
    checks = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {check["what"] for check in checks if check["status"] == "ok"} == {
        *("sha256", "golden output"),
        *(f"{what}, {MODEL}" for what in ("strict load", "parameters", "finite values")),
        *(f"{what}, supernet.safetensors" for what in ("strict load", "parameters")),
        "finite values, supernet.safetensors",
    }


def _change_byte(folder: Path) -> None:
    content = bytearray((folder / MODEL).read_bytes())
    content[-1] ^= 1
    (folder / MODEL).write_bytes(content)


def _without_weights(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()
    write_sums(folder)


def _with_tensors(
    folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    tensors = {key: value.clone() for key, value in load_file(folder / name).items()}
    change(tensors)
    save_file(tensors, folder / name, {"format": "pt"})
    write_sums(folder)


DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "changed byte": (_change_byte, "sha256", "model.safetensors has another sha256"),
    "extra file": (lambda folder: (folder / "x").touch(), "sha256", "x is not recorded"),
    "lost file": (lambda folder: (folder / "README.md").unlink(), "sha256", "README.md is missing"),
    "path outside": (
        lambda folder: (folder / SUMS).write_text(f"{'0' * 64}  ../x\n"),
        "sha256",
        "is not a digest and a file's name",
    ),
    "missing tensor": (
        lambda folder: _with_tensors(folder, MODEL, lambda t: t.pop("norm.bias")),
        f"strict load, {MODEL}",
        "missing keys norm.bias",
    ),
    "nan": (
        lambda folder: _with_tensors(folder, MODEL, lambda t: t["norm.bias"].fill_(torch.nan)),
        f"finite values, {MODEL}",
        "1 tensors hold NaN",
    ),
    "other weights": (
        lambda folder: _with_tensors(folder, MODEL, lambda t: t["norm.weight"].mul_(2)),
        "golden output",
        "logits differ by",
    ),
    "other golden": (
        lambda folder: _with_tensors(folder, GOLDEN, lambda t: t.pop("logits")),
        "golden output",
        "holds input; expected input and logits",
    ),
    "no weights": (_without_weights, "strict load", "holds neither"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_folder_fails_the_check_that_is_for_it(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, what, reason = DAMAGE[case]
    damage(folder)
    assert main([str(folder)]) == 1
    checks = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [check["what"] for check in checks if check["status"] == "failed"][:1] == [what]
    assert reason in next(check["detail"] for check in checks if check["what"] == what)


def test_link_in_a_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="link is a link"):
        differences(folder)


@pytest.mark.parametrize("given", ["whole", "start", "wrong"])
def test_file_has_the_digest_that_is_given(given: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_subnet(cut(make_supernet(num_classes=1000)), path)
    digest = {"whole": sha256(path), "start": sha256(path)[:8], "wrong": "0" * 64}[given]
    found = statuses(VerifyConfig(path, sha256=digest))
    assert found["sha256"] == ("failed" if given == "wrong" else "ok")
    assert found["parameters"] == found["finite values"] == "ok"
    with pytest.raises(ValueError, match=r"--sha256 is of a file, and .* a folder"):
        verify(VerifyConfig(tmp_path, sha256=digest))
    with pytest.raises(ValueError, match="--top1 is given without --data-dir"):
        verify(VerifyConfig(path, top1=90.0))


def _data_set(root: Path, names: tuple[str, ...], side: int) -> Path:
    rng = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(2):
            image = Image.fromarray(rng.integers(0, 256, (side, side, 3), "uint8"))
            image.save(root / name / f"{i}.png")
    return root


def test_accuracy_is_compared_with_what_is_given(folder: Path, tmp_path: Path) -> None:
    data = _data_set(tmp_path / "data", ("cat", "dog"), 32)
    found = next(
        check for check in verify(VerifyConfig(folder, data_dir=data)) if check.what == "accuracy"
    )
    assert found.status == "ok"
    assert "% of 4 images" in found.detail
    top1 = float(found.detail.partition(" ")[0])
    for given, expected in ((top1, "ok"), (top1 + 1, "failed")):
        config = VerifyConfig(folder, data_dir=data, top1=given)
        assert statuses(config)["accuracy"] == expected


def test_official_tiny_supernet_is_identified_by_three_accuracies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = tmp_path / "supernet.safetensors", _data_set(tmp_path / "data", ("tench",), 32)
    tiny = make_supernet(SPACES["tiny"].supernet, "packed_prefix", img_size=32, num_classes=1000)
    save_supernet(tiny, path)
    config = VerifyConfig(path, data_dir=data)
    names = ["identity, 192 x 13", "identity, 216 x 14", "identity, 240 x 14"]
    assert [name for name in statuses(config) if "identity" in name] == names
    monkeypatch.setattr(hub_verify, "_top1", lambda model, config: (75.4, 50000))
    assert [statuses(config)[name] for name in names] == ["ok", "ok", "failed"]


def test_identity_subnets_fit_the_tiny_supernet() -> None:
    for subnet, _ in IDENTITY:
        make_supernet(SPACES["tiny"].supernet, img_size=16, num_classes=1).cut(subnet)


def test_other_supernet_is_not_identified(tmp_path: Path) -> None:
    save_supernet(make_supernet(), tmp_path / "supernet.safetensors")
    assert statuses(VerifyConfig(tmp_path / "supernet.safetensors"))["identity"] == "skipped"


def test_missing_artefact_is_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "away")]) == 2
    assert "does not exist; expected a file of weights or a folder" in capsys.readouterr().err
