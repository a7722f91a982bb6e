"""What can be set in training: frozen dataclasses, JSON on disk, command-line flags.

`TrainConfig` holds everything that decides what a run computes; the run directory keeps it, and a
run is not resumed under another one. `Resources` holds what decides only where and how fast. The
comments of the fields are the texts of `--help`. Presets are in `presets.py` and `finetune.py`.

Source: arXiv 2107.00651, section 4.1 and the supplement, for the values of the ImageNet presets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass
from typing_extensions import dataclass_transform
from tyro.constructors import PrimitiveConstructorSpec

from autoformer_zoo.published import find_space
from autoformer_zoo.space import SearchSpace

MAX_SEED = 2**63 - 1  # what every generator takes
MEMORY = "cifar10"  # the source that holds CIFAR-10 in memory; every other name is timm's
# Fields by the names that they had in earlier versions, whose runs can still be resumed.
RENAMED = {"most_bad_steps": "max_bad_steps", "most_rollbacks": "max_rollbacks"}

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
AboveZero = Annotated[float, Field(gt=0, le=1)]
CountOrShare = NonNegativeInt | Annotated[float, Field(gt=0, lt=1)]

_MAX_SHOWN = 60  # characters of a wrong value in an error
_MAX_DIFFERENCES = 5  # of two configs, in an error
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

T = TypeVar("T")


def describe_errors(error: ValidationError, prefix: str = "") -> str:
    """Return pydantic's errors in one line: "lr is -1.0; expected a value greater than 0"."""
    texts = []
    for detail in error.errors():
        text = detail["msg"].replace("Input should be", "expected")
        text = text.replace("expected greater", "expected a value greater")
        if "error" in detail.get("ctx", {}):  # raised in a __post_init__, whose own text is better
            text = str(detail["ctx"]["error"])
        elif detail["loc"]:
            value = f"{detail['input']!r:.{_MAX_SHOWN}}"
            text = f"{prefix}{'.'.join(map(str, detail['loc']))} is {value}; {text}"
        texts.append(text)
    return "; ".join(texts)


@dataclass_transform(frozen_default=True)
def config_dataclass(prefix: str = "") -> Callable[[type[T]], type[T]]:
    """Make a frozen dataclass whose values pydantic checks against the annotations.

    Its errors are a ValueError of one line, where pydantic's are some lines for each value.

    Args:
        prefix: of the flags of its fields, for errors.
    """

    def make(cls: type[T]) -> type[T]:
        made: Any = dataclass(frozen=True, config=_STRICT)(cls)
        init = made.__init__

        @wraps(init)
        def checked(self: T, *args: Any, **kwargs: Any) -> None:
            try:
                init(self, *args, **kwargs)
            except ValidationError as error:
                raise ValueError(describe_errors(error, prefix)) from None

        made.__init__ = checked
        return made  # type: ignore[no-any-return]

    return make


@config_dataclass()
class Stage:
    """A part of training at one input size.

    Small images have fewer tokens and so cost less: most epochs can be spent there.
    """

    epochs: PositiveInt
    img_size: PositiveInt  # pixels; a multiple of the space's patch size


def parse_stages(words: list[str]) -> tuple[Stage, ...]:
    """Parse stages from EPOCHS:PIXELS, such as 9:16 1:32.

    Raises:
        ValueError: a word has another form.
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


@config_dataclass("data.")
class DataConfig:
    """Which images. The test split is named here for the final evaluation alone."""

    source: str = MEMORY  # "cifar10" (in memory) or timm's: folder, torch/..., hfds/..., wds/...
    train_split: str = "train"  # name of the training split in the source
    held_out_split: str = ""  # name of a held-out split; empty: cut from the training split
    test_split: str = "validation"  # name of the test split, which training never opens
    download: bool = False  # let the source download its data, if it can
    image_key: str = ""  # member of a webdataset sample that is its image (empty: by suffix)
    label_key: str = ""  # member or field of json that is its label (empty: cls, txt or json)
    normalisation: Literal["cifar10", "imagenet"] = "cifar10"  # mean and std to normalise with
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"  # filter of resizing (not of cifar10)
    crop_pct: Annotated[float, Field(ge=0.1, le=1)] = 1.0  # side of the crop in evaluation

    def __post_init__(self) -> None:
        for name in ("train_split", "held_out_split"):
            if getattr(self, name) == self.test_split:
                raise ValueError(
                    f"data.{name} is the test split {self.test_split!r}, which only the final "
                    "evaluation may open: name another split"
                )
        if self.held_out_split == self.train_split:
            raise ValueError(
                f"data.held_out_split is the training split {self.train_split!r}; held-out "
                "images must not be trained on: name another split"
            )
        if self.source == MEMORY and self.normalisation != "cifar10":
            raise ValueError(
                f"data.normalisation is {self.normalisation!r}; the source {MEMORY!r} has its own: "
                "use the source torch/cifar10"
            )


@config_dataclass("augment.")
class AugmentConfig:
    """How training images are changed; timm's implementations, under timm's names."""

    crop: Literal["none", "shift", "resized"] = "shift"  # crop and flip (shift: pad by 1/8)
    policy: str = ""  # RandAugment or the like: rand-m9-mstd0.5-inc1 (cifar10: batch-m7-n2)
    color_jitter: NonNegativeFloat = 0.0  # strength of colour jitter; unused with a policy
    erasing: Share = 0.0  # probability of random erasing
    mixup: NonNegativeFloat = 0.0  # alpha of mixup (0: off)
    cutmix: NonNegativeFloat = 0.0  # alpha of CutMix (0: off)
    mix_probability: Share = 1.0  # probability that a batch is mixed
    mix_mode: Literal["batch", "pair", "elem"] = "batch"  # one ratio per batch, pair or image
    repeats: PositiveInt = 1  # augmented copies of an image per epoch, whose length is unchanged

    @property
    def mixes(self) -> bool:
        """True if images of a batch are mixed."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_probability > 0


