"""One training step: forward, backward, and what to do with a result that is not finite."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.space import SearchSpace, SubnetConfig
from training.data.batch import Batch, mixed_seed
from training.engine.losses import Mixer, Teacher, distillation_loss, label_loss, soft_cross_entropy
from training.engine.network import Network
from training.engine.sampling import subnets_of_step
from training.run.distributed import Ranks
from training.run.schedule import Schedule, StepPlan
from training.run.signals import StopRequest
from training.settings.config import TrainConfig

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}  # types of autocast
_COUNTERS = ("step", "seconds", "skipped", "broken", "bad_in_row", "rollbacks", "recent")
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class RunState:
    """Everything that a step changes."""

    network: Network
    ema: ModelEmaV3
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    seconds: float = 0.0
    skipped: int = 0  # steps whose loss or gradient was not finite
    broken: int = 0  # images that could not be read
    bad_in_row: int = 0  # consecutive non-finite steps that the loss scale does not explain
    rollbacks: int = 0
    recent: list[float] = field(default_factory=list)  # losses since the last line of the log

    def to_values(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        model = self.network.weights
        return {
            "network": self.network.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "subnet": model.cfg.to_json(),
            "img_size": list(model.patch_embed.img_size),
            "bias_rule": self.network.bias_rule,
            **{name: getattr(self, name) for name in _COUNTERS},
        }

    def load_weights(self, values: dict[str, Any]) -> None:
        """Take weights, averages and moments from a checkpoint, and no counter."""
        self.network.load_state_dict(values["network"])
        self.ema.module.load_state_dict(values["ema"])
        self.optimizer.load_state_dict(values["optimizer"])
        self.scaler.load_state_dict(values["scaler"])

    def load(self, values: dict[str, Any]) -> None:
        """Take everything from a checkpoint."""
        self.load_weights(values)
        for name in _COUNTERS:
            setattr(self, name, values[name])


@dataclass(frozen=True, slots=True, eq=False)
class StepContext:
    """What all steps of a run share."""

    config: TrainConfig
    space: SearchSpace
    fixed: SubnetConfig | None  # the one subnet of sampling fixed
    schedule: Schedule
    ranks: Ranks
    wrapped: nn.Module  # the network, with averaged gradients if there are several processes
    mixer: Mixer
    teacher: Teacher | None

    def subnets(self, step: int) -> tuple[SubnetConfig, ...]:
        """Return the subnets that a step trains."""
        if self.fixed is not None:
            return (self.fixed,)
        config = self.config
        drawn = config.sandwich_random if config.sampling == "sandwich" else 0
        return subnets_of_step(self.space, config.seed, step, drawn, config.sandwich_smallest)


def take_step(
    state: RunState, context: StepContext, batches: Iterator[Batch], request: StopRequest
) -> int:
    """Do one step; a loss or gradient that is not finite changes no weight and is counted.

    Args:
        state: changed in place.
        context: of the run.
        batches: this process's parts of batches.
        request: has the signal that this process got, or 0.

    Returns:
        The signal that some process got, or 0: the same in all processes.
    """
    config, ranks = context.config, context.ranks
    plan = context.schedule.plan(state.step)
    subnets = context.subnets(plan.step)
    set_lr(state.optimizer, config.lr * plan.lr_scale)
    state.network.train()
    state.optimizer.zero_grad()
    loss, broken = 0.0, 0.0
    for part in ranks.own_parts:
        batch = next(batches)
        broken += batch.broken
        loss += _backward(state, context, batch, plan, part, subnets) / ranks.parts
    state.scaler.unscale_(state.optimizer)
    largest = config.clip_grad or math.inf
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), largest).item()
    loss, broken = ranks.sums([loss, broken])
    state.step += 1
    state.broken += int(broken)
    if math.isfinite(loss) and math.isfinite(norm):
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.ema.update(state.network, step=state.step)
        state.recent.append(loss)
        state.bad_in_row = 0
    else:
        _skip(state, loss)
        _log.warning("step %d: loss %s, gradient %s; skipped", plan.step, loss, norm)
    return int(ranks.largest([request.signal])[0])


def make_optimizer(
    model: AutoFormer,
    opt: str,
    lr: float,
    weight_decay: float,
    decays_tables: bool = False,
    layer_decay: float = 1.0,
) -> torch.optim.Optimizer:
    """Make the optimizer of a network's trainable parameters.

    Weight decay leaves norms, biases, position embedding and class token alone.

    Args:
        model: the network.
        opt: timm's name.
        lr: learning rate.
        weight_decay: weight decay.
        decays_tables: True for upstream's rule: it decays the relative position tables too, since
            its pattern for them matches no parameter.
        layer_decay: factor of the learning rate from each block to the one below.

    Raises:
        ValueError: the optimizer is unknown, or nothing is left to train.
    """
    kept = {"pos_embed", "cls_token"} if decays_tables else model.no_weight_decay()
    arguments = {"weight_decay": weight_decay, "no_weight_decay_list": tuple(kept)}
    if layer_decay < 1:
        groups = partial(param_groups_layer_decay, layer_decay=layer_decay, **arguments)
    else:
        groups = partial(param_groups_weight_decay, **arguments)
    fused = {"fused": True} if opt == "adamw" else {}  # a tenth of a small step otherwise
    return create_optimizer_v2(model, opt=opt, lr=lr, param_group_fn=groups, **fused)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all groups, each with its layer's factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def _backward(
    state: RunState,
    context: StepContext,
    batch: Batch,
    plan: StepPlan,
    part: int,
    subnets: tuple[SubnetConfig, ...],
) -> float:
    """Add the gradient of one part of the batch; returns the part's loss."""
    config, ranks = context.config, context.ranks
    half = HALF.get(config.precision)
    x, targets, taught = context.mixer.mix(batch, plan.step, part)
    teacher_labels = context.teacher.labels(x) if context.teacher else None
    torch.manual_seed(mixed_seed(config.seed, plan.step, f"dropout/{part}" if part else "dropout"))
    largest_logits: Tensor | None = None
    total = torch.zeros((), device=x.device)
    for number, subnet in enumerate(subnets):
        is_last = part == ranks.own_parts[-1] and number == len(subnets) - 1
        with _averaging(context.wrapped, is_last):
            with torch.autocast(x.device.type, half, enabled=half is not None):
                logits = context.wrapped(x, subnet)
            if largest_logits is None:
                loss = label_loss(
                    logits, targets, config.label_smoothing, teacher_labels, config.distill.share
                )
                if taught is not None:
                    share, temperature = config.distill.share, config.distill.temperature
                    divergence = distillation_loss(logits, taught, temperature)
                    loss = (1 - share) * loss + share * divergence
                largest_logits = logits.detach()
            else:
                loss = soft_cross_entropy(logits, largest_logits)
            loss = loss / len(subnets)
            state.scaler.scale(loss / ranks.accumulate).backward()
        total += loss.detach()
    return total.item()


def _averaging(wrapped: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Average gradients over processes once a step, in its last backward pass."""
    no_sync = getattr(wrapped, "no_sync", None)
    return nullcontext() if is_last or no_sync is None else no_sync()


def _skip(state: RunState, loss: float) -> None:
    """Count a step that changed nothing, and lower the loss scale if that can help.

    A gradient that overflows under a finite loss may be due to the scale: the scaler halves it, at
    the start several times until one fits, and none of these steps counts towards a return to a
    checkpoint. At a scale of 1, which is also that of fp32 and bf16, the gradient itself is bad;
    and no scale mends a loss, which is computed without it.
    """
    state.skipped += 1
    scale = state.scaler.get_scale()
    if math.isfinite(loss):
        state.bad_in_row += scale <= 1
        state.scaler.update()
    else:
        state.bad_in_row += 1
        state.scaler.update(scale)  # as it is; the next gradient would count as unscaled otherwise
