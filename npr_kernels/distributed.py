"""Differentiable sums over the processes of a group, and a batch norm that uses them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Sum the gradients, too, because the loss of every process depends on the tensors of all processes."""
        return _Sum.apply(grad.contiguous(), ctx.group), None


def sum_over_processes(group: dist.ProcessGroup, *tensors: Tensor) -> list[Tensor]:
    """Sum tensors (any shapes, one dtype and device) over the group in one exchange. All processes must call it."""
    total = _Sum.apply(torch.cat([tensor.flatten() for tensor in tensors]), group)
    parts = total.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def check_count(count: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError if all processes together have one value per channel. A GPU is not asked: it would have to wait.

    ``count`` is the number of values per channel, ``shape`` that of this process's batch.
    """
    if count.device.type == "cpu" and count == 1:
        raise ValueError(f"expected more than 1 value per channel in all processes when training, got {shape} in this")


def is_empty(count: Tensor | int) -> bool:
    """Return whether the batches of all processes are empty. False for a GPU's count, as in :func:`check_count`."""
    return count == 0 if isinstance(count, int) else count.device.type == "cpu" and bool(count == 0)


def synchronised_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
    group: dist.ProcessGroup,
) -> Tensor:
    """Compute ``F.batch_norm`` in training mode over the batches of all processes, on any device; differentiable.

    All processes must call it. Their batches (N, C, H, W) may differ in size and may be empty. Statistics are float32
    or wider. The running statistics are updated in place. The result has the shape and dtype of ``x``.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    count, total = sum_over_processes(group, wide.new_tensor(wide.numel() // wide.shape[1]), wide.sum((0, 2, 3)))
    check_count(count, tuple(x.shape))
    if is_empty(count):
        running_mean, running_var, count = None, None, count + 1  # no statistics
    mean = total / count
    centred = wide - mean.view(1, -1, 1, 1)
    (squares,) = sum_over_processes(group, centred.square().sum((0, 2, 3)))
    variance = squares / count
    with torch.no_grad():
        for running, value in ((running_mean, mean), (running_var, squares / (count - 1))):
            if running is not None:
                running.lerp_(value.to(running.dtype), momentum)
    z = centred * torch.rsqrt(variance + eps).view(1, -1, 1, 1)
    if weight is not None:
        z = z * weight.view(1, -1, 1, 1)
    if bias is not None:
        z = z + bias.view(1, -1, 1, 1)
    return z.to(x.dtype)


class SyncBatchNorm(nn.SyncBatchNorm):
    """``torch.nn.SyncBatchNorm`` that also works on the CPU: statistics over the batches of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.device.type != "cpu" or not dist.is_initialized():
            return super().forward(x)
        running_mean, running_var, momentum = None, None, self.momentum or 0.0
        if self.track_running_stats:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            running_mean, running_var = self.running_mean, self.running_var
            if self.momentum is None:
                momentum = 1 / self.num_batches_tracked.item()
        group = self.process_group or dist.group.WORLD
        assert group is not None  # as the processes are connected
        return synchronised_batch_norm(x, running_mean, running_var, self.weight, self.bias, momentum, self.eps, group)

    @classmethod
    def replace(cls, module: nn.Module) -> None:
        """Replace every ``nn.BatchNorm2d`` inside ``module`` by this class; parameters and buffers are kept."""
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                tracked = child.track_running_stats
                new = cls(child.num_features, child.eps, child.momentum, child.affine, tracked, device="meta")
                new._parameters, new._buffers = child._parameters, child._buffers
                setattr(module, name, new.train(child.training))
            else:
                cls.replace(child)
