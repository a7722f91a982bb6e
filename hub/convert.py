"""Turn a checkpoint of any known kind into canonical safetensors.

    python -m hub.convert supernet-tiny.pth tiny.safetensors --layout packed_prefix
    python -m hub.convert autoformer_nano nano.safetensors --dtype fp16
    python -m hub.convert --all DOWNLOADS ZOO

What was written is read back and compared bit by bit before it gets its name. `--all` downloads
nothing: it takes the upstream files that are in a folder, see `find_upstream`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import torch
import tyro
from tqdm import tqdm

from autoformer_zoo.cli.command import option, run_command
from autoformer_zoo.cli.inputs import read_config
from autoformer_zoo.models.factory import build_subnet
from autoformer_zoo.onnx.check import made_inputs
from autoformer_zoo.published import MODELS
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.checkpoint import (
    Checkpoint,
    CheckpointError,
    SubnetWeights,
    SupernetWeights,
    open_checkpoint,
)
from autoformer_zoo.weights.files import check_output
from autoformer_zoo.weights.header import cfg_to_notes
from autoformer_zoo.weights.layouts import Layout
from autoformer_zoo.weights.pretrained import convert, open_weights
from autoformer_zoo.weights.sources import SOURCES, UpstreamFile
from hub.checksums import sha256

PROG = "python -m hub.convert"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
COMPARED = 8  # made inputs whose logits are compared

Dtype = Literal["fp16", "bf16"]


@dataclass(frozen=True, slots=True)
class ConvertConfig:
    """Turn a checkpoint of any known kind into a canonical safetensors file.

    Args:
        file: official, PreNAS, NNI, MMRazor or canonical checkpoint; the name of a model of
            `autoformer-zoo list` or of a file of `python -m hub.sources`; with --all, a folder of
            upstream files.
        out: canonical file to write; replaced if it exists. With --all, a folder.
        all: make every model and supernet whose upstream file is in the folder; what is done is
            left as it is.
        dtype: round the weights to 16 bits, and print what that changes in the logits.
        layout: packing of q, k and v in an official-shaped file; packed_prefix by default.
        subnet: cut this subnet out: a config in JSON, or a file that holds one.
        origin: where the weights come from, for the header.
        license: their license, for the header.
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE|NAME|FOLDER")]
    out: tyro.conf.Positional[Path]
    all: bool = False
    dtype: Annotated[Dtype | None, option("{fp16,bf16}", "(default: as stored)")] = None
    layout: Layout | None = None
    subnet: Annotated[str | None, tyro.conf.arg(metavar="JSON")] = None
    origin: str | None = None
    license: str | None = None


@dataclass(frozen=True, slots=True)
class RoundingLoss:
    """What rounding the weights changes, measured on made inputs.

    Args:
        max_difference: largest difference of a logit.
        largest_logit: largest absolute logit, to compare with.
        top1_agreement: share of inputs with the same best class, 0 to 1.
    """

    max_difference: float
    largest_logit: float
    top1_agreement: float


def convert_file(config: ConvertConfig) -> dict[str, Any]:
    """Convert one file.

    Returns:
        A JSON-able description of the file written.

    Raises:
        ValueError: the arguments contradict each other, or the subnet does not fit.
        CheckpointError: the file is refused.
        OSError: a file cannot be read or written.
    """
    check_output(config.out, (config.file,))
    subnet = None if config.subnet is None else _read_subnet(config.subnet)
    checkpoint = _open(config.file, config.layout)
    return write_checkpoint(checkpoint, config.out, _notes(config), subnet, config.dtype)


