"""One process or many: ranks, and the few things that they tell each other.

`torchrun` starts the processes and says who they are; without it there is one. The batch is the
config's whatever their number: part p of P takes every P-th image from p on, and a process does
its `accumulate` parts one after the other.
"""

from __future__ import annotations

import atexit
import inspect
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from autoformer_zoo.weights.checkpoint import CheckpointError
from training.config import Resources, TrainConfig

T = TypeVar("T")
_LOST = re.compile(r"[Cc]onnection|by peer|Broken pipe|[Tt]imed out|remote process exited")
_PLACE = re.compile(r"^\[\S+\] ")  # in torch's source
REFUSALS = (ValueError, OSError, CheckpointError)  # what one process tells the others


class TrainingError(RuntimeError):
    """A failure that commands report in one line, with exit code 1."""


class SharedError(TrainingError):
    """A failure that every process meets: the first one alone tells it."""


class LostProcessError(TrainingError):
    """Another process ended while this one waited for it."""


def is_shared(error: BaseException) -> bool:
    """Say whether every process raises this: by its kind, or since one told the others."""
    return isinstance(error, SharedError) or isinstance(error.__cause__, SharedError)


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among all, and its device."""

    device: torch.device
    rank: int = 0
    world: int = 1
    accumulate: int = 1

    @property
    def parts(self) -> int:
        """Parts that a batch is done in, over all processes."""
        return self.world * self.accumulate

    @property
    def own_parts(self) -> range:
        """Numbers of this process's parts."""
        return range(self.rank * self.accumulate, (self.rank + 1) * self.accumulate)

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all processes."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def largest(self, values: Sequence[float]) -> list[float]:
        """Return the largest over all processes, element by element."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def wait(self) -> None:
        """Wait until all processes are here.

        Raises:
            LostProcessError: one of them ended.
        """
        if self.world > 1:
            with telling_lost():
                dist.barrier()

    def together(self, work: Callable[[], T]) -> T:
        """Do work in every process, and wait for all; what one refuses, all refuse.

        Args:
            work: talks to no other process itself.

        Returns:
            This process's result.

        Raises:
            ValueError: raised by the work in some process; as are OSError and CheckpointError.
            LostProcessError: a process ended, as after any other error of its work.
        """
        if self.world == 1:
            return work()
        error: Exception | None = None
        try:
            result = work()
        except REFUSALS as refusal:
            error = refusal
        for told in self._gathered(error and (_kind_of(error), str(error))):
            if told is not None:
                number, text = told
                raise REFUSALS[number](text) from SharedError(text)
        return result

    def by_first(self, work: Callable[[], T]) -> T:
        """Let the first process do work while all wait; what it refuses, all refuse.

        Args:
            work: as of `together`; its result can be pickled.

        Returns:
            The first process's result.

        Raises:
            ValueError: as `together`, which it also is in its other errors.
        """
        result = self.together(work if self.is_first else lambda: None)
        return self._gathered(result)[0]

    def wrap(self, network: nn.Module, uses_all: bool) -> nn.Module:
        """Make a network whose gradients are averaged over processes, where there are several.

        Args:
            network: the same in every process.
            uses_all: every pass gives every parameter a gradient. A subnet leaves blocks out.
        """
        if self.world == 1:
            return network
        devices = [self.device] if self.device.type == "cuda" else None
        known = inspect.signature(DistributedDataParallel).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        flags: dict[str, Any] = {sync: False}  # the first name from PyTorch 2.13 on
        return DistributedDataParallel(
            network, devices, find_unused_parameters=not uses_all, **flags
        )

    def _reduced(self, values: Sequence[float], how: dist.ReduceOp.RedOpType) -> list[float]:
        if self.world == 1:
            return list(values)
        # Apple's and other devices without float64 have no process groups either.
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        with telling_lost():
            dist.all_reduce(summed, how)
            return summed.tolist()

    def _gathered(self, value: Any) -> list[Any]:  # whatever can be pickled
        """Return the values of all processes, in order."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with telling_lost():
            dist.all_gather_object(values, value)
        return values


@contextmanager
def telling_lost() -> Iterator[None]:
    """Around what waits for other processes: turn what torch says of a lost one into a line.

    Raises:
        LostProcessError: one of them ended.
    """
    try:
        yield
    except RuntimeError as error:  # gloo has no kind of its own
        if not _LOST.search(str(error)):
            raise
        reason = _PLACE.sub("", str(error).splitlines()[0]).partition(". ")[0]
        raise LostProcessError(
            f"a process was lost ({reason}); give the same command again to go on from the last "
            "checkpoint"
        ) from error


def _kind_of(error: Exception) -> int:
    """Return the number of the first kind in REFUSALS that an error is of."""
    return next(i for i, kind in enumerate(REFUSALS) if isinstance(error, kind))


SINGLE = Ranks(torch.device("cpu"))


def join(config: TrainConfig, resources: Resources) -> Ranks:
    """Join the processes that torchrun started, if it did.

    The group is left when the process ends, not before: a second run in the same processes, as in a
    search after training, could not find the others again.

    Raises:
        ValueError: the batch cannot be divided into equal parts, or the device is unknown.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    ranks = Ranks(device_of(resources.device, local, world), rank, world, resources.accumulate)
    if world > 1 and not dist.is_initialized():
        if ranks.device.type == "cuda":
            torch.cuda.set_device(ranks.device)
        dist.init_process_group("nccl" if ranks.device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    ranks.by_first(lambda: _require_parts(config, ranks))
    return ranks


def _require_parts(config: TrainConfig, ranks: Ranks) -> None:
    size, parts = config.batch_size, ranks.parts
    if size % parts:
        raise ValueError(
            f"batch_size {size} cannot be divided into {ranks.world} processes x "
            f"{ranks.accumulate} accumulated parts; expected a multiple of {parts}"
        )
    if config.augment.mixes and (size // parts) % 2:
        raise ValueError(
            f"mixup and cutmix mix pairs, but a part has {size // parts} images; expected a "
            f"batch_size that is a multiple of {2 * parts}"
        )


def device_of(name: str, local_rank: int = 0, world: int = 1) -> torch.device:
    """Return the device of that name; auto: CUDA where there is some.

    Args:
        name: as PyTorch has it.
        local_rank: number of this process on its machine: of its GPU, where there are several.
        world: number of processes.

    Raises:
        ValueError: there is no such device, or it is of no use here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and (world > 1 or device.index is None):
            device = torch.device("cuda", local_rank)
        torch.zeros(1, device=device).item()  # the only sure test: there, and it can hold a number
    except (RuntimeError, AssertionError, ImportError):
        raise ValueError(
            f"device is {name!r}, which cannot be used here; expected cpu, cuda, cuda:1 and the "
            "like, or auto"
        ) from None
    return device
