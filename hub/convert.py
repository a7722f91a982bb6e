"""Turn a checkpoint of any known kind into canonical safetensors: `python -m hub.convert FILE OUT`.

A supernet is converted piece by piece, so that memory stays far below the file's size. What was
written is read back and compared bit by bit before it gets its name. Nothing is downloaded here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from autoformer_zoo.cli.command import PROGRAM, run_command
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.checkpoint import (
    SubnetWeights,
    SupernetWeights,
    convert_supernet,
    holds_supernet,
    load_weights,
    save_subnet,
)
from autoformer_zoo.weights.layouts import Layout

PROG = "python -m hub.convert"


@dataclass(frozen=True, slots=True)
class ConvertConfig:
    """Turn a checkpoint of any known kind into a canonical safetensors file.

    Args:
        file: official, PreNAS, NNI subnet or canonical checkpoint.
        out: where the canonical file shall stand; replaced if it exists.
        layout: how q, k and v lie in an official-shaped file; packed_prefix where not given.
        subnet: cut this subnet out: a config in JSON, or a file that holds one.
        origin: where the weights come from, for the header.
        license: their license, for the header.
    """

    file: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]
    layout: Layout | None = None
    subnet: Annotated[str | None, tyro.conf.arg(metavar="JSON")] = None
    origin: str | None = None
    license: str | None = None


def convert(config: ConvertConfig) -> dict[str, object]:
    """Convert one file.

    Returns:
        What was written, JSON-able.

    Raises:
        ValueError: the arguments contradict each other, or the subnet does not fit.
        CheckpointError: the file is refused.
        OSError: a file cannot be read or written.
    """
    _check_paths(config)
    subnet = None if config.subnet is None else _read_subnet(config.subnet)
    notes = _notes(config)
    weights: SupernetWeights | SubnetWeights
    if subnet is None and holds_supernet(config.file):
        weights = convert_supernet(config.file, config.out, config.layout, notes)
        kind, sizes = "supernet", weights.sizes
    else:
        weights = load_weights(config.file, subnet, config.layout)
        weights = replace(weights, metadata={**weights.metadata, **notes})
        save_subnet(weights, config.out)
        kind, sizes = "subnet", weights.subnet
    return {
        "kind": kind,
        "out": str(config.out),
        "size_bytes": config.out.stat().st_size,
        "sizes": sizes.to_dict(),
        "tensors": len(weights.tensors),
        "metadata": dict(weights.metadata),
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command; exit codes as in `run_command`."""
    return run_command(PROGRAM, ConvertConfig, argv, _run, log_level=logging.WARNING)


def _run(config: ConvertConfig) -> None:
    result = convert(config)
    print(f"{result['kind']} of {result['tensors']} tensors written to {result['out']}")
    print(json.dumps(result))


def _check_paths(config: ConvertConfig) -> None:
    if not config.out.parent.is_dir():
        raise ValueError(f"{config.out}: its directory does not exist; make it first")
    if config.out.is_dir():
        raise ValueError(f"{config.out} is a directory; expected the name of a file to write")
    if config.out.exists() and config.file.exists() and config.out.samefile(config.file):
        raise ValueError(f"{config.out} is the input file; expected another name")


def _read_subnet(text: str) -> SubnetConfig:
    if text.lstrip().startswith("{"):
        return SubnetConfig.from_json(text)
    try:
        return SubnetConfig.from_json(Path(text).read_text())
    except UnicodeDecodeError:
        raise ValueError(f"{text} is not a text file; expected a subnet config in JSON") from None


def _notes(config: ConvertConfig) -> dict[str, str]:
    """Return what the header shall say of the origin, the source's hash among it."""
    given = {"origin": config.origin, "license": config.license}
    notes = {key: value for key, value in given.items() if value is not None}
    if config.file.is_file():
        digest = hashlib.sha256()
        with config.file.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        notes["source_sha256"] = digest.hexdigest()
    return notes


if __name__ == "__main__":
    sys.exit(main())
