"""The phases of a reproduction: train, search, extract, retrain, evaluate, compare, report.

Each phase is a function that returns JSON-able values; they are written to stage-NAME.json when it
is done, and it is not repeated then. Within a phase, training resumes from checkpoints and scoring
from journals. Only `evaluate` opens the test set, for subnets that were chosen without it.

Questions answered in report.md: (a) do inherited weights match a subnet trained alone; (b) are many
subnets well trained; (c) does evolution beat random search; (d) does entanglement beat separate
weights; (e) what do the sandwich rule and in-place distillation add.

Source: arXiv 2107.00651, sections 3 and 4.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from autoformer_zoo.models.factory import build_subnet, create_model, extract_subnet
from autoformer_zoo.network.complexity import count_params
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.specialization.constraints import Cost, Feasible
from autoformer_zoo.specialization.evolution import Candidate, best_so_far, evolve, random_search
from autoformer_zoo.specialization.latency.profile import LatencyProfile
from autoformer_zoo.weights.checkpoint import open_checkpoint
from training.data.open import open_test, settle_classes
from training.data.splits import require_split
from training.engine.network import make_network
from training.engine.sampling import sample_different
from training.engine.weights import WEIGHTS
from training.reproduce.answers import answer
from training.reproduce.config import PHASE_NAMES, PhaseName, ReproduceConfig, TrainingRun
from training.reproduce.report import write_report
from training.reproduce.separate import load_separate, make_separate
from training.run.directory import HELD_OUT, LOG, TIMING, describe_environment, read_log
from training.run.distributed import Ranks, join
from training.run.journal import read_json, require_same, write_json
from training.search.config import config_to_dict
from training.search.evaluation import (
    SearchTask,
    accuracy_on,
    count_correct,
    hash_tensors,
    keep_held_out,
    open_task,
    percent,
)
from training.search.scoring import JournaledScorer, share_threads
from training.search.search import (
    LATENCIES,
    costs_of,
    find_latencies,
    in_bf16,
    keep_latencies,
    result_of,
    winner_of,
    write_result,
)
from training.settings.config import DEFAULT_RESOURCES, Resources, TrainConfig, space_of
from training.train import train

FIRST = TrainingRun("uniform", 0)  # the supernet that is searched


class Reproduction:
    """A reproduction in a directory of its own.

    Args:
        config: what to do.
        data_dir: root of the data.
        out: the directory; one that all processes see, if there are several.
        resources: device, workers and the like, for training.
        progress: show progress bars.

    Raises:
        ValueError: `out` holds another reproduction, or a batch cannot be divided equally.
    """

    def __init__(
        self,
        config: ReproduceConfig,
        data_dir: Path,
        out: Path,
        resources: Resources = DEFAULT_RESOURCES,
        progress: bool = True,
    ) -> None:
        self.data_dir, self.out = data_dir, out
        self.resources, self.progress = resources, progress
        self.ranks = join(resources, config.train.batch_size, config.train.augment.mixes)
        settled = self.ranks.together(lambda: settle_classes(config.train, data_dir))
        self.config = config = replace(config, train=settled)
        self.space = space_of(config.train)
        self.searched = out / "search"
        share_threads(self.ranks.world)
        if (out / "config.json").exists():
            require_same(read_json(out / "config.json"), config.to_dict(), out)

    def select(self, first: PhaseName, last: PhaseName) -> tuple[PhaseName, ...]:
        """Return the phases from `first` to `last`, after checks that take no time.

        Raises:
            ValueError: the order is wrong, a phase before `first` is not done, or no subnet
                satisfies the constraints.
            FileNotFoundError: the test split of a folder, or the latency profile, does not exist.
        """
        start, end = PHASE_NAMES.index(first), PHASE_NAMES.index(last)
        if start > end:
            raise ValueError(f"{first} comes after {last}; expected the earlier phase first")
        if missing := [name for name in PHASE_NAMES[:start] if not self.is_done(name)]:
            raise ValueError(f"{self.out} has not done {', '.join(missing)}; start from there")
        search = self.config.search
        if search.latency_table or not search.bounds.constrain_latency:
            self.find_constraints()  # no latencies to measure first
        if self.config.tests and not self.is_done("evaluate"):  # not after days of training
            require_split(self.config.train.data, self.data_dir, self.config.train.data.test_split)
        return PHASE_NAMES[start : end + 1]

    def run(self, first: PhaseName, last: PhaseName) -> None:
        """Run the phases from `first` to `last` that are not done yet; raises as `select` does."""
        names = self.select(first, last)
        constraints = self.find_constraints()
        profile = constraints[0] if constraints else None
        self.ranks.by_first(lambda: self._begin(profile))
        for name in names:
            if self.ranks.by_first(lambda name=name: self.is_done(name)):  # type: ignore[misc]
                self.log(f"{name}: done before")
            else:
                self._run_phase(name)

    def _begin(self, profile: LatencyProfile | None) -> None:
        if profile is not None:
            keep_latencies(profile, {"config": self.config.to_dict()}, self.searched)
        if not (self.out / "config.json").exists():
            self.out.mkdir(parents=True, exist_ok=True)
            environment = describe_environment(self.ranks.device, self.ranks.world)
            write_json(environment, self.out / "environment.json")
            write_json(self.config.to_dict(), self.out / "config.json")

    def _run_phase(self, name: PhaseName) -> None:
        self.log(f"{name}: begins")
        started, work = time.perf_counter(), PHASES[name]
        result = self.ranks.by_first(lambda: work(self)) if name in BY_FIRST else work(self)
        seconds = time.perf_counter() - started
        values = {"seconds": round(seconds, 1), **result}
        self.ranks.by_first(lambda: write_json(values, self._path(name)))
        self.log(f"{name}: {seconds:.0f} s")

    def is_done(self, phase: PhaseName) -> bool:
        """Return True if a phase has written its result."""
        return self._path(phase).exists()

    def result(self, phase: PhaseName) -> dict[str, Any]:
        """Read what a phase has written.

        Raises:
            ValueError: the file is damaged.
        """
        return read_json(self._path(phase), "seconds")

    def _path(self, phase: PhaseName) -> Path:
        return self.out / f"stage-{phase}.json"

    def log(self, text: str) -> None:
        """Print a line on stderr, once for all processes."""
        if self.ranks.is_first:
            print(f"reproduce: {text}", file=sys.stderr)

    # What several phases need

    @property
    def winner(self) -> SubnetConfig:
        """The best subnet of the first search by evolution."""
        return SubnetConfig.from_dict(self.result("search")["winner"])

    def run_dir(self, run: TrainingRun) -> Path:
        """Return the directory of a training."""
        return self.out / "train" / run.name

    def find_constraints(self) -> tuple[LatencyProfile | None, list[Cost], Feasible] | None:
        """Return the latencies, the costs and the subnets to search; None once that is done.

        Raises:
            ValueError: no subnet satisfies the constraints, or the latency profile is another one
                than before.
        """
        if self.is_done("search"):
            return None
        config = self.config.search
        space = replace(self.space, img_size=self.config.train.largest_size)
        header = {"config": self.config.to_dict()}
        profile = find_latencies(space, config, self.searched, header, self.ranks)
        costs = costs_of(space, profile)
        feasible = Feasible(self.space, config.bounds.on(costs))
        kept = self.searched / LATENCIES
        if kept.exists() and LatencyProfile.load(kept) != profile:
            raise ValueError(
                f"{self.out} was begun with another latency profile than {config.latency_table} is "
                "now; give that one, or another --out"
            )
        return profile, costs, feasible

    def open_task(self, run: TrainingRun) -> SearchTask:
        """Open a supernet with the run's own held-out images.

        Which images those are depends on the seed: what one seed holds out, another one trains on.
        """
        search, device = self.config.search, str(self.ranks.device)
        task = open_task(
            self.data_dir,
            self.run_dir(run),
            half=search.half,
            device=device,
            images=self.config.images,
        )
        return replace(task, precision=search.precision)

    def scorer(self, run: TrainingRun, task: SearchTask | None = None) -> JournaledScorer:
        """Return the scorer of a supernet's subnets, on the run's own held-out images.

        Args:
            run: the supernet's.
            task: the run's task, if it is open already: its images may fill gigabytes.
        """
        if run.kind == "separate":
            # The uniform supernet of the same seed holds out the same images.
            batches = self.open_task(TrainingRun("uniform", run.number)).batches
            network = load_separate(self.run_dir(run))
            identity = hash_tensors(network.state_dict())
            device, precision = str(self.ranks.device), self.config.search.precision
            network.to(device)

            def score(subnet: SubnetConfig) -> float:
                return accuracy_on(lambda x: network(x, subnet), batches, device, precision)
        else:
            task = task or self.open_task(run)
            identity, score = task.identity["supernet_sha256"], task.accuracy
        header = {"supernet_sha256": identity, "images": self.config.images}
        folder = self.out / "scores" / run.name
        return JournaledScorer(score, folder, header, self.ranks, self.progress)


def train_supernets(whole: Reproduction) -> dict[str, Any]:
    """Train the supernets of all kinds and seeds."""
    supernets = whole.config.supernets()
    return {"runs": {run.name: _train(whole, run, config) for run, config in supernets.items()}}


def search_supernet(whole: Reproduction) -> dict[str, Any]:
    """Search the first supernet, by evolution and at random, with several seeds."""
    config, task = whole.config.search, whole.open_task(FIRST)
    constraints = whole.find_constraints()
    assert constraints is not None  # the search is not done
    profile, costs, feasible = constraints
    header = {"supernet": FIRST.name, "config": config_to_dict(config), **task.identity}
    if config.precision == "bf16":
        in_bf16(task, whole.out / "scores" / "ranking", header, whole.ranks, whole.progress)
    scorer = whole.scorer(FIRST, task)
    found: dict[str, list[list[Candidate]]] = {"evolution": [], "random": []}
    for i in range(whole.config.search_seeds):
        seeded = replace(config.evolution, seed=config.evolution.seed + i)
        for name, method in (("evolution", evolve), ("random", random_search)):
            whole.log(f"searching, {name}, seed {seeded.seed}")
            found[name].append(method(feasible, scorer, seeded))
    first = result_of(header, found["evolution"][0], costs)
    if whole.ranks.is_first:
        whole.searched.mkdir(exist_ok=True)
        write_result(first, task, profile, whole.searched)
    different = {c.subnet for searches in found.values() for search in searches for c in search}
    return {
        "winner": winner_of(first).to_dict(),
        "held_out_percent": first["candidates"][first["best"]]["score"],
        "best_so_far": {name: list(map(best_so_far, searches)) for name, searches in found.items()},
        "scored": len(different),
    }


def extract_winner(whole: Reproduction) -> dict[str, Any]:
    """Check that the winner's file is a model like any other, with the accuracy it had."""
    path, task = whole.searched / "subnet.safetensors", whole.open_task(FIRST)
    model = create_model("autoformer_subnet", checkpoint_path=path).eval().to(task.device)
    measured = accuracy_on(model, task.batches, task.device, task.precision)
    expected = whole.result("search")["held_out_percent"]
    if measured != expected:
        raise ValueError(
            f"{path} scores {measured} %, the search found {expected} %: the file or the device "
            f"changed since; delete {whole.out / 'stage-search.json'} and start --from search, on "
            "the device that searched"
        )
    space = task.scored_space
    params = count_params(whole.winner, space.img_size, space.patch_size, space.num_classes)
    file = str(path.relative_to(whole.out))
    return {"file": file, "params": params, "held_out_percent": measured}


