"""From a folder of images to a front of models for a device, and the chosen one as an ONNX file.

    python -m training.adapt --data-dir PHOTOS --out runs/mine --max-latency-ms 2
    python -m training.adapt --data-dir PHOTOS --out runs/mine --supernet supernet-small.pth \\
        --profile profile.json

PHOTOS holds train/CLASS/IMAGE and perhaps val/CLASS/IMAGE. The stages are those of other commands,
and each leaves its result in the directory:

    latency.json        how long subnets take here, or the profile of another device
    supernet/           all subnets of the supernet fine-tuned together, under a new head
    accuracies/         held-out accuracy of random subnets, measured
    predictor.npz       fitted to these
    front.csv, .svg, .json  the subnets with the highest predicted accuracy for rising latencies,
                        and their measured held-out accuracy
    model.onnx, .safetensors  the last of them, the most accurate one within the bound

The same command resumes a run that was stopped. With another bound, or another profile, the front
and the model are made again and nothing is trained. The test split is never opened.

Source: arXiv 2107.00651, section 3, for one training of all subnets and search with its weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from autoformer_zoo.models.factory import build_subnet
from autoformer_zoo.onnx.export import export_onnx
from autoformer_zoo.published import SPACES
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.specialization.constraints import (
    INFINITE,
    Bounds,
    Feasible,
    macs_cost,
    params_cost,
)
from autoformer_zoo.specialization.front import draw_front, find_front
from autoformer_zoo.specialization.latency.measure import machine_name, profile_device
from autoformer_zoo.specialization.latency.profile import (
    Backend,
    Device,
    LatencyProfile,
    Precision,
    export_precision,
)
from autoformer_zoo.specialization.predictor import Predictor, load_predictor
from autoformer_zoo.specialization.selection import Choices
from autoformer_zoo.weights.checkpoint import CheckpointError, save_subnet
from autoformer_zoo.weights.layouts import Layout, same_sizes
from autoformer_zoo.weights.pretrained import open_weights
from benchmarks.measure.text_table import align
from training.data.open import settle_classes
from training.engine.network import make_network
from training.finetune import DEFAULT_MODEL, photos
from training.fit_predictor.fit import fit_predictor, save_predictor
from training.fit_predictor.measured import read_measured
from training.run.command import run_command, value_of
from training.run.directory import write_text
from training.run.journal import read_json, write_json
from training.search.accuracies import FILE, measure_accuracies
from training.search.evaluation import SearchTask, open_task
from training.search.scoring import JournaledScorer
from training.search.search import LATENCIES, cut_subnet
from training.settings.config import (
    DEFAULT_RESOURCES,
    Resources,
    TrainConfig,
    WeightsConfig,
    config_dataclass,
    space_of,
)
from training.train import train

_log = logging.getLogger("training.adapt")  # also if run as __main__

SUPERNET, ACCURACIES = "supernet", "accuracies"
PREDICTOR, FRONT, MODEL = "predictor.npz", "front.json", "model.json"
PLOT, ONNX, WEIGHTS = "front.svg", "model.onnx", "model.safetensors"
FEWEST = 30  # measured subnets: three for each fold of the predictor's cross-validation


@config_dataclass()
class FrontConfig:
    """What decides the front, beside the supernet's training."""

    max_latency_ms: PositiveFloat | None = None  # longest latency of one call (None: no bound)
    measured: Annotated[int, Field(ge=FEWEST)] = 300  # random subnets to fit the predictor to
    images: NonNegativeInt = 0  # held-out images that subnets are measured on (0: all)
    profile: str = ""  # file of autoformer-zoo profile, for another device (empty: measure here)
    latency_device: Device = "cpu"  # device to measure latencies on
    latency_backend: Backend = "eager"  # library that runs the networks then
    latency_precision: Precision = "fp32"  # their number format; int8 is for onnxruntime
    latency_batch_size: PositiveInt = 1  # images per call
    latency_threads: NonNegativeInt = 0  # threads on the CPU (0: as PyTorch chooses)

    def __post_init__(self) -> None:
        latency = (field for field in fields(self) if field.name.startswith("latency_"))
        if self.profile and any(getattr(self, field.name) != field.default for field in latency):
            raise ValueError(
                f"profile {self.profile} has its own device, backend, precision, batch size and "
                "threads: give none of --latency-... with it, or no profile"
            )

    @property
    def setting(self) -> dict[str, Any]:
        """Arguments of `profile_device`."""
        return {
            "device": self.latency_device,
            "backend": self.latency_backend,
            "precision": self.latency_precision,
            "batch_size": self.latency_batch_size,
            "threads": self.latency_threads or None,
        }


DEFAULT_FRONT = FrontConfig()


