"""Score candidates on all processes, with a journal from which a stopped search resumes.

Every process runs the same search. In each round every process scores one candidate, all learn the
scores, and rank 0 writes them to the journal. So all processes agree on the next generation, and a
kill loses one round at most.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.specialization.evolution import Scorer
from training.engine.sampling import sample_different
from training.run.distributed import SINGLE, Ranks
from training.run.journal import Journal

JOURNALS = "journal-*.jsonl"  # earlier versions wrote one per rank; all of them are read
COMPARED = 50  # random subnets whose rankings are compared
MIN_TAU = 0.98  # Kendall's tau of two rankings of which one may replace the other


class JournaledScorer:
    """An `evolution.Scorer` made from the score of one subnet.

    Args:
        score_one: returns the score of one subnet.
        folder: folder of the journal, made with the first score.
        header: what the scores belong to; a journal with another header is refused.
        ranks: this process among all.
        progress: show a progress bar.

    Raises:
        ValueError: a journal belongs to another search, or is damaged.
        OSError: a journal cannot be read.
    """

    def __init__(
        self,
        score_one: Callable[[SubnetConfig], float],
        folder: Path,
        header: Mapping[str, Any],
        ranks: Ranks = SINGLE,
        progress: bool = True,
    ) -> None:
        self._score_one, self._ranks = score_one, ranks
        self._folder, self._header = folder, header
        self._progress = progress and ranks.is_first
        self._journal: Journal | None = None
        self._scores = ranks.by_first(lambda: _read_journals(folder, header))
        self.num_scored = 0  # by this object, on all processes

    def __call__(self, subnets: Sequence[SubnetConfig]) -> list[float]:
        """Return the scores of subnets, computing those that are not in the journal.

        Raises:
            LostProcessError: another process ended.
        """
        missing = [subnet for subnet in dict.fromkeys(subnets) if subnet not in self._scores]
        shown = self._progress and missing
        with tqdm(total=len(missing), unit="subnet", disable=not shown, leave=False) as bar:
            # Candidates cost about the same, so processes wait little for each other.
            for first in range(0, len(missing), self._ranks.world):
                self._score_round(missing[first : first + self._ranks.world])
                bar.update(self._ranks.world)
        return [self._scores[subnet] for subnet in subnets]

    def _score_round(self, subnets: Sequence[SubnetConfig]) -> None:
        """Score one subnet per process."""
        rank = self._ranks.rank
        score = self._ranks.together(
            lambda: self._score_one(subnets[rank]) if rank < len(subnets) else 0.0
        )
        # A sum in which only one term is not 0 is exact.
        scores = self._ranks.sums([score if i == rank else 0.0 for i in range(len(subnets))])
        new = dict(zip(subnets, scores, strict=True))
        self._ranks.by_first(lambda: self._write(new))
        self._scores.update(new)
        self.num_scored += len(new)

    def _write(self, scores: Mapping[SubnetConfig, float]) -> None:
        # Opened at the first score: a search that cannot begin leaves no journal.
        if self._journal is None:
            self._journal = Journal(self._folder / JOURNALS.replace("*", "0"), self._header)
        for subnet, score in scores.items():
            self._journal.append({"subnet": subnet.to_dict(), "score": score})


def _read_journals(folder: Path, header: Mapping[str, Any]) -> dict[SubnetConfig, float]:
    scores: dict[SubnetConfig, float] = {}
    for path in sorted(folder.glob(JOURNALS)):
        scores.update(_read_scores(Journal(path, header)))
    return scores


def _read_scores(journal: Journal) -> Iterator[tuple[SubnetConfig, float]]:
    for number, line in enumerate(journal.lines, start=2):  # line 1 is the header
        try:
            yield SubnetConfig.from_dict(line["subnet"]), float(line["score"])
        except Exception as error:  # whatever is wrong with a line, it is damaged
            raise ValueError(
                f"{journal.path} is damaged (line {number} is not a subnet with its score: "
                f"{error}); delete it to start again"
            ) from None


def share_threads(world: int) -> None:
    """Divide the processor's cores between processes, unless the environment does."""
    if world > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or world) // world))


def require_same_ranking(space: SearchSpace, fp32: Scorer, bf16: Scorer) -> float:
    """Check that scores in bf16 may replace those in fp32; returns Kendall's tau.

    Raises:
        ValueError: they rank random subnets otherwise.
    """
    from scipy.stats import kendalltau  # takes a second to import

    subnets = sample_different(space, COMPARED, random.Random("ranking"))
    tau = float(kendalltau(fp32(subnets), bf16(subnets)).statistic)
    if not tau >= MIN_TAU:  # also if it is NaN, as for equal scores
        raise ValueError(
            f"precision is bf16, which ranks {COMPARED} random subnets otherwise than fp32: "
            f"Kendall's tau is {tau:.3f}, expected {MIN_TAU} or more; use fp32"
        )
    return tau
