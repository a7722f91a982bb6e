"""Train a supernet, or one subnet alone.

    python -m training.train --data-dir DATA --out runs/cifar10                 # preset cifar10
    python -m training.train --data-dir DATA --out runs/try --preset smoke --sampling sandwich
    torchrun --nproc-per-node 2 -m training.train --data-dir DATA --out runs/two

The run directory holds config.json, environment.json, log.jsonl, timing.jsonl, two checkpoints and,
in the end, curve.svg and the averaged weights.safetensors. The same command goes on where a stopped
run was. What happens in a step follows from the config and the step's number, so a resumed run
computes what an undisturbed one would have.

Source: arXiv 2107.00651, section 3.3.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from autoformer_zoo.published import find_space
from training.config import DEFAULT_RESOURCES, Precision, Resources, TrainConfig, space_of
from training.data.classes import check_classes
from training.data.open import open_source
from training.engine.loop import make_context, make_state, resume, run_steps, write_held_out
from training.engine.step import RunState
from training.engine.weights import write_weights
from training.presets import PRESETS
from training.run.checkpoints import load_checkpoint
from training.run.command import run_command, value_of
from training.run.directory import open_run
from training.run.distributed import join

__all__ = ["RunState", "find_space", "load_checkpoint", "train"]


def train(
    config: TrainConfig,
    data_dir: Path,
    out: Path,
    progress: bool = True,
    stop_at: int | None = None,
    resources: Resources = DEFAULT_RESOURCES,
) -> RunState:
    """Train what `config` describes, going on from `out` where it holds a run.

    Args:
        config: what to train and how.
        data_dir: the root of the data.
        out: the run directory; one that all processes see, where there are several.
        progress: show a progress bar.
        stop_at: step to stop at, with a checkpoint; None for the end.
        resources: device, workers and the like.

    Returns:
        The state after the last step. `network` and `ema.module` have the weights; `weights` of
        each is an `AutoFormer` of the supernet's size, or of the fixed subnet's.

    Raises:
        ValueError: `out` holds a run of another config, or the config cannot be followed.
        FileNotFoundError: the data, or the run to start from, is not there.
        CheckpointError: weights to start from, or all checkpoints of `out`, are damaged.
        DivergedError: losses stay infinite or NaN.
        LostProcessError: another process ended.
        OSError: a file cannot be written.
        SystemExit: SIGTERM or SIGINT came; a checkpoint was written. Codes 143 and 130.
    """
    ranks = join(config, resources)
    config = replace(config, precision=resolve_precision(config.precision, ranks.device))
    source = ranks.together(lambda: open_source(config, data_dir, ranks, resources))
    ranks.by_first(lambda: check_classes(source.class_names, out))
    if source.num_classes != space_of(config).num_classes:
        config = replace(config, num_classes=source.num_classes)
    state = ranks.together(lambda: make_state(config, ranks.device))
    context = make_context(config, state, source, ranks, resources)
    ranks.by_first(lambda: open_run(out, config, ranks.device, ranks.world))
    ranks.by_first(lambda: write_held_out(source, out))
    resume(state, out, ranks)
    run_steps(state, context, source, out, stop_at, progress)
    # Waited for: what comes next, in any process, may read what was written.
    ranks.by_first(lambda: _end(out, state.step == context.schedule.total, resources.plot))
    return state


def _end(out: Path, is_done: bool, plot: bool) -> None:
    if is_done:
        write_weights(out)
    if plot:
        from training.run.plots import plot_curve

        plot_curve(out)


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """Say what "auto" is on a device: bf16 where its processor has instructions for it."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has_bf16 = device.type == "cpu" and any(
        getattr(torch.cpu, name, lambda: False)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return "bf16" if has_bf16 else "fp32"


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return _run_config("python -m training.train", "Train a supernet.", PRESETS, argv)


def _run_config(
    prog: str, description: str, presets: Mapping[str, TrainConfig], argv: list[str] | None
) -> int:
    words = sys.argv[1:] if argv is None else argv
    default = next(iter(presets))
    base = presets.get(value_of("--preset", words) or default, presets[default])

    def command(
        data_dir: Path,
        out: Path,
        preset: str = default,
        stop_at: int | None = None,
        config: Annotated[TrainConfig, tyro.conf.arg(name="")] = base,
        resources: Annotated[Resources, tyro.conf.arg(name="")] = DEFAULT_RESOURCES,
    ) -> None:
        state = train(config, data_dir, out, stop_at=stop_at, resources=resources)
        if os.environ.get("RANK", "0") == "0":
            done = {name: getattr(state, name) for name in ("step", "skipped", "broken")}
            print(json.dumps({**done, "seconds": round(state.seconds, 1), "out": str(out)}))

    command.__annotations__["preset"] = Literal[tuple(presets)]  # for the parser to check
    command.__doc__ = f"""{description}

        Args:
            data_dir: root of the data: holds cifar-10-batches-py, or train/CLASS/IMAGE.
            out: run directory; an unfinished run in it goes on.
            preset: which config to start from; every other flag changes it.
            stop_at: step to stop at, with a checkpoint; to the end where it is not given.
        """
    return run_command(prog, command, words)


if __name__ == "__main__":
    sys.exit(main())
