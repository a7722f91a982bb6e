"""Augmented views of images, made a batch at a time from one number an image.

A view is a shift, a flip and, under a policy such as batch-m7-n2, a few of the changes of
RandAugment (arXiv 1909.13719). All of it follows from the view's number alone: the same number
makes the same view, in any batch, at any later time. A teacher's answers to a fixed set of views
can therefore be stored once and used for a whole training.

Single images in Python would cost several times as much as a training step on them; here every
image of a batch goes through one bilinear sampling, and each colour change is made for all images
that drew it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

MAX_VIEWS = 2**15  # views of an image that answers can be stored for; later ones never repeat
MAX_MAGNITUDE = 10
MAX_DRAWS = 64  # for a view: 3 and 3 for each change
_POLICY = re.compile(r"batch-m(\d+)-n(\d+)")
_GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
_ANGLE, _SHEAR, _TRANSLATION = np.pi / 6, 0.3, 0.3  # at the highest magnitude; last: of the side


def parse_policy(policy: str) -> tuple[float, int]:
    """Return the magnitude, 0 to 1, and the number of changes of a policy such as batch-m7-n2.

    Raises:
        ValueError: it is of another form.
    """
    if not policy:
        return 0.0, 0
    found = _POLICY.fullmatch(policy)
    if not found or int(found[1]) > MAX_MAGNITUDE or 3 + 3 * int(found[2]) > MAX_DRAWS:
        raise ValueError(
            f"augment.policy is {policy!r}; for images in memory expected batch-mM-nN, M of 0 to "
            f"{MAX_MAGNITUDE}, such as batch-m7-n2"
        )
    return int(found[1]) / MAX_MAGNITUDE, int(found[2])


def view_numbers(positions: Tensor, view: int | Tensor) -> Tensor:
    """Return the numbers (n,) of a view, or of one each, of images at positions of a data set."""
    return positions * (2 * MAX_VIEWS) + view


def make_views(pixels: Tensor, numbers: Tensor, policy: str, shift: bool = True) -> Tensor:
    """Make one view of each image.

    Args:
        pixels: (n, 3, height, width), centred so that 0 fills what comes in at the border.
        numbers: int64 (n,): each decides its image's view.
        policy: as `parse_policy` reads it.
        shift: shift by up to an eighth of the side and flip.

    Returns:
        float32 of the same shape.
    """
    magnitude, changes = parse_policy(policy)
    drawn = _uniform(numbers, 3 + 3 * changes).to(pixels.device)  # (n, draws)
    matrices = _identity(pixels) if not shift else _shift_and_flip(drawn, pixels.shape[2:])
    picks = [_Pick(part, magnitude) for part in drawn[:, 3:].split(3, 1)] if changes else []
    for pick in picks:
        matrices = matrices @ pick.matrices()
    grid = F.affine_grid(matrices[:, :2], list(pixels.shape), align_corners=False)
    x = F.grid_sample(pixels, grid, align_corners=False)
    for pick in picks:
        pick.change_colours(x)
    return x


class _Pick:
    """One change of each image: which, how strong, in which direction; (n, 3) draws decide it."""

    def __init__(self, drawn: Tensor, magnitude: float) -> None:
        which, strength, sign = drawn.unbind(1)
        self.number = (which * (len(_GEOMETRIC) + len(_COLOURS))).long()  # (n,)
        spread = magnitude * (0.5 + 0.5 * strength)  # as RandAugment's mstd: never quite the same
        self.signed = torch.where(sign < 0.5, -spread, spread)

    def matrices(self) -> Tensor:
        """Return the matrices (n, 3, 3) of the geometric changes; unit ones for the others."""
        amount, result = self.signed, _identity(self.signed)
        rotate, shear_x, shear_y, move_x, move_y = (self.number == i for i in range(5))
        angle = torch.where(rotate, amount * _ANGLE, 0.0)
        result[:, 0, 0] = result[:, 1, 1] = angle.cos()
        result[:, 0, 1] = -angle.sin() + torch.where(shear_x, amount * _SHEAR, 0.0)
        result[:, 1, 0] = angle.sin() + torch.where(shear_y, amount * _SHEAR, 0.0)
        result[:, 0, 2] = torch.where(move_x, amount * 2 * _TRANSLATION, 0.0)  # the side is 2
        result[:, 1, 2] = torch.where(move_y, amount * 2 * _TRANSLATION, 0.0)
        return result

    def change_colours(self, x: Tensor) -> None:
        """Change the images that drew a colour change, in place."""
        for number, change in enumerate(_COLOURS, len(_GEOMETRIC)):
            chosen = (self.number == number).nonzero().squeeze(1)
            if len(chosen):
                amount = self.signed[chosen].view(-1, 1, 1, 1)
                x[chosen] = change(x[chosen], amount)


# Colour changes of normalised images (n, 3, height, width) by amounts (n, 1, 1, 1), -1 to 1. The
# factors of the first four are 0.1 to 1.9 at the highest magnitude, as RandAugment's.
def _brightness(x: Tensor, amount: Tensor) -> Tensor:
    return x + amount * 1.5  # deviations


def _contrast(x: Tensor, amount: Tensor) -> Tensor:
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (1 + 0.9 * amount)


def _saturation(x: Tensor, amount: Tensor) -> Tensor:
    grey = x.mean(1, keepdim=True)
    return grey + (x - grey) * (1 + 0.9 * amount)


def _sharpness(x: Tensor, amount: Tensor) -> Tensor:
    blurred = F.avg_pool2d(F.pad(x, (1,) * 4, "replicate"), 3, 1)
    return blurred + (x - blurred) * (1 + 0.9 * amount)


def _stretch(x: Tensor, amount: Tensor) -> Tensor:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return (x - low) / (high - low).clamp(min=1e-3) * 4 - 2


def _solarize(x: Tensor, amount: Tensor) -> Tensor:
    bound = 2 * (1 - amount.abs())  # in deviations; lower where stronger
    return torch.where(x > bound, 2 * bound - x, x)


def _posterize(x: Tensor, amount: Tensor) -> Tensor:
    step = 0.1 + amount.abs()
    return (x / step).round() * step


_COLOURS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    _brightness,
    _contrast,
    _saturation,
    _sharpness,
    _stretch,
    _solarize,
    _posterize,
)


def _shift_and_flip(drawn: Tensor, sides: torch.Size) -> Tensor:
    """Return the matrices (n, 3, 3) of flips and of shifts by whole pixels, up to an eighth."""
    result = _identity(drawn)
    result[:, 0, 0] = torch.where(drawn[:, 0] < 0.5, -1.0, 1.0)
    for row, side in enumerate(reversed(sides)):  # x first
        margin = side // 8
        pixels = (drawn[:, 1 + row] * (2 * margin + 1)).floor() - margin
        result[:, row, 2] = pixels * 2 / side  # the side is 2
    return result


def _identity(like: Tensor) -> Tensor:
    """Return unit matrices (n, 3, 3) for n rows, where these are."""
    return torch.eye(3, device=like.device).repeat(len(like), 1, 1)


def _uniform(numbers: Tensor, draws: int) -> Tensor:
    """Draw float32 (n, draws), 0 to 1, each row from its number (splitmix64)."""
    z: NDArray[np.uint64] = numbers.cpu().numpy().astype(np.uint64)[:, None].repeat(draws, 1)
    z *= np.uint64(MAX_DRAWS)
    z += np.arange(draws, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)  # products wrap around
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return torch.from_numpy((z >> np.uint64(40)).astype(np.float32) / np.float32(2**24))
