"""Differentiate through an equilibrium a = f(a) without the steps that led to it.

For a loss of the equilibrium a, with J the Jacobian of f at a,

    q = (I - J^T)^-1 dloss/da,        dloss/dparameters = q^T df/dparameters

so backward needs q, a root of g(q) = J^T q - q + dloss/da, and one product with the Jacobian for each try. Two solvers:
Broyden's good method with a low-rank inverse, each sample by itself, and a damped fixed-point iteration.
Source: Bai et al., "Deep equilibrium models", NeurIPS 2019; Xiao et al., NeurIPS 2021 (feedback spiking networks).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]

# A residual that has grown so many times is going nowhere.
_DIVERGED = 1e6


@dataclass(frozen=True)
class Solver:
    """`iterations` at most; it stops below `tolerance` times the root of the number of unknowns.

    Or below `relative` times the first residual: products of few digits lead no nearer.
    """

    kind: Literal["broyden", "iteration"] = "broyden"
    iterations: int = 30
    tolerance: float = 2e-10
    relative: float = 0.0

    def solve(self, g: Function, start: Tensor) -> Tensor:
        """A root of g near `start` [N, ...]: the best that was met, by the residual of the whole batch."""
        return _broyden(g, start, self) if self.kind == "broyden" else _iterate(g, start, self)


def at_equilibrium(f: Function, a: Tensor, solver: Solver) -> Tensor:
    """The equilibrium `a`, with its implicit gradient with respect to everything that f depends on.

    `f` must be differentiable at `a` [N, ...], which is the equilibrium found by whatever means, without a graph.
    Under autocast the solver stops at the precision of its products.
    """
    device = a.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        digits = torch.finfo(torch.get_autocast_dtype(device)).eps
        solver = replace(solver, relative=max(solver.relative, digits))
    at = a.detach().requires_grad_()
    value = f(at)

    def implicit(gradient: Tensor) -> Tensor:
        def g(q: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(value, at, q, retain_graph=True)
            return product - q + gradient

        # Only the products are wanted here, not what they would add to the parameters' gradients.
        with torch.enable_grad():
            start = torch.zeros_like(gradient) if solver.kind == "broyden" else gradient
            return solver.solve(g, start).detach()

    # Parameters get their gradient from this second evaluation, whose input is a constant: q^T df/dparameters.
    result = f(a.detach())
    if result.requires_grad:
        result.register_hook(implicit)  # type: ignore[no-untyped-call]
    # The equilibrium's own value; the difference to f's is what the search for it left over.
    return result + (a.detach() - result).detach()


def _iterate(g: Function, q: Tensor, solver: Solver) -> Tensor:
    limit = solver.tolerance * math.sqrt(q.numel())
    best, lowest = q, math.inf
    for k in range(solver.iterations):
        residual = g(q)
        norm = residual.norm().item()
        if not k:
            limit = max(limit, solver.relative * norm)
        if norm < lowest:
            best, lowest = q, norm
        if norm < limit:
            break
        q = q + residual / 2
    return best


def _broyden(g: Function, start: Tensor, solver: Solver) -> Tensor:
    """Good Broyden from the inverse -I; the inverse is -I plus one outer product an iteration, kept by sample."""
    shape = start.shape
    x = start.flatten(1)
    limit = solver.tolerance * math.sqrt(x.numel())

    def residual_at(point: Tensor) -> Tensor:
        return g(point.view(shape)).flatten(1)

    r = residual_at(x)
    best, lowest = x, r.norm().item()
    first = lowest
    limit = max(limit, solver.relative * first)
    size = (len(x), solver.iterations, x.shape[1])
    left, right = x.new_empty(size), x.new_empty(size)
    step = r
    for k in range(solver.iterations):
        if lowest < limit:
            break
        x = x + step
        new = residual_at(x)
        norm = new.norm().item()
        if norm < lowest:
            best, lowest = x, norm
        if not norm < _DIVERGED * max(first, limit):
            break
        change, r = new - r, new
        right[:, k] = _times_inverse(right[:, :k], left[:, :k], step)
        denominator = (right[:, k] * change).sum(1, keepdim=True)
        left_one = (step - _times_inverse(left[:, :k], right[:, :k], change)) / denominator
        # A sample that has arrived divides nothing by nothing: its inverse stays as it is.
        left[:, k] = torch.where(denominator == 0, 0.0, left_one)
        step = -_times_inverse(left[:, : k + 1], right[:, : k + 1], r)
    return best.view(shape)


def _times_inverse(left: Tensor, right: Tensor, x: Tensor) -> Tensor:
    """(-I + sum over k of left[:, k] right[:, k]^T) x; with left and right exchanged, its transpose."""
    if not left.shape[1]:
        return -x
    along = torch.bmm(right, x.unsqueeze(2)).transpose(1, 2)
    return torch.baddbmm(x.unsqueeze(1), along, left, beta=-1).squeeze(1)


__all__ = ["Function", "Solver", "at_equilibrium"]
