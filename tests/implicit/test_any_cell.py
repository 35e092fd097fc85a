"""Cells of every kind that autograd takes: first and second derivatives against a converged unrolling."""

import functools
import gc
import weakref
from collections import OrderedDict
from types import MethodType

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from implicit import ConvergenceWarning, Equilibrium, ImplicitGradient, NeumannGradient, fixed_point
from solvers import GMRES, Anderson, Captured, Eager, NewtonKrylov

from .cells import DIM, TIGHT, exact, inputs, tight_layer, unrolled

# of the references: their start has no gradient, and CSR tensors are beta
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit", "ignore:Full backward hook is firing", "ignore:Sparse CSR tensor support"
)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(DIM, DIM, dtype=torch.float64)
        nn.init.uniform_(self.inner.weight, -0.15, 0.15)

    def forward(self, z, x):
        return torch.tanh(self.inner(z) + x)


class Checkpointed(Plain):
    def forward(self, z, x):
        return checkpoint(super().forward, z, x, use_reentrant=False)


class Segments(Plain):
    def __init__(self):
        super().__init__()
        self.steps = nn.Sequential(self.inner, nn.Tanh(), nn.Linear(DIM, DIM, dtype=torch.float64), nn.Tanh())

    def forward(self, z, x):
        return 0.5 * checkpoint_sequential(self.steps, 2, z + x, use_reentrant=False)


class Nested(Plain):
    def forward(self, z, x):
        return checkpoint(
            lambda z: checkpoint(super(Nested, self).forward, z, x, use_reentrant=False), z, use_reentrant=False
        )


class OldTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad * (1 - y * y)


class OfOld(Plain):
    def forward(self, z, x):
        return OldTanh.apply(self.inner(z) + x)


class OnTheHost(Plain):
    def forward(self, z, x):
        with torch.autograd.graph.save_on_cpu():
            return super().forward(z, x)


class Looks(Plain):
    def forward(self, z, x):
        self.largest = float(abs(z.detach().cpu().numpy()).max(initial=0))
        return super().forward(z, x)


