"""The Triton kernels beside the operations of PyTorch, without a GPU: in Triton's interpreter, and compiled for cards.

Run as a script, with TRITON_INTERPRET=1, it prints how far from it the kernels are in one group of cases.
"""

import json
import math
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from solvers import GMRES, Anderson, Broyden, Euclidean
from solvers import fused as fusing
from solvers.fused import LARGE, fusible, replayed
from solvers.rules import anderson, broyden, gmres

DTYPES = {"float32": torch.float32, "float64": torch.float64}
BOUNDS = {"float32": 2e-5, "float64": 1e-13}
SHAPES = [  # rows, dim, memory, period, damping
    (1, 1, 1, 1, 1.0),
    (2, 1, 6, 3, 0.7),
    (3, 2, 2, 2, 1.0),
    (4, 2, 16, 1, 0.7),
    (5, 3, 6, 3, 1.0),
    (1, 3, 12, 2, 0.7),
    (2, 64, 1, 1, 0.7),
    (5, 64, 6, 2, 1.0),
    (2, 100, 2, 1, 1.0),
    (2, 100, 12, 4, 0.7),
    (1, 100, 16, 2, 1.0),
    (1, 3000, 2, 1, 1.0),
    (2, 3000, 6, 2, 0.7),
    (1, 3000, 16, 3, 1.0),
]
VALUES = {"float32": (1.0, 1e-30, 1e30, 1e-44), "float64": (1.0, 1e-155, 1e154, 1e-200, 1e200, 1e-310, 1e300)}


def fused():
    from solvers.rules import anderson_triton as triton

    return anderson.Operations(triton.write_differences, triton.weights, triton.mixed)


def steps(operations, solver, z, points, forgotten=None):
    """The proposals, and the last memory; some rows forget halfway."""
    memory, proposals = solver.init(z), []
    for count, (image, residual) in enumerate(points):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(anderson, "_operations", lambda *_: operations)
            proposal, memory = solver.step(memory, z, image, residual)
        if forgotten is not None and count == len(points) // 2:
            memory = solver.forget(memory, forgotten)
        proposals.append(proposal)
    return proposals, memory


def error(solver, points, forgotten=None):
    """The largest, relative to the row's largest entry, beside the operations of PyTorch in double precision."""
    z = torch.zeros_like(points[0][0])
    found, memory = steps(fused(), solver, z, points, forgotten)
    wide = [(image.double(), residual.double()) for image, residual in points]
    wanted, exact = steps(anderson.PYTORCH, solver, z.double(), wide, forgotten)
    noise = torch.full((len(z), 1), 1e-7)
    found += [memory.gram.flatten(1), solver.transposed_inverse(memory, points[0][0], noise)]
    wanted += [exact.gram.flatten(1), solver.transposed_inverse(exact, wide[0][0], noise)]
    worst = 0.0
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype in (z.dtype, torch.float64)
        assert torch.equal(one.isnan(), other.isnan())
        one, other = one.double().nan_to_num(), other.nan_to_num()
        scale = torch.maximum(other.abs().amax(1), torch.ones(len(other)))
        worst = max(worst, float(((one - other).abs().amax(1) / scale).max()))
    return worst


def random_points(count, rows, dim, dtype):
    return [(torch.randn(rows, dim, dtype=dtype), torch.randn(rows, dim, dtype=dtype)) for _ in range(count)]


def anderson_errors(name):
    from solvers.rules import anderson_triton as triton

    triton._PARTS = 13  # so that a program adds up several blocks, and several rounds of parts, as in long rows
    for rows, dim, memory, period, damping in SHAPES[:: 1 if name == "float32" else 2]:  # the interpreter is slow
        # a ridge that shows where it is not added, and keeps the systems well conditioned
        solver = Anderson(memory=memory, period=period, damping=damping, ridge=1e-2)
        size = min(memory, dim)
        yield [rows, dim, memory, period], error(solver, random_points(size + 3, rows, dim, DTYPES[name]))


