"""A fixed number of steps, against loops that are written out here."""

import copy
import gc
import io
import pickle
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils.parametrizations import spectral_norm

from implicit import Equilibrium, LockedDropout, Looped, record
from solvers import Shared, Status

from .cells import DIM, Cell, Residual, agree, inputs, textbook

compiling = pytest.mark.filterwarnings(
    "ignore:The .grad attribute", "ignore::DeprecationWarning:torch", "ignore:.*torch.jit.script"
)


class Energy(nn.Module):
    """A step down the gradient of an energy that the cell differentiates itself."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(DIM, DIM, dtype=torch.float64)

    def forward(self, z, x):
        with torch.enable_grad():
            y = z if z.requires_grad else z.detach().requires_grad_()
            energy = (torch.tanh(self.inner(y)) - x).square().sum()
            (slope,) = torch.autograd.grad(energy, y, create_graph=True)
        return z - 0.1 * slope


@pytest.mark.parametrize("tracked", [None, 1, 4, 12])
@pytest.mark.parametrize("kind", [Cell, Residual, Energy])
def test_value_and_gradient_are_those_of_the_loop(kind, tracked):
    cell, x, start = kind(), inputs(), inputs()
    looped, targets = Looped(cell, steps=12, tracked=tracked), [x, start, *cell.parameters()]
    found, expected = looped(x, z0=start), textbook(cell, x, 12, tracked, start)
    assert torch.equal(found, expected)
    (grad, want) = (torch.autograd.grad(z.sin().sum(), targets, allow_unused=True) for z in (found, expected))
    assert (grad[1] is None) == (want[1] is None) == (tracked in (1, 4))
    agree(*([g for g in gradients if g is not None] for gradients in (grad, want)))
    with torch.no_grad():
        assert torch.equal(looped.eval()(x, z0=start), expected)
    if kind is not Energy:  # which needs gradients
        with torch.inference_mode():
            assert torch.equal(looped(x, z0=start), expected)


def test_fewer_steps_at_the_call_and_the_start():
    cell, x = Residual(), inputs()
    looped = Looped(cell, steps=8, tracked=4, initial=lambda x: 0.5 * x)
    for steps in (1, 3, 20):
        found, expected = looped(x, steps=steps), textbook(cell, x, steps, 4, 0.5 * x)
        assert torch.equal(found, expected)
        agree(*(torch.autograd.grad(z.sum(), [x, *cell.parameters()]) for z in (found, expected)))


# --- each row its own depth ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tracked", [None, 1, 3, 7])
@pytest.mark.parametrize("depths", [[1, 7, 3, 2], [5, 5, 5, 5], [40, 1, 1, 2]])
def test_each_row_is_as_if_alone(depths, tracked):
    cell, x, start = Residual(), inputs(4), inputs(4)
    targets = [x, start, *cell.parameters()]
    looped = Looped(cell, steps=7, tracked=tracked)
    found = looped(x, z0=start, steps=torch.tensor(depths))
    rows = [textbook(cell, x[r : r + 1], n, tracked, start[r : r + 1]) for r, n in enumerate(depths)]
    expected = torch.cat(rows)
    agree([found], [expected])
    weight = torch.randn_like(found)
    grads = [
        torch.autograd.grad((z * weight).sum(), targets, allow_unused=True, materialize_grads=True)
        for z in (found, expected)
    ]
    agree(*grads)
    with torch.no_grad():
        agree([looped(x, z0=start, steps=torch.tensor(depths, dtype=torch.uint8))], [expected])


class Root(nn.Module):
    """Fine for as long as z is above 1; one step further on its gradient is infinite, and then NaN."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, z, x):
        return self.scale * torch.sqrt(z - 1) + 0 * x


def test_a_row_is_not_evaluated_where_it_would_not_be_alone():
    cell = Root()
    start = torch.tensor([[2.0], [1e9]], dtype=torch.float64)  # the first is at 1 after one step
    x = torch.zeros_like(start)
    z = Looped(cell, steps=1)(x, z0=start, steps=torch.tensor([1, 3]))
    (grad,) = torch.autograd.grad(z.sum(), cell.scale)
    alone = [textbook(cell, x[:1], n, z=start[r : r + 1]) for r, n in enumerate([1, 3])]
    assert grad.isfinite()
    agree([grad], torch.autograd.grad(torch.cat(alone).sum(), cell.scale))


