"""A planted fault for each finding; a healthy layer has none."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm as normalised

from implicit import Equilibrium, ImplicitGradient, Looped, Unconverged
from implicit.diagnostics import diagnose, gradient_audit
from models import Dense, HeavyBall, MonotoneDense, OptDEQ, OptDNN
from solvers import Anderson, Picard
from solvers import Shared as SharedInput


class Cell(nn.Module):
    def __init__(self, scale=0.5, extra=None, width=8):
        super().__init__()
        self.inner, self.inject, self.extra = nn.Linear(width, width), nn.Linear(width, width), extra
        with torch.no_grad():
            self.inner.weight *= scale / torch.linalg.matrix_norm(self.inner.weight, 2)

    def forward(self, z, x):
        out = self.inner(z) + self.inject(x)
        return torch.tanh(out if self.extra is None else self.extra(out))


class Affine(nn.Module):
    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, z, x):
        return z @ self.matrix.T + x


def names(layer, *inputs):
    findings = diagnose(layer, *inputs)
    for finding in findings:
        assert str(finding).startswith(finding.name)
        assert set(finding.to_dict()) == {"name", "evidence", "remedy", "layer"}
    return [finding.name for finding in findings]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", [True, False])
def test_a_healthy_layer_has_none(dtype, mode):
    layer = Equilibrium(Cell(0.9)).to(dtype).train(mode)
    settings = layer.gradient, layer.rtol, layer.training
    assert names(layer, torch.randn(12, 8, dtype=dtype)) == []
    assert (layer.gradient, layer.rtol, layer.training) == settings
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_a_stochastic_cell_is_found_alone():
    layer = Equilibrium(Cell(extra=nn.Dropout(0.2)))
    assert names(layer, torch.randn(4, 8)) == ["stochastic cell"]
    assert names(layer.eval(), torch.randn(4, 8)) == []


def test_spectral_normalisation_in_training_is_not_stochastic():
    cell = Cell(0.5, extra=normalised(nn.Linear(8, 8)))
    assert names(Equilibrium(cell).train(), torch.randn(4, 8)) == []


def test_rows_that_see_each_other():
    layer = Equilibrium(Cell(extra=nn.BatchNorm1d(8, track_running_stats=False)), compact=False)
    assert "rows coupled through the batch" in names(layer, torch.randn(6, 8))


def test_rows_that_are_not_finite_are_named():
    x = torch.randn(5, 8)
    x[3] = float("nan")
    (finding,) = diagnose(Equilibrium(Cell()), x)
    assert finding.name == "rows that are not finite"
    assert "row 3" in finding.evidence


class Rough(nn.Module):
    """Neighbouring numbers of single precision have images that differ by some 1e-6."""

    def forward(self, z, x):
        return 0.5 * z + x + 1e-6 * torch.sin(1e7 * z)


def test_a_tolerance_below_what_the_dtype_resolves():
    layer = Equilibrium(Rough(), rtol=1e-10, atol=0.0)
    findings = {finding.name: finding.evidence for finding in diagnose(layer, 1 + torch.rand(5, 8))}
    assert "stalled or cycling rows" not in findings
    assert "rows 0, 1, 2, 3, 4 stopped at" in findings["the dtype's floor"]
    assert "above rtol=1e-10" in findings["the dtype's floor"]


def test_rows_that_run_away_are_not_at_the_floor_although_their_relative_residual_is_small():
    found = names(Equilibrium(Affine(torch.eye(8))), torch.ones(3, 8))
    assert "every row diverges" in found
    assert "the dtype's floor" not in found


def test_rows_that_have_no_fixed_point():
    class Jumps(nn.Module):
        def forward(self, z, x):
            return torch.where(z > 0, -1.0, 1.0) + 0 * (z + x)

    assert names(Equilibrium(Jumps()), torch.ones(2, 3))[0] == "stalled or cycling rows"


def test_a_spectral_radius_above_one():
    matrix = torch.tensor([[0.0, -1.3], [1.3, 0.0]])
    assert names(Equilibrium(Affine(matrix)), torch.randn(4, 2)) == ["spectral radius above 1"]


def test_the_norm_of_a_kernel_is_not_that_of_its_convolution():
    class Convolution(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = normalised(nn.Conv2d(4, 4, 3, padding=1), n_power_iterations=50)
            nn.init.ones_(self.inner.parametrizations.weight.original)

        def forward(self, z, x):
            return 0.9 * self.inner(z) + x

    cell, moving = Convolution(), torch.ones(1, 4, 12, 12) / 24  # of length 1
    assert torch.linalg.matrix_norm(cell.inner.weight.detach().flatten(1), 2) == pytest.approx(1, abs=1e-4)
    assert 2.5 < (cell.inner(moving) - cell.inner(0 * moving)).norm() < 3
    finding = diagnose(Equilibrium(cell, solver=Picard()), torch.rand(4, 4, 12, 12))[0]
    assert finding.name == "every row diverges"
    assert "weights are cell.inner.weight 1 (its convolution: up to 3)" in finding.evidence
    assert "convolutions by models.ContractiveConv" in finding.remedy
    assert "normalisation" not in finding.remedy


def test_the_remedy_for_a_cell_with_a_normalisation_says_what_scaling_does_not_do():
    class Normalised(Cell):
        def forward(self, z, x):
            return 3 * nn.functional.layer_norm(self.inner(z) + 0 * x, (8,)).roll(1, 1) + self.extra(z)

    found = diagnose(Equilibrium(Normalised(extra=nn.LayerNorm(8)), max_steps=300), torch.randn(6, 8))
    (stalled,) = [finding for finding in found if finding.name == "stalled or cycling rows"]
    assert "The size of a weight in front of a normalisation has no effect: add jacobian_penalty" in stalled.remedy
    assert "ContractiveConv" not in stalled.remedy


def test_weights_of_any_norm_are_no_fault_where_the_solver_is_made_for_them():
    net = OptDNN("ppa", [MonotoneDense(8, 8, lipschitz=None)], alpha=0.0, rtol=1e-3).double()
    with torch.no_grad():
        net.transforms[0].proximal.linear.weight *= 4
    x = torch.randn(4, 8, dtype=torch.float64)
    (finding,) = diagnose(net, x)
    assert (finding.name, finding.layer) == ("check left out", "transforms.0.resolvent")
    assert finding.evidence.startswith("spectral radius: Monotone")
    net.transforms[0].resolvent.solver = Anderson()
    assert "spectral radius above 1" in [finding.name for finding in diagnose(net, x)]


def test_rows_that_are_not_finite_are_not_called_stalled_as_well():
    class Breaks(nn.Module):
        def forward(self, z, x):  # of a few rows, when they have come near
            image = 0.5 * z + x
            return torch.where((z - 2 * x).norm(dim=1, keepdim=True) < 1e-2, float("nan") * image, image)

    assert names(Equilibrium(Breaks(), solver=Picard()), torch.ones(3, 2)) == ["rows that are not finite"]


@pytest.mark.parametrize("unconverged", list(Unconverged))
def test_a_backward_solve_without_enough_steps(unconverged):
    gradient = ImplicitGradient(solver=Picard(), rtol=1e-6, max_steps=2, unconverged=unconverged)
    assert names(Equilibrium(Cell(0.9), gradient=gradient), torch.randn(4, 8)) == ["backward solve not converged"]


def test_a_tolerance_that_spoils_the_gradient():
    found = names(Equilibrium(Cell(0.95), rtol=0.3), torch.randn(4, 8))
    assert found == ["tolerance too loose for the gradient"]


def test_a_history_that_is_too_short():
    matrix = torch.diag(torch.linspace(-0.97, 0.97, 8))
    found = names(Equilibrium(Affine(matrix), solver=Anderson(memory=2), rtol=1e-5), torch.randn(4, 8))
    assert found == ["history too short"]
    few = Equilibrium(Affine(matrix), solver=Anderson(memory=2), rtol=1e-5, max_steps=12)
    (evidence,) = [one.evidence for one in diagnose(few, torch.randn(4, 8)) if one.name == "history too short"]
    assert evidence == "4 rows converge with memory=8, 0 with memory=2"


class Model(nn.Module):
    """Two layers with something before, and one that is not called."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.blocks = nn.ModuleList([Equilibrium(Cell()), Equilibrium(Affine(torch.eye(8))), Equilibrium(Cell())])

    def forward(self, x, z0=None):
        z = self.blocks[0](self.norm(self.stem(x)), z0=z0)
        return self.blocks[1](z) + self.blocks[1](0 * z)


