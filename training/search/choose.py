"""Choose a subnet of a supernet trained on CIFAR-10, and keep the supernet as a file.

    python -m training.search.choose --run-dir runs/nano --data-dir DATA --out nano.safetensors

Candidates are compared on the held-out images with inherited weights, as they will be after
rounding to fp16. The test set is opened once, after the choice is made: for the chosen subnet and,
to show how good the supernet is as a whole, for random ones. `training.search` searches by
evolution and under constraints.

Source: arXiv 2107.00651, section 3.3 (search with inherited weights).
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from autoformer_zoo.network.complexity import count_params
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.weights.checkpoint import SupernetWeights, save_supernet
from autoformer_zoo.weights.files import check_output
from autoformer_zoo.weights.header import cfg_to_notes
from training.data.cifar10 import Images, load_test, load_train
from training.run.command import run_command
from training.run.directory import read_config
from training.run.journal import write_json
from training.search.evaluation import inherited_accuracy, load_averaged, memory_batches
from training.settings.config import space_of

# Photos are larger than the images that were trained on, which were resized to smaller ones only.
METADATA = cfg_to_notes(
    {
        "origin": "trained by autoformer_zoo on CIFAR-10",
        "license": "mit",
        "interpolation": "bicubic",
    }
)


def choose(
    run: Path, data_dir: Path, out: Path, candidates: int = 60, random_tested: int = 20
) -> dict[str, Any]:
    """Choose the best of random subnets on held-out images, test it, and write the supernet.

    Args:
        run: a finished run directory of `training.train`.
        data_dir: the directory that holds CIFAR-10.
        out: the canonical supernet file to write, in fp16.
        candidates: random subnets to choose from, beside the smallest and the largest.
        random_tested: of these, how many are tested too, at most.

    Returns:
        What was measured, JSON-able.

    Raises:
        OSError: the run has no checkpoint, the data is missing, or `out` cannot be written.
    """
    config = read_config(run)
    space = replace(space_of(config), img_size=config.largest_size)
    supernet = load_averaged(run)
    supernet = replace(supernet, metadata={**supernet.metadata, **METADATA})
    _, held_out = load_train(data_dir, config.held_out_per_class, config.seed)
    rng = random.Random(config.seed)
    drawn = [space.sample(rng) for _ in range(candidates)]
    subnets = [*drawn, space.smallest, space.largest]
    sizes = (space.img_size, space.patch_size, space.num_classes)
    scored: list[dict[str, Any]] = [
        {"subnet": subnet.to_dict(), "params": count_params(subnet, *sizes), "acc1_percent": score}
        for subnet, score in zip(subnets, scores(supernet, subnets, space, held_out), strict=True)
    ]
    chosen = max(scored, key=lambda candidate: (candidate["acc1_percent"], -candidate["params"]))
    save_supernet(supernet, out)
    best = subnets[scored.index(chosen)]
    tested = scores(supernet, [best, *drawn[:random_tested]], space, load_test(data_dir))
    return {
        "chosen": chosen["subnet"],
        "params": chosen["params"],
        "held_out_acc1_percent": chosen["acc1_percent"],
        "test_acc1_percent": tested[0],
        "random_test_acc1_percent": tested[1:],
        "held_out": scored,
    }


def scores(
    supernet: SupernetWeights, subnets: Iterable[SubnetConfig], space: SearchSpace, images: Images
) -> list[float]:
    """Return top-1 in percent of subnets with inherited weights, on images of the space's size."""
    batches = memory_batches(images, space.img_size)
    return [
        inherited_accuracy(supernet, subnet, batches, img_size=space.img_size)
        for subnet in tqdm(list(subnets), unit="subnet", desc="scoring", file=sys.stderr)
    ]


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
        measured = choose(run_dir, data_dir, out, candidates, random_tested)
        write_json(measured, results)
        if plot is not None:
            from training.run.plots import plot_run

            plot_run(run_dir, measured, plot)
        print(json.dumps({key: measured[key] for key in measured if key != "held_out"}))

    return run_command("python -m training.search.choose", command, argv)


if __name__ == "__main__":
    sys.exit(main())
