"""One evaluation of a network in parallel over its depth, after a number of sweeps or to a tolerance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from implicit import ImplicitGradient, fixed_point, record
from implicit.functorch import transformed
from solvers import Picard, Solution, Solver

from ..methods.base import scaled
from ..optdnn import OptDNN
from .gather import unread
from .guesses import astray, finite, known, size
from .newton import Newton
from .repeats import Repeats
from .stack import evaluated
from .sweeps import NewtonSweep, PlainSweeps, Sweep
from .trajectory import parts, recursion


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and how."""

    net: OptDNN
    z0: Tensor
    inputs: tuple[Tensor, ...]
    repeats: Repeats
    newton: Newton | None
    batched: bool
    """Whether all transforms are evaluated as one."""

    def after(self, sweeps: int) -> Tensor:
        """`z_L` after this number of sweeps."""
        found = self._swept(sweeps) if self.batched or self.newton else None
        output, gone = found or self._one_by_one(sweeps)
        if sweeps == len(self.net.transforms) and output.requires_grad and known(gone):
            with self.repeats.same():  # values recover from guesses that went astray, gradients through these do not
                return self.net(self.z0, *self.inputs)
        return output

    def to_tolerance(self, rtol: float, solver: Solver, max_sweeps: int | None) -> Solution[Any]:
        """The outputs of all layers as a fixed point, (batch, L, …), and `z_L` from them."""
        if transformed():
            raise RuntimeError(
                "parallel_evaluate(rtol=…) has no rule for torch.func's transforms or forward-mode differentiation: "
                "pass sweeps=, or differentiate with torch.autograd"
            )
        depth, sweep = len(self.net.transforms), self._sweep()

        def swap(outputs: Any) -> Any:
            swapped = tuple(part.movedim(0, 1) for part in parts(outputs))
            return swapped if isinstance(outputs, tuple) else swapped[0]

        def swept(net: OptDNN, outputs: Any) -> Any:  # warnings are issued once per network
            return swap(sweep(finite(swap(outputs))))

        # before `depth` sweeps the residual need not fall
        exact = PlainSweeps(exact_after=depth)
        if solver == Picard():
            solver = exact
        nothing = scaled(sweep.trajectory.points(self.z0.detach(), None), 0.0)
        with record() as log:
            outputs = fixed_point(
                partial(swept, self.net),
                swap(nothing),
                solver=solver,
                gradient=ImplicitGradient(exact, rtol=min(rtol, 1e-6), max_steps=depth + 1),
                rtol=rtol,
                atol=0.0,
                max_steps=depth + 1 if max_sweeps is None else max_sweeps,
            )
        self.repeats.warn_of_graphs()
        value = sweep.trajectory.last(self.z0, swap(outputs))
        return replace(log.forward[-1].solution, budget=exact.budget, value=value)

    def _sweep(self) -> Sweep:
        if self.newton is None:
            return Sweep(self.net, self.z0, self.inputs, repeats=self.repeats, batched=self.batched)
        return NewtonSweep(self.net, self.z0, self.inputs, self.newton, repeats=self.repeats, batched=self.batched)

    def _swept(self, sweeps: int) -> tuple[Tensor, Tensor | bool] | None:
        """The output, and whether guesses went astray; None if one overflowed and spoilt layers before it.

        Nothing is read from the device before the end. Where nothing can be read at all, NaN replaces spoilt outputs.
        """
        sweep = self._sweep()
        outputs, sizes = None, []
        for _ in range(sweeps):
            outputs = sweep(outputs)
            sizes.append(size(parts(outputs)))
        last = sweep.trajectory.last(self.z0, outputs)
        gone = astray(sizes)
        if self.newton:  # such a sweep discards what overflowed
            return last, gone
        kept = torch.stack(sizes).isfinite().all()
        if unread(kept):
            return torch.where(kept, last, torch.nan), gone
        whole, told = torch.stack((kept, gone)).tolist()
        return (last, told) if whole else None

    def _one_by_one(self, sweeps: int) -> tuple[Tensor, Tensor]:
        """The same, one transform after the other."""
        method, transforms = self.net.method, self.net.transforms
        coefficients = [self.net.coefficients.at(k) for k in range(len(transforms))]
        nothing = scaled(method.query(method.start(self.z0.detach()), coefficients[0]), 0.0)
        outputs, sizes = [nothing] * len(transforms), []
        for _ in range(sweeps):
            points, _ = recursion(method, self.z0, outputs, coefficients)
            with self.repeats.same():
                outputs = [
                    scaled(evaluated(transform, y, self.inputs), c.step)
                    for transform, y, c in zip(transforms, points, coefficients, strict=True)
                ]
            if sweeps == len(outputs):  # needed only then
                sizes.append(size([part for output in outputs for part in parts(output)]))
        return recursion(method, self.z0, outputs, coefficients)[1], astray(sizes)
