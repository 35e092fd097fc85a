"""Training of one network, through Lightning."""

from __future__ import annotations

import copy
import logging
import traceback
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader

from implicit import ConvergenceWarning

from ..errors import TrainingError, first_line
from ..names import file_name
from ..tasks.task import Task
from .averaging import Averaging, settle
from .checkpoints import Keeper, checked
from .learner import Learner, Progress, ShardedLearner, Stopwatch, progress
from .precision import PRECISIONS, met
from .shares import Shares, test_share
from .team import ALONE, Team


@dataclass(frozen=True)
class Training:
    """The result of one training run."""

    curves: list[dict[str, float]]
    """For each epoch: loss and score on both parts, evaluations per row forward and backward, share converged."""
    seconds_per_epoch: list[float]


def train(
    network: nn.Module,
    task: Task,
    *,
    epochs: int,
    seed: int,
    device: str,
    folder: Path,
    name: str,
    team: Team = ALONE,
    precision: str = "32",
    resume: bool = False,
    part: str = "test",
) -> Training:
    """Train for `epochs` and keep the last weights: no model is selected on the test part, which is only watched.

    Leaves `logs/NAME/seed-N/metrics.csv` and `checkpoints/NAME-seed-N/last.ckpt` in `folder`. Every process of a team
    calls it with the same network, which is trained as by one process and is whole in the leading one afterwards.

    Args:
        network: trained in place.
        task: its batch size is that of all processes together.
        epochs: passes over the training part.
        seed: of the order of the data and of all other random numbers.
        device: `cpu` or `cuda`.
        folder: of the run.
        name: of the network.
        team: the processes that share each batch.
        precision: a key of `PRECISIONS`.
        resume: resume from the checkpoint in `folder`, if there is one, with the results of an unbroken training.
        part: name of the task's test part where progress is shown; `validation` in a search.
    """
    run = {"task": task.name, "network": name, "seed": seed, "epochs": epochs}
    path = checkpoint(folder, name, seed)
    stopwatch = Stopwatch()
    before = checked(path, run, network.state_dict()) if resume and path.exists() else None
    if before is not None and before["epoch"] + 1 >= epochs:
        _restore(network, before, task)
        return Training(before["curves"], before["callbacks"][stopwatch.state_key]["seconds"])

    lightning.seed_everything(seed, verbose=False)
    for logger in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    shares = Shares(len(task.train), task.batch, team, torch.Generator("cpu").manual_seed(seed))  # type: ignore[arg-type]
    sharded = team.strategy == "fsdp"
    tested = Shares(len(task.test), test_share(team.size) * team.size, team)  # type: ignore[arg-type]
    learner = (ShardedLearner if sharded else Learner)(
        copy.deepcopy(network) if sharded else network, task, shares, tested, run
    )
    shown = progress(task.goal, part)
    keeper = Keeper(path, folder / "logs" / file_name(name) / f"seed-{seed}")
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator=device,
        precision=PRECISIONS[precision],
        logger=False,
        callbacks=[
            stopwatch,
            *shown,
            *([] if task.averaging is None else [Averaging(task.averaging, device)]),
            keeper,
        ],
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(one, Progress) for one in shown),
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        **_processes(team, device),
    )
    loaders = _loaders(task, shares, tested)
    with warnings.catch_warnings(), met(learner.network, precision):
        # the shares of converged rows are logged, tabled and drawn instead
        warnings.simplefilter("ignore", ConvergenceWarning)
        # small data are in memory: loader processes would only cost time
        warnings.filterwarnings("ignore", ".*does not have many workers")
        warnings.filterwarnings("ignore", category=FutureWarning, module="lightning")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="(lightning|torch)")
        try:
            trainer.fit(learner, *loaders, ckpt_path=None if before is None else path, weights_only=True)
        except SystemExit as stop:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from stop
        except Exception as error:
            if team.size == 1:
                raise
            log = folder / "logs" / f"rank-{team.rank}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(traceback.format_exc())
            if team.agrees(first_line(error)):
                raise  # the failure is the network's, and every process can go on to the next
            raise TrainingError(
                f"process {team.rank} of {team.size} failed ({first_line(error)}); see {log}"
            ) from error
    if sharded and team.leads:
        _restore(network, checked(path, run, network.state_dict()), task)
    return Training(learner.curves, stopwatch.seconds)


def checkpoint(folder: Path, name: str, seed: int) -> Path:
    """Where the training of that network from that seed leaves its last state."""
    return folder / "checkpoints" / f"{file_name(name)}-seed-{seed}" / "last.ckpt"


def _restore(network: nn.Module, checkpoint: dict[str, Any], task: Task) -> None:
    """Load the weights that a finished training leaves, from its last checkpoint."""
    state = checkpoint["state_dict"].items()
    network.load_state_dict({name.removeprefix("network."): value for name, value in state})
    if task.averaging is not None:
        settle(network)


def _processes(team: Team, device: str) -> dict[str, Any]:
    if team.size == 1:
        return {"devices": 1}
    strategy: Any = DDPStrategy(find_unused_parameters=True)  # progressive training leaves branches out
    if team.strategy == "fsdp":
        strategy = ModelParallelStrategy(
            data_parallel_size=team.size, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return {
        "devices": team.size // team.nodes,
        "num_nodes": team.nodes,
        "strategy": strategy,
        "plugins": [TorchElasticEnvironment()],
        "sync_batchnorm": _synchronised(team, device),
        "use_distributed_sampler": False,
    }


def apart(network: nn.Module, team: Team, device: str) -> bool:
    """Whether the network's batch statistics are those of each process's share, unlike with a single process."""
    normalised = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    return normalised and team.size > 1 and not _synchronised(team, device)


def _synchronised(team: Team, device: str) -> bool:
    return device == "cuda" and team.strategy == "ddp"  # where PyTorch supports it


def _loaders(task: Task, shares: Shares, tested: Shares) -> tuple[Any, Any]:
    team, workers = shares.team, task.workers
    train = DataLoader(
        task.train,
        shares.batch // team.size,
        sampler=shares,
        generator=shares.order,
        collate_fn=task.collate,
        num_workers=workers,  # restarted for each epoch, so that their draws depend on the order's state alone
        worker_init_fn=partial(_seed_worker, team.rank) if team.rank else None,
    )
    test = DataLoader(
        task.test,
        tested.batch // team.size,
        sampler=tested,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return train, test


def _seed_worker(rank: int, number: int) -> None:
    """Seed workers so that those of different processes draw different augmentations."""
    torch.manual_seed(torch.initial_seed() + 10_000 * rank)
