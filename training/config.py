"""Configuration of supernet training: one frozen dataclass, JSON on disk, flags made from it.

A run directory holds its config; resuming under another one is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of training at one input size.

    Small pictures have fewer tokens and so cost less: most epochs can be spent there.
    """

    epochs: int
    img_size: int  # pixels; a multiple of the space's patch size

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.img_size < 1:
            raise ValueError(f"stage {self}: expected positive epochs and img_size")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything that decides what a supernet run computes.

    Raises:
        ValueError: a number is out of its range.
    """

    space: str = "nano"  # a name in autoformer_zoo.SPACES
    stages: tuple[Stage, ...] = (Stage(10, 32),)  # input sizes, in order
    batch_size: int = 64  # pictures a step
    opt: str = "adamw"  # any optimizer that timm's create_optimizer_v2 knows
    lr: float = 1e-3  # at the end of the warm-up
    min_lr_ratio: float = 0.01  # of lr, at the end of the cosine
    warmup_fraction: float = 0.05  # of all steps
    weight_decay: float = 0.05  # not on norms, biases, positions and relative tables
    label_smoothing: float = 0.1
    drop_path_rate: float = 0.0  # of the supernet's last block, linear from 0
    clip_grad: float = 1.0  # largest norm of the gradient
    ema_decay: float = 0.999  # a step, after a warm-up
    initial: str = ""  # run directory whose weights and averages to start from; none: random
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast, where the processor has it
    held_out_per_class: int = 500  # training pictures kept for choosing, never trained on
    seed: int = 0
    evaluate_every: int = 2  # epochs between evaluations on the held-out pictures
    log_every: int = 50  # steps between lines of the log
    checkpoint_every: int = 200  # steps between checkpoints

    def __post_init__(self) -> None:
        positive = ("batch_size", "lr", "clip_grad", "held_out_per_class", "log_every")
        for name in (*positive, "evaluate_every", "checkpoint_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected a positive number")
        for name in ("label_smoothing", "drop_path_rate", "ema_decay", "warmup_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected 0 or more, below 1")
        if not self.stages:
            raise ValueError("stages is empty; expected at least one Stage(epochs, img_size)")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision is {self.precision!r}; expected fp32 or bf16")

    @property
    def epochs(self) -> int:
        """Epochs of all stages."""
        return sum(stage.epochs for stage in self.stages)

    def to_json(self) -> str:
        """Return indented JSON; `from_json` turns it back."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """Make a config from `to_json`'s output.

        Raises:
            ValueError: a key is unknown, or a value is refused.
        """
        values: Mapping[str, Any] = json.loads(text)
        if unknown := sorted(set(values) - {field.name for field in fields(cls)}):
            raise ValueError(f"TrainConfig: unknown keys {unknown}")
        stages = tuple(Stage(**stage) for stage in values["stages"])
        return cls(**{**values, "stages": stages})


# The supernet inside the package, in three runs on 2 cores (see docs/nano.md): small pictures
# first, which cost a quarter, stopped after step 5000; then from there to the full size, twice.
# python -m training.train --data-dir DIR --out runs/nano --preset nano --stop-at 5000
# python -m training.train --data-dir DIR --out runs/nano-32 --preset nano-32
# python -m training.train --data-dir DIR --out runs/nano-long --preset nano-long
NANO = TrainConfig(stages=(Stage(9, 16), Stage(5, 24), Stage(1, 32)))
NANO_32 = replace(
    NANO,
    stages=(Stage(3, 24), Stage(1, 32)),
    initial="runs/nano",
    lr=6e-4,
    evaluate_every=1,
)

NANO_LONG = replace(
    NANO,
    stages=(Stage(10, 24), Stage(8, 32)),
    initial="runs/nano-32",
    lr=1e-3,
    evaluate_every=1,
)

# A few steps on real pictures, to see that everything works: under a minute on 2 cores.
SMOKE = replace(NANO, stages=(Stage(1, 16),), held_out_per_class=4900, batch_size=100, log_every=2)

PRESETS = {"nano": NANO, "nano-32": NANO_32, "nano-long": NANO_LONG, "smoke": SMOKE}