@config_dataclass("distill.")
class DistillConfig:
    """A teacher whose answers are learned beside the labels.

    Either a network whose predicted class is learned in every step (DeiT, arXiv 2012.12877), or
    stored soft answers to a fixed set of views (arXiv 1503.02531, 2106.05237).
    """

    teacher: str = ""  # timm model to learn from, such as regnety_160 (empty: none)
    checkpoint: str = ""  # weights of the teacher (empty: timm's pretrained ones)
    answers: str = ""  # file of stored answers to learn from (training.engine.teacher)
    temperature: PositiveFloat = 2.0  # temperature that softens stored answers
    share: Share = 0.5  # weight of the teacher in the loss

    def __post_init__(self) -> None:
        if self.answers and self.teacher:
            raise ValueError("distill.answers and distill.teacher both name a teacher: give one")
        if self.checkpoint and not self.teacher:
            raise ValueError("distill.checkpoint is given without distill.teacher: name the model")


@config_dataclass("weights.")
class WeightsConfig:
    """Trained weights to start from; random ones if model and checkpoint are empty."""

    model: str = ""  # model of the zoo to start from, with pretrained weights (sampling fixed)
    checkpoint: str = ""  # file to start from: a supernet (official, PreNAS, canonical), a subnet
    new_head: bool = False  # start with a new head even if the weights have as many classes
    layout: Literal["", "packed_prefix", "packed_interleaved"] = ""  # qkv packing of a .pth file

    def __post_init__(self) -> None:
        if self.model and self.checkpoint:
            raise ValueError("weights.model and weights.checkpoint both name weights: give one")
        if self.layout and not self.checkpoint:
            raise ValueError("weights.layout describes a file: give weights.checkpoint with it")
        if self.new_head and not (self.model or self.checkpoint):
            raise ValueError("weights.new_head is given, but no weights whose head is replaced")


