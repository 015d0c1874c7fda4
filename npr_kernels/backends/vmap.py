"""Rules for ``torch.func.vmap``: one call of the operator if only images are mapped, else one call per item."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

IMAGES = frozenset(("x", "grad", "argmax"))  # arguments whose first dimension is the batch
SUMMED = frozenset(("npr_conv2d_grad_weight", "npr_moments", "npr_stem_grad_weight"))  # their results have no batch


def register(operator: torch._ops.OpOverload, library: torch.library.Library | None = None) -> None:
    """Give ``operator`` a rule for vmap."""
    names = [argument.name for argument in operator._schema.arguments]
    results_are_batches = operator._schema.name.partition("::")[2] not in SUMMED

    def call(args: list, mapped: set[str], size: int) -> Any:
        if results_are_batches and mapped <= IMAGES:
            return _each(operator(*_joined(names, args, mapped, size)), lambda t: t.unflatten(0, (size, -1)))
        items = [
            operator(*(arg[i] if name in mapped else arg for name, arg in zip(names, args, strict=True)))
            for i in range(size)
        ]
        return torch.stack(items) if isinstance(items[0], Tensor) else tuple(map(torch.stack, zip(*items, strict=True)))

    def rule(info: Any, in_dims: Sequence[Any], *given: Any) -> tuple[Any, Any]:
        dims = [dim if isinstance(dim, int) else None for dim in in_dims]  # list arguments have a list of None
        mapped = {name for name, dim in zip(names, dims, strict=True) if dim is not None}
        args = [arg if dim is None else arg.movedim(dim, 0) for arg, dim in zip(given, dims, strict=True)]
        if info.batch_size == 0:  # one item of zeros tells the shapes
            args = [
                arg.new_zeros((1, *arg.shape[1:])) if name in mapped else arg
                for name, arg in zip(names, args, strict=True)
            ]
        results = _each(call(args, mapped, max(info.batch_size, 1)), lambda t: t[: info.batch_size])
        return results, _each(results, lambda t: 0)

    torch.library.register_vmap(operator, rule, lib=library)


def _joined(names: list[str], args: list, mapped: Collection[str], size: int) -> list:
    """Return the arguments with the images of all mapped calls in one batch; unmapped images are repeated."""
    return [
        (arg if name in mapped else arg.expand(size, *arg.shape)).flatten(0, 1) if name in IMAGES else arg
        for name, arg in zip(names, args, strict=True)
    ]


def _each(results: Any, function: Callable[[Tensor], Any]) -> Any:
    return function(results) if isinstance(results, Tensor) else tuple(map(function, results))
