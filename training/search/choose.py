"""Choose a subnet of a supernet trained on CIFAR-10, and keep the supernet as a file.

    python -m training.search.choose --run-dir runs/nano --data-dir DATA --out nano.safetensors
    torchrun --nproc-per-node 2 -m training.search.choose --run-dir ... --data-dir ... --out ...

Candidates are compared on the held-out images with inherited weights, as they will be after
rounding to fp16. The test set is opened once, after the choice is made: for the chosen subnet and,
to show how good the supernet is as a whole, for random ones. Every score is journaled beside the
file, in the folder nano-scores for nano.safetensors; the same command resumes a stopped one.
`training.search` searches by evolution and under constraints.

Source: arXiv 2107.00651, section 3.3 (search with inherited weights).
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.specialization.constraints import params_cost
from autoformer_zoo.weights.checkpoint import save_supernet
from autoformer_zoo.weights.files import check_output
from autoformer_zoo.weights.header import cfg_to_notes
from training.data.open import open_test
from training.run.command import run_command
from training.run.directory import read_config
from training.run.distributed import SINGLE, Ranks, join
from training.run.journal import write_json
from training.search.evaluation import keep_held_out, open_task
from training.search.scoring import JournaledScorer, share_threads
from training.settings.config import DEFAULT_RESOURCES, MEMORY

# Photos are larger than the images that were trained on, which were resized to smaller ones only.
PREPARATION = cfg_to_notes({"interpolation": "bicubic"})
# Of weights that were trained here alone.
OURS = cfg_to_notes({"origin": "trained by autoformer_zoo on CIFAR-10", "license": "mit"})


def choose(
    run: Path,
    data_dir: Path,
    out: Path,
    candidates: int = 60,
    random_tested: int = 20,
    ranks: Ranks = SINGLE,
    progress: bool = True,
) -> dict[str, Any]:
    """Choose the best of random subnets on held-out images, test it, and write the supernet.

    Args:
        run: a finished run directory of `training.train`.
        data_dir: the directory that holds CIFAR-10.
        out: the canonical supernet file to write, in fp16.
        candidates: random subnets to choose from, beside the smallest and the largest.
        random_tested: of these, how many are tested too, at most.
        ranks: this process among all.
        progress: show progress bars.

    Returns:
        What was measured, JSON-able.

    Raises:
        OSError: the run has no checkpoint, the data is missing, or `out` cannot be written.
        ValueError: the folder of scores belongs to other weights or images.
        LostProcessError: another process ended.
    """
    config = read_config(run)
    if config.data.source not in (MEMORY, "torch/cifar10"):
        raise ValueError(
            f"{run} was trained on {config.data.source}; expected CIFAR-10, whose test set is "
            "opened: use training.search for other data"
        )
    task = open_task(data_dir, run, device=str(ranks.device))
    space, journals = task.scored_space, out.with_name(f"{out.stem}-scores")
    rng = random.Random(config.seed)
    drawn = [space.sample(rng) for _ in range(candidates)]
    subnets = [*drawn, space.smallest, space.largest]
    scorer = JournaledScorer(task.accuracy, journals / "held-out", task.identity, ranks, progress)
    cost = params_cost(space)
    scored: list[dict[str, Any]] = [
        {"subnet": subnet.to_dict(), "params": cost.value(subnet), "acc1_percent": score}
        for subnet, score in zip(subnets, scorer(subnets), strict=True)
    ]
    chosen = max(scored, key=lambda candidate: (candidate["acc1_percent"], -candidate["params"]))
    notes = {**task.supernet.metadata, **PREPARATION}
    before = notes["origin"].partition(", from ")[2]  # weights that the first run started from
    is_license_ours = notes.get("license") == OURS["license"]
    if not before or (is_license_ours and before.endswith(f"({OURS['origin']})")):
        notes |= OURS
    supernet = replace(task.supernet, metadata=notes)
    ranks.by_first(lambda: save_supernet(supernet, out))
    batches, identity = keep_held_out(open_test(config, data_dir), config.largest_size)
    test = replace(task, batches=batches, identity={**task.identity, **identity, "split": "test"})
    test_scorer = JournaledScorer(test.accuracy, journals / "test", test.identity, ranks, progress)
    tested = test_scorer([SubnetConfig.from_dict(chosen["subnet"]), *drawn[:random_tested]])
    return {
        "chosen": chosen["subnet"],
        "params": chosen["params"],
        "held_out_acc1_percent": chosen["acc1_percent"],
        "test_acc1_percent": tested[0],
        "random_test_acc1_percent": tested[1:],
        "held_out": scored,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""

    def command(
        run_dir: Path,
        data_dir: Path,
        out: Path,
        results: Path = Path("results.json"),
        plot: Path | None = None,
        candidates: int = 60,
        random_tested: int = 20,
    ) -> None:
        """Choose a subnet on held-out images and keep the supernet.

        Args:
            run_dir: run directory of training.train.
            data_dir: directory that holds cifar-10-batches-py.
            out: canonical supernet file to write, fp16.
            results: JSON file to write with everything measured.
            plot: image to write, .svg or .png; none by default.
            candidates: random subnets to choose from.
            random_tested: of these, how many are tested on the test set, beside the chosen one.
        """
        for path in (out, results, *([plot] if plot else [])):
            check_output(path)
        ranks = join(DEFAULT_RESOURCES, batch_size=0, makes_pairs=False)
        share_threads(ranks.world)
        measured = choose(run_dir, data_dir, out, candidates, random_tested, ranks)
        if not ranks.is_first:
            return
        write_json(measured, results)
        if plot is not None:
            from training.run.plots import plot_run

            plot_run(run_dir, measured, plot)
        print(json.dumps({key: measured[key] for key in measured if key != "held_out"}))

    return run_command("python -m training.search.choose", command, argv)


if __name__ == "__main__":
    sys.exit(main())
