"""Make a folder that timm and transformers open, ready for the Hub: `python -m hub.folder`.

    python -m hub.folder autoformer_nano nano --repo USER/NAME --supernet
    python -m hub.folder subnet.safetensors folder --repo USER/NAME

In it are config.json and model.safetensors as timm writes them, with the subnet and the class
names; golden.safetensors, an input and its logits; README.md, the card; with --supernet,
supernet.safetensors; and SHA256SUMS. `hub.verify` checks it, `hub.publish` uploads it.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from autoformer_zoo.cli.command import option, run_command
from autoformer_zoo.cli.inputs import load_model, read_config
from autoformer_zoo.models.factory import create_model, save_for_hf
from autoformer_zoo.onnx.check import made_inputs
from autoformer_zoo.published import MODELS, find_model, without_slice
from autoformer_zoo.weights.checkpoint import Checkpoint, save_supernet
from autoformer_zoo.weights.files import write_tensors
from autoformer_zoo.weights.hub import SUPERNET
from autoformer_zoo.weights.layouts import Architecture
from autoformer_zoo.weights.pretrained import open_weights
from hub.card import CardFacts, make_card
from hub.checksums import write_sums
from hub.verify import GOLDEN

PROG = "python -m hub.folder"
GOLDEN_BATCH = 2


@dataclass(frozen=True, slots=True)
class FolderConfig:
    """Make a folder that timm and transformers open, ready for the Hub.

    Args:
        source: a model of `autoformer-zoo list`, or a file of weights.
        out: the folder to make; must not exist.
        repo: USER/NAME that it will have on the Hub, for the card.
        subnet: cut this subnet out of the supernet: a file with its config.
        supernet: include the supernet.
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME|FILE")]
    out: tyro.conf.Positional[Path]
    repo: str = "USER/NAME"
    subnet: Annotated[Path | None, option("CONFIG.json", "(default: the model's own)")] = None
    supernet: bool = False


def make_folder(config: FolderConfig) -> list[str]:
    """Make the folder under a temporary name, and rename it when it is complete.

    Returns:
        The names of its files.

    Raises:
        ValueError: an argument is refused, or `out` exists.
        CheckpointError: the weights are missing or refused.
        OSError: a file cannot be written.
    """
    out = config.out
    if out.exists():
        raise ValueError(f"{out} exists; give the name of a new folder")
    if not out.parent.is_dir():
        raise ValueError(f"the folder {out.parent} does not exist; make it first")
    subnet = None if config.subnet is None else read_config(config.subnet)
    is_file = Path(config.source).is_file()
    name = config.source
    if is_file:
        model: Any = load_model(Path(name), None, None, subnet)
    else:
        _, spec, tag = find_model(without_slice(name))
        name = f"{name.partition('.')[0]}.{tag or next(iter(spec.weights), '')}".rstrip(".")
        model = create_model(name, pretrained=True, subnet=subnet)
    checkpoint = open_weights(name)
    if config.supernet and not checkpoint.is_supernet:
        raise ValueError(f"{name} holds one subnet: leave --supernet out")
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work:
        folder = Path(work, "folder")
        # Figures of a registered model are of its own weights and subnet alone.
        title = f"AutoFormer {out.name}" if is_file or subnet else name
        facts = _facts(title, config, model.eval(), checkpoint)
        _write(folder, model, checkpoint if config.supernet else None, facts)
        files = sorted(path.name for path in folder.iterdir())
        folder.rename(out)
    return files


def _write(folder: Path, model: Any, supernet: Checkpoint | None, facts: CardFacts) -> None:
    save_for_hf(model, folder)
    channels, images = model.in_chans, model.patch_embed.img_size
    inputs = torch.from_numpy(made_inputs(GOLDEN_BATCH, images, channels))
    with torch.no_grad():
        golden = {"input": inputs, "logits": model(inputs)}
    write_tensors(folder / GOLDEN, golden, {})
    if supernet is not None:
        save_supernet(supernet.supernet(), folder / SUPERNET)
    (folder / "README.md").write_text(make_card(facts), encoding="utf-8")
    write_sums(folder)


def _facts(title: str, config: FolderConfig, model: Any, checkpoint: Checkpoint) -> CardFacts:
    net: Architecture = replace(
        checkpoint.architecture,
        sizes=model.cfg,
        img_size=tuple(model.patch_embed.img_size),
        num_classes=model.num_classes,
    )
    name, _, tag = title.partition(".")
    weights = MODELS[name].weights.get(tag) if name in MODELS else None
    cfg = model.pretrained_cfg or {}
    notes = cfg.get("notes") or ()
    return CardFacts(
        title,
        config.repo,
        net,
        config.supernet,
        origin=notes if isinstance(notes, str) else "; ".join(notes),
        license=cfg.get("license") or "",
        published=weights.published if weights else None,
        measured=weights.measured if weights else None,
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; exit codes as in `run_command`."""
    return run_command(
        PROG,
        FolderConfig,
        argv,
        _run,
        config=(tyro.conf.FlagCreatePairsOff,),
        log_level=logging.WARNING,
    )


def _run(config: FolderConfig) -> None:
    files = make_folder(config)
    print(f"{config.out}: {', '.join(files)}")
    print(json.dumps({"out": str(config.out), "files": files}))


if __name__ == "__main__":
    sys.exit(main())
