"""What a reproduction consists of: one frozen dataclass, its presets, the names of its parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import NonNegativeInt, PositiveInt

from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.specialization.evolution import EvolutionConfig
from training.search.config import DEFAULT_SEARCH, SearchConfig, config_to_dict
from training.settings.config import (
    AugmentConfig,
    DistillConfig,
    Stage,
    TrainConfig,
    WeightsConfig,
    config_dataclass,
)
from training.settings.presets import PRESETS as TRAIN_PRESETS

# Their results are stage-NAME.json. They are called phases here: `Stage` is a part of a training.
PhaseName = Literal["train", "search", "extract", "retrain", "evaluate", "compare", "report"]
PHASE_NAMES: tuple[PhaseName, ...] = get_args(PhaseName)

SEED = "{seed}"  # in the name of a file of answers: the seed of the run that learns from it
# Numbers of seeds of what is compared with the uniform supernets, seed by seed.
PAIRED = (
    "sandwich_seeds",
    "separate_seeds",
    "sandwich_images_seeds",
    "sandwich_no_smallest_seeds",
    "taught_seeds",
    "length_seeds",
    "finetuned_seeds",
)


@config_dataclass()
class ReproduceConfig:
    """Everything that decides what a reproduction computes.

    A question whose number is 0 is left out; the defaults leave out those that earlier versions did
    not ask, so that what these began can be finished.

    Raises:
        ValueError: a number is out of its range, or values do not go together.
    """

    train: TrainConfig = TRAIN_PRESETS["cifar10"]
    search: SearchConfig = DEFAULT_SEARCH
    seeds: PositiveInt = 3  # number of supernets, and of networks trained alone
    sandwich_seeds: NonNegativeInt = 3  # supernets under the sandwich rule; steps cost 4 times
    separate_seeds: NonNegativeInt = 3  # supernets with separate weights per choice
    sandwich_images_seeds: NonNegativeInt = 0  # sandwich supernets that see as many images in all
    sandwich_no_smallest_seeds: NonNegativeInt = 0  # such ones without the smallest subnet
    taught_seeds: NonNegativeInt = 0  # supernets that learn from stored answers
    distill: DistillConfig = DistillConfig(share=0.7)  # of these; {seed} in answers: the run's seed
    lengths: tuple[PositiveInt, ...] = ()  # other lengths in epochs to train supernet and winner
    length_seeds: NonNegativeInt = 0  # seeds of each length
    one_seed_lengths: tuple[PositiveInt, ...] = ()  # lengths to train with the first seed only
    alone_subnets: NonNegativeInt = 0  # random subnets to train alone, the first of those compared
    finetuned_seeds: NonNegativeInt = 0  # winners to fine-tune from inherited weights
    search_seeds: PositiveInt = 3  # searches by evolution, and as many random ones
    random_subnets: PositiveInt = 200  # random subnets of the first supernet to score
    compared_subnets: PositiveInt = 20  # how many of these are scored in every other supernet
    images: NonNegativeInt = 0  # held-out images that subnets are scored on (0: all)
    tests: bool = True  # open the test set at the end

    def __post_init__(self) -> None:
        if self.random_subnets < max(2, self.compared_subnets):
            raise ValueError(
                f"random_subnets is {self.random_subnets}; expected 2 or more, and at least "
                f"compared_subnets = {self.compared_subnets}"
            )
        for name in PAIRED:
            if getattr(self, name) > self.seeds:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; expected at most seeds = {self.seeds}: each "
                    "is compared with the uniform supernet of the same seed"
                )
        if self.alone_subnets > self.compared_subnets:
            raise ValueError(
                f"alone_subnets is {self.alone_subnets}; expected at most compared_subnets = "
                f"{self.compared_subnets}: they are scored in every uniform supernet"
            )
        lengths = self.lengths + self.one_seed_lengths
        if self.train.epochs in lengths or len(set(lengths)) < len(lengths):
            raise ValueError(
                f"lengths is {lengths}; expected different ones, other than the "
                f"{self.train.epochs} epochs of train"
            )
        if bool(self.lengths) != bool(self.length_seeds):
            raise ValueError(
                f"lengths is {self.lengths} and length_seeds {self.length_seeds}; expected both, "
                "or neither"
            )
        if not self.tests and (lengths or self.finetuned_seeds):
            raise ValueError(
                "tests is False, but lengths and fine-tuned winners are compared on the test set: "
                "expected no lengths and finetuned_seeds 0 with it"
            )
        self._check_teacher()
        if self.train.initial or self.train.weights != WeightsConfig():
            raise ValueError(
                "train.initial or train.weights names weights to start from; expected none: what "
                "is compared are trainings from random weights"
            )
        if not self.train.holds_out:
            raise ValueError(
                "train.held_out_per_class is 0 and train.data.held_out_split empty; candidates are "
                "scored on held-out images: give one of them"
            )
        if self.search.method != "evolution":
            raise ValueError(
                f"search.method is {self.search.method!r}; expected evolution: it is compared with "
                "random search anyway"
            )
        if self.train.sampling != "uniform":
            raise ValueError(
                f"train.sampling is {self.train.sampling!r}; expected uniform: the other ways of "
                "sampling are trained as well"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values; a bound that excludes nothing is None."""
        values = {**asdict(self), "search": config_to_dict(self.search)}
        return json.loads(json.dumps(values))  # type: ignore[no-any-return]

    def count(self, kind: str) -> int:
        """Return the number of supernets of a kind, one for each seed."""
        return int(self.seeds if kind == "uniform" else getattr(self, f"{kind}_seeds"))

    @property
    def seeds_of_lengths(self) -> dict[int, int]:
        """Return the number of seeds of each other length in epochs."""
        return dict.fromkeys(self.lengths, self.length_seeds) | dict.fromkeys(
            self.one_seed_lengths, 1
        )

    @property
    def finetuned_epochs(self) -> int:
        """Epochs of fine-tuning: a tenth of the training's."""
        return max(1, self.train.epochs // 10)

    def answers_of(self, seed: int) -> Path:
        """Return the file of a teacher's answers for a run of this seed."""
        return Path(self.distill.answers.replace(SEED, str(seed)))

    def require_answers(self) -> None:
        """Check that the files of a teacher's answers are there.

        Raises:
            FileNotFoundError: one is not; the text has the command that makes it.
        """
        for seed in range(self.train.seed, self.train.seed + self.taught_seeds):
            if not self.answers_of(seed).is_file():
                raise FileNotFoundError(
                    f"distill.answers {self.answers_of(seed)} is not there; python -m "
                    f"training.engine.teacher with --student-seed {seed} makes it"
                )

    def _check_teacher(self) -> None:
        if not self.taught_seeds:
            return
        make = (
            "python -m training.engine.teacher --data-dir DATA --out teacher-0 --preset PRESET "
            "--student-seed 0 makes those of seed 0"
        )
        if not self.distill.answers:
            raise ValueError(
                f"taught_seeds is {self.taught_seeds}, but distill.answers is empty; {make}"
            )
        if self.taught_seeds > 1 and SEED not in self.distill.answers:
            raise ValueError(
                f"distill.answers is {self.distill.answers} for {self.taught_seeds} seeds, each "
                f"with other held-out images; expected {SEED} in it; {make}"
            )


def complete(recorded: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded config with the settings that an earlier version did not know."""
    found = dict(defaults)
    for name, value in recorded.items():
        known = defaults.get(name)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            found[name] = complete(value, known)
        else:
            found[name] = value
    return found


# The whole method at CIFAR-10's scale, as in the paper. Meant for one GPU; not run to its end yet,
# so there is no time or accuracy to quote: the plan that the command prints has an estimate.
# python -m training.reproduce --data-dir DIR --out runs/reproduce --train.data.download
CIFAR10 = ReproduceConfig()

# The same questions within about an hour on 2 cores with bf16: images of 16 px, few epochs.
# Differences are what counts: a network trained alone had 45 % on the test set.
# python -m training.reproduce --preset cifar10-cpu --data-dir DIR --out runs/reproduce
CIFAR10_CPU = ReproduceConfig(
    train=TrainConfig(stages=(Stage(3, 16),), batch_size=128, lr=1.5e-3, evaluate_every=1),
    search=replace(DEFAULT_SEARCH, evolution=EvolutionConfig(generations=4)),
    images=1000,
)

# Random subnets have three tenths of the multiply-adds of nano's, and choices lie further apart, so
# that a set of some 40 trainings is affordable and subnets differ by more than the noise.
WIDE = SearchSpace(
    embed_dim=(64, 96, 128),
    num_heads=(1, 2),
    mlp_ratio=(2.0, 3.0, 4.0),
    depth=(4, 5, 6),
    supernet=SubnetConfig.uniform(6, 128, 2, 4.0),
    img_size=24,
    patch_size=4,
    num_classes=10,
)

# The questions at a size at which the answers mean something. Left out is the teacher, which needs
# its answers first. The report in training/results/cifar10-cpu-long, with the teacher
# (docs/reproduction.md has its commands): three seeds, 46 trainings that took 13.2 hours of one
# thread of an AMD EPYC with bf16, by two processes on 2 cores; the winner trained alone had 80.0 %
# on the test set. Muon: after 3 epochs the largest subnet of a pilot had 54.5 % of the held-out
# images right with it, 38.9 % with AdamW. `auto` is bf16 where the processor has instructions for
# it. On a CPU give the command once for each core:
# python -m training.reproduce --preset cifar10-cpu-long --data-dir DIR --out runs/long --threads 1
# With the teacher, for each seed N of 0, 1, 2 first:
# python -m training.engine.teacher --preset nano-distilled --student-seed N --data-dir DIR \
#     --out teacher-N
# python -m training.reproduce --preset cifar10-cpu-long --data-dir DIR --out runs/long \
#     --taught-seeds 3 --distill.answers "teacher-{seed}/answers.safetensors"
CIFAR10_CPU_LONG = replace(
    CIFAR10_CPU,
    train=TrainConfig(
        space=WIDE.to_json(),
        stages=(Stage(27, 16), Stage(3, 24)),
        batch_size=256,
        opt="nmuon",
        lr=2e-3,
        evaluate_every=5,
        augment=AugmentConfig(policy="batch-m4-n1"),  # the views of preset nano-distilled
    ),
    images=2500,
    sandwich_images_seeds=3,
    sandwich_no_smallest_seeds=3,
    lengths=(3, 10),
    length_seeds=3,
    one_seed_lengths=(100,),
    alone_subnets=8,
    finetuned_seeds=3,
)

# All phases on real images, to see that everything works: a few minutes on 2 cores. Without
# the question about the teacher, which needs its answers first.
# python -m training.reproduce --preset smoke --data-dir DIR --out runs/smoke
SMOKE = ReproduceConfig(
    train=replace(TRAIN_PRESETS["smoke"], held_out_per_class=4950, batch_size=50),
    search=replace(
        DEFAULT_SEARCH,
        evolution=EvolutionConfig(population=6, generations=3, keep=3, crossover=2, mutation=2),
    ),
    seeds=1,
    sandwich_seeds=1,
    separate_seeds=1,
    search_seeds=1,
    random_subnets=12,
    compared_subnets=4,
    images=200,
    sandwich_images_seeds=1,
    sandwich_no_smallest_seeds=1,
    lengths=(2,),
    length_seeds=1,
    alone_subnets=2,
    finetuned_seeds=1,
)

# The paper's values, one supernet each. Without questions (d) and (e), which need other supernets.
# Not run yet: it needs ImageNet.
# python -m training.reproduce --preset imagenet-tiny --data-dir IMAGENET --out runs/tiny
_IMAGENET = ReproduceConfig(
    train=TRAIN_PRESETS["imagenet-tiny"],
    seeds=1,
    sandwich_seeds=0,
    separate_seeds=0,
    search_seeds=1,
    images=10_000,
)

Preset = Literal[
    "cifar10",
    "cifar10-cpu",
    "cifar10-cpu-long",
    "smoke",
    "imagenet-tiny",
    "imagenet-small",
    "imagenet-base",
]
PRESETS: dict[str, ReproduceConfig] = {
    "cifar10": CIFAR10,
    "cifar10-cpu": CIFAR10_CPU,
    "cifar10-cpu-long": CIFAR10_CPU_LONG,
    "smoke": SMOKE,
    "imagenet-tiny": _IMAGENET,
    "imagenet-small": replace(_IMAGENET, train=TRAIN_PRESETS["imagenet-small"]),
    "imagenet-base": replace(_IMAGENET, train=TRAIN_PRESETS["imagenet-base"]),
}
