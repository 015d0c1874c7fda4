"""Over all processes of a group: differentiable sums, and the batch norm that they make."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Every process's loss depends on every process's share: the gradients are summed as well."""
        return _Sum.apply(grad.contiguous(), ctx.group), None


def sum_over_processes(group: dist.ProcessGroup, *tensors: Tensor) -> list[Tensor]:
    """The tensors (any shapes, one dtype and device) summed over the group in one exchange. All processes must call."""
    total = _Sum.apply(torch.cat([tensor.flatten() for tensor in tensors]), group)
    parts = total.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


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
    """``F.batch_norm`` in training mode over the batches of all processes, on any device, differentiable.

    All processes must call it. Their batches, (N, C, H, W), may differ in size, and one may be empty. Statistics are in
    float32 or better. The running statistics are moved in place. Returns the shape and dtype of ``x``.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    count, total = sum_over_processes(group, wide.new_tensor(wide.numel() // wide.shape[1]), wide.sum((0, 2, 3)))
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