@pytest.mark.parametrize("steps", [4, torch.tensor([1, 4, 3, 2])])
def test_a_row_that_is_not_finite_spoils_no_other(steps):
    cell, x = Residual(), inputs(4).detach()
    bad = x.clone()
    bad[1] = torch.nan
    good, spoilt = (Looped(cell, steps=4)(each, steps=steps) for each in (x, bad))
    others = [0, 2, 3]
    agree([spoilt[others]], [good[others]])
    assert spoilt[1].isnan().all()
    assert Looped(cell, steps=4).solve(bad, steps=steps).status.tolist() == [
        Status.MAX_STEPS, Status.NON_FINITE, Status.MAX_STEPS, Status.MAX_STEPS,
    ]  # fmt: skip


# --- states and shapes -----------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    one: torch.Tensor
    two: torch.Tensor


def pairs(make, take):
    class Nested(nn.Module):
        def forward(self, z, x):
            one, two = take(z)
            return make((two.sum(2) + x).sin(), one[:, :, None] * two.cos())

    return Nested, lambda x: make(torch.zeros_like(x), torch.ones_like(x)[:, :, None].repeat(1, 1, 2))


NESTED = {
    "tuple": pairs(lambda a, b: (a, b), lambda z: z),
    "named tuple": pairs(Pair, lambda z: (z.one, z.two)),
    "a tuple for a named one": (pairs(lambda a, b: (a, b), lambda z: (z.one, z.two))[0], pairs(Pair, None)[1]),
    "dict": pairs(lambda a, b: {"a": a, "b": [b]}, lambda z: (z["a"], z["b"][0])),
}


@pytest.mark.parametrize("name", NESTED)
def test_nested_states(name):
    cell, initial = NESTED[name]
    looped, x = Looped(cell(), steps=5, tracked=2, initial=initial), inputs()
    one, two = torch.zeros_like(x), torch.ones_like(x)[:, :, None].repeat(1, 1, 2)
    for step in range(5):
        one, two = (two.sum(2) + x).sin(), one[:, :, None] * two.cos()
        one, two = (one.detach(), two.detach()) if step < 3 else (one, two)
    with record() as log:
        z = looped(x)
    assert type(z) is type(initial(x))
    parts = torch.utils._pytree.tree_leaves(z)
    agree(parts, [one, two])
    agree(*(torch.autograd.grad(a.sum() + b.sum(), x) for a, b in (parts, (one, two))))
    assert log.forward[0].solution.trace.shape == (5, 3)
    mixed = torch.utils._pytree.tree_leaves(looped(x, steps=torch.tensor([1, 5, 2])))
    agree([mixed[0][1], mixed[1][1]], [one[1], two[1]])


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_any_batch_and_strides(rows):
    cell, x = Residual(), torch.randn(DIM, 2 * rows, dtype=torch.float64).T[::2]
    looped, depths = Looped(cell, steps=3, tracked=2), torch.arange(1, rows + 1)
    assert torch.equal(looped(x), textbook(cell, x, 3))
    assert looped(x, steps=depths).shape == x.shape
    with record() as log:
        looped(x)
        looped(x, steps=depths)
    assert [len(entry.solution.status) for entry in log.forward] == [rows, rows]
    assert looped.solve(x, steps=depths).steps.tolist() == depths.tolist()


def test_a_batch_twice_in_one_graph():
    cell, x = Residual(), inputs()
    looped = Looped(cell, steps=4, tracked=2)
    expected = textbook(cell, textbook(cell, x, 4, 2), 4, 2)
    agree(*(torch.autograd.grad(z.sum(), [x, *cell.parameters()]) for z in (looped(looped(x)), expected)))


# --- what PyTorch does around it -------------------------------------------------------------------------------------


def live():
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("kind", [Cell, Energy])
@pytest.mark.parametrize("depths", [False, True])
def test_the_untracked_part_keeps_nothing(kind, depths):
    looped, x = Looped(kind(), steps=2, tracked=2), inputs().detach()

    def kept(steps):
        z = looped(x, steps=torch.tensor([steps, steps - 1, 2]) if depths else steps)
        ahead, nodes = [z.grad_fn], set()
        while ahead:
            node = ahead.pop()
            if node is not None and node not in nodes:
                nodes.add(node)
                ahead += [other for other, _ in node.next_functions]
        return len(nodes), live()

    kept(4)
    assert kept(4) == kept(60)


