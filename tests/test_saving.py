"""Models saved as folders that timm, transformers and the Hub open."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants, file_download
from timm.data import resolve_model_data_config
from timm.models import save_for_hf

import autoformer_zoo as az
from autoformer_zoo.classify.predict import class_names
from autoformer_zoo.models.autoformer import build_static
from autoformer_zoo.weights.checkpoint import CheckpointError
from tests.helpers.loopback import Loopback, hub_replies, serve
from tests.helpers.made_weights import SIZES, SUBNET, assert_has, cut, make_supernet

WEIGHTS = cut(make_supernet(seed=1))
RATES = ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")


def _changed() -> Any:
    model = timm.create_model("autoformer_subnet", subnet=SUBNET, in_chans=4, **SIZES)
    model.set_input_size((96, 64), patch_size=8)
    model.reset_classifier(5, "token")
    return model


def _pruned() -> Any:
    model = timm.create_model("autoformer_subnet", subnet=SUBNET, **SIZES)
    model.prune_intermediate_layers([0], prune_head=False)
    return model


MADE = {
    "config object": lambda: timm.create_model("autoformer_subnet", subnet=SUBNET, **SIZES),
    "dict": lambda: az.create_model("autoformer_small", subnet=SUBNET.to_dict(), **SIZES),
    "nano": lambda: timm.create_model("autoformer_nano", subnet=az.SPACES["nano"].smallest),
    "resized, new head": _changed,
    "pruned": _pruned,
    "extracted": lambda: build_static(WEIGHTS),
    "extracted larger": lambda: build_static(WEIGHTS, img_size=96),
    "regularised": lambda: timm.create_model(
        "autoformer_subnet", subnet=SUBNET, **SIZES, **dict.fromkeys(RATES, 0.2)
    ),
}


@pytest.mark.parametrize("case", MADE)
def test_saved_model_comes_back(case: str, tmp_path: Path) -> None:
    model = MADE[case]()
    source_size = model.pretrained_cfg["input_size"]
    save_for_hf(model, str(tmp_path), safe_serialization=case != "dict")

    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_args"]["subnet"] == model.cfg.to_dict()
    assert config["num_classes"] == model.num_classes
    assert not set(RATES) & set(config["model_args"])
    assert model.pretrained_cfg["input_size"] == source_size

    back = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert back.cfg == model.cfg
    size = (model.in_chans, *model.patch_embed.img_size)
    assert resolve_model_data_config(back)["input_size"] == size
    x = torch.randn(2, *size)
    with torch.inference_mode():
        out = back.train()(x)  # nothing is dropped any more
        torch.testing.assert_close(out, model.eval()(x), rtol=1e-5, atol=1e-5)


def test_saved_model_is_adapted_on_loading(tmp_path: Path) -> None:
    save_for_hf(build_static(WEIGHTS), str(tmp_path), safe_serialization=True)
    back = timm.create_model(
        f"local-dir:{tmp_path}", pretrained=True, img_size=(96, 64), num_classes=3, in_chans=1
    )
    like = build_static(WEIGHTS, img_size=(96, 64))
    assert torch.equal(back.pos_embed, like.pos_embed)
    assert back.head.weight.shape == (3, SUBNET.embed_dim)


@pytest.mark.parametrize("damage", ["truncated", "no architecture", "no JSON"])
def test_damaged_folder_is_refused_in_one_line(damage: str, tmp_path: Path) -> None:
    az.save_for_hf(az.create_model("autoformer_nano"), tmp_path)
    config = tmp_path / "config.json"
    if damage == "truncated":
        (tmp_path / "model.safetensors").write_bytes(b"\0" * 20)
    elif damage == "no JSON":
        config.write_text("{")
    else:
        values = json.loads(config.read_text())
        del values["architecture"]
        config.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"^local-dir:\S+: holds no whole model of [^\n]+$"):
        az.create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_saved_folder_has_what_transformers_needs(tmp_path: Path) -> None:
    model = az.create_model("autoformer_nano", pretrained=True)
    az.save_for_hf(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["label_names"] == list(class_names(model))
    assert "num_classes" not in config["model_args"]
    assert (tmp_path / "model.safetensors").exists()
    back = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert_has(back, model.state_dict())
    # What transformers' TimmWrapper calls.
    arguments = {"num_classes": config["num_classes"], **config["model_args"]}
    assert timm.create_model(config["architecture"], **arguments).num_classes == 10


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """A Hub that serves one extracted subnet, as huggingface_hub finds it by HF_ENDPOINT."""
    save_for_hf(build_static(WEIGHTS), str(tmp_path / "repo"), safe_serialization=True)
    files = {path.name: path.read_bytes() for path in (tmp_path / "repo").iterdir()}
    with serve(hub_replies("someone/subnet", files)) as loopback:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, loopback.url)
        monkeypatch.setattr(constants, "ENDPOINT", loopback.url)
        for module in (constants, file_download):  # versions before 1.0 have a copy in the second
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield loopback


HUB_CFG = {"hf_hub_id": "someone/subnet", "num_classes": 10, "input_size": (3, 64, 64)}
BEHIND_A_NAME = {"subnet": SUBNET, "patch_size": 16, "pretrained_cfg_overlay": HUB_CFG}


@pytest.mark.parametrize("create", [timm.create_model, az.create_model], ids=["timm", "az"])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("hf-hub:someone/subnet", {}),
        ("autoformer_tiny", BEHIND_A_NAME),
        ("autoformer_nano", BEHIND_A_NAME),  # not the packaged file
    ],
)
def test_model_comes_from_the_hub(
    create: Any, name: str, arguments: Any, hub: Loopback, tmp_path: Path
) -> None:
    model = create(name, pretrained=True, cache_dir=tmp_path / "cache", **arguments)
    assert_has(model, WEIGHTS.tensors)
    assert any("model.safetensors" in request for request in hub.requests)


def test_hub_without_weights_is_an_error(hub: Loopback, tmp_path: Path) -> None:
    for path in [path for path in hub.replies if "safetensors" in path]:
        del hub.replies[path]
    with pytest.raises(Exception, match="404"):
        az.create_model("hf-hub:someone/subnet", pretrained=True, cache_dir=tmp_path / "cache")
