"""The registry: names, tags and configs in timm, subnets, checkpoints, saving and the Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants, file_download
from timm.data import create_transform, resolve_model_data_config
from timm.models import get_pretrained_cfg, save_for_hf
from torch import Tensor

import autoformer_zoo as az
from autoformer_zoo.autoformer import build_static, default_cfgs
from autoformer_zoo.classify.predict import class_names
from autoformer_zoo.factory import build_subnet
from autoformer_zoo.network.complexity import count_params
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.published import MODELS
from autoformer_zoo.weights.checkpoint import (
    CheckpointError,
    open_checkpoint,
    save_subnet,
    save_supernet,
)
from autoformer_zoo.weights.header import cfg_to_notes
from tests.helpers.loopback import Loopback, hub_replies, serve
from tests.helpers.made_weights import (
    SIZES,
    SUBNET,
    SUPERNET,
    cut,
    make_supernet,
    nni_file,
    saved,
    supernet_file,
)

NANO = az.SUBNETS["autoformer_nano"]
WEIGHTS = cut(make_supernet(seed=1))
IMAGES = torch.linspace(-2, 2, 2 * 3 * 64 * 64).reshape(2, 3, 64, 64)


@pytest.fixture
def weights_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A supernet file that every pretrained=True takes its weights from."""
    path = tmp_path / "supernet.safetensors"
    save_supernet(make_supernet(seed=1), path)
    monkeypatch.setenv("AUTOFORMER_ZOO_WEIGHTS", str(path))
    return path


def _assert_has(model: Any, tensors: Any) -> None:
    state: dict[str, Tensor] = model.state_dict()
    assert state.keys() == dict(tensors).keys()
    for name, tensor in tensors.items():
        assert torch.equal(state[name], tensor), name


def _assert_same(one: Any, other: Any, x: Tensor = IMAGES) -> None:
    with torch.inference_mode():
        assert torch.equal(one.eval()(x), other.eval()(x))


# Names


def test_timm_lists_every_published_name() -> None:
    names = set(timm.list_models(module="autoformer"))
    assert names == set(MODELS) == set(az.list_models())
    assert names >= {*az.SUBNETS, "autoformer_nano", "autoformer_subnet"}
    assert timm.list_models("autoformer*", pretrained=True) == [
        "autoformer_base.ms_in1k",
        "autoformer_base.nni_in1k",
        "autoformer_nano.cifar10",
        "autoformer_small.ms_in1k",
        "autoformer_small.nni_in1k",
        "autoformer_tiny.ms_in1k",
        "autoformer_tiny.nni_in1k",
    ]
    assert len(az.list_models("prenas_*", pretrained=True)) == 13


@pytest.mark.parametrize("name", sorted(MODELS))
def test_name_makes_its_subnet(name: str) -> None:
    model = timm.create_model(name, device="meta")
    side, patch, classes = (32, 4, 10) if name == "autoformer_nano" else (224, 16, 1000)
    params = sum(parameter.numel() for parameter in model.parameters())
    assert model.cfg == MODELS[name].subnet
    assert params == count_params(model.cfg, img_size=side, patch_size=patch, num_classes=classes)


@pytest.mark.parametrize("name", sorted(timm.list_models(module="autoformer", pretrained=True)))
def test_default_cfg_is_complete(name: str) -> None:
    cfg = get_pretrained_cfg(name)
    assert cfg.architecture == name.partition(".")[0]
    assert cfg.first_conv == "patch_embed.proj"
    assert cfg.classifier == "head"
    assert cfg.fixed_input_size
    assert "arXiv:2107.00651" in cfg.paper_ids
    assert cfg.interpolation == "bicubic"
    if name == "autoformer_nano.cifar10":
        assert (cfg.input_size, cfg.num_classes, cfg.crop_pct) == ((3, 32, 32), 10, 1.0)
        assert cfg.mean == (0.4914, 0.4822, 0.4465)
        assert len(cfg.label_names) == 10
        assert cfg.license == "mit"
        assert cfg.url is None
    else:
        assert (cfg.input_size, cfg.num_classes, cfg.crop_pct) == ((3, 224, 224), 1000, 0.875)
        assert cfg.mean == (0.485, 0.456, 0.406)
        assert cfg.url.startswith("https://")
        assert cfg.origin_url.startswith("https://github.com/")
        stated = "apache-2.0" if name.startswith("prenas") else "unknown: none is stated"
        assert cfg.license.startswith(stated)


