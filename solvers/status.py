"""How the solve of a row may end, and what to try then."""

from __future__ import annotations

from enum import IntEnum

from .precision import TF32, resolved


class Status(IntEnum):
    """How the solve of one row ended; `message` gives the cause and the remedy."""

    CONVERGED = 0
    MAX_STEPS = 1
    STALLED = 2
    DIVERGED = 3
    NON_FINITE = 4

    @property
    def message(self) -> str:
        """What happened, and what to try."""
        return _MESSAGES[self]

    @property
    def message_of_backward(self) -> str:
        """Likewise, where the equation is the linear one of a backward pass."""
        return _BACKWARD.get(self, self.message)

    @property
    def units(self) -> float:
        """Rounding units of f within which a residual is as small as the dtype allows."""
        return {Status.STALLED: 4.0, Status.MAX_STEPS: 1.0}.get(self, 0.0)


_MESSAGES = {
    Status.CONVERGED: "the residual met the tolerance",
    Status.MAX_STEPS: "the steps ran out: raise max_steps, loosen rtol, or try another solver",
    Status.STALLED: (
        "the residual stopped falling: rtol may lie below what the dtype can resolve (loosen it or use float64), "
        "or f cycles, wanders or has no fixed point (make it contract, or take shorter steps, as with "
        "Anderson(damping=0.5)), or the solver is at a local minimum of the residual (try another solver)"
    ),
    Status.DIVERGED: (
        "the iterates grew out of bounds: f may expand or have no fixed point (make it contract, by smaller weights)"
    ),
    Status.NON_FINITE: (
        "f returned NaN or Inf: check the inputs of these rows and the weights, or use a wider dtype. In a backward "
        "pass such a row can make the gradient of every weight NaN, even if the loss leaves it out"
    ),
}
_BACKWARD = {
    Status.STALLED: (
        "the residual stopped falling: u = Jᵀu + g is too ill conditioned for this solver (try another solver, and a "
        "larger max_steps), or nearly singular (make the cell contract, as with jacobian_penalty in the loss)"
    ),
    Status.DIVERGED: "the iterates grew out of bounds: J is too large for this solver (try another solver)",
    Status.NON_FINITE: (
        "a product with the Jacobian returned NaN or Inf: check the gradient that comes in, and roots, norms and "
        "quotients at 0 in the cell. Such a row can make the gradient of every weight NaN"
    ),
}
COUPLED = (
    "the rows depend on each other, so that none could be solved alone: pass the batch as one row (z0[None] and "
    "x[None]), or replace what mixes rows, such as batch statistics"
)
"""In place of a status's message."""


def rtol_at_floor(residual: float, rounding: float) -> float:
    """A tolerance that rows can meet which have come to this relative residual, where f has this rounding unit."""
    return max(2 * residual, resolved(residual, rounding) / 2)


def at_floor(residual: float, rounding: float) -> str:
    """What to try where the dtype allows no smaller relative residual than this."""
    cause = (
        "TensorFloat-32 allows, in which this GPU computes"
        if resolved(residual, rounding) == TF32
        else "the dtype of f, or autocast, allows"
    )
    return f"the residual is as small as {cause}: {past_floor(residual, rounding)}"


def past_floor(residual: float, rounding: float) -> str:
    """How to solve such rows."""
    way = "use a wider dtype"
    if resolved(residual, rounding) == TF32:
        way = (
            'turn it off: torch.backends.cudnn.allow_tf32 = False, torch.set_float32_matmul_precision("highest"), and '
            'no fp32_precision = "tf32" in torch.backends'
        )
    return f"set rtol to {rtol_at_floor(residual, rounding):.0e} or more, or {way}"
