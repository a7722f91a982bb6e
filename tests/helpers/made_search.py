"""What tests of the search share: a space of seconds, made-up weights and images, latencies."""

from __future__ import annotations

import torch

from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.space import SearchSpace
from autoformer_zoo.specialization.latency.profile import (
    BlockLatency,
    LatencyProfile,
    RunSetting,
)
from autoformer_zoo.weights.checkpoint import SupernetWeights
from autoformer_zoo.weights.layouts import Architecture
from tests.helpers.made_training import MINI, make_images
from training.data.batch import Batch
from training.data.cifar10 import Images, eval_batch
from training.search.evaluation import SearchTask


def make_weights(space: SearchSpace = MINI) -> SupernetWeights:
    """Make random weights with which predictions differ from image to image."""
    net = Architecture.of_space(space)
    network = AutoFormer(space.supernet, net.img_size, net.patch_size, num_classes=net.num_classes)
    with torch.no_grad():
        network.head.weight.normal_()
        network.pos_embed.normal_()
    tensors = {name: p.detach() for name, p in network.named_parameters()}
    return SupernetWeights(tensors, net, "prefix")


def memory_batches(images: Images, img_size: int) -> list[Batch]:
    """Resize and normalise images in memory, as one batch."""
    return [Batch(eval_batch(images, img_size), images.labels)]


def make_task() -> SearchTask:
    """Make a task of 40 made-up images."""
    batches = memory_batches(make_images(40), MINI.img_size)
    return SearchTask(make_weights(), MINI, batches, {"supernet": "made up"})


def make_profile(ns: int = 1000, img_size: int = MINI.img_size) -> LatencyProfile:
    """Make up latencies: `ns` times width, heads and MLP ratio, and nothing around the blocks."""
    return LatencyProfile(
        setting=RunSetting(),
        machine="made up",
        versions="",
        date="",
        img_size=img_size,
        patch_size=MINI.patch_size,
        num_timed=3,
        noise_percent=0.0,
        error_percent=(0.0, 0.0),
        rest_ns={str(dim): 0 for dim in MINI.embed_dim},
        blocks=tuple(
            BlockLatency(dim, heads, ratio, int(ns * dim * heads * ratio))
            for dim in MINI.embed_dim
            for heads in MINI.num_heads
            for ratio in MINI.mlp_ratio
        ),
    )
