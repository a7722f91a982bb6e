"""Turn a checkpoint of any known kind into canonical safetensors.

    python -m hub.convert supernet-tiny.pth tiny.safetensors --layout packed_prefix

What was written is read back and compared bit by bit before it gets its name. Nothing is
downloaded here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from autoformer_zoo.cli.command import run_command
from autoformer_zoo.cli.inputs import read_config
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.files import check_output
from autoformer_zoo.weights.layouts import Layout
from autoformer_zoo.weights.pretrained import convert, open_weights

PROG = "python -m hub.convert"


@dataclass(frozen=True, slots=True)
class ConvertConfig:
    """Turn a checkpoint of any known kind into a canonical safetensors file.

    Args:
        file: official, PreNAS, NNI subnet or canonical checkpoint.
        out: canonical file to write; replaced if it exists.
        layout: packing of q, k and v in an official-shaped file; packed_prefix by default.
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


def convert_file(config: ConvertConfig) -> dict[str, object]:
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
    checkpoint = open_weights(config.file, config.layout)
    weights = convert(checkpoint, config.out, _notes(config), subnet)
    return {
        "kind": "supernet" if checkpoint.is_supernet and subnet is None else "subnet",
        "out": str(config.out),
        "size_bytes": config.out.stat().st_size,
        "sizes": weights.net.sizes.to_dict(),
        "tensors": len(weights.tensors),
        "metadata": dict(weights.metadata),
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command; exit codes as in `run_command`."""
    return run_command(PROG, ConvertConfig, argv, _run, log_level=logging.WARNING)


def _run(config: ConvertConfig) -> None:
    result = convert_file(config)
    print(f"{result['kind']} of {result['tensors']} tensors written to {result['out']}")
    print(json.dumps(result))


def _read_subnet(text: str) -> SubnetConfig:
    return SubnetConfig.from_json(text) if text.lstrip()[:1] == "{" else read_config(Path(text))


def _notes(config: ConvertConfig) -> dict[str, str]:
    """Return what the header will record about the origin."""
    given = {"origin": config.origin, "license": config.license}
    notes = {key: value for key, value in given.items() if value is not None}
    if config.file.exists():  # otherwise it is the name of a model
        notes["source_sha256"] = hashlib.sha256(config.file.read_bytes()).hexdigest()
    return notes


if __name__ == "__main__":
    sys.exit(main())
