"""Measure the held-out accuracy of random subnets: what an accuracy predictor is fitted to.

    python -m training.search.accuracies --run-dir runs/nano --data-dir DATA --out runs/accuracies
    python -m training.fit_predictor runs/accuracies/accuracies.json --out nano.npz

Subnets have the supernet's weights and classify the held-out part of the training set, as in a
search; the test set is never opened. A stopped run resumes with the same arguments, and continues
where it ended with a larger --subnets.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from autoformer_zoo.published import SPACES
from autoformer_zoo.space import misfit
from autoformer_zoo.specialization.constraints import params_cost
from training.engine.sampling import sample_different
from training.run.command import run_command
from training.run.distributed import SINGLE, Ranks, join
from training.run.journal import write_json
from training.search.evaluation import SearchTask, open_task
from training.search.scoring import JournaledScorer, share_threads
from training.settings.config import Resources
from training.settings.presets import PRESETS

FILE = "accuracies.json"
COLUMNS = ("depth", "embed_dim", "num_heads", "mlp_ratio", "params", "held_out_top1_percent")


def measure_accuracies(
    task: SearchTask,
    out: Path,
    subnets: int,
    seed: int = 0,
    ranks: Ranks = SINGLE,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure random subnets, resuming, and write accuracies.json.

    Args:
        task: weights, space and images.
        out: directory of the journal and the result.
        subnets: number of different subnets.
        seed: of the subnets.
        ranks: this process among all.
        progress: show a progress bar.

    Returns:
        The content of accuracies.json.

    Raises:
        ValueError: `subnets` is not positive, the weights are of another space, or `out` holds the
            accuracies of other weights or images.
        LostProcessError: another process ended.
    """
    if subnets < 1:
        raise ValueError(f"subnets is {subnets}; expected a positive number")
    if problem := misfit(task.space.largest, task.supernet.sizes):
        raise ValueError(f"the supernet is not of this space: {problem}")
    scorer = JournaledScorer(task.accuracy, out, task.identity, ranks, progress)
    drawn = sample_different(task.space, subnets, random.Random(f"accuracies/{seed}"))
    cost = params_cost(task.scored_space)
    rows = [
        [*subnet.to_dict().values(), cost.value(subnet), score]
        for subnet, score in zip(drawn, scorer(drawn), strict=True)
    ]
    names = {space: name for name, space in SPACES.items()}
    space = names.get(task.space, task.space.to_json())
    about = {**task.identity, "space": space, "seed": seed}  # the identity describes the space
    result = {**about, "columns": COLUMNS, "rows": rows}
    if ranks.is_first:
        write_json(result, out / FILE)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""

    def command(
        data_dir: Path,
        out: Path,
        run_dir: Path | None = None,
        supernet: str | None = None,
        preset: str = "cifar10",
        subnets: int = 400,
        images: int = 0,
        seed: int = 0,
        device: Literal["auto", "cpu", "cuda"] = "auto",
    ) -> None:
        """Measure the held-out accuracy of random subnets of a trained supernet.

        Args:
            data_dir: root of the data.
            out: directory to write; an unfinished run in it is resumed.
            run_dir: run directory of training.train.
            supernet: name of a model or file of a supernet, instead of a run.
            preset: with --supernet: preset for the space, the data and the held-out images.
            subnets: number of different subnets.
            images: number of held-out images to classify (0: all).
            seed: seed of the subnets.
            device: device that subnets run on.
        """
        if preset not in PRESETS:
            raise ValueError(f"preset is {preset!r}; expected one of {', '.join(PRESETS)}")
        ranks = join(Resources(device=device), batch_size=0, makes_pairs=False)
        share_threads(ranks.world)
        task = open_task(
            data_dir, run_dir, supernet, preset, device=str(ranks.device), images=images
        )
        result = measure_accuracies(task, out, subnets, seed, ranks)
        if ranks.is_first:
            print(f"{len(result['rows'])} subnets: {out / FILE}")

    return run_command("python -m training.search.accuracies", command, argv)


if __name__ == "__main__":
    sys.exit(main())