@pytest.mark.parametrize("grad", [True, False])
def test_an_untracked_step_knows_nothing_of_the_last(grad):
    graphs = []

    class Watched(Cell):
        def forward(self, z, x):
            graphs.append(z.requires_grad)
            with torch.enable_grad():
                return super().forward(z, x)

    with torch.set_grad_enabled(grad):
        z = Looped(Watched(), steps=6, tracked=2)(inputs().detach())
    assert z.requires_grad == grad
    assert graphs == [False] * 5 + [grad]


def test_second_derivatives_and_transforms():
    cell, x = Cell(), inputs(2).detach()
    looped = Looped(cell, steps=6, tracked=3)
    for transform in (torch.func.hessian, torch.func.jacrev, torch.func.jacfwd):
        full = Looped(cell, steps=6)
        found = transform(lambda x, full=full: full(x).sin().sum())(x)
        agree([found], [transform(lambda x: textbook(cell, x, 6).sin().sum())(x)])
    reverse = torch.func.jacrev(looped)(x)
    agree([reverse], [torch.autograd.functional.jacobian(lambda x: textbook(cell, x, 6, 3), x)])
    agree([torch.func.jacfwd(looped)(x)], [reverse])  # forward mode passes through no_grad; this does not
    mapped = torch.func.vmap(lambda x: looped(x[None])[0])(x)
    agree([mapped], [looped(x)])
    depths = torch.tensor([2, 5])
    agree(
        [torch.func.jacrev(lambda x: looped(x, steps=depths))(x)],
        [torch.func.jacfwd(lambda x: looped(x, steps=depths))(x)],
    )
    with forward_ad.dual_level(), torch.no_grad():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangent = forward_ad.unpack_dual(looped(dual)).tangent
    agree([tangent], [reverse.sum((2, 3))])
    with record() as log:
        torch.func.grad(lambda x: looped(x).sum())(x)
    assert not log.forward
    y = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(looped(y).sin().sum(), y, create_graph=True)
    (want,) = torch.autograd.grad(textbook(cell, y, 6, 3).sin().sum(), y, create_graph=True)
    agree(*(torch.autograd.grad(each.square().sum(), [y, *cell.parameters()]) for each in (slope, want)))


@compiling
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_as_a_whole_and_in_its_cell(backend):
    torch._dynamo.reset()
    cell, x = Residual(), inputs()
    targets = [x, *cell.parameters()]
    for make in (
        lambda looped: torch.compile(looped, backend=backend, fullgraph=True),
        lambda looped: Looped(torch.compile(cell, backend=backend, fullgraph=True), steps=5, tracked=2),
    ):
        looped = make(Looped(cell, steps=5, tracked=2))
        found, expected = looped(x), textbook(cell, x, 5, 2)
        agree([found], [expected])
        agree(*(torch.autograd.grad(z.sum(), targets) for z in (found, expected)))
    nested, initial = NESTED["dict"]
    nest = Looped(nested(), steps=3, initial=initial)
    agree(
        *(
            torch.utils._pytree.tree_leaves(run(x))
            for run in (torch.compile(nest, backend=backend, fullgraph=True), nest)
        )
    )
    plain = Looped(cell, steps=5, tracked=2)
    run, depths = torch.compile(plain, backend=backend), torch.tensor([1, 5, 2])
    agree([run(x, steps=depths)], [plain(x, steps=depths)])
    run(x)
    with record(plain) as log:
        run(x)
    assert len(log.forward) == 1  # between graphs


@compiling
def test_exported():
    looped, x = Looped(Cell(), steps=4), inputs().detach()
    agree([torch.export.export(looped, (x,)).module()(x)], [looped(x)])


