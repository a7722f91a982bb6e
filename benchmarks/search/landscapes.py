"""What a search explores: accuracies of subnets by a predictor, or from a table."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoformer_zoo.published import SPACES
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.specialization.constraints import Constraint, Feasible, params_cost
from autoformer_zoo.specialization.predictor import encode_choices, load_predictor
from autoformer_zoo.specialization.search import find_best

LIMITS = MappingProxyType({"tiny": 6e6, "small": 23e6, "base": 54e6})  # arXiv 2107.00651, table 2
POOL = 3000  # random subnets to draw from

Array = NDArray[Any]


class Landscape:
    """What is searched: the subnets of a space below the limit on parameters, by their accuracies.

    Args:
        name: of the space.
    """

    kind = ""

    def __init__(self, name: str) -> None:
        self.name, self.space = name, SPACES[name]
        cost = params_cost(self.space)
        self.feasible = Feasible(self.space, [Constraint(cost, high=LIMITS[name])])
        rng = random.Random(0)
        self.pool = list(dict.fromkeys(self.feasible.sample(rng) for _ in range(POOL)))
        self.best = 0.0  # the highest accuracy

    def evaluate(self, subnet: SubnetConfig, seen: set[int], seed: int) -> tuple[float, float]:
        """Return what an evaluation finds, and the accuracy that counts.

        Args:
            subnet: what is asked for.
            seen: what earlier calls of this run returned; changed.
            seed: of the run.

        Raises:
            EnoughError: there is nothing more to be asked for.
        """
        raise NotImplementedError


class EnoughError(Exception):
    """A run is at its end."""


class ModelLandscape(Landscape):
    """The predictor; an evaluation adds noise of the size of its errors."""

    kind = "model"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.predictor = load_predictor(name)
        figures = self.predictor.facts["figures"]
        self.noise = float(next(line["rmse"] for line in figures))
        (found,) = find_best(self.feasible, lambda x: self.predictor.predict(x).tolist())
        self.best = found.score

    def evaluate(self, subnet: SubnetConfig, seen: set[int], seed: int) -> tuple[float, float]:
        """Return the prediction with noise, and without."""
        value = float(self.predictor.predict([subnet])[0])
        return value + self.noise * random.Random(f"{seed}/{subnet.to_json()}").gauss(0, 1), value


class TableLandscape(Landscape):
    """Measured subnets; an evaluation is of the nearest one that was not yet returned."""

    kind = "table"

    def __init__(self, path: Path) -> None:
        table = read_table(path)
        super().__init__(table["space"])
        rows = [row for row in table["rows"] if self.feasible.contains(row[0])]
        self.top1 = np.array([top1 for _, top1 in rows])
        self.places = self._place([subnet for subnet, _ in rows])
        self.best = float(self.top1.max())

    def _place(self, subnets: Sequence[SubnetConfig]) -> Array:
        # Another depth or width is further away than all other choices together.
        far = 1000.0
        sizes = [[far * s.depth, far * s.embed_dim] for s in subnets]
        return np.concatenate([sizes, choices_of(self.space, subnets)], axis=1)

    def evaluate(self, subnet: SubnetConfig, seen: set[int], seed: int) -> tuple[float, float]:
        """Return the accuracy of the nearest subnet left, twice."""
        if len(seen) == len(self.top1):
            raise EnoughError
        away = np.abs(self.places - self._place([subnet])).sum(1)
        away[list(seen)] = np.inf
        seen.add(row := int(away.argmin()))
        return float(self.top1[row]), float(self.top1[row])


def choices_of(space: SearchSpace, subnets: Sequence[SubnetConfig]) -> Array:
    """Return the scaled choices of all blocks, 0 beyond the depth."""
    heads, ratios = np.array(space.num_heads), np.array(space.mlp_ratio)
    return np.nan_to_num(encode_choices(subnets, heads, ratios, max(space.depth)))


def read_table(path: Path) -> dict[str, Any]:
    """Read measured subnets: the name of their space, and (subnet, top-1) pairs.

    Raises:
        ValueError: the file is not of that form, or of a space without a limit.
    """
    names = ("depth", "embed_dim", "num_heads", "mlp_ratio")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        places = {name: table["columns"].index(name) for name in names}
        (accuracy,) = [i for i, name in enumerate(table["columns"]) if "top1" in name]
        rows = [
            (SubnetConfig.from_dict({n: row[i] for n, i in places.items()}), float(row[accuracy]))
            for row in table["rows"]
        ]
        LIMITS[table["space"]]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path} is no table of measured subnets ({error})") from None
    return {"space": table["space"], "rows": rows}