def write_checkpoint(
    checkpoint: Checkpoint,
    out: Path,
    notes: Mapping[str, str],
    subnet: SubnetConfig | None = None,
    dtype: Dtype | None = None,
) -> dict[str, Any]:
    """Write what a checkpoint holds, or a subnet of it, and describe the file.

    Args:
        checkpoint: an opened one.
        out: the file to write.
        notes: for the header.
        subnet: what to cut out of a supernet; None writes all of it.
        dtype: 16-bit format to round to; None keeps the stored one.

    Returns:
        A JSON-able description; with `dtype`, "loss" in it is a `RoundingLoss`.

    Raises:
        ValueError: the subnet does not fit.
        CheckpointError: the values are refused.
        OSError: the file cannot be written.
    """
    weights = convert(checkpoint, out, notes, subnet, DTYPES[dtype] if dtype else None)
    written: dict[str, Any] = {
        "kind": "supernet" if isinstance(weights, SupernetWeights) else "subnet",
        "out": str(out),
        "size_bytes": out.stat().st_size,
        "sizes": weights.net.sizes.to_dict(),
        "tensors": len(weights.tensors),
        "metadata": dict(weights.metadata),
    }
    if dtype:
        exact = checkpoint.subnet(weights.net.sizes)
        rounded = weights.cut(weights.sizes) if isinstance(weights, SupernetWeights) else weights
        written["loss"] = asdict(rounding_loss(exact, rounded))
    return written


def rounding_loss(exact: SubnetWeights, rounded: SubnetWeights) -> RoundingLoss:
    """Compare the logits of two sets of weights of one network, both computed in float32."""
    images = torch.from_numpy(made_inputs(COMPARED, exact.img_size, exact.in_chans))
    with torch.no_grad():
        expected, found = (build_subnet(weights)(images) for weights in (exact, rounded))
    return RoundingLoss(
        float((found - expected).abs().max()),
        float(expected.abs().max()),
        float((found.argmax(1) == expected.argmax(1)).float().mean()),
    )


def convert_all(folder: Path, out: Path, dtype: Dtype | None = None) -> dict[str, Any]:
    """Make every model of the zoo, and every supernet, whose upstream file is in a folder.

    A file that is there, whole, and made from the same upstream file in the same format is left as
    it is, so a run that was stopped goes on where it was.

    Args:
        folder: upstream files, see `find_upstream`.
        out: folder to write to, made if necessary: `MODEL.TAG.safetensors` and
            `SOURCE.safetensors`.
        dtype: 16-bit format to round to.

    Returns:
        A JSON-able dict: for each name in `made` a description, in `kept` those that were done, in
        `missing` and `failed` the reason.

    Raises:
        ValueError: `folder` is no folder.
        OSError: `out` cannot be made.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected one with upstream files")
    out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"made": {}, "kept": [], "missing": {}, "failed": {}}
    targets = list(_targets())
    for source, names in tqdm(targets, unit="file", disable=None, file=sys.stderr):
        try:
            file = find_upstream(folder, source)
        except ValueError as error:
            result["missing"].update(dict.fromkeys(names, str(error)))
            continue
        try:
            checkpoint = open_checkpoint(file).assuming(source.layout)
        except CheckpointError as error:
            result["failed"].update(dict.fromkeys(names, str(error)))
            continue
        digest, dtypes = sha256(file), {DTYPES[dtype]} if dtype else _dtypes(checkpoint)
        for name, subnet in names.items():
            path = out / f"{name}.safetensors"
            if _is_done(path, digest, dtypes):
                result["kept"].append(name)
                continue
            try:
                notes = _source_notes(source, digest, name)
                result["made"][name] = write_checkpoint(checkpoint, path, notes, subnet, dtype)
            except (CheckpointError, ValueError) as error:
                result["failed"][name] = str(error)
    return result


def find_upstream(folder: Path, source: UpstreamFile) -> Path:
    """Return a source's file in a folder: `official-tiny.pth`, or `official/supernet-tiny.pth`.

    The upstream name alone is enough where no other source has it.

    Raises:
        ValueError: there is none; the text has the names that would do.
    """
    upstream = Path(urlsplit(source.url).path).name
    family = source.name.partition("-")[0]
    names = [f"{source.name}{suffix}" for suffix in (".safetensors", ".pth")]
    names.append(f"{family}/{upstream}")
    same = [each for each in SOURCES.values() if urlsplit(each.url).path.endswith(f"/{upstream}")]
    if len(same) == 1:
        names.append(upstream)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"not in {folder}; expected {', '.join(names[:-1])} or {names[-1]}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; exit codes as in `run_command`, 1 if `--all` could not make a file."""
    return run_command(
        PROG,
        ConvertConfig,
        argv,
        _run,
        config=(tyro.conf.FlagCreatePairsOff,),
        log_level=logging.WARNING,
    )


