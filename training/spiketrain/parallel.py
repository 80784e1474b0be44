"""One training run on several processes, as `torchrun` starts them: each has its part of every batch.

The result is that of one process with the whole batch, but for rounding: gradients are averaged, batch norms take
their statistics from the whole batch, and order and augmentation are drawn for the whole. Dropout alone is drawn by
each process for itself.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spiketrain.data.base import Share

T = TypeVar("T")

# How long a process waits for the others before it gives up, so that torchrun can start those that are left. A machine that
# loses its power does not say so.
TIMEOUT = "SPIKETRAIN_TIMEOUT_SECONDS"
_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class Group:
    """The processes of this run. With one, everything here does nothing."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        return Share(self.rank, self.world)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes its average over all processes."""
        if self.world == 1:
            return
        # One message for all: its time is that of many small ones otherwise.
        flat = torch.cat([tensor.detach().flatten().float() for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= self.world
        sizes = [tensor.numel() for tensor in tensors]
        for tensor, value in zip(tensors, torch.split(flat, sizes), strict=True):
            tensor.detach().copy_(value.view_as(tensor))

    def gather(self, value: T) -> list[T]:
        """What every process has, in the order of their ranks."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, value)
        return cast(list[T], found)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            distributed.barrier()

    def close(self) -> None:
        if self.world > 1 and distributed.is_initialized():
            distributed.destroy_process_group()


def join(device_type: str) -> Group:
    """The group that torchrun's environment describes: NCCL between GPUs, Gloo between processors.

    Raises ValueError where $SPIKETRAIN_TIMEOUT_SECONDS is no number of seconds.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Group()
    if not distributed.is_initialized():
        backend = "nccl" if device_type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=_timeout())
    rank = distributed.get_rank()
    return Group(rank, world, int(os.environ.get("LOCAL_RANK", rank)))


def _timeout() -> timedelta:
    given = os.environ.get(TIMEOUT, str(_TIMEOUT_SECONDS))
    try:
        seconds = float(given)
        if not 0 < seconds < 1e7:
            raise ValueError(seconds)
    except ValueError:
        raise ValueError(f"{TIMEOUT} is {given!r}: give seconds, such as 600") from None
    return timedelta(seconds=seconds)


def share_batch_norms(network: nn.Module) -> None:
    """From now on batch norms in training take the statistics of the whole batch, on all processes."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.forward = functools.partial(_shared, module)  # type: ignore[method-assign]


def _shared(norm: _BatchNorm, x: Tensor) -> Tensor:
    if not norm.training or norm.running_mean is None or norm.running_var is None:
        return type(norm).forward(norm, x)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    shape = [1, -1, *(1,) * (x.dim() - 2)]
    wide = x.float()
    count = x.numel() // x.shape[1] * distributed.get_world_size()
    mean = _total(wide.sum(axes)) / count
    centred = wide - mean.view(shape)
    variance = _total(centred.square().sum(axes)) / count
    with torch.no_grad():
        momentum = _counted(norm)
        norm.running_mean.lerp_(mean, momentum)
        norm.running_var.lerp_(variance * count / max(count - 1, 1), momentum)
    y = centred * torch.rsqrt(variance + norm.eps).view(shape)
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return y.to(x.dtype)


class _Sum(torch.autograd.Function):
    """Over all processes. Each one's value is in every one's sum, so its gradient is the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


def _total(value: Tensor) -> Tensor:
    return cast(Tensor, _Sum.apply(value))  # type: ignore[no-untyped-call]


def _counted(norm: _BatchNorm) -> float:
    """The momentum of this update, which is counted; without one, statistics are those of all batches alike."""
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    if norm.momentum is not None:
        return norm.momentum
    return 1 / int(cast(Tensor, norm.num_batches_tracked))


def gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The gradients of all parameters that are learned; zeros where a batch gave none."""
    found = []
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        found.append(parameter.grad)
    return found
