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
import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

from autoformer_zoo.checkpoint import (
    SubnetWeights,
    SupernetWeights,
    load_supernet,
    save_subnet,
)
from autoformer_zoo.extract import extract_subnet, slice_supernet
from autoformer_zoo.space import SearchSpace, SubnetConfig, misfit
from training.config import PRESETS, Resources
from training.costs import LatencyTable, macs_cost, measure_latencies, measure_ms, params_cost
from training.distributed import Ranks
from training.evaluate import LabelledBatch, inherited_accuracy, load_averaged
from training.evolution import (
    DEFAULT_EVOLUTION,
    Evaluated,
    EvolutionConfig,
    evolve,
    pareto_front,
    random_search,
)
from training.journal import require_same, write_json
from training.limits import Cost, Feasible, Limit
from training.networks import space_of
from training.ranking import require_same_ranking
from training.run_directory import read_config, write_text
from training.sources import Batch, Source, open_source
from training.spread import SpreadScore, join_ranks, threads_for

_log = logging.getLogger(__name__)

INFINITE = float("inf")
LATENCIES, BEGUN = "latency.json", "search-config.json"
MOST_KEPT_BYTES = 8 << 30  # of held-out pictures; more are read again for every candidate


@dataclass(frozen=True, slots=True)
class Bounds:
    """Ranges of costs that a subnet has to stay in, ends included; several hold together.

    Raises:
        ValueError: a bound is no number or below 0, or a range is empty.
    """

    min_params: float = 0
    max_params: float = INFINITE
    min_macs: float = 0  # of one picture
    max_macs: float = INFINITE
    min_latency_ms: float = 0  # of one call, see `SearchConfig.latency_table`
    max_latency_ms: float = INFINITE

    def __post_init__(self) -> None:
        for name in ("params", "macs", "latency_ms"):
            low, high = (getattr(self, f"{end}_{name}") for end in ("min", "max"))
            for end, value in (("min", low), ("max", high)):
                if not value >= 0:  # nan is not, either
                    raise ValueError(f"bounds.{end}_{name} is {value:g}; expected 0 or more")
            if low > high:
                raise ValueError(
                    f"bounds.min_{name} is {low:g} and bounds.max_{name} {high:g}; expected the "
                    "lower end first"
                )

    @property
    def limits_latency(self) -> bool:
        """Whether latency is limited at all."""
        return self.min_latency_ms > 0 or self.max_latency_ms < INFINITE


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """Everything that decides what a search computes, beside the weights and the pictures."""

    method: Literal["evolution", "random"] = "evolution"
    bounds: Bounds = Bounds()
    evolution: EvolutionConfig = DEFAULT_EVOLUTION
    latency_table: str = ""  # file of training.costs; empty: measured here, where it is limited
    latency_device: Literal["cpu", "cuda"] = "cpu"  # where it is measured then
    latency_batch_size: int = 1  # pictures a call
    half: bool = True  # score what is left after rounding to fp16, as the published file will be
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16 where it ranks alike: that is checked first


DEFAULT_SEARCH = SearchConfig()


@dataclass(frozen=True, slots=True)
class Subject:
    """What is searched, and on which pictures.

    Args:
        supernet: trained weights.
        space: subnets to choose from.
        batches: held-out pictures, ready for the network; gone through for every candidate.
        identity: of weights and pictures, JSON-able: a search goes on only where it is the same.
        device: where candidates run.
        img_size: side of the pictures, where it is not the supernet's.
        precision: candidates run in, whatever the weights' type.
    """

    supernet: SupernetWeights
    space: SearchSpace
    batches: Iterable[LabelledBatch]
    identity: Mapping[str, Any]
    device: str = "cpu"
    img_size: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"

    @property
    def scored_space(self) -> SearchSpace:
        """The space, at the size of the pictures: what costs are counted at."""
        return replace(self.space, img_size=self.img_size or self.space.img_size)

    def accuracy(self, subnet: SubnetConfig) -> float:
        """Return the held-out accuracy in percent of a subnet with inherited weights."""
        setting = (self.batches, self.device, self.img_size, self.precision)
        return inherited_accuracy(self.supernet, subnet, *setting)


