"""What a subnet costs: parameters, multiply-adds, and latency in ms by a table of its blocks.

    python -m training.search.costs --space tiny --out latency-tiny.json  # measures this machine
    python -m training.search.costs --space nano --img-size 24 --out latency-24.json

All three are sums over blocks (`limits.Cost`), so a search knows what is reachable and needs no
network to judge a candidate. A table is measured once on a device and can be kept and handed on;
`training.search` measures one on the spot where none is given. The latency of a whole network is
not exactly its blocks' sum: the search measures its winner to say how far the sum was off.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from autoformer_zoo.network.complexity import count_macs, count_params
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.space import SearchSpace, SubnetConfig
from benchmarks.measure.competitors import thread_count
from benchmarks.measure.rows import Environment, current_environment
from benchmarks.measure.timing import Plan, Run, cuda_stopwatch, measure, summarise, wall_stopwatch
from training.run.directory import require_writable, write_text
from training.search.constraints import Cost

NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class BlockLatency:
    """The latency of one block in ns, and of which block."""

    embed_dim: int
    num_heads: int
    mlp_ratio: float
    ns: int


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Latencies of all blocks of a space on one device, and of what stands around them.

    Args:
        device: its kind, "cpu" or "cuda"; its own name is in `environment`.
        threads: of PyTorch, on the CPU.
        batch_size: images a call.
        img_size: input side in pixels.
        patch_size: patch side in pixels.
        environment: where and when it was measured.
        rest_ns: everything but the blocks, by embed_dim as text (JSON has no other keys).
        blocks: one entry for every width, heads and MLP ratio of the space.

    Raises:
        ValueError: a value is of the wrong type or out of its range; the text names the field.
    """

    device: str
    threads: int
    batch_size: int
    img_size: int
    patch_size: int
    environment: dict[str, Any]
    rest_ns: dict[str, int]
    blocks: tuple[BlockLatency, ...]

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device is {self.device!r}; expected cpu or cuda")
        for name in ("threads", "batch_size", "img_size", "patch_size"):
            _require_whole(name, getattr(self, name), least=1)
        for name in ("environment", "rest_ns"):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(f"{name} is {_short(getattr(self, name))}; expected an object")
        for dim, ns in self.rest_ns.items():
            _require_whole(f"rest_ns[{dim!r}]", ns)
        for place, block in enumerate(self.blocks):
            for name, least in (("embed_dim", 1), ("num_heads", 1), ("ns", 0)):
                _require_whole(f"blocks[{place}].{name}", getattr(block, name), least)
            ratio: object = block.mlp_ratio
            if type(ratio) not in (int, float) or not 0 < block.mlp_ratio < math.inf:
                raise ValueError(f"blocks[{place}].mlp_ratio is {ratio!r}; expected above 0")

    def to_json(self) -> str:
        """Return indented JSON; `from_json` turns it back."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> LatencyTable:
        """Make a table from `to_json`'s output.

        Raises:
            ValueError: it is not JSON, a key is missing or unknown, or a value is refused.
        """
        try:
            values = _checked_keys(cls, json.loads(text), "the table")
            blocks = values["blocks"]
            if not isinstance(blocks, list):
                raise ValueError(f"blocks is {_short(blocks)}; expected a list")
            values["blocks"] = tuple(
                BlockLatency(**_checked_keys(BlockLatency, block, f"blocks[{place}]"))
                for place, block in enumerate(blocks)
            )
            return cls(**values)
        except ValueError as error:
            raise ValueError(
                f"not a table of block latencies ({error}); make one with training.search.costs"
            ) from None

    def cost(self, space: SearchSpace) -> Cost:
        """Return the latency as a cost of subnets of `space`.

        Raises:
            ValueError: the table is of other sizes, or lacks a block of the space.
        """
        sizes = (space.img_size, space.patch_size)
        if sizes != (self.img_size, self.patch_size):
            raise ValueError(
                f"the latency table is for images and patches of "
                f"{self.img_size, self.patch_size} px, the space has {sizes}; measure another one"
            )
        by_block = {(b.embed_dim, b.num_heads, b.mlp_ratio): b.ns for b in self.blocks}
        for key in _block_keys(space):
            if key not in by_block or str(key[0]) not in self.rest_ns:
                raise ValueError(
                    f"the latency table lacks the block (embed_dim, heads, mlp_ratio) = {key}; "
                    "measure another one"
                )
        return Cost(
            "latency_ms",
            lambda dim: self.rest_ns[str(dim)],
            lambda dim, heads, ratio: by_block[dim, heads, ratio],
            NS_PER_MS,
        )


def params_cost(space: SearchSpace) -> Cost:
    """Return the number of parameters as a cost of subnets of `space`."""
    return _counted("params", space, count_params)


def macs_cost(space: SearchSpace) -> Cost:
    """Return multiply-adds of one image, in the form of attention that the CPU picks."""
    return _counted("macs", space, count_macs)


def measure_latencies(
    space: SearchSpace,
    device: str = "cpu",
    batch_size: int = 1,
    rounds: int = 20,
    seconds: float = 60.0,
) -> LatencyTable:
    """Measure the blocks of a space on this machine, as parts of whole networks.

    A block alone would find its weights in the cache. So uniform networks are timed at the space's
    largest depth and with one block only, in interleaved rounds, and a block's latency is what one
    more of it adds.

    Args:
        space: whose blocks.
        device: "cpu" or "cuda".
        batch_size: images a call.
        rounds: timed calls of every network, at most.
        seconds: start no further round after this long.

    Raises:
        ValueError: there is no such device, or a number is out of its range.
    """
    _require_whole("batch_size", batch_size, least=1)
    plan = Plan(rounds, seconds)
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', and this machine has none; expected cpu")
    depth = space.depth[-1]
    keys = _block_keys(space)
    networks = {(1, key): _network(space, 1, key, device, batch_size) for key in _first(keys)}
    networks |= {(depth, key): _network(space, depth, key, device, batch_size) for key in keys}
    stopwatch = cuda_stopwatch() if device == "cuda" else wall_stopwatch()
    times = measure(networks, plan, stopwatch)
    ms = {name: summarise(spent).median_ms for name, spent in times.items()}
    rest_ms = {}
    for key in _first(keys):
        step = (ms[depth, key] - ms[1, key]) / max(1, depth - 1)
        rest_ms[key[0]] = max(0.0, ms[1, key] - step)
    blocks = tuple(
        BlockLatency(*key, ns=_ns((ms[depth, key] - rest_ms[key[0]]) / depth)) for key in keys
    )
    environment: Environment = current_environment(device)
    return LatencyTable(
        device,
        torch.get_num_threads(),
        batch_size,
        space.img_size,
        space.patch_size,
        asdict(environment),
        {str(dim): _ns(rest) for dim, rest in rest_ms.items()},
        blocks,
    )


def measure_ms(
    space: SearchSpace, subnet: SubnetConfig, table: LatencyTable, rounds: int = 20
) -> float:
    """Measure one whole subnet in the table's setting; the median in ms."""
    run = make_run(space, subnet, table.device, table.batch_size)
    stopwatch = cuda_stopwatch() if table.device == "cuda" else wall_stopwatch()
    with thread_count(table.threads):
        return summarise(measure({0: run}, Plan(rounds), stopwatch)[0]).median_ms