def test_copies_and_state():
    cell, x = Cell(), inputs()
    looped = Looped(cell, steps=4, tracked=2)
    stream = io.BytesIO()
    torch.save(looped, stream)
    stream.seek(0)
    for twin in (
        copy.deepcopy(looped),
        pickle.loads(pickle.dumps(looped)),
        torch.load(stream, weights_only=False),
    ):
        assert torch.equal(twin(x), looped(x))
        assert (twin.steps, twin.tracked) == (4, 2)
    assert list(looped.state_dict()) == [f"cell.{name}" for name in cell.state_dict()]
    Equilibrium(Cell()).load_state_dict(looped.state_dict())
    assert "steps=4, tracked=2" in repr(looped)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype):
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(DIM, DIM)

        def forward(self, z, x):
            return self.inner(torch.sin(z) + x)

    cell, x = Linear(), torch.randn(3, DIM)
    for tracked in (None, 2):
        looped = Looped(cell, steps=4, tracked=tracked)
        with torch.autocast(torch.get_default_device().type, dtype=dtype):
            found = looped(x)
            with record() as log:
                looped(x)
            solved = looped.solve(x)
        with torch.autocast(torch.get_default_device().type, dtype=dtype, cache_enabled=False):
            expected = textbook(cell, x, 4, tracked)
        assert torch.equal(found, expected)
        assert found.dtype == dtype
        assert torch.equal(solved.value, found)
        assert log.forward[0].solution.residual.isfinite().all()
        grads = (torch.autograd.grad(z.float().sum(), list(cell.parameters())) for z in (found, expected))
        for one, other in zip(*grads, strict=True):
            assert (one - other).norm() < 20 * torch.finfo(dtype).eps * other.norm()  # casts are summed up otherwise
    half = copy.deepcopy(cell).to(dtype)
    looped, x = Looped(half, steps=4), x.to(dtype)
    assert torch.equal(looped(x), textbook(half, x, 4))
    assert torch.equal(looped.solve(x).value, looped(x))


def test_random_cells_draw_what_the_loop_draws_recorded_or_not():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.norm = nn.Linear(DIM, DIM), nn.BatchNorm1d(DIM)

        def forward(self, z, x):
            return self.norm(nn.functional.dropout(self.inner(z), 0.3)) + x

    x, found = torch.randn(4, DIM, requires_grad=True), []
    cells = [copy.deepcopy(cell) for cell in [Dropping()] * 3]
    for run in (
        lambda: textbook(cells[0], x, 5),
        lambda: Looped(cells[1], steps=5)(x),
        lambda: recorded(Looped(cells[2], steps=5), x),
    ):
        torch.manual_seed(1)
        z = run()
        found.append((z, torch.rand(1), *torch.autograd.grad(z.square().sum(), x)))
    for cell, each in zip(cells, found, strict=True):
        assert all(map(torch.equal, each, found[0]))
        assert torch.equal(cell.norm.running_var, cells[0].norm.running_var)
        assert cell.norm.num_batches_tracked == 5


def recorded(looped, x):
    with record():
        return looped(x)


def test_masks_and_weights_that_are_computed():
    class Masked(Cell):
        def forward(self, z, x, mask):
            return super().forward(z * mask, x)

    cell, x = Masked(), inputs()
    mask = LockedDropout(0.5)(torch.ones_like(x))
    z = Looped(cell, steps=3)(x, mask)
    expected = torch.zeros_like(x)
    for _ in range(3):
        expected = cell(expected, x, mask)
    assert torch.equal(z, expected)
    normed = Cell()
    spectral_norm(normed.inner)
    Looped(normed, steps=6, tracked=2)(x).sum().backward()
    assert normed.inner.parametrizations.weight.original.grad.any()
    looped = Looped(normed, steps=6).eval()
    agree([looped(x)], [textbook(normed, x, 6)])


def test_a_start_from_inference_mode():
    cell, x = Cell(), inputs()
    with torch.inference_mode():
        start = torch.randn(3, DIM, dtype=torch.float64)
    z = Looped(cell, steps=2)(x, z0=start)
    agree(*(torch.autograd.grad(y.sum(), [*cell.parameters()]) for y in (z, textbook(cell, x, 2, z=start.clone()))))


# --- bad input -------------------------------------------------------------------------------------------------------


class Wider(nn.Module):
    def forward(self, z, x):
        return torch.cat((z, x), dim=1)


class Writing(nn.Module):
    def forward(self, z, x):
        return z.mul_(0.5).add_(x)