def test_a_whole_model_is_looked_at_layer_by_layer_and_left_as_it_was():
    model, x = Model(), torch.randn(6, 8)
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    findings = diagnose(model, x)
    assert {finding.layer for finding in findings} == {"blocks.1"}
    assert str(findings[0]).startswith("blocks.1, every row diverges: all 6 rows")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(block._forward_pre_hooks for block in model.blocks)


def test_networks_of_methods_are_looked_at_from_their_own_start():
    net = OptDEQ(HeavyBall(momentum=0.3), MonotoneDense(8, 8))  # its state is (z, z₋), its start not the input's
    assert {finding.layer for finding in diagnose(net, torch.randn(4, 8))} <= {"equilibrium"}
    pairs = [(Dense(8, 8), MonotoneDense(8, 8)) for _ in range(2)]
    assert diagnose(OptDNN("pgd", pairs, alpha=0.0), torch.randn(4, 8)) == []


def test_a_model_without_a_layer_and_a_start_without_one_are_refused():
    with pytest.raises(ValueError, match="Linear has called no Equilibrium"):
        diagnose(nn.Linear(8, 8), torch.randn(2, 8))
    with pytest.raises(TypeError, match="z0 is the start of an Equilibrium or a Looped, and model is a Model"):
        diagnose(Model(), torch.randn(2, 8), z0=torch.zeros(2, 8))


