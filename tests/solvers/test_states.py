"""Any nesting of containers as a state and as arguments; rows that share a tensor; norms by entries; no graph kept."""

import gc
import re
import weakref
from collections import OrderedDict, namedtuple
from typing import NamedTuple

import pytest
import torch

from solvers import (
    GMRES,
    Anderson,
    Broyden,
    Eager,
    Entrywise,
    Monotone,
    NewtonKrylov,
    Picard,
    Reversible,
    Shared,
    root,
    solve,
)

EVERY = [Picard(), Anderson(), Broyden(), GMRES(), Monotone(3), NewtonKrylov(), Reversible()]


class Pair(NamedTuple):
    first: torch.Tensor
    rest: list


STATES = {
    "list": lambda: [torch.zeros(3, 2), torch.zeros(3, 4, 1)],
    "dict": lambda: {"b": torch.zeros(3, 2), "a": torch.zeros(3, 1)},
    "nested": lambda: {"a": [torch.zeros(3, 2), (torch.zeros(3, 1),)], "b": torch.zeros(3, 2, 2)},
    "ordered": lambda: OrderedDict(b=torch.zeros(3, 2), a=torch.zeros(3, 5)),
    "named": lambda: Pair(torch.zeros(3, 2), [torch.zeros(3, 3), {"x": torch.zeros(3, 1)}]),
}


def mapped(change, value):
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return type(value)((key, mapped(change, part)) for key, part in value.items())
    parts = [mapped(change, part) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


@pytest.mark.parametrize("min_steps", [0, 5])
@pytest.mark.parametrize("check_every", [1, 4])
@pytest.mark.parametrize("solver", EVERY, ids=repr)
def test_a_state_without_entries_converges_at_once(solver, check_every, min_steps):
    loop, options = Eager(check_every), {"solver": solver, "min_steps": min_steps}
    assert solve(lambda z: z / 2, torch.zeros(2, 0), loop=loop, **options).converged.all()


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("solver", [Picard(), Anderson(), NewtonKrylov()], ids=repr)
@pytest.mark.parametrize("name", STATES)
def test_a_state_may_be_any_nesting(name, solver, compact):
    rates = {"slow": [torch.tensor([0.1, 0.5, 0.8])]}

    def f(z, rates):
        return mapped(lambda x: rates["slow"][0].view(-1, *[1] * (x.ndim - 1)) * x + 1, z)

    start = STATES[name]()
    solution = solve(f, start, (rates,), solver=solver, compact=compact, rtol=1e-6).check()
    assert type(solution.value) is type(start)
    expected = 1 / (1 - rates["slow"][0])
    mapped(
        lambda x: torch.testing.assert_close(
            x, expected.view(-1, *[1] * (x.ndim - 1)).expand_as(x), rtol=1e-4, atol=1e-5
        ),
        solution.value,
    )


def test_another_structure_is_refused_in_words():
    start = {"b": torch.zeros(2, 3), "a": torch.zeros(2, 1)}
    kind = re.escape(
        "f maps a state of shape {'b': (2, 3), 'a': (2, 1)} to a dict, {'b': (2, 3)}: return a state of the same"
    )
    with pytest.raises(TypeError, match=kind):
        solve(lambda z: {"b": z["b"]}, start)
    with pytest.raises(TypeError, match=re.escape("to a list, [(2, 3), (2, 1)]")):
        solve(lambda z: [z["b"], z["a"]], start)
    with pytest.raises(
        ValueError, match=re.escape("to one of shape {'b': (2, 1), 'a': (2, 1)}: it must keep the shape")
    ):
        solve(lambda z: {"b": z["a"], "a": z["a"]}, start)


Gates = namedtuple("Gates", ["h", "c"])
Turned = namedtuple("Turned", ["c", "h"])
ZEROS, ONES = torch.zeros(2, 3), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("start", "returned"),
    [
        ({"h": ZEROS, "c": ZEROS}, (ONES, ZEROS)),  # a dict's leaves are in the order of its keys
        ({"h": ZEROS, "c": ZEROS}, Gates(ONES, ZEROS)),
        (Gates(ZEROS, ZEROS), Turned(ONES, ZEROS)),
        (Gates(ZEROS, {"a": ZEROS}), Gates(ZEROS, {"b": ONES})),
        (((ZEROS, ZEROS), ZEROS), (ONES, (ZEROS, ZEROS))),
        ((ZEROS,), (None,)),
    ],
    ids=["dict, tuple", "dict, named", "other named", "other keys", "other nesting", "None"],
)
def test_parts_of_equal_shape_are_not_mixed_up(start, returned):
    with pytest.raises(TypeError, match="return a state of the same kind, with each part in its place"):
        solve(lambda z: returned, start)


