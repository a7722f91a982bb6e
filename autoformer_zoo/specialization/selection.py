"""`az.specialize`: from a space and a budget to the best subnets, with what they cost.

Joins the parts: predicted accuracy (`predictor.py`), costs and bounds (`constraints.py`), the
latency profile of this machine (`latency/`) and the search (`search.py`).
"""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from autoformer_zoo.published import SPACES, find_space
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.specialization.constraints import (
    INFINITE,
    Bounds,
    Cost,
    Feasible,
    macs_cost,
    params_cost,
    reachable,
)
from autoformer_zoo.specialization.evolution import EvolutionConfig
from autoformer_zoo.specialization.predictor import Predictor, Top1, load_predictor, space_name
from autoformer_zoo.specialization.search import find_best

if TYPE_CHECKING:
    from autoformer_zoo.specialization.latency.profile import (
        Backend,
        Device,
        LatencyProfile,
        Precision,
    )

# Of a latency, where nothing is asked for.
DEFAULT_SETTING: dict[str, Any] = {
    "device": "cpu",
    "backend": "eager",
    "precision": "fp32",
    "batch_size": 1,
    "threads": None,
}
SAMPLED = 1000  # random subnets behind a median


@dataclass(frozen=True, slots=True)
class Specialized:
    """A subnet that was found, with what it costs and its predicted accuracy.

    Args:
        subnet: the architecture, for `create_model(..., subnet=...)`.
        top1: predicted, not measured.
        params: number of parameters.
        macs: multiply-adds of one image.
        latency_ms: of one call, by the profile; None if there is no profile.
    """

    subnet: SubnetConfig
    top1: Top1
    params: int
    macs: int
    latency_ms: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {**asdict(self), "subnet": self.subnet.to_dict()}


@dataclass(frozen=True)
class Choices:
    """A space with what decides between its subnets.

    Args:
        space: where subnets come from.
        predictor: of their accuracy.
        costs: params, macs, and latency_ms if there is a profile.
    """

    space: SearchSpace
    predictor: Predictor
    costs: tuple[Cost, ...]

    @classmethod
    def of(
        cls,
        space: str | SearchSpace,
        predictor: str | os.PathLike[str] | None = None,
        profile: LatencyProfile | None = None,
    ) -> Choices:
        """Make the choices of a space.

        Args:
            space: a name of `SPACES`, or another space.
            predictor: file that `training.fit_predictor` wrote; by default the space's own.
            profile: latencies on the machine in question.

        Raises:
            ValueError: the space is unknown or has no predictor, or the predictor or the profile is
                of another one.
        """
        sizes = find_space(space) if isinstance(space, str) else space
        if predictor is None:
            found = load_predictor(space_name(sizes))
        else:
            found = load_predictor(os.fspath(predictor))
            _require_space(found, sizes, os.fspath(predictor))
        costs = [params_cost(sizes), macs_cost(sizes)]
        if profile is not None:
            costs.append(profile.cost(sizes))
        return cls(sizes, found, tuple(costs))

    def search(self, bounds: Bounds, top: int = 1, seed: int = 0) -> list[Specialized]:
        """Return the best subnets within the bounds, highest predicted top-1 first.

        Raises:
            ValueError: no subnet is within them; the text has the range that can be reached.
        """
        feasible = Feasible(self.space, bounds.on(self.costs))
        found = find_best(feasible, self.score, top, EvolutionConfig(seed=seed))
        return self.describe([candidate.subnet for candidate in found])

    def score(self, subnets: Sequence[SubnetConfig]) -> list[float]:
        """Return the predicted top-1 of subnets in percent."""
        values: list[float] = self.predictor.predict(subnets).tolist()
        return values

    def describe(self, subnets: Sequence[SubnetConfig]) -> list[Specialized]:
        """Return subnets with their costs and predictions."""
        params, macs, *latency = self.costs
        return [
            Specialized(
                subnet,
                top1,
                int(params.value(subnet)),
                int(macs.value(subnet)),
                latency[0].value(subnet) if latency else None,
            )
            for subnet, top1 in zip(subnets, self.predictor.intervals(subnets), strict=True)
        ]

    def reach(self, seed: int = 0) -> dict[str, tuple[float, float, float]]:
        """Return the smallest, median and largest value of each cost, and of the predicted top-1.

        The ends are exact for costs and found by the search for top-1; medians are those of random
        subnets.
        """
        rng = random.Random(f"reach/{seed}")
        drawn = [self.space.sample(rng) for _ in range(SAMPLED)]
        found = {}
        for cost in self.costs:
            low, high = reachable(self.space, cost)
            found[cost.name] = (low, statistics.median(map(cost.value, drawn)), high)
        feasible, config = Feasible(self.space), EvolutionConfig(seed=seed)
        worst = find_best(feasible, lambda s: [-value for value in self.score(s)], 1, config)
        best = find_best(feasible, self.score, 1, config)
        median = statistics.median(self.score(drawn))
        return {**found, "top1": (-worst[0].score, median, best[0].score)}


