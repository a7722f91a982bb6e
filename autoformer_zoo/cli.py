"""The command `autoformer-zoo`: list, info, predict, extract, export.

A thin layer: each verb is a dataclass whose fields are its arguments and whose `run` yields lines
of output. What a verb does lives in the package and can be called from Python. Results go to
stdout, everything else to stderr; wrong input is one line there and exit code 2.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from autoformer_zoo import __version__
from autoformer_zoo.checkpoint import (
    CheckpointError,
    SubnetWeights,
    load_supernet,
    save_subnet,
)
from autoformer_zoo.cli_models import LayoutOption, check_output, load_checkpoint, read_config
from autoformer_zoo.describe import describe, known_models
from autoformer_zoo.extract import extract_subnet
from autoformer_zoo.factory import create_model
from autoformer_zoo.onnx_command import Export, iter_onnx_predictions
from autoformer_zoo.predict import iter_predictions
from autoformer_zoo.prediction import Prediction
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.terminal_text import answer_lines, info_lines, list_lines
from autoformer_zoo.usage import parse_arguments

PROGRAM = "autoformer-zoo"
DEFAULT_MODEL = "autoformer_nano"


@dataclass(frozen=True, slots=True)
class List:
    """List the models: size, input, accuracy."""

    filter: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILTER")] = "*"
    """Part of a name, or a pattern with * and ?."""
    json: bool = False
    """Print one JSON array instead of a table."""

    def run(self) -> Iterator[str]:
        """Yield the table, or the JSON array."""
        pattern = self.filter if set(self.filter) & set("*?[") else f"*{self.filter}*"
        names = [name for name in known_models() if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            raise ValueError(f"no model matches {self.filter!r}; `{PROGRAM} list` has them all")
        infos = [describe(name) for name in names]
        if self.json:
            yield json.dumps([info.to_dict() for info in infos])
        else:
            yield from list_lines(infos)


@dataclass(frozen=True, slots=True)
class Info:
    """Show one model: architecture, cost, accuracy, licence, source."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """A model of `list`, with or without a tag (autoformer_tiny.ms_in1k)."""
    json: bool = False
    """Print one JSON object instead of text."""

    def run(self) -> Iterator[str]:
        """Yield the description, or the JSON object."""
        info = describe(self.name)
        if self.json:
            yield json.dumps(info.to_dict())
        else:
            yield from info_lines(info)


@dataclass(frozen=True, slots=True)
class Predict:
    """Say what is on pictures, with probabilities."""

    pictures: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="PICTURE [PICTURE ...]", help_behavior_hint="(one or more)"),
    ]
    """Files, or folders, which are searched for pictures."""
    model: Annotated[
        str | None,
        tyro.conf.arg(metavar="NAME", help_behavior_hint=f"(default: {DEFAULT_MODEL})"),
    ] = None
    """A model of `list`; with --checkpoint, the one whose normalisation and class names hold."""
    checkpoint: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: the model's own)")
    ] = None
    """Weights to use: one subnet, or a supernet, out of which --model is cut; or a .onnx file."""
    layout: LayoutOption = None
    """How q, k and v lie in a supernet's .pth that has no header."""
    top_k: int = 5
    """Answers a picture."""
    batch_size: int = 32
    """Pictures in memory at a time."""
    backend: Literal["torch", "onnxruntime"] = "torch"
    """What runs the network; onnxruntime takes the .onnx file that `export` wrote."""
    device: str = "cpu"
    """Where to run, as PyTorch names it: cpu, cuda, cuda:1, mps; with onnxruntime cpu or cuda."""
    skip_unreadable: bool = False
    """Warn of a picture that cannot be read, and go on."""
    json: bool = False
    """Print one JSON array instead of text."""

    def run(self) -> Iterator[str]:
        """Yield each picture's answers as they come."""
        if not self.pictures:
            raise ValueError("no picture was given; expected files or folders")
        if self.backend == "onnxruntime":
            if self.model is not None or self.layout is not None:
                raise ValueError(
                    "--model and --layout are for torch: the .onnx file says all of itself"
                )
            answers = iter_onnx_predictions(
                self.checkpoint,
                self.pictures,
                self.top_k,
                self.batch_size,
                self.device,
                self.skip_unreadable,
            )
        else:
            answers = self._run_torch()
        yield from _json_array(answers) if self.json else answer_lines(answers)

    def _run_torch(self) -> Iterator[list[Prediction]]:
        if self.checkpoint is not None and self.checkpoint.suffix == ".onnx":
            raise ValueError(f"{self.checkpoint} is an ONNX file: give --backend onnxruntime")
        if self.checkpoint is not None:
            model = load_checkpoint(self.checkpoint, self.model, self.layout)
        elif self.layout is not None:
            raise ValueError("--layout describes a file: give --checkpoint with it")
        else:
            model = create_model(self.model or DEFAULT_MODEL, pretrained=True)
        return iter_predictions(
            model.eval(),
            self.pictures,
            self.top_k,
            self.batch_size,
            self.device,
            self.skip_unreadable,
        )