def test_released_weights_are_the_default() -> None:
    assert get_pretrained_cfg("autoformer_small").tag == "ms_in1k"
    assert list(default_cfgs["autoformer_small"].tags) == ["ms_in1k", "nni_in1k"]


def test_preprocessing_comes_from_the_config() -> None:
    model = timm.create_model("autoformer_tiny", device="meta")
    config = resolve_model_data_config(model)
    assert config["crop_pct"] == 0.875
    image = create_transform(**config, is_training=False)
    assert [type(step).__name__ for step in image.transforms][:2] == ["Resize", "CenterCrop"]
    assert image.transforms[0].size == 256


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("autoformer_smal", "no model is called 'autoformer_smal': the nearest are autoformer_sma"),
        ("resnet50", r"no model is called 'resnet50'.*autoformer_zoo.list_models\(\) or"),
        ("autoformer_tiny.imagenet", "no tag 'imagenet'; expected one of ms_in1k, nni_in1k"),
        ("autoformer_subnet.in1k", "autoformer_subnet has no tag 'in1k'; expected one of none"),
    ],
)
def test_unknown_name_is_answered_with_near_ones(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        az.create_model(name)


def test_unknown_argument_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="num_haeds"):
        timm.create_model("autoformer_tiny", num_haeds=3)


# Subnets


@pytest.mark.parametrize("subnet", [SUBNET, SUBNET.to_dict()], ids=["config", "dict"])
@pytest.mark.parametrize("create", [timm.create_model, az.create_model], ids=["timm", "az"])
def test_any_subnet_under_any_name(create: Any, subnet: Any) -> None:
    for name in ("autoformer_subnet", "prenas_base_42m"):
        assert create(name, subnet=subnet, **SIZES).cfg == SUBNET


def test_subnet_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown keys \\['dept'\\], missing keys"):
        timm.create_model("autoformer_subnet", subnet={"dept": 3})


def test_subnet_inherits_the_weights_of_the_supernet(weights_file: Path) -> None:
    other = az.SubnetConfig(1, 64, (1,), (1.5,))
    for subnet in (SUBNET, SUPERNET, other):
        model = timm.create_model("autoformer_tiny", pretrained=True, subnet=subnet, **SIZES)
        _assert_has(model, cut(make_supernet(seed=1), subnet).tensors)


