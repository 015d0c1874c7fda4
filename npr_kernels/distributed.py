"""Sums over the processes of a group, differentiable: what a batch norm over all of them needs."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """Every process's loss depends on every process's share: the gradients are summed as well."""
        total = grad.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def sum_over_processes(group: dist.ProcessGroup, *tensors: Tensor) -> list[Tensor]:
    """The tensors (any shapes, one dtype and device) summed over the group in one exchange. All processes must call."""
    total = _Sum.apply(torch.cat([tensor.flatten() for tensor in tensors]), group)
    parts = total.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
