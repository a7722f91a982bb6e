"""What tests of the search share: a space of seconds, made-up weights and images, latencies."""

from __future__ import annotations

import torch

from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.space import SearchSpace
from autoformer_zoo.weights.checkpoint import SupernetWeights
from autoformer_zoo.weights.layouts import Architecture
from tests.helpers.made_training import MINI, make_images
from training.search.costs import BlockLatency, LatencyTable
from training.search.evaluation import SearchTask, memory_batches


def make_weights(space: SearchSpace = MINI) -> SupernetWeights:
    """Make random weights with which predictions differ from image to image."""
    net = Architecture.of_space(space)
    network = AutoFormer(space.supernet, net.img_size, net.patch_size, num_classes=net.num_classes)
    with torch.no_grad():
        network.head.weight.normal_()
        network.pos_embed.normal_()
    tensors = {name: p.detach() for name, p in network.named_parameters()}
    return SupernetWeights(tensors, net, "prefix")


def make_task() -> SearchTask:
    """Make a task of 40 made-up images."""
    batches = memory_batches(make_images(40), MINI.img_size)
    return SearchTask(make_weights(), MINI, batches, {"supernet": "made up"})


def make_table(ns: int = 1000, img_size: int = MINI.img_size, device: str = "cpu") -> LatencyTable:
    """Make up latencies: `ns` times width, heads and MLP ratio, and nothing around the blocks."""
    blocks = tuple(
        BlockLatency(dim, heads, ratio, int(ns * dim * heads * ratio))
        for dim in MINI.embed_dim
        for heads in MINI.num_heads
        for ratio in MINI.mlp_ratio
    )
    rest = {str(dim): 0 for dim in MINI.embed_dim}
    return LatencyTable(device, 1, 1, img_size, MINI.patch_size, {}, rest, blocks)
