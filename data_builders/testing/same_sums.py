"""Sums of floats that come out the same on every x86-64 CPU with AVX2, and the learning rate of a supervised pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn


class _Product(torch.autograd.Function):
    """``x @ weight.T`` by numpy."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, -2)
        ctx.save_for_backward(rows, weight)
        return product(rows, weight.T).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        rows, weight = ctx.saved_tensors
        by_row = grad.flatten(0, -2)
        to_input = product(by_row, weight).view(*grad.shape[:-1], -1) if ctx.needs_input_grad[0] else None
        return to_input, product(by_row.T, rows)


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Matrix product of float32 (M, K) and (K, N) by numpy, whose OpenBLAS has one code for all CPUs with AVX2.

    MKL, which torch calls, has such a code for SSE2 only: with it the making takes twice as long.
    """
    return torch.from_numpy(a.detach().numpy() @ b.detach().numpy())


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``torch.nn.functional.linear`` by `product`.

    Args:
        x: float32 (..., K).
        weight: float32 (N, K).
        bias: float32 (N,).
    """
    y = _Product.apply(x, weight)
    return y if bias is None else y + bias


def gradients(
    loss_of: Callable[[torch.Tensor], tuple[torch.Tensor, ...]], chosen: torch.Tensor, parameters: list[nn.Parameter]
) -> tuple[torch.Tensor, ...]:
    """Set the gradients of a batch's mean loss; its two halves run side by side, and are added in one order.

    So two cores are used, and the sums are the same however many there are.

    Args:
        loss_of: of the items (B / 2,) of a half: their mean loss, and what else is to be returned of them.
        chosen: items of the batch, int64 (B,), B even.
        parameters: the leaves.

    Returns:
        the batch's mean loss, and the rest of `loss_of`'s results, joined along their first axis.
    """

    def half(items: torch.Tensor) -> tuple:
        loss, *rest = loss_of(items)
        return torch.autograd.grad(loss, parameters, allow_unused=True), loss.detach(), *rest

    with ThreadPoolExecutor(2) as pool:
        (ours, loss, *rest), (others, other_loss, *other_rest) = pool.map(half, chosen.chunk(2))
    for parameter, a, b in zip(parameters, ours, others, strict=True):
        parameter.grad = None if a is None else (a + b) / 2
    return (loss + other_loss) / 2, *(torch.cat(pair) for pair in zip(rest, other_rest, strict=True))


def warm_cosine(steps: int, warm_up: int = 20):
    """Learning-rate factor per step: a linear rise, then a cosine to a tenth."""

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.55 + 0.45 * math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1))

    return factor
