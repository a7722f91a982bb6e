"""Search a trained supernet for the best subnet (arXiv 2107.00651, section 3.3).

`search` scores candidates with inherited weights on the held-out part of the training set; the test
set is never opened. The directory gets search.json (every candidate), front.svg, and the winner as
subnet.json and subnet.safetensors, which `create_model("autoformer_subnet", checkpoint_path=...)`
opens. A search that was stopped resumes with the same arguments and ends with the same search.json.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoformer_zoo.space import SearchSpace, SubnetConfig, misfit
from autoformer_zoo.specialization.constraints import Cost, Feasible, macs_cost, params_cost
from autoformer_zoo.specialization.evolution import Candidate, evolve, pareto_front, random_search
from autoformer_zoo.specialization.latency.measure import profile_device, time_subnet
from autoformer_zoo.specialization.latency.profile import LatencyProfile
from autoformer_zoo.weights.checkpoint import SubnetWeights, SupernetWeights, save_subnet
from training.engine.weights import resized
from training.run.directory import write_text
from training.run.distributed import SINGLE, Ranks
from training.run.journal import read_json, require_same, write_json
from training.search.config import SearchConfig, config_to_dict
from training.search.evaluation import SearchTask
from training.search.scoring import (
    JournaledScorer,
    require_same_ranking,
)

_log = logging.getLogger(__name__)

LATENCIES, BEGUN = "latency.json", "search-config.json"


def search(
    task: SearchTask,
    config: SearchConfig,
    out: Path,
    ranks: Ranks = SINGLE,
    progress: bool = True,
) -> dict[str, Any]:
    """Search, resuming if `out` holds this very search, and write the results.

    Args:
        task: weights, space and images.
        config: method and constraints.
        out: directory for search.json, front.svg, subnet.json and subnet.safetensors.
        ranks: this process among all.
        progress: show a progress bar.

    Returns:
        The content of search.json.

    Raises:
        ValueError: no subnet satisfies the constraints, `out` holds another search, or bf16 is
            requested and ranks otherwise than fp32.
        LostProcessError: another process ended.
    """
    if problem := misfit(task.space.largest, task.supernet.sizes):
        raise ValueError(f"the supernet is not of this space: {problem}")
    header: dict[str, Any] = {"config": config_to_dict(config), **task.identity}
    profile = find_latencies(task.scored_space, config, out, header, ranks)
    costs = costs_of(task.scored_space, profile)
    feasible = Feasible(task.space, config.bounds.on(costs))
    if profile is not None:
        ranks.by_first(lambda: keep_latencies(profile, header, out))
        # With other latencies it is another search.
        header["latency_sha256"] = hashlib.sha256(profile.to_json().encode()).hexdigest()
    if config.precision == "bf16":
        task = in_bf16(task, out, header, ranks, progress)
    scorer = JournaledScorer(task.accuracy, out, header, ranks, progress)
    started = time.perf_counter()
    method = evolve if config.method == "evolution" else random_search
    result = result_of(header, method(feasible, scorer, config.evolution), costs)
    if ranks.is_first:
        if scored := scorer.num_scored:
            seconds = time.perf_counter() - started
            _log.info("%d candidates in %.1f s, %.2f a second", scored, seconds, scored / seconds)
        write_result(result, task, profile, out)
    return result


def in_bf16(
    task: SearchTask, out: Path, header: Mapping[str, Any], ranks: Ranks, progress: bool = True
) -> SearchTask:
    """Return the task in bf16 after comparing its ranking with that in fp32; journaled as well.

    Raises:
        ValueError: bf16 ranks subnets otherwise than fp32.
    """
    bf16 = replace(task, precision="bf16")
    scorers = [
        JournaledScorer(scored.accuracy, out / f"ranking-{name}", header, ranks, progress)
        for name, scored in {"fp32": replace(task, precision="fp32"), "bf16": bf16}.items()
    ]
    tau = require_same_ranking(task.space, *scorers)
    if ranks.is_first:
        _log.info("bf16 ranks as fp32 does: Kendall's tau is %.3f", tau)
    return bf16


def winner_of(result: Mapping[str, Any]) -> SubnetConfig:
    """Return the best subnet of a search's result."""
    return SubnetConfig.from_dict(result["candidates"][result["best"]]["subnet"])