def retrain_winner(whole: Reproduction) -> dict[str, Any]:
    """Train the winner alone, for the same epochs and with the same seeds as the supernets."""
    config = replace(whole.config.train, sampling="fixed", subnet=whole.winner.to_json())
    runs = [TrainingRun("alone", i) for i in range(whole.config.seeds)]
    return {
        "runs": {
            run.name: _train(whole, run, replace(config, seed=config.seed + run.number))
            for run in runs
        }
    }


def evaluate_subnets(whole: Reproduction) -> dict[str, Any]:
    """Score random subnets on held-out images, and the winner on the test set."""
    config = whole.config
    rng = random.Random(f"random subnets/{config.train.seed}")
    drawn = sample_different(whole.space, config.random_subnets, rng)
    compared = drawn[: config.compared_subnets]
    task = whole.open_task(FIRST)
    result: dict[str, Any] = {
        "random_held_out_percent": whole.scorer(FIRST, task)(drawn),
        "compared_held_out_percent": {
            run.name: whole.scorer(run, task if run == FIRST else None)(compared)
            for run in config.supernets()
        },
    }
    if config.tests:
        result["test_percent"] = _test_winner(whole)
    return result


def compare_results(whole: Reproduction) -> dict[str, Any]:
    """Answer the questions."""
    results = {name: whole.result(name) for name in ("train", "search", "evaluate")}
    return {"answers": answer(results, whole.config)}


