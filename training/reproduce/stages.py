"""Reproduce the method of the paper: train, search, extract, retrain, evaluate, compare, report.

    python -m training.reproduce --data-dir DATA --out runs/reproduce             # preset cifar10
    python -m training.reproduce --data-dir DATA --out runs/smoke --preset smoke
    python -m training.reproduce --data-dir DATA --out runs/smoke --preset smoke --from compare
    torchrun --nproc-per-node 2 -m training.reproduce --data-dir DATA --out runs/two

It tells its plan and the expected time first. Each stage leaves stage-NAME.json when it is done and
is left out then; within a stage, training goes on from checkpoints and scoring from journals. The
test set is opened by the stage `evaluate` alone, for subnets that were chosen without it.

Questions answered in report.md: (a) do inherited weights match a subnet trained alone; (b) are many
subnets well trained; (c) does evolution beat random search; (d) does entanglement beat separate
weights; (e) what does the sandwich rule with in-place distillation add.

Source: arXiv 2107.00651, sections 3 and 4.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from autoformer_zoo.factory import build_subnet, create_model, extract_subnet
from autoformer_zoo.network.complexity import count_params
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.weights.checkpoint import load_subnet
from training.config import DEFAULT_RESOURCES, MEMORY, Resources, TrainConfig, space_of
from training.data.cifar10 import load_test
from training.data.open import open_source
from training.data.splits import OPENED, require_split
from training.engine.sampling import sample_different
from training.engine.weights import WEIGHTS
from training.reproduce.answers import answer
from training.reproduce.config import STAGES, ReproduceConfig, StageName
from training.reproduce.report import write_report
from training.reproduce.separate import load_separate, train_separate
from training.run.directory import HELD_OUT, LOG, TIMING, describe_environment, read_log
from training.run.distributed import SINGLE, Ranks, join
from training.run.journal import read_json, require_same, write_json
from training.search.config import config_to_dict
from training.search.constraints import Cost, Feasible
from training.search.costs import LatencyTable
from training.search.evaluation import (
    Batch,
    SearchTask,
    accuracy_on,
    count_correct,
    hash_tensors,
    keep_held_out,
    memory_batches,
    open_task,
    percent,
)
from training.search.evolution import Candidate, best_so_far, evolve, random_search
from training.search.scoring import JournaledScorer, share_threads
from training.search.search import (
    LATENCIES,
    constraints_of,
    costs_of,
    find_latencies,
    in_bf16,
    keep_latencies,
    result_of,
    winner_of,
    write_result,
)
from training.train import train

SHARED = ("train", "search", "retrain", "evaluate")  # stages that all processes do together


class Reproduction:
    """The stages of one reproduction, in a directory of its own.

    Args:
        config: what to do.
        data_dir: root of the data.
        out: the directory; one that all processes see, where there are several.
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
        self.config, self.data_dir, self.out = config, data_dir, out
        self.resources = resources
        self.progress = progress
        self.ranks = join(config.train, resources)
        share_threads(self.ranks.world)
        if self._config_path.exists():
            require_same(read_json(self._config_path), config.to_dict(), out)

    def check(self, first: str, last: str) -> tuple[StageName, ...]:
        """Return the stages from `first` to `last`.

        Raises:
            ValueError: the order is wrong, a stage before `first` is not done, no subnet keeps the
                limits, or `out` is no directory.
            FileNotFoundError: the test split of a folder is not there, or the table of latencies.
        """
        if not next(each for each in (self.out, *self.out.parents) if each.exists()).is_dir():
            raise ValueError(f"{self.out} is a file, or under one; expected a directory to write")
        start, end = STAGES.index(first), STAGES.index(last)
        if start > end:
            raise ValueError(f"stage {first} comes after {last}; expected the earlier one first")
        if missing := [name for name in STAGES[:start] if not self.is_done(name)]:
            raise ValueError(f"{self.out} has not done {', '.join(missing)}; start from there")
        search = self.config.search
        if search.latency_table or not search.bounds.constrain_latency:
            self._require_limits()  # nothing to measure for it: impossible ones end at once
        if self.config.tests and not self.is_done("evaluate"):  # not after days of training
            require_split(self.config.train.data, self.data_dir, self.config.train.data.test_split)
        return STAGES[start : end + 1]

    def run(self, first: str, last: str) -> None:
        """Do the stages from `first` to `last` that are not done yet.

        Raises:
            ValueError: the order is wrong, or a stage before `first` is not done.
        """
        names = self.check(first, last)
        self._require_limits()
        self.ranks.by_first(self._begin)
        for name in names:
            if self.ranks.by_first(partial(self.is_done, name)):
                self._say(f"{name}: done before")
                continue
            self._say(f"{name}: begins")
            started = time.perf_counter()
            work = getattr(self, f"_{name}")
            result = work() if name in SHARED else self.ranks.by_first(work)
            seconds = time.perf_counter() - started
            values = {"seconds": round(seconds, 1), **result}
            self.ranks.by_first(partial(write_json, values, self._path(name)))
            self._say(f"{name}: {seconds:.0f} s")

    def _require_limits(self) -> None:
        if not self.is_done("search"):  # what it found, it found within them
            _ = self._limits

    @cached_property
    def _limits(self) -> tuple[LatencyTable | None, list[Cost], Feasible]:
        """What subnets cost, and which keep the limits: known before anything is trained.

        Raises:
            ValueError: no subnet keeps them, or the table of latencies is another one than before.
        """
        config, train = self.config.search, self.config.train
        space = replace(self.space, img_size=train.largest_size)
        header = {"config": self.config.to_dict()}
        table = find_latencies(space, config, self._searched, header, self.ranks)
        costs = costs_of(space, table)
        feasible = Feasible(self.space, constraints_of(config.bounds, costs))
        kept = self._searched / LATENCIES
        if kept.exists() and LatencyTable.from_json(kept.read_text()) != table:
            raise ValueError(
                f"{self.out} was begun with another table of latencies than {config.latency_table} "
                "is now; give that one, or another --out"
            )
        return table, costs, feasible

    @property
    def _searched(self) -> Path:
        return self.out / "search"

    def _begin(self) -> None:
        table = None if self.is_done("search") else self._limits[0]
        if table is not None:
            keep_latencies(table, {"config": self.config.to_dict()}, self._searched)
        if not self._config_path.exists():
            self.out.mkdir(parents=True, exist_ok=True)
            environment = describe_environment(self.ranks.device, self.ranks.world)
            write_json(environment, self.out / "environment.json")
            write_json(self.config.to_dict(), self._config_path)

    @property
    def _config_path(self) -> Path:
        return self.out / "config.json"

    def result(self, stage: str) -> dict[str, Any]:
        """Return what a stage left.

        Raises:
            ValueError: the file is damaged.
        """
        return read_json(self._path(stage), "seconds")

    def is_done(self, stage: str) -> bool:
        """Tell whether a stage has left its result."""
        return self._path(stage).exists()

    def _path(self, stage: str) -> Path:
        return self.out / f"stage-{stage}.json"

    def _say(self, text: str) -> None:
        if self.ranks.is_first:
            print(f"reproduce: {text}", file=sys.stderr)

    # Training

    def _train(self) -> dict[str, Any]:
        return {"runs": {name: self._train_one(name, c) for name, c in self.config.runs().items()}}

    def _train_one(self, name: str, config: TrainConfig) -> dict[str, Any]:
        self._say(f"training {name}")
        run = self.out / "train" / name
        begin = train_separate if name.startswith("separate") else train
        state = begin(config, self.data_dir, run, self.progress, resources=self.resources)
        timing = read_log(run / TIMING)
        measured = [line for line in read_log(run / LOG) if HELD_OUT in line]
        return {
            "steps": state.step,
            "seconds": timing[-1]["seconds"] if timing else round(state.seconds, 1),
            "params": sum(p.numel() for p in state.network.parameters()),
            "skipped": state.skipped,
            "held_out": [[line["step"], fmean(line[HELD_OUT].values())] for line in measured],
        }

    # Held-out images and scores

    @property
    def space(self) -> SearchSpace:
        """The space that is searched."""
        return space_of(self.config.train)

    @cached_property
    def _first(self) -> SearchTask:
        return self._subject("uniform-0")

    def _subject(self, name: str) -> SearchTask:
        """Open a supernet with as many of its held-out images as are asked for."""
        run, config = self.out / "train" / name, self.config
        subject = open_task(
            self.data_dir,
            run,
            half=config.search.half,
            device=str(self.ranks.device),
            images=config.images,
        )
        return replace(subject, precision=config.search.precision)

    def _scorer(self, name: str) -> JournaledScorer:
        """Return the score of any subnet of a run, on the run's own held-out images; journaled.

        The split follows from the seed: what one seed holds out, another one trains on.
        """
        number = name.partition("-")[2]
        if name.startswith("separate"):
            batches = self._subject(f"uniform-{number}").batches
            precision = self.config.search.precision
            network = load_separate(self.out / "train" / name)
            identity = hash_tensors(network.state_dict())

            def score(subnet: SubnetConfig) -> float:
                return accuracy_on(lambda x: network(x, subnet), batches, precision=precision)
        else:
            subject = self._first if name == "uniform-0" else self._subject(name)
            identity = subject.identity["supernet_sha256"]

            score = subject.accuracy

        header = {"supernet_sha256": identity, "images": self.config.images}
        folder = self.out / "scores" / name
        return JournaledScorer(score, folder, header, self.ranks, self.progress)

    # Search, extraction, retraining

    def _search(self) -> dict[str, Any]:
        subject, config = self._first, self.config.search
        table, costs, feasible = self._limits
        header = {"supernet": "uniform-0", "config": config_to_dict(config), **subject.identity}
        if config.precision == "bf16":
            folder = self.out / "scores" / "ranking"
            in_bf16(self._first, folder, header, self.ranks, self.progress)
        score = self._scorer("uniform-0")
        traces: dict[str, list[list[float]]] = {"evolution": [], "random": []}
        found: list[list[Candidate]] = []
        scored: set[SubnetConfig] = set()
        for i in range(self.config.search_seeds):
            seeded = replace(config.evolution, seed=config.evolution.seed + i)
            for name, method in (("evolution", evolve), ("random", random_search)):
                self._say(f"search by {name}, seed {seeded.seed}")
                done = method(feasible, score, seeded)
                traces[name].append(best_so_far(done))
                scored.update(each.subnet for each in done)
                if name == "evolution":
                    found.append(done)
        first = result_of(header, found[0], costs)
        if self.ranks.is_first:
            self._searched.mkdir(exist_ok=True)
            write_result(first, subject, table, self._searched)
        return {
            "winner": winner_of(first).to_dict(),
            "held_out_percent": first["candidates"][first["best"]]["score"],
            "best_so_far": traces,
            "scored": len(scored),  # different ones, in all searches
        }

    @property
    def _winner(self) -> SubnetConfig:
        return SubnetConfig.from_dict(self.result("search")["winner"])

    def _extract(self) -> dict[str, Any]:
        """Check that the winner's file is a model like any other, with the accuracy it had."""
        path = self._searched / "subnet.safetensors"
        model = create_model("autoformer_subnet", checkpoint_path=path).eval()
        device = str(self.ranks.device)
        precision = self.config.search.precision
        found = accuracy_on(model.to(device), self._first.batches, device, precision)
        expected = self.result("search")["held_out_percent"]
        if found != expected:
            raise ValueError(
                f"{path} scores {found} %, the search found {expected} %: the file or the device "
                f"changed since; delete {self._path('search')} and start --from search, on the "
                "device that searched"
            )
        space = self._first.scored_space
        params = count_params(self._winner, space.img_size, space.patch_size, space.num_classes)
        return {
            "file": str(path.relative_to(self.out)),
            "params": params,
            "held_out_percent": found,
        }

    def _retrain(self) -> dict[str, Any]:
        runs = {}
        for i in range(self.config.seeds):
            config = replace(
                self.config.train,
                seed=self.config.train.seed + i,
                sampling="fixed",
                subnet=self._winner.to_json(),
            )
            runs[f"alone-{i}"] = self._train_one(f"alone-{i}", config)
        return {"runs": runs}

    # Evaluation, comparison, report

    def _evaluate(self) -> dict[str, Any]:
        rng = random.Random(f"random subnets/{self.config.train.seed}")
        drawn = sample_different(self.space, self.config.random_subnets, rng)
        result: dict[str, Any] = {"random_held_out_percent": self._scorer("uniform-0")(drawn)}
        few = drawn[: self.config.compared_subnets]
        result["compared_held_out_percent"] = {
            name: self._scorer(name)(few) for name in self.config.runs()
        }
        if self.config.tests:
            result["test_percent"] = self._test()
        return result

    def _test(self) -> dict[str, list[float]]:
        """Open the test set, for the winner: with inherited weights, and trained alone."""
        train, size = self.config.train, self.config.train.largest_size
        batches = open_test(train, self.data_dir, self.ranks)
        found: dict[str, list[float]] = {"inherited": [], "alone": []}
        for i in range(self.config.seeds):
            supernet = self._subject(f"uniform-{i}").supernet
            alone = load_subnet(self.out / "train" / f"alone-{i}" / WEIGHTS)
            networks = extract_subnet(supernet, self._winner, size), build_subnet(alone, size)
            for name, network in zip(found, networks, strict=True):
                device = self.ranks.device
                counts = count_correct(network.to(device), batches, str(device))
                found[name].append(percent(*self.ranks.sums(counts)))
        return found

    def _compare(self) -> dict[str, Any]:
        stages = {name: self.result(name) for name in ("train", "search", "retrain", "evaluate")}
        return answer(stages, self.config.search.evolution.evaluations)

    def _report(self) -> dict[str, Any]:
        stages: dict[str, Any] = {name: self.result(name) for name in STAGES[:-1]}
        return {"files": write_report(stages, json.loads(self._config_text()), self.out)}

    def _config_text(self) -> str:
        return (self.out / "config.json").read_text()


def open_test(config: TrainConfig, data_dir: Path, ranks: Ranks = SINGLE) -> Iterable[Batch]:
    """Open this process's share of the test set of a config's data.

    Raises:
        FileNotFoundError: it is not there.
    """
    if config.data.source == MEMORY:
        batches = memory_batches(load_test(data_dir), config.largest_size)
        return batches[ranks.rank :: ranks.world]
    # In the held-out images' place: they are read as these are, unchanged and all of them.
    data = replace(config.data, held_out_split=config.data.test_split, test_split=OPENED)
    alone = replace(
        config,
        data=data,
        batch_size=2 * ranks.world,
        augment=replace(config.augment, mixup=0.0, cutmix=0.0),
    )
    share = Ranks(torch.device("cpu"), ranks.rank, ranks.world)
    source = open_source(alone, data_dir, share, DEFAULT_RESOURCES)
    return keep_held_out(source, config.largest_size)[0]
