"""The app's own functions, without gradio, and the folder that is pushed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import autoformer_zoo as az
from autoformer_zoo.weights.checkpoint import save_supernet
from autoformer_zoo.weights.pretrained import open_weights
from hub.space.__main__ import FILES, main
from hub.space.app import Cutter, choices_of
from tests.helpers.made_weights import make_supernet

ROOT = Path(__file__).parents[2]
CAT = str(ROOT / "docs" / "cat.jpg")


def test_answer_is_that_of_the_subnet() -> None:
    found = Cutter("autoformer_nano").answer(CAT, 5, 160, 2, 3.5)
    subnet = az.SubnetConfig.uniform(5, 160, 2, 3.5)
    model = az.create_model("autoformer_nano", pretrained=True, subnet=subnet)
    expected = az.predict(model, CAT, top_k=5)[0]
    assert list(found.classes) == [each.label for each in expected]
    assert found.classes[expected[0].label] == pytest.approx(expected[0].probability, abs=1e-5)
    assert found.params == sum(parameter.numel() for parameter in model.parameters())
    assert f"{found.params:,}" in found.facts
    assert found.latency_ms > 0
    assert found.overlay.size == (448, 448)


def test_broken_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as an image"):
        Cutter("autoformer_nano").answer(str(tmp_path / "broken.png"), 5, 160, 2, 3.5)


def test_unknown_supernet_offers_all_that_fits(tmp_path: Path) -> None:
    supernet = make_supernet()
    save_supernet(supernet, tmp_path / "other.safetensors")
    space = choices_of(open_weights(tmp_path / "other.safetensors"))
    assert max(space.embed_dim) == supernet.sizes.embed_dim
    assert max(space.depth) == supernet.sizes.depth
    assert max(space.num_heads) == min(supernet.sizes.num_heads)
    assert max(space.mlp_ratio) <= min(supernet.sizes.mlp_ratio)


@pytest.mark.slow  # a fresh process imports torch and timm
def test_folder_runs_without_the_clone(tmp_path: Path) -> None:
    assert main([str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*FILES, "autoformer_zoo"}
    code = f"import app; print(app.Cutter('autoformer_nano').answer({CAT!r}, 7, 192, 3, 4).classes)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "out",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "cat" in run.stdout, run.stderr


def test_requirements_are_those_of_the_package() -> None:
    known = re.findall(r'"([^"]+)"', (ROOT / "pyproject.toml").read_text())
    folder = ROOT / "hub" / "space"
    assert set((folder / "requirements.txt").read_text().split()) <= set(known)
    assert re.search(r"^app_file: app\.py$", (folder / "README.md").read_text(), re.MULTILINE)


def test_existing_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "cannot be made; give the name of a new folder" in capsys.readouterr().err