def test_batch_statistics_inside_a_cell_are_left_alone():
    layer = Equilibrium(Cell(extra=nn.BatchNorm1d(8)), compact=False)
    diagnose(layer, torch.randn(6, 8))
    assert layer.cell.extra.num_batches_tracked == 0


def test_an_empty_batch_has_nothing_to_find():
    assert names(Equilibrium(Cell()), torch.randn(0, 8)) == []


class Pair(nn.Module):
    """A state of two tensors, of different shapes."""

    def forward(self, z, x):
        return 0.5 * torch.cos(z[0]) + x, 0.3 * torch.sin(z[1])


def test_half_precision_and_states_of_several_tensors_are_looked_at_too():
    assert names(Equilibrium(Cell(0.5), rtol=1e-2).half(), torch.randn(4, 8).half()) == []
    layer = Equilibrium(Pair(), initial=lambda x: (torch.zeros_like(x), x.new_zeros(len(x), 2, 3)))
    assert names(layer, torch.randn(4, 8)) == []


def test_a_layer_that_wants_no_gradient_has_none_to_find_fault_with():
    class Halves(nn.Module):
        def forward(self, z, index):
            return 0.5 * z + 1.0

    layer = Equilibrium(Halves(), initial=lambda index: torch.zeros(len(index), 2))
    assert names(layer, torch.arange(3)) == []


def test_rows_whose_steps_ran_out():
    found = diagnose(Equilibrium(Cell(0.9), max_steps=3), torch.randn(5, 8))
    assert [finding.name for finding in found] == ["steps ran out"]
    assert "rows 0, 1, 2, 3, 4 kept improving until 3 steps ran out" in found[0].evidence


