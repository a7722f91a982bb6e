"""What can be set in training: frozen dataclasses, JSON on disk, flags made from them.

`TrainConfig` holds everything that decides what a run computes, and a run directory keeps it:
resuming under another one is refused. `Resources` holds what only decides where and how fast. The
presets stand in `config.py`, which is where to import all of this from.

Source: arXiv 2107.00651, section 4.1 and the supplement, for the values of the ImageNet presets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal

from tyro.constructors import PrimitiveConstructorSpec

from autoformer_zoo.published import find_space
from autoformer_zoo.space import SearchSpace


def space_of(config: TrainConfig) -> SearchSpace:
    """Return the config's space, with the config's number of classes."""
    space = find_space(config.space)
    return replace(space, num_classes=config.num_classes or space.num_classes)


Precision = Literal["auto", "fp32", "bf16", "fp16"]


MOST_SEED = 2**63 - 1  # what every generator takes


MEMORY = "cifar10"  # the source that holds CIFAR-10 in memory; every other name is timm's


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}")


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of training at one input size.

    Small images have fewer tokens and so cost less: most epochs can be spent there.
    """

    epochs: int
    img_size: int  # pixels; a multiple of the space's patch size

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.img_size < 1:
            raise ValueError(f"stage {self}: expected positive epochs and img_size")


def parse_stages(words: list[str]) -> tuple[Stage, ...]:
    """Read stages as EPOCHS:PIXELS, such as 9:16 1:32.

    Raises:
        ValueError: a word is of another form.
    """
    stages = []
    for word in words:
        epochs, _, img_size = word.partition(":")
        if not (epochs.isdecimal() and img_size.isdecimal()):
            raise ValueError(f"stage {word!r}: expected EPOCHS:PIXELS, such as 10:32")
        stages.append(Stage(int(epochs), int(img_size)))
    return tuple(stages)


