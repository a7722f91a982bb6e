"""Make files that a reader of checkpoints must refuse, each with the reason it must give."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.helpers.upstream import nni_state, official_state, uniform

SIZES = uniform(2, 32, 2, 2.0)


class RunsCode:
    """Leaves a file behind when a pickle of it is opened by the plain unpickler."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.marker,)


def state(**changes: Tensor) -> dict[str, Any]:
    return {**official_state(SIZES), **changes}


def saved(content: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def rezipped(content: bytes, compression: int, leave_out: str = "nothing") -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(buffer, "w", compression) as new,
    ):
        for name in old.namelist():
            if not name.endswith(leave_out):
                new.writestr(name, old.read(name))
    return buffer.getvalue()


def zip_of(names: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def safetensors_of(tensors: dict[str, Tensor], folder: Path) -> bytes:
    save_file(tensors, folder / "whole")
    content = (folder / "whole").read_bytes()
    (folder / "whole").unlink()
    return content


LEGACY = {"_use_new_zipfile_serialization": False}
HTML = b"\n<!DOCTYPE html><html><body>404: not found</body></html>"

# Name of the file: its content, made in a folder, and what the refusal must say.
FILES: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "runs-code.pth": (
        lambda folder: saved({"model": state(), "x": RunsCode(folder / "executed")}),
        "could run code; it was not executed",
    ),
    "runs-code-legacy.pth": (
        lambda folder: saved({"model": state(), "x": RunsCode(folder / "executed")}, **LEGACY),
        "could run code; it was not executed",
    ),
    "runs-code-plain.pkl": (
        lambda folder: pickle.dumps(RunsCode(folder / "executed")),
        "damaged|could run code; it was not executed",
    ),
    "module.pth": (lambda _: saved(nn.Linear(2, 2)), "could run code; it was not executed"),
    "truncated-half.pth": (lambda _: saved(state())[:9000], "damaged or truncated zip archive"),
    "truncated-end.pth": (lambda _: saved(state())[:-30], "damaged or truncated zip archive"),
    "truncated-legacy.pth": (lambda _: saved(state(), **LEGACY)[:9000], "damaged or truncated"),
    "record-missing.pth": (
        lambda _: rezipped(saved(state()), zipfile.ZIP_STORED, "data/3"),
        "damaged or truncated torch checkpoint",
    ),
    "truncated.safetensors": (
        lambda folder: safetensors_of(state(), folder)[:9000],
        "damaged or truncated safetensors file",
    ),
    "header-damaged.safetensors": (
        lambda folder: safetensors_of(state(), folder).replace(b'"F32"', b'"F3?"', 1),
        "damaged or truncated safetensors file",
    ),
    "nonsense.pth": (lambda _: zip_of({"holiday.txt": b"sun"}), "not one that torch.save wrote"),
    "nonsense-pickle.pth": (
        lambda _: zip_of({"a/data.pkl": b"\x80\x02nonsense", "a/version": b"3"}),
        "damaged",
    ),
    "program.pth": (
        lambda _: zip_of({"a/data.pkl": b"", "a/constants.pkl": b""}),
        "is a TorchScript program",
    ),
    "compressed.pth": (
        lambda _: rezipped(saved(state()), zipfile.ZIP_DEFLATED),
        "is a compressed zip archive",
    ),
    "page.pth": (lambda _: HTML, "is a web page, not a checkpoint"),
    "error.pth": (lambda _: b"<?xml version='1.0'?><Error/>", "is a web page, not a checkpoint"),
    "page.safetensors": (lambda _: HTML, "is a web page, not a checkpoint"),
    "pointer.pth": (lambda _: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "text.pth": (lambda _: b"hello, world, hello", "neither safetensors nor a torch checkpoint"),
    "empty.pth": (lambda _: b"", "is empty"),
    "optimizer.pth": (
        lambda _: saved({"optimizer": {"state": {}}, "epoch": 3}),
        "has no model weights in it, only optimizer, epoch",
    ),
    "optimizer-state.pth": (
        lambda _: saved({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1.0}]}),
        "has no model weights in it, only state, param_groups",
    ),
    "list.pth": (lambda _: saved([torch.ones(2)]), "holds a list; expected a state dict"),
    "no-weights.pth": (lambda _: saved({"model": {}}), "its state dict is empty"),
    "not-a-tensor.pth": (
        lambda _: saved({**state(), "epoch": 3}),
        "epoch is a int; expected a tensor",
    ),
    "number-as-key.pth": (lambda _: saved({7: torch.ones(2)}), "key of type int"),
    "whole-numbers.pth": (
        lambda _: saved(state(cls_token=torch.ones(1, 1, 32, dtype=torch.int64))),
        "cls_token is of type torch.int64; expected one of torch.float64",
    ),
    "whole-numbers.safetensors": (
        lambda folder: safetensors_of(state(cls_token=torch.ones(1, dtype=torch.int8)), folder),
        "cls_token is of type torch.int8",
    ),
    "sparse.pth": (
        lambda _: saved(state(cls_token=torch.zeros(1, 1, 32).to_sparse())),
        "cls_token is a torch.sparse_coo tensor",
    ),
    "no-values.pth": (
        lambda _: saved(state(cls_token=torch.empty(1, 1, 32, device="meta"))),
        "cls_token is a torch.strided tensor on meta",
    ),
    "huge-view.pth": (
        lambda _: saved(state(cls_token=torch.zeros(1).expand(1 << 40))),
        "its tensors claim 4398",
    ),
    "nan.pth": (
        lambda _: saved(state(**{"norm.bias": torch.full((32,), float("nan"))})),
        "1 tensors hold NaN or infinity, norm.bias first",
    ),
    "infinite.safetensors": (
        lambda folder: safetensors_of(
            state(**{"head.bias": torch.full((5,), float("-inf"))}), folder
        ),
        "1 tensors hold NaN or infinity, head.bias first",
    ),
    "other-network.pth": (
        lambda _: saved({"conv1.weight": torch.ones(2), "fc.weight": torch.ones(2)}),
        r"its 2 tensors are not an AutoFormer's .*: conv1.weight, fc.weight",
    ),
    "strange-name.pth": (
        lambda _: saved({"a\n" * 1000: torch.ones(2)}),
        r"its 1 tensors are not an AutoFormer's .*: 'a\\na\\na.*\.\.\.",
    ),
    "nni-supernet.pth": (
        lambda _: saved(nni_state(SIZES, blocks="blocks.blocks")),
        "it is NNI's supernet, whose v biases are wrong .*; take NNI's subnet files",
    ),
    "keys.pth": (
        lambda _: saved(
            {
                "blocks.7.fc1.bias": torch.ones(64),
                **{name: value for name, value in state().items() if "norm.weight" not in name},
                "norm.bias": torch.ones(33),
            }
        ),
        r"missing keys blocks\.0\.\S+, blocks\.0\.\S+, \S+ and \d+ more; "
        r"unexpected keys blocks.7.fc1.bias; wrong shapes: norm.bias is \(33,\), expected \(32,\)",
    ),
    "thin-heads.pth": (
        lambda _: saved(state(**{"blocks.1.attn.qkv.bias": torch.ones(3 * 48)})),
        r"blocks.1.attn: q, k and v have 144 rows; expected a multiple of 3 \* 64",
    ),
    "short-tables.pth": (
        lambda _: saved(
            state(**{"blocks.0.attn.rel_pos_embed_k.embeddings_table_v": torch.ones(28, 64)})
        ),
        r"embeddings_table_v is \(28, 64\), expected \(30, 64\)",
    ),
    "no-square.pth": (
        lambda _: saved(state(pos_embed=torch.ones(1, 7, 32))),
        "pos_embed has 7 positions; expected 1 \\+ a square",
    ),
}