class Shared(nn.Module):
    """The weight is an input, the same for all rows."""

    def __init__(self, coupling=0.0):
        super().__init__()
        self.coupling = coupling

    def forward(self, z, x, weight):
        return torch.tanh(z @ weight + x + self.coupling * z.mean(dim=0))


def test_inputs_that_rows_share_are_no_obstacle():
    weight, x = 0.5 * torch.eye(8), torch.randn(5, 8)
    assert names(Equilibrium(Shared(), compact=False), x, weight) == []
    coupled = ["rows coupled through the batch", "check left out"]
    assert names(Equilibrium(Shared(0.3), compact=False), x, weight) == coupled
    assert "spectral radius above 1" in names(Equilibrium(Shared(), compact=False), x, -6 * weight)


def test_a_cell_that_fails_in_float64_is_said_to():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = 0.5 * torch.eye(8)  # no buffer

        def forward(self, z, x):
            return torch.tanh(z @ self.weight + x)

    assert names(Equilibrium(Single()), torch.randn(4, 8)) == ["cell tied to its dtype"]


def test_a_cycle_is_named_with_its_period():
    angle = 2 * torch.pi / 3
    turn = torch.tensor([[torch.cos(torch.tensor(angle)), -torch.sin(torch.tensor(angle))],
                         [torch.sin(torch.tensor(angle)), torch.cos(torch.tensor(angle))]])  # fmt: skip
    (finding,) = diagnose(Equilibrium(Affine(turn), solver=Picard(), max_steps=400), torch.ones(2, 2))
    assert finding.name == "stalled or cycling rows"
    assert "with period 3" in finding.evidence


def test_rows_that_fall_slowly_are_on_their_way():
    found = names(Equilibrium(Affine(0.995 * torch.eye(2)), solver=Picard(), max_steps=300), torch.ones(2, 2))
    assert found == ["steps ran out"]


@pytest.mark.parametrize("factor", [0.97, 0.99, 0.999])
def test_a_loose_tolerance_is_found_where_plain_steps_could_not_tighten_it(factor):
    layer = Equilibrium(Affine(torch.tensor([[factor]])), solver=Picard(), rtol=1e-2, max_steps=1000)
    assert "tolerance too loose for the gradient" in names(layer, torch.ones(1, 1))


def test_one_loose_row_among_many_is_named():
    class Rows(nn.Module):
        def forward(self, z, slope):
            return slope * z + 1

    slopes = torch.full((64, 1), 0.1)
    slopes[7] = 0.99
    (finding,) = diagnose(Equilibrium(Rows(), solver=Picard(), rtol=1e-2, max_steps=500), slopes)
    assert finding.name == "tolerance too loose for the gradient"
    assert "the distance of row 7 to the equilibrium is up to" in finding.evidence


@pytest.mark.parametrize("compact", [False, True])
def test_batch_normalisation_is_found_whether_rows_are_dropped_or_not(compact):
    layer = Equilibrium(Cell(extra=nn.BatchNorm1d(8)), compact=compact).train()
    assert "rows coupled through the batch" in names(layer, torch.randn(4, 8))


def test_a_shared_input_as_long_as_the_batch_is_no_obstacle():
    assert names(Equilibrium(Shared(), compact=False), torch.randn(8, 8), 0.5 * torch.eye(8)) == []


def test_a_cell_that_hides_its_derivative_and_one_whose_gradient_breaks():
    class Hidden(Cell):
        @torch.no_grad()
        def forward(self, z, x):
            return super().forward(z, x)

    assert "no gradient" in names(Equilibrium(Hidden()), torch.randn(3, 8))

    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.3))

        def forward(self, z, x):  # the norm has no derivative at 0, which is the solution of a row of zeros
            return self.weight * z * torch.tanh(z.square().sum(dim=1, keepdim=True).sqrt()) + x

    x = torch.randn(3, 8)
    x[1] = 0
    assert "gradient that is not finite" in names(Equilibrium(Breaks()), x)


