"""Train a supernet, or one subnet alone.

    python -m training.train --data-dir DATA --out runs/try                     # preset smoke
    python -m training.train --data-dir DATA --out runs/nano --preset nano --sampling sandwich
    torchrun --nproc-per-node 2 -m training.train --data-dir DATA --out runs/two

The run directory holds config.json, environment.json, log.jsonl, timing.jsonl, two checkpoints and,
in the end, curve.svg and the averaged weights.safetensors. The same command resumes a stopped run.
What happens in a step follows from the config and the step's number, so a resumed run computes what
an undisturbed one would have.

Source: arXiv 2107.00651, section 3.3.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from autoformer_zoo.network.vit import AutoFormer
from training.data.batch import DataSource
from training.data.identity import check_data, keep_data
from training.data.open import open_source, with_classes_of
from training.data.transforms import NORMALISATIONS
from training.engine.loop import make_context, make_state, resume, run_steps
from training.engine.network import Network, make_network
from training.engine.review import Review, draw_review, review
from training.engine.step import RunState, StepContext
from training.engine.teacher.answers import use_answers
from training.engine.weights import write_weights
from training.run.command import run_command, value_of
from training.run.directory import HELD_OUT, last_accuracy, open_run
from training.run.distributed import current_rank, join
from training.run.plots import plot_curve
from training.settings.config import DEFAULT_RESOURCES, Precision, Resources, TrainConfig
from training.settings.presets import PRESETS, Preset

_log = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    data_dir: Path,
    out: Path,
    progress: bool = True,
    stop_at: int | None = None,
    resources: Resources = DEFAULT_RESOURCES,
    make: Callable[[TrainConfig], Network] = make_network,
) -> RunState:
    """Train what `config` describes, or resume the run in `out`.

    Args:
        config: what to train and how.
        data_dir: the root of the data.
        out: the run directory; one that all processes see, if there are several.
        progress: show a progress bar.
        stop_at: step to stop at, with a checkpoint; None for the end.
        resources: device, workers and the like.
        make: makes the network from the config, in training mode.

    Returns:
        The state after the last step. `network` and `ema.module` have the weights; `weights` of
        each is an `AutoFormer` of the supernet's size, or of the fixed subnet's.

    Raises:
        ValueError: `out` holds a run of another config, or the config cannot be followed.
        FileNotFoundError: the data, or the run to start from, does not exist.
        CheckpointError: weights to start from, or all checkpoints of `out`, are damaged.
        DivergedError: losses stay infinite or NaN.
        LostProcessError: another process ended.
        OSError: a file cannot be written.
        SystemExit: SIGTERM or SIGINT came; a checkpoint was written, but amid steps that were not
            finite. Codes 143 and 130.
    """
    ranks = join(resources, config.batch_size, config.augment.mixes)
    config = replace(config, precision=resolve_precision(config.precision, ranks.device))
    if config.data.download:  # all processes would write to one file
        ranks.by_first(lambda: bool(open_source(config, data_dir, ranks, resources)))
    source = ranks.together(lambda: open_source(config, data_dir, ranks, resources))
    ranks.by_first(lambda: check_data(source, out))
    if config.initial and source.held_out_list:  # it must not have learned from these
        ranks.by_first(lambda: check_data(source, Path(config.initial)))
    config = with_classes_of(config, source)
    ranks.together(lambda: use_answers(config, source))
    state = ranks.together(lambda: make_state(config, ranks.device, make))
    context = make_context(config, state, source, ranks, resources)
    ranks.by_first(lambda: open_run(out, config, ranks.device, ranks.world))
    ranks.by_first(lambda: keep_data(source, out))
    resume(state, out, ranks)
    run_steps(state, context, source, out, stop_at, progress)
    found = None
    if state.step == context.schedule.total and resources.plot and context.fixed is not None:
        fixed = partial(state.ema.module, subnet=context.fixed)
        if ranks.is_first:
            _log.info("classifying the held-out images for the figures")
        found = review(fixed, source, config.largest_size, ranks)
    # All processes wait here, because later code may read these files.
    ranks.by_first(lambda: _finish(state, context, source, found, out, resources.plot))
    return state


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """Return what "auto" is on a device: bf16 if its processor has instructions for it."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has_bf16 = device.type == "cpu" and any(
        getattr(torch.cpu, name, lambda: False)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return "bf16" if has_bf16 else "fp32"


def print_summary(state: RunState, out: Path) -> None:
    """Print what a run did, as the last line of a command: steps, accuracy, where it is."""
    if current_rank() != 0:
        return
    summary: dict[str, Any] = {name: getattr(state, name) for name in ("step", "skipped", "broken")}
    if accuracy := last_accuracy(out):
        summary[HELD_OUT] = {name: round(percent, 2) for name, percent in accuracy.items()}
    print(json.dumps({**summary, "seconds": round(state.seconds, 1), "out": str(out)}))


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    base = PRESETS.get(value_of("--preset", words) or "smoke", PRESETS["smoke"])

    def command(
        data_dir: Path,
        out: Path,
        preset: Preset = "smoke",
        stop_at: int | None = None,
        config: Annotated[TrainConfig, tyro.conf.arg(name="")] = base,
        resources: Annotated[Resources, tyro.conf.arg(name="")] = DEFAULT_RESOURCES,
    ) -> None:
        """Train a supernet, or one subnet alone.

        Args:
            data_dir: root of the data: holds cifar-10-batches-py, or train/CLASS/IMAGE
            out: run directory; an unfinished run in it is resumed
            preset: config to start from, changed by all other flags; smoke takes a minute
            stop_at: step to stop at, with a checkpoint; the last one by default
        """
        print_summary(train(config, data_dir, out, stop_at=stop_at, resources=resources), out)

    return run_command("python -m training.train", command, words)


def _finish(
    state: RunState,
    context: StepContext,
    source: DataSource,
    found: Review | None,
    out: Path,
    plot: bool,
) -> None:
    """Write the weights of a finished run, unless no file format holds them, and the figures."""
    if state.step == context.schedule.total and isinstance(state.network.weights, AutoFormer):
        write_weights(out)
    if plot:
        plot_curve(out)
    if found is not None:
        normalisation = NORMALISATIONS[context.config.data.normalisation]
        draw_review(found, source.class_names, normalisation, out)


if __name__ == "__main__":
    sys.exit(main())