def odd_errors(name):
    dtype, solver = DTYPES[name], Anderson(memory=4, period=2, damping=0.9, ridge=1e-2)
    for dim in (7, 600) if name == "float32" else (600,):
        points = random_points(9, 6, dim, dtype)
        for count, (image, residual) in enumerate(points):
            if count > 3:
                image[1, 0] = residual[1, dim // 2] = math.nan
                image[2, -1] = residual[2, -1] = math.inf
            image[3], residual[3] = points[0][0][3], points[0][1][3]  # whose differences are zero
        forgotten = torch.tensor([False, False, False, False, True, False])
        yield ["odd rows", dim], error(solver, points, forgotten)
        wide = [tuple(torch.randn(3, 2 * dim, dtype=dtype)[:, :dim] for _ in range(2)) for _ in range(6)]
        yield ["rows apart", dim], error(solver, wide)
        columns = [tuple(torch.randn(dim, 3, dtype=dtype).mT for _ in range(2)) for _ in range(6)]
        yield ["columns apart", dim], error(solver, columns)
    zeros = [(torch.ones(2, 70, dtype=dtype), torch.zeros(2, 70, dtype=dtype))] * 9
    proposals, memory = steps(fused(), Anderson(memory=3), zeros[0][0], zeros)
    assert all(torch.equal(proposal, zeros[0][0]) for proposal in proposals)
    assert not memory.gram.any()


def broyden_steps(proposal, solver, points, forgotten=None):
    """The proposals, and the last memory; some rows forget halfway."""
    memory, proposals = solver.init(points[0][0]), []
    for count, (z, residual) in enumerate(points):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(broyden, "_operation", lambda *_: proposal)
            proposed, memory = solver.step(memory, z, z + residual, residual)
        if forgotten is not None and count == len(points) // 2:
            memory = solver.forget(memory, forgotten)
        proposals.append(proposed)
    return proposals, memory


def broyden_error(proposal, solver, points, forgotten=None):
    """The largest, relative to the row's largest entry, beside the operations of PyTorch in double precision."""
    found, memory = broyden_steps(proposal, solver, points, forgotten)
    wide = [(z.double(), residual.double()) for z, residual in points]
    wanted, exact = broyden_steps(broyden.proposal, solver, wide, forgotten)
    for memories, filled in ((memory, memory.filled), (exact, exact.filled)):
        outputs = found if memories is memory else wanted
        below = torch.ones(filled, filled, dtype=torch.bool).tril(-1).to(memories.coupling.device)
        outputs += [memories.history[:, :filled].flatten(1), memories.inverse_squares[:, :filled]]
        outputs += [torch.where(below, memories.coupling[:, :filled, :filled], 0).flatten(1)]
    worst = 0.0
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        one, other = one.double().nan_to_num(), other.nan_to_num()
        scale = torch.maximum(other.abs().amax(1), torch.ones(len(other), device=other.device))
        worst = max(worst, float(((one - other).abs().amax(1) / scale).max()))
    return worst


def broyden_errors(name):
    from solvers.rules.broyden_triton import proposal

    dtype = DTYPES[name]
    for rows, dim, memory in ((1, 1, 1), (2, 3, 2), (4, 64, 6), (2, 100, 12), (1, 3000, 3), (2, 300, 20)):
        steps = (2 if memory < 20 else 1) * memory + 3  # the interpreter is slow
        points = [(z, 0.7**count * r) for count, (z, r) in enumerate(random_points(steps, rows, dim, dtype))]
        yield [rows, dim, memory], broyden_error(proposal, Broyden(memory), points)
    odd = random_points(7, 6, 600, dtype)
    for count, (_, residual) in enumerate(odd):
        if count > 2:
            residual[1, 5], residual[2, -1] = math.nan, math.inf
        residual[3] = 0
    odd[4][1][4] = 0  # a step that vanishes
    odd[5][1][0] *= 1.0 if name == "float32" else 1e-158  # whose square has no reciprocal
    yield "odd rows", broyden_error(proposal, Broyden(4), odd, torch.tensor([False] * 5 + [True]))
    apart = [tuple(torch.randn(3, 80, dtype=dtype)[:, :40] for _ in range(2)) for _ in range(5)]
    yield "rows apart", broyden_error(proposal, Broyden(3), apart)
    columns = [tuple(torch.randn(40, 3, dtype=dtype).mT for _ in range(2)) for _ in range(5)]
    yield "columns apart", broyden_error(proposal, Broyden(3), columns)


def gmres_steps(operation, solver, matrix, shift, count):
    """The iterates for z = matrix·z + shift, from zero."""
    z, points = torch.zeros_like(shift), []
    memory = solver.init(z)
    for _ in range(count):
        image = (matrix @ z.unsqueeze(2)).squeeze(2) + shift
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gmres, "_operation", lambda *_: operation)
            z, memory = solver.step(memory, z, image, image - z)
        points.append(z)
    return points


