"""One process or several: torchrun with DDP or FSDP, gloo on CPU, nccl on
CUDA. The trainer sees `Processes` alone.

Debian's torchrun (torch 1.13 under Python 3.11) starts only with its output
redirected: python3 -m torch.distributed.run -r 1 -t 1 ...
"""

from __future__ import annotations

import contextlib
import datetime
import os
from typing import Any, ContextManager, Dict, Optional, Tuple

import torch
from torch import nn
import torch.distributed as dist

from training.errors import UserError

KINDS = ("none", "ddp", "fsdp")
# Rank 0 tokenises all data while the others wait.
_PATIENCE = datetime.timedelta(hours=24)

State = Dict[str, Any]


class Processes:
    """A group of processes that train one model; of one, by default."""

    def __init__(self, kind: str = "none", device: str = "cpu") -> None:
        """With "ddp" or "fsdp", joins the group that torchrun's environment
        describes. `device`: "cpu" or "cuda"."""
        self.kind = kind
        self.rank, self.world = 0, 1
        self.device = torch.device(device)
        if kind == "none":
            return
        try:
            self.rank = int(os.environ["RANK"])
            self.world = int(os.environ["WORLD_SIZE"])
            local = int(os.environ.get("LOCAL_RANK", "0"))
        except (KeyError, ValueError):
            raise UserError(
                f"--parallel {kind} must be started by torchrun, which sets "
                "RANK and WORLD_SIZE") from None
        if kind == "fsdp":
            _fsdp()  # fails before the others wait
        if self.device.type == "cuda":
            self.device = torch.device("cuda", local)
            torch.cuda.set_device(self.device)
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, rank=self.rank, world_size=self.world, timeout=_PATIENCE)

    def close(self) -> None:
        if self.kind != "none" and dist.is_initialized():
            dist.destroy_process_group()

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module as it is called in training; the original is inside."""
        if self.kind == "ddp":
            ids = [self.device.index] if self.device.type == "cuda" else None
            return nn.parallel.DistributedDataParallel(module, device_ids=ids)
        if self.kind == "fsdp":
            return _wrap_fsdp(module, self.device)
        return module

    def accumulate(self, module: nn.Module, last: bool) -> ContextManager:
        """Around a micro-step: gradients meet at the last one only. FSDP
        meets at every one, since it would have to keep them unsharded."""
        if self.kind == "ddp" and not last:
            return module.no_sync()
        return contextlib.nullcontext()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Over all processes; float64 where the device has it."""
        values = values.detach().double().to(self.device)
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def from_first(self, number: int) -> int:
        """Rank 0's number."""
        tensor = torch.tensor([number], device=self.device)
        if self.world > 1:
            dist.broadcast(tensor, 0)
        return int(tensor)

    def clip_gradients(self, module: nn.Module, most: float) -> float:
        """Returns the norm before clipping."""
        if self.kind == "fsdp":
            return float(module.clip_grad_norm_(most))
        return float(nn.utils.clip_grad_norm_(module.parameters(), most))

    def states(
        self, module: nn.Module, optimizer: torch.optim.Optimizer
    ) -> Tuple[State, State]:
        """The whole model's and optimizer's, with the original's names; empty
        but on rank 0 with FSDP. All processes must call it."""
        if self.kind == "fsdp":
            fsdp = _fsdp()
            with _full_state(fsdp, module):
                model = module.state_dict()
            return model, fsdp.FullyShardedDataParallel.full_optim_state_dict(
                module, optimizer)
        inner = module.module if self.kind == "ddp" else module
        return inner.state_dict(), optimizer.state_dict()

    def load_states(
        self, module: nn.Module, optimizer: torch.optim.Optimizer,
        model: State, optimizer_state: State,
    ) -> None:
        """All processes load the same whole states."""
        if self.kind == "fsdp":
            fsdp = _fsdp()
            wrapped = fsdp.FullyShardedDataParallel
            with wrapped.state_dict_type(
                    module, fsdp.StateDictType.FULL_STATE_DICT):
                module.load_state_dict(model)
            optimizer_state = wrapped.shard_full_optim_state_dict(
                optimizer_state, module)
            optimizer.load_state_dict(optimizer_state)
            return
        inner = module.module if self.kind == "ddp" else module
        inner.load_state_dict(model)
        optimizer.load_state_dict(optimizer_state)


def fsdp_problem() -> Optional[str]:
    """Why FSDP cannot run with this torch, or None."""
    try:
        _fsdp()
    except UserError as error:
        return str(error)
    return None


def _fsdp() -> Any:
    # torch 1.13's FSDP cannot be imported by Python 3.11 at all: a dataclass
    # of its own has a default that 3.11 refuses.
    try:
        from torch.distributed import fsdp
    except (ImportError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"FSDP is not to be had from torch {torch.__version__} here "
            f"({reason}); use --parallel ddp or a newer torch") from error
    return fsdp


def _wrap_fsdp(module: nn.Module, device: torch.device) -> nn.Module:
    import functools

    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    from training.model import DecoderLayer
    fsdp = _fsdp()
    # What is frozen stays as it is: FSDP shards parameters of one kind only.
    frozen = [part for part in module.modules() if list(part.parameters())
              and not any(p.requires_grad for p in part.parameters())]
    policy = functools.partial(
        transformer_auto_wrap_policy, transformer_layer_cls={DecoderLayer})
    return fsdp.FullyShardedDataParallel(
        module, auto_wrap_policy=policy, ignored_modules=frozen,
        device_id=device if device.type == "cuda" else None)


def _full_state(fsdp: Any, module: nn.Module) -> ContextManager:
    return fsdp.FullyShardedDataParallel.state_dict_type(
        module, fsdp.StateDictType.FULL_STATE_DICT,
        fsdp.FullStateDictConfig(offload_to_cpu=True, rank0_only=True))
