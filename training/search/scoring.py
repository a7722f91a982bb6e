"""Score candidates over all processes, each score journaled the moment it is known.

Every process runs the same search, scores its share of a generation, and learns the others' scores;
so all go on alike. Each writes a journal of its own; a search that starts again, with any number of
processes, reads them all.
"""

from __future__ import annotations

import atexit
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from autoformer_zoo.space import SearchSpace, SubnetConfig
from training.engine.sampling import sample_different
from training.run.distributed import Ranks, SharedError, TrainingError
from training.run.journal import Journal
from training.search.evolution import Scorer

PATTERN = "journal-*.jsonl"


class SearchError(TrainingError):
    """A process failed or was lost; what was scored so far is in the journals."""


def join_ranks() -> tuple[int, int]:
    """Join the processes that torchrun started, if it did; returns rank and number of processes.

    The group is left when the process ends, as in `distributed.join`.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("gloo")  # scores are few and small: no need for NCCL
        atexit.register(dist.destroy_process_group)
    return dist.get_rank(), world


class SpreadScore:
    """A `evolution.Scorer` from the score of one subnet.

    Args:
        score_one: the score of one subnet.
        folder: where the journals are.
        header: what the scores belong to; journals under another one are refused.
        rank: of this process.
        world: number of processes.
        progress: show a progress bar.

    Raises:
        ValueError: a journal belongs to another search; the text shows the first difference.
        OSError: a journal cannot be read.
    """

    def __init__(
        self,
        score_one: Callable[[SubnetConfig], float],
        folder: Path,
        header: Mapping[str, Any],
        rank: int = 0,
        world: int = 1,
        progress: bool = True,
    ) -> None:
        self._score_one = score_one
        self._rank, self._world = rank, world
        self._progress = progress and rank == 0
        self.scored_here = self.scored = 0  # by this process, and by all
        self._folder, self._header = folder, header
        # One process reads for all, so that they agree even where a journal is still growing.
        ranks = Ranks(torch.device("cpu"), rank, world)
        self._known = ranks.by_first(lambda: _read(folder, header))

    @cached_property
    def _journal(self) -> Journal:
        """Of this process, made at its first score: a search that cannot begin leaves none."""
        return Journal(self._folder / PATTERN.replace("*", str(self._rank)), self._header)

    def __call__(self, subnets: Sequence[SubnetConfig]) -> list[float]:
        """Return the scores of subnets, working out those that are not known yet.

        Raises:
            SearchError: a process failed or was lost.
        """
        missing = [subnet for subnet in dict.fromkeys(subnets) if subnet not in self._known]
        own = missing[self._rank :: self._world]
        fresh: list[tuple[SubnetConfig, float]] = []
        failure: Exception | None = None
        try:
            shown = self._progress and own
            for subnet in tqdm(own, unit="subnet", disable=not shown, leave=False):
                fresh.append((subnet, self._score_one(subnet)))
                self._journal.append({"subnet": subnet.to_dict(), "score": fresh[-1][1]})
                self.scored_here += 1
        except Exception as error:
            if self._world == 1:
                raise
            failure = error  # the others wait for this process: tell them first
        self._learn(fresh, failure)
        return [self._known[subnet] for subnet in subnets]

    def _learn(self, fresh: list[tuple[SubnetConfig, float]], failure: Exception | None) -> None:
        """Exchange new scores and failures."""
        if self._world == 1:
            self._known.update(fresh)
            self.scored += len(fresh)
            return
        told: list[Any] = [None] * self._world
        try:
            dist.all_gather_object(told, (fresh, repr(failure) if failure else ""))
        except RuntimeError as error:
            raise SearchError(
                f"a process was lost ({str(error).splitlines()[0]}); give the same command again "
                "to go on from the journals"
            ) from error
        for scores, _ in told:
            self._known.update(scores)
            self.scored += len(scores)
        failed = [f"process {rank}: {text}" for rank, (_, text) in enumerate(told) if text]
        if failed:
            shared = SharedError("; ".join(failed))
            shared.__cause__ = failure
            raise SearchError(
                f"scoring failed in {shared}; give the same command again to go on from the "
                "journals"
            ) from shared


def _read(folder: Path, header: Mapping[str, Any]) -> dict[SubnetConfig, float]:
    """Read the scores of all journals."""
    known: dict[SubnetConfig, float] = {}
    for path in sorted(folder.glob(PATTERN)):
        known.update(_scores(Journal(path, header)))
    return known


def _scores(journal: Journal) -> Iterator[tuple[SubnetConfig, float]]:
    """Yield what is in a journal.

    Raises:
        ValueError: a line is no subnet with its score; the text names the line.
    """
    for number, line in enumerate(journal.lines, start=2):  # below the header
        try:
            subnet, score = SubnetConfig.from_dict(line["subnet"]), line["score"]
            if not isinstance(score, (int, float)):
                raise TypeError(f"the score is {score!r}")
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(
                f"{journal.path} is damaged (line {number}: {reason}); delete it to start anew"
            ) from None
        yield subnet, score


def threads_for(world: int) -> None:
    """Share the processor's cores between processes, where the environment does not say how."""
    if world > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or world) // world))


LEAST_TAU = 0.98  # Kendall's, of two scorings that may stand for each other


COMPARED = 50  # random subnets


def compare_rankings(space: SearchSpace, one: Scorer, other: Scorer) -> float:
    """Return Kendall's tau of two scorings of the same random subnets; nan where all are equal."""
    from scipy.stats import kendalltau  # a second to import

    subnets = sample_different(space, COMPARED, random.Random("ranking"))
    return float(kendalltau(one(subnets), other(subnets)).statistic)


def require_same_ranking(space: SearchSpace, fp32: Scorer, bf16: Scorer) -> float:
    """Check that scores in bf16 may stand for those in fp32; returns Kendall's tau.

    Raises:
        ValueError: they rank subnets otherwise.
    """
    tau = compare_rankings(space, fp32, bf16)
    if not tau >= LEAST_TAU:  # nan is no ranking
        raise ValueError(
            f"precision is bf16, which ranks {COMPARED} random subnets otherwise than fp32: "
            f"Kendall's tau is {tau:.3f}, expected {LEAST_TAU} or more; take fp32"
        )
    return tau
