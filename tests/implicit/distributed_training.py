"""Run by torchrun on two processes: gradients and weights are those of one process on the joined batch."""

import sys
from pathlib import Path

import torch
import torch.distributed as distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.implicit.cells import DIM, Cell, tight_layer


def make():
    torch.manual_seed(0)
    before, after = (nn.Linear(DIM, DIM, dtype=torch.float64) for _ in range(2))
    return nn.Sequential(before, tight_layer(Cell()), after)


def train(model, x, steps=3):
    """Three steps; also the gradients of the first."""
    optimizer, first = torch.optim.SGD(model.parameters(), lr=0.1), None
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).sin().mean().backward()
        if first is None:
            first = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
    return first, list(model.parameters())


def main():
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    x = torch.randn(8, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[4:] *= 100  # the second rank's solves end sooner or later than the first's
    mine, model = x[4 * rank : 4 * rank + 4], make()
    steps = torch.tensor([model[1].solve(model[0](mine)).steps.max().item()])
    everyone = [torch.zeros_like(steps) for _ in range(2)]
    distributed.all_gather(everyone, steps)
    assert everyone[0] != everyone[1], "ranks must differ in their number of steps"
    found = train(DistributedDataParallel(model), mine)
    for one, other in zip((*found[0], *found[1]), [t for part in train(make(), x) for t in part], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    distributed.barrier()
    distributed.destroy_process_group()
    if rank == 0:
        print("equal")


if __name__ == "__main__":
    main()
