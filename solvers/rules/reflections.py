"""Alternating reflections at σ and at a linear operator: the inner steps of a Peaceman–Rachford splitting."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..problem import Problem
from .rule import Solver

Activation = Callable[[Tensor], Tensor]

_SHARE = 0.1  # share of rtol up to which rounding is accepted; beyond it, inner steps are taken in double precision


class Parts(NamedTuple):
    """The parts of `z ↦ σ(W z + c)`, as returned by `split(*args)` of such a map."""

    weight: Tensor  # W, (dim, dim), of the flat state
    shift: Tensor  # c, (batch, …) like z
    activation: Activation  # σ, entry by entry, nondecreasing and 1-Lipschitz
    margin: float  # m > 0: the symmetric part of I − W is at least m
    formed: dict[Any, Any] | None = None  # where K is kept while its weight is unchanged; None: nowhere

    @property
    def rectified(self) -> bool:
        """Whether σ is the ReLU, a projection and so a proximal operator at every step size."""
        return self.activation in (torch.relu, F.relu) or isinstance(self.activation, nn.ReLU)


class Cayley(NamedTuple):
    """W and `K = 2 (I + α(I − W))⁻¹ − I`, transposed, so that they multiply rows from the right."""

    weight: Tensor
    reflection: Tensor
    alpha: float

    @classmethod
    def of(cls, parts: Parts, alpha: float | None, rtol: float) -> Cayley:
        """The matrices of a map, reused if nothing has changed since they were formed."""
        weight = parts.weight
        if parts.formed is None or weight.is_inference():  # inference tensors carry no version
            return cls.form(parts, alpha, rtol)
        known, version, least, found = parts.formed.get(alpha, (None, 0, 0.0, None))
        if known is None or known() is not weight or version != weight._version or rtol < least:
            found = cls.form(parts, alpha, rtol)
            parts.formed[alpha] = weakref.ref(weight), weight._version, rtol, found
        return found

    @classmethod
    def form(cls, parts: Parts, alpha: float | None, rtol: float) -> Cayley:
        weight = parts.weight.detach().to(torch.promote_types(parts.weight.dtype, torch.float32))
        identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        operator = identity - weight
        total = float(torch.linalg.vector_norm(operator))
        # a lower bound on the largest singular value, and not far below it
        largest = float(torch.linalg.vector_norm(operator @ operator.mT)) / max(total, parts.margin)
        spread = max(total / len(weight) ** 0.5, parts.margin)
        if alpha is None:
            alpha = parts.margin**-0.25 * spread**-0.75 if parts.rectified else 1.0
        elif alpha != 1 and not parts.rectified:
            raise ValueError(f"PeacemanRachford: step_size={alpha!r} needs a cell with the ReLU: leave it out")
        if torch.finfo(weight.dtype).eps * largest > _SHARE * rtol:
            weight, identity, operator = weight.double(), identity.double(), identity.double() - weight.double()
        # weights that have diverged show in the residuals and need no exception
        inverse, _ = torch.linalg.inv_ex(torch.add(identity, operator, alpha=alpha))
        return cls(weight.mT, inverse.mul_(2).sub_(identity).mT, alpha)

    def transposed(self) -> Cayley:
        return Cayley(self.weight.mT, self.reflection.mT, self.alpha)

    def offset(self, shift: Tensor) -> Tensor:
        """`α (K + I) c`."""
        return torch.addmm(shift, shift, self.reflection).mul_(self.alpha)


class _Memory(NamedTuple):
    reflected: Tensor  # (rows, dim): u
    offset: Tensor  # (rows, dim): α (K + I) c
    shift: Tensor | None = None  # (rows, dim): c, where it is needed
    sign: Tensor | None = None  # (rows, dim): 2D − 1, where σ has the slope D


@dataclass(frozen=True, eq=False)
class _Bound(Solver):
    """Inner steps for one problem, which may work in a wider dtype than that of the iterates."""

    problem: Problem | None  # where inner steps are counted
    cayley: Cayley
    inner_steps: int

    fixed_cost: ClassVar[bool] = False

    def bind(self, problem: Problem, rtol: float, atol: float) -> Solver:
        return replace(self, problem=problem)

    def _after_inner_steps(self, memory: _Memory) -> tuple[Tensor, _Memory]:
        """The iterate and the memory after `inner_steps`."""
        u, offset = memory.reflected, memory.offset
        for _ in range(self.inner_steps):
            u = torch.addmm(offset, w := self._reflect(u, memory), self.cayley.reflection)
        if self.problem is not None:
            self.problem.spent = np.full(len(u), self.inner_steps)
        return torch.add(w, u).mul_(0.5), memory._replace(reflected=u)

    @abstractmethod
    def _reflect(self, u: Tensor, memory: _Memory) -> Tensor:
        """`2σ(u) − u`."""


@dataclass(frozen=True, eq=False)
class Forward(_Bound):
    parts: Parts

    def init(self, z: Tensor) -> _Memory:
        weight, _, alpha = self.cayley
        z, shift = z.to(weight.dtype), self.parts.shift.to(weight.dtype)
        return _Memory(torch.lerp(z, torch.addmm(shift, z, weight), alpha), self.cayley.offset(shift))

    def step(self, memory: _Memory, z: Tensor, fz: Tensor, residual: Tensor) -> tuple[Tensor, _Memory]:
        z_new, memory = self._after_inner_steps(memory)
        return z_new.to(z.dtype), memory

    def _reflect(self, u: Tensor, memory: _Memory) -> Tensor:
        return u.abs() if self.parts.rectified else self.parts.activation(u).mul(2).sub_(u)


@dataclass(frozen=True, eq=False)
class Adjoint(_Bound):
    """Solve `u = Wᵀ D u + g` via `q = D(Wᵀ q + g)`, which has the forward equation's form, with the slope D for σ."""

    slope: Tensor

    def init(self, z: Tensor) -> _Memory:
        shift = z.to(self.cayley.weight.dtype)
        return _Memory(self.cayley.alpha * shift, self.cayley.offset(shift), shift, 2 * self.slope.to(shift.dtype) - 1)

    def step(self, memory: _Memory, z: Tensor, fz: Tensor, residual: Tensor) -> tuple[Tensor, _Memory]:
        q, memory = self._after_inner_steps(memory)
        assert memory.shift is not None
        return torch.addmm(memory.shift, q, self.cayley.weight).to(z.dtype), memory

    def _reflect(self, u: Tensor, memory: _Memory) -> Tensor:
        return u if memory.sign is None else u * memory.sign
