"""One process or many: ranks, and the few values that they exchange.

`torchrun` starts the processes and numbers them; without it there is one. The batch is the config's
whatever their number: part p of P takes every P-th image from p on, and a process computes its
`accumulate` parts one after the other.

What one rank refuses, all refuse: otherwise the others would wait for it in their next collective
call until a timeout of many minutes. Rank 0 reports the error for all.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from autoformer_zoo.weights.files import CheckpointError
from training.settings.config import Resources

T = TypeVar("T")


class TrainingError(RuntimeError):
    """A failure that commands report in one line, with exit code 1."""


class SharedError(TrainingError):
    """A failure that is raised on all ranks and reported by rank 0."""


class LostProcessError(TrainingError):
    """Another process ended while this one waited for it."""


def is_shared(error: BaseException) -> bool:
    """Return True if every rank raises this error, itself or another one because of it."""
    return isinstance(error, SharedError) or isinstance(error.__cause__, SharedError)


def current_rank() -> int:
    """Return the number of this process among those that torchrun started; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among all, and its device."""

    device: torch.device
    rank: int = 0
    world: int = 1
    accumulate: int = 1

    @property
    def parts(self) -> int:
        """Parts that a batch is divided into, over all processes."""
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
            with lost_process_errors():
                dist.barrier()

    def together(self, work: Callable[[], T]) -> T:
        """Run `work` on every rank and wait for all; a user's mistake on one is raised on all.

        Args:
            work: communicates with no other process itself.

        Returns:
            This process's result.

        Raises:
            ValueError: raised by the work on some rank; as are OSError and CheckpointError.
            LostProcessError: a process ended, as it does after any other error of its work.
        """
        if self.world == 1:
            return work()
        mistake: Exception | None = None
        try:
            result = work()
        except (ValueError, OSError, CheckpointError) as error:
            mistake = error
        for found in self.gathered(mistake):
            if found is not None:
                raise found from SharedError(str(found))
        return result

    def by_first(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 while all wait; errors as in `together`.

        Args:
            work: as of `together`; its result can be pickled.

        Returns:
            The result of rank 0.
        """
        result = self.together(work if self.is_first else lambda: None)
        return self.gathered(result)[0]

    def wrap(self, network: nn.Module, uses_all: bool) -> nn.Module:
        """Return a network whose gradients are averaged over processes, if there are several.

        Args:
            network: the same in every process.
            uses_all: every pass gives every parameter a gradient. A subnet leaves blocks out.
        """
        if self.world == 1:
            return network
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, devices, find_unused_parameters=not uses_all)

    def _reduced(self, values: Sequence[float], how: dist.ReduceOp.RedOpType) -> list[float]:
        if self.world == 1:
            return list(values)
        # Apple's and other devices without float64 have no process groups either.
        reduced = torch.tensor(values, dtype=torch.float64, device=self.device)
        with lost_process_errors():
            dist.all_reduce(reduced, how)
            return reduced.tolist()

    def gathered(self, value: Any) -> list[Any]:  # whatever can be pickled
        """Return the values of all processes, in order."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with lost_process_errors():
            dist.all_gather_object(values, value)
        return values


SINGLE = Ranks(torch.device("cpu"))


@contextmanager
def lost_process_errors() -> Iterator[None]:
    """Raise LostProcessError for the errors of torch.distributed inside the block.

    gloo has no exception of its own: its messages begin with the file that they come from.
    """
    try:
        yield
    except RuntimeError as error:
        line = str(error).partition("\n")[0]
        if not isinstance(error, dist.DistError) and "gloo" not in line:
            raise
        raise LostProcessError(
            f"a process was lost ({line}); give the same command again to go on from the last "
            "checkpoint"
        ) from error


def join(resources: Resources, batch_size: int, makes_pairs: bool) -> Ranks:
    """Join the processes that torchrun started, if it did.

    The group is left when the process ends, not before: a second run in the same processes, as in a
    search after training, could not find the others again.

    Args:
        resources: device, threads and accumulated parts.
        batch_size: images per step, over all processes.
        makes_pairs: True if mixup or CutMix mixes pairs of a part of the batch.

    Raises:
        ValueError: the batch cannot be divided into equal parts, or the device is unknown.
    """
    if resources.threads:
        torch.set_num_threads(resources.threads)
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), current_rank()
    device = device_of(resources.device, int(os.environ.get("LOCAL_RANK", "0")), world)
    ranks = Ranks(device, rank, world, resources.accumulate)
    if world > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    expected = ranks.parts * 2 if makes_pairs else ranks.parts
    if batch_size % expected:  # the same on every rank
        raise ValueError(
            f"batch_size {batch_size} cannot be divided into {world} processes x "
            f"{resources.accumulate} accumulated parts{' of pairs to mix' if makes_pairs else ''}; "
            f"expected a multiple of {expected}"
        ) from (SharedError() if world > 1 else None)
    return ranks


def device_of(name: str, local_rank: int = 0, world: int = 1) -> torch.device:
    """Return the device of that name; auto: CUDA if there is a GPU.

    Args:
        name: PyTorch's name.
        local_rank: number of this process on its machine, which is that of its GPU.
        world: number of processes.

    Raises:
        ValueError: there is no such device, or it cannot be used here.
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