@pytest.mark.parametrize("autocast", [True, False])
def test_a_backward_solve_that_ends_at_the_dtypes_floor_is_told_the_tolerance_that_it_can_meet(autocast):
    cell, x, device = Cell(), torch.randn(32, 8), torch.get_default_device().type
    if not autocast:
        cell, x = cell.bfloat16(), x.bfloat16()

    def found(gradient):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
            return diagnose(Equilibrium(cell, rtol=1e-2, gradient=gradient), x)

    (finding,) = found(ImplicitGradient())
    assert finding.name == "backward solve not converged"
    rtol = re.search(r"floor of torch.bfloat16: pass gradient=ImplicitGradient\(rtol=([^)]+)\)", finding.remedy)[1]
    assert found(ImplicitGradient(rtol=4 * float(rtol))) == []  # another random loss has another floor


def test_both_solves_may_end_at_the_dtypes_floor():
    layer = Equilibrium(Cell(0.9), rtol=1e-9, atol=0.0, gradient=ImplicitGradient(rtol=1e-9))
    x = torch.randn(64, 8)
    x = x[layer.solve(x).floored]
    assert layer.solve(x).floored.all()
    found = names(layer, x)
    assert "the dtype's floor" in found
    assert "backward solve not converged" in found


def test_a_longer_history_is_no_remedy_at_the_dtypes_floor():
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        found = names(Equilibrium(Cell(), rtol=1e-4, max_steps=2000), torch.randn(64, 8))
    assert "the dtype's floor" in found
    assert "history too short" not in found


def test_noise_at_some_evaluations_is_found():
    class Now(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, out):
            self.calls += 1
            return out + 0.1 * (self.calls % 5 == 0)

    assert names(Equilibrium(Cell(extra=Now())), torch.randn(3, 8)) == ["stochastic cell"]


def test_what_is_no_module_is_refused_in_words():
    with pytest.raises(TypeError, match="model is a function"):
        diagnose(lambda x: x, torch.randn(2, 8))


