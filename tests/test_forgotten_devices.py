"""With a default device on which nothing has a value, whatever is made without naming its device is found out."""

import copy

import matplotlib as mpl
import pytest
import torch
from torch import nn

mpl.use("Agg")
import matplotlib.pyplot as plt

from implicit import (
    Equilibrium,
    ImplicitGradient,
    NeumannGradient,
    PhantomGradient,
    ReversibleGradient,
    ShineGradient,
    UnrolledGradient,
    fixed_point,
    multistart,
    record,
)
from implicit import diagnostics as d
from implicit import plots as p
from implicit.monitoring import Monitor
from models import METHODS, OptDEQ, OptDNN, ParaFormer, lyapunov_exponent, parallel_evaluate
from models.blocks import attention, convolutional, dense
from models.mdeq import MDEQ
from models.mondeq import mondeq
from solvers import GMRES, Anderson, Broyden, Monotone, NewtonKrylov, NoisyPicard, Picard, Reversible, solve


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        with torch.no_grad():
            self.inner.weight.mul_(0.5)

    def forward(self, z, x):
        return torch.tanh(self.inner(z) + x)


@pytest.fixture
def made(device):
    """A layer and its input on a device; from here on the default device is another, on which nothing has a value."""
    with torch.device("cpu"):
        layer, x = Equilibrium(Cell().double()), torch.randn(5, 4, dtype=torch.float64)
    layer, x = layer.to(device), x.to(device)
    with torch.device("meta"):
        yield layer, x


SOLVERS = [Picard(), Anderson(), Broyden(), GMRES(), Monotone(), NewtonKrylov(), NoisyPicard(), Reversible()]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("compact", [False, True])
def test_solves(solver, compact, made):
    layer, x = made
    solution = solve(layer.cell, torch.zeros_like(x), (x,), solver=solver, compact=compact, rtol=1e-5)
    assert solution.check().value.device == solution.residual.device == x.device
    assert not solution.summary().startswith("0")
    d.convergence_rate(solution)


def test_several_starts(made):
    layer, x = made
    assert multistart(layer, x, starts=3).check().agreed.device == x.device


GRADIENTS = [
    (ImplicitGradient(), Anderson()),
    (ImplicitGradient(reuse=True), Anderson()),
    (NeumannGradient(), Anderson()),
    (PhantomGradient(3), Anderson()),
    (ShineGradient(), Anderson()),
    (UnrolledGradient(5), Anderson()),
    (ReversibleGradient(), Reversible()),
]


@pytest.mark.parametrize(("gradient", "solver"), GRADIENTS, ids=lambda value: type(value).__name__)
def test_gradients(gradient, solver, made):
    layer, x = made
    layer = Equilibrium(layer.cell, gradient=gradient, solver=solver)
    with record() as log:
        layer(x.requires_grad_()).square().sum().backward()
    assert x.grad.device == layer.cell.inner.weight.grad.device == x.device
    log.to_dict()