Stages = Annotated[
    tuple[Stage, ...],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="EPOCHS:PIXELS",
        instance_from_str=parse_stages,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda stages: [f"{s.epochs}:{s.img_size}" for s in stages],
    ),
]


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Which images. The test split stands here for the final evaluation alone."""

    source: str = MEMORY  # "cifar10" in memory, or timm's: folder, torch/..., hfds/..., wds/...
    train_split: str = "train"  # as the source calls it
    held_out_split: str = ""  # a split of its own, where none can be cut from the training set
    test_split: str = "validation"  # of the final evaluation; training never opens it
    download: bool = False  # let the source fetch itself, where it can
    normalisation: Literal["cifar10", "imagenet"] = "cifar10"  # mean and deviation of channels
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"  # not of the source in memory
    crop_pct: float = 1.0  # evaluation: side of the centre crop over that of the resized image

    def __post_init__(self) -> None:
        _require_choice("data.normalisation", self.normalisation, ("cifar10", "imagenet"))
        _require_choice("data.interpolation", self.interpolation, ("bilinear", "bicubic"))
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"data.crop_pct is {self.crop_pct}; expected above 0, at most 1")
        for name in ("train_split", "held_out_split"):
            if getattr(self, name) == self.test_split:
                raise ValueError(
                    f"data.{name} is the test split {self.test_split!r}; only the final "
                    "evaluation opens that one: name another split"
                )
        if self.held_out_split == self.train_split:
            raise ValueError(
                f"data.held_out_split is the training split {self.train_split!r}; held-out "
                "images must not be trained on: name another split"
            )
        if self.source == MEMORY and self.normalisation != "cifar10":
            raise ValueError(
                f"data.normalisation is {self.normalisation!r}; the source {MEMORY!r} has its own: "
                "take source torch/cifar10"
            )


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """How training images are changed; timm's implementations, under timm's names."""

    crop: Literal["none", "shift", "resized"] = "shift"  # shift: pad by an eighth and crop
    policy: str = ""  # RandAugment and the like: rand-m9-mstd0.5-inc1
    color_jitter: float = 0.0  # timm leaves it out beside a policy
    erasing: float = 0.0  # probability of random erasing
    mixup: float = 0.0  # alpha
    cutmix: float = 0.0  # alpha
    mix_probability: float = 1.0  # that a batch is mixed at all
    mix_mode: Literal["batch", "pair", "elem"] = "batch"  # one ratio a batch, a pair, a image
    repeats: int = 1  # augmented copies of a image in an epoch; epochs stay as long

    def __post_init__(self) -> None:
        _require_choice("augment.crop", self.crop, ("none", "shift", "resized"))
        _require_choice("augment.mix_mode", self.mix_mode, ("batch", "pair", "elem"))
        for name in ("color_jitter", "mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"augment.{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("erasing", "mix_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name} is {getattr(self, name)}; expected 0 to 1")
        if self.repeats < 1:
            raise ValueError(f"augment.repeats is {self.repeats}; expected 1 or more")

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_probability > 0


@dataclass(frozen=True, slots=True)
class DistillConfig:
    """A teacher whose hard answers are learned beside the labels (DeiT, arXiv 2012.12877)."""

    teacher: str = ""  # a timm model, such as regnety_160; none where empty
    checkpoint: str = ""  # its weights; where empty, timm's pretrained ones
    share: float = 0.5  # of the teacher in the loss

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"distill.share is {self.share}; expected 0 to 1")
        if self.checkpoint and not self.teacher:
            raise ValueError("distill.checkpoint is given without distill.teacher: name the model")


@dataclass(frozen=True, slots=True)
class WeightsConfig:
    """Trained weights to start from; random ones where both are empty."""

    model: str = ""  # a model of the zoo, with its pretrained weights; sampling must be fixed
    checkpoint: str = ""  # a file: a supernet (official, PreNAS, canonical) or a subnet
    layout: Literal["", "packed_prefix", "packed_interleaved"] = ""  # of a .pth supernet's qkv

    def __post_init__(self) -> None:
        if self.model and self.checkpoint:
            raise ValueError("weights.model and weights.checkpoint both name weights: give one")
        _require_choice("weights.layout", self.layout, ("", "packed_prefix", "packed_interleaved"))
        if self.layout and not self.checkpoint:
            raise ValueError("weights.layout describes a file: give weights.checkpoint with it")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything that decides what a run computes.

    Raises:
        ValueError: a number is out of its range.
    """

    space: str = "nano"  # a name in autoformer_zoo.SPACES, or a SearchSpace as JSON
    num_classes: int = 0  # of the head; 0: as the space says
    stages: Stages = (Stage(10, 32),)  # input sizes, in order
    batch_size: int = 64  # images a step, over all processes and accumulated parts
    sampling: Literal["uniform", "sandwich", "fixed"] = "uniform"  # of a step's subnets
    sandwich_random: int = 2  # random subnets a step, beside the largest and the smallest
    subnet: str = ""  # of sampling fixed: a name in SUBNETS, or a SubnetConfig as JSON
    opt: str = "adamw"  # any optimizer that timm's create_optimizer_v2 knows
    lr: float = 1e-3  # at the end of the warm-up
    min_lr_ratio: float = 0.01  # of lr, at the end of the cosine
    warmup_fraction: float = 0.05  # of all steps
    weight_decay: float = 0.05
    decay_rule: Literal["clean", "upstream"] = "clean"  # upstream decays relative tables too
    layer_decay: float = 1.0  # factor of the learning rate from each block to the one below
    freeze_blocks: int = 0  # embeddings and this many first blocks stay as they are
    label_smoothing: float = 0.1
    drop_path_rate: float = 0.0  # of the supernet's last block, linear from 0
    clip_grad: float = 1.0  # largest norm of the gradient; 0: any
    ema_decay: float = 0.999  # a step, after a warm-up
    initial: str = ""  # run directory whose weights and averages to start from
    precision: Precision = "auto"  # auto: bf16 where it is fast
    held_out_per_class: int = 500  # training images kept for choosing; 0: none
    seed: int = 0
    evaluate_every: int = 2  # epochs between evaluations on the held-out images
    log_every: int = 50  # steps between lines of the log
    checkpoint_every: int = 200  # steps between checkpoints
    most_bad_steps: int = 20  # not finite in a row, before the last good checkpoint is taken
    most_rollbacks: int = 3  # of these, before the run is given up
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    distill: DistillConfig = DistillConfig()
    weights: WeightsConfig = WeightsConfig()

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected a positive number")
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected 0 or more")
        for name in ("label_smoothing", "drop_path_rate", "ema_decay", "warmup_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected 0 or more, below 1")
        if not 0 <= self.seed <= MOST_SEED:
            raise ValueError(f"seed is {self.seed}; expected 0 to {MOST_SEED}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; expected above 0, at most 1")
        if not self.stages:
            raise ValueError("stages is empty; expected at least one Stage(epochs, img_size)")
        _require_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        _require_choice("sampling", self.sampling, ("uniform", "sandwich", "fixed"))
        _require_choice("decay_rule", self.decay_rule, ("clean", "upstream"))
        self._check_combinations()

    def _check_combinations(self) -> None:
        """Refuse fields that do not go together, before hours are spent on them."""
        fixed = self.sampling == "fixed"
        if fixed and not (self.subnet or self.weights.model or self.weights.checkpoint):
            raise ValueError("sampling is fixed, but no subnet is given: name one in subnet")
        if not fixed and (self.subnet or self.weights.model):
            given = "subnet" if self.subnet else "weights.model"
            raise ValueError(f"{given} is one network; expected sampling fixed with it")
        if self.initial and (self.weights.model or self.weights.checkpoint):
            raise ValueError("initial and weights both say where to start from: give one")
        if self.data.source == MEMORY:
            needs_pil = {"policy": self.augment.policy, "color_jitter": self.augment.color_jitter}
            wrong = [name for name, value in needs_pil.items() if value]
            if self.augment.crop == "resized":
                wrong.append("crop resized")
            if wrong:
                raise ValueError(
                    f"augment.{wrong[0]} needs single images; the source {MEMORY!r} changes "
                    "whole batches: take source torch/cifar10"
                )

    @property
    def epochs(self) -> int:
        """Epochs of all stages."""
        return sum(stage.epochs for stage in self.stages)

    @property
    def largest_size(self) -> int:
        """Input side of the last stage in pixels: the size that the run is for."""
        return self.stages[-1].img_size

    def to_json(self) -> str:
        """Return indented JSON; `from_json` turns it back."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """Make a config from `to_json`'s output; what is left out is the default.

        Raises:
            ValueError: it is no JSON object, a key is unknown, or a value is refused.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"TrainConfig: not JSON: {error}") from None
        values = _checked_keys(cls, values)
        if "stages" in values:
            stages = values["stages"]
            values["stages"] = tuple(Stage(**_checked_keys(Stage, each)) for each in stages)
        for name, part in _PARTS.items():
            if name in values:
                values[name] = part(**_checked_keys(part, values[name]))
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Resources:
    """Where and how fast; nothing here changes what is computed, up to rounding."""

    device: str = "auto"  # as PyTorch names it; auto: CUDA where there is some
    workers: int = 2  # processes that decode and augment, for each training process
    accumulate: int = 1  # parts that each process does its share of a batch in, to save memory
    grad_checkpointing: bool = False  # run blocks again in the backward pass, to save memory
    compile: bool = False  # torch.compile; of sampling fixed only
    plot: bool = True  # draw curve.svg at the end

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}; expected 0 or more")
        if self.accumulate < 1:
            raise ValueError(f"accumulate is {self.accumulate}; expected 1 or more")


