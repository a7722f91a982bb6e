"""Where a network looks: attention weights of its blocks, and pictures of them.

Axes: B batch, H heads, N tokens (1 + h * w: the class token, then patches row by row).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from autoformer_zoo.classify.images import ImageLike, iter_images
from autoformer_zoo.classify.predict import make_transform
from autoformer_zoo.network.attention import attention_weights
from autoformer_zoo.network.vit import AutoFormer

# Colours of attention from none to the most, at equal distances: dark violet, red, orange, yellow.
_COLOURS = np.array([(24, 12, 60), (122, 28, 109), (222, 73, 73), (252, 165, 60), (252, 250, 164)])


def attention_maps(
    model: nn.Module,
    images: Tensor | ImageLike | Iterable[ImageLike],
    blocks: Sequence[int] | None = None,
    *,
    relative: bool = True,
) -> list[Tensor]:
    """Return the attention weights of a network's blocks.

    Weight [b, h, i, j] is how much of token j's value token i takes, in head h of image b. Token 0
    is the class token, token 1 + row * w + column the patch there; each row sums to 1. The network
    averages its patches and leaves the class token out, so no single row is "the" answer; the
    values carry a relative position too, which the weights do not show.

    Args:
        model: an AutoFormer; in training mode it is run as in evaluation, and is left as it is.
        images: prepared inputs (B, channels, height, width), or images as `predict` takes them.
        blocks: indices of blocks, negative ones from the end; all by default.
        relative: False leaves the relative position out of the logits of the blocks that are
            returned: what the weights would be if the content of the patches alone decided.

    Returns:
        For each of `blocks` weights (B, H, N, N); blocks may have different numbers of heads.

    Raises:
        TypeError: `model` is not an AutoFormer.
        ValueError: there is no such block, or an image is refused.
        FileNotFoundError: a path does not exist.
    """
    if not isinstance(model, AutoFormer):
        raise TypeError(f"attention_maps takes an AutoFormer; {type(model).__name__} given")
    depth = len(model.blocks)
    wanted = list(range(depth) if blocks is None else blocks)
    if wrong := [index for index in wanted if not -depth <= index < depth]:
        raise ValueError(f"there is no block {wrong[0]}; expected {-depth} to {depth - 1}")
    x = images if isinstance(images, Tensor) else _prepared(model, images)
    was_training = model.training
    try:
        if was_training:
            model.eval()
        with torch.no_grad():
            maps = _run(model, x, {index % depth for index in wanted}, relative)
    finally:
        if was_training:
            model.train()
    return [maps[index % depth] for index in wanted]


def attention_rollout(maps: Sequence[Tensor]) -> Tensor:
    """Return how much each token takes from each patch of the input through all blocks.

    Heads are averaged, each block's residual connection is counted as half, and the blocks are
    multiplied (Abnar and Zuidema, arXiv 2005.00928).

    Args:
        maps: of all blocks, from `attention_maps`.

    Returns:
        (B, N, N); each row sums to 1.
    """
    identity = torch.eye(maps[0].shape[-1], dtype=maps[0].dtype, device=maps[0].device)
    total = identity.expand(maps[0].shape[0], -1, -1)
    for weights in maps:
        total = (weights.mean(1) + identity) / 2 @ total
    return total


def patch_heat(weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return how much the patches take from each patch, on average: (B, h, w).

    Args:
        weights: (B, N, N): a rollout, or one head's weights.
        grid: rows and columns of patches.
    """
    return weights[:, 1:, 1:].mean(1).unflatten(1, grid)


def draw_overlay(image: Image.Image, heat: NDArray[np.floating[Any]]) -> Image.Image:
    """Colour an image by heat: what is looked at stays bright and becomes warm, the rest dark.

    Args:
        image: of mode RGB; any size.
        heat: (h, w), of any range; it is stretched over the image.
    """
    low, high = np.percentile(heat, 5), heat.max()
    scaled = np.clip((heat - low) / max(float(high - low), 1e-12), 0, 1)
    small = Image.fromarray(scaled.astype(np.float32))
    smooth = np.clip(np.asarray(small.resize(image.size, Image.Resampling.BICUBIC)), 0, 1)
    pixels = np.asarray(image).astype(np.float32)
    grey = pixels.mean(2, keepdims=True)
    strength = smooth[..., None]
    colour = np.stack(
        [np.interp(smooth, np.linspace(0, 1, len(_COLOURS)), c) for c in _COLOURS.T], -1
    )
    base = (0.30 + 0.70 * strength) * (strength * pixels + (1 - strength) * grey)
    mixed = base + 0.45 * (0.25 + 0.75 * strength) * (colour - base)
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def _prepared(model: AutoFormer, images: ImageLike | Iterable[ImageLike]) -> Tensor:
    transform = make_transform(model)
    inputs = [transform(image) for _, image in iter_images(images)]
    if not inputs:
        raise ValueError("no image was given")
    return torch.stack(inputs).to(model.pos_embed)


def _run(model: AutoFormer, x: Tensor, wanted: set[int], relative: bool) -> dict[int, Tensor]:
    """Run the network up to the last wanted block, and compute the weights from their inputs."""
    maps = {}
    x, grid = model._embed(x)
    blocks: list[Any] = list(model.blocks)
    for index, block in enumerate(blocks[: max(wanted, default=-1) + 1]):
        if index in wanted:
            attn, (B, N, _) = block.attn, x.shape
            qkv = attn.qkv(block.norm1(x)).reshape(B, N, 3, attn.num_heads, attn.head_dim)
            q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, D) each
            maps[index] = attention_weights(q, k, attn.rel_pos, grid, relative)
        x = block(x, grid)
    return maps
