"""Files of tensors: the one place where checkpoints are opened, and the one where they are written.

A checkpoint may come from anywhere, so reading trusts nothing: the content decides the format,
pickles are read by torch's weights-only unpickler with one addition to its allow-list, and every
refusal is one line. `layouts.py` and `checkpoint.py` interpret the tensors.

Tensors are mapped from the file, not copied: cutting a subnet reads only what it needs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

# Training checkpoints of the official code hold the command line's arguments beside the weights.
ALLOWED_GLOBALS: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
    argparse.Namespace
]
# Entries of a training checkpoint that hold weights; the first that is there is taken. Averaged
# weights come first, as in timm: they are the ones that were evaluated.
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
CONTAINERS = (
    *AVERAGED,
    *("state_dict", "model", "model_state_dict", "module", "net", "network", "weights", "teacher"),
)
COUNTERS = ("n_averaged", "steps")  # of averaged models, in PyTorch and in MMEngine
MAX_NESTING = 4  # of containers: a pickle may contain itself
# Parts of names that torch.compile, FSDP and activation checkpointing insert anywhere.
WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Of a safetensors file: a supernet has 40 kB. 32 MB of empty tensors took 12 s and 0.8 GB.
MAX_HEADER_BYTES = 1 << 20
MAX_REFUSAL = 600  # characters: names of tensors come from the file, and may be anything

Shape = tuple[int, ...]


_log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A file of weights was refused: one line with the file's name and the reason."""


def refusal(source: str | os.PathLike[str], reason: object) -> CheckpointError:
    """Return the error for a refused source, as one line of at most `MAX_REFUSAL` characters."""
    text = " ".join(str(reason).split())
    cut = text if len(text) <= MAX_REFUSAL else text[: MAX_REFUSAL - 3] + "..."
    return CheckpointError(f"{source}: {cut}")


def shown(name: object) -> str:
    """Return a tensor's name for a one-line message, whatever characters a file has put in it."""
    text = str(name)
    return text if text.isprintable() and len(text) <= 80 else f"{text[:60]!r}..."


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the weights of a safetensors file or a torch checkpoint, executing nothing.

    Of a training checkpoint only the weights are taken, see `take_weights`.

    Args:
        path: the file; its ending does not matter.

    Returns:
        Tensors as stored (float16 stays float16), mapped from the file where its format allows
        that, and the text metadata of a safetensors file.

    Raises:
        CheckpointError: the file is missing, damaged, would run code, or holds something other than
            named floating-point tensors.
    """
    path = Path(path)
    try:
        kind = _sniff(path)
        size = path.stat().st_size
        metadata: dict[str, str] = {}
        if kind == "safetensors":
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                content: object = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            content = _read_pickle(path, kind == "zip")
    except CheckpointError:
        raise
    except OSError as error:
        raise refusal(path, error.strerror or error) from None
    except SafetensorError as error:
        raise refusal(path, f"damaged or truncated safetensors file ({error})") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise refusal(path, _pickle_reason(error)) from None
    tensors = take_weights(content, path)
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if claimed > size:
        raise refusal(
            path,
            f"its tensors claim {claimed} bytes, more than the file's {size}: views are refused",
        )
    return tensors, metadata


def take_weights(content: object, source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Find the named tensors in what a checkpoint holds.

    Of several containers the first of `CONTAINERS` is taken. The names' common prefix ("model.",
    "module.", ...) and what wrappers insert are dropped, and so are counters of averaged models.

    Args:
        content: a state dict, or a training checkpoint with one inside.
        source: name for messages.

    Raises:
        CheckpointError: there are none, or something else is among them.
    """
    weights = content
    for _ in range(MAX_NESTING):
        if not isinstance(weights, Mapping):
            raise refusal(
                source, f"holds a {type(weights).__name__}; expected a state dict of named tensors"
            )
        found = [key for key in CONTAINERS if isinstance(weights.get(key), Mapping)]
        if not found:
            break
        key = next((key for key in found if weights[key]), found[0])
        if len(found) > 1:
            _log.info("%s: the weights in %s are taken; it also has %s", source, key, found)
        weights = weights[key]
    assert isinstance(weights, Mapping)
    if not weights:
        raise refusal(source, "its state dict is empty")
    if weights is content and not any(isinstance(value, Tensor) for value in weights.values()):
        names = ", ".join(shown(key) for key in list(weights)[:6])
        raise refusal(
            source, f"has no model weights in it, only {names}; expected one of {CONTAINERS}"
        )
    named = {k: v for k, v in weights.items() if str(k).rpartition(".")[2] not in COUNTERS}
    for name, value in named.items():
        if problem := _value_problem(name, value):
            raise refusal(source, f"{shown(name)} {problem}")
    return {name: value.detach() for name, value in _unwrapped(named).items()}


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file under a temporary name, read it back, and only then rename it.

    Args:
        path: the file; one that exists is replaced at once.
        tensors: by name; views and shared storage are fine.
        metadata: text for the header.

    Raises:
        CheckpointError: what was read back differs from `tensors`.
        OSError: the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    # safetensors refuses views; cloned one by one they also share no storage.
    whole = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    try:
        # Not save_file: it makes files that only their owner may read (seen with safetensors 0.8).
        with partial.open("wb") as file:
            file.writelines(_in_order(save(whole, dict(metadata))))
        back = load_file(partial)
        different = whole.keys() ^ back.keys()
        different |= {n for n in whole.keys() & back.keys() if not same_bits(whole[n], back[n])}
        if different:
            raise refusal(path, f"was written wrongly: {min(different)} came back different")
        del back  # it is mapped from the file, which Windows would not rename
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def exactly() -> torch.autocast:
    """Return a context in which weights keep their type though the caller uses autocast."""
    return torch.autocast("cpu", enabled=False)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return True if two tensors agree in type, shape and every bit."""
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(_bytes_of(one), _bytes_of(other))
    )


def is_finite(tensor: Tensor) -> bool:
    """Return True if no value is NaN or infinite."""
    # The sum is finite in nearly all cases, and costs one pass and no memory.
    total = tensor.sum(dtype=torch.float32 if tensor.element_size() < 4 else None)
    return bool(total.isfinite()) or bool(tensor.isfinite().all())


def _sniff(path: Path) -> str:
    """Return the format, judged by the first bytes: "safetensors", "zip" or "pickle"."""
    if path.is_dir():
        raise refusal(path, "is a directory; expected a file of weights")
    if path.exists() and not path.is_file():
        raise refusal(path, "is not a regular file")
    with path.open("rb") as file:
        head = file.read(512)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise refusal(path, "is empty; the download or copy did not finish")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if len(head) > 8 and head[8:9] == b"{":
        length = int.from_bytes(head[:8], "little")
        if length > MAX_HEADER_BYTES:
            raise refusal(
                path, f"its header claims {length} bytes; at most {MAX_HEADER_BYTES} are read"
            )
        return "safetensors"
    if head.startswith(b"\x80"):
        return "pickle"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        raise refusal(path, "is a web page, not a checkpoint; the download was refused")
    if text.startswith(b"version https://git-lfs"):
        raise refusal(path, "is a Git LFS pointer, not a checkpoint; run git lfs pull")
    raise refusal(
        path, f"is neither safetensors nor a torch checkpoint; it starts with {head[:12]!r}"
    )


def _read_pickle(path: Path, is_zip: bool) -> object:
    if is_zip:
        _check_archive(path)
    with torch.serialization.safe_globals(ALLOWED_GLOBALS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd content is refused afterwards
        # torch.load takes any file whose name ends in .safetensors for safetensors.
        if is_zip and path.suffix != ".safetensors":
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)


def _check_archive(path: Path) -> None:
    """Refuse what torch.save never writes, before torch looks at it."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # a damaged directory can raise nearly anything
        raise refusal(path, f"damaged or truncated zip archive ({error})") from None
    names = [entry.filename.rpartition("/")[2] for entry in entries]
    if "data.pkl" not in names:
        raise refusal(path, "is a zip archive, but not one that torch.save wrote")
    if "constants.pkl" in names:
        raise refusal(path, "is a TorchScript program; expected a state dict")
    stored = sum(entry.file_size for entry in entries)
    is_packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if is_packed or stored > path.stat().st_size:
        raise refusal(path, "is a compressed zip archive; torch.save writes none")


