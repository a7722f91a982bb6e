"""Train a supernet: one uniformly sampled subnet a step (arXiv 2107.00651, section 3.3).

    python -m training.train --data-dir DATA --out runs/nano            # the embedded supernet
    python -m training.train --data-dir DATA --out runs/try --preset smoke

The run directory holds config.json, environment.json, log.jsonl and checkpoint.pt; the same command
goes on where a stopped run was. What happens in a step follows from the config and the step's
number, so a resumed run computes what an undisturbed one would have.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from autoformer_zoo import __version__
from autoformer_zoo.published import SPACES
from autoformer_zoo.space import SearchSpace, SubnetConfig
from benchmarks.rows import current_commit
from training.config import TrainConfig
from training.data import Pictures, epoch_order, load_train, mixed_seed, train_batch
from training.evaluate import accuracy
from training.supernet import Supernet

_logger = logging.getLogger(__name__)

MOST_EVALUATED = 5000  # held-out pictures looked at between epochs


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What a step works on; all of it follows from the config and the step's number."""

    step: int
    epoch: int
    batch_in_epoch: int
    img_size: int
    lr_scale: float  # of the config's lr


@dataclass(slots=True)
class RunState:
    """Everything that a step changes."""

    supernet: Supernet
    ema: ModelEmaV3
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    skipped: int = 0  # steps whose loss was not finite
    recent: list[float] = field(default_factory=list)  # losses since the last line of the log


def train(
    config: TrainConfig,
    data_dir: Path,
    out: Path,
    progress: bool = True,
    stop_at: int | None = None,
) -> RunState:
    """Train the supernet that `config` describes, going on from `out` where it holds a run.

    Args:
        config: what to train and how.
        data_dir: the directory that holds CIFAR-10.
        out: the run directory.
        progress: show a progress bar.
        stop_at: step to stop at, with a checkpoint; None for the end.

    Returns:
        The state after the last step.

    Raises:
        ValueError: `out` holds a run of another config, or the space is unknown.
        FileNotFoundError: the data, or the run to start from, is not there.
    """
    space = find_space(config.space)
    pictures, held_out = load_train(data_dir, config.held_out_per_class, config.seed)
    state = make_state(config, space)
    open_run(out, config)
    resume(state, out)
    steps_per_epoch = len(pictures) // config.batch_size
    total = config.epochs * steps_per_epoch
    end = total if stop_at is None else min(stop_at, total)
    bar = tqdm(total=end, initial=state.step, unit="step", disable=not progress)
    while state.step < end:
        plan = plan_step(config, state.step, steps_per_epoch)
        started = time.perf_counter()
        take_step(state, config, space, pictures, plan)
        state.seconds += time.perf_counter() - started
        bar.update()
        if state.step % config.log_every == 0:
            bar.set_postfix(loss=f"{_log_step(state, config, plan, out):.3f}", px=plan.img_size)
        last = plan.batch_in_epoch == steps_per_epoch - 1
        if last and ((plan.epoch + 1) % config.evaluate_every == 0 or state.step == total):
            _log_epoch(state, space, held_out, plan, out)
        if state.step % config.checkpoint_every == 0 or state.step == end:
            save_checkpoint(state, out)
    bar.close()
    return state


def find_space(name: str) -> SearchSpace:
    """Return the space of that name; raises ValueError with the known ones."""
    if name not in SPACES:
        raise ValueError(f"space {name!r} is unknown; expected one of {', '.join(SPACES)}")
    return SPACES[name]


def make_state(config: TrainConfig, space: SearchSpace) -> RunState:
    """Make the untrained supernet, its average and its optimizer, from the config's seed."""
    torch.manual_seed(config.seed)
    supernet = Supernet(space, drop_path_rate=config.drop_path_rate)
    keep = {f"weights.{name}" for name in supernet.weights.no_weight_decay()}
    supernet.no_weight_decay = lambda: keep  # type: ignore[assignment]  # where timm looks for it
    fused = {"fused": True} if config.opt == "adamw" else {}  # a tenth of a small step otherwise
    optimizer = create_optimizer_v2(
        supernet, opt=config.opt, lr=config.lr, weight_decay=config.weight_decay, **fused
    )
    ema = ModelEmaV3(supernet, decay=config.ema_decay, use_warmup=True)
    if config.initial:
        values = load_checkpoint(Path(config.initial))
        supernet.load_state_dict(values["supernet"])
        ema.module.load_state_dict(values["ema"])
    return RunState(supernet, ema, optimizer)


def plan_step(config: TrainConfig, step: int, steps_per_epoch: int) -> StepPlan:
    """Return what step number `step` works on: stage, batch, and learning rate."""
    epoch, batch = divmod(step, steps_per_epoch)
    end = 0
    img_size = config.stages[-1].img_size
    for stage in config.stages:
        end += stage.epochs
        if epoch < end:
            img_size = stage.img_size
            break
    total = config.epochs * steps_per_epoch
    warmup = max(1, int(total * config.warmup_fraction))
    if step < warmup:
        scale = (step + 1) / warmup
    else:
        done = (step - warmup) / max(1, total - warmup)
        low = config.min_lr_ratio
        scale = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done))
    return StepPlan(step, epoch, batch, img_size, scale)


def sample_subnet(space: SearchSpace, seed: int, step: int) -> SubnetConfig:
    """Draw the subnet of a step: a function of (seed, step), so the same on every machine."""
    return space.sample(random.Random(f"{seed}/{step}"))