def test_no_initial_values_are_made_for_weights_that_are_loaded(
    weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwanted(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("initial values were made")

    monkeypatch.setattr(AutoFormer, "init_weights", unwanted)
    model = timm.create_model("autoformer_tiny", pretrained=True, subnet=SUBNET, **SIZES)
    _assert_has(model, WEIGHTS.tensors)
    assert list(model.buffers()) == []  # made on the meta device, they would stay empty


def test_packaged_weights_need_neither_network_nor_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nano = make_supernet(az.SPACES["nano"].supernet, img_size=32, patch_size=4)
    path = tmp_path / "nano.safetensors"
    save_supernet(nano, path)
    monkeypatch.setattr("autoformer_zoo.weights.pretrained.NANO_WEIGHTS", path)
    monkeypatch.setenv("AUTOFORMER_ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("autoformer_zoo.weights.pretrained.fetch", None)

    cfg = {"file": str(path)}
    model = timm.create_model("autoformer_nano", pretrained=True, pretrained_cfg_overlay=cfg)
    _assert_has(model, cut(nano, MODELS["autoformer_nano"].subnet).tensors)
    smallest = az.SPACES["nano"].smallest
    model = timm.create_model(
        "autoformer_nano", pretrained=True, subnet=smallest, pretrained_cfg_overlay=cfg
    )
    _assert_has(model, cut(nano, smallest).tensors)
    assert not (tmp_path / "cache").exists()


# Adapting pretrained weights: as timm does it

ADAPTATIONS = {
    "nothing": {},
    "grey": {"in_chans": 1},
    "four channels": {"in_chans": 4},
    "larger": {"img_size": 96},
    "rectangular": {"img_size": (96, 64)},
    "finer patches": {"patch_size": 8},
    "no head": {"num_classes": 0},
    "half": {"dtype": torch.bfloat16},
    "dynamic": {"dynamic_img_size": True},
    "features": {"features_only": True, "out_indices": (0, 1)},
}


@pytest.mark.parametrize("case", ADAPTATIONS)
def test_weights_are_adapted_as_timm_adapts_them(case: str, weights_file: Path) -> None:
    arguments = {"subnet": SUBNET, **SIZES, "patch_size": 16, **ADAPTATIONS[case]}
    cfg = {"input_size": (3, 64, 64), "num_classes": 10}

    ours = timm.create_model(
        "autoformer_tiny", pretrained=True, pretrained_cfg_overlay=cfg, **arguments
    )
    timms = timm.create_model(
        "autoformer_tiny",
        pretrained=True,
        pretrained_cfg_overlay={**cfg, "state_dict": dict(WEIGHTS.tensors)},
        **arguments,
    )

    _assert_has(ours, timms.state_dict())


def test_new_number_of_classes_makes_a_new_head_only(weights_file: Path) -> None:
    arguments = {"subnet": SUBNET, "img_size": 64, "num_classes": 7}
    model = timm.create_model("autoformer_tiny", pretrained=True, **arguments)
    state = model.state_dict()
    assert state["head.weight"].shape == (7, SUBNET.embed_dim)
    assert 0.01 < state["head.weight"].std() < 0.03
    assert state["head.bias"].count_nonzero() == 0
    for name, tensor in WEIGHTS.tensors.items():
        assert name.startswith("head.") or torch.equal(state[name], tensor)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"img_size": 64},
            "is for num_classes=10; the model has num_classes=1000: pass num",
        ),
        ({"num_classes": 10}, r"is for img_size=\(64, 64\); the model has img_size=\(224, 224\)"),
    ],
)
def test_weights_of_other_sizes_are_not_adapted_unasked(
    given: dict[str, int], text: str, weights_file: Path
) -> None:
    with pytest.raises(ValueError, match=text):
        timm.create_model("autoformer_tiny", pretrained=True, subnet=SUBNET, **given)


def test_weights_leave_no_trace_in_the_config(weights_file: Path) -> None:
    model = timm.create_model("autoformer_tiny", pretrained=True, subnet=SUBNET, **SIZES)
    assert "state_dict" not in model.pretrained_cfg
    assert model.pretrained_cfg["tag"] == "ms_in1k"
    assert model.pretrained_cfg["url"].endswith("supernet-tiny.pth")


# Checkpoint files

FILES = ["supernet", "subnet", "state dict", "training", "official", "nni"]


def _write(path: Path, kind: str) -> az.AutoFormer:
    """Write a file of this kind; return the model that it stands for."""
    supernet = make_supernet(seed=1, bias_rule="packed_prefix" if kind == "official" else "prefix")
    weights = cut(supernet)
    if kind == "supernet":
        save_supernet(supernet, path)
    elif kind == "subnet":
        save_subnet(weights, path)
    elif kind == "official":
        path.write_bytes(supernet_file(supernet))
    elif kind == "nni":
        path.write_bytes(nni_file(weights))
    elif kind == "training":
        path.write_bytes(saved({"state_dict": weights.tensors, "epoch": 3}))
    else:
        path.write_bytes(saved(dict(weights.tensors)))
    return build_static(weights)


