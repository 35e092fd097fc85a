"""The monitor as a Lightning callback. Needs Lightning: `pip install 'implicit-networks[train]'`."""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch.callbacks import Callback
except ImportError as error:
    raise ImportError(
        "implicit.lightning_monitor needs Lightning: pip install 'implicit-networks[train]' (or pip install lightning)"
    ) from error

from .diagnostics import Table
from .monitoring import Monitor, check_counts
from .samples import Sample, scalars


class MonitorCallback(Callback):
    """A `Monitor` of the trained module that writes to the trainer's loggers (CSV, TensorBoard, …).

        trainer = lightning.Trainer(callbacks=[MonitorCallback(every=100)])

    Steps are batches. A sample is taken after the backward pass and before the optimiser's step, in the process of rank
    zero only. Prefer `Monitor` in a training loop of your own.

    Args:
        every, rows: as in `Monitor`.
    """

    def __init__(self, *, every: int = 100, rows: int = 8) -> None:
        check_counts(every=every, rows=rows)
        self.every, self.rows = every, rows
        self.samples: Table[Sample] = Table()
        self._monitor: Monitor | None = None
        self._within = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Create a monitor of this module, in the process that logs."""
        if trainer.is_global_zero:
            self._monitor = Monitor(pl_module, every=self.every, rows=self.rows)
            self._monitor.samples = self.samples

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin a step."""
        self._abandon()  # a batch that the module skipped
        if self._monitor is not None:
            self._monitor.step = trainer.fit_loop.total_batch_idx
            self._monitor.__enter__()
            self._within = True

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """End the step, now that it has gradients."""
        self._leave(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the step if there was no backward pass."""
        self._leave(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Discard a last batch that the module skipped."""
        self._abandon()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Discard a step that failed."""
        self._abandon()

    def _abandon(self) -> None:
        if self._monitor is not None and self._within:
            self._within = False
            self._monitor.__exit__(Exception)

    def _leave(self, trainer: Any) -> None:
        if self._monitor is None or not self._within:
            return
        self._within, known = False, len(self.samples)
        self._monitor.__exit__(None, None, None)
        for sample in self.samples[known:]:
            for logger in trainer.loggers:
                logger.log_metrics(scalars(sample), step=trainer.global_step)