def _pickle_reason(error: Exception) -> str:
    text = str(error)
    if match := re.search(r"GLOBAL (\S+)", text):
        return f"its pickle asks for {shown(match[1])}, which could run code; it was not executed"
    if "Weights only load failed" in text:
        detail = text.partition("WeightsUnpickler error:")[2].strip().split("\n")[0]
        return f"its pickle is damaged or could run code; it was not executed ({detail[:120]})"
    return f"damaged or truncated torch checkpoint ({type(error).__name__}: {text[:120]})"


def _value_problem(name: object, value: object) -> str | None:
    if not isinstance(name, str):
        return f"is a key of type {type(name).__name__}; expected names"
    if type(value) not in (Tensor, nn.Parameter):
        return f"is a {type(value).__name__}; expected a tensor"
    assert isinstance(value, Tensor)
    if value.layout != torch.strided or value.device.type == "meta" or value.is_nested:
        return f"is a {value.layout} tensor on {value.device}; expected a plain one"
    if value.dtype not in DTYPES:
        kinds = ", ".join(map(str, DTYPES))
        return f"is of type {value.dtype}; expected one of {kinds}"
    return None


def _unwrapped(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    plain = {
        ".".join(part for part in name.split(".") if part not in WRAPPERS): value
        for name, value in weights.items()
    }
    if len(plain) == len(
        weights
    ):  # else two names became one, and the reader refuses the originals
        weights = plain
    # A network's own names have no prefix in common.
    while len({name.partition(".")[0] for name in weights}) == 1 < len(weights):
        weights = {name.partition(".")[2]: value for name, value in weights.items()}
    return weights


def _in_order(content: bytes) -> tuple[bytes, memoryview]:
    """Sort the metadata of a safetensors file; returns the file in two pieces.

    safetensors' own order changes from call to call, and equal weights must make equal files.
    """
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start aligned
    return len(text).to_bytes(8, "little") + text, memoryview(content)[8 + size :]


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def check_output(
    out: Path, inputs: Sequence[Path] = (), suffixes: Sequence[str] = (), make_folder: bool = False
) -> None:
    """Check before the work starts that a result can be written.

    Args:
        out: the file to write.
        inputs: files that are read; `out` must not be one of them.
        suffixes: what the name may end in; any by default.
        make_folder: True if the folder will be made.

    Raises:
        ValueError: the name or the folder cannot be used.
    """
    if suffixes and out.suffix not in suffixes:
        raise ValueError(f"{out}: expected a file name that ends in {' or '.join(suffixes)}")
    if out.is_dir():
        raise ValueError(f"{out} is a folder; expected the name of a file")
    if out.exists() and any(path.exists() and out.samefile(path) for path in inputs):
        raise ValueError(f"{out} is an input as well; give the result another name")
    if out.parent.is_dir():
        try:  # by doing it: permissions say nothing of a full disk, and to root nothing at all
            tempfile.TemporaryFile(dir=out.parent).close()
        except OSError as error:
            raise ValueError(f"cannot write to the folder {out.parent}: {error.strerror}") from None
    elif not make_folder:
        raise ValueError(f"the folder {out.parent} does not exist; make it first")