def search(
    subject: Subject, config: SearchConfig, out: Path, progress: bool = True
) -> dict[str, Any]:
    """Search, going on from `out` where it holds this very search, and write what was found.

    Args:
        subject: weights, space and pictures.
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
    table = find_latencies(subject.scored_space, config, out, header, rank)
    costs = costs_of(subject.scored_space, table)
    feasible = Feasible(subject.space, limits_of(config.bounds, costs))
    if table is not None:
        if rank == 0:
            keep_latencies(table, header, out)
        # Other latencies, another search.
        header["latency_sha256"] = hashlib.sha256(table.to_json().encode()).hexdigest()
    if config.precision == "bf16":
        subject = in_bf16(subject, out, header, rank, world, progress)
    score = SpreadScore(subject.accuracy, out, header, rank, world, progress)
    started = time.perf_counter()
    method = evolve if config.method == "evolution" else random_search
    evaluated = method(feasible, score, config.evolution)
    _log_speed(score.scored_here * world, time.perf_counter() - started)
    result = result_of(header, evaluated, costs)
    if rank == 0:
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
        img_size: side of the pictures that it is for; the supernet's where None. For another one
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


def open_subject(
    data_dir: Path,
    run: Path | None = None,
    supernet: Path | None = None,
    preset: str = "cifar10",
    half: bool = True,
    device: str = "auto",
    pictures: int = 0,
) -> Subject:
    """Open a run of `training.train`, or a supernet file with a preset that says the rest.

    Args:
        data_dir: root of the data.
        run: run directory; or
        supernet: file of a supernet, official, PreNAS or canonical.
        preset: with a file, whose space, data and held-out pictures to take.
        half: round the run's weights to fp16.
        device: where candidates run; auto: CUDA where there is some.
        pictures: held-out pictures to score on, spread evenly over all of them; 0: all.

    Raises:
        ValueError: both or neither of run and supernet is given, or `pictures` is below 0.
        FileNotFoundError: the run, the file or the data is not there.
        CheckpointError: the weights cannot be read.
    """
    if (run is None) == (supernet is None):
        raise ValueError("give either --run-dir, a training run, or --supernet, a file")
    if run is not None:
        config = read_config(run)
        weights = load_averaged(run, half)
    else:
        assert supernet is not None
        config, weights = PRESETS[preset], load_supernet(supernet)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    alone = replace(config, batch_size=1, augment=replace(config.augment, mixup=0.0, cutmix=0.0))
    ranks = Ranks(torch.device("cpu"))  # every process sees all pictures: candidates are shared
    source = open_source(alone, data_dir, ranks, Resources())
    batches, held_out = keep_held_out(source, config.largest_size, pictures)
    identity = {
        "supernet_sha256": hash_tensors(weights.tensors),
        "space": space_of(config).to_dict(),
        "img_size": config.largest_size,
        "source": config.data.source,
        "split": config.data.held_out_split or config.data.train_split,
        **held_out,
    }
    return Subject(weights, space_of(config), batches, identity, device, config.largest_size)


class _HeldOut:
    """Held-out pictures, spread evenly over all of them; read anew by everyone who goes through.

    Args:
        source: where they come from.
        img_size: their side, in pixels.
        share: (n, N) to keep n pictures of every N.
    """

    def __init__(self, source: Source, img_size: int, share: tuple[int, int] = (1, 1)) -> None:
        self._source, self._img_size, self._share = source, img_size, share

    def __iter__(self) -> Iterator[Batch]:
        kept, of = self._share
        first = 0
        for batch in self._source.held_out(self._img_size):
            number = torch.arange(first, first + len(batch.labels))
            chosen = (number + 1) * kept // of > number * kept // of
            first += len(number)
            if chosen.any():
                chosen = chosen.to(batch.labels.device)
                yield Batch(batch.x[chosen], batch.labels[chosen], batch.broken)


def keep_held_out(
    source: Source, img_size: int, pictures: int = 0
) -> tuple[Iterable[LabelledBatch], dict[str, Any]]:
    """Keep held-out pictures in memory, where they fit, and say which they are.

    Args:
        source: where they come from.
        img_size: their side, in pixels.
        pictures: how many, spread evenly: a folder is sorted by class. 0: all.

    Raises:
        ValueError: `pictures` is below 0.
    """
    if pictures < 0:
        raise ValueError(f"pictures is {pictures}; expected 0 for all, or how many")
    total = source.num_held_out or sum(len(each.labels) for each in source.held_out(img_size))
    count = min(pictures, total) or total
    batches: Iterable[Batch] = _HeldOut(source, img_size, (count, total) if total else (1, 1))
    if count * 3 * img_size**2 * 4 <= MOST_KEPT_BYTES:
        batches = list(batches)
    digest = hashlib.sha256(json.dumps(source.held_out_list).encode())
    for batch in batches if isinstance(batches, list) else ():
        digest.update(batch.labels.numpy().tobytes())
    return batches, {"held_out": count, "held_out_of": total, "held_out_sha256": digest.hexdigest()}


def find_latencies(
    space: SearchSpace, config: SearchConfig, out: Path, header: Mapping[str, Any], rank: int = 0
) -> LatencyTable | None:
    """Read the table that is named or was kept, or measure one; None where nothing asks for it.

    Args:
        space: whose blocks.
        config: names the table, or the device and the bounds.
        out: where `keep_latencies` keeps them.
        header: of the search, that going on has to be of.
        rank: of this process; the first one tells the others.

    Raises:
        ValueError: `out` holds another search, or the table is none of this space.
        FileNotFoundError: the table is not there.
    """
    if config.latency_table:
        return LatencyTable.from_json(Path(config.latency_table).read_text())
    if not config.bounds.limits_latency:
        return None
    found: list[Any] = [None]
    if rank == 0:
        path, begun = out / LATENCIES, out / BEGUN
        if path.exists() and begun.exists():
            require_same(json.loads(begun.read_text()), header, out)
            found = [path.read_text()]
        else:
            table = measure_latencies(space, config.latency_device, config.latency_batch_size)
            found = [table.to_json()]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(found, src=0)
    return LatencyTable.from_json(found[0])


def keep_latencies(table: LatencyTable, header: Mapping[str, Any], out: Path) -> None:
    """Keep a table beside a search that can begin, so that going on sees the same latencies."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / LATENCIES, table.to_json() + "\n")
    write_json(header, out / BEGUN)


