"""A recurrent cell over a sequence, at all times at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from implicit import record
from implicit.differentiation import differentiable_solve
from implicit.functorch import transformed
from solvers import Settings, Solution, State
from solvers.problem import prepare
from solvers.state import Layout

from .chain import Chain, ChainGradient, ChainNewton
from .newton import Newton
from .repeats import Repeats
from .sweeps import PlainSweeps


@dataclass(frozen=True, repr=False)
class Unrolled(Solution[Any]):
    """The result of `unroll`: `value` holds the states after each step, (batch, time, …), with their gradient."""

    growth: Callable[[], Tensor] = field(repr=False, kw_only=True)

    def lyapunov_exponent(self) -> Tensor:
        """(batch,) mean growth of a disturbance, `log ‖J_L ⋯ J_1 v‖ / L`, in nepers per step.

        Below 0 the recurrence forgets, and few sweeps suffice; above 0 it is chaotic and needs as many sweeps as steps.
        Source: Gonzalez et al., "Predictability enables parallelization of nonlinear state space models", NeurIPS 2025.
        """
        return self.growth()


def unroll(
    cell: Callable[[Tensor, Any], Any],
    x: Tensor,
    h0: State,
    *,
    rtol: float = 1e-5,
    newton: Newton = Newton(),
    max_sweeps: int | None = None,
) -> Unrolled:
    """`h_t = cell(x_t, h_{t−1})` for all t, by sweeps over the sequence that evaluate all steps at once.

    Value and gradient are those of the loop, to the tolerance. The gradient comes from the implicit function theorem,
    with an adjoint recurrence that is also solved by sweeps, in memory that does not grow with their number. Prefer it
    for long sequences and narrow states, where a step of the loop leaves the machine idle: a sweep evaluates the cell
    and its Jacobian (`Newton`) at all times. If the recurrence is chaotic the loop is faster, and rounding makes the
    results differ.

        solution = unroll(nn.GRUCell(8, 16), x, torch.zeros(len(x), 16))
        solution.value, solution.steps, solution.lyapunov_exponent()

    Args:
        cell: `(x_t, h) → h` on batches, as `torch.nn.GRUCell`; deterministic, its rows independent.
        x: (batch, time, …), at least one step.
        h0: (batch, …), or a tuple of such, as for `torch.nn.LSTMCell`.
        rtol: of the whole trajectory of a row.
        newton: how a sweep follows the Jacobians.
        max_sweeps: None: one more than there are steps, which suffices.

    Raises:
        TypeError, ValueError: an argument does not have that form.
    """
    if not isinstance(x, Tensor) or x.ndim < 2 or not x.shape[1]:
        raise ValueError(f"x is {_shape(x)}: pass a tensor (batch, time, …) with at least one step")
    if not isinstance(newton, Newton):
        raise TypeError(f"newton={newton!r}: pass Newton(), or Newton(diagonal=True, damping=0.1)")
    layout = Layout(h0)
    if layout.batch != len(x):
        raise ValueError(f"h0 has {layout.batch} rows, but x has {len(x)}: pass as many of each")
    length = x.shape[1]
    if max_sweeps is None:
        max_sweeps = length + 1
    elif not isinstance(max_sweeps, int) or isinstance(max_sweeps, bool) or max_sweeps < 1:
        raise ValueError(f"max_sweeps={max_sweeps!r} must be an integer of at least 1")
    if transformed():
        raise RuntimeError(
            "unroll has no rule for torch.func's transforms or forward-mode differentiation: differentiate with "
            "torch.autograd, or use the loop"
        )
    first = layout.flatten(h0)
    repeats = Repeats(cell, x)
    chain = Chain(cell, layout, x.detach(), first.detach(), repeats)
    gradient = ChainGradient(PlainSweeps(exact_after=length), min(rtol, 1e-6), length + 1, chain=chain, newton=newton)
    sweeps = ChainNewton(chain, newton, exact_after=length)
    settings = Settings(sweeps, rtol, 0.0, max_steps=max_sweeps, compact=False)
    with repeats.call(), record() as log:
        start = chain.first[:, None].expand(-1, length, -1).contiguous()
        problem = prepare(partial(_swept, cell, chain), start, (x, first))
        (value,) = differentiable_solve("unroll", cell, problem, start, gradient, settings)
    found = log.forward[-1].solution
    growth = partial(chain.growth, value.detach())
    return Unrolled(**{**vars(replace(found, value=chain.structured(value))), "growth": growth})


def _swept(cell: Any, chain: Chain, states: Tensor, x: Tensor, first: Tensor) -> Tensor:
    return chain.swept(states, x, first)


def _shape(x: Any) -> str:
    return f"of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