def recipe(
    supernet: str, data_dir: Path, layout: Literal["", Layout] = "", space: str = ""
) -> TrainConfig:
    """Return the config that fine-tunes all subnets of a supernet on a folder of images.

    It is `finetune.photos` with uniform sampling: input size and preprocessing are the supernet's.

    Args:
        supernet: name of a model, or file of a supernet.
        data_dir: root of the data.
        layout: packing of q, k and v in a .pth file that is PreNAS'.
        space: name or JSON of the search space; by default the known one of these sizes.

    Raises:
        ValueError: no known space has these sizes.
        CheckpointError: there is no such supernet.
    """
    sizes = open_weights(supernet, layout or None).architecture.sizes
    known = (name for name, each in SPACES.items() if same_sizes(each.supernet, sizes))
    name = space or next(known, "")
    if not name:
        raise ValueError(
            f"{supernet} has the sizes {sizes.to_json()}, of no known space: give --space, its "
            "SearchSpace as JSON"
        )
    return replace(
        photos(WeightsConfig(checkpoint=supernet, layout=layout, new_head=True), data_dir),
        space=name,
        sampling="uniform",
        batch_size=64,  # fewer and larger steps: each trains another subnet
        lr=1e-3,
    )


def adapt(
    config: TrainConfig,
    wanted: FrontConfig,
    data_dir: Path,
    out: Path,
    resources: Resources = DEFAULT_RESOURCES,
    progress: bool = True,
) -> dict[str, Any]:
    """Make the front, resuming what `out` holds.

    Args:
        config: of the supernet's training, such as `recipe`'s.
        wanted: the bound, and how the front is found.
        data_dir: root of the data.
        out: directory to write.
        resources: device, workers and the like, for training.
        progress: show progress bars.

    Returns:
        The content of front.json: settings, and the subnets in "results", fastest first.

    Raises:
        ValueError: the data, the supernet or a setting is refused, no subnet is within the bound,
            or `out` was begun with other settings of training or measuring.
        OSError: a file does not exist or cannot be written, or the machine is too noisy to time.
        CheckpointError: there is no such supernet.
    """
    _require_front(config)
    config = settle_classes(config, data_dir)
    space = replace(space_of(config), img_size=config.largest_size)
    make_network(config)  # whatever is wrong with the supernet is refused before minutes are spent
    profile = _find_profile(space, wanted, out, progress)
    highest = wanted.max_latency_ms or INFINITE
    Feasible(space, Bounds(max_latency_ms=highest).on([profile.cost(space)]))
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / LATENCIES, profile.to_json() + "\n")

    _log.info("1 of 4: fine-tuning all subnets of %s together", config.weights.checkpoint)
    train(config, data_dir, out / SUPERNET, progress, resources=resources)
    device = resources.device
    task = open_task(data_dir, out / SUPERNET, half=False, device=device, images=wanted.images)
    _log.info("2 of 4: measuring the held-out accuracy of %d random subnets", wanted.measured)
    measure_accuracies(task, out / ACCURACIES, wanted.measured, config.seed, progress=progress)
    predictor = _fit(out / ACCURACIES / FILE, out / PREDICTOR)
    _log.info("3 of 4: searching the front")
    costs = (params_cost(space), macs_cost(space), profile.cost(space))
    header: dict[str, Any] = {
        "max_latency_ms": wanted.max_latency_ms,
        "profile_sha256": _sha256(out / LATENCIES),
        "predictor_sha256": _sha256(out / PREDICTOR),
    }
    work = partial(_find_front, Choices(space, predictor, costs), profile, highest, task, out)
    front = _once(out / FRONT, header, work)
    _log.info("4 of 4: writing the most accurate one as %s", out / ONNX)
    chosen = SubnetConfig.from_dict(front["results"][-1]["subnet"])
    precision = export_precision(profile.setting.precision)
    header = {
        "subnet": chosen.to_dict(),
        "precision": precision,
        "supernet_sha256": task.identity["supernet_sha256"],
    }
    _once(out / MODEL, header, lambda: _export(task, chosen, precision, out))
    return front


def _require_front(config: TrainConfig) -> None:
    """Check that training can end in a front, before hours are spent on it."""
    if config.sampling == "fixed":
        raise ValueError(
            "sampling is fixed; expected uniform or sandwich: the front is of one supernet's "
            "subnets (training.finetune trains one network)"
        )
    if not config.holds_out:
        raise ValueError(
            "held_out_per_class is 0 and data.held_out_split empty; subnets are compared on "
            "held-out images: give one of them"
        )
    if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ValueError(
            f"adapt was started in {processes} processes; expected one: start it without torchrun"
        )