def write_results(whole: Reproduction) -> dict[str, Any]:
    """Write the report."""
    results: dict[str, Any] = {name: whole.result(name) for name in PHASE_NAMES[:-1]}
    return {"files": write_report(results, whole.config, whole.out)}


PHASES: dict[PhaseName, Callable[[Reproduction], dict[str, Any]]] = {
    "train": train_supernets,
    "search": search_supernet,
    "extract": extract_winner,
    "retrain": retrain_winner,
    "evaluate": evaluate_subnets,
    "compare": compare_results,
    "report": write_results,
}
BY_FIRST: set[PhaseName] = {"extract", "compare", "report"}  # the others are shared by all ranks


def _train(whole: Reproduction, run: TrainingRun, config: TrainConfig) -> dict[str, Any]:
    """Train one network; returns what the comparison needs of its log."""
    whole.log(f"training {run.name}")
    folder = whole.run_dir(run)
    state = train(
        config,
        whole.data_dir,
        folder,
        whole.progress,
        resources=whole.resources,
        make=make_separate if run.kind == "separate" else make_network,
    )
    timing = read_log(folder / TIMING)
    measured = [line for line in read_log(folder / LOG) if HELD_OUT in line]
    return {
        "steps": state.step,
        "seconds": timing[-1]["seconds"] if timing else round(state.seconds, 1),
        "params": sum(p.numel() for p in state.network.parameters()),
        "skipped": state.skipped,
        "held_out": [[line["step"], fmean(line[HELD_OUT].values())] for line in measured],
    }


def _test_winner(whole: Reproduction) -> dict[str, list[float]]:
    """Measure the winner on the test set: with inherited weights, and trained alone."""
    size, device = whole.config.train.largest_size, str(whole.ranks.device)
    share = Ranks(torch.device("cpu"), whole.ranks.rank, whole.ranks.world)
    source = open_test(whole.config.train, whole.data_dir, share)
    batches = keep_held_out(source, size)[0]
    found: dict[str, list[float]] = {"inherited": [], "alone": []}
    for i in range(whole.config.seeds):
        whole.log(f"testing the winner, seed {i}")
        supernet = whole.open_task(TrainingRun("uniform", i)).supernet
        alone = open_checkpoint(whole.run_dir(TrainingRun("alone", i)) / WEIGHTS).subnet()
        networks = extract_subnet(supernet, whole.winner, size), build_subnet(alone, size)
        for name, network in zip(found, networks, strict=True):
            counts = count_correct(network.to(device), batches, device)
            found[name].append(percent(*whole.ranks.sums(counts)))
    return found
