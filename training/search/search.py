"""Search a trained supernet for the best subnet within limits (arXiv 2107.00651, section 3.3).

    python -m training.search --run-dir runs/cifar10 --data-dir DATA --out runs/search
    python -m training.search --run-dir runs/cifar10 --data-dir DATA --out runs/small \
        --bounds.max-params 2e6 --bounds.max-latency-ms 4
    torchrun --nproc-per-node 2 -m training.search ...

Candidates are scored with inherited weights on the held-out part of the training set; the test set
is never opened. The directory gets search.json (every candidate), front.svg, and the winner as
subnet.json and subnet.safetensors, which `create_model("autoformer_subnet", checkpoint_path=...)`
opens. The same command goes on where a stopped search was, to the same search.json.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from autoformer_zoo.factory import extract_subnet
from autoformer_zoo.space import SearchSpace, SubnetConfig, misfit
from autoformer_zoo.weights.checkpoint import SubnetWeights, SupernetWeights, save_subnet
from autoformer_zoo.weights.slicing import slice_supernet
from training.run.directory import write_text
from training.run.distributed import Ranks
from training.run.journal import read_json, require_same, write_json
from training.search.config import Bounds, SearchConfig, config_to_dict
from training.search.constraints import INFINITE, Constraint, Cost, Feasible
from training.search.costs import (
    LatencyTable,
    macs_cost,
    measure_latencies,
    measure_ms,
    params_cost,
)
from training.search.evaluation import Subject
from training.search.evolution import Candidate, evolve, pareto_front, random_search
from training.search.scoring import SpreadScore, join_ranks, require_same_ranking, threads_for

_log = logging.getLogger(__name__)

LATENCIES, BEGUN = "latency.json", "search-config.json"


def search(
    subject: Subject, config: SearchConfig, out: Path, progress: bool = True
) -> dict[str, Any]:
    """Search, going on from `out` where it holds this very search, and write what was found.

    Args:
        subject: weights, space and images.
        config: how to search, and within which limits.
        out: directory for search.json, front.svg, subnet.json and subnet.safetensors.
        progress: show a progress bar.

    Returns:
        The content of search.json.

    Raises:
        ValueError: no subnet keeps the limits, `out` holds another search, or bf16 is asked for and
            ranks otherwise.
        SearchError: a process of several failed or was lost.
    """
    if problem := misfit(subject.space.largest, subject.supernet.sizes):
        raise ValueError(f"the supernet is not of this space: {problem}")
    rank, world = join_ranks()
    threads_for(world)
    header: dict[str, Any] = {"config": config_to_dict(config), **subject.identity}
    ranks = Ranks(torch.device("cpu"), rank, world)
    table = find_latencies(subject.scored_space, config, out, header, ranks)
    costs = costs_of(subject.scored_space, table)
    feasible = Feasible(subject.space, constraints_of(config.bounds, costs))
    if table is not None:
        ranks.by_first(partial(keep_latencies, table, header, out))
        # Other latencies, another search.
        header["latency_sha256"] = hashlib.sha256(table.to_json().encode()).hexdigest()
    if config.precision == "bf16":
        subject = in_bf16(subject, out, header, rank, world, progress)
    score = SpreadScore(subject.accuracy, out, header, rank, world, progress)
    started = time.perf_counter()
    method = evolve if config.method == "evolution" else random_search
    evaluated = method(feasible, score, config.evolution)
    result = result_of(header, evaluated, costs)
    if rank == 0:
        _log_speed(score.scored, time.perf_counter() - started)
        write_result(result, subject, table, out)
    return result


def in_bf16(
    subject: Subject,
    out: Path,
    header: Mapping[str, Any],
    rank: int = 0,
    world: int = 1,
    progress: bool = True,
) -> Subject:
    """Return the subject in bf16, which was held against fp32 first; journaled like any scores.

    Raises:
        ValueError: bf16 ranks subnets otherwise.
    """
    half = replace(subject, precision="bf16")
    scores = [
        SpreadScore(each.accuracy, out / name, header, rank, world, progress)
        for name, each in (("ranking-fp32", subject), ("ranking-bf16", half))
    ]
    tau = require_same_ranking(subject.space, *scores)
    if rank == 0:
        _log.info("bf16 ranks as fp32 does: Kendall's tau is %.3f", tau)
    return half


def winner_of(result: Mapping[str, Any]) -> SubnetConfig:
    """Return the best subnet of a search's result."""
    return SubnetConfig.from_dict(result["candidates"][result["best"]]["subnet"])