def gmres_error(operation, solver, matrix, shift, count):
    """The largest, relative to the row, beside the operations of PyTorch in double precision."""
    found = gmres_steps(operation, solver, matrix, shift, count)
    wanted = gmres_steps(gmres.proposal_and_memory, solver, matrix.double(), shift.double(), count)
    worst = 0.0
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.isnan().any(1), other.isnan().any(1))
        good = other.isfinite().all(1)
        error = (one[good].double() - other[good]).abs().amax(1) / other[good].abs().amax(1).clamp(min=1e-30)
        worst = max(worst, float(error.max()))
    return worst


def affine_map(rows, dim, dtype, device="cpu", modulus=0.5):
    matrix = modulus * torch.randn(rows, dim, dim, dtype=torch.float64, device="cpu") / dim**0.5
    shift = torch.randn(rows, dim, dtype=torch.float64, device="cpu")
    return matrix.to(dtype).to(device), shift.to(dtype).to(device)


def gmres_errors(name):
    from solvers.rules.gmres_triton import proposal_and_memory

    for rows, dim, restart, count in ((1, 1, 3, 6), (2, 3, 2, 8), (3, 20, 6, 16), (2, 40, 50, 8), (1, 700, 17, 6)):
        matrix, shift = affine_map(rows, dim, DTYPES[name])
        yield [rows, dim, restart], gmres_error(proposal_and_memory, GMRES(restart), matrix, shift, count)
    matrix, shift = affine_map(4, 10, DTYPES[name])
    shift[1, 3], shift[2] = math.nan, 0
    yield "odd rows", gmres_error(proposal_and_memory, GMRES(4), matrix, shift, 9)
    yield "all but cancelled", almost_cancelled(proposal_and_memory, DTYPES[name])
    memory, z, residual = directions(DTYPES[name])
    found = memory._replace(history=memory.history.clone(), least=torch.full((2, 1), 1e-20, dtype=z.dtype))
    found.least[1] = 1
    proposal_and_memory(found, 4, z, residual)
    assert not found.history[0, :4].any(), "directions that are rounding errors are forgotten"
    assert torch.equal(found.history[1, :4], memory.history[1, :4])


def directions(dtype):
    """A memory of four directions of two rows, and a point; both differences almost lie in the space searched."""
    basis = torch.linalg.qr(torch.randn(2, 50, 4, dtype=torch.float64))[0].mT
    near = [torch.randn(2, 1, 4, dtype=torch.float64) @ basis + 1e-4 * torch.randn(2, 1, 50) for _ in range(2)]
    residual, z = near[0][:, 0], torch.randn(2, 50, dtype=torch.float64)
    memory = GMRES().init(z)
    memory.history[:, :4] = torch.cat((torch.zeros_like(basis), basis), dim=2)
    memory.last.copy_(torch.stack((z + torch.randn_like(z), residual - near[1][:, 0]), dim=1))
    memory.least.fill_(1)
    return gmres.GMRESMemory(*(x.to(dtype) for x in memory[:3]), 4), z.to(dtype), residual.to(dtype)


def almost_cancelled(operation, dtype):
    """How far the new direction, and the residual left from all of them, are from orthogonal to the others."""
    memory, z, residual = directions(dtype)
    found, _, _ = operation(memory, 4, z, residual)
    basis, (step, new) = memory.history[:, :4, 50:].double(), memory.history[:, 4].double().split(50, dim=1)
    stride = torch.linalg.vector_norm(step, dim=1, keepdim=True)
    point = z.double() - step * (new * residual.double()).sum(1, keepdim=True)  # the older directions have no steps
    left = (found.double() - point) / stride
    left = left / torch.linalg.vector_norm(left, dim=1, keepdim=True)
    return float(max((basis @ x.unsqueeze(2)).abs().max() for x in (new, left)))


