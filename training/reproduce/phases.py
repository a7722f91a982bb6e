"""The phases of a reproduction: train, search, extract, retrain, evaluate, compare, report.

Each phase is a function that returns JSON-able values; they are written to stage-NAME.json when it
is done, and it is not repeated then. Within a phase, training resumes from checkpoints and scoring
from journals. Only `evaluate` opens the test set, for subnets that were chosen without it.

Processes that run in one directory at a time take different trainings, and the other phases one
after another: locks keep them apart.

Questions answered in report.md: (a) do inherited weights match a subnet trained alone; (b) are many
subnets well trained; (c) does evolution beat random search; (d) does entanglement beat separate
weights; (e) what do the sandwich rule and in-place distillation add; (f) does longer training close
the gap of (a); (g) do inherited weights rank subnets rightly; (h) what does a teacher add; (i) does
fine-tuning close the gap.

Source: arXiv 2107.00651, sections 3 and 4.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch

from autoformer_zoo.models.factory import create_model, extract_subnet
from autoformer_zoo.network.complexity import count_params
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.specialization.evolution import Candidate, best_so_far, evolve, random_search
from autoformer_zoo.specialization.latency.profile import LatencyProfile
from training.data.open import open_source, open_test
from training.data.splits import require_split
from training.engine.network import make_network
from training.engine.teacher.answers import use_answers
from training.engine.weights import WEIGHTS
from training.reproduce.answers import answer
from training.reproduce.config import PHASE_NAMES, PhaseName
from training.reproduce.report import write_report
from training.reproduce.separate import make_separate
from training.reproduce.trainings import (
    FIRST,
    TrainingRun,
    compared_supernets,
    single_networks,
    supernets,
)
from training.reproduce.workspace import Workspace
from training.run.directory import HELD_OUT, LOG, describe_environment, read_log
from training.run.distributed import SINGLE, Ranks
from training.run.journal import read_json, write_json
from training.search.config import config_to_dict
from training.search.evaluation import (
    accuracy_on,
    count_correct,
    keep_held_out,
    load_averaged,
    percent,
)
from training.search.search import in_bf16, keep_latencies, result_of, winner_of, write_result
from training.settings.config import Resources, TrainConfig
from training.train import train


class Reproduction(Workspace):
    """A reproduction in a directory of its own; arguments and errors as `Workspace`'s."""

    def select(self, first: PhaseName, last: PhaseName) -> tuple[PhaseName, ...]:
        """Return the phases from `first` to `last`, after checks that take no time.

        Raises:
            ValueError: the order is wrong, a phase before `first` is not done, no subnet satisfies
                the constraints, or answers are to other images or views.
            FileNotFoundError: the test split of a folder, the latency profile, or a file of answers
                does not exist.
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
        if not self.is_done("train"):
            self._require_answers()
        return PHASE_NAMES[start : end + 1]

    def _require_answers(self) -> None:
        """Check that stored answers are those to the images and views of the runs that use them."""
        self.config.require_answers()
        for config in supernets(self.config).values():
            if config.distill.answers:
                source = open_source(config, self.data_dir, SINGLE, Resources(workers=0))
                use_answers(config, source)

    def run(self, first: PhaseName, last: PhaseName) -> None:
        """Run the phases from `first` to `last` that are not done yet; raises as `select` does."""
        names = self.select(first, last)
        with self.hold("begin"):  # one process measures latencies, the others read them
            constraints = self.find_constraints()
            profile = constraints[0] if constraints else None
            self.ranks.by_first(lambda: self._begin(profile))
        for name in names:
            if self.ranks.by_first(lambda name=name: self.is_done(name)):  # type: ignore[misc]
                self.log(f"{name}: done before")
            else:
                self._run_phase(name)

    def _begin(self, profile: LatencyProfile | None) -> None:
        self.require_own()  # another process may have begun it since
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
        result = work(self) if name in OF_TRAININGS else None
        with self.hold(name):
            if self.ranks.by_first(lambda: self.is_done(name)):
                self.log(f"{name}: done by another process")
                return
            if result is None:
                result = self.ranks.by_first(lambda: work(self)) if name in BY_FIRST else work(self)
            seconds = time.perf_counter() - started
            values = {"seconds": round(seconds, 1), **result}
            self.ranks.by_first(lambda: write_json(values, self._path(name)))
        self.log(f"{name}: {seconds:.0f} s")


def train_supernets(whole: Workspace) -> dict[str, Any]:
    """Train the supernets of all kinds and seeds."""
    return _train_all(whole, supernets(whole.config))


def search_supernet(whole: Workspace) -> dict[str, Any]:
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


def extract_winner(whole: Workspace) -> dict[str, Any]:
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


def retrain_winner(whole: Workspace) -> dict[str, Any]:
    """Train the winner alone, for the same epochs and with the same seeds as the supernets.

    And what the config asks for beside it: the winner for other lengths, random subnets, and the
    winner from inherited weights.
    """

    def weights_of(run: TrainingRun) -> str:
        return str((whole.run_dir(run) / WEIGHTS).resolve())

    return _train_all(
        whole, single_networks(whole.config, whole.winner, whole.alone_subnets, weights_of)
    )


def evaluate_subnets(whole: Workspace) -> dict[str, Any]:
    """Score random subnets on held-out images, and the winner on the test set."""
    config, drawn = whole.config, whole.random_subnets
    compared = drawn[: config.compared_subnets]
    task = whole.open_task(FIRST)
    result: dict[str, Any] = {
        "random_held_out_percent": whole.scorer(FIRST, task)(drawn),
        "compared_held_out_percent": {
            run.name: whole.scorer(run, task if run == FIRST else None)(compared)
            for run in compared_supernets(config)
        },
    }
    if alone := whole.alone_subnets:
        result["alone_held_out_percent"] = whole.scorer_of_alone(task)(alone)
    if config.tests:
        result["test_percent"] = _test_subnets(whole)
    return result


def compare_results(whole: Workspace) -> dict[str, Any]:
    """Answer the questions."""
    results = {name: whole.result(name) for name in ("train", "search", "evaluate")}
    return {"answers": answer(results, whole.config)}


def write_results(whole: Workspace) -> dict[str, Any]:
    """Write the report."""
    results: dict[str, Any] = {name: whole.result(name) for name in PHASE_NAMES[:-1]}
    return {"files": write_report(results, whole.config, whole.out)}


PHASES: dict[PhaseName, Callable[[Workspace], dict[str, Any]]] = {
    "train": train_supernets,
    "search": search_supernet,
    "extract": extract_winner,
    "retrain": retrain_winner,
    "evaluate": evaluate_subnets,
    "compare": compare_results,
    "report": write_results,
}
BY_FIRST: set[PhaseName] = {"extract", "compare", "report"}  # the others are shared by all ranks
OF_TRAININGS: set[PhaseName] = {"train", "retrain"}  # which processes divide among themselves
TRAINED = "trained.json"  # in the directory of a training: what `_train` returned


def _train_all(whole: Workspace, runs: Mapping[TrainingRun, TrainConfig]) -> dict[str, Any]:
    """Train networks: first those that no other process trains, then what another one left."""
    trained: dict[TrainingRun, dict[str, Any]] = {}
    for run, config in runs.items():
        with whole.claim(run.name) as is_ours:
            if is_ours:
                trained[run] = _train(whole, run, config)
    for run, config in runs.items():
        if run not in trained:
            with whole.hold(run.name):
                trained[run] = _train(whole, run, config)
    return {"runs": {run.name: trained[run] for run in runs}}


def _train(whole: Workspace, run: TrainingRun, config: TrainConfig) -> dict[str, Any]:
    """Train one network; returns what the comparison needs of its log."""
    folder = whole.run_dir(run)
    if whole.ranks.by_first(lambda: (folder / TRAINED).exists()):
        return read_json(folder / TRAINED, "steps")
    whole.log(f"training {run.name}")
    state = train(
        config,
        whole.data_dir,
        folder,
        whole.progress,
        resources=whole.resources,
        make=make_separate if run.kind == "separate" else make_network,
    )
    measured = [line for line in read_log(folder / LOG) if HELD_OUT in line]
    values = {
        "steps": state.step,
        "seconds": round(state.seconds, 1),
        "params": sum(p.numel() for p in state.network.parameters()),
        "skipped": state.skipped,
        "held_out": [[line["step"], fmean(line[HELD_OUT].values())] for line in measured],
    }
    whole.ranks.by_first(lambda: write_json(values, folder / TRAINED))
    return values


def _test_subnets(whole: Workspace) -> dict[str, Any]:
    """Measure subnets on the test set: with inherited weights, trained alone, and fine-tuned."""
    config, device = whole.config, str(whole.ranks.device)
    size = config.train.largest_size
    share = Ranks(torch.device("cpu"), whole.ranks.rank, whole.ranks.world)
    batches = keep_held_out(open_test(config.train, whole.data_dir, share), size)[0]

    def accuracy(network: AutoFormer, name: str) -> float:
        whole.log(f"testing {name}")
        counts = count_correct(network.to(device), batches, device)
        return percent(*whole.ranks.sums(counts))

    def alone(run: TrainingRun) -> float:
        return accuracy(whole.load_single(run), run.name)

    def inherited(run: TrainingRun, subnet: SubnetConfig) -> float:
        supernet = load_averaged(whole.run_dir(run), config.search.half)
        return accuracy(extract_subnet(supernet, subnet, size), f"a subnet of {run.name}")

    def pairs(seeds: int, suffix: str = "") -> dict[str, list[float]]:
        """Measure the winner in supernets of one length, and trained alone as long."""
        numbers = range(seeds)
        return {
            "inherited": [
                inherited(TrainingRun(f"uniform{suffix}", i), whole.winner) for i in numbers
            ],
            "alone": [alone(TrainingRun(f"alone{suffix}", i)) for i in numbers],
        }

    found: dict[str, Any] = pairs(config.seeds)
    if lengths := config.seeds_of_lengths:
        found["lengths"] = {str(n): pairs(seeds, f"_{n}") for n, seeds in lengths.items()}
    if others := whole.alone_subnets:
        found["random"] = {
            "inherited": [inherited(FIRST, subnet) for subnet in others],
            "alone": [alone(TrainingRun("random", n)) for n in range(len(others))],
        }
    if config.finetuned_seeds:
        runs = [TrainingRun("finetuned", i) for i in range(config.finetuned_seeds)]
        found["finetuned"] = [alone(run) for run in runs]
    return found