def cut_subnet(
    supernet: SupernetWeights, subnet: SubnetConfig, img_size: int | None = None
) -> SubnetWeights:
    """Return the weights that a subnet inherits.

    Args:
        supernet: trained weights.
        subnet: which one.
        img_size: side of the images in pixels; the supernet's by default. For another one the
            position embedding is resampled in fp32, as in scoring.
    """
    weights = supernet.cut(subnet)
    return resized(weights, img_size) if img_size else weights


def find_latencies(
    space: SearchSpace, config: SearchConfig, out: Path, header: Mapping[str, Any], ranks: Ranks
) -> LatencyProfile | None:
    """Read the profile that is named or was kept, or measure one; None if nothing needs it.

    Args:
        space: whose blocks.
        config: names the profile, or the device and the bounds.
        out: where `keep_latencies` keeps the profile.
        header: of the search that is begun or resumed.
        ranks: this process among all; rank 0 measures for all.

    Raises:
        ValueError: `out` holds another search, or the profile is of another space.
        FileNotFoundError: the profile does not exist.
    """
    if not config.latency_table and not config.bounds.constrain_latency:
        return None

    def find() -> LatencyProfile:
        kept, begun = out / LATENCIES, out / BEGUN
        is_begun = kept.exists() and begun.exists()
        if is_begun:  # another search must not overwrite what this one resumes with
            require_same(read_json(begun), header, out)
        if config.latency_table:
            path = Path(config.latency_table)
            if not path.is_file():
                raise FileNotFoundError(
                    f"latency_table {path} does not exist; make one with "
                    "python -m training.search.costs"
                )
            return LatencyProfile.load(path)
        if is_begun:
            return LatencyProfile.load(kept)
        return profile_device(
            space, device=config.latency_device, batch_size=config.latency_batch_size
        )

    return ranks.by_first(find)


def keep_latencies(profile: LatencyProfile, header: Mapping[str, Any], out: Path) -> None:
    """Write a profile beside a search that begins, so that it resumes with the same latencies."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / LATENCIES, profile.to_json() + "\n")
    write_json(header, out / BEGUN)


def costs_of(space: SearchSpace, profile: LatencyProfile | None) -> list[Cost]:
    """Return the costs that can be constrained: params, macs, and latency if there is a profile."""
    costs = [params_cost(space), macs_cost(space)]
    return costs if profile is None else [*costs, profile.cost(space)]


def result_of(
    header: Mapping[str, Any], candidates: list[Candidate], costs: list[Cost]
) -> dict[str, Any]:
    """Return the content of search.json: every candidate, the best one, and the front."""
    rows: list[dict[str, Any]] = [
        {
            "subnet": candidate.subnet.to_dict(),
            "score": candidate.score,
            "generation": candidate.generation,
            **{cost.name: cost.value(candidate.subnet) for cost in costs},
        }
        for candidate in candidates
    ]
    # Of equally good ones the smallest.
    best = max(range(len(rows)), key=lambda i: (rows[i]["score"], -rows[i]["params"], -i))
    front = pareto_front([(row["params"], row["score"]) for row in rows])
    return {**header, "best": best, "front_cost": "params", "front": front, "candidates": rows}


def write_result(
    result: dict[str, Any], task: SearchTask, profile: LatencyProfile | None, out: Path
) -> None:
    """Write search.json, its plot, and the winner."""
    from training.run.plots import plot_search

    winner = winner_of(result)
    write_json(result, out / "search.json")
    write_text(out / "subnet.json", winner.to_json() + "\n")
    save_subnet(cut_subnet(task.supernet, winner, task.img_size), out / "subnet.safetensors")
    plot_search(result, out / "front.svg")
    if profile is not None and profile.setting.device == "cpu":
        estimated = profile.cost(task.scored_space).value(winner)
        measured = time_subnet(task.scored_space, profile.setting, winner)
        _log.info(
            "latency of the winner: %.3f ms by the profile, %.3f measured", estimated, measured
        )
