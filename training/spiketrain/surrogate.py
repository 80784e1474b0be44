"""Spikes forward, a surrogate gradient backward.

A surrogate maps u = h - threshold to spikes (0 or 1 in the dtype of u) and stands in for the derivative of that
step. Surrogates are frozen models, so that a checkpoint can name the one a network was trained with.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class _Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, surrogate: _Surrogate) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate = surrogate
        return surrogate.spikes(u)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return grad * ctx.surrogate.derivative(u), None


class _Surrogate(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def __call__(self, u: Tensor) -> Tensor:
        if torch.is_grad_enabled() and u.requires_grad:
            return _Fire.apply(u, self)  # type: ignore[no-any-return, no-untyped-call]
        return self.spikes(u)

    def spikes(self, u: Tensor) -> Tensor:
        """1 where u >= 0, else 0."""
        return (u >= 0).to(u.dtype)

    def derivative(self, u: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define its derivative")


class Rectangle(_Surrogate):
    """Gradient 1/width where |u| <= width/2, edges included (the rectangle of the CLIF and ILIF repositories).

    `strict` is GLIF's form: spikes only where u > 0, and a window that leaves its edges out.
    """

    kind: Literal["rectangle"] = "rectangle"
    width: float = Field(1.0, gt=0)
    strict: bool = False

    def spikes(self, u: Tensor) -> Tensor:
        return ((u > 0) if self.strict else (u >= 0)).to(u.dtype)

    def derivative(self, u: Tensor) -> Tensor:
        half = self.width / 2
        inside = (u.abs() < half) if self.strict else (u.abs() <= half)
        return inside.to(u.dtype) / self.width


class Arctangent(_Surrogate):
    """Gradient (alpha/2) / (1 + (pi alpha u / 2)^2), PLIF's choice with alpha = 2."""

    kind: Literal["arctangent"] = "arctangent"
    alpha: float = Field(2.0, gt=0)

    def derivative(self, u: Tensor) -> Tensor:
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * u) ** 2)


class Sigmoid(_Surrogate):
    """Gradient of sigmoid(alpha u), SpikingJelly's default with alpha = 4."""

    kind: Literal["sigmoid"] = "sigmoid"
    alpha: float = Field(4.0, gt=0)

    def derivative(self, u: Tensor) -> Tensor:
        y = torch.sigmoid(self.alpha * u)
        return self.alpha * y * (1 - y)


Surrogate = Annotated[Rectangle | Arctangent | Sigmoid, Field(discriminator="kind")]

rectangle = Rectangle()
arctangent = Arctangent()
sigmoid = Sigmoid()