def norm_errors(name):
    from solvers.norms_triton import residual_and_norms

    dtype = DTYPES[name]

    def worst(image, z):
        residual, norms = residual_and_norms(image, z)
        assert torch.equal(residual.nan_to_num(), (image - z).nan_to_num())
        assert (residual.dtype, norms.dtype, norms.shape) == (dtype, torch.float64, (2, len(z)))
        exact = torch.tensor([[norm(row) for row in x.tolist()] for x in (image - z, image)], dtype=torch.float64)
        exact = exact.reshape(2, len(z))
        assert torch.equal(norms.isnan(), exact.isnan())
        assert torch.equal(norms.isinf(), exact.isinf())
        errors = (norms - exact).abs() / exact.clamp(min=5e-324)
        return float(errors[exact.isfinite()].max()) if exact.isfinite().any() else 0.0

    for rows, dim in ((0, 3), (3, 0), (1, 1), (4, 100), (2, 4096), (2, 4097), (1, 9500)):
        for value in VALUES[name] if dim in (1, 100, 9500) else (1.0,):
            image, z = (torch.randn(rows, dim, dtype=dtype) * value for _ in range(2))
            yield [rows, dim, value], worst(image, z)
    for dim in (5, 6000):
        odd = torch.randn(8, dim, dtype=dtype)
        odd[0, 1] = odd[1, -1] = odd[2, 0] = math.nan
        odd[1, 0] = odd[3, -2] = math.inf
        odd[4], odd[5] = -math.inf, 0
        odd[2], odd[6] = odd[2] * VALUES[name][1], odd[6] * VALUES[name][2]
        odd[7, ::3], odd[7, 1::3] = odd[7, ::3] * VALUES[name][1], odd[7, 1::3] * VALUES[name][2]
        yield ["odd rows", dim], worst(odd, torch.zeros_like(odd))
        yield ["rows apart", dim], worst(torch.randn(3, dim + 9, dtype=dtype)[:, :dim], odd[:1, :].expand(3, dim))
        yield ["columns apart", dim], worst(torch.randn(dim, 3, dtype=dtype).mT, torch.randn(3, dim, dtype=dtype))


def norm(row):
    return math.nan if any(map(math.isnan, row)) else math.hypot(*row)


GROUPS = {
    "steps": anderson_errors,
    "odd": odd_errors,
    "broyden": broyden_errors,
    "gmres": gmres_errors,
    "norms": norm_errors,
}


@pytest.mark.parametrize("group", GROUPS)
def test_kernels_find_what_pytorch_does(group):
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("here the kernels themselves are tested, below; not all interpreters know NumPy 2.5")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, __file__, group], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    errors = json.loads(run.stdout)
    assert errors["races"] == 0
    assert (errors["barriers"] > 0) == (group in ("steps", "odd", "gmres"))  # those with steps in place
    for name in DTYPES:
        bound = 1e-14 if group == "norms" else BOUNDS[name]
        assert len(errors[name]) >= 3
        assert not [(case, worst) for case, worst in errors[name] if not worst < bound]


class Accesses:
    """Counts places that a program loads and stores between two barriers, in whichever order: its threads, several of
    which may hold the same entry, are in step at barriers alone, which no result of the interpreter shows."""

    def __init__(self):
        self.loads, self.stores, self.races, self.barriers = [], [], 0, 0
        self.note("create_masked_load", lambda places, mask, *_: self.loads.append(places.data[mask.data]))
        self.note("create_masked_store", lambda places, _, mask, *rest: self.stores.append(places.data[mask.data]))
        self.note("create_barrier", self.barrier)
        self.note("set_grid_idx", self.part)  # the next program

    @staticmethod
    def note(name, call):
        from triton.runtime.interpreter import InterpreterBuilder

        original = getattr(InterpreterBuilder, name)

        def noted(builder, *arguments):
            call(*arguments)
            return original(builder, *arguments)

        setattr(InterpreterBuilder, name, noted)

    def barrier(self):
        self.barriers += 1
        self.part()

    def part(self, *_):
        if self.loads and self.stores:
            self.races += int(np.isin(np.concatenate(self.stores), np.concatenate(self.loads)).sum())
        self.loads, self.stores = [], []


