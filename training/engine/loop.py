"""The training loop: steps, log, held-out accuracy, checkpoints, stopping and resuming.

Supernet training, retraining and fine-tuning are this one loop; they differ in the network and in
the subnets of a step.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3

from autoformer_zoo.space import SubnetConfig
from training.data.batch import DataSource
from training.data.transforms import NORMALISATIONS
from training.engine.losses import Mixer, open_teacher
from training.engine.network import Network, load_initial, make_network
from training.engine.step import RunState, StepContext, make_optimizer, take_step
from training.run.checkpoints import (
    PREVIOUS,
    has_checkpoint,
    load_checkpoint,
    newest_whole,
    save_checkpoint,
    set_damaged_aside,
)
from training.run.directory import HELD_OUT, LOG, TIMING, append, cut_log
from training.run.distributed import Ranks, SharedError, lost_process_errors
from training.run.schedule import Schedule, StepPlan
from training.run.signals import catch_signals
from training.settings.config import Resources, TrainConfig, space_of

_log = logging.getLogger(__name__)


class DivergedError(SharedError):
    """Losses stay infinite or NaN, also after returns to the last good checkpoint."""


def make_state(
    config: TrainConfig,
    device: torch.device,
    make: Callable[[TrainConfig], Network] = make_network,
) -> RunState:
    """Make the network that a config starts with, its average and its optimizer.

    Args:
        config: what to train.
        device: where.
        make: makes the network from the config, in training mode.

    Raises:
        ValueError: the config names what cannot be made, or started from.
        CheckpointError: weights are missing or damaged.
    """
    network = make(config).to(device)
    optimizer = make_optimizer(
        network.weights,
        config.opt,
        config.lr,
        config.weight_decay,
        decays_tables=config.decay_rule == "upstream",
        layer_decay=config.layer_decay,
    )
    ema = ModelEmaV3(network, decay=config.ema_decay, use_warmup=True)
    if config.initial:
        values = load_initial(config, network, device)
        ema.module.load_state_dict(values["ema"])
        network.bias_rule = ema.module.bias_rule = values["bias_rule"]
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    return RunState(network, ema, optimizer, scaler)


def make_context(
    config: TrainConfig, state: RunState, source: DataSource, ranks: Ranks, resources: Resources
) -> StepContext:
    """Put together what all steps share.

    Raises:
        ValueError: torch.compile is requested though each step has a network of its own.
    """
    space, network = space_of(config), state.network
    network.grad_checkpointing = resources.grad_checkpointing
    if resources.compile:
        if not network.uses_all:
            raise ValueError(
                "compile would compile again for each subnet; expected sampling fixed with it"
            )
        network.weights.compile(dynamic=False)
    return StepContext(
        config,
        space,
        network.weights.cfg if config.sampling == "fixed" else None,
        Schedule(config, source.num_train),
        ranks,
        ranks.wrap(network, network.uses_all),
        Mixer(
            config.augment,
            config.label_smoothing,
            space.num_classes,
            config.seed,
            config.distill.temperature if config.distill.answers else None,
        ),
        open_teacher(
            config.distill,
            NORMALISATIONS[config.data.normalisation],
            space.num_classes,
            {stage.img_size for stage in config.stages},
            ranks.device,
        ),
    )


def resume(state: RunState, run: Path, ranks: Ranks) -> None:
    """Load the newest whole checkpoint, or write the one of step 0."""
    if not ranks.by_first(lambda: has_checkpoint(run)):
        ranks.by_first(lambda: save_checkpoint(state.to_values(), run))
        return
    values, name = ranks.together(lambda: newest_whole(run, ranks.device))
    state.load(values)
    ranks.by_first(lambda: _discard_newer(run, name, state.step))


def run_steps(
    state: RunState,
    context: StepContext,
    source: DataSource,
    run: Path,
    stop_at: int | None = None,
    progress: bool = True,
) -> None:
    """Do the remaining steps.

    Args:
        state: changed in place.
        context: of the run.
        source: where batches come from.
        run: the run directory.
        stop_at: step to stop at, with a checkpoint; None for the end.
        progress: show a progress bar.

    Raises:
        SystemExit: SIGTERM or SIGINT came; a checkpoint was written. Codes 143 and 130.
        DivergedError: losses stay infinite or NaN, or no step of the whole run was finite.
        LostProcessError: another process ended.
        OSError: a file cannot be written.
    """
    from tqdm import tqdm

    schedule, ranks = context.schedule, context.ranks
    end = schedule.total if stop_at is None else min(stop_at, schedule.total)
    shown = progress and ranks.is_first
    bar = tqdm(total=end, initial=state.step, unit="step", disable=not shown, file=sys.stderr)
    stream = source.train(schedule, state.step, end)
    with closing(bar), catch_signals() as request, closing(stream) as batches:
        while state.step < end:
            plan = schedule.plan(state.step)
            started = time.perf_counter()
            with lost_process_errors():  # a backward pass averages gradients, too
                stop = take_step(state, context, batches, request)
            state.seconds += time.perf_counter() - started
            bar.update()
            if state.bad_in_row >= context.config.max_bad_steps:
                roll_back(state, context, run)
            if evaluates := schedule.evaluates_after(plan):
                bar.set_description("evaluating")  # the bar stands still meanwhile
            loss = write_logs(state, context, source, plan, run)
            if evaluates:
                bar.set_description("training")
            if loss is not None:
                bar.set_postfix(loss=f"{loss:.3f}", px=plan.img_size, epoch=plan.epoch)
            due = stop or state.step % context.config.checkpoint_every == 0
            # Amid bad steps the last good checkpoint stays the last: it is what to return to.
            if (due and not state.bad_in_row) or state.step == end:
                ranks.by_first(lambda: save_checkpoint(state.to_values(), run))
            if stop:
                ranks.wait()
                raise SystemExit(128 + stop)
    if state.step == schedule.total and state.skipped == state.step:
        raise DivergedError(
            f"{run}: no loss or gradient of all {state.step} steps was finite, so nothing was "
            "learned: look at the data, and try a lower lr or precision fp32 with another --out"
        )
    ranks.wait()


def roll_back(state: RunState, context: StepContext, run: Path) -> None:
    """Return to the weights of the last good checkpoint, and continue with the next step's images.

    Raises:
        DivergedError: this was done too often.
    """
    ranks, most = context.ranks, context.config.max_rollbacks
    if state.rollbacks == most:
        raise DivergedError(
            f"{run}: {state.bad_in_row} steps in a row were not finite after {state.rollbacks} "
            f"returns to a checkpoint; give up at step {state.step}: try a lower lr, or precision "
            "fp32"
        )
    state.rollbacks += 1
    _log.warning(
        "step %d: %d steps in a row were not finite; back to the last good weights (%d of %d)",
        *(state.step, state.bad_in_row, state.rollbacks, most),
    )
    state.load_weights(ranks.together(lambda: load_checkpoint(run, ranks.device)))
    state.bad_in_row = 0


def write_logs(
    state: RunState, context: StepContext, source: DataSource, plan: StepPlan, run: Path
) -> float | None:
    """Write the lines that are due after a step; returns the mean loss if one is due."""
    config, ranks, loss = context.config, context.ranks, None
    if state.step % config.log_every == 0:
        if state.recent:  # empty if all steps were skipped
            loss = sum(state.recent) / len(state.recent)
        state.recent.clear()
        ranks.by_first(lambda: _log_step(state, config.lr * plan.lr_scale, plan, loss, run))
    if context.schedule.evaluates_after(plan):
        acc1_percent, broken = held_out_accuracy(state, context, source, plan.img_size)
        if acc1_percent:
            line = _line(state, plan.epoch + 1, plan.img_size)
            line[HELD_OUT] = acc1_percent
            line |= {"held_out_broken": broken} if broken else {}
            ranks.by_first(lambda: append(run / LOG, line))
    return loss


def held_out_accuracy(
    state: RunState, context: StepContext, source: DataSource, img_size: int
) -> tuple[dict[str, float], int]:
    """Measure averaged weights on the held-out images, with inherited weights.

    Returns:
        Top-1 in percent of the smallest and the largest subnet, or of the only one; empty without
        held-out images. And how many images could not be read.
    """
    space, network = context.space, state.ema.module
    subnets: dict[str, SubnetConfig] = {"smallest": space.smallest, "largest": space.largest}
    if context.fixed is not None:
        subnets = {"subnet": context.fixed}
    counts = [0.0] * (len(subnets) + 2)
    with torch.no_grad():
        for batch in source.held_out(img_size):
            for number, subnet in enumerate(subnets.values()):
                predicted = network(batch.x, subnet).argmax(1)
                counts[number] += int((predicted == batch.labels).sum())
            counts[-2] += int((batch.labels >= 0).sum())
            counts[-1] += batch.broken
    *correct, seen, broken = context.ranks.sums(counts)
    if not seen:
        return {}, int(broken)
    percent = (100 * count / seen for count in correct)
    return dict(zip(subnets, percent, strict=True)), int(broken)


def _discard_newer(run: Path, name: str, step: int) -> None:
    """Discard logs and checkpoints newer than the one that a run is resumed from."""
    if name == PREVIOUS:
        set_damaged_aside(run)
    for log in (LOG, TIMING):
        cut_log(run / log, step)


def _log_step(state: RunState, lr: float, plan: StepPlan, loss: float | None, run: Path) -> None:
    line = _line(state, plan.epoch, plan.img_size) | {"lr": lr}
    counted = {name: getattr(state, name) for name in ("skipped", "broken", "rollbacks")}
    if loss is not None:
        line["loss"] = round(loss, 5)
    append(run / LOG, line | {name: count for name, count in counted.items() if count})
    append(run / TIMING, {"step": state.step, "seconds": round(state.seconds, 1)})


def _line(state: RunState, epoch: int, img_size: int) -> dict[str, Any]:
    return {"step": state.step, "epoch": epoch, "img_size": img_size}
