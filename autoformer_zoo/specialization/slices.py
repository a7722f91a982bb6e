"""Named subnets along the predicted front of each space: the catalogue `slices.json`.

`autoformer_small_slice_15m` is the subnet of `autoformer_small`'s supernet with the highest
predicted accuracy among those of at most 15 million parameters. The file is made by
`python -m benchmarks.budgets.slices` and is plain JSON for other programs to read. Standard library
only.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from autoformer_zoo.published import SLICE_MARK
from autoformer_zoo.space import SubnetConfig, from_mapping

FILE = Path(__file__).parent / "slices.json"


@dataclass(frozen=True, slots=True)
class Slice:
    """A named subnet.

    Args:
        model: whose supernet it is cut from, such as autoformer_small.
        name: such as 15m.
        subnet: the architecture.
        params: number of parameters.
        macs: multiply-adds of one image.
        top1_percent: predicted top-1, not measured.
        top1_low: lower end of its 90 % interval.
        top1_high: upper end of its 90 % interval.
        extrapolated: True if none of the subnets behind the predictor had one of its sizes.
        latency_ms: measured time of one call, by setting; on the machine that the file names.
    """

    model: str
    name: str
    subnet: SubnetConfig
    params: int
    macs: int
    top1_percent: float
    top1_low: float
    top1_high: float
    extrapolated: bool
    latency_ms: Mapping[str, float]

    def __post_init__(self) -> None:
        if not isinstance(self.subnet, SubnetConfig):  # as it comes from JSON
            object.__setattr__(self, "subnet", SubnetConfig.from_dict(self.subnet))

    @property
    def full_name(self) -> str:
        """Such as autoformer_small_slice_15m."""
        return f"{self.model}{SLICE_MARK}{self.name}"


@cache
def load_slices() -> Mapping[str, Slice]:
    """Return all slices by their full names."""
    rows = json.loads(FILE.read_text(encoding="utf-8"))["slices"]
    slices = [from_mapping(Slice, row) for row in rows]
    return MappingProxyType({each.full_name: each for each in slices})


def find_slice(model: str, name: str) -> Slice:
    """Return a slice of a model.

    Raises:
        ValueError: the model has none of that name; the text lists those that it has.
    """
    slices = load_slices()
    if (found := slices.get(f"{model}{SLICE_MARK}{name}")) is not None:
        return found
    having = [each.name for each in slices.values() if each.model == model]
    if not having:
        models = ", ".join(dict.fromkeys(each.model for each in slices.values()))
        raise ValueError(f"{model} has no slices; expected one of {models}")
    close = difflib.get_close_matches(name, having, n=1)
    hint = f", did you mean {close[0]}?" if close else ""
    raise ValueError(f"{model} has no slice {name!r}; expected one of {', '.join(having)}{hint}")
