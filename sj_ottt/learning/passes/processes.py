"""Data parallel training: one network in several processes, each with its part of the batch.

A learning rule's gradients reach the weights outside the backward pass that
`DistributedDataParallel` watches, so they are added up here instead, once an update. Each process
weighs its loss, a mean over its own samples, by its share N_r / Σ N_r of all samples; the sum over
the processes is then the gradient of the whole batch, also where the parts differ in size.
"""

import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sj_ottt.errors import InputError

__all__ = ["Processes", "share_buffers", "unwrapped"]

_BUCKET_BYTES = 25 << 20
_CPU = torch.device("cpu")
# Networks that have been seen to be the same in all processes.
_compared: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network that `DistributedDataParallel` wraps, or the model itself.

    Raises:
        InputError: If a part of the model is wrapped, its parameters are sharded, or it is copied
            to several GPUs at each call (`nn.DataParallel`).
    """
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    assert isinstance(inner, nn.Module)
    for name, part in inner.named_modules():
        if isinstance(part, nn.DataParallel) and len(part.device_ids) > 1:
            raise InputError(
                f"{name or 'the model'} is wrapped in DataParallel, which copies it to several "
                "GPUs at each call, so that no neuron's state goes on to the next step: train the "
                "model as it is, or in several processes with DistributedDataParallel"
            )
        if isinstance(part, DistributedDataParallel):
            raise InputError(
                f"{name or type(model).__name__} is wrapped in DistributedDataParallel inside of "
                "the model: wrap the whole model, or nothing (gradients are averaged either way)"
            )
        if any(
            kind.__name__ in ("FSDPModule", "FullyShardedDataParallel")
            for kind in type(part).__mro__
        ):
            raise InputError(
                f"{name or 'the model'} is sharded by FSDP, which gathers weights around backward "
                "passes that a learning rule does not have: use DistributedDataParallel; a "
                "spiking network is small beside its activations"
            )
    return inner


@dataclass(frozen=True)
class Processes:
    """The processes that train one network together.

    Attributes:
        group: Their group; None where there is but this one.
        size: How many they are.
        share: This process's share of the samples of the batch, a scalar; None in one process.
        device: Of the tensors that they exchange.
    """

    group: "dist.ProcessGroup | None" = None
    size: int = 1
    share: Tensor | None = None
    device: torch.device = _CPU

    @classmethod
    def of(cls, model: nn.Module, n_samples: int) -> "Processes":
        """Find the processes that train a model, tell them this one's samples, and align buffers.

        They are those of the group that `DistributedDataParallel` was given or, of a model that is
        not wrapped, of the default group. All must call this together. The buffers, such as the
        statistics of batch norm, are those of the first process, as in DistributedDataParallel.

        Raises:
            InputError: If the parameters differ between the processes, none has a sample, or the
                model cannot be trained in several processes (`unwrapped`).
        """
        network = unwrapped(model)
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        group = _group_of(model)
        size = dist.get_world_size(group)
        if group is None or size == 1:
            return cls()
        device = next((p.device for p in network.parameters()), _CPU)
        if network not in _compared:
            _compare(network, group, device)
            _compared.add(network)
        _broadcast(network.buffers(), group)
        total = torch.tensor(float(n_samples), dtype=torch.float64, device=device)
        dist.all_reduce(total, group=group)
        if not total:
            raise InputError("no process has a sample: give each its part of the batch")
        return cls(group, size, n_samples / total, device)

    def weighed(self, loss: Tensor) -> Tensor:
        """Return a mean over this process's samples as its part of the mean over all."""
        return loss if self.share is None else loss * self.share.to(loss.dtype)

    def all_and_any(self, all_of: bool, any_of: bool) -> tuple[bool, bool]:
        """Return whether the first holds in all processes, and the second in any."""
        if self.group is None:
            return all_of, any_of
        flags = torch.tensor([not all_of, any_of], dtype=torch.uint8, device=self.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.group)
        one_fails, one_holds = flags.tolist()
        return not one_fails, bool(one_holds)

    def must_agree_on_steps(self, steps: int) -> None:
        """Refuse sequences of another number of time steps in another process.

        Raises:
            InputError: In all processes, as some would wait for ever for the others' updates.
        """
        if self.group is None:
            return
        extremes = torch.tensor([steps, -steps], device=self.device)
        dist.all_reduce(extremes, dist.ReduceOp.MAX, group=self.group)
        most, least = extremes.tolist()
        if most != -least:
            raise InputError(
                f"x_seq has {-least} time steps in one process and {most} in another, so that they "
                "do not make the same updates: cut or pad the sequences of all to one length"
            )

    def agreed(self, numbers: Sequence[int]) -> list[int]:
        """Return the numbers that the first process has; all have as many."""
        if self.group is None:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        dist.broadcast(values, dist.get_global_rank(self.group, 0), group=self.group)
        return values.tolist()

    @torch.no_grad()
    def add_up(self, optimizer: torch.optim.Optimizer) -> None:
        """Add the gradients of an optimizer's parameters up over all processes.

        A parameter without a gradient in some processes has one of zeros there; without one in any,
        it stays as it is. The result is the same bits in all processes.
        """
        if self.group is None:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        has = [p.grad is not None for p in parameters]
        flags = torch.tensor(has, dtype=torch.uint8, device=self.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.group)
        grads = []
        for parameter, present in zip(parameters, flags.tolist(), strict=True):
            if not present:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad.is_sparse:
                raise InputError(
                    "a parameter has a sparse gradient, which cannot be added up over processes: "
                    "leave sparse=True out of its embedding"
                )
            grads.append(parameter.grad)
        sent = []
        for bucket in _buckets(grads):
            flat = torch.cat([grad.reshape(-1) for grad in bucket])
            sent.append((bucket, flat, dist.all_reduce(flat, group=self.group, async_op=True)))
        for bucket, flat, work in sent:
            work.wait()
            parts = flat.split([grad.numel() for grad in bucket])
            torch._foreach_copy_(
                bucket, [part.view_as(grad) for part, grad in zip(parts, bucket, strict=True)]
            )


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Divide tensors into runs of one type and device and of at most `_BUCKET_BYTES`, or one."""
    bucket: list[Tensor] = []
    kind, size = None, 0
    for tensor in tensors:
        its_kind, its_size = (tensor.dtype, tensor.device), tensor.numel() * tensor.element_size()
        if bucket and (its_kind != kind or size + its_size > _BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        kind, size = its_kind, size + its_size
    if bucket:
        yield bucket


def share_buffers(model: nn.Module) -> None:
    """Give all processes the buffers that the model has in the first, such as batch statistics.

    `train_step` does so before each batch; do it before an evaluation that processes share. They
    are those of the group that `DistributedDataParallel` was given, or of the default group.
    """
    if dist.is_available() and dist.is_initialized() and (group := _group_of(model)) is not None:
        _broadcast(unwrapped(model).buffers(), group)


def _group_of(model: nn.Module) -> "dist.ProcessGroup | None":
    own = model.process_group if isinstance(model, DistributedDataParallel) else None
    return own or dist.group.WORLD


@torch.no_grad()
def _broadcast(tensors: Iterable[Tensor], group: "dist.ProcessGroup") -> None:
    first = dist.get_global_rank(group, 0)
    for tensor in tensors:
        dist.broadcast(tensor, first, group=group)


@torch.no_grad()
def _compare(model: nn.Module, group: "dist.ProcessGroup", device: torch.device) -> None:
    """Refuse a network whose parameters differ between processes: they would drift apart for ever.

    Raises:
        InputError: If sums over a parameter differ.
    """
    names = [name for name, _ in model.named_parameters()]
    sums = [torch.stack([p.double().sum(), p.double().square().sum()]) for p in model.parameters()]
    count = torch.tensor([len(sums), -len(sums)], device=device)
    dist.all_reduce(count, dist.ReduceOp.MAX, group=group)
    name = "the number of parameters"
    if alike := bool(count[0] == -count[1]):
        if not sums:
            return
        values = torch.stack(sums).to(device)
        extremes = torch.stack([values, -values])
        dist.all_reduce(extremes, dist.ReduceOp.MAX, group=group)
        differs = (extremes[0] != -extremes[1]).any(1).tolist()
        alike = not any(differs)
        name = next((n for n, d in zip(names, differs, strict=True) if d), "")
    if not alike:
        raise InputError(
            f"{name} differs between the processes: call torch.manual_seed with one seed in all of "
            "them before the model is made, load the same weights, or wrap it in "
            "DistributedDataParallel, which copies those of the first"
        )