@pytest.mark.parametrize("kind", FILES)
def test_checkpoint_of_any_kind_is_loaded(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors" if kind in FILES[:2] else tmp_path / "weights.pth"
    expected = _write(path, kind)

    named = az.create_model("autoformer_tiny", checkpoint_path=path, subnet=SUBNET, **SIZES)
    generic = az.create_model("autoformer_subnet", checkpoint_path=path, subnet=SUBNET)

    _assert_same(named, expected)
    _assert_same(generic, expected)
    if kind not in ("supernet", "official"):
        _assert_same(az.create_model("autoformer_subnet", checkpoint_path=path), expected)


@pytest.mark.parametrize("kind", FILES[1:])
def test_timm_loads_checkpoints_too(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors" if kind == "subnet" else tmp_path / "weights.pth"
    expected = _write(path, kind)
    model = timm.create_model("autoformer_tiny", checkpoint_path=str(path), subnet=SUBNET, **SIZES)
    _assert_same(model, expected)


def test_prenas_checkpoint_needs_its_layout(tmp_path: Path) -> None:
    prenas = make_supernet()
    path = tmp_path / "supernet-tiny.pth"
    path.write_bytes(supernet_file(prenas, "packed_interleaved"))
    model = az.create_model(
        "prenas_tiny_6m",
        checkpoint_path=path,
        subnet=SUBNET,
        layout="packed_interleaved",
        **SIZES,
    )
    _assert_has(model, cut(prenas).tensors)


def test_checkpoint_is_resampled_where_a_size_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_subnet(WEIGHTS, path)
    model = az.create_model("autoformer_subnet", checkpoint_path=path, img_size=(96, 64))
    _assert_same(model, build_static(WEIGHTS, img_size=(96, 64)), torch.ones(1, 3, 96, 64))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"num_classes": 10},
            r"is for img_size=\(64, 64\); the model has img_size=\(224, 224\): p",
        ),
        ({"img_size": 64, "num_classes": 7}, "is for num_classes=10; the model has num_classes=7"),
        ({**SIZES, "in_chans": 1}, "is for in_chans=3; the model has in_chans=1: pass in_chans=3"),
        ({**SIZES, "features_only": True}, "leave features_only=True out"),
        ({**SIZES, "pretrained": True}, "both name weights: give one of them"),
        ({**SIZES, "layout": "packed"}, "layout is 'packed'; expected"),
    ],
)
def test_checkpoint_has_to_match(arguments: dict[str, Any], text: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_subnet(WEIGHTS, path)
    with pytest.raises(ValueError, match=text):
        az.create_model("autoformer_tiny", checkpoint_path=path, subnet=SUBNET, **arguments)


def test_checkpoint_of_another_subnet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_subnet(WEIGHTS, path)
    with pytest.raises(CheckpointError, match=r"weights.safetensors: holds the subnet"):
        az.create_model("autoformer_tiny", checkpoint_path=path, **SIZES)


def test_layout_without_a_file_is_refused() -> None:
    with pytest.raises(ValueError, match="layout='packed_prefix' describes a file: give checkpoi"):
        az.create_model("autoformer_tiny", layout="packed_prefix")


def test_channels_that_cannot_be_adapted_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = timm.create_model("autoformer_subnet", subnet=SUBNET, in_chans=5, **SIZES)
    path = tmp_path / "five.pth"
    path.write_bytes(saved(model.state_dict()))
    monkeypatch.setenv("AUTOFORMER_ZOO_WEIGHTS", str(path))
    with pytest.raises(ValueError, match="weights for 5 channels cannot be adapted to in_chans=4"):
        az.create_model("autoformer_tiny", True, subnet=SUBNET, in_chans=4, **SIZES)


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


def _named(path: Path) -> Any:
    return az.create_model("autoformer_tiny", checkpoint_path=path, subnet=SUBNET, **SIZES)


WITH_NOTES = {
    "named": _named,
    "generic": lambda path: az.create_model("autoformer_subnet", checkpoint_path=path),
    "built": lambda path: build_subnet(open_checkpoint(path).subnet()),
}


@pytest.mark.parametrize("case", [*WITH_NOTES, "extracted"])
def test_what_a_file_says_of_its_network_is_kept(case: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    if case == "extracted":
        save_supernet(replace(make_supernet(seed=1), metadata=BIRDS), path)
        model = az.extract_subnet(az.load_supernet(path), SUBNET)
    else:
        save_subnet(replace(WEIGHTS, metadata=BIRDS), path)
        model = WITH_NOTES[case](path)

    assert {key: model.pretrained_cfg[key] for key in CFG} == CFG
    save_for_hf(model, str(tmp_path / "saved"))
    back = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True)
    assert json.dumps({key: back.pretrained_cfg[key] for key in CFG}) == json.dumps(CFG)


def test_file_without_notes_leaves_the_named_models_config(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_subnet(replace(WEIGHTS, metadata={"crop_pct": "0.5"}), path)
    model, named = _named(path), timm.create_model("autoformer_tiny", device="meta")
    assert model.pretrained_cfg["crop_pct"] == 0.5
    for key in ("mean", "std", "interpolation"):
        assert model.pretrained_cfg[key] == named.pretrained_cfg[key]


def test_callers_config_comes_before_the_files(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_subnet(replace(WEIGHTS, metadata=BIRDS), path)
    model = az.create_model(
        "autoformer_subnet", checkpoint_path=path, pretrained_cfg_overlay={"crop_pct": 0.7}
    )
    assert model.pretrained_cfg["crop_pct"] == 0.7
    assert model.pretrained_cfg["mean"] == CFG["mean"]


def test_named_file_is_the_origin(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_subnet(WEIGHTS, path)
    cfg = _named(path).pretrained_cfg
    assert not {"url", "tag", "license", "origin_url"} & set(cfg)
    assert cfg["notes"] == ("the file mine.safetensors",)


def test_labels_of_other_classes_are_forgotten(tmp_path: Path) -> None:
    def labels(**arguments: Any) -> Any:
        model = az.create_model("autoformer_nano", pretrained=True, **arguments)
        return model.pretrained_cfg.get("label_names")

    assert len(labels()) == len(labels(num_classes=10)) == 10
    assert labels(num_classes=5) is None
    model = az.create_model("autoformer_nano", pretrained=True)
    save_for_hf(model, str(tmp_path))
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3)
    model.reset_classifier(5)
    for changed in (model, again):
        assert "label_names" not in changed.pretrained_cfg
        assert class_names(changed)[0] == "class 0"


# Names of models where files are expected, and the caller's autocast


@pytest.mark.parametrize("name", ["autoformer_nano", "autoformer_nano.cifar10"])
def test_supernet_is_loaded_by_the_name_of_a_model(name: str) -> None:
    supernet = az.load_supernet(name)
    assert supernet.sizes == az.SPACES["nano"].supernet
    model = az.extract_subnet(supernet, az.SUBNETS["autoformer_nano"])
    _assert_has(model, az.create_model("autoformer_nano", pretrained=True).state_dict())
    assert len(model.pretrained_cfg["label_names"]) == 10
    assert len(repr(supernet)) < 400


def test_names_work_where_files_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = az.create_model("autoformer_subnet", checkpoint_path="autoformer_nano", subnet=NANO)
    assert model.pretrained_cfg["crop_pct"] == 1.0
    for name, reason in {
        "autoformer_nano.v9": "no such file; autoformer_nano has no tag 'v9'; expected one of ci",
        "autoformer_nan": "no such file; no model is called 'autoformer_nan': the nearest are",
        "nano": "No such file or directory",
    }.items():
        with pytest.raises(CheckpointError, match=f"{name}: {reason}"):
            az.load_supernet(name)
    monkeypatch.chdir(tmp_path)
    save_supernet(make_supernet(seed=1), "autoformer_nano")  # a file comes before a name
    assert az.load_supernet("autoformer_nano").sizes == SUPERNET


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("arguments", [{}, {"img_size": 48}, {"patch_size": 8}, {"in_chans": 1}])
def test_autocast_leaves_weights_alone(dtype: torch.dtype, arguments: dict[str, int]) -> None:
    expected = az.create_model("autoformer_nano", pretrained=True, **arguments)
    with torch.autocast("cpu", dtype):
        model = az.create_model("autoformer_nano", pretrained=True, **arguments)
        supernet = az.load_supernet("autoformer_nano")
        extracted = az.extract_subnet(supernet, az.SUBNETS["autoformer_nano"])
    _assert_has(model, expected.state_dict())
    assert extracted.blocks[0].attn.qkv.weight.dtype == torch.float32


# Saving, and the Hub


def test_saved_folder_has_what_transformers_needs(tmp_path: Path) -> None:
    model = az.create_model("autoformer_nano", pretrained=True)
    az.save_for_hf(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["label_names"] == list(class_names(model))
    assert config["num_classes"] == 10
    assert "num_classes" not in config["model_args"]
    assert (tmp_path / "model.safetensors").exists()
    back = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    _assert_same(model, back, torch.linspace(-2, 2, 3 * 32 * 32).reshape(1, 3, 32, 32))
    # What transformers' TimmWrapper calls.
    arguments = {"num_classes": config["num_classes"], **config["model_args"]}
    assert timm.create_model(config["architecture"], **arguments).num_classes == 10


def _resized() -> Any:
    model = timm.create_model("autoformer_subnet", subnet=SUBNET, **SIZES)
    model.set_input_size((96, 64))
    return model


def _with_new_head() -> Any:
    model = timm.create_model("autoformer_subnet", subnet=SUBNET, **SIZES)
    model.reset_classifier(5, "token")
    return model


RECTANGLE = {"img_size": (96, 64), "in_chans": 1, "num_classes": 3}
SAVED = {
    "config object": lambda: timm.create_model("autoformer_subnet", subnet=SUBNET, **SIZES),
    "dict": lambda: az.create_model("autoformer_small", subnet=SUBNET.to_dict(), **SIZES),
    "rectangular": lambda: timm.create_model("autoformer_tiny", subnet=SUBNET, **RECTANGLE),
    "nano": lambda: timm.create_model("autoformer_nano", subnet=az.SPACES["nano"].smallest),
    "resized": _resized,
    "new head": _with_new_head,
    "extracted": lambda: build_static(WEIGHTS),
    "extracted larger": lambda: build_static(WEIGHTS, img_size=96),
}


@pytest.mark.parametrize("case", SAVED)
def test_saved_model_comes_back(case: str, tmp_path: Path) -> None:
    model = SAVED[case]()
    save_for_hf(model, str(tmp_path), safe_serialization=case != "dict")

    back = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)

    assert back.cfg == model.cfg
    size = (model.in_chans, *model.patch_embed.img_size)
    assert resolve_model_data_config(back)["input_size"] == size
    _assert_same(model, back, torch.linspace(-2, 2, size[0] * size[1] * size[2]).reshape(1, *size))


def test_saved_config_is_plain_json(tmp_path: Path) -> None:
    model = timm.create_model("autoformer_subnet", subnet=SUBNET, **SIZES)
    save_for_hf(model, str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "autoformer_subnet"
    assert config["model_args"]["subnet"] == SUBNET.to_dict()
    assert config["model_args"]["img_size"] == [64, 64]
    assert config["num_classes"] == 10


def test_saved_model_is_adapted_on_loading(tmp_path: Path) -> None:
    save_for_hf(build_static(WEIGHTS), str(tmp_path), safe_serialization=True)
    back = timm.create_model(
        f"local-dir:{tmp_path}", pretrained=True, img_size=(96, 64), num_classes=3, in_chans=1
    )
    like = build_static(WEIGHTS, img_size=(96, 64))
    assert torch.equal(back.pos_embed, like.pos_embed)
    assert back.head.weight.shape == (3, SUBNET.embed_dim)


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


@pytest.mark.parametrize("create", [timm.create_model, az.create_model], ids=["timm", "az"])
def test_model_comes_from_the_hub(create: Any, hub: Loopback, tmp_path: Path) -> None:
    model = create("hf-hub:someone/subnet", pretrained=True, cache_dir=tmp_path / "cache")
    _assert_same(model, build_static(WEIGHTS))
    assert any("model.safetensors" in request for request in hub.requests)


def test_hub_weights_may_stand_behind_a_name(hub: Loopback, tmp_path: Path) -> None:
    model = timm.create_model(
        "autoformer_tiny",
        pretrained=True,
        subnet=SUBNET,
        pretrained_cfg_overlay={
            "hf_hub_id": "someone/subnet",
            "num_classes": 10,
            "input_size": (3, 64, 64),
        },
        cache_dir=tmp_path / "cache",
    )
    _assert_same(model, build_static(WEIGHTS))


def test_hub_without_weights_is_an_error(hub: Loopback, tmp_path: Path) -> None:
    for path in [path for path in hub.replies if "safetensors" in path]:
        del hub.replies[path]
    with pytest.raises(Exception, match="404"):
        az.create_model("hf-hub:someone/subnet", pretrained=True, cache_dir=tmp_path / "cache")