@dataclass(frozen=True, slots=True)
class Extract:
    """Cut a subnet out of a supernet and write it as safetensors."""

    supernet: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SUPERNET")]
    """The supernet's file: official, PreNAS or canonical."""
    config: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG.json")]
    """The subnet: {"depth": ..., "embed_dim": ..., "num_heads": [...], "mlp_ratio": [...]}."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.safetensors")]
    """The file to write; one that is there is replaced."""
    layout: LayoutOption = None
    """How q, k and v lie in a .pth: packed_prefix (official) or packed_interleaved (PreNAS)."""
    img_size: Annotated[
        int | None,
        tyro.conf.arg(metavar="PIXELS", help_behavior_hint="(default: the supernet's)"),
    ] = None
    """Input side in pixels."""
    json: bool = False
    """Print one JSON object instead of text."""

    def run(self) -> Iterator[str]:
        """Write the file and yield what was written."""
        check_output(self.out, (self.supernet, self.config))
        subnet = read_config(self.config)
        weights = _extract(self.supernet, subnet, self.layout, self.img_size)
        save_subnet(weights, self.out)
        params = sum(tensor.numel() for tensor in weights.tensors.values())
        written = {
            "path": str(self.out),
            "size_bytes": self.out.stat().st_size,
            "params": params,
            "img_size": list(weights.img_size),
            "num_classes": weights.num_classes,
            "subnet": subnet.to_dict(),
        }
        if self.json:
            yield json.dumps(written)
        else:
            yield f"{self.out}: {params:,} parameters, {written['size_bytes']:,} bytes"


Command = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Extract, tyro.conf.subcommand("extract")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the program's name; None takes the process'.

    Returns:
        Exit code: 0, 2 for wrong input, 130 for Ctrl-C, 141 where the reader of stdout went away.
    """
    try:
        with _logs_on_stderr():
            _run(sys.argv[1:] if argv is None else argv)
    except SystemExit as stop:  # tyro's, after --help
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Else the interpreter flushes into the closed pipe once more when it ends, and complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, CheckpointError) as error:
        print(f"{PROGRAM}: {_encodable(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    return 0


def _run(argv: Sequence[str]) -> None:
    if list(argv) == ["--version"]:
        print(f"{PROGRAM} {__version__}")
    else:
        for line in _parse(argv).run():
            print(_encodable(line), flush=True)  # a picture's answer shows when it is there
    sys.stdout.flush()


def _parse(argv: Sequence[str]) -> Command:
    """Turn arguments into a verb."""

    def parse() -> Command:
        return tyro.cli(
            Command,
            prog=PROGRAM,
            description="AutoFormer models: see, try, cut, export. --version says which.",
            args=list(argv),
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        )

    return parse_arguments(parse, PROGRAM)


@contextlib.contextmanager
def _logs_on_stderr() -> Iterator[None]:
    """Show the package's warnings on stderr while a command runs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{PROGRAM}: %(message)s"))
    logger = logging.getLogger("autoformer_zoo")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _encodable(text: str) -> str:
    """Escape what the terminal's encoding has no character for: file names may hold anything."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _extract(
    path: Path, subnet: SubnetConfig, layout: str | None, img_size: int | None
) -> SubnetWeights:
    supernet = load_supernet(path, layout)
    model = extract_subnet(supernet, subnet, img_size)
    return SubnetWeights(
        tensors=model.state_dict(),
        subnet=subnet,
        img_size=model.patch_embed.img_size,
        patch_size=supernet.patch_size,
        in_chans=supernet.in_chans,
        num_classes=supernet.num_classes,
        metadata=supernet.metadata,
    )


def _json_array(answers: Iterator[list[Prediction]]) -> Iterator[str]:
    """Give one JSON array, an element a line, without holding it all."""
    opening = "["
    for predictions in answers:
        top = [
            {"label": p.label, "index": p.index, "probability": p.probability} for p in predictions
        ]
        yield f"{opening}{json.dumps({'picture': predictions[0].picture, 'top': top})}"
        opening = ","
    yield "]" if opening == "," else "[]"


if __name__ == "__main__":
    sys.exit(main())
