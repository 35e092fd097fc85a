"""What a layer says: the first error, few warnings, inputs by name."""

import warnings
from functools import lru_cache, partial

import pytest
import torch
from torch import nn

from implicit import (
    ConvergenceWarning,
    Equilibrium,
    ImplicitGradient,
    Looped,
    PhantomGradient,
    ReversibleGradient,
    UnrolledGradient,
    fixed_point,
    record,
)
from implicit.diagnostics import diagnose, gradient_audit, path_independence
from solvers import Broyden, NewtonKrylov, Picard, Reversible, solve


class Cell(nn.Module):
    def __init__(self, dim=16, gain=0.5):
        super().__init__()
        self.inner = nn.Linear(dim, dim)
        nn.init.orthogonal_(self.inner.weight, gain)

    def forward(self, z, x):
        return torch.tanh(self.inner(z) + x)


class Wider(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.inject = nn.Linear(6, 6), nn.Linear(4, 6)

    def forward(self, z, x):
        return torch.tanh(0.3 * self.inner(z) + self.inject(x))


class Reshaping(nn.Module):
    def forward(self, z, x):
        return torch.cat((z, x), 1)


@pytest.mark.parametrize(
    ("cell", "kind", "own"),
    [
        (Wider(), RuntimeError, "shapes cannot be multiplied"),
        (Reshaping(), ValueError, "keep the shape"),
    ],
)
def test_a_first_evaluation_that_fails_says_where_z_came_from(cell, kind, own):
    with pytest.raises(kind, match=rf"(?s){own}.*z starts as zeros like the first input, shape \(2, 4\).*initial="):
        Equilibrium(cell)(torch.randn(2, 4))


class Pair(nn.Module):
    def forward(self, z, x):
        first, second = z
        return torch.tanh(second) + x, 0.2 * first


@pytest.mark.parametrize("kind", [Equilibrium, partial(Looped, steps=2, tracked=1)])
@pytest.mark.parametrize(
    ("cell", "initial", "z0", "where"),
    [
        (Wider(), torch.zeros_like, None, r"starts at what initial= returned, shape \(2, 4\)"),
        (Wider(), None, torch.zeros(2, 5), r"starts at z0=, shape \(2, 5\)"),
        (Wider(), torch.zeros_like, (torch.zeros(2, 4),) * 2, r"starts at z0=, a tuple of shapes \(2, 4\), \(2, 4\)"),
        (Pair(), lambda x: (x, x), [torch.zeros(2, 4)] * 3, r"starts at z0=, a list of shapes"),
        (Pair(), lambda x: x[:, :1], None, r"starts at what initial= returned, shape \(2, 1\)"),
        (Reshaping(), lambda x: x[:1], None, r"starts at what initial= returned, shape \(1, 4\)"),
    ],
)
def test_of_a_start_that_was_chosen_too(kind, cell, initial, z0, where):
    with pytest.raises((TypeError, ValueError, RuntimeError), match=where):
        kind(cell, initial=initial)(torch.randn(2, 4), z0=z0)


def test_it_says_so_only_then():
    x = torch.randn(2, 4)

    class Late(nn.Module):
        calls = 0

        def forward(self, z, x):
            Late.calls += 1
            if Late.calls > 1:
                raise RuntimeError("late")
            return 0.5 * z + x

    with pytest.raises(RuntimeError, match=r"^late$"):
        Equilibrium(Late())(x)


def heard(times, *layers, gradient=True, x=None):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            for layer in layers:
                z = layer(torch.randn(8, 16) if x is None else x)
                if gradient:
                    z.square().mean().backward()
    return [str(warning.message) for warning in caught if issubclass(warning.category, ConvergenceWarning)]


def failing(gain=4.0, **options):
    return Equilibrium(Cell(gain=gain), **{"max_steps": 8, "rtol": 1e-5, **options})


def test_a_run_whose_solves_fail_warns_once_a_layer_and_direction():
    torch.manual_seed(0)
    layers = failing(), failing()
    told = heard(20, *layers)
    for direction in ("forward", "backward"):
        assert 2 <= sum(f"{direction} solve" in text for text in told) <= 4
    assert all("diagnose" in text for text in told)


def test_it_is_told_again_when_it_has_become_ten_times_worse():
    torch.manual_seed(0)
    x, layer = torch.randn(4, 16), Equilibrium(Cell(gain=0.9), solver=Picard(), rtol=1e-7, max_steps=25)
    first = heard(3, layer, gradient=False, x=x)
    layer.max_steps = 24
    assert len(first) == 1
    assert not heard(3, layer, gradient=False, x=x)
    layer.max_steps = 4
    assert len(heard(3, layer, gradient=False, x=x)) == 1
    layer.max_steps = 25
    assert not heard(3, layer, gradient=False, x=x)
    x[0] = torch.nan
    assert len(heard(3, layer, gradient=False, x=x)) == 1  # nothing is worse


@pytest.mark.parametrize(
    "changed",
    [
        {"solver": Broyden()},
        {"solver": Picard(damping=0.5)},
        {"rtol": 1e-6},
        {"max_steps": 9},
        {"gradient": ImplicitGradient(max_steps=5)},
    ],
    ids=str,
)
def test_what_is_tried_next_is_told_if_it_fails_too(changed):
    torch.manual_seed(0)
    x, cell = torch.randn(8, 16), Cell(gain=4.0)
    options = {"solver": Picard(), "max_steps": 8, "rtol": 1e-5, "gradient": ImplicitGradient(max_steps=4)}
    for tried in (options, options | changed):
        expected = 1 if "gradient" not in changed or tried is options else 0
        told = [heard(1, Equilibrium(cell, **tried), x=x) for _ in range(3)]
        for direction, count in (("forward", expected), ("backward", 1)):
            assert [sum(f"{direction} solve" in text for text in texts) for texts in told] == [count, 0, 0]


@pytest.mark.parametrize("setting", ["rtol", "max_steps"])
def test_settings_that_follow_a_schedule_are_told_of_a_few_times(setting):
    torch.manual_seed(0)
    x, layer = torch.randn(8, 16), Equilibrium(Cell(gain=4.0), solver=Picard(), max_steps=8)
    told = []
    for step in range(40):
        setattr(layer, setting, 1e-3 * 0.9**step if setting == "rtol" else 8 + step)
        told.append(len(heard(1, layer, gradient=False, x=x)))
    assert told[:8] == [1] * 8
    assert sum(told) <= 10
    assert heard(1, layer, gradient=False, x=x) == []


def test_the_last_warning_of_settings_says_that_it_is():
    x, cell = torch.randn(8, 16), Cell(gain=4.0)
    told = [
        heard(1, Equilibrium(cell, solver=Picard(), max_steps=8 + more), gradient=False, x=x)[0] for more in range(8)
    ]
    assert all("only under other settings or if the residual becomes ten" in text for text in told[:7])
    assert "repeated only if the residual becomes ten times larger" in told[7]


class Scaled(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.gain = gain

    def forward(self, z, x):
        return self.gain * z + x


def test_settings_are_compared_with_themselves():
    """However bad those before them were."""
    x, cell = torch.ones(2, 3), Scaled(-1.0)  # swings, with a residual of 1
    assert len(heard(1, Equilibrium(cell, solver=Picard(), max_steps=30), gradient=False, x=x)) == 1
    layer, told = Equilibrium(cell, solver=Picard(), rtol=1e-6, max_steps=30), []
    for cell.gain in (0.8, 0.8, 0.95, -1.0, -1.0):
        told.append(len(heard(1, layer, gradient=False, x=x)))
    assert told == [1, 0, 1, 1, 0]


def test_a_residual_of_zero_is_told_once():
    layer = Equilibrium(Scaled(0.0), solver=Picard(), min_steps=5)
    budgets = torch.tensor([2, 9])  # fewer than the first row must take
    told = [heard(1, lambda x: layer(x, max_steps=budgets), gradient=False, x=torch.ones(2, 3)) for _ in range(4)]
    assert [len(texts) for texts in told] == [1, 0, 0, 0]


def test_fewer_steps_than_were_told_of_are_no_news():
    torch.manual_seed(0)
    x, cell = torch.randn(8, 16), Cell(gain=4.0)
    told = [
        len(heard(1, Equilibrium(cell, solver=Picard(), max_steps=steps), gradient=False, x=x))
        for steps in (20, 18, 20, 17, 21, 19)
    ]
    assert told == [1, 0, 0, 0, 1, 0]


def test_what_was_not_to_be_seen_has_not_been_told():
    torch.manual_seed(0)
    layer = failing()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        layer(torch.randn(8, 16))
    assert heard(1, layer)


def test_functions_are_known_by_their_code():
    def run():
        return fixed_point(lambda z: 2 * z + 1, torch.zeros(2, 3), solver=Picard(), max_steps=5)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5):
            run()
    assert len(caught) == 1


def test_functions_that_hold_a_module_are_known_by_it():
    def told(cell):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                fixed_point(lambda z: 2 * cell(z, 1.0) + z, torch.zeros(2, 16), solver=Picard(), max_steps=5)
        return len(caught)

    cells = Cell(), Cell()
    assert [told(cell) for cell in (*cells, cells[0])] == [1, 1, 0]


@pytest.mark.parametrize(
    ("radius", "words"),
    [
        (1.04, r"about 1\.04: plain iteration diverges"),
        (1.009, r"about 1\.01: too close to 1 to say"),
        (0.991, r"about 0\.991: too close to 1 to say"),
        (0.95, r"about 0\.95: plain steps converge from nearby"),
    ],
)
def test_a_spectral_radius_near_one_decides_nothing(radius, words):
    class Turn(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(-radius))

        def forward(self, z, x):
            return self.factor * z + x

    with pytest.warns(ConvergenceWarning, match=f"spectral radius of the Jacobian there is {words}"):
        Equilibrium(Turn(), solver=Picard(), max_steps=5, rtol=1e-6)(torch.ones(2, 3))


def test_the_spectral_radius_is_told_where_a_graph_is_at_hand():
    class Linear(nn.Module):
        def __init__(self, matrix):
            super().__init__()
            self.matrix = nn.Parameter(matrix)

        def forward(self, z, x):
            return z @ self.matrix + x

    turn = torch.tensor([[0.0, -1.5], [1.5, 0.0]])  # a pair of complex eigenvalues of modulus 1.5
    layer = Equilibrium(Linear(turn), solver=Picard(), max_steps=6, gradient=PhantomGradient())
    with pytest.warns(ConvergenceWarning, match="no graph|forward solve") as caught, torch.no_grad():
        layer(torch.ones(1, 2))
    assert "spectral radius" not in str(caught[0].message)
    exact = Equilibrium(Linear(turn), solver=Picard(), max_steps=6, gradient=ImplicitGradient())
    with pytest.warns(ConvergenceWarning, match=r"spectral radius of the Jacobian there is about 1\.5: plain"):
        exact(torch.ones(1, 2))
    slow = Equilibrium(Linear(0.5 * turn), solver=Picard(), max_steps=6, gradient=ImplicitGradient())
    with pytest.warns(ConvergenceWarning, match=r"about 0\.75: plain steps converge from nearby; a larger"):
        slow(torch.ones(1, 2))


def test_records_have_every_solve_that_failed():
    torch.manual_seed(0)
    layer = failing()
    with record() as log:
        heard(5, layer)
    assert len(log.forward) == len(log.backward) == 5


class Named(nn.Module):
    def forward(self, z, x, scale=1.0, mask=None):
        y = torch.tanh(0.5 * z + scale * x)
        return y if mask is None else y * mask


def test_inputs_by_name():
    layer, x, mask = Equilibrium(Named()), torch.randn(3, 4), torch.rand(3, 4)
    assert torch.equal(layer(x, mask=mask), layer(x, 1.0, mask))
    assert torch.equal(layer(scale=0.3, x=x), layer(x, 0.3))
    assert torch.equal(layer.solve(x, mask=mask).value, layer.solve(x, 1.0, mask).value)
    assert torch.equal(layer.iterates(x, at=(2,), mask=mask)[0], layer.iterates(x, 1.0, mask, at=(2,))[0])
    seen = []
    Equilibrium(Named(), initial=lambda *inputs: seen.append(inputs) or torch.zeros_like(inputs[0]))(x, scale=0.5)
    assert len(seen[0]) == 2  # no more than were given


def test_names_that_the_cell_does_not_have_are_refused():
    layer, x = Equilibrium(Named()), torch.randn(3, 4)
    with pytest.raises(TypeError, match=r"argument 'msk'; its forward is \(z, x, scale=1\.0, mask=None\)"):
        layer(x, msk=x)
    with pytest.raises(TypeError, match="multiple values for argument 'x'"):
        layer(x, x=x)

    class Only(nn.Module):
        def forward(self, z, x, *, mask):
            return 0.5 * z * mask + x

    with pytest.raises(TypeError, match="mask is keyword-only"):
        Equilibrium(Only())(x, mask=x)


def test_token_ids_first_ask_for_a_first_state():
    with pytest.raises(TypeError, match=r"zeros like the first input, which has dtype torch\.int64.*pass initial="):
        Equilibrium(Cell())(torch.randint(0, 10, (2, 5)))


def test_other_errors_of_a_first_evaluation_keep_their_kind():
    class Asserting(nn.Module):
        def forward(self, z, x):
            assert z.shape[1] == 96
            return z

    with pytest.raises(AssertionError, match="z starts as zeros like the first input"):
        Equilibrium(Asserting())(torch.randn(2, 4))

    class Named(nn.Module):
        def forward(self, z, x):
            return z.hidden

    with pytest.raises(AttributeError, match=r"(?s)hidden.*z starts as zeros like the first input"):
        Equilibrium(Named())(torch.randn(2, 4))


def test_a_layer_made_anew_at_each_step_is_known_by_its_cell():
    torch.manual_seed(0)
    cell = Cell(gain=4.0)

    def layer(x):
        return Equilibrium(cell, max_steps=8, rtol=1e-5)(x)

    assert len(heard(10, layer)) <= 4


def test_callable_objects_are_known_by_their_code():
    class Doubling:
        def __call__(self, z):
            return 2 * z + 1

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(4):
            fixed_point(Doubling(), torch.zeros(2, 3), solver=Picard(), max_steps=5)
    assert len(caught) == 1


@pytest.mark.parametrize("gradient", [UnrolledGradient(5), ReversibleGradient()], ids=["unrolled", "reversible"])
def test_starts_from_inference_mode(gradient):
    solver = Reversible() if isinstance(gradient, ReversibleGradient) else Picard()
    layer, x = Equilibrium(Cell(), solver=solver, gradient=gradient), torch.randn(3, 16)
    with torch.inference_mode():
        before = layer(x)
    layer(x, z0=before).sum().backward()
    torch.func.grad(lambda x: Equilibrium(Cell())(x, z0=before).sum())(x)


def test_diagnostics_and_the_form_of_fixed_steps_take_inputs_by_name():
    layer, x, mask = Equilibrium(Named(), rtol=1e-6), torch.randn(3, 4), torch.rand(3, 4)
    assert [str(found) for found in diagnose(layer, x, mask=mask)] == [
        str(found) for found in diagnose(layer, x, 1.0, mask)
    ]
    named, placed = gradient_audit(layer, x, scale=0.3), gradient_audit(layer, x, 0.3)
    assert named.relative_error == placed.relative_error
    assert torch.equal(path_independence(layer, x, mask=mask).spread, path_independence(layer, x, 1.0, mask).spread)
    torch.testing.assert_close(layer.exported(x, mask=mask)(x, 1.0, mask), layer(x, mask=mask), rtol=1e-4, atol=1e-5)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.equilibrium = layer

        def forward(self, x, mask):
            return self.equilibrium(x, mask=mask)

    assert not [found for found in diagnose(Model(), x, mask=mask) if found.fault]


@pytest.mark.parametrize("part", [nn.Dropout(0.5), nn.BatchNorm1d(4)], ids=["dropout", "batch statistics"])
@pytest.mark.parametrize("compact", [None, False])
def test_one_cause_is_told_once_and_at_the_users_line(part, compact):
    class Unsuitable(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.part = nn.Linear(4, 4), part

        def forward(self, z, x):
            return torch.tanh(self.part(0.5 * self.inner(z)) + x)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        Equilibrium(Unsuitable(), compact=compact)(torch.randn(64, 4)).square().sum().backward()
    causes = [str(each.message) for each in told if each.category is RuntimeWarning]
    assert len(causes) == 1
    assert causes[0].startswith("in a cell, part (")
    assert causes[0].endswith("Or call eval() on it")
    assert all(each.filename == __file__ for each in told)
    assert not any("spectral radius" in str(each.message) for each in told)


def test_rows_that_depend_on_each_other_are_named_at_the_users_line():
    class Coupled(nn.Module):
        def forward(self, z, x):
            return torch.tanh(0.5 * z - 0.3 * z.mean(dim=0) + x)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        Equilibrium(Coupled())(torch.randn(64, 4) * torch.linspace(0, 3, 64)[:, None])
    assert [each.filename for each in told] == [__file__]


def test_no_radius_is_told_of_rows_that_are_not_finite():
    class Roots(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, z, x):
            return (1 + x + 0.1 * torch.tanh(self.inner(z))).sqrt()

    x = torch.rand(6, 4)
    x[2] = -5
    with pytest.warns(ConvergenceWarning, match="gradient of every weight NaN") as told:
        z = Equilibrium(Roots())(x)
    assert "spectral radius" not in str(told[0].message)
    assert z.isfinite().all()


@pytest.mark.parametrize("kind", ["noisy", "coupled"])
def test_what_a_solve_finds_out_is_told_once(kind):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 6)
            nn.init.orthogonal_(self.inner.weight, 0.8)

        def forward(self, z, x):
            y = torch.tanh(self.inner(z) + x)
            return y + 0.3 * z.mean(0, keepdim=True) if kind == "coupled" else y * (1 + 1e-2 * torch.randn_like(z))

    x = torch.randn(36, 6) * torch.linspace(0.01, 4, 36)[:, None]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        Equilibrium(Odd())(x).sum().backward()
    causes = [each for each in told if each.category is RuntimeWarning]
    others = [str(each.message) for each in told if each.category is not RuntimeWarning]
    assert len(causes) == 1
    assert all("see to the earlier warning about f first" in text and "rtol" not in text for text in others)


def test_batch_statistics_that_evaluation_mode_uses_as_well_have_another_remedy():
    class Batch(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4, track_running_stats=False)

        def forward(self, z, x):
            return torch.tanh(0.5 * self.norm(z) + x)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        Equilibrium(Batch()).eval().solve(torch.randn(8, 4))
    text = str(told[0].message)
    assert "in evaluation mode as well, since it keeps none: use GroupNorm or LayerNorm" in text
    assert "eval()" not in text


def test_budgets_of_rows_and_of_calls():
    layer, x = Equilibrium(Contracting(), solver=Picard(), min_steps=3), torch.randn(4, 2)
    assert layer(x[:0], max_steps=torch.empty(0, dtype=torch.long)).shape == (0, 2)
    found = layer.solve(x, max_steps=torch.tensor([2, 50, 50, 50]))
    assert found.converged.tolist() == [False, True, True, True]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        assert torch.equal(layer(x, max_steps=2), layer.solve(x, max_steps=2).value)


class Contracting(nn.Module):
    def forward(self, z, x):
        return 0.5 * z + x


def test_backward_solves_are_told_what_helps_a_linear_equation():
    layer = Equilibrium(Cell(gain=0.98), rtol=1e-5, gradient=ImplicitGradient(Picard(), max_steps=3))
    value = layer(torch.randn(8, 16))
    with pytest.warns(ConvergenceWarning, match=r"(?s)backward solve.*or try GMRES\(\)"):
        value.square().sum().backward()

    class Expanding(nn.Module):
        def forward(self, z, x):
            return 0.5 * (z + (2 * x - 3 * (z - x)))  # solved by z = x, where its derivative is -1

    layer = Equilibrium(Expanding(), gradient=ImplicitGradient(Picard()))
    x = torch.ones(3, 4, requires_grad=True)
    with record() as log, pytest.warns(ConvergenceWarning) as told:
        layer(x).sum().backward()
    (text,) = [str(warning.message) for warning in told if "backward" in str(warning.message)]
    assert "u = Jᵀu + g" in text
    assert "GMRES()" in text
    assert "fixed point" not in text
    better = Equilibrium(Expanding(), gradient=ImplicitGradient())
    with record() as log:
        better(x).sum().backward()
    assert log.backward[0].solution.converged.all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"damping": 0.5}, r"It may belong to the solver: solver=Anderson\(damping=…\)"),
        ({"inner_steps": 3, "solver": NewtonKrylov()}, r"solver=NewtonKrylov\(inner_steps=…\)"),
        ({"tolerance": 1e-3}, r"it takes solver, .*, loop$"),
        ({"init": 3}, r"it takes solver, .*, loop$"),
        ({"memory": 3, "solver": Picard}, r"it takes solver, .*, loop$"),
    ],
)
def test_settings_of_the_solver_are_told_where_they_belong(options, words):
    with pytest.raises(TypeError, match=words):
        Equilibrium(Cell(), **options)