class Sparse(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("matrix", (0.3 * torch.eye(DIM, dtype=torch.float64)).to_sparse_csr())

    def forward(self, z, x):
        return torch.tanh(self.inner(z) + (self.matrix @ z.mT).mT + x)


class SparseWeight(Plain):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter((0.3 * torch.eye(DIM, dtype=torch.float64)).to_sparse_coo())

    def forward(self, z, x):
        return torch.tanh(self.inner(z) + torch.sparse.mm(self.matrix, z.mT).mT + x)


class Fourier(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(0.2 * torch.randn(4, dtype=torch.complex128))

    def forward(self, z, x):
        return torch.tanh(torch.fft.irfft(torch.fft.rfft(z) * self.weight[: DIM // 2 + 1], n=DIM) + x)


class InATuple(nn.Module):
    """Its parameters are not registered: it captures them."""

    def __init__(self):
        super().__init__()
        self.parts = (Plain(), {"second": Plain()})

    def forward(self, z, x):
        return 0.5 * self.parts[0](z, x) + 0.4 * self.parts[1]["second"](z, x)

    def hidden(self):
        return [*self.parts[0].parameters(), *self.parts[1]["second"].parameters()]


class AlsoInAList(Plain):
    """Its parameters are registered, and reached otherwise."""

    def __init__(self):
        super().__init__()
        self.parts = [self.inner]

    def forward(self, z, x):
        return torch.tanh(0.5 * self.parts[0](z) + x)


class Attribute(Plain):
    def __init__(self):
        super().__init__()
        self.scale = torch.full((), 0.7, dtype=torch.float64, requires_grad=True)

    def forward(self, z, x):
        return self.scale * super().forward(z, x)

    def hidden(self):
        return [self.scale]


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        linear = nn.Linear(DIM, DIM, dtype=torch.float64)
        self.net = torch.jit.script(nn.Sequential(linear, nn.Tanh()))

    def forward(self, z, x):
        return 0.5 * self.net(z) + x


def hooked(kind):
    cell = Plain()
    if kind == "full backward":
        cell.inner.register_full_backward_hook(lambda module, grads, outputs: None)
    elif kind == "full backward pre":
        cell.register_full_backward_pre_hook(lambda module, grads: None)
    elif kind == "forward":
        cell.inner.register_forward_hook(lambda module, args, output: 0.9 * output)
    else:
        cell.inner.weight.register_hook(lambda grad: None)
    return cell


def patched(kind):
    cell = Plain()
    if kind == "partial":
        cell.forward = functools.partial(Plain.forward, cell)
    elif kind == "bound":
        cell.forward = MethodType(lambda self, z, x: 0.9 * Plain.forward(self, z, x), cell)
    elif kind == "as accelerate does":
        old = cell.forward

        def forward(module, *args):
            return 0.9 * module.old_forward(*args)

        cell.old_forward = old
        cell.forward = functools.update_wrapper(functools.partial(forward, cell), old)
    else:
        cell.forward = lambda z, x: 0.9 * Plain.forward(cell, z, x)
    return cell


def replica():
    """As DataParallel makes it: tensors computed from the parameters, as attributes."""
    cell = Plain()
    made = cell._replicate_for_data_parallel()
    made._modules = dict(cell._modules)
    inner = made._modules["inner"] = cell.inner._replicate_for_data_parallel()
    for name, parameter in cell.inner.named_parameters():
        inner._parameters.pop(name, None)
        setattr(inner, name, 1.0 * parameter)
    made.hidden = lambda: list(cell.parameters())
    return made


def capturing():
    cell = Plain()
    product = 0.1 * cell.inner.weight @ cell.inner.weight
    cell.inner.register_forward_hook(lambda module, args, output: output + args[0] @ product)
    return cell


KINDS = {
    "plain": Plain,
    "full backward hook": lambda: hooked("full backward"),
    "full backward pre-hook": lambda: hooked("full backward pre"),
    "forward hook": lambda: hooked("forward"),
    "hook of a weight": lambda: hooked("tensor"),
    "checkpoint": Checkpointed,
    "segments": Segments,
    "checkpoint in a checkpoint": Nested,
    "function of old": OfOld,
    "saved on the CPU": OnTheHost,
    "looks": Looks,
    "CSR buffer": Sparse,
    "complex weights": Fourier,
    "modules in a tuple": InATuple,
    "submodules in a list": AlsoInAList,
    "tensor attribute": Attribute,
    "patched by a partial": lambda: patched("partial"),
    "patched by a method": lambda: patched("bound"),
    "patched as accelerate does": lambda: patched("as accelerate does"),
    "patched by a function": lambda: patched("lambda"),
    "scripted part": Scripted,
    "replica": replica,
    "what is computed from a parameter outside": capturing,
}


def targets(cell, x):
    hidden = cell.hidden() if hasattr(cell, "hidden") else []
    return [x, *cell.parameters(), *hidden]


@pytest.mark.parametrize("gradient", [exact(), ImplicitGradient(GMRES(), rtol=1e-12)], ids=["Anderson", "GMRES"])
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_are_those_of_a_converged_unrolling(kind, gradient):
    torch.manual_seed(0)
    cell, x = KINDS[kind](), inputs(2)
    wanted = targets(cell, x)
    vectors = [torch.randn_like(target) for target in wanted]

    def derivatives(z):
        first = torch.autograd.grad(z.sin().sum(), wanted, create_graph=True)
        inner = sum((gradient * vector).abs().square().sum() for gradient, vector in zip(first, vectors, strict=True))
        return *first, *torch.autograd.grad(inner, wanted, retain_graph=True)

    found, expected = derivatives(tight_layer(cell, gradient)(x)), derivatives(unrolled(cell, x))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_tensors_that_a_function_captures_get_second_derivatives():
    leaf = (0.1 * torch.randn(DIM, DIM, dtype=torch.float64)).requires_grad_()
    matrix, x = leaf @ leaf.mT, inputs()

    def f(z, x):
        return torch.tanh(z @ matrix + x + 0.1 * z @ leaf)

    def second(z):
        (first,) = torch.autograd.grad(z.square().sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.sin().sum(), (leaf, x), retain_graph=True)

    found = second(fixed_point(f, torch.zeros_like(x), (x,), gradient=exact(), **TIGHT))
    for one, other in zip(found, second(unrolled(f, x)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_third_derivatives_of_a_cell_with_a_checkpoint_and_a_captured_tensor():
    class Scaled(Checkpointed):
        scale = torch.full((), 0.6, dtype=torch.float64, requires_grad=True)

        def forward(self, z, x):
            return self.scale * super().forward(z, x)

    cell, x = Scaled(), inputs(1)

    def third(z):
        (first,) = torch.autograd.grad(z.sin().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sin().sum(), cell.scale, create_graph=True)
        return torch.autograd.grad(second, [x, cell.scale, *cell.parameters()])

    for one, other in zip(third(tight_layer(cell)(x)), third(unrolled(cell, x)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("patched by a function", r"weight.*replaced.*MethodType"),
        ("submodules in a list", r"weight.*through its attribute parts.*ModuleList"),
    ],
)
def test_what_was_replaced_before_the_backward_pass_is_noticed(kind, message):
    cell, x = KINDS[kind](), inputs()
    own = {f"cell.{name}": parameter.detach().clone().requires_grad_() for name, parameter in cell.named_parameters()}
    z = torch.func.functional_call(tight_layer(cell), own, (x,))
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(z.square().sum(), x, create_graph=True)


def test_a_sparse_weight_trains():
    cell, x = SparseWeight(), inputs()
    (found,) = torch.autograd.grad(tight_layer(cell)(x).sin().sum(), cell.matrix)
    (expected,) = torch.autograd.grad(unrolled(cell, x).sin().sum(), cell.matrix)
    torch.testing.assert_close(found.to_dense(), expected.to_dense(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("full backward hook", "cannot follow a full backward hook"),
        ("function of old", "autograd.Function without setup_context"),
        ("checkpoint", "cannot follow a checkpoint"),
        ("patched by a function", "its forward, or that of a submodule, was replaced.*MethodType"),
        ("submodules in a list", "it reaches a module through its attribute parts.*ModuleList"),
        ("scripted part", "captures a tensor"),
        ("looks", r"a conversion by \.numpy"),
    ],
)
def test_what_the_transforms_of_torch_func_cannot_follow_is_refused_in_words(kind, message):
    layer, x = tight_layer(KINDS[kind]()), inputs(2).detach()
    with pytest.raises(RuntimeError, match=message):
        torch.func.grad(lambda x: layer(x).sum())(x)


@pytest.mark.parametrize("kind", ["patched by a partial", "patched as accelerate does", "complex weights"])
def test_what_they_can_is_right(kind):
    torch.manual_seed(0)
    cell, x = KINDS[kind](), inputs(2).detach()
    layer = tight_layer(cell)
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    found = torch.func.grad(lambda p: torch.func.functional_call(layer, p, (x,)).sin().sum())(parameters)
    expected = torch.autograd.grad(unrolled(cell, x).sin().sum(), list(cell.parameters()))
    for one, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_batches_of_gradients():
    layer, x = tight_layer(), inputs(2)
    z, many = layer(x), torch.randn(5, 2, DIM, dtype=torch.float64)
    one_by_one = torch.stack([torch.autograd.grad(z, x, each, retain_graph=True)[0] for each in many])
    (batched,) = torch.autograd.grad(z, x, many, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(batched, one_by_one, rtol=1e-9, atol=1e-11)
    mapped = torch.func.vmap(lambda each: torch.autograd.grad(z, x, each, retain_graph=True)[0])(many)
    torch.testing.assert_close(mapped, one_by_one, rtol=1e-9, atol=1e-11)

    def loss(x):
        return layer(x).square().sum()

    for whole, function in ((torch.autograd.functional.jacobian, layer), (torch.autograd.functional.hessian, loss)):
        found, expected = whole(function, x.detach(), vectorize=True), whole(function, x.detach())
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("compact", [None, False])
@pytest.mark.parametrize("solver", [Anderson(), NewtonKrylov()], ids=["Anderson", "NewtonKrylov"])
@pytest.mark.parametrize("policy", [ImplicitGradient(rtol=1e-6), NeumannGradient(30)], ids=["exact", "Neumann"])
def test_a_checkpoint_round_a_layer_costs_one_more_solve(policy, solver, compact):
    class Counted(Plain):
        calls = 0

        def forward(self, z, x):
            Counted.calls += 1
            return super().forward(z, x)

    cell, x = Counted(), inputs(4)
    layer = Equilibrium(cell, gradient=policy, rtol=1e-8, solver=solver, compact=compact)
    z = layer(x)
    plain, Counted.calls = Counted.calls, 0
    expected = torch.autograd.grad(z.sin().sum(), [x, *cell.parameters()])
    Counted.calls = 0
    z = checkpoint(layer, x, use_reentrant=False)
    forward, Counted.calls = Counted.calls, 0
    assert forward == plain
    found = torch.autograd.grad(z.sin().sum(), [x, *cell.parameters()])
    assert Counted.calls <= forward + 1
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
    with torch.autograd.graph.save_on_cpu():
        z = layer(x)
    for one, other in zip(torch.autograd.grad(z.sin().sum(), [x, *cell.parameters()]), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_a_checkpoint_round_a_layer_whose_solve_fails_is_consistent():
    layer, x = Equilibrium(Plain(), rtol=1e-9, max_steps=3), inputs(4)
    with pytest.warns(ConvergenceWarning):
        z = checkpoint(layer, x, use_reentrant=False)  # the warning measures; evaluated again, there is none
    assert torch.autograd.grad(z.sum(), x)[0].isfinite().all()


class Averaging(Plain):
    """It keeps an average in a buffer that its value depends on."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, z, x):
        with torch.no_grad():
            self.calls += 1
        return self.scale * super().forward(z, x)


@pytest.mark.filterwarnings("ignore:rows that had stopped")
@pytest.mark.parametrize("kind", [Averaging, lambda: old_spectral_norm()], ids=["average", "spectral norm of old"])
def test_cells_that_write_into_their_buffers(kind):
    torch.manual_seed(0)
    cell, x = kind(), inputs(2)
    layer = tight_layer(cell)
    wanted = [x, *cell.parameters()]
    for _ in range(30):
        layer(x.detach())  # until the buffers have settled
    once = torch.autograd.grad(layer(x).sin().sum() + layer(2 * x).sin().sum(), wanted)
    z = layer(x)
    layer.solve(x)  # in between
    other = layer(2 * x)
    twice = torch.autograd.grad(z.sin().sum() + other.sin().sum(), wanted)
    for one, two in zip(once, twice, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-8)

    def second(z):
        (first,) = torch.autograd.grad(z.sin().sum(), x, create_graph=True)
        return torch.autograd.grad(first.sin().sum(), wanted)

    for one, two in zip(second(layer(x)), second(unrolled(cell, x)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def old_spectral_norm():
    cell = Plain()
    nn.utils.spectral_norm(cell.inner)
    return cell


def test_batches_of_gradients_are_not_differentiated_again():
    x, many = inputs(2), torch.randn(5, 2, DIM, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"batch of gradients.*drop create_graph=True"):
        torch.autograd.grad(tight_layer()(x), x, many, is_grads_batched=True, create_graph=True)


def test_attention_has_second_derivatives():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.query = nn.Linear(DIM, DIM, dtype=torch.float64)

        def forward(self, z, x):
            mixed = nn.functional.scaled_dot_product_attention(self.query(z)[:, None], z[:, None], z[:, None])
            return torch.tanh(0.5 * mixed[:, 0] + x)

    cell, x = Attention(), torch.randn(2, 3, DIM, dtype=torch.float64, requires_grad=True)

    def second(z):
        (first,) = torch.autograd.grad(z.sin().sum(), x, create_graph=True)
        return torch.autograd.grad(first.sin().sum(), [x, *cell.parameters()])

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = second(unrolled(cell, x))
    for one, other in zip(second(tight_layer(cell)(x)), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


class Partitioned(OrderedDict):
    """A dict that cannot be copied, as some libraries keep parameters in."""

    def __init__(self, owner, *args):
        super().__init__(*args)
        self.owner = owner


def test_a_module_that_keeps_its_parameters_in_a_dict_of_its_own():
    inner, x = nn.Linear(3, 3), torch.randn(2, 3)
    inner.weight.data *= 0.3
    inner._parameters = Partitioned(inner, inner._parameters)
    Equilibrium(Injected(inner))(x).sum().backward()
    assert inner.weight.grad.norm() > 0


class Injected(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.last = inner, None

    def forward(self, z, x):
        return torch.tanh(self.inner(z) + x)


@pytest.mark.parametrize("gradient", [ImplicitGradient(), NeumannGradient(3)], ids=repr)
@pytest.mark.parametrize("f", [torch.ones_like, lambda z: 0.5 * z.detach() + 1], ids=["constant", "detached"])
def test_a_value_without_a_graph_has_no_gradient(f, gradient):
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(DIM))

        def forward(self, z, x):
            return f(z)

    layer, x, other = Equilibrium(Cut(), gradient=gradient), torch.randn(2, DIM), torch.ones(2, DIM, requires_grad=True)
    (layer(x.requires_grad_()) * other).sum().backward()
    assert x.grad is None
    assert layer.cell.weight.grad is None
    torch.testing.assert_close(other.grad, layer(x).detach())


@pytest.mark.parametrize("loop", [Eager(), Captured(4)], ids=["eager", "captured"])
def test_an_output_kept_in_the_cell_keeps_none_of_those_before(loop):
    """Nor does a list of them: warm starts and displays keep the last one."""
    layer, x, kept = Equilibrium(Injected(nn.Linear(3, 3)), compact=False, loop=loop), torch.randn(2, 3), []
    layer.cell.inner.weight.data *= 0.3
    for _ in range(6):
        value = layer(x, z0=None if layer.cell.last is None else layer.cell.last.detach())
        value.sum().backward()
        layer.cell.last, layer.cell._lasts = value, [value]
        kept.append(weakref.ref(value))
        del value
    gc.collect()
    assert [each() is None for each in kept] == [True] * 5 + [False]
