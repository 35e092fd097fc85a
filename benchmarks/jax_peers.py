"""The peers in JAX, stepped one by one: the same problems, evaluations and Jacobian products counted inside f."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from .counting import Watch
from .peers import LIMIT, installed
from .problem import Affine, Problem, TanhLayer

Step = Callable[[Any, Any, Any], tuple[Any, Any]]
"""(z, state, shift) → the next z and state."""
Begin = Callable[[Any, Any], Any]
"""(z0, shift) → the first state."""


class JaxMap:
    """A problem's map `f(z, shift)` in JAX, of one row; the watch gets every evaluation and Jacobian product."""

    def __init__(self, layer: Affine | TanhLayer) -> None:
        self.jax = importlib.import_module("jax")
        self.jax.config.update("jax_enable_x64", True)
        tanh = isinstance(layer, TanhLayer)
        matrix = layer.weight if isinstance(layer, TanhLayer) else layer.matrix
        self.shifts = layer.inputs if isinstance(layer, TanhLayer) else layer.shift
        weight, numpy = self.jax.numpy.asarray(matrix.numpy()), self.jax.numpy
        self.watch, self.products = Watch(1, 0.0, LIMIT), 0

        def plain(z: Any, shift: Any) -> Any:
            image = weight @ z + shift
            return numpy.tanh(image) if tanh else image

        def evaluated(z: Any, shift: Any) -> Any:
            image = plain(z, shift)
            self.jax.debug.callback(self._note, numpy.linalg.norm(image - z), numpy.linalg.norm(image))
            return image

        def differentiated(primals: Any, tangents: Any) -> Any:
            image, product = evaluated(*primals), self.jax.jvp(plain, primals, tangents)[1]
            # the argument is not used, but makes for one call per product in a batch of them
            self.jax.debug.callback(self._product, product[0])
            return image, product

        self.f = self.jax.custom_jvp(evaluated)
        self.f.defjvp(differentiated)

    def evaluations(self, problem: Problem, rtol: float, begin: Begin, step: Step) -> float:
        """Mean evaluations over the rows."""
        found = []
        for z0, shift in zip(problem.z0.numpy(), self.shifts.numpy()):
            z = self.jax.numpy.asarray(z0)
            self.watch = Watch(1, rtol, LIMIT)
            state = begin(z, shift)
            self.settle()
            while not self.watch.done:
                z, state = step(z, state, shift)
                self.settle()
            found.append(self.watch.evaluations)
        return float(np.mean(found))

    def settle(self) -> None:
        """Wait for all callbacks; a step's products count after its evaluation, in whatever order they arrived."""
        self.jax.effects_barrier()
        self.watch.calls += self.products
        self.products = 0

    def _note(self, residual: Any, scale: Any) -> None:
        self.watch.note([float(residual)], [float(scale)])

    def _product(self, _: Any) -> None:
        self.products += 1


def with_jaxopt(method: str, problem: Problem, rtol: float) -> float | None:
    """Evaluations by one of jaxopt's fixed-point solvers; None for a map without arrays."""
    if not isinstance(problem.f, (Affine, TanhLayer)):
        return None
    bridge, jaxopt = JaxMap(problem.f), installed("jaxopt")
    solver = getattr(jaxopt, method)(bridge.f, maxiter=LIMIT, tol=0.0)
    update = bridge.jax.jit(solver.update)

    def begin(z: Any, shift: Any) -> Any:
        state = solver.init_state(z, shift)
        bridge.settle()
        bridge.watch = Watch(1, rtol, LIMIT)  # evaluations so far only serve to find types
        return state

    return bridge.evaluations(problem, rtol, begin, update)


def with_optimistix(method: str, problem: Problem, rtol: float) -> float | None:
    """The same by optimistix: a fixed-point solver, or a root finder on `f(z) − z`, as in its `fixed_point`."""
    if not isinstance(problem.f, (Affine, TanhLayer)):
        return None
    bridge, optimistix = JaxMap(problem.f), importlib.import_module("optimistix")
    solver = getattr(optimistix, method)(rtol=rtol, atol=0.0)
    root = not isinstance(solver, optimistix.AbstractFixedPointSolver)
    tags: frozenset[object] = frozenset()

    def fn(z: Any, shift: Any) -> Any:
        image = bridge.f(z, shift)
        return (image - z if root else image), None

    def begin(z: Any, shift: Any) -> Any:
        return solver.init(fn, z, shift, {}, bridge.jax.eval_shape(fn, z, shift)[0], None, tags)

    def step(z: Any, state: Any, shift: Any) -> tuple[Any, Any]:
        return solver.step(fn, z, shift, {}, state, tags)[:2]

    filtered = importlib.import_module("equinox").filter_jit
    return bridge.evaluations(problem, rtol, filtered(begin), filtered(step))