def costs_of(space: SearchSpace, table: LatencyTable | None) -> list[Cost]:
    """Return what can be limited: parameters, multiply-adds, and latency where there is a table."""
    costs = [params_cost(space), macs_cost(space)]
    return costs if table is None else [*costs, table.cost(space)]


def limits_of(bounds: Bounds, costs: Iterable[Cost]) -> list[Limit]:
    """Return the bounds that limit anything."""
    limits = []
    for cost in costs:
        low, high = (getattr(bounds, f"{end}_{cost.name}") for end in ("min", "max"))
        if low > 0 or high < INFINITE:
            limits.append(Limit(cost, low, high))
    return limits


def result_of(
    header: Mapping[str, Any], evaluated: list[Evaluated], costs: list[Cost]
) -> dict[str, Any]:
    """Return the content of search.json: every candidate, the best one, and the front."""
    candidates: list[dict[str, Any]] = [
        {
            "subnet": each.subnet.to_dict(),
            "score": each.score,
            "generation": each.generation,
            **{cost.name: cost.of(each.subnet) for cost in costs},
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
    from training.search_plot import plot_search

    winner = winner_of(result)
    write_json(result, out / "search.json")
    write_text(out / "subnet.json", winner.to_json() + "\n")
    save_subnet(cut_subnet(subject.supernet, winner, subject.img_size), out / "subnet.safetensors")
    plot_search(result, out / "front.svg")
    if table is not None and table.device == "cpu":
        summed = table.cost(subject.scored_space).of(winner)
        measured = measure_ms(subject.scored_space, winner, table)
        _log.info("latency of the winner: %.3f ms by the table, %.3f measured", summed, measured)


def _log_speed(scored: int, seconds: float) -> None:
    if scored:
        _log.info("%d candidates in %.1f s, %.2f a second", scored, seconds, scored / seconds)


def config_to_dict(config: SearchConfig) -> Any:
    """Return JSON-able values; a bound that limits nothing is None."""
    values = asdict(config)
    bounds = values["bounds"]
    values["bounds"] = {k: v if v != INFINITE else None for k, v in bounds.items()}
    return values


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(
            tensors[name].detach().reshape(-1).contiguous().view(torch.uint8).numpy().data
        )
    return digest.hexdigest()


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    from training.commands import run_command

    def command(
        data_dir: Path,
        out: Path,
        run_dir: Path | None = None,
        supernet: Path | None = None,
        preset: str = "cifar10",
        device: Literal["auto", "cpu", "cuda"] = "auto",
        pictures: int = 0,
        config: Annotated[SearchConfig, tyro.conf.arg(name="")] = DEFAULT_SEARCH,
    ) -> None:
        """Search a trained supernet for the best subnet within limits.

        Args:
            data_dir: root of the data.
            out: directory to write; an unfinished search in it goes on.
            run_dir: run directory of training.train.
            supernet: file of a supernet, instead of a run.
            preset: with a file, whose space, data and held-out pictures to take.
            device: where candidates run.
            pictures: held-out pictures that candidates are scored on; 0: all.
        """
        if preset not in PRESETS:
            raise ValueError(f"preset is {preset!r}; expected one of {', '.join(PRESETS)}")
        subject = open_subject(data_dir, run_dir, supernet, preset, config.half, device, pictures)
        result = search(subject, config, out)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps({**result["candidates"][result["best"]], "out": str(out)}))

    return run_command(command, argv, prog="python -m training.search")


if __name__ == "__main__":
    sys.exit(main())