@config_dataclass()
class TrainConfig:
    """Everything that decides what a run computes.

    Raises:
        ValueError: a value is out of its range, or does not go with another one.
    """

    space: str = "nano"  # name in autoformer_zoo.SPACES, or a SearchSpace as JSON
    num_classes: NonNegativeInt = 0  # number of classes of the head (0: as the data has)
    stages: Annotated[Stages, Field(min_length=1)] = (Stage(10, 32),)  # input sizes, in order
    batch_size: PositiveInt = 64  # images per step, over all processes and accumulated parts
    sampling: Literal["uniform", "sandwich", "fixed"] = "uniform"  # which subnets a step trains
    sandwich_random: PositiveInt = 2  # random subnets of a sandwich step, beside the extremes
    sandwich_smallest: bool = True  # train the smallest subnet in every sandwich step
    subnet: str = ""  # subnet of sampling fixed: a name in SUBNETS, or a SubnetConfig as JSON
    opt: str = "adamw"  # optimizer: any that timm's create_optimizer_v2 knows
    lr: PositiveFloat = 1e-3  # learning rate after the warm-up
    min_lr_ratio: NonNegativeFloat = 0.01  # learning rate at the end, as a share of lr
    warmup_fraction: BelowOne = 0.05  # share of all steps that warm up
    weight_decay: NonNegativeFloat = 0.05  # weight decay
    decay_rule: Literal["clean", "upstream"] = "clean"  # upstream: relative tables decay too
    layer_decay: AboveZero = 1.0  # factor of the learning rate per block below the last
    freeze_blocks: NonNegativeInt = 0  # number of first blocks to freeze, with the embeddings
    label_smoothing: BelowOne = 0.1  # label smoothing
    drop_path_rate: BelowOne = 0.0  # stochastic depth of the last block (of the supernet)
    clip_grad: NonNegativeFloat = 1.0  # largest norm of the gradient (0: no clipping)
    ema_decay: BelowOne = 0.999  # decay of the average of weights, per step
    initial: str = ""  # run directory whose weights to start from; averaging starts anew
    precision: Precision = "auto"  # precision of training (auto: bf16 if the device is fast at it)
    held_out_per_class: CountOrShare = 500  # images held out per class (0: none; <1: a share)
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0  # seed of everything random
    evaluate_every: PositiveInt = 2  # epochs between evaluations on the held-out images
    log_every: PositiveInt = 50  # steps between lines of the log
    checkpoint_every: PositiveInt = 200  # steps between checkpoints
    max_bad_steps: PositiveInt = 20  # non-finite steps in a row before a return to a checkpoint
    max_rollbacks: NonNegativeInt = 3  # returns to a checkpoint before the run is given up
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    distill: DistillConfig = DistillConfig()
    weights: WeightsConfig = WeightsConfig()

    def __post_init__(self) -> None:
        """Refuse fields that do not go together, before hours are spent on them."""
        fixed = self.sampling == "fixed"
        if fixed and not (self.subnet or self.weights.model or self.weights.checkpoint):
            raise ValueError("sampling is fixed, but no subnet is given: name one in subnet")
        if not fixed and (self.subnet or self.weights.model):
            given = "subnet" if self.subnet else "weights.model"
            raise ValueError(f"{given} is one network; expected sampling fixed with it")
        if self.initial and (self.weights.model or self.weights.checkpoint):
            raise ValueError("initial and weights both name weights to start from: give one")
        if self.data.source == MEMORY:
            policy, wrong = self.augment.policy, []
            if policy and not policy.startswith("batch-"):
                wrong.append("policy")
            if self.augment.color_jitter:
                wrong.append("color_jitter")
            if self.augment.crop == "resized":
                wrong.append("crop resized")
            if wrong:
                raise ValueError(
                    f"augment.{wrong[0]} needs single images; the source {MEMORY!r} changes "
                    "whole batches: use the source torch/cifar10"
                )

    @property
    def epochs(self) -> int:
        """Epochs of all stages."""
        return sum(stage.epochs for stage in self.stages)

    @property
    def holds_out(self) -> bool:
        """True if there are held-out images, as far as the config shows it."""
        has_split = self.data.held_out_split and self.data.source != MEMORY  # which has none
        return bool(self.held_out_per_class or has_split)

    @property
    def subnets_per_step(self) -> int:
        """Subnets that a step trains."""
        if self.sampling != "sandwich":
            return 1
        return 1 + self.sandwich_smallest + self.sandwich_random

    @property
    def largest_size(self) -> int:
        """Input side of the last stage in pixels: the size that the run is for."""
        return self.stages[-1].img_size

    def to_json(self) -> str:
        """Return indented JSON; `from_json` turns it back."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """Make a config from `to_json`'s output; what is left out has its default.

        Raises:
            ValueError: the text is not a JSON object, a key is unknown, or a value is refused.
        """
        try:
            values = json.loads(text)
            if isinstance(values, dict):
                values = {RENAMED.get(name, name): value for name, value in values.items()}
            # As JSON once more: only in JSON may a list be a tuple and an object a dataclass.
            return TypeAdapter(cls).validate_json(json.dumps(values))
        except ValidationError as error:
            raise ValueError(describe_errors(error)) from None
        except (ValueError, RecursionError) as error:  # the latter by thousands of brackets
            raise ValueError(f"not JSON: {error}") from None


@config_dataclass()
class Resources:
    """Where and how fast. Of these only `accumulate` changes what is drawn, part by part."""

    device: str = "auto"  # device by PyTorch's name (auto: CUDA if there is a GPU)
    threads: NonNegativeInt = 0  # CPU threads per training process (0: as PyTorch chooses)
    workers: NonNegativeInt = 2  # processes that decode and augment, per training process
    accumulate: PositiveInt = 1  # parts that a process cuts its share of a batch in, to save memory
    grad_checkpointing: bool = False  # compute blocks again in the backward pass, to save memory
    compile: bool = False  # compile the network with torch.compile (sampling fixed only)
    plot: bool = True  # draw figures at the end: curve, confusion matrix, worst mistakes


DEFAULT_RESOURCES = Resources()


def space_of(config: TrainConfig) -> SearchSpace:
    """Return the config's space, with the config's number of classes."""
    space = find_space(config.space)
    return replace(space, num_classes=config.num_classes or space.num_classes)


def require_same(old: Mapping[str, Any], new: Mapping[str, Any], where: Path) -> None:
    """Refuse to resume under another config.

    Raises:
        ValueError: they differ; the text shows the first differences.
    """
    if found := differences(old, new):
        raise ValueError(
            f"{where} was begun with {'; '.join(found[:_MAX_DIFFERENCES])}: give another --out or "
            "the same arguments"
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Compare two configs as `asdict` or JSON has them: "data.crop_pct=1.0, requested 0.5".

    Earlier names of a field count as its name. A value that one of them lacks is None.
    """
    before, now = dict(_leaves(old)), dict(_leaves(new))
    return [
        f"{name}={before.get(name)!r}, requested {now.get(name)!r}"
        for name in before | now
        if before.get(name) != now.get(name)
    ]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested values by dotted names, as their flags have them."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + RENAMED.get(name, name), value