def cut_subnet(
    supernet: SupernetWeights, subnet: SubnetConfig, img_size: int | None = None
) -> SubnetWeights:
    """Return the weights that a subnet inherits, in tensors of their own.

    Args:
        supernet: trained weights.
        subnet: which one.
        img_size: side of the images that it is for; the supernet's where None. For another one
            the position embedding is resampled, in fp32, as in scoring.
    """
    tensors = slice_supernet(supernet.tensors, supernet.sizes, subnet, supernet.bias_rule)
    own = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    size = (img_size, img_size) if img_size else supernet.img_size
    if size != supernet.img_size:
        own["pos_embed"] = extract_subnet(supernet, subnet, size).pos_embed.detach()
    return SubnetWeights(
        own,
        subnet,
        *(size, supernet.patch_size, supernet.in_chans, supernet.num_classes),
        supernet.metadata,
    )


def find_latencies(
    space: SearchSpace, config: SearchConfig, out: Path, header: Mapping[str, Any], ranks: Ranks
) -> LatencyTable | None:
    """Read the table that is named or was kept, or measure one; None where nothing asks for it.

    Args:
        space: whose blocks.
        config: names the table, or the device and the bounds.
        out: where `keep_latencies` keeps them.
        header: of the search, that going on has to be of.
        ranks: this process among all; the first one measures for all.

    Raises:
        ValueError: `out` holds another search, or the table is none of this space.
        FileNotFoundError: the table is not there.
    """
    if config.latency_table:
        path = Path(config.latency_table)
        if not path.is_file():
            raise FileNotFoundError(
                f"latency_table {path} is not there; python -m training.search.costs makes one"
            )
        return LatencyTable.from_json(path.read_text())
    if not config.bounds.limits_latency:
        return None

    def find() -> LatencyTable:
        path, begun = out / LATENCIES, out / BEGUN
        if path.exists() and begun.exists():
            require_same(read_json(begun), header, out)
            return LatencyTable.from_json(path.read_text())
        return measure_latencies(space, config.latency_device, config.latency_batch_size)

    return ranks.by_first(find)


def keep_latencies(table: LatencyTable, header: Mapping[str, Any], out: Path) -> None:
    """Keep a table beside a search that can begin, so that going on sees the same latencies."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / LATENCIES, table.to_json() + "\n")
    write_json(header, out / BEGUN)


def costs_of(space: SearchSpace, table: LatencyTable | None) -> list[Cost]:
    """Return what can be limited: parameters, multiply-adds, and latency where there is a table."""
    costs = [params_cost(space), macs_cost(space)]
    return costs if table is None else [*costs, table.cost(space)]


def constraints_of(bounds: Bounds, costs: Iterable[Cost]) -> list[Constraint]:
    """Return the bounds that limit anything."""
    limits = []
    for cost in costs:
        low, high = (getattr(bounds, f"{end}_{cost.name}") for end in ("min", "max"))
        if low > 0 or high < INFINITE:
            limits.append(Constraint(cost, low, high))
    return limits


def result_of(
    header: Mapping[str, Any], evaluated: list[Candidate], costs: list[Cost]
) -> dict[str, Any]:
    """Return the content of search.json: every candidate, the best one, and the front."""
    candidates: list[dict[str, Any]] = [
        {
            "subnet": each.subnet.to_dict(),
            "score": each.score,
            "generation": each.generation,
            **{cost.name: cost.value(each.subnet) for cost in costs},
        }
        for each in evaluated
    ]
    # Of equally good ones the smallest.
    best = max(
        range(len(candidates)),
        key=lambda i: (candidates[i]["score"], -candidates[i]["params"], -i),
    )
    front = pareto_front([(each["params"], each["score"]) for each in candidates])
    return {
        **header,
        "best": best,
        "front_cost": "params",
        "front": front,
        "candidates": candidates,
    }


def write_result(
    result: dict[str, Any], subject: Subject, table: LatencyTable | None, out: Path
) -> None:
    """Write search.json, its plot, and the winner."""
    from training.run.plots import plot_search

    winner = winner_of(result)
    write_json(result, out / "search.json")
    write_text(out / "subnet.json", winner.to_json() + "\n")
    save_subnet(cut_subnet(subject.supernet, winner, subject.img_size), out / "subnet.safetensors")
    plot_search(result, out / "front.svg")
    if table is not None and table.device == "cpu":
        summed = table.cost(subject.scored_space).value(winner)
        measured = measure_ms(subject.scored_space, winner, table)
        _log.info("latency of the winner: %.3f ms by the table, %.3f measured", summed, measured)


def _log_speed(scored: int, seconds: float) -> None:
    if scored:
        _log.info("%d candidates in %.1f s, %.2f a second", scored, seconds, scored / seconds)