def test_second_derivatives_and_transforms(made):
    layer, x = made
    (slope,) = torch.autograd.grad(layer(x.requires_grad_()).square().sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert torch.func.vjp(layer, x.detach())[1](x.detach())[0].device == x.device
    assert torch.func.jvp(layer, (x.detach(),), (x.detach(),))[1].device == x.device


LOOKS = {
    "eigenvalues": lambda layer, x, z: p.plot_eigenvalues(d.eigenvalues(layer.cell, z, (x,), k=3)),
    "spectral norm": lambda layer, x, z: d.spectral_norm(layer.cell, z, (x,)),
    "spectral radius": lambda layer, x, z: d.spectral_radius(layer.cell, z, (x,)),
    "penalty": lambda layer, x, z: d.jacobian_penalty(layer.cell, z, (x,)).backward(),
    "error bound": lambda layer, x, z: d.error_bound(layer.cell, z, (x,), monotonicity=0.1),
    "lyapunov": lambda layer, x, z: d.lyapunov_exponents(layer.cell, z, (x,), k=2, steps=20, discard=5),
    "solvers": lambda layer, x, z: p.plot_work_precision(
        d.compare_solvers(layer.cell, z, (x,), solvers={"one": Picard()}, rtols=[1e-2, 1e-4])
    ),
    "audit": lambda layer, x, z: d.gradient_audit(layer, x),
    "gradients": lambda layer, x, z: p.plot_gradient_error(
        d.compare_gradients(layer, x, gradients={"one": PhantomGradient()}, rtols=[1e-2])
    ),
    "paths": lambda layer, x, z: d.path_independence(layer, x, starts=2),
    "diagnosis": lambda layer, x, z: d.diagnose(nn.Sequential(layer), x),
    "quantiles": lambda layer, x, z: d.residual_quantiles(layer.solve(x)),
    "convergence": lambda layer, x, z: p.plot_convergence(layer.solve(x), rtol=1e-4, worst=2),
    "steps": lambda layer, x, z: p.plot_steps(layer.solve(x), histogram=True),
    "iterates": lambda layer, x, z: p.plot_trajectories(layer.iterates(x, at=(0, 1, 2))),
}


@pytest.mark.parametrize("look", LOOKS)
def test_diagnostics_and_pictures(look, made):
    layer, x = made
    LOOKS[look](layer, x, layer.solve(x).value)
    plt.close("all")


def test_monitors(made):
    layer, x = made
    monitor = Monitor(layer, every=1)
    with monitor:  # a figure that is missing is a warning, and warnings are errors
        layer(x).square().sum().backward()
    p.plot_monitor(monitor.samples)
    plt.close("all")


NETWORKS = {
    **{
        f"{name} {blocks.__name__}": (lambda method=method, blocks=blocks: explicit(method, blocks), shape)
        for name, method in METHODS.items()
        for blocks, shape in ((dense, (4,)), (convolutional, (4, 4, 4)), (attention, (3, 6)))
    },
    "MDEQ": (lambda: MDEQ(4, 3, fine=4, coarse=4, groups=1), (4, 8, 8)),
    "monDEQ": (lambda: mondeq(4, 3, width=5), (4,)),
    "Para-Former": (
        lambda: ParaFormer(image_size=8, patch_size=4, channels=4, classes=3, branches=2, width=6, heads=2, hidden=8),
        (4, 8, 8),
    ),
}


def explicit(method, blocks):
    made = blocks(6, 8) if blocks is attention else blocks(4, 6)
    alpha = 0.0 if method.is_proximal else 1.0
    return OptDNN(method.learned(), [method.layer(made) for _ in range(2)], alpha=alpha)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [1, 3])
def test_networks(name, batch, device):
    make, shape = NETWORKS[name]
    with torch.device("cpu"):
        net, x = make(), torch.randn(batch, *shape)
    net, x = net.to(device), x.to(device)
    with torch.device("meta"):
        net(x).square().sum().backward()
        if isinstance(net, OptDNN):
            for batched in (True, False):
                parallel_evaluate(net, x, sweeps=2, batched=batched).square().sum().backward()
            lyapunov_exponent(net.eval(), x, steps=2)
        copy.deepcopy(net)


def test_equilibria_of_methods_and_functions(device):
    with torch.device("cpu"):
        method = METHODS["nesterov"].frozen()
        net, x = OptDEQ(method, method.tied(dense(4, 6))), torch.randn(3, 4)
    net, x = net.to(device), x.to(device)
    with torch.device("meta"):
        net(x).square().sum().backward()
        fixed_point(lambda z, x: 0.5 * z + x, torch.zeros_like(x), (x.requires_grad_(),)).sum().backward()
        solution = parallel_evaluate(OptDNN("gd", [net.equilibrium.cell.transform.terms[1]] * 3), x, x, rtol=1e-3)
        assert solution.value.device == x.device