def specialize(
    space: str | SearchSpace,
    *,
    max_params: float = INFINITE,
    max_macs: float = INFINITE,
    max_latency_ms: float = INFINITE,
    min_params: float = 0,
    min_macs: float = 0,
    min_latency_ms: float = 0,
    device: Device = "cpu",
    backend: Backend = "eager",
    precision: Precision = "fp32",
    batch_size: int = 1,
    threads: int | None = None,
    top: int = 5,
    seed: int = 0,
    profile: LatencyProfile | None = None,
    predictor: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> list[Specialized]:
    """Find the subnets of a space with the highest predicted accuracy within a budget.

    The weights need no training: `create_model("autoformer_small", pretrained=True, subnet=...)`.

    Args:
        space: a name of `SPACES`, or another space.
        max_params: most parameters.
        max_macs: most multiply-adds of one image.
        max_latency_ms: longest time of one call. The first time, this measures a profile of the
            machine for some minutes (`profile_device`); later calls find it in the cache.
        min_params: fewest parameters.
        min_macs: fewest multiply-adds.
        min_latency_ms: shortest time of one call.
        device: of the latency, as the next four: see `profile_device`.
        backend: see there.
        precision: see there.
        batch_size: see there.
        threads: see there.
        top: number of subnets to return.
        seed: of the search; the same one gives the same answer.
        profile: latencies of another machine, instead of this one's.
        predictor: a file of `python -m training.fit_predictor`, for spaces without their own.
        progress: show a progress bar while measuring.

    Returns:
        The best subnets, highest predicted top-1 first. `latency_ms` is None if latency has no
        bound and the machine has no profile.

    Raises:
        ValueError: an argument is refused, the space has no predictor, or no subnet is within the
            bounds; the text has the range that can be reached.
    """
    if top < 1:
        raise ValueError(f"top is {top}; expected 1 or more")
    bounds = Bounds(min_params, max_params, min_macs, max_macs, min_latency_ms, max_latency_ms)
    setting: dict[str, Any] = {
        "device": device,
        "backend": backend,
        "precision": precision,
        "batch_size": batch_size,
        "threads": threads,
    }
    choices, _ = with_latency(
        space, predictor, bounds, profile, setting, bool(bounds.constrain_latency), progress
    )
    return choices.search(bounds, top, seed)


def with_latency(
    space: str | SearchSpace,
    predictor: str | os.PathLike[str] | None,
    bounds: Bounds,
    profile: LatencyProfile | None,
    setting: Mapping[str, Any],
    measure: bool,
    progress: bool,
) -> tuple[Choices, LatencyProfile | None]:
    """Make the choices of a space with the latencies of `profile`, or else of this machine.

    Args:
        space: as in `specialize`.
        predictor: as in `specialize`.
        bounds: those out of reach are reported before minutes are spent on measuring.
        profile: latencies of another machine or setting.
        setting: arguments of `find_profile`, for this machine.
        measure: measure this machine if the cache has no profile of it.
        progress: show a progress bar while measuring.

    Raises:
        ValueError: as `specialize`; or a setting is not that of the profile.
    """
    choices = Choices.of(space, predictor, profile)
    Feasible(choices.space, bounds.on(choices.costs))
    if profile is not None:
        _require_setting(profile, setting)
        return choices, profile
    from autoformer_zoo.specialization.latency.measure import find_profile, profile_device

    if measure:
        profile = profile_device(space, **setting, progress=progress)
    else:
        profile = find_profile(space, **setting)
    return Choices.of(space, predictor, profile), profile


def _require_space(predictor: Predictor, space: SearchSpace, file: str) -> None:
    """Refuse a predictor that was fitted to another known space."""
    known = SPACES.get(predictor.facts.get("space", ""), space)
    if known != space and space in SPACES.values():
        raise ValueError(
            f"{file} predicts subnets of {predictor.facts['space']}, not of {space_name(space)}: "
            "give the file of this space"
        )


def _require_setting(profile: LatencyProfile, setting: Mapping[str, Any]) -> None:
    """Refuse settings that a profile does not have; defaults are those that were not given."""
    for name, value in setting.items():
        measured = getattr(profile.setting, name)
        if value not in (DEFAULT_SETTING[name], measured):
            raise ValueError(
                f"{name} is {value}, but the profile was measured with {measured}: leave it out, "
                "or give the profile of that setting"
            )
