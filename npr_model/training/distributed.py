"""Training in several processes that torchrun starts: their roles, and batch norm over all of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from npr_model.devices import choose_device
from npr_model.errors import InputError


@dataclass(frozen=True)
class Process:
    """One of ``size`` processes that train together. ``rank`` 0 is the main process, which writes the files."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def from_main(self, value: Any) -> Any:
        """Return the main process's ``value``, in every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def sum(self, tensor: Tensor) -> None:
        """Sum a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Average each tensor over all processes, in place.

        All tensors go in one message. torch's DistributedDataParallel would overlap sending and computing, but it
        refuses synchronised batch norm on the CPU, and 1.4 million gradients are quick to send.
        """
        if self.size == 1:
            return
        tensors = list(tensors)
        joined = torch.cat([tensor.flatten() for tensor in tensors]).div_(self.size)
        dist.all_reduce(joined)
        for tensor, mean in zip(tensors, joined.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def process_group(device: str) -> Iterator[Process]:
    """Yield this process's role among the processes that torchrun started (Gloo on CPUs, NCCL on GPUs).

    Without torchrun there is one process. An existing process group is reused. Several processes on a machine take one
    GPU each. ``device``: as in :func:`npr_model.devices.choose_device`. Raises InputError.
    """
    size, rank, local_rank = (int(os.environ.get(name, n)) for name, n in _TORCHRUN.items())
    device = choose_device(device)
    if size == 1:
        yield Process(torch.device(device))
        return
    backend, own = "gloo", torch.device(device)
    if own.type == "cuda":
        if own.index is not None:
            raise InputError(f"device {device} names one GPU, but {size} processes need one each: use cuda")
        if local_rank >= torch.cuda.device_count():
            raise InputError(f"process {local_rank} of this machine finds only {torch.cuda.device_count()} GPUs")
        backend, own = "nccl", torch.device("cuda", local_rank)
        torch.cuda.set_device(own)
    ours = not dist.is_initialized()
    if ours:  # the other processes wait while the main one validates, which may take long
        dist.init_process_group(backend, timeout=timedelta(hours=12), device_id=own if own.type == "cuda" else None)
    try:
        yield Process(own, rank, size)
    finally:
        if ours:
            dist.destroy_process_group()


_TORCHRUN = {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0}  # environment variables, with their values without torchrun
