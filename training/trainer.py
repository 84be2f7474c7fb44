"""The training loop: exact to resume, whatever model, data and objective.

A step is a function of the weights and of its number alone: batches come from
`batch_at(step, micro, rank)`, which must draw nothing from anywhere else, and
torch's generator is set anew at every step. So a run that is killed and goes
on at its last checkpoint gives the same losses, bit for bit on a CPU with the
same number of threads and processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import signal
import sys
import time
from typing import (
    Any, Callable, ContextManager, Dict, Iterator, List, NamedTuple, Optional,
    Protocol, Sequence)

import torch
from torch import nn

from training.distributed import Processes
from training.errors import UserError
from training.trainer_metrics import Log, Reporter, Row
from training.trainer_state import Checkpoints, check_arguments
from training.two_stage import LossSums

DTYPES = ("float32", "bfloat16")
# The generator's seed of each step, far apart for neighbouring ones.
_SEED_STRIDE = 0x9E3779B97F4A7C15


@dataclasses.dataclass(frozen=True)
class TrainerConfig:
    num_steps: int
    accumulation: int = 1       # micro-batches per step and process
    peak_lr: float = 2e-5
    warmup_share: float = 0.01  # of the steps, linearly
    decay_share: float = 1.0    # of the steps after, at their end, by a cosine
    final_lr_share: float = 0.0
    weight_decay: float = 0.0
    betas: Sequence[float] = (0.9, 0.999)
    clip_norm: float = 1.0
    dtype: str = "float32"      # bfloat16: autocast; weights stay float32
    seed: int = 1
    save_steps: int = 0         # 0: by time alone
    save_minutes: float = 10.0
    dev_steps: int = 0          # 0: only before the first and after the last
    log_steps: int = 10

    def lr_at(self, step: int) -> float:
        warmup = max(1, round(self.num_steps * self.warmup_share))
        if step < warmup:
            return self.peak_lr * (step + 1) / warmup
        decay = max(1.0, (self.num_steps - warmup) * self.decay_share)
        left = min(1.0, (self.num_steps - step) / decay)
        cosine = 0.5 * (1 - math.cos(math.pi * left))
        return self.peak_lr * (
            self.final_lr_share + (1 - self.final_lr_share) * cosine)


class Objective(Protocol):
    """A loss of a student on a batch: two_stage.TwoStage, SingleStage."""

    def num_targets(self, batch: Any) -> int: ...

    def __call__(self, student: nn.Module, batch: Any) -> LossSums: ...


class Outcome(NamedTuple):
    finished: bool  # False: a signal stopped it, and it can go on
    step: int
    last: Row       # the last step's metrics, the last ones of dev included


class NonFinite(UserError):
    """A loss or gradient that is no number; training cannot go on."""


class Trainer:
    """Trains `student` (its parameters that require gradients) in place."""

    def __init__(
        self,
        student: nn.Module,
        objective: Objective,
        batch_at: Callable[[int, int, int], Any],
        config: TrainerConfig,
        *,
        folder: Optional[pathlib.Path] = None,
        arguments: Optional[Dict[str, Any]] = None,
        resume: bool = True,
        dev: Sequence[Any] = (),
        metrics: Optional[pathlib.Path] = None,
        tensorboard: Optional[pathlib.Path] = None,
        processes: Optional[Processes] = None,
        log: Optional[Log] = None,
    ) -> None:
        """`folder` takes checkpoints; with `resume` the run goes on at the
        newest there, else they go away. `arguments`, plain values, must be
        the same then. `dev` is indexed by number, the same in all processes.
        """
        self.config = config
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0
        self._objective = objective
        self._batch_at = batch_at
        self._dev = dev
        self._log = log or (lambda line: print(line, file=sys.stderr,
                                               flush=True))
        self._metrics, self._tensorboard = metrics, tensorboard
        self._processes = processes or Processes()
        self._student = self._processes.wrap(
            student.to(self._processes.device))
        self._optimizer = torch.optim.AdamW(
            [p for p in self._student.parameters() if p.requires_grad],
            lr=config.peak_lr, betas=tuple(config.betas),
            weight_decay=config.weight_decay)
        self._arguments = dict(arguments or {})
        self._arguments.update(
            (field.name, getattr(config, field.name))
            for field in dataclasses.fields(config)
            if not field.name.startswith(("save_", "dev_", "log_"))
            and field.name != "accumulation")
        self._checkpoints = (Checkpoints(folder, self._log)
                             if folder is not None else None)
        self._last: Row = {}
        self._stop = False
        if self._checkpoints and resume:
            self._resume(self._checkpoints)
        elif self._checkpoints and self._is_first:
            self._checkpoints.clear()

    @property
    def _is_first(self) -> bool:
        return self._processes.rank == 0

    # ---- Checkpoints.

    def _resume(self, checkpoints: Checkpoints) -> None:
        step = checkpoints.newest() if self._is_first else None
        step = self._processes.from_first(-1 if step is None else step)
        if step < 0:
            return
        check_arguments(checkpoints.folder, checkpoints.arguments(step),
                        self._arguments)
        tensors, values = checkpoints.load(step)
        try:
            self._processes.load_states(
                self._student, self._optimizer, tensors["model"],
                {"state": tensors["optimizer"],
                 "param_groups": values["param_groups"]})
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"{checkpoints.folder}: holds a run of another model "
                f"({str(error).splitlines()[0]})") from error
        self.step, self.tokens = step, values["tokens"]
        self.seconds, self._last = values["seconds"], values["last"]
        if self._is_first:
            self._log(f"going on after step {self.step} of "
                      f"{checkpoints.folder}")

    def save(self) -> None:
        """A checkpoint now; all processes must call it."""
        if self._checkpoints is None:
            return
        model, optimizer = self._processes.states(
            self._student, self._optimizer)
        if self._is_first:
            self._checkpoints.save(
                self.step,
                {"model": dict(model), "optimizer": optimizer["state"]},
                {"tokens": self.tokens, "seconds": self.seconds,
                 "last": self._last,
                 "param_groups": optimizer["param_groups"]},
                self._arguments)
        self._processes.barrier()

    def student_state(self) -> Dict[str, torch.Tensor]:
        """The whole student's state dict, on rank 0 at least; all processes
        must call it."""
        return self._processes.states(self._student, self._optimizer)[0]

    # ---- Steps.

    def _autocast(self) -> ContextManager:
        if self.config.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self._processes.device.type,
                              dtype=torch.bfloat16)

    def _seed(self) -> None:
        number = (self.config.seed * 1_000_003 + self.step) * 65_537
        torch.manual_seed(
            (number + self._processes.rank) * _SEED_STRIDE % 2 ** 63)

    def _accumulate(self) -> List[float]:
        """Gradients of the mean loss over all micro-batches and processes.
        Returns the sums, in LossSums' order."""
        processes, accumulation = self._processes, self.config.accumulation
        batches = [self._batch_at(self.step, micro, processes.rank)
                   for micro in range(accumulation)]
        targets = sum(self._objective.num_targets(b) for b in batches)
        total = float(processes.sum(
            torch.tensor([targets], dtype=torch.float64)))
        # Several processes take the mean of their gradients.
        scale = processes.world / max(1.0, total)
        sums = torch.zeros(len(LossSums._fields), dtype=torch.float64,
                           device=processes.device)
        for index, batch in enumerate(batches):
            last = index == accumulation - 1
            with processes.accumulate(self._student, last):
                with self._autocast():
                    parts = self._objective(self._student, batch)
                (parts.loss * scale).backward()
            sums += torch.stack([part.detach().double() for part in parts])
        return processes.sum(sums).tolist()

    def _train_step(self) -> Row:
        config = self.config
        self._student.train()
        self._seed()
        self._optimizer.zero_grad(set_to_none=True)
        sums = LossSums(*self._accumulate())
        self._check_finite("loss", sums.loss)
        norm = self._processes.clip_gradients(self._student, config.clip_norm)
        self._check_finite("gradient", norm)
        lr = config.lr_at(self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self.step += 1
        self.tokens += int(sums.tokens)
        return {"step": self.step, **_means(sums), "lr": lr,
                "grad_norm": norm, "tokens": self.tokens}

    def _check_finite(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        kept = (f"; {self._checkpoints.folder} holds the last checkpoint"
                if self._checkpoints else "")
        raise NonFinite(
            f"step {self.step + 1}: the {what} is {value}{kept}")

    @torch.no_grad()
    def evaluate(self) -> Row:
        """Means over `dev`; nothing of them is learned."""
        processes, num_batches = self._processes, len(self._dev)
        if num_batches == 0:
            return {}
        self._student.eval()
        self._seed()
        sums = torch.zeros(len(LossSums._fields), dtype=torch.float64,
                           device=processes.device)
        # With FSDP all processes must run as many batches.
        for begin in range(0, num_batches, processes.world):
            index = begin + processes.rank
            with self._autocast():
                parts = self._objective(
                    self._student, self._dev[min(index, num_batches - 1)])
            if index < num_batches:
                sums += torch.stack([part.double() for part in parts])
        means = _means(LossSums(*processes.sum(sums).tolist()))
        return {f"dev_{name}": value for name, value in means.items()}

    # ---- The loop.

    def run(self) -> Outcome:
        """To the last step, or to a SIGTERM or SIGINT: the step in progress
        is finished and saved first."""
        reporter = None
        if self._is_first:
            reporter = Reporter(
                self.config.num_steps, self.step, self._log,
                self.config.log_steps, self._metrics, self._tensorboard)
        try:
            with self._signals():
                return self._loop(reporter)
        finally:
            if reporter:
                reporter.close()

    def _loop(self, reporter: Optional[Reporter]) -> Outcome:
        config = self.config
        began = time.monotonic() - self.seconds
        saved_at = time.monotonic()

        def report(row: Row) -> None:
            self._last.update(row)
            if reporter:
                reporter.row(row)

        if self.step == 0 and self._dev:
            report({"step": 0, **self.evaluate(), "tokens": 0,
                    "seconds": time.monotonic() - began})
        stop = False
        while self.step < config.num_steps and not stop:
            row = self._train_step()
            is_last = self.step == config.num_steps
            if is_last or (config.dev_steps
                           and self.step % config.dev_steps == 0):
                row.update(self.evaluate())
            self.seconds = row["seconds"] = time.monotonic() - began
            report(row)
            late = time.monotonic() - saved_at > 60 * config.save_minutes
            stop, save = self._agree(self._stop, late)
            if config.save_steps and self.step % config.save_steps == 0:
                save = True
            if save or stop or is_last:
                self.save()
                saved_at = time.monotonic()
        return Outcome(self.step >= config.num_steps, self.step,
                       dict(self._last))

    def _agree(self, stop: bool, save: bool) -> Sequence[bool]:
        """What any process wants, all do, after the same step."""
        if self._processes.world == 1:
            return stop, save
        wanted = self._processes.sum(torch.tensor(
            [float(stop), float(save)])).tolist()
        return [count > 0 for count in wanted]

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """A second signal of the kind ends the program at once."""
        def note(number: int, _frame: Any) -> None:
            self._stop = True
            signal.signal(number, signal.SIG_DFL)

        numbers = (signal.SIGTERM, signal.SIGINT)
        try:
            before = {n: signal.signal(n, note) for n in numbers}
        except ValueError:  # not the main thread: no signals to take
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _means(sums: LossSums) -> Row:
    tokens, answers = max(1.0, sums.tokens), max(1.0, sums.answers)
    return {"loss": sums.loss / tokens, "ce": sums.ce / tokens,
            "kl": sums.kl / tokens, "accuracy": sums.right / tokens,
            "exact": sums.exact / answers}