def _find_profile(
    space: SearchSpace, wanted: FrontConfig, out: Path, progress: bool
) -> LatencyProfile:
    """Return the profile that is named, the one of a run that is resumed, or this machine's."""
    if wanted.profile:
        return LatencyProfile.load(Path(wanted.profile))
    kept = LatencyProfile.load(out / LATENCIES) if (out / LATENCIES).exists() else None
    if kept is not None:
        setting = {name: getattr(kept.setting, name) for name in wanted.setting}
        same = {**wanted.setting, "threads": wanted.latency_threads or setting["threads"]}
        if setting == same and kept.machine == machine_name(wanted.latency_device):
            return kept
    return profile_device(space, **wanted.setting, progress=progress)


def _fit(accuracies: Path, path: Path) -> Predictor:
    """Fit the predictor, unless the file is of these accuracies already."""
    measured = read_measured([accuracies])
    if path.exists():
        predictor = load_predictor(str(path))
        if predictor.facts["sha256"] == list(measured.sha256):
            return predictor
    predictor, (figures, *_) = fit_predictor(measured)
    save_predictor(predictor, path)
    _log.info(
        "the predictor's error in cross-validation is %.2f points, Spearman's rank correlation "
        "%.2f (of the number of parameters: %.2f)",
        *(figures[name] for name in ("rmse", "spearman", "spearman_of_params")),
    )
    return predictor


def _find_front(
    choices: Choices, profile: LatencyProfile, highest: float, task: SearchTask, out: Path
) -> dict[str, Any]:
    """Find the front by predicted accuracy, measure its subnets, and draw it."""
    found = find_front(choices, "latency_ms", highest=highest)
    scorer = JournaledScorer(task.accuracy, out / ACCURACIES, task.identity, progress=False)
    measured = scorer([each.subnet for each in found])
    draw_front(out / PLOT, found, (), "latency_ms", profile, measured, "held-out")
    rows = zip(found, measured, strict=True)
    return {
        "img_size": task.img_size,
        "machine": profile.machine,
        "setting": str(profile.setting),
        "results": [{**each.to_dict(), "held_out_percent": top1} for each, top1 in rows],
    }


def _export(task: SearchTask, subnet: SubnetConfig, precision: Any, out: Path) -> dict[str, Any]:
    """Write a subnet's weights and its ONNX file, which have the folder's class names."""
    weights = cut_subnet(task.supernet, subnet, task.img_size)
    save_subnet(weights, out / WEIGHTS)
    return export_onnx(build_subnet(weights), out / ONNX, precision=precision).to_dict()


def _once(
    path: Path, header: Mapping[str, Any], work: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return a stage's result: from its file, if that was made from the same, or done now."""
    if path.exists() and (done := read_json(path, "of"))["of"] == header:
        return done
    result = {"of": dict(header), **work()}
    write_json(result, path)
    return read_json(path)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    base = _base(words)

    def command(
        data_dir: Path,
        out: Path,
        supernet: str = DEFAULT_MODEL,
        wanted: Annotated[FrontConfig, tyro.conf.arg(name="")] = DEFAULT_FRONT,
        config: Annotated[TrainConfig, tyro.conf.arg(name="")] = base,
        resources: Annotated[Resources, tyro.conf.arg(name="")] = DEFAULT_RESOURCES,
    ) -> None:
        """Make a front of models for a device from a folder of images.

        Args:
            data_dir: root of the data: holds train/CLASS/IMAGE, and perhaps val/CLASS/IMAGE
            out: directory to write; an unfinished run in it is resumed
            supernet: name of a model or file of a supernet, whose subnets are fine-tuned
        """
        recipe(supernet, data_dir, config.weights.layout, config.space)  # refuses what is unknown
        front = adapt(config, wanted, data_dir, out, resources)
        results = front["results"]
        rows = [["", "latency, ms", "params, M", "predicted, %", "held-out, %"]]
        for number, each in enumerate(results, start=1):
            cells = each["latency_ms"], each["params"] / 1e6, each["top1"]["value"]
            rows.append([str(number), *(f"{v:.2f}" for v in (*cells, each["held_out_percent"]))])
        print(align(rows))
        print(f"latency: {front['setting']}, on {front['machine']}")
        print(json.dumps({**results[-1], "onnx": str(out / ONNX), "out": str(out)}))

    return run_command("python -m training.adapt", command, words)


def _base(words: Sequence[str]) -> TrainConfig:
    """Return the config that the other flags change: the recipe for this supernet and folder."""
    supernet = value_of("--supernet", words) or DEFAULT_MODEL
    data_dir = Path(value_of("--data-dir", words) or ".")
    layout: Any = value_of("--weights.layout", words) or ""
    try:
        return recipe(supernet, data_dir, layout, value_of("--space", words) or "")
    except (ValueError, OSError, CheckpointError):  # the command itself refuses it, in one line
        return recipe(DEFAULT_MODEL, data_dir)


if __name__ == "__main__":
    sys.exit(main())
