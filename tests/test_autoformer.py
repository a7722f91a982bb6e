"""The registry: names and tags in timm, subnets, and pretrained weights adapted as timm does it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import autoformer_zoo as az
from autoformer_zoo.classify.predict import class_names
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.published import MODELS
from autoformer_zoo.weights.checkpoint import save_supernet
from tests.helpers.made_weights import (
    SIZES,
    SUBNET,
    SUPERNET,
    assert_has,
    cut,
    make_supernet,
    nni_file,
    saved,
)

WEIGHTS = cut(make_supernet(seed=1))


@pytest.fixture
def weights_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A supernet file that every pretrained=True takes its weights from."""
    path = tmp_path / "supernet.safetensors"
    save_supernet(make_supernet(seed=1), path)
    monkeypatch.setenv("AUTOFORMER_ZOO_WEIGHTS", str(path))
    return path


# Names


def test_timm_lists_every_published_name() -> None:
    names = set(timm.list_models(module="autoformer"))
    assert names == set(MODELS) == set(az.list_models()) == set(az.list_models(module="autoformer"))
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
    assert timm.models.get_pretrained_cfg("autoformer_small").tag == "ms_in1k"  # the released one


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


# Subnets


@pytest.mark.parametrize("subnet", [SUBNET, SUBNET.to_dict()], ids=["config", "dict"])
@pytest.mark.parametrize("create", [timm.create_model, az.create_model], ids=["timm", "az"])
def test_any_subnet_under_any_name(create: Any, subnet: Any) -> None:
    for name in ("autoformer_subnet", "prenas_base_42m"):
        assert create(name, subnet=subnet, **SIZES).cfg == SUBNET


@pytest.mark.usefixtures("weights_file")
def test_subnet_inherits_the_weights_of_the_supernet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoFormer, "init_weights", None)  # initial values would be overwritten
    for subnet in (SUBNET, SUPERNET, az.SubnetConfig(1, 64, (1,), (1.5,))):
        model = timm.create_model("autoformer_tiny", pretrained=True, subnet=subnet, **SIZES)
        assert_has(model, cut(make_supernet(seed=1), subnet).tensors)
        assert list(model.buffers()) == []  # made on the meta device, they would stay empty
    assert "state_dict" not in model.pretrained_cfg
    assert model.pretrained_cfg["tag"] == "ms_in1k"
    assert model.pretrained_cfg["url"].endswith("supernet-tiny.pth")


def test_packaged_weights_need_neither_network_nor_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOFORMER_ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("autoformer_zoo.weights.pretrained.fetch", None)
    nano = az.load_supernet("autoformer_nano")
    for subnet in (az.SUBNETS["autoformer_nano"], az.SPACES["nano"].smallest):
        model = timm.create_model("autoformer_nano", pretrained=True, subnet=subnet)
        assert_has(model, cut(nano, subnet).tensors)
    assert not (tmp_path / "cache").exists()


# Adapting pretrained weights: as timm does it

ADAPTATIONS = {
    "nothing": {},
    "grey": {"in_chans": 1},
    "four channels": {"in_chans": 4},
    "rectangular": {"img_size": (96, 64)},
    "as many patches": {"img_size": (32, 128)},
    "finer patches": {"patch_size": 8},
    "no head": {"num_classes": 0},
    "half": {"dtype": torch.bfloat16},
    "dynamic": {"dynamic_img_size": True},
    "features": {"features_only": True, "out_indices": (0, 1)},
}


@pytest.mark.parametrize("case", ADAPTATIONS)
@pytest.mark.usefixtures("weights_file")
def test_weights_are_adapted_as_timm_adapts_them(case: str) -> None:
    arguments = {"subnet": SUBNET, **SIZES, "patch_size": 16, **ADAPTATIONS[case]}
    cfg = {"input_size": (3, 64, 64), "num_classes": 10}
    upstream = torch.load(io.BytesIO(nni_file(WEIGHTS)))
    ours, timms, renamed = (
        timm.create_model(
            "autoformer_tiny", pretrained=True, pretrained_cfg_overlay=cfg | own, **arguments
        )
        for own in ({}, {"state_dict": dict(WEIGHTS.tensors)}, {"state_dict": upstream})
    )
    assert_has(ours, timms.state_dict())
    assert_has(renamed, timms.state_dict())


