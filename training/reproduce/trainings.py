"""The trainings that a reproduction consists of: supernets of several kinds, and single networks.

A kind of supernet is a name and a change of the uniform one's config. Seed number i is the same for
all kinds, so that they hold out the same images and are compared seed by seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from autoformer_zoo.space import SubnetConfig
from training.reproduce.config import ReproduceConfig
from training.settings.config import Stage, TrainConfig, WeightsConfig

Change = Callable[[ReproduceConfig, TrainConfig], TrainConfig]


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One of the trainings of a reproduction.

    Args:
        kind: of a supernet, a name in `KINDS`; "alone" for the winner, "finetuned" for the winner
            from inherited weights, "random" for another subnet. `of_length` makes more.
        number: of its seed, from 0 on; of its subnet for kind random.
    """

    kind: str
    number: int

    @property
    def name(self) -> str:
        """Name of its directory and in results."""
        return f"{self.kind}-{self.number}"


FIRST = TrainingRun("uniform", 0)  # the supernet that is searched


def _sandwich(config: ReproduceConfig, train: TrainConfig) -> TrainConfig:
    return replace(train, sampling="sandwich")


def _sandwich_images(config: ReproduceConfig, train: TrainConfig) -> TrainConfig:
    return _with_as_many_images(train, _sandwich(config, train))


def _sandwich_no_smallest(config: ReproduceConfig, train: TrainConfig) -> TrainConfig:
    return _with_as_many_images(train, replace(_sandwich(config, train), sandwich_smallest=False))


def _with_as_many_images(train: TrainConfig, changed: TrainConfig) -> TrainConfig:
    """Shorten a training so that its networks see as many images as those of `train`."""
    epochs = max(1, round(train.epochs / changed.subnets_per_step))
    return replace(changed, stages=scale_stages(train.stages, epochs))


def _taught(config: ReproduceConfig, train: TrainConfig) -> TrainConfig:
    path = config.answers_of(train.seed)
    return replace(train, distill=replace(config.distill, answers=str(path)))


# The kinds that are compared; their numbers of seeds are `ReproduceConfig.count`'s.
KINDS: dict[str, Change] = {
    "uniform": lambda config, train: train,
    "sandwich": _sandwich,
    "separate": lambda config, train: train,  # the network is another one
    "sandwich_images": _sandwich_images,
    "sandwich_no_smallest": _sandwich_no_smallest,
    "taught": _taught,
}


def compared_supernets(config: ReproduceConfig) -> dict[TrainingRun, TrainConfig]:
    """Return the supernets whose subnets are compared."""
    return {
        TrainingRun(kind, i): change(config, _seeded(config, i))
        for kind, change in KINDS.items()
        for i in range(config.count(kind))
    }


def supernets(config: ReproduceConfig) -> dict[TrainingRun, TrainConfig]:
    """Return all supernets to train: those to compare, and uniform ones of other lengths."""
    lengths = {
        of_length("uniform", epochs, i): _lasting(_seeded(config, i), epochs)
        for epochs, seeds in config.seeds_of_lengths.items()
        for i in range(seeds)
    }
    return compared_supernets(config) | lengths


def single_networks(
    config: ReproduceConfig,
    winner: SubnetConfig,
    others: Sequence[SubnetConfig],
    weights: Callable[[TrainingRun], str],
) -> dict[TrainingRun, TrainConfig]:
    """Return the single networks to train, after the search.

    Args:
        config: of the reproduction.
        winner: of the search.
        others: random subnets.
        weights: returns the file of a supernet's trained weights.
    """

    def alone(train: TrainConfig, subnet: SubnetConfig = winner) -> TrainConfig:
        return replace(train, sampling="fixed", subnet=subnet.to_json())

    runs = {TrainingRun("alone", i): alone(_seeded(config, i)) for i in range(config.seeds)}
    for epochs, seeds in config.seeds_of_lengths.items():
        for i in range(seeds):
            lasting = _lasting(_seeded(config, i), epochs)
            runs[of_length("alone", epochs, i)] = alone(lasting)
    for n, subnet in enumerate(others[: config.alone_subnets]):
        runs[TrainingRun("random", n)] = alone(config.train, subnet)
    for i in range(config.finetuned_seeds):
        tuned = replace(
            alone(_seeded(config, i)),
            stages=(Stage(config.finetuned_epochs, config.train.largest_size),),
            lr=config.train.lr / 10,
            weights=WeightsConfig(checkpoint=weights(TrainingRun("uniform", i))),
        )
        runs[TrainingRun("finetuned", i)] = tuned
    return runs


def of_length(kind: str, epochs: int, number: int) -> TrainingRun:
    """Return the training of a kind, "uniform" or "alone", that lasts so many epochs."""
    return TrainingRun(f"{kind}_{epochs}", number)


def scale_stages(stages: Sequence[Stage], epochs: int) -> tuple[Stage, ...]:
    """Divide other `epochs`, at least 1, over stages in proportion to theirs.

    The last stage keeps one at least, since the run is for its input size; an earlier one that
    would have none is left out.
    """
    total = sum(stage.epochs for stage in stages)
    scaled, before, end = list[Stage](), 0, 0
    for stage in stages:
        end += stage.epochs
        after = epochs * end // total  # rounded down, so that the last stage is never empty
        if after > before:
            scaled.append(Stage(after - before, stage.img_size))
        before = after
    return tuple(scaled)


def _seeded(config: ReproduceConfig, number: int) -> TrainConfig:
    return replace(config.train, seed=config.train.seed + number)


def _lasting(train: TrainConfig, epochs: int) -> TrainConfig:
    return replace(train, stages=scale_stages(train.stages, epochs))