class Compiled:
    """In the place of a kernel: what it is launched with is compiled for a card, not run."""

    def __init__(self, kernel, capability, met):
        self.kernel, self.capability, self.met = kernel, capability, met

    def __getitem__(self, grid):
        assert all(isinstance(count, int) for count in grid)
        return self.launch

    def launch(self, *arguments, num_warps):
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        kinds = {torch.float32: "*fp32", torch.float64: "*fp64"}
        signature, constants, known = {}, {}, {}
        for place, (parameter, argument) in enumerate(zip(self.kernel.params, arguments, strict=True)):
            special, number = not parameter.do_not_specialize, argument
            if isinstance(argument, torch.Tensor):
                signature[parameter.name], number = kinds[argument.dtype], argument.data_ptr()
            elif parameter.is_constexpr or (special and argument == 1):
                signature[parameter.name], constants[parameter.name] = "constexpr", argument
                continue
            else:
                signature[parameter.name] = "i32"
            if special and number % 16 == 0:
                known[(place,)] = [["tt.divisibility", 16]]
        source, target = ASTSource(self.kernel, signature, constants, known), GPUTarget("cuda", self.capability, 32)
        compiled = triton.compile(source, target=target, options={"num_warps": num_warps})
        assert compiled.asm["cubin"]
        assert "sqrt.approx.ftz" not in compiled.asm["ptx"], "subnormal numbers have roots"
        self.met.add(self.kernel.__name__)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_cards(capability, name, monkeypatch):
    pytest.importorskip("triton")
    from solvers import norms_triton
    from solvers.rules import anderson_triton, broyden_triton, gmres_triton

    launched = {anderson_triton: {"_write_differences", "_weights", "_sums", "_solve", "_mixed"}}
    launched[broyden_triton], launched[gmres_triton] = {"_broyden_step"}, {"_gmres_step"}
    launched[norms_triton], met = {"_measure", "_add_up"}, set()
    for module, kernels in launched.items():
        for kernel in kernels:
            monkeypatch.setattr(module, kernel, Compiled(getattr(module, kernel), capability, met))
    for dim, memory, damping in ((1, 6, 1.0), (3, 6, 1.0), (6000, 16, 0.7), (1024, 6, 1.0)):
        points = [(torch.zeros(2, dim, dtype=DTYPES[name], device="cpu"),) * 2] * 4
        steps(fused(), Anderson(memory, period=2, damping=damping), points[0][0], points)
        norms_triton.residual_and_norms(*points[0])
        broyden_steps(broyden_triton.proposal, Broyden(2 * memory), points)
        pairs = points[0][0].new_empty(2, min(3 * memory, dim), 2 * dim)
        gmres_triton.proposal_and_memory(GMRES().init(points[0][0])._replace(history=pairs), 0, *points[0])
    assert met == set().union(*launched.values())


def test_kernels_are_chosen_on_cards_alone(device):
    z = torch.zeros(2, 3, device=device)
    assert not fusible(z), "a launch takes longer"
    assert fusible(torch.empty(1, LARGE, device=device)) == (device == "cuda")
    with replayed():
        assert fusible(z) == (device == "cuda")
        chosen = anderson._operations(z, 16, 4)
        assert (chosen is not anderson.PYTORCH) == (device == "cuda")
        for rows, dim, memory, fits in (
            (1, 9, 32, True),
            (1, 9, 33, False),
            (9, 20000, 20, False),
            (9, 20000, 2, True),
            (200, 20000, 20, True),
        ):
            state = torch.empty(rows, dim, device=device)
            assert (broyden._operation(Broyden(memory).init(state), state) is not broyden.proposal) == (
                device == "cuda" and fits
            )
        assert not fusible(z.half())
        assert not fusible(z[:, :0])
        assert anderson._operations(z, 17, 4) is anderson._operations(z, 16, 5) is anderson.PYTORCH
        with FakeTensorMode():  # has the shapes of a card's, and no values
            assert not fusible(torch.zeros(2, 3, device="cuda"))


def test_without_a_compiler_it_is_said_and_pytorch_used(monkeypatch):
    pytest.importorskip("triton")

    def broken(image, z):
        raise RuntimeError("no gcc")

    monkeypatch.setattr("solvers.norms_triton.residual_and_norms", broken)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: torch.empty(shape, device="cpu"))
    for capability, warned in (((9, 0), True), ((6, 1), False)):  # Triton knows no card so old
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert not fusing._tried(0)
        assert ["RuntimeError: no gcc" in str(warning.message) for warning in caught] == [True] * warned


def test_no_trial_is_made_within_a_capture(monkeypatch):
    monkeypatch.setattr(fusing, "_compiling", {})
    monkeypatch.setattr(fusing, "_tried", lambda device: True)
    found = []
    for capturing in (True, False, True):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda capturing=capturing: capturing)
        found.append(fusing._compiles(0))
    assert found == [False, True, True]