@pytest.mark.parametrize("start", [Gates(ZEROS, (ZEROS, ZEROS)), (ZEROS, (ZEROS, ZEROS))], ids=["named", "plain"])
@pytest.mark.parametrize("returned", [Gates(ONES, (ONES, ZEROS)), (ONES, (ONES, ZEROS))], ids=["named", "plain"])
def test_a_plain_tuple_and_a_named_one_stand_for_each_other(start, returned):
    found = solve(lambda z: returned, start).value
    assert type(found) is type(start)
    assert [bool(part.any()) for part in (found[0], *found[1])] == [True, True, False]


RATE = torch.linspace(0.1, 0.9, 8)[:, None]


@pytest.mark.parametrize("shared", [torch.ones(5), torch.ones(1, 5), torch.tensor(1.0)], ids=lambda x: str(x.shape))
def test_tensors_without_the_batch_are_shared(shared):
    solution = solve(lambda z, r, b: r * z + b, torch.zeros(8, 5), (RATE, shared), compact=True, solver=Picard())
    assert solution.converged.all()
    inside = solve(lambda z, x: x["r"] * z + x["b"][0], torch.zeros(8, 5), ({"r": RATE, "b": [shared]},), compact=True)
    assert inside.converged.all()


def test_one_as_long_as_the_batch_is_said_to_be_shared():
    mask = torch.eye(8)
    options = {"compact": True, "solver": Picard(), "max_steps": 300}

    def f(z, r, mask):
        return r * z @ mask + 1

    found = solve(f, torch.zeros(8, 8), (RATE, Shared(mask)), **options).check()
    torch.testing.assert_close(found.value, (1 / (1 - RATE)).expand(8, 8), rtol=1e-2, atol=0)
    with pytest.warns(RuntimeWarning, match=r"solvers.Shared\(tensor\).*z0\[None\]") as heard:
        unsaid = solve(f, torch.zeros(8, 8), (RATE, mask), **options)
    assert len(heard) == 1
    assert torch.equal(unsaid.value, solve(f, torch.zeros(8, 8), (RATE, mask), **(options | {"compact": False})).value)


def test_far_ends_count_by_entries():
    factor = torch.tensor([1.0, 1e-5, 1e-10], dtype=torch.float64)
    rate = torch.tensor([0.1, 0.9, 0.95], dtype=torch.float64)

    def f(z):
        return rate * z + factor

    exact = factor / (1 - rate)
    start, options = torch.zeros(2, 3, dtype=torch.float64), {"rtol": 1e-4, "atol": 0.0, "max_steps": 1000}
    for solver in (Picard(), Anderson()):
        joint = solve(f, start, solver=solver, **options).check()
        each = solve(f, start, solver=solver, norm=Entrywise(), **options).check()
        assert ((each.value - exact).abs() <= 1e-2 * exact).all()
        residual = ((f(each.value) - each.value) / f(each.value)).abs().amax(1)
        torch.testing.assert_close(each.residual, residual, rtol=1e-6, atol=0)
        assert each.steps.max() > joint.steps.max()
    with pytest.raises(ValueError, match="a root problem does not have"):
        root(f, start, norm=Entrywise())


def test_an_untracked_solve_keeps_no_graph():
    weight = torch.randn(4, 4, requires_grad=True)
    seen = []

    def energy_descent(z):
        with torch.enable_grad():
            point = z.detach().requires_grad_() if not z.requires_grad else z
            energy = (0.5 * point.square() - 0.1 * torch.tanh(point @ weight)).sum()
            (slope,) = torch.autograd.grad(energy, point, create_graph=True)
            image = z - 0.5 * slope
        seen.append(weakref.ref(slope))  # which the graph of the image holds
        return image

    solution = solve(energy_descent, torch.ones(2, 4), solver=Picard(), rtol=1e-5)
    gc.collect()
    assert not solution.value.requires_grad
    assert len(seen) > 5
    assert sum(ref() is not None for ref in seen) == 0


def test_the_absolute_trace_is_that_of_the_residual():
    solution = solve(lambda z: 0.5 * z + 1, torch.zeros(3, 4, dtype=torch.float64), solver=Picard(), rtol=1e-6)
    expected = 2 * 0.5 ** torch.arange(len(solution.trace), dtype=torch.float64)
    torch.testing.assert_close(solution.absolute, expected[:, None].expand(-1, 3))