def make_run(space: SearchSpace, subnet: SubnetConfig, device: str, batch_size: int) -> Run:
    """Return a call of the untrained static network of a subnet on random images."""
    network = AutoFormer(
        subnet,
        img_size=space.img_size,
        patch_size=space.patch_size,
        num_classes=space.num_classes,
        device=device,
    ).eval()
    x = torch.randn(batch_size, 3, space.img_size, space.img_size, device=device)

    @torch.no_grad()
    def run() -> object:
        return network(x)

    return run


def _network(
    space: SearchSpace, depth: int, key: tuple[int, int, float], device: str, batch_size: int
) -> Run:
    return make_run(space, SubnetConfig.uniform(depth, *key), device, batch_size)


def _counted(name: str, space: SearchSpace, count: Callable[..., int]) -> Cost:
    sizes = (space.img_size, space.patch_size, space.num_classes)

    @cache
    def block(dim: int, heads: int, ratio: float) -> int:
        one, two = (count(SubnetConfig.uniform(n, dim, heads, ratio), *sizes) for n in (1, 2))
        return two - one

    @cache
    def rest(dim: int) -> int:
        heads, ratio = space.num_heads[0], space.mlp_ratio[0]
        one = count(SubnetConfig.uniform(1, dim, heads, ratio), *sizes)
        return one - block(dim, heads, ratio)

    return Cost(name, rest, block)


def _block_keys(space: SearchSpace) -> list[tuple[int, int, float]]:
    return [(d, h, r) for d in space.embed_dim for h in space.num_heads for r in space.mlp_ratio]


def _first(keys: list[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
    return list({key[0]: key for key in reversed(keys)}.values())


def _require_whole(name: str, value: object, least: int = 0) -> None:
    if type(value) is not int or value < least:
        raise ValueError(f"{name} is {value!r}; expected a whole number, {least} or more")


def _checked_keys(cls: type[Any], values: object, what: str) -> dict[str, Any]:
    names = [field.name for field in fields(cls)]
    if not isinstance(values, dict):
        raise ValueError(f"{what} is {_short(values)}; expected an object with {', '.join(names)}")
    wrong = [f"lacks {name}" for name in names if name not in values]
    wrong += [f"has an unknown {name!r}" for name in values if name not in names]
    if wrong:
        raise ValueError(f"{what} {wrong[0]}")
    return values


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _ns(ms: float) -> int:
    return max(0, round(ms * NS_PER_MS))


def measure_command(
    out: Path,
    space: str = "nano",
    device: Literal["cpu", "cuda"] = "cpu",
    batch_size: int = 1,
    img_size: int | None = None,
    rounds: int = 20,
    seconds: float = 60.0,
) -> None:
    """Measure the block latencies of a space on this machine and write them as JSON.

    Args:
        out: JSON file to write.
        space: name of the search space.
        device: cpu or cuda.
        batch_size: images a call.
        img_size: input side in pixels, that of a run's last stage; the space's where not given.
        rounds: timed calls of every network, at most.
        seconds: start no further round after this long.
    """
    from autoformer_zoo.published import find_space

    require_writable(out)
    sized = find_space(space)
    if img_size is not None:
        sized = replace(sized, img_size=img_size)
        if img_size % sized.patch_size:
            raise ValueError(f"img_size is {img_size}; expected a multiple of {sized.patch_size}")
    table = measure_latencies(sized, device, batch_size, rounds, seconds)
    write_text(out, table.to_json() + "\n")
    for b in table.blocks:
        print(f"{b.embed_dim:5d} {b.num_heads:3d} {b.mlp_ratio:4g} {b.ns / NS_PER_MS:9.4f} ms")
    print(json.dumps({"out": str(out), "rest_ns": table.rest_ns}))


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    from training.run.command import run_command

    return run_command("python -m training.search.costs", measure_command, argv)


if __name__ == "__main__":
    sys.exit(main())
