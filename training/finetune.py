"""Fine-tune a model of the zoo, or any subnet's file, on another data set.

    python -m training.finetune --data-dir PHOTOS --out runs/mine --model autoformer_nano
    python -m training.finetune --data-dir DATA --out runs/flowers --preset flowers \\
        --model autoformer_small
    python -m training.finetune --data-dir DATA --out runs/pets --preset pets \\
        --weights.checkpoint supernet-small.pth --subnet autoformer_small

PHOTOS holds train/CLASS/IMAGE and perhaps val/CLASS/IMAGE. Training of one fixed subnet by the same
loop as everything else: new head, any input size, layer decay, frozen blocks, a teacher.
The run directory ends with weights.safetensors, whose header has the classes and preprocessing,
curve.svg, confusion.svg and mistakes.png.

Source of the settings: DeiT's (arXiv 2012.12877, section 5.3; facebookresearch/deit, issues 45 for
CIFAR and Cars and 105 for iNaturalist), which arXiv 2107.00651, section 4.4, follows at 384 px.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from autoformer_zoo.models.factory import create_model
from autoformer_zoo.published import CIFAR10_MEAN, IMAGENET
from autoformer_zoo.weights.checkpoint import CheckpointError
from autoformer_zoo.weights.header import notes_to_cfg
from autoformer_zoo.weights.pretrained import open_weights
from training.data.splits import has_folder, is_folder
from training.engine.weights import WEIGHTS
from training.run.command import run_command, value_of
from training.run.distributed import current_rank
from training.settings.config import (
    DEFAULT_RESOURCES,
    MEMORY,
    AugmentConfig,
    DataConfig,
    Resources,
    Stage,
    TrainConfig,
    WeightsConfig,
)
from training.settings.presets import PAPER_AUGMENT
from training.train import print_summary, train

_log = logging.getLogger("training.finetune")  # also if run as __main__

DEFAULT_MODEL = "autoformer_nano"
DEFAULT_WEIGHTS = WeightsConfig(model=DEFAULT_MODEL)


def photos(weights: WeightsConfig, data_dir: Path) -> TrainConfig:
    """Return the config for a small folder of photos: some dozens to some thousands per class.

    Args:
        weights: model or file to start from; its input size and preprocessing are taken over, as
            far as `DataConfig` can say it: a mean other than CIFAR-10's becomes ImageNet's.
        data_dir: root of the data; without a folder val/ in it, a fifth of each class is held out.

    Raises:
        ValueError: there is no such model.
        CheckpointError: there is no such file, or it is refused.
    """
    side, cfg = _input_of(weights)
    return TrainConfig(
        sampling="fixed",
        weights=weights,
        stages=(Stage(30, side),),
        batch_size=16,
        lr=5e-4,
        warmup_fraction=0.1,
        layer_decay=0.75,  # what the first layers see is much the same in all photos
        held_out_per_class=0.2,
        evaluate_every=1,
        log_every=10,
        data=DataConfig(
            source="folder",
            held_out_split="val" if has_folder(data_dir, "val") else "",
            test_split="test",
            normalisation="cifar10" if tuple(cfg["mean"]) == CIFAR10_MEAN else "imagenet",
            interpolation="bilinear" if cfg["interpolation"] == "bilinear" else "bicubic",
            crop_pct=cfg["crop_pct"],
        ),
        augment=AugmentConfig(crop="resized", color_jitter=0.2),
    )


def _input_of(weights: WeightsConfig) -> tuple[int, Mapping[str, Any]]:
    """Return the side of the images in pixels, and the preprocessing by timm's names.

    Of a file without notes, such as the official ones, it is ImageNet's.
    """
    if weights.model:
        bare = create_model(weights.model, device="meta")
        cfg: dict[str, Any] = bare.pretrained_cfg  # type: ignore[assignment]
        return cfg["input_size"][-1], cfg
    checkpoint = open_weights(weights.checkpoint, weights.layout or None)
    return checkpoint.architecture.img_size[0], {**IMAGENET, **notes_to_cfg(checkpoint.metadata)}


# SGD 0.01, batch 768, 1000 epochs, weight decay 1e-4; random erasing and stochastic depth off, all
# else as on ImageNet. AutoFormer-S at 384 px in the paper: CIFAR-10 99.1, CIFAR-100 91.1.
# torchrun --nproc-per-node 8 -m training.finetune --data-dir DATA --out runs/c10 --preset cifar10
# Not run here: it needs the released weights and GPUs.
CIFAR10 = TrainConfig(
    space="small",
    num_classes=10,
    sampling="fixed",
    weights=WeightsConfig(model="autoformer_small"),
    stages=(Stage(1000, 384),),
    batch_size=768,
    opt="sgd",
    lr=0.01,
    min_lr_ratio=1e-3,
    warmup_fraction=5 / 1000,
    weight_decay=1e-4,
    clip_grad=1.0,
    ema_decay=0.9998,
    held_out_per_class=500,
    evaluate_every=10,
    checkpoint_every=500,
    data=DataConfig(source="torch/cifar10", normalisation="imagenet"),
    augment=replace(PAPER_AUGMENT, erasing=0.0),
)
CIFAR100 = replace(
    CIFAR10,
    num_classes=100,
    held_out_per_class=50,
    data=replace(CIFAR10.data, source="torch/cifar100"),
)

# Data sets that timm and torchvision do not know by one name: a folder of classes in DATA/train.
# AutoFormer-S at 384 px in the paper: Flowers 98.8, Cars 93.4, Pets 94.9.
# python -m training.finetune --data-dir DATA --out runs/flowers --preset flowers
_FOLDER = replace(CIFAR10.data, source="folder")
FLOWERS = replace(CIFAR10, num_classes=102, held_out_per_class=2, data=_FOLDER)
CARS = replace(CIFAR10, num_classes=196, held_out_per_class=4, data=_FOLDER)
PETS = replace(CIFAR10, num_classes=37, held_out_per_class=10, data=_FOLDER)

# AdamW 7.5e-5, batch 768, 360 epochs, weight decay 0.05, erasing 0.1, stochastic depth 0.1.
INATURALIST = replace(
    CIFAR10,
    num_classes=8142,  # of 2018; 2019 has 1010
    stages=(Stage(360, 384),),
    opt="adamw",
    lr=7.5e-5,
    min_lr_ratio=1e-5 / 7.5e-5,
    warmup_fraction=5 / 360,
    weight_decay=0.05,
    drop_path_rate=0.1,
    held_out_per_class=1,
    data=_FOLDER,
    augment=replace(PAPER_AUGMENT, erasing=0.1),
)

# A few steps of the embedded network on CIFAR-10, to see that everything works: under a minute on
# 2 cores.
# python -m training.finetune --data-dir DATA --out runs/smoke --preset smoke
SMOKE = TrainConfig(
    sampling="fixed",
    weights=WeightsConfig(model="autoformer_nano"),
    stages=(Stage(1, 32),),
    batch_size=100,
    lr=1e-4,
    layer_decay=0.75,
    precision="fp32",
    held_out_per_class=4900,
    log_every=2,
)

Preset = Literal["photos", "smoke", "cifar10", "cifar100", "flowers", "cars", "pets", "inaturalist"]
PRESETS: dict[str, TrainConfig] = {  # and photos, which depends on the folder
    "smoke": SMOKE,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "flowers": FLOWERS,
    "cars": CARS,
    "pets": PETS,
    "inaturalist": INATURALIST,
}


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    base = _base(words)

    def command(
        data_dir: Path,
        out: Path,
        model: str | None = None,
        preset: Preset = "photos",
        stop_at: int | None = None,
        config: Annotated[TrainConfig, tyro.conf.arg(name="")] = base,
        resources: Annotated[Resources, tyro.conf.arg(name="")] = DEFAULT_RESOURCES,
    ) -> None:
        """Fine-tune one network on another data set, such as a folder of photos.

        Args:
            data_dir: root of the data: holds train/CLASS/IMAGE, and perhaps val/CLASS/IMAGE
            out: run directory; an unfinished run in it is resumed
            model: model of the zoo to start from (photos: autoformer_nano)
            preset: config to start from, changed by all other flags; photos: a folder of photos
            stop_at: step to stop at, with a checkpoint; the last one by default
        """
        if model and model != config.weights.model:
            raise ValueError(f"--model {model} and --weights both name weights: give one")
        if preset == "photos":
            photos(config.weights, data_dir)  # refuses what the defaults could not be taken from
        state = train(config, data_dir, out, stop_at=stop_at, resources=resources)
        if current_rank() == 0 and (out / WEIGHTS).exists():
            _log.info("next: autoformer-zoo predict IMAGE --checkpoint %s", out / WEIGHTS)
            _log.info("on the test split: %s", _score_command(config.data, data_dir, out))
        print_summary(state, out)

    return run_command("python -m training.finetune", command, words)


def _score_command(data: DataConfig, data_dir: Path, out: Path) -> str:
    source = "torch/cifar10" if data.source == MEMORY else data.source
    name = "" if is_folder(source) else f" --data {source}"
    return (
        f"python -m benchmarks.accuracy --models {out / WEIGHTS} --root {data_dir}{name} "
        f"--split {data.test_split}"
    )


def _base(words: Sequence[str]) -> TrainConfig:
    """Return the config that the other flags change: the preset's, from this model or file."""
    model = value_of("--model", words) or value_of("--weights.model", words)
    checkpoint = value_of("--weights.checkpoint", words)
    given = WeightsConfig(checkpoint=checkpoint) if checkpoint else WeightsConfig(model or "")
    base = PRESETS.get(value_of("--preset", words) or "photos")
    if base is None:
        base = _photos_or_default(given, words)
    return replace(base, weights=given) if model or checkpoint else base


def _photos_or_default(given: WeightsConfig, words: Sequence[str]) -> TrainConfig:
    data_dir = Path(value_of("--data-dir", words) or ".")
    layout: Any = value_of("--weights.layout", words) or ""
    try:
        weights = replace(given, layout=layout) if given.checkpoint else given
        return photos(DEFAULT_WEIGHTS if given == WeightsConfig() else weights, data_dir)
    except (ValueError, OSError, CheckpointError):  # the command itself refuses it, in one line
        return photos(DEFAULT_WEIGHTS, data_dir)


if __name__ == "__main__":
    sys.exit(main())
