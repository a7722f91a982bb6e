"""create_model from files: every known kind, what has to match, and what a header adds."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import autoformer_zoo as az
from autoformer_zoo.models.autoformer import build_static
from autoformer_zoo.models.factory import build_subnet
from autoformer_zoo.weights.checkpoint import (
    CheckpointError,
    open_checkpoint,
    save_subnet,
    save_supernet,
)
from autoformer_zoo.weights.header import cfg_to_notes
from autoformer_zoo.weights.sources import NANO_WEIGHTS
from tests.helpers.made_weights import (
    SIZES,
    SUBNET,
    SUPERNET,
    assert_has,
    cut,
    make_supernet,
    nni_file,
    saved,
    supernet_file,
)

WEIGHTS = cut(make_supernet(seed=1))
RULE, PRENAS = "packed_prefix", "packed_interleaved"
TRAINING = {
    "state_dict": {name: nn.Parameter(tensor) for name, tensor in WEIGHTS.tensors.items()},
    "optimizer": {},
    "args": argparse.Namespace(lr=0.1),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A subnet's file."""
    save_subnet(WEIGHTS, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def _named(path: Path, **arguments: Any) -> Any:
    arguments = {"subnet": SUBNET, **SIZES, **arguments}
    return az.create_model("autoformer_tiny", checkpoint_path=path, **arguments)


def _by_variable(path: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOFORMER_ZOO_WEIGHTS", str(path))
        return az.create_model("autoformer_tiny", pretrained=True, subnet=SUBNET, **SIZES)


KINDS: dict[str, Callable[[Path], object]] = {
    "supernet": lambda path: save_supernet(make_supernet(seed=1), path),
    "official": lambda path: path.write_bytes(supernet_file(make_supernet(seed=1, bias_rule=RULE))),
    "prenas": lambda path: path.write_bytes(supernet_file(make_supernet(seed=1), PRENAS)),
    "subnet": lambda path: save_subnet(WEIGHTS, path),
    "nni": lambda path: path.write_bytes(nni_file(WEIGHTS)),
    "state dict": lambda path: path.write_bytes(saved(dict(WEIGHTS.tensors))),
    "training": lambda path: path.write_bytes(saved(TRAINING)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_file_of_any_kind_is_loaded_in_every_way(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{'.safetensors' if kind in ('supernet', 'subnet') else '.pth'}"
    KINDS[kind](path)
    layout = PRENAS if kind == "prenas" else None
    rule: Any = RULE if kind == "official" else "prefix"
    expected = cut(make_supernet(seed=1, bias_rule=rule)).tensors

    generic = az.create_model(
        "autoformer_subnet", checkpoint_path=path, subnet=SUBNET, layout=layout
    )
    for model in (_named(path, layout=layout), generic):
        assert_has(model, expected)
    if kind != "prenas":  # nothing here says that it is one
        assert_has(_by_variable(path), expected)
    if kind not in ("supernet", "prenas"):  # timm passes what it read to load_state_dict
        arguments = {"checkpoint_path": str(path), "subnet": SUBNET, **SIZES}
        assert_has(timm.create_model("autoformer_tiny", **arguments), expected)
    if kind not in ("supernet", "official", "prenas"):
        assert_has(az.create_model("autoformer_subnet", checkpoint_path=path), expected)


def test_file_is_resampled_where_a_size_was_asked_for(file: Path) -> None:
    model = az.create_model("autoformer_subnet", checkpoint_path=file, img_size=(96, 64))
    assert_has(model, build_static(WEIGHTS, img_size=(96, 64)).state_dict())
    assert model.patch_embed.grid_size == (6, 4)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"img_size": None}, r"is for img_size=\(64, 64\); the model has img_size=\(224, 224\): p"),
        ({"num_classes": 7}, "is for num_classes=10; the model has num_classes=7"),
        ({"in_chans": 1}, "is for in_chans=3; the model has in_chans=1: pass in_chans=3"),
        ({"features_only": True}, "leave features_only=True out"),
        ({"pretrained": True}, "both name weights: give one of them"),
        ({"layout": "packed"}, "layout is 'packed'; expected"),
        ({"checkpoint_path": None, "layout": RULE}, "describes a file: give checkpoint_path="),
    ],
    ids=str,
)
def test_file_has_to_match(arguments: dict[str, Any], text: str, file: Path) -> None:
    given = {"checkpoint_path": file, "subnet": SUBNET, **SIZES, **arguments}
    with pytest.raises(ValueError, match=text):
        az.create_model("autoformer_tiny", **{k: v for k, v in given.items() if v is not None})


def test_file_of_another_subnet_is_refused(file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"weights.safetensors: holds the subnet"):
        az.create_model("autoformer_tiny", checkpoint_path=file, **SIZES)


def test_larger_network_is_refused_with_what_would_work() -> None:
    with pytest.raises(CheckpointError, match="holds a larger network; if it is a supernet, give"):
        timm.create_model("autoformer_nano", checkpoint_path=str(NANO_WEIGHTS))


# What a file's header holds about its network

CFG: dict[str, Any] = {
    "label_names": tuple(f"bird {i}" for i in range(10)),
    "mean": (0.5, 0.4, 0.3),
    "std": (0.1, 0.2, 0.3),
    "interpolation": "bilinear",
    "crop_pct": 0.95,
    "crop_mode": "squash",
    "license": "apache-2.0",
    "notes": ("trained on birds",),
}
BIRDS = cfg_to_notes(CFG)
MADE: dict[str, Callable[[Path], Any]] = {
    "named": _named,
    "generic": lambda path: az.create_model("autoformer_subnet", checkpoint_path=path),
    "built": lambda path: build_subnet(open_checkpoint(path).subnet()),
    "extracted": lambda path: az.extract_subnet(az.load_supernet(path), SUBNET),
}


@pytest.mark.parametrize("case", MADE)
def test_what_a_file_says_of_its_network_is_kept(case: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    if case == "extracted":
        save_supernet(replace(make_supernet(seed=1), metadata=BIRDS), path)
    else:
        save_subnet(replace(WEIGHTS, metadata=BIRDS), path)
    model = MADE[case](path)

    assert {key: model.pretrained_cfg[key] for key in CFG} == CFG
    timm.models.save_for_hf(model, str(tmp_path / "saved"))
    back = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True)
    assert json.dumps({key: back.pretrained_cfg[key] for key in CFG}) == json.dumps(CFG)


def test_callers_config_comes_before_the_files_and_the_files_before_the_names(file: Path) -> None:
    named = timm.create_model("autoformer_tiny", device="meta").pretrained_cfg
    plain = _named(file).pretrained_cfg
    assert not {"url", "tag", "license", "origin_url"} & set(plain)  # the file is the origin
    assert plain["notes"] == ("the file weights.safetensors",)

    save_subnet(replace(WEIGHTS, metadata={"crop_pct": "0.5", "mean": BIRDS["mean"]}), file)
    overlay = {"mean": (0.1, 0.2, 0.3)}
    for cfg, mean in (
        (_named(file).pretrained_cfg, CFG["mean"]),
        (_named(file, pretrained_cfg_overlay=overlay).pretrained_cfg, overlay["mean"]),
    ):
        assert (cfg["crop_pct"], cfg["mean"]) == (0.5, mean)
        assert [cfg[key] for key in ("std", "crop_mode")] == [
            named[key] for key in ("std", "crop_mode")
        ]


def test_subnet_of_a_folders_supernet_is_adapted_as_a_names_is(tmp_path: Path) -> None:
    folder = tmp_path / "birds_slice_1"  # no slice of a model "birds"
    folder.mkdir()
    save_supernet(make_supernet(seed=1), folder / "supernet.safetensors")
    name, arguments = f"local-dir:{folder}", {"pretrained": True, "subnet": SUBNET}
    model = az.create_model(name, num_classes=7, in_chans=1, **arguments)
    assert (model.head.out_features, model.in_chans) == (7, 1)
    assert torch.equal(model.pos_embed, WEIGHTS.tensors["pos_embed"])
    with pytest.raises(ValueError, match="both name weights: give one of them"):
        az.create_model(name, checkpoint_path=folder / "supernet.safetensors", **arguments)


def test_feature_extractor_records_plain_arguments(tmp_path: Path) -> None:
    save_supernet(make_supernet(seed=1), tmp_path / "supernet.safetensors")
    model = az.create_model(
        f"local-dir:{tmp_path}",
        pretrained=True,
        subnet=SUBNET,
        features_only=True,
        out_indices=(0, 1),
    )
    recorded = json.loads(json.dumps(timm.models.get_model_args(model)))
    assert recorded["subnet"] == json.loads(SUBNET.to_json())
    assert "checkpoint" not in recorded  # a supernet


# Names of models where files are expected


def test_names_work_where_files_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nano = az.SUBNETS["autoformer_nano"]
    expected = az.create_model("autoformer_nano", pretrained=True).state_dict()
    for name in ("autoformer_nano", "autoformer_nano.cifar10"):
        supernet = az.load_supernet(name)
        assert supernet.sizes == az.SPACES["nano"].supernet
        assert len(repr(supernet)) < 400
        for model in (
            az.extract_subnet(supernet, nano),
            az.create_model("autoformer_subnet", checkpoint_path=name, subnet=nano),
        ):
            assert_has(model, expected)
            assert model.pretrained_cfg["crop_pct"] == 1.0
            assert len(model.pretrained_cfg["label_names"]) == 10
    for name, reason in {
        "autoformer_nano.v9": "no such file; autoformer_nano has no tag 'v9'; expected one of ci",
        "autoformer_nan": "no such file; no model is called 'autoformer_nan': the nearest are",
        "nano": "No such file or directory",
    }.items():
        with pytest.raises(CheckpointError, match=f"{name}: {reason}"):
            az.load_supernet(name)
    monkeypatch.chdir(tmp_path)
    Path("autoformer_nano").mkdir()  # a folder hides no name
    assert az.load_supernet("autoformer_nano").sizes == az.SPACES["nano"].supernet
    Path("autoformer_nano").rmdir()
    save_supernet(make_supernet(seed=1), "autoformer_nano")  # a file comes before a name
    assert az.load_supernet("autoformer_nano").sizes == SUPERNET