def test_a_tolerance_that_is_a_tensor_is_refused_in_words():
    with pytest.raises(ValueError, match=r"rtol=tensor\(0.0010.*\) is a Tensor: pass a number, such as 1e-4"):
        Equilibrium(Cell(), rtol=torch.tensor(1e-3))
    with pytest.raises(TypeError, match=r"complex64: a state must have a real .*view_as_real"):
        fixed_point(lambda z: 0.5 * z, torch.ones(2, 3, dtype=torch.complex64))


def test_no_tolerance_is_named_where_it_would_not_help():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grown = solve(lambda z: z + 1, torch.zeros(2, 1), solver=Broyden())
        soon = solve(lambda z: 0 * z, torch.zeros(2, 1), max_steps=torch.tensor([2, 9]), min_steps=5)

    class Constant(nn.Module):
        def forward(self, z, x):
            return 0 * z + x

    with record() as log:
        Looped(Constant(), steps=4)(torch.randn(2, 3))
    for found in (grown, soon, log.forward[0].solution):
        assert not found.converged.all()
        assert not found.floored.any()
        assert "set rtol to" not in found.summary()


def unassigned(z):
    def f(z):
        return z + 1 if len(z) else later

    value = fixed_point(f, z)
    later = 0
    return value, later


@pytest.mark.parametrize(
    "call",
    [
        lambda z: fixed_point(torch.exp, z),
        lambda z: fixed_point(torch.Tensor.exp, z),
        lambda z: fixed_point(lru_cache(lambda z: z + 1), z),
        lambda z: fixed_point(partial(torch.add, other=1.0), z),
        unassigned,
    ],
    ids=["built in", "a method", "cached", "partial", "a variable that has no value yet"],
)
def test_functions_without_code_of_their_own_are_warned_of(call):
    with pytest.warns(ConvergenceWarning, match="0 of 2 rows converged"):
        call(torch.zeros(2, 1))