def _run(config: ConvertConfig) -> int:
    if config.all:
        given = (config.layout, config.subnet, config.origin, config.license)
        if any(value is not None for value in given):
            raise ValueError(
                "--all takes layout, subnets, origin and license from the tables: leave them out"
            )
        result = convert_all(config.file, config.out, config.dtype)
        for name, written in result["made"].items():
            print(f"{name}: {written['size_bytes']:,} bytes{_loss_text(written)}")
        for name in result["kept"]:
            print(f"{name}: was there")
        for kind in ("missing", "failed"):
            for name, reason in result[kind].items():
                print(f"{name}: {kind}, {reason}")
        print(json.dumps(result))
        return 1 if result["failed"] or not (result["made"] or result["kept"]) else 0
    result = convert_file(config)
    print(
        f"{result['kind']} of {result['tensors']} tensors written to {result['out']}"
        f"{_loss_text(result)}"
    )
    print(json.dumps(result))
    return 0


def _loss_text(written: Mapping[str, Any]) -> str:
    if "loss" not in written:
        return ""
    loss = RoundingLoss(**written["loss"])
    return (
        f"; logits change by at most {loss.max_difference:.2g} of {loss.largest_logit:.2g}, "
        f"{100 * loss.top1_agreement:.0f} % keep their best class"
    )


def _targets() -> Iterator[tuple[UpstreamFile, dict[str, SubnetConfig | None]]]:
    """Yield each source with the files to make of it: the supernet, and the models cut from it."""
    for source in SOURCES.values():
        names: dict[str, SubnetConfig | None] = (
            {source.name: None} if source.kind == "supernet" else {}
        )
        for model, spec in MODELS.items():
            names |= {
                f"{model}.{tag}": spec.subnet
                for tag, weights in spec.weights.items()
                if weights.source == source.name
            }
        yield source, names


def _source_notes(source: UpstreamFile, digest: str, name: str) -> dict[str, str]:
    model = name.partition(".")[0]
    data = MODELS[model].data if model in MODELS else {}
    return {
        **cfg_to_notes(data),
        "origin": source.summary,
        "license": source.license_text,
        "source_url": source.url,
        "source_sha256": digest,
    }


def _dtypes(checkpoint: Checkpoint) -> set[torch.dtype]:
    return {tensor.dtype for tensor in checkpoint.upstream.values()}


def _is_done(path: Path, digest: str, dtypes: set[torch.dtype]) -> bool:
    if not path.is_file():
        return False
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError:
        return False
    is_same = checkpoint.metadata.get("source_sha256") == digest
    return is_same and _dtypes(checkpoint) == dtypes


def _open(file: Path, layout: Layout | None) -> Checkpoint:
    """Open a file, or what stands behind the name of a model or of a source."""
    source = SOURCES.get(str(file))
    if source is None or file.is_file():
        return open_weights(file, layout)
    tagged = (f"{model}.{tag}" for model, spec in MODELS.items() for tag in spec.weights)
    of_source = {
        MODELS[name.partition(".")[0]].weights[name.partition(".")[2]].source: name
        for name in reversed(list(tagged))
    }
    return open_weights(of_source[source.name], layout)


def _read_subnet(text: str) -> SubnetConfig:
    return SubnetConfig.from_json(text) if text.lstrip()[:1] == "{" else read_config(Path(text))


def _notes(config: ConvertConfig) -> dict[str, str]:
    """Return what the header will record about the origin."""
    given = {"origin": config.origin, "license": config.license}
    notes = {key: value for key, value in given.items() if value is not None}
    if config.file.is_file():  # otherwise it is the name of a model
        notes["source_sha256"] = sha256(config.file)
    return notes


if __name__ == "__main__":
    sys.exit(main())