class Narrow(nn.Module):
    def forward(self, z, x):
        return z @ torch.ones(2, 2)


X, COUNT = torch.zeros(3, 4), "must be an integer of at least 1"


def narrow(steps=4, tracked=None):
    return Looped(Narrow(), steps=steps, tracked=tracked)


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, "2", None, torch.tensor([1])], ids=str)
def test_steps_are_a_number(steps):
    with pytest.raises(ValueError, match=f"steps=.* {COUNT}"):
        narrow(steps)
    if steps is not None and not isinstance(steps, torch.Tensor):
        with pytest.raises(ValueError, match=rf"steps=.* {COUNT}, or a \(batch,\) tensor"):
            narrow()(X, steps=steps)


@pytest.mark.parametrize("tracked", [0, -1, 1.0, True])
def test_tracked_steps_are_a_number(tracked):
    with pytest.raises(ValueError, match=rf"tracked=.* {COUNT}.*torch.no_grad\(\)"):
        narrow(tracked=tracked)
    looped = narrow()
    looped.tracked = tracked
    with pytest.raises(ValueError, match=f"tracked=.* {COUNT}"):
        looped(X)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: Looped(torch.tanh, steps=2), TypeError, "pass an nn.Module"),
        (lambda: Looped(Narrow()), TypeError, "steps"),
        (lambda: Looped(Narrow(), steps=2, rtol=1e-3), TypeError, "rtol"),
        (lambda: narrow(tracked=5), ValueError, "tracked=5 is more than steps=4: pass at most 4"),
        (lambda: narrow()(X, steps=torch.ones(3)), TypeError, "tensor of torch.float32: pass integers"),
        (lambda: narrow()(X, steps=torch.ones(3).bool()), TypeError, "tensor of torch.bool"),
        (lambda: narrow()(X, steps=torch.ones(2).long()), ValueError, r"shape \(2,\) for a batch of 3.*\(3,\)"),
        (lambda: narrow()(X, steps=torch.tensor(2)), ValueError, r"shape \(\) for a batch of 3"),
        (lambda: narrow()(X, steps=torch.tensor([2, 0, 1])), ValueError, "steps contains 0"),
        (lambda: narrow()(), TypeError, "pass initial= or z0="),
        (lambda: narrow()(X), RuntimeError, r"(?s)mat1.*zeros like the first input, shape \(3, 4\).*pass initial="),
        (lambda: Looped(Wider(), steps=4)(X), ValueError, r"zeros like the first input, shape \(3, 4\).*pass initial="),
        (lambda: Looped(Wider(), steps=4)(X, z0=X), ValueError, "must keep the shape"),
        (lambda: Looped(Writing(), steps=4)(X, z0=X.clone()), ValueError, "f writes into its argument"),
        (lambda: Looped(nn.Identity(), steps=4)(X[0]), ValueError, "dim 0 is the batch"),
    ],
)
def test_bad_input_is_named(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_who_names_the_start_is_not_told_of_another():
    with pytest.raises(RuntimeError, match="mat1") as caught:
        narrow()(X, z0=X)
    assert "zeros like" not in str(caught.value)


def test_shared_arguments_reach_the_cell_and_the_start_as_tensors():
    class Graph(nn.Module):
        def forward(self, z, x, adjacency):
            return torch.tanh(0.5 * adjacency @ z + x)

    def start(x, adjacency):
        return torch.zeros_like(x) + adjacency.new_zeros(())

    x, adjacency = torch.randn(6, 6, 4), torch.eye(6)
    for initial in (None, start):
        looped = Looped(Graph(), steps=40, initial=initial)
        expected = textbook(lambda z, x: Graph()(z, x, adjacency), x, 40)
        assert torch.equal(looped(x, Shared(adjacency)), expected)
        torch.testing.assert_close(looped.solve(x, Shared(adjacency)).value, expected)
        layer = Equilibrium(Graph(), initial=initial, rtol=1e-6)
        torch.testing.assert_close(layer(x, Shared(adjacency)), expected, rtol=1e-4, atol=1e-5)


def test_a_mask_of_token_numbers_is_refused_in_words():
    with pytest.raises(TypeError, match=r"the state has dtype torch\.int64: pass a floating tensor"):
        LockedDropout(0.1)(torch.arange(3))