DEFAULT_RESOURCES = Resources()


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Say where two configs differ: `name=old, asked for new`, one a leaf."""
    return [
        f"{name}={old_value!r}, asked for {new_value!r}"
        for (name, old_value), (_, new_value) in zip(_leaves(old), _leaves(new), strict=True)
        if old_value != new_value
    ]


_POSITIVE = (
    *("batch_size", "lr", "sandwich_random", "evaluate_every", "log_every", "checkpoint_every"),
    "most_bad_steps",
)


_NOT_NEGATIVE = (
    *("num_classes", "held_out_per_class", "clip_grad", "weight_decay", "min_lr_ratio"),
    *("freeze_blocks", "most_rollbacks"),
)


# What JSON has for a field, by its annotation; choices and parts are checked where they are made.
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "true or false"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "a text"),
    "Stages": ((list,), "a list of stages, such as [{'epochs': 10, 'img_size': 32}]"),
}


_PARTS = {
    "data": DataConfig,
    "augment": AugmentConfig,
    "distill": DistillConfig,
    "weights": WeightsConfig,
}


def _leaves(config: TrainConfig) -> list[tuple[str, object]]:
    leaves: list[tuple[str, object]] = []
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in _PARTS:
            leaves += [(f"{field.name}.{p.name}", getattr(value, p.name)) for p in fields(value)]
        else:
            leaves.append((field.name, value))
    return leaves


def _checked_keys(cls: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise ValueError(f"{cls.__name__}: expected a JSON object, not {values!r}")
    if unknown := sorted(set(values) - {field.name for field in fields(cls)}):
        raise ValueError(f"{cls.__name__}: unknown keys {unknown}")
    for field in fields(cls):
        if field.name in values:
            kinds, expected = _KINDS.get(str(field.type), (None, ""))
            if kinds and type(values[field.name]) not in kinds:
                raise ValueError(
                    f"{cls.__name__}: {field.name} is {values[field.name]!r}; expected {expected}"
                )
        elif field.default is MISSING:
            raise ValueError(f"{cls.__name__}: {field.name} is missing")
    return dict(values)
