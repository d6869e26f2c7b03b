"""Several processes of PyTorch that train one model, over gloo: batch statistics, loss and gradients are those of the whole batch.

The environment says where the others are, as torchrun's does (`medmesh.learning.ranks` sets it).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from medmesh.learning.torch_adapter import Alone


class Group(Alone):
    """Finds the others when it is made. Each process computes the loss of all answers, in which it can change its own only: whatever the
    loss is, their gradients add up to that of the batch."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._trained = [p for p in model.parameters() if p.requires_grad]
        dist.init_process_group("gloo", init_method="env://")
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.forward = partial(_norm, module, module.forward)

    def answers(self, own: torch.Tensor, mine: slice, count: int) -> torch.Tensor:
        """Everybody's answers in the batch's order, from the own ones."""
        everybody = torch.zeros((count, *own.shape[1:]), dtype=own.dtype)
        everybody[mine] = own.detach()
        dist.all_reduce(everybody)
        return torch.cat([everybody[: mine.start], own, everybody[mine.stop :]])

    def add_gradients(self) -> None:
        """Leave in the model the sum of what each process has there."""
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in self._trained])
        dist.all_reduce(flat)
        for p, part in zip(self._trained, flat.split([p.numel() for p in self._trained]), strict=True):
            p.grad = part.view_as(p).clone()


def _norm(module: _BatchNorm, alone: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Batch normalisation over everybody's samples; `torch.nn.SyncBatchNorm` is for other devices only."""
    if not module.training:
        return alone(x)
    over, shape = [d for d in range(x.dim()) if d != 1], [1, -1] + [1] * (x.dim() - 2)
    count = torch.tensor(float(x.numel() // x.shape[1]))
    dist.all_reduce(count)
    mean = all_reduce(x.sum(over)) / count
    variance = all_reduce(((x - mean.view(shape)) ** 2).sum(over)) / count
    if module.track_running_stats and module.running_mean is not None and module.running_var is not None:
        with torch.no_grad():
            assert module.num_batches_tracked is not None
            module.num_batches_tracked += 1
            rate = 1 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
            module.running_mean.lerp_(mean.detach(), rate)
            module.running_var.lerp_(variance.detach() * count / (count - 1), rate)
    made = (x - mean.view(shape)) / torch.sqrt(variance.view(shape) + module.eps)
    return made * module.weight.view(shape) + module.bias.view(shape) if module.affine else made