@pytest.mark.parametrize(("stored", "wanted"), [(5, 4), (1, 3), (4, 1)], ids=str)
def test_any_channels_are_adapted_as_timm_adapts_them(
    stored: int, wanted: int, tmp_path: Path
) -> None:
    model = timm.create_model("autoformer_subnet", subnet=SUBNET, in_chans=stored, **SIZES)
    (tmp_path / "weights.pth").write_bytes(saved(model.state_dict()))
    cfg = {"input_size": (stored, 64, 64), "num_classes": 10}
    arguments = {"subnet": SUBNET, "in_chans": wanted, **SIZES}
    ours, timms = (
        timm.create_model(
            "autoformer_tiny", pretrained=True, pretrained_cfg_overlay=cfg | own, **arguments
        )
        for own in ({"file": str(tmp_path / "weights.pth")}, {"state_dict": model.state_dict()})
    )
    assert_has(ours, timms.state_dict())


@pytest.mark.usefixtures("weights_file")
def test_size_in_the_callers_config_is_the_models() -> None:
    cfg = {"input_size": (3, 96, 64), "num_classes": 10}
    sized, expected = (
        timm.create_model("autoformer_tiny", pretrained=True, subnet=SUBNET, **arguments)
        for arguments in ({"pretrained_cfg_overlay": cfg}, {**SIZES, "img_size": (96, 64)})
    )
    assert_has(sized, expected.state_dict())


@pytest.mark.usefixtures("weights_file")
def test_new_number_of_classes_makes_a_new_head_only() -> None:
    arguments = {"subnet": SUBNET, "img_size": 64, "num_classes": 7}
    state = timm.create_model("autoformer_tiny", pretrained=True, **arguments).state_dict()
    assert state["head.weight"].shape == (7, SUBNET.embed_dim)
    assert 0.01 < state["head.weight"].std() < 0.03
    assert state["head.bias"].count_nonzero() == 0
    for name, tensor in WEIGHTS.tensors.items():
        assert name.startswith("head.") or torch.equal(state[name], tensor)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"img_size": 64}, "is for num_classes=10; the model has num_classes=1000: pass num"),
        ({"num_classes": 10}, r"is for img_size=\(64, 64\); the model has img_size=\(224, 224\)"),
    ],
)
@pytest.mark.usefixtures("weights_file")
def test_weights_of_other_sizes_are_not_adapted_unasked(given: dict[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        timm.create_model("autoformer_tiny", pretrained=True, subnet=SUBNET, **given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("arguments", [{"img_size": 48}, {"patch_size": 8}, {"in_chans": 1}])
def test_autocast_leaves_weights_alone(dtype: torch.dtype, arguments: dict[str, int]) -> None:
    expected = az.create_model("autoformer_nano", pretrained=True, **arguments)
    with torch.autocast("cpu", dtype):
        model = az.create_model("autoformer_nano", pretrained=True, **arguments)
        supernet = az.load_supernet("autoformer_nano")
        extracted = az.extract_subnet(supernet, az.SUBNETS["autoformer_nano"])
    assert_has(model, expected.state_dict())
    assert extracted.blocks[0].attn.qkv.weight.dtype == torch.float32


def test_labels_of_other_classes_are_forgotten(tmp_path: Path) -> None:
    def nano(**arguments: Any) -> Any:
        return az.create_model("autoformer_nano", pretrained=True, **arguments)

    for same in (nano(), nano(num_classes=10)):
        assert len(same.pretrained_cfg["label_names"]) == 10
    changed = nano()
    az.save_for_hf(changed, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3)
    changed.reset_classifier(5)
    for other in (nano(num_classes=5), changed, again):
        assert "label_names" not in other.pretrained_cfg
        assert class_names(other)[0] == "class 0"