def test_a_trial_that_runs_out_of_memory_says_nothing_of_triton(monkeypatch):
    pytest.importorskip("triton")

    def full(image, z):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("solvers.norms_triton.residual_and_norms", full)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: torch.empty(shape, device="cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(torch.OutOfMemoryError):
        fusing._tried(0)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(("rows", "dim", "memory", "period", "damping"), SHAPES)
def test_steps_on_every_device(device, rows, dim, memory, period, damping, name):
    """With what is chosen there, beside PyTorch's operations in double precision."""
    solver = Anderson(memory=memory, period=period, damping=damping, ridge=1e-2)
    points = random_points(2 * min(memory, dim) + 5, rows, dim, DTYPES[name])
    points = [(image.to(device), residual.to(device)) for image, residual in points]
    z = points[0][0]
    with replayed():
        chosen = anderson._operations(z, min(memory, dim), period)
    found, _ = steps(chosen, solver, z, points)
    wide = [(image.double(), residual.double()) for image, residual in points]
    wanted, _ = steps(anderson.PYTORCH, solver, z.double(), wide)
    for one, other in zip(found, wanted, strict=True):
        scale = other.abs().amax(1, keepdim=True).clamp(min=1)
        assert float(((one.double() - other) / scale).abs().max()) < BOUNDS[name]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(
    ("rows", "dim", "memory"), [(1, 1, 1), (5, 64, 6), (2, 1000, 12), (3, 3000, 32), (130, 20000, 3)]
)
def test_steps_of_broyden_on_every_device(device, rows, dim, memory, name):
    """With what is chosen there, beside PyTorch's operations in double precision."""
    points = random_points(memory + 4, rows, dim, DTYPES[name])
    points = [(z.to(device), (0.8**count * r).to(device)) for count, (z, r) in enumerate(points)]
    with replayed():
        chosen = broyden._operation(Broyden(memory).init(points[0][0]), points[0][0])
    assert broyden_error(chosen, Broyden(memory), points) < BOUNDS[name]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(
    ("rows", "dim", "restart", "count", "modulus"),
    [(1, 1, 3, 7, 0.5), (5, 64, 6, 7, 0.5), (130, 40, 12, 7, 0.5), (2, 500, 50, 38, 0.9), (140, 100, 50, 38, 0.6)],
)
def test_steps_of_gmres_on_every_device(device, rows, dim, restart, count, modulus, name):
    """With what is chosen there, beside PyTorch's operations in double precision."""
    matrix, shift = affine_map(rows, dim, DTYPES[name], device, modulus)
    solver = GMRES(restart)
    with replayed():
        chosen = gmres._operation(solver.init(shift), shift)
    assert gmres_error(chosen, solver, matrix, shift, count) < BOUNDS[name]
    first, *others = (
        gmres_steps(chosen, solver, matrix, shift, count)[-1] for _ in range(2 if device == "cpu" else 20)
    )
    assert all(torch.equal(first, other) for other in others), "threads that are not in step"


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("dim", [1, 3, 64, 3000, 20000])
def test_norms_on_every_device(device, dim, name):
    dtype = DTYPES[name]
    large, small = (1e30, 1e-30) if dtype == torch.float32 else (1e200, 1e-200)
    size = torch.tensor([1, large, small, 0, 1, 1], dtype=dtype, device="cpu")[:, None]
    image, z = (torch.randn(6, dim, device="cpu").to(dtype) * size for _ in range(2))
    image[4, dim // 2], image[5, 0] = torch.nan, torch.inf
    with replayed():
        residual, norms = Euclidean().difference(image.to(device), z.to(device), 0.0, 0.0, robust=True)
    assert torch.equal(residual.cpu().nan_to_num(), (image - z).nan_to_num())
    for found, exact in zip(norms.cpu(), (image - z, image), strict=True):
        wanted = torch.tensor([math.hypot(*row) for row in exact.tolist()], dtype=torch.float64, device="cpu")
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0.0, equal_nan=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    accesses = Accesses()
    errors = {name: list(GROUPS[sys.argv[1]](name)) for name in DTYPES}
    accesses.part()
    print(json.dumps({**errors, "races": accesses.races, "barriers": accesses.barriers}))
