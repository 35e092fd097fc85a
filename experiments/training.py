"""Training of one network, through Lightning."""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from implicit import ConvergenceWarning, record
from implicit.recording import Log

from .averaging import Averaging
from .goals import Classification, Goal
from .tasks import Task

TEST_BATCH = 256
_CURVES = ("train_loss", "train_score", "test_loss", "test_score")


@dataclass(frozen=True)
class Training:
    """What came of one training run."""

    curves: list[dict[str, float]]
    """For each epoch: loss and score on both parts, evaluations a row forward and backward, share converged."""
    seconds_per_epoch: list[float]


def train(network: nn.Module, task: Task, *, epochs: int, seed: int, device: str, folder: Path, name: str) -> Training:
    """Train for `epochs` and keep the last weights: no model is selected on the test part, which is only watched.

    Leaves `logs/NAME/seed-N/metrics.csv` and `checkpoints/NAME-seed-N/last.ckpt` in `folder`.
    """
    lightning.seed_everything(seed, verbose=False)
    for logger in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    learner = _Learner(network, task)
    stopwatch = _Stopwatch()
    averaging = [] if task.averaging is None else [Averaging(task.averaging, device)]
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator=device,
        devices=1,
        logger=CSVLogger(folder, name=f"logs/{name}", version=f"seed-{seed}"),
        callbacks=[
            stopwatch,
            _Progress(task.goal),
            *averaging,
            ModelCheckpoint(folder / "checkpoints" / f"{name}-seed-{seed}", filename="last"),
        ],
        enable_model_summary=False,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
    )
    order = torch.Generator().manual_seed(seed)
    train_loader = DataLoader(
        task.train,
        task.batch,
        shuffle=True,
        generator=order,
        collate_fn=task.collate,
        num_workers=task.workers,
        persistent_workers=task.workers > 0,
    )
    test_loader = DataLoader(task.test, TEST_BATCH, num_workers=task.workers, persistent_workers=task.workers > 0)
    with warnings.catch_warnings():
        # the shares of converged rows are logged, tabled and drawn instead
        warnings.simplefilter("ignore", ConvergenceWarning)
        # small data are in memory: loader processes would only cost
        warnings.filterwarnings("ignore", ".*does not have many workers")
        warnings.filterwarnings("ignore", category=FutureWarning, module="lightning")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="(lightning|torch)")
        try:
            trainer.fit(learner, train_loader, test_loader)
        except SystemExit as stop:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from stop
    return Training(learner.curves, stopwatch.seconds)


class _Learner(lightning.LightningModule):
    def __init__(self, network: nn.Module, task: Task) -> None:
        super().__init__()
        self.network, self.goal = network, task.goal
        self.learning_rate, self.weight_decay = task.learning_rate, task.weight_decay
        self.scores = nn.ModuleDict({part: task.goal.metric() for part in ("train_part", "test_part")})
        self.curves: list[dict[str, float]] = []
        self._log: Log | None = None

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        with record() as self._log:
            return self._loss(batch, "train")

    def on_after_backward(self) -> None:
        if self._log and self._log.forward:
            forward, backward = self._log.forward, self._log.backward
            shares = [entry.solution.converged.double().mean() for entry in (*forward, *backward)]
            self._note("forward_evaluations", sum(e.solution.evaluations.double().mean() for e in forward))
            self._note("backward_evaluations", sum(e.solution.evaluations.double().mean() for e in backward))
            self._note("converged", sum(shares) / len(shares))
        self._log = None

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self._loss(batch, "test")

    def on_train_epoch_end(self) -> None:
        metrics = self.trainer.callback_metrics
        names = (*_CURVES, "forward_evaluations", "backward_evaluations", "converged")
        self.curves.append({name: float(metrics[name]) for name in names if name in metrics})

    def configure_optimizers(self) -> Any:
        rate = self.learning_rate
        optimizer = torch.optim.AdamW(self.parameters(), lr=rate, weight_decay=self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _loss(self, batch: tuple[Tensor, Tensor], part: str) -> Tensor:
        inputs, targets = batch
        outputs = self.network(inputs)
        loss = self.goal.loss(outputs, targets)
        if targets.shape != outputs.shape or not isinstance(self.goal, Classification):
            score: Any = self.scores[f"{part}_part"]  # labels that were mixed have no right answer
            score(outputs, targets)
            self.log(f"{part}_score", score, on_step=False, on_epoch=True, prog_bar=True)
        self.log(f"{part}_loss", loss, on_step=False, on_epoch=True, batch_size=len(targets))
        return loss

    def _note(self, name: str, value: Any) -> None:
        self.log(name, torch.as_tensor(value).float(), on_step=False, on_epoch=True, batch_size=1)


class _Progress(RichProgressBar):
    """The bar with the one figure that is worth watching."""

    def __init__(self, goal: Goal) -> None:
        super().__init__()
        self._goal = goal

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        score = trainer.callback_metrics.get("test_score")
        return {} if score is None else {f"test {self._goal.heading}": self._goal.show(float(score))}


class _Stopwatch(Callback):
    """Seconds of the training batches of each epoch, validation left out."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self.seconds.append(0.0)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[-1] += time.perf_counter() - self._start