def take_step(
    state: RunState, config: TrainConfig, space: SearchSpace, pictures: Pictures, plan: StepPlan
) -> None:
    """Do one step; a loss that is not finite changes nothing and is counted."""
    start = plan.batch_in_epoch * config.batch_size
    order = epoch_order(len(pictures), config.seed, plan.epoch)
    batch = pictures.select(order[start : start + config.batch_size])
    x = train_batch(batch, plan.img_size, config.seed, plan.step)
    subnet = sample_subnet(space, config.seed, plan.step)
    for group in state.optimizer.param_groups:
        group["lr"] = config.lr * plan.lr_scale
    state.supernet.train()
    torch.manual_seed(mixed_seed(config.seed, plan.step, "dropout"))
    loss = compute_loss(state.supernet, x, batch.labels, subnet, config)
    state.optimizer.zero_grad()
    state.step += 1
    if not torch.isfinite(loss):
        state.skipped += 1
        _logger.warning("step %d: loss is %s; skipped", plan.step, loss.item())
        return
    loss.backward()
    nn.utils.clip_grad_norm_(state.supernet.parameters(), config.clip_grad)
    state.optimizer.step()
    state.ema.update(state.supernet, step=state.step)
    state.recent.append(loss.item())


def compute_loss(
    supernet: Supernet, x: Tensor, labels: Tensor, subnet: SubnetConfig, config: TrainConfig
) -> Tensor:
    """Return the smoothed cross-entropy of one subnet on one batch, in fp32."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        logits = supernet(x, subnet)
    return F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)


# The run directory


def open_run(out: Path, config: TrainConfig) -> None:
    """Make the run directory, or check that it holds a run of this very config.

    Raises:
        ValueError: it holds another one; the text shows the first difference.
    """
    path = out / "config.json"
    if path.exists():
        old = TrainConfig.from_json(path.read_text())
        if old != config:
            names = [n for n in TrainConfig.__slots__ if getattr(old, n) != getattr(config, n)]
            raise ValueError(
                f"{out} holds a run with {names[0]}={getattr(old, names[0])!r}, asked for "
                f"{getattr(config, names[0])!r} (differing: {', '.join(names)}); "
                "give another --out or the same config"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(config.to_json())
    (out / "environment.json").write_text(json.dumps(describe_environment(), indent=1))


def describe_environment() -> dict[str, Any]:
    """Say what a run was made with: versions, processor, threads and commit."""
    return {
        "autoformer_zoo": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "commit": current_commit(),
    }


def save_checkpoint(state: RunState, out: Path) -> None:
    """Write checkpoint.pt, under a temporary name first so that there is always a whole one."""
    values = {
        "supernet": state.supernet.state_dict(),
        "ema": state.ema.module.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "step": state.step,
        "seconds": state.seconds,
        "skipped": state.skipped,
    }
    temporary = out / "checkpoint.pt.tmp"
    torch.save(values, temporary)
    os.replace(temporary, out / "checkpoint.pt")


def load_checkpoint(run: Path) -> dict[str, Any]:
    """Load what `save_checkpoint` wrote.

    Raises:
        FileNotFoundError: the run has no checkpoint.
    """
    path = run / "checkpoint.pt"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; train first: python -m training.train")
    return torch.load(path, weights_only=True, mmap=True)


def resume(state: RunState, out: Path) -> None:
    """Load checkpoint.pt into `state`, where there is one."""
    if not (out / "checkpoint.pt").exists():
        return
    values = load_checkpoint(out)
    state.supernet.load_state_dict(values["supernet"])
    state.ema.module.load_state_dict(values["ema"])
    state.optimizer.load_state_dict(values["optimizer"])
    state.step, state.seconds = values["step"], values["seconds"]
    state.skipped = values["skipped"]
    _drop_log_after(out / "log.jsonl", state.step)


def _drop_log_after(path: Path, step: int) -> None:
    """Forget log lines of steps that will be done again."""
    if not path.exists():
        return
    lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
    path.write_text("".join(line + "\n" for line in lines))


def _log_step(state: RunState, config: TrainConfig, plan: StepPlan, out: Path) -> float:
    loss = sum(state.recent) / max(1, len(state.recent))
    state.recent.clear()
    _append(
        out,
        {
            "step": state.step,
            "epoch": plan.epoch,
            "img_size": plan.img_size,
            "lr": config.lr * plan.lr_scale,
            "loss": round(loss, 5),
            "seconds": round(state.seconds, 1),
        },
    )
    return loss


def _log_epoch(
    state: RunState, space: SearchSpace, held_out: Pictures, plan: StepPlan, out: Path
) -> None:
    """Log the held-out accuracy of the averaged smallest and largest subnets."""
    network = state.ema.module
    held_out = held_out.select(torch.arange(min(len(held_out), MOST_EVALUATED)))
    acc1_percent = {
        name: accuracy(lambda x, s=subnet: network(x, s), held_out, plan.img_size)
        for name, subnet in (("smallest", space.smallest), ("largest", space.largest))
    }
    _append(
        out,
        {
            "step": state.step,
            "epoch": plan.epoch + 1,
            "img_size": plan.img_size,
            "held_out_acc1_percent": acc1_percent,
            "seconds": round(state.seconds, 1),
        },
    )


def _append(out: Path, values: dict[str, Any]) -> None:
    with (out / "log.jsonl").open("a") as log:
        log.write(json.dumps(values) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    from training.commands import run_train

    return run_train(argv)


if __name__ == "__main__":
    sys.exit(main())