def test_where_every_row_diverges_that_is_said_first_with_the_weights_to_blame():
    class Squares(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.scaled = normalised(nn.Linear(8, 8))

        def forward(self, z, x):
            return (10 * self.a(self.scaled(z))).square() + self.b(x).square() + 1

    model, x = nn.Sequential(Equilibrium(Cell()), Equilibrium(Squares())), torch.rand(6, 8)
    norms = {name: torch.linalg.svdvals(value)[0].item() for name, value in model.named_parameters() if value.ndim > 1}
    first = diagnose(model, x)[0]
    assert (first.layer, first.name) == ("1", "every row diverges")
    assert first.evidence.startswith("all 6 rows grew out of bounds; the spectral norms of the weights are ")
    named = [part.split(" ") for part in first.evidence.split("weights are ")[1].split(", ")]
    values = [float(value) for _, value in named]
    assert values == sorted(values, reverse=True)
    assert {name for name, _ in named} == {f"1.cell.{part}.weight" for part in ("a", "b", "scaled")}
    for name, value in named:
        expected = 1.0 if "scaled" in name else norms[name]  # as it is now, not as its original
        assert float(value) == pytest.approx(expected, rel=0.2 if "scaled" in name else 6e-3)


class Detaching(nn.Module):
    """Its derivative in z is left out, in whole or in part."""

    def __init__(self, part):
        super().__init__()
        self.inner, self.part = nn.Linear(8, 8), part
        nn.init.orthogonal_(self.inner.weight, 0.9)

    def forward(self, z, x):
        if self.part == "straight-through":
            soft = torch.tanh(self.inner(z) + x)
            return soft + (soft.mul(8).round() / 8 - soft).detach()
        hidden = z.detach() if self.part == "all" else torch.cat((z[:, :4].detach(), z[:, 4:]), 1)
        return torch.tanh(self.inner(hidden if self.part else z) + x)


class InUnits(nn.Module):
    """A cell whose states are measured in another unit."""

    def __init__(self, cell, unit):
        super().__init__()
        self.cell, self.unit = cell, unit

    def forward(self, z, x):
        return self.unit * self.cell(z / self.unit, x)


@pytest.mark.parametrize("unit", [1.0, 2.0**-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("part", "found"), [("all", True), ("half", True), ("", False)])
def test_a_derivative_that_a_cell_leaves_out_is_found(part, found, dtype, unit):
    layer = Equilibrium(InUnits(Detaching(part), unit), atol=0.0).to(dtype)
    x = 0.1 * torch.randn(4, 8, dtype=dtype)
    assert ("gradient that misses part of the cell" in names(layer, x)) == found
    looped = Looped(layer.cell, steps=5)
    assert ("gradient that misses part of the cell" in names(looped, x)) == found


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_of_a_derivative_is_missed_in_low_precision_too(dtype, autocast):
    class Halved(Kinked):
        def forward(self, z, x):
            return torch.tanh(self.inner(0.5 * z + 0.5 * z.detach()) + x)

    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16, enabled=autocast):
        cell = Halved().to(dtype)
        with torch.no_grad():
            cell.inner.weight.copy_(0.8 * torch.linalg.qr(torch.randn(32, 32)).Q)
        found = names(Equilibrium(cell, rtol=0.05, max_steps=100), 0.3 * torch.randn(16, 32, dtype=dtype))
    assert "gradient that misses part of the cell" in found


class Kinked(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(32, 32)

    def forward(self, z, x):
        return torch.relu(self.inner(z) + x)


def test_kinks_hide_no_derivative():
    for _ in range(3):
        assert "gradient that misses part of the cell" not in names(Equilibrium(Kinked()), torch.randn(4096, 32))


def test_a_cell_that_takes_no_inputs_with_gradients_is_no_fault():
    class Squares(Cell):
        def forward(self, z, x):
            return torch.tanh(self.inner(z) + torch.from_numpy(x.numpy() ** 2))

    found = diagnose(Equilibrium(Squares()), torch.randn(4, 8))
    assert not any(finding.fault for finding in found)
    assert "gradient: that of the inputs cannot be computed, those of the parameters can" in found[0].evidence


def test_a_shared_input_is_taken_to_float64_as_well():
    class Graph(Cell):
        def forward(self, z, x, a):
            return torch.tanh(self.inner(z) @ a + x)

    x, a = torch.randn(8, 8), torch.eye(8) / 2
    layer = Equilibrium(Graph(), initial=lambda x, a: torch.zeros_like(x))
    assert names(layer, x, SharedInput(a)) == names(layer, x, a) == []
    assert gradient_audit(layer, x, SharedInput(a), repeats=0).cosine > 0.999


def test_the_dtypes_floor_is_where_the_solution_has_it():
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.inject, self.norm = nn.Linear(16, 16), nn.Linear(16, 16), nn.LayerNorm(16)
            with torch.no_grad():
                self.inner.weight.div_(torch.linalg.matrix_norm(self.inner.weight, 2))

        def forward(self, z, x):
            return self.norm(0.9 * self.inner(z) + self.inject(x))

    torch.manual_seed(1)
    cell, x = Normalised().bfloat16(), (torch.randn(6, 16) * (10 ** torch.linspace(-3, 2, 6))[:, None]).bfloat16()
    layer = Equilibrium(cell, solver=Picard(), rtol=1e-4)
    found = {finding.name: finding for finding in diagnose(layer, x)}
    assert {"the dtype's floor", "stalled or cycling rows"} <= set(found)  # rows of either kind
    assert float(re.search(r"Set rtol to (\S+) or more", found["the dtype's floor"].remedy)[1]) < 0.02
