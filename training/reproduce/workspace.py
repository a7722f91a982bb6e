"""The directory of a reproduction: its config, results, trainings, and scorers of their subnets."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from autoformer_zoo.models.factory import build_subnet
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.specialization.constraints import Cost, Feasible
from autoformer_zoo.specialization.latency.profile import LatencyProfile
from autoformer_zoo.weights.checkpoint import open_checkpoint
from training.data.open import settle_classes
from training.engine.sampling import sample_different
from training.engine.weights import WEIGHTS
from training.reproduce.config import PhaseName, ReproduceConfig, complete
from training.reproduce.separate import load_separate
from training.reproduce.trainings import TrainingRun
from training.run.distributed import join
from training.run.journal import read_json, require_same
from training.search.evaluation import SearchTask, accuracy_on, hash_tensors, open_task
from training.search.scoring import JournaledScorer, share_threads
from training.search.search import LATENCIES, costs_of, find_latencies
from training.settings.config import DEFAULT_RESOURCES, Resources, space_of

POLL_SECONDS = 2.0  # between two attempts to get what another process holds


class Workspace:
    """What the phases of a reproduction share: a directory of its own, and what is in it.

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
        self.require_own()

    def require_own(self) -> None:
        """Check that the directory, if it was begun, holds this reproduction.

        Raises:
            ValueError: it holds another one, or its config is damaged.
        """
        if (self.out / "config.json").exists():
            recorded = complete(read_json(self.out / "config.json"), ReproduceConfig().to_dict())
            require_same(recorded, self.config.to_dict(), self.out)

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Yield True, and keep others off a piece of work, unless another process has it already.

        The system takes a lock back when its process ends, however that happens.
        """
        folder = self.out / "locks"
        lock = FileLock(folder / f"{name}.lock", blocking=False)

        def acquire() -> bool:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except Timeout:
                return False
            return True

        taken = self.ranks.by_first(acquire)  # the first rank stands for all of its torchrun
        try:
            yield taken
        finally:
            lock.release()

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Keep others off a piece of work, after waiting for the one who has it."""
        is_told = False
        while True:
            with self.claim(name) as is_ours:
                if is_ours:
                    yield
                    return
            if not is_told:
                self.log(f"waiting for another process: {name}")
                is_told = True
            time.sleep(POLL_SECONDS)

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

    @property
    def random_subnets(self) -> list[SubnetConfig]:
        """The random subnets to score; the first of them in every supernet."""
        rng = random.Random(f"random subnets/{self.config.train.seed}")
        return sample_different(self.space, self.config.random_subnets, rng)

    @property
    def alone_subnets(self) -> list[SubnetConfig]:
        """The random subnets that are trained alone as well."""
        return self.random_subnets[: self.config.alone_subnets]

    def run_dir(self, run: TrainingRun) -> Path:
        """Return the directory of a training."""
        return self.out / "train" / run.name

    def load_single(self, run: TrainingRun) -> AutoFormer:
        """Load a single network that was trained, at the size of the images."""
        weights = open_checkpoint(self.run_dir(run) / WEIGHTS).subnet()
        return build_subnet(weights, self.config.train.largest_size)

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
        return self._journaled(score, run.name, header)

    def scorer_of_alone(self, task: SearchTask) -> JournaledScorer:
        """Return the scorer of random subnets that were trained alone.

        Args:
            task: the first supernet's, whose seed, and so held-out images, these have.
        """
        names = {subnet: TrainingRun("random", n) for n, subnet in enumerate(self.alone_subnets)}
        files = [self.run_dir(run) / WEIGHTS for run in names.values()]
        header = {
            "weights_sha256": [sha256(path.read_bytes()).hexdigest() for path in files],
            "images": self.config.images,
        }

        def score(subnet: SubnetConfig) -> float:
            network = self.load_single(names[subnet]).to(task.device)
            return accuracy_on(network, task.batches, task.device, task.precision)

        return self._journaled(score, "random_alone", header)

    def _journaled(
        self, score: Callable[[SubnetConfig], float], name: str, header: Mapping[str, Any]
    ) -> JournaledScorer:
        folder = self.out / "scores" / name
        return JournaledScorer(score, folder, header, self.ranks, self.progress)
