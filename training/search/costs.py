"""The latency of a subnet by a table of its blocks.

    python -m training.search.costs --space tiny --out latency-tiny.json  # measures this machine
    python -m training.search.costs --space nano --img-size 24 --out latency-24.json

It is a sum over blocks (`constraints.Cost`), so a search knows what a space can reach and needs
no network to judge a candidate. A table is measured once per device and can be kept;
`training.search` measures one itself if none is given. The latency of a whole network is not
exactly the sum of its blocks: the search measures its winner and logs both.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.published import find_space
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.specialization.constraints import Cost
from autoformer_zoo.weights.files import check_output
from benchmarks.measure.rows import current_environment
from benchmarks.measure.timing import (
    Call,
    Stopwatch,
    TimingConfig,
    cuda_stopwatch,
    measure,
    summarise,
    thread_count,
    wall_stopwatch,
)
from training.config import config_dataclass, describe_errors
from training.run.command import run_command
from training.run.directory import write_text

_log = logging.getLogger(__name__)

NS_PER_MS = 1_000_000
Nanoseconds = Annotated[int, Field(ge=0, lt=2**63)]
Device = Literal["cpu", "cuda"]
BlockKey = tuple[int, int, float]  # embed_dim, heads, MLP ratio


@config_dataclass()
class BlockLatency:
    """The latency of one block."""

    embed_dim: PositiveInt
    num_heads: PositiveInt
    mlp_ratio: PositiveFloat
    ns: Nanoseconds


@config_dataclass()
class LatencyTable:
    """Latencies of all blocks of a space on one device, and of everything around them.

    Args:
        device: kind of device; its name is in `environment`.
        threads: of PyTorch, on the CPU.
        batch_size: images per call.
        img_size: input side in pixels.
        patch_size: patch side in pixels.
        environment: where and when it was measured.
        rest_ns: everything but the blocks, by embed_dim as text (JSON has no other keys).
        blocks: one entry for every width, heads and MLP ratio of the space.

    Raises:
        ValueError: a value has the wrong type or is out of its range.
    """

    device: Device
    threads: PositiveInt
    batch_size: PositiveInt
    img_size: PositiveInt
    patch_size: PositiveInt
    environment: dict[str, Any]
    rest_ns: dict[str, Nanoseconds]
    blocks: tuple[BlockLatency, ...]

    def to_json(self) -> str:
        """Return indented JSON; `from_json` turns it back."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> LatencyTable:
        """Make a table from `to_json`'s output.

        Raises:
            ValueError: it is not JSON, a key is missing or unknown, or a value is refused.
        """
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            raise ValueError(
                f"not a table of block latencies ({describe_errors(error)}); make one with "
                "python -m training.search.costs"
            ) from None

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read a file; raises as `from_json` does, with the file's name."""
        try:
            return cls.from_json(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

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


def measure_latencies(
    space: SearchSpace,
    device: Device = "cpu",
    batch_size: int = 1,
    rounds: int = 20,
    seconds: float = 60.0,
) -> LatencyTable:
    """Measure the blocks of a space on this machine, as parts of whole networks.

    A block alone would find its weights in the cache. So uniform networks are timed at the space's
    largest depth and with one block only, in interleaved rounds, and the latency of a block is what
    one more of it adds.

    Args:
        space: whose blocks.
        device: "cpu" or "cuda".
        batch_size: images per call.
        rounds: timed calls of every network, at most.
        seconds: start no further round after this time.

    Raises:
        ValueError: there is no such device, or a number is out of its range.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
    plan = TimingConfig(rounds, seconds)
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', which this machine does not have; expected cpu")
    _log.info("measuring the blocks of the space on this machine, for about %.0f s", seconds)
    depth, keys = space.depth[-1], _block_keys(space)
    first = {key[0]: key for key in reversed(keys)}  # one block of each width
    networks = [(1, key) for key in first.values()] + [(depth, key) for key in keys]
    runs = {
        (n, key): make_run(space, SubnetConfig.uniform(n, *key), device, batch_size)
        for n, key in networks
    }
    times = measure(runs, plan, _stopwatch(device))
    ms = {name: summarise(spent).value for name, spent in times.items()}
    rest_ms = {}
    for dim, key in first.items():
        step = (ms[depth, key] - ms[1, key]) / max(1, depth - 1)
        rest_ms[dim] = max(0.0, ms[1, key] - step)
    blocks = tuple(
        BlockLatency(*key, ns=_ns((ms[depth, key] - rest_ms[key[0]]) / depth)) for key in keys
    )
    return LatencyTable(
        device=device,
        threads=torch.get_num_threads(),
        batch_size=batch_size,
        img_size=space.img_size,
        patch_size=space.patch_size,
        environment=asdict(current_environment(device)),
        rest_ns={str(dim): _ns(rest) for dim, rest in rest_ms.items()},
        blocks=blocks,
    )


def measure_ms(
    space: SearchSpace, subnet: SubnetConfig, table: LatencyTable, rounds: int = 20
) -> float:
    """Measure one whole subnet in the table's setting; the median in ms."""
    run = make_run(space, subnet, table.device, table.batch_size)
    with thread_count(table.threads):
        return summarise(measure({0: run}, TimingConfig(rounds), _stopwatch(table.device))[0]).value


def make_run(space: SearchSpace, subnet: SubnetConfig, device: str, batch_size: int) -> Call:
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


def _stopwatch(device: str) -> Stopwatch:
    return cuda_stopwatch() if device == "cuda" else wall_stopwatch()


def _block_keys(space: SearchSpace) -> list[BlockKey]:
    return list(product(space.embed_dim, space.num_heads, space.mlp_ratio))


def _ns(ms: float) -> int:
    return max(0, round(ms * NS_PER_MS))


def measure_command(
    out: Path,
    space: str = "nano",
    device: Device = "cpu",
    batch_size: int = 1,
    img_size: int | None = None,
    rounds: int = 20,
    seconds: float = 60.0,
) -> None:
    """Measure the block latencies of a space on this machine and write them as JSON.

    Args:
        out: JSON file to write.
        space: name of the search space.
        device: device to measure.
        batch_size: images per call.
        img_size: input side in pixels, such as that of a run's last stage (None: the space's).
        rounds: largest number of timed calls of every network.
        seconds: start no further round after this time.
    """
    check_output(out)
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
    return run_command("python -m training.search.costs", measure_command, argv)


if __name__ == "__main__":
    sys.exit(main())
