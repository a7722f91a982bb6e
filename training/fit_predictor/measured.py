"""Subnets whose accuracy was measured: what a predictor is fitted to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoformer_zoo.network.complexity import count_params
from autoformer_zoo.published import find_space
from autoformer_zoo.space import SubnetConfig

Array = NDArray[Any]
SIZES = ("depth", "embed_dim", "num_heads", "mlp_ratio")


@dataclass(frozen=True, eq=False)
class Measured:
    """Subnets of one space with measured accuracies.

    Args:
        space: name.
        subnets: n of them.
        top1: in percent. (n,)
        file: number of the file that each comes from. (n,)
        sha256: of the files.
    """

    space: str
    subnets: tuple[SubnetConfig, ...]
    top1: Array
    file: Array
    sha256: tuple[str, ...]


def read_measured(paths: Sequence[Path]) -> Measured:
    """Read files of measured subnets.

    Raises:
        ValueError: a file is not of that form, or they are of different spaces.
        OSError: a file cannot be read.
    """
    subnets, top1, file, spaces, digests = [], [], [], [], []
    for number, path in enumerate(paths):
        data = path.read_bytes()
        try:
            table = json.loads(data)
            columns = table["columns"]
            sizes = [columns.index(name) for name in SIZES]
            (accuracy,) = [i for i, name in enumerate(columns) if "top1" in name]
            for row in table["rows"]:
                values = zip(SIZES, (row[i] for i in sizes), strict=True)
                subnets.append(SubnetConfig.from_dict(dict(values)))
                top1.append(float(row[accuracy]))
                file.append(number)
            spaces.append(str(table["space"]))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"{path} is no table of measured subnets ({error}); expected JSON with space, "
                f"columns ({', '.join(SIZES)} and one top1) and rows"
            ) from None
        digests.append(hashlib.sha256(data).hexdigest())
    if len(set(spaces)) != 1 or not np.isfinite(top1).all():
        raise ValueError(
            f"spaces {sorted(set(spaces))} with {len(top1)} rows; expected finite accuracies of one"
        )
    find_space(spaces[0])
    return Measured(spaces[0], tuple(subnets), np.array(top1), np.array(file), tuple(digests))


def count_all(measured: Measured) -> Array:
    """Return the parameters of all subnets: (n,)."""
    space = find_space(measured.space)
    sizes = (space.img_size, space.patch_size, space.num_classes)
    return np.array([count_params(subnet, *sizes) for subnet in measured.subnets])
