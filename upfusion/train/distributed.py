"""One process or many: who this process is, and the few things that processes must agree on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from upfusion.runtime.errors import DeviceError, InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """This process's place among those of a run."""

    rank: int
    count: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; every process must ask."""
        if self.count == 1:
            return flag
        votes = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(votes)
        return bool(votes.item() > 0)

    def wait(self) -> None:
        """Return once every process is here."""
        if self.count > 1:
            dist.barrier()


@contextlib.contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the other processes that ``torchrun`` started, if it did, and leave them at the end.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, or ``auto`` (a GPU where there is one). Under torchrun, ``cuda`` means
            the GPU of this process's local rank.

    Raises:
        DeviceError: there is no such GPU.
        InputError: no such device.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if "WORLD_SIZE" not in os.environ:
        yield Processes(rank=0, count=1, device=chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(rank=rank, count=count, device=chosen)
    finally:
        dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    """Return the device of this process, made current if it is a GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"no device is named {name!r}", "use --device cpu, cuda or auto") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise InputError(f"training on {name} is not supported", "use --device cpu or cuda")
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise DeviceError(
            f"GPU {index} was asked for, and PyTorch sees {torch.cuda.device_count()}",
            "use --device cpu, fewer processes, or see: upfusion doctor",
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device
