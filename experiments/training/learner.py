"""What Lightning trains: the network with its loss, its scores and its schedule."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from rich.console import Console
from torch import Tensor, nn

from implicit import record
from implicit.logs import Log

from ..contestants.steps import Step, Stepwise
from ..tasks.goals import Classification, Goal
from ..tasks.task import Task
from .shares import Shares

_CURVES = ("train_loss", "train_score", "test_loss", "test_score")


class Learner(lightning.LightningModule):
    """A network under training; its checkpoints say which training they belong to.

    Args:
        network: trained in place.
        task: loss, goal, optimiser and learning rate.
        shares: the order of the training data, which checkpoints hold, and each process's share of it.
        tested: the same for the test data, which are not shuffled.
        run: identifies the training, in plain values.
    """

    def __init__(self, network: nn.Module, task: Task, shares: Shares, tested: Shares, run: dict[str, Any]) -> None:
        super().__init__()
        self.network, self.task, self.goal, self.run = network, task, task.goal, run
        self.shares, self.tested, self.together = shares, tested, shares.team.size > 1
        self.scores = nn.ModuleDict({part: task.goal.metric() for part in ("train_part", "test_part")})
        self.curves: list[dict[str, float]] = []
        self.own: list[dict[str, Any]] = []
        """For each epoch: rows, mean loss and seconds of this process alone."""
        self._rows, self._began = 0, 0.0
        self._total: Tensor | float = 0.0
        self._log: Log | None = None
        self._largest_norm: float | None = None
        self.automatic_optimization = not isinstance(network, Stepwise)
        self._share = 1.0
        """This process's share of a batch, times the number of processes: gradients and figures are means over them."""

    def on_train_epoch_start(self) -> None:
        self._rows, self._total, self._began = 0, 0.0, time.perf_counter()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor | None:
        if self.automatic_optimization:
            return self._training_loss(batch, index, Step())
        optimizer: Any = self.optimizers()
        schedule: Any = self.lr_schedulers()
        assert isinstance(self.network, Stepwise)
        assert self.trainer.max_epochs is not None
        for step in self.network.training_steps(self.current_epoch, self.trainer.max_epochs):
            loss = self._training_loss(batch, index, step)
            optimizer.zero_grad()
            self.manual_backward(loss)
            self._largest_norm = step.largest_norm
            optimizer.step()
        schedule.step()
        return None

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._largest_norm is not None:  # here, where half-precision gradients have been unscaled
            nn.utils.clip_grad_norm_(self.parameters(), self._largest_norm)

    def _training_loss(self, batch: tuple[Tensor, Tensor], index: int, step: Step) -> Tensor:
        with record() as self._log:
            loss = self._loss(batch, "train", self.shares.rows(index), step)
        if not self.together:
            return loss
        self._rows, self._total = self._rows + len(batch[1]), self._total + len(batch[1]) * loss.detach()
        return self._share * loss

    def on_after_backward(self) -> None:
        if self._log and self._log.forward:
            forward, backward = self._log.forward, self._log.backward
            solutions = [entry.solution for entry in (*forward, *backward)]
            shares = [solution.converged.double().mean() for solution in solutions if not solution.fixed]
            for name, solves in (("forward_evaluations", forward), ("backward_evaluations", backward)):
                evaluations = sum(entry.solution.evaluations.double().mean() for entry in solves)
                self._note(name, torch.as_tensor(evaluations, device=self.device).float())
            if shares:
                self._note("converged", torch.as_tensor(sum(shares) / len(shares), device=self.device).float())
        self._log = None

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self._loss(batch, "test", self.tested.rows(index))

    def on_train_epoch_end(self) -> None:
        metrics = self.trainer.callback_metrics
        names = (*_CURVES, "forward_evaluations", "backward_evaluations", "converged")
        curve = {name: float(metrics[name]) for name in names if name in metrics}
        for part in ("train", "test"):
            if f"{part}_score" in curve and math.isnan(curve[f"{part}_loss"]):
                curve[f"{part}_score"] = math.nan  # a metric takes NaN outputs for some class
        self.curves.append(curve)
        if self.together:
            seconds = time.perf_counter() - self._began
            self.own.append({"rows": self._rows, "loss": float(self._total) / self._rows, "seconds": seconds})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert self.shares.order is not None
        checkpoint |= {"run": self.run, "curves": self.curves, "order": self.shares.order.get_state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert self.shares.order is not None
        self.curves = checkpoint["curves"]
        self.shares.order.set_state(checkpoint["order"].cpu())

    def configure_optimizers(self) -> Any:
        rate, steps = self.task.learning_rate, int(self.trainer.estimated_stepping_batches)
        optimizer = self.task.optimizer(self.parameters(), lr=rate, weight_decay=self.task.weight_decay)
        cycles = bool({"momentum", "betas"} & set(optimizer.defaults))
        # a single step would use the rate at which the cycle ends, which is almost zero
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=max(steps, 3), cycle_momentum=cycles, div_factor=25 if steps > 1 else 1
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _loss(self, batch: tuple[Tensor, Tensor], part: str, rows: int, step: Step = Step()) -> Tensor:
        """The loss of this process's share of a batch of `rows` rows."""
        inputs, targets = batch
        self._share = len(targets) * self.shares.team.size / rows
        outputs = self.network(inputs, **step.arguments)
        outputs, own = outputs if step.own_loss else (outputs, 0)
        loss = self.task.training_loss(outputs, targets)
        if targets.shape != outputs.shape or not isinstance(self.goal, Classification):
            score: Any = self.scores[f"{part}_part"]  # mixed labels have no right answer
            score(outputs, targets)
            self.log(f"{part}_score", score, on_step=False, on_epoch=True, prog_bar=True)
        self._note(f"{part}_loss", loss, rows)
        return loss + own

    def _note(self, name: str, value: Tensor, weight: int = 1) -> None:
        """Log a mean over this process's share of a batch of that weight, the same in all processes."""
        value = self._share * value if self.together else value
        self.log(name, value, on_step=False, on_epoch=True, batch_size=weight, sync_dist=self.together)


class ShardedLearner(Learner):
    """A network whose weights are shared out among the processes, and gathered for the length of a pass.

    It is one group, not one for each layer, since a solve evaluates its cell many times.
    """

    def configure_model(self) -> None:
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if not isinstance(self.network, FSDPModule):
            assert self.device_mesh is not None
            fully_shard(self.network, mesh=self.device_mesh["data_parallel"])


class Progress(RichProgressBar):
    """The bar with the one figure that is worth watching."""

    def __init__(self, goal: Goal, part: str) -> None:
        super().__init__()
        self._goal, self._part = goal, part

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        score = trainer.callback_metrics.get("test_score")
        return {} if score is None else {f"{self._part} {self._goal.heading}": self._goal.show(float(score))}

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"  # counted from 1


class Lines(Callback):
    """What a pipe or a log gets in place of the bar: at most ten lines."""

    def __init__(self, goal: Goal) -> None:
        self._goal = goal

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        done, whole = trainer.current_epoch + 1, trainer.max_epochs
        score = trainer.callback_metrics.get("test_score")
        if trainer.is_global_zero and score is not None and 10 * done // whole > 10 * (done - 1) // whole:
            print(f"    epoch {done}/{whole}, test {self._goal.heading}: {self._goal.show(float(score))}", flush=True)


def progress(goal: Goal, part: str) -> list[Callback]:
    """A bar on a terminal; some lines in a log, but none for a search; nothing in a notebook."""
    console = Console()
    if console.is_jupyter:  # a bar would need widgets
        return []
    if console.is_terminal:
        return [Progress(goal, part)]
    return [Lines(goal)] if part == "test" else []


class Stopwatch(Callback):
    """Seconds of the training batches of each epoch, validation left out."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self.seconds.append(0.0)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[-1] += time.perf_counter() - self._start
