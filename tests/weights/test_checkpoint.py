"""Every known file is read and written exactly; every other is refused in one line."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.published import SPACES, SUBNETS
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights import files
from autoformer_zoo.weights.checkpoint import (
    CheckpointError,
    open_checkpoint,
    save_subnet,
    save_supernet,
)
from autoformer_zoo.weights.files import read_tensors
from autoformer_zoo.weights.layouts import Architecture, FormatError, read_architecture, recognise
from autoformer_zoo.weights.pretrained import load_supernet
from autoformer_zoo.weights.slicing import slice_supernet
from tests.helpers.hostile import FILES, SIZES, state
from tests.helpers.upstream import (
    mmrazor_state,
    nni_shapes,
    nni_state,
    official_state,
    training_checkpoint,
    uniform,
)

SUBNET = SubnetConfig(2, 24, (1, 2), (2.0, 1.5))


@pytest.fixture
def official(tmp_path: Path) -> Path:
    path = tmp_path / "official.pth"
    torch.save(training_checkpoint(state()), path)
    return path


@pytest.fixture
def canonical(official: Path) -> Path:
    path = official.with_name("canonical.safetensors")
    save_supernet(load_supernet(official, "packed_prefix"), path)
    return path


# What a file is refused for


@pytest.mark.parametrize("name", FILES)
def test_bad_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    make, reason = FILES[name]
    path = tmp_path / name
    path.write_bytes(make(tmp_path))
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_supernet(path, "packed_prefix")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800
    assert list(tmp_path.iterdir()) == [path]


def test_missing_file_and_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"away\.pth: No such file"):
        load_supernet(tmp_path / "away.pth")
    with pytest.raises(CheckpointError, match="is a directory; expected a file of weights"):
        load_supernet(tmp_path)


HUGE = {"cls_token": torch.ones(1, 1, 1), "blocks.0.mlp.fc1.bias": torch.ones(1 << 22)}
WRAPPED_BY_MODEL = {f"model.{name}": value for name, value in state().items()}
STATES: dict[str, tuple[dict[str, Tensor], str]] = {
    "missing": ({k: v for k, v in state().items() if k != "norm.bias"}, r"missing keys norm\.bias"),
    "huge": (HUGE, ""),
    "narrow": ({**HUGE, "blocks.0.mlp.fc1.bias": torch.ones(1)}, ""),
    "more": ({**WRAPPED_BY_MODEL, "criterion.weight": torch.ones(3)}, "are not an AutoFormer's"),
    "twice": (
        {**state(), "_orig_mod.cls_token": torch.zeros(1, 1, 32)},
        r"unexpected keys _orig_mod\.cls_token",
    ),
}


@pytest.mark.parametrize("case", STATES)
def test_bad_state_dict_is_refused_by_the_same_rules(case: str) -> None:
    given, reason = STATES[case]
    with pytest.raises(CheckpointError, match=f"the state dict: .*{reason}"):
        load_supernet(given)


@pytest.mark.parametrize("space", ["tiny", "small", "base"])
def test_nni_supernet_is_recognised_by_its_sizes(space: str) -> None:
    shapes = nni_shapes(SPACES[space].largest)
    with pytest.raises(FormatError, match="it is NNI's supernet"):
        read_architecture(recognise(shapes), shapes)


# What a file may look like


@pytest.mark.parametrize(
    ("raw", "averaged"), [("state_dict", "state_dict_ema"), ("model", "model_ema")]
)
def test_averaged_weights_come_first(
    raw: str, averaged: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    other = {name: value + 1 for name, value in state().items()}
    assert_same(files.take_weights({raw: other, averaged: state()}, "f"), state())
    assert f"f: the weights in {averaged} are taken; it also has ['{averaged}', '{raw}']" in (
        caplog.text
    )
    assert_same(files.take_weights({raw: state(), averaged: {}}, "f"), state())


WRAPPED: dict[str, Callable[[str], str]] = {
    "lightning": lambda name: f"model.{name}",
    "lightning, compiled": lambda name: f"model._orig_mod.{name}",
    "compiled, distributed": lambda name: f"_orig_mod.module.{name}",
    "compiled blocks": lambda name: name.replace("blocks.0.", "blocks.0._orig_mod."),
    "sharded": lambda name: (
        "_fsdp_wrapped_module." + name.replace("blocks.1.", "blocks.1._fsdp_wrapped_module.")
    ),
    "checkpointed": lambda name: name.replace(".attn.", ".attn._checkpoint_wrapped_module."),
    "any": lambda name: f"backbone.encoder.{name}",
}


@pytest.mark.parametrize("case", WRAPPED)
@pytest.mark.parametrize("family", ["packed", "nni"])
def test_prefixes_of_wrappers_are_dropped(case: str, family: str) -> None:
    given = state() if family == "packed" else nni_state(SIZES)
    wrapped = {WRAPPED[case](name): value for name, value in given.items()}
    assert_same(files.take_weights({"state_dict": wrapped}, "f"), given)


def test_averaged_model_is_opened() -> None:
    model = torch.optim.swa_utils.AveragedModel(AutoFormer(SUBNET, 32, 16, num_classes=3))
    for content in (model.state_dict(), {f"module.{k}": v for k, v in model.state_dict().items()}):
        weights = open_checkpoint(content).subnet()
        assert_same(dict(weights.tensors), dict(model.module.state_dict()))


def test_container_of_itself_is_refused() -> None:
    content: dict[str, object] = {"epoch": 3}
    content["model"] = content
    with pytest.raises(CheckpointError, match="has no model weights in it, only epoch, model"):
        files.take_weights(content, "f")


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ""])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_content_decides_the_format_not_the_suffix(kind: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{ending}"
    if kind == "safetensors":
        save_file(state(), path)
    else:
        torch.save(state(), path, _use_new_zipfile_serialization=kind == "zip")
    assert_same(read_tensors(path)[0], state())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_values_keep_their_stored_type(dtype: torch.dtype, tmp_path: Path) -> None:
    stored = {name: value.to(dtype) for name, value in state().items()}
    weights = load_supernet(stored, "packed_prefix")
    assert {value.dtype for value in weights.tensors.values()} == {dtype}
    save_supernet(weights, tmp_path / "f")
    assert_same(load_supernet(tmp_path / "f").tensors, weights.tensors)


@pytest.mark.parametrize("num_classes", [7, 0])
def test_sizes_are_read_back_from_shapes(num_classes: int) -> None:
    sizes = SubnetConfig(3, 40, (1, 3, 2), (4.0, 3.3, 0.7))
    made = official_state(sizes, img_size=12, num_classes=7, patch_size=4, in_chans=2)
    has_head = {k: v for k, v in made.items() if num_classes or not k.startswith("head")}
    weights = load_supernet(has_head, "packed_prefix")
    assert (weights.sizes.embed_dim, weights.sizes.num_heads) == (40, (1, 3, 2))
    assert weights.sizes.hidden_dims == sizes.hidden_dims
    assert (weights.img_size, weights.patch_size) == ((12, 12), (4, 4))
    assert (weights.in_chans, weights.num_classes) == (2, num_classes)


@pytest.mark.parametrize("name", SUBNETS)
def test_expected_shapes_are_the_networks(name: str) -> None:
    subnet = SUBNETS[name]
    expected = Architecture(subnet, (64, 96), (16, 8), 3, 10).shapes()
    network = AutoFormer(subnet, (64, 96), (16, 8), num_classes=10, device="meta")
    assert expected == {key: tuple(value.shape) for key, value in network.state_dict().items()}


# Packing


def test_assumed_layout_is_logged(official: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    load_supernet(official, "packed_prefix")
    assert caplog.text == ""
    assert load_supernet(official).bias_rule == "packed_prefix"
    assert f"{official}: the file does not record how its qkv bias is packed" in caplog.text


def test_layout_against_the_file_is_refused(tmp_path: Path) -> None:
    layouts = ["packed_prefix", "packed_interleaved"]
    for stored, asked in (layouts, layouts[::-1]):
        save_supernet(load_supernet(state(), stored), tmp_path / "f")
        load_supernet(tmp_path / "f", stored)
        with pytest.raises(CheckpointError, match=f"layout='{asked}' contradicts it"):
            load_supernet(tmp_path / "f", asked)
    with pytest.raises(CheckpointError, match="has nni names, not packed ones; layout="):
        open_checkpoint(nni_state(SIZES), "packed_prefix")


# Canonical files


@pytest.mark.parametrize("layout", ["packed_prefix", "packed_interleaved"])
def test_supernet_file_round_trips(layout: str, tmp_path: Path) -> None:
    notes = {"origin": "a test", "license": "unknown"}
    sizes = SubnetConfig(1, 40, (1,), (3.3,))  # a ratio that shapes round
    weights = load_supernet(official_state(sizes), layout)
    weights = replace(weights, net=replace(weights.net, sizes=sizes), metadata=notes)
    save_supernet(weights, tmp_path / "f")
    back = load_supernet(tmp_path / "f")
    assert_same(back.tensors, weights.tensors)
    assert (back.net, back.bias_rule, back.metadata) == (weights.net, weights.bias_rule, notes)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_subnet_file_round_trips_with_a_rectangle(canonical: Path, tmp_path: Path) -> None:
    cut = open_checkpoint(canonical).subnet(SUBNET)
    positions = torch.randn(1, 1 + 2 * 3, 24)
    net = replace(cut.net, img_size=(32, 48))
    cut = replace(cut, net=net, tensors={**cut.tensors, "pos_embed": positions})
    save_subnet(cut, tmp_path / "f")
    back = open_checkpoint(tmp_path / "f").subnet()
    assert_same(back.tensors, cut.tensors)
    assert back.net == net


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format_version": "2"}, "its format_version is '2'; this release reads '1': update"),
        ({"format": "autoformer_zoo.model"}, "its format is 'autoformer_zoo.model'; expected"),
        ({"bias_rule": "none"}, "its bias_rule is 'none'; expected one of"),
        ({"sizes": "{"}, "its header is damaged: a subnet config is not JSON"),
        ({"img_size": "[32]"}, "its header is damaged: not enough values"),
        ({"img_size": "[32, -1]"}, "its header is damaged: .* is not two positive whole numbers"),
        ({"label_names": "[1]"}, r"its label_names is damaged: \[1\]"),
        ({"mean": "[0.5, 1e999]"}, "its mean is damaged"),
        ({"mean": "[]"}, "its mean is damaged"),
        ({"std": "[0.5, 0.5]"}, "its std is damaged"),
        ({"std": "[true, true, true]"}, "its std is damaged"),
        ({"interpolation": '"foo"'}, "its interpolation is damaged"),
        ({"crop_mode": '"foo"'}, "its crop_mode is damaged"),
        ({"crop_pct": "1e-9"}, "its crop_pct is damaged"),
        ({"crop_pct": "true"}, "its crop_pct is damaged"),
        ({"crop_pct": "[" * 100_000}, "its crop_pct is damaged"),
        ({"crop_pct": f"1{'0' * 400}"}, "its crop_pct is damaged"),
        ({"patch_size": "[8, 8]"}, r"its header says .* with patches \(8, 8\), its tensors are"),
        ({"img_size": "[32, 48]"}, r"wrong shapes: pos_embed is \(1, 5, 32\), expected \(1, 7"),
        ({"sizes": uniform(2, 32, 1, 2.0).to_json()}, r"its header says .*\[1, 1\].* are of .*\[2"),
    ],
)
def test_header_that_is_wrong_is_refused(
    canonical: Path, change: dict[str, str], reason: str, tmp_path: Path
) -> None:
    with safe_open(canonical, "pt") as file:
        metadata = file.metadata() | change
    save_file(load_file(canonical), tmp_path / "changed", metadata)
    with pytest.raises(CheckpointError, match=reason):
        load_supernet(tmp_path / "changed")


def _fail_to_write(content: bytes) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _read_other_values(path: Path) -> dict[str, Tensor]:
    return {**load_file(path), "cls_token": torch.zeros(1, 1, 32)}


@pytest.mark.parametrize(
    ("function", "fault", "text"),
    [
        ("_in_order", _fail_to_write, "No space left"),
        ("load_file", _read_other_values, "was written wrongly: cls_token came back"),
    ],
    ids=["full", "changed"],
)
def test_failed_write_leaves_the_old_file(
    function: str,
    fault: object,
    text: str,
    canonical: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    before, weights = canonical.read_bytes(), load_supernet(canonical)
    monkeypatch.setattr(files, function, fault)
    with pytest.raises((OSError, CheckpointError), match=text):
        save_supernet(weights, canonical)
    assert canonical.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"official.pth", canonical.name}


def test_views_and_mixed_types_are_written(tmp_path: Path) -> None:
    whole = torch.randn(4, 6)
    tensors = {"a": whole[:, :2].half(), "b": whole[1:3].double(), "c": whole[:2, :3], "d": whole}
    notes = {letter: f"é {letter}" for letter in "qwertyuiop"}
    files.write_tensors(tmp_path / "f", tensors, notes)
    back, metadata = read_tensors(tmp_path / "f")
    assert_same(back, tensors)
    assert metadata == notes
    files.write_tensors(tmp_path / "again", tensors, dict(reversed(notes.items())))
    assert (tmp_path / "f").read_bytes() == (tmp_path / "again").read_bytes()
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o666 & ~umask


# Subnets


def test_mmrazor_supernet_is_that_of_prenas_under_other_names(tmp_path: Path) -> None:
    prenas = open_checkpoint(state(), "packed_interleaved").supernet()
    torch.save({"meta": {}, "state_dict": mmrazor_state(state())}, tmp_path / "mmrazor.pth")
    opened = open_checkpoint(tmp_path / "mmrazor.pth")
    assert opened.is_supernet
    mmrazor = opened.supernet()
    for name, tensor in prenas.cut(SUBNET).tensors.items():
        assert torch.equal(mmrazor.cut(SUBNET).tensors[name], tensor), name


def test_file_that_holds_something_else_is_refused(canonical: Path, tmp_path: Path) -> None:
    save_subnet(open_checkpoint(canonical).subnet(SUBNET), tmp_path / "f")
    with pytest.raises(CheckpointError, match="holds a supernet; give subnet=, which to cut"):
        open_checkpoint(canonical).subnet()
    with pytest.raises(CheckpointError, match="holds a subnet, not a supernet"):
        load_supernet(tmp_path / "f")
    with pytest.raises(CheckpointError, match=r"holds the subnet .*24.*; expected .*32"):
        open_checkpoint(tmp_path / "f").subnet(SIZES)


def test_plain_state_dict_serves_as_a_supernet_by_the_clean_rule(canonical: Path) -> None:
    plain = dict(load_supernet(state(), "packed_interleaved").tensors)
    weights = load_supernet(plain)
    assert weights.bias_rule == "prefix"
    cut = slice_supernet(plain, SIZES, SUBNET, "prefix")
    assert_same(slice_supernet(weights.tensors, weights.sizes, SUBNET), cut)


def assert_same(one: object, other: object) -> None:
    assert isinstance(one, dict)
    assert isinstance(other, dict)
    assert set(one) == set(other)
    for name, value in one.items():
        assert files.same_bits(value, other[name]), name
