"""What a first-order method is: its steps, and the conditions on its coefficients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from .coefficients import Coefficient, Coefficients, Learned, Values, check, coefficient, domains
from .construction import Construction
from .domains import POSITIVE

Streams = tuple[Tensor, ...]
"""What a method carries from step to step."""
Point = Tensor | tuple[Tensor, ...]
"""Where a layer's transform is evaluated; a pair of transforms takes a pair of tensors."""
Self = TypeVar("Self", bound="Method")


@dataclass(frozen=True)
class Method(Construction, ABC):
    """A rule `streams_k → streams_{k+1}`, linear in the streams and in the transform's output `T_k(y_k)`.

    Subclass it as a frozen dataclass whose fields are coefficients, made by `coefficient(default, domain)`, with
    `start`, `query` and `advance`. Every reading (unrolled, proximal, equilibrium, parallel) uses only these three.
    They may only add and scale, since linearity makes the evaluation in parallel over depth exact. `c` holds the
    coefficients of the layer by name.
    """

    step: Coefficient = coefficient(1.0, POSITIVE, keyword=True)
    """Step size s, a factor on the transform's output. Usually left to the transform."""

    has_equilibrium: ClassVar[bool] = True
    """Whether every step has the same number of streams, so that it can be tied."""
    consistent: ClassVar[bool] = True
    """Whether the output stays where it started when every transform is 0 (Σ a = 1)."""

    def __post_init__(self) -> None:
        for name in domains(self):
            given = getattr(self, name)
            given = given.initial if isinstance(given, Learned) else given
            if not callable(given):  # a rule is checked once the number of layers is known
                check(self, name, given, 0)

    @abstractmethod
    def start(self, z0: Tensor) -> Streams:
        """The streams before the first step; the first of them is the output."""

    @abstractmethod
    def query(self, streams: Streams, c: Values) -> Point:
        """`y_k`, the point at which step k evaluates its transform."""

    @abstractmethod
    def advance(self, streams: Streams, y: Any, t: Any, c: Values) -> Streams:
        """The streams after a step, from `y = query(streams, c)` and `t = s·T_k(y)`."""

    def move(self, streams: Streams, transform: nn.Module, c: Values, inputs: tuple[Tensor, ...]) -> Streams:
        """One step, transform included."""
        y = self.query(streams, c)
        return self.advance(streams, y, scaled(transform(y, *inputs), c.step), c)

    def coefficients(self, depth: int) -> Coefficients:
        """The coefficients for `depth` layers; `ValueError` names the condition that one of them breaks."""
        with torch.no_grad(), torch.device("cpu"):  # whatever device the network is made on, such as "meta"
            trial = Coefficients(self, depth)
            for c in [trial.at(0)] if self.stationary else map(trial.at, range(depth)):
                self._check(c)
        return Coefficients(self, depth)

    @property
    def stationary(self) -> bool:
        """Whether every step has the same, fixed coefficients, as an equilibrium needs."""
        return not self.changing()

    def changing(self) -> list[str]:
        """The coefficients that are scheduled or learned, by name."""
        return [name for name in domains(self) if not isinstance(getattr(self, name), (int, float))]

    def learned(self: Self) -> Self:
        """This method with all coefficients but the step size learned, starting from their present values."""
        changed = {}
        for name in domains(self):
            value = getattr(self, name)
            if name != "step" and not isinstance(value, Learned):
                changed[name] = Learned(value)
        return replace(self, **changed)

    def frozen(self: Self, k: int = 3) -> Self:
        """This method with the coefficients of layer k in every layer, as an equilibrium needs them."""
        c = self.coefficients(k + 1).at(k)
        return replace(self, **{name: float(getattr(c, name)) for name in self.changing()})

    def _check(self, c: Values) -> None:
        """Check the linear part alone: it must preserve constants, and its powers must stay bounded."""
        if not self.has_equilibrium:
            return  # the number of streams grows: the domains of the coefficients must suffice
        streams = self.start(torch.ones((), dtype=torch.float64, device="cpu"))
        if self.consistent and not torch.isclose(self._alone(streams, c)[0], streams[0]):
            raise ValueError(f"{self}: with T = 0 a constant does not stay constant (consistency Σ a = 1)")
        units = torch.eye(len(streams), dtype=torch.float64, device="cpu").unbind()
        matrix = torch.stack([torch.stack(self._alone(tuple(unit), c)) for unit in units], dim=1)
        half = torch.linalg.matrix_power(matrix, 2**19)
        if not torch.linalg.norm(half @ half) <= 1.5 * max(1.0, float(torch.linalg.norm(half))):
            raise ValueError(
                f"{self}: with T = 0 its steps grow without bound (root condition: roots within the unit circle, "
                "those on it simple)"
            )

    def _alone(self, streams: Streams, c: Values) -> Streams:
        y = self.query(streams, c)
        return self.advance(streams, y, scaled(y, 0.0), c)


def scaled(t: Any, factor: Any) -> Any:
    """`factor·t`, for one tensor or several."""
    if isinstance(t, tuple):
        return tuple(scaled(part, factor) for part in t)
    return t if isinstance(factor, (int, float)) and factor == 1 else factor * t
