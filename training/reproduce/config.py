"""What a reproduction consists of: one frozen dataclass, its presets, the names of its parts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from pydantic import NonNegativeInt, PositiveInt

from autoformer_zoo.specialization.evolution import EvolutionConfig
from training.search.config import DEFAULT_SEARCH, SearchConfig, config_to_dict
from training.settings.config import Stage, TrainConfig, config_dataclass
from training.settings.presets import PRESETS as TRAIN_PRESETS

# Their results are stage-NAME.json. They are called phases here: `Stage` is a part of a training.
PhaseName = Literal["train", "search", "extract", "retrain", "evaluate", "compare", "report"]
PHASE_NAMES: tuple[PhaseName, ...] = get_args(PhaseName)

RunKind = Literal["uniform", "sandwich", "separate", "alone"]


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One of the trainings of a reproduction.

    Args:
        kind: a supernet with uniform sampling, with the sandwich rule, or with separate weights per
            choice; or the winner alone.
        number: of its seed, from 0 on.
    """

    kind: RunKind
    number: int

    @property
    def name(self) -> str:
        """Name of its directory and in results."""
        return f"{self.kind}-{self.number}"


@config_dataclass()
class ReproduceConfig:
    """Everything that decides what a reproduction computes.

    Raises:
        ValueError: a number is out of its range, or values do not go together.
    """

    train: TrainConfig = TRAIN_PRESETS["cifar10"]
    search: SearchConfig = DEFAULT_SEARCH
    seeds: PositiveInt = 3  # number of supernets, and of networks trained alone
    sandwich_seeds: NonNegativeInt = 3  # supernets under the sandwich rule; steps cost 4 times
    separate_seeds: NonNegativeInt = 3  # supernets with separate weights per choice
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
        for name in ("sandwich_seeds", "separate_seeds"):
            if getattr(self, name) > self.seeds:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; expected at most seeds = {self.seeds}: each "
                    "is compared with the uniform supernet of the same seed"
                )
        if not (self.train.held_out_per_class or self.train.data.held_out_split):
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

    def supernets(self) -> dict[TrainingRun, TrainConfig]:
        """Return the supernets to train; seed number i is the same for all kinds."""
        counts: dict[RunKind, int] = {
            "uniform": self.seeds,
            "sandwich": self.sandwich_seeds,
            "separate": self.separate_seeds,
        }
        return {
            TrainingRun(kind, i): replace(
                self.train,
                seed=self.train.seed + i,
                sampling="sandwich" if kind == "sandwich" else "uniform",
            )
            for kind, count in counts.items()
            for i in range(count)
        }


# The whole method at CIFAR-10's scale, as in the paper. Meant for one GPU; not run to its end yet,
# so there is no time or accuracy to quote: the plan that the command prints has an estimate.
# python -m training.reproduce --data-dir DIR --out runs/reproduce --train.data.download True
CIFAR10 = ReproduceConfig()

# The same questions within about an hour on 2 cores with bf16: images of 16 px, few epochs.
# Differences are what counts: a network trained alone had 45 % on the test set. The report is in
# training/results/cifar10-cpu.
# python -m training.reproduce --preset cifar10-cpu --data-dir DIR --out runs/reproduce
CIFAR10_CPU = ReproduceConfig(
    train=TrainConfig(stages=(Stage(3, 16),), batch_size=128, lr=1.5e-3, evaluate_every=1),
    search=replace(DEFAULT_SEARCH, evolution=EvolutionConfig(generations=4)),
    images=1000,
)

# All phases on real images, to see that everything works: under 2 minutes on 2 idle cores.
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
    "cifar10", "cifar10-cpu", "smoke", "imagenet-tiny", "imagenet-small", "imagenet-base"
]
PRESETS: dict[str, ReproduceConfig] = {
    "cifar10": CIFAR10,
    "cifar10-cpu": CIFAR10_CPU,
    "smoke": SMOKE,
    "imagenet-tiny": _IMAGENET,
    "imagenet-small": replace(_IMAGENET, train=TRAIN_PRESETS["imagenet-small"]),
    "imagenet-base": replace(_IMAGENET, train=TRAIN_PRESETS["imagenet-base"]),
}
