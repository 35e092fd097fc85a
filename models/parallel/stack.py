"""Modules of one structure, evaluated as one: a batched computation instead of a loop over the layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from implicit import fixed_point
from implicit.functorch import innermost, only_mapped, version
from implicit.graph import saved_through_hooks
from implicit.pure import Known, PureModule, own_modules, tensors_in_place
from solvers import Shared

from ..proximal import ProximalStep
from .attention import attend_by_layers, multi_head_attention
from .gather import gathered
from .likeness import check_alike
from .trajectory import parts
from .unchanged import Unchanged


class Stack:
    """Modules of one structure, each evaluated at its own point, with their weights stacked.

    Args:
        modules: of equal classes, settings and shapes (`UnlikeError` names what differs), or all the same object.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._pure = PureModule(modules[0], Known())
        self._tied = all(module is modules[0] for module in modules)
        layers = [own_modules(module) for module in (modules[:1] if self._tied else modules)]
        check_alike(layers)
        self._unchanged = Unchanged(layers[0])
        self.tensors = tuple(map(self._stacked, tensors_in_place(layers)))

    def _stacked(self, column: list[Tensor]) -> Tensor:
        if isinstance(column[0], nn.Parameter):
            return column[0] if self._tied else gathered(column)
        with torch.inference_mode(False):  # within it, changes in place would not be counted
            return column[0].clone() if self._tied else gathered(column)

    def __call__(self, points: Any, inputs: tuple[Tensor, ...], tensors: Sequence[Tensor] | None = None) -> Any:
        """(count, batch, …), one point per module, or a tuple of such; each module gets all inputs, (batch, …).

        `tensors` replace its own.
        """

        def one(tensors: Sequence[Tensor], point: Any) -> Any:
            twin = self._pure.twin(tensors)
            with _ByRows(), _hooks_refused(), self._unchanged.checked(twin):
                return _broadcast(twin(point, *inputs), point)

        points = counted(points)
        with _no_fast_path, only_read(self._pure.module, points, inputs):
            every = torch.vmap(one, in_dims=(None if self._tied else 0, 0), randomness="different")
            return every(tuple(tensors or self.tensors), points)


def _hooks_refused() -> AbstractContextManager[Any]:
    """Raise where a transform has hooks on saved tensors, as in a checkpoint, which would unpack them after vmap."""
    if not torch.is_grad_enabled() or saved_through_hooks():  # hooks around all transforms are no obstacle
        return nullcontext()
    return disable_saved_tensors_hooks(
        "torch.vmap, which evaluates all transforms as one, has no checkpoints or other hooks on saved tensors within "
        "a transform: pass batched=False"
    )


class _NoFastPath:
    """Lets no kernel of a whole transformer layer run, for which vmap has no rule; threads may overlap."""

    def __init__(self) -> None:
        self._lock, self._users, self._was = Lock(), 0, True

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._was = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                torch.backends.mha.set_fastpath_enabled(self._was)


_no_fast_path = _NoFastPath()


class ProximalStack:
    """Proximal steps of one structure: all their resolvents in one solve, each row of each layer on its own."""

    def __init__(self, steps: Sequence[ProximalStep]) -> None:
        self.step = steps[0]
        tied = all(step is self.step for step in steps)
        check_alike([own_modules(step) for step in (steps[:1] if tied else steps)])
        smooth = [step.smooth for step in steps if step.smooth is not None]
        self.smooth = Stack(smooth) if smooth else None
        self.proximal = Stack([step.proximal for step in steps])

    def __call__(self, points: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
        """(count, batch, …), like the points."""
        v = points if self.smooth is None else points + self.smooth(points, inputs)
        alpha, tensors = self.step.alpha, self.proximal.tensors
        if alpha == 1:
            explicit: Tensor = v - points + self.proximal(points, inputs)
            return explicit

        def cell(z: Tensor, v: Tensor, y: Tensor, *rest: Tensor) -> Tensor:
            at = (z.lerp(y, alpha) if alpha else z).unflatten(0, points.shape[:2])
            moved: Tensor = v + self.proximal(at, rest[len(tensors) :], rest[: len(tensors)]).flatten(0, 1)
            return moved

        rows, resolvent = v.flatten(0, 1), self.step.resolvent
        z = fixed_point(
            cell,
            rows.detach(),
            (rows, points.flatten(0, 1), *map(Shared, tensors), *inputs),
            gradient=resolvent.gradient,
            **resolvent.settings.options(),
        )
        return z.view_as(points) - points


class OneByOne:
    """Modules of any kind, one after the other, called like a `Stack`."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = modules

    def __call__(self, points: Any, inputs: tuple[Tensor, ...]) -> Any:
        """(count, batch, …), one point per module, or a tuple of such."""
        each = zip(*points, strict=True) if isinstance(points, tuple) else points
        with nullcontext() if torch.compiler.is_compiling() or only_mapped() else sdpa_kernel(SDPBackend.MATH):
            outputs = [
                _broadcast(evaluated(module, point, inputs), point)
                for module, point in zip(self.modules, each, strict=True)
            ]
        if isinstance(outputs[0], tuple):
            return tuple(torch.stack(part) for part in zip(*outputs, strict=True))
        return torch.stack(outputs)


def evaluated(transform: nn.Module, point: Any, inputs: tuple[Tensor, ...]) -> Any:
    """`transform(point, *inputs)`; RuntimeError if it writes into these."""
    point = counted(point)
    with only_read(transform, point, inputs):
        return transform(point, *inputs)


@contextmanager
def only_read(transform: nn.Module, point: Any, inputs: tuple[Tensor, ...]) -> Iterator[None]:
    """RuntimeError if the block writes into the point, of which others are views, or the inputs, which others get."""
    read = (*parts(point), *inputs)
    before = list(map(version, read))
    yield
    if list(map(version, read)) != before:
        raise RuntimeError(
            f"{type(transform).__name__} writes into its input, as nn.ReLU(inplace=True) does: let it write elsewhere"
        )


def counted(point: Any) -> Any:
    """The point, or in inference mode a copy, into which writing is counted."""
    if isinstance(point, tuple):
        return tuple(map(counted, point))
    if torch.compiler.is_compiling() or not point.is_inference():
        return point
    with torch.inference_mode(False):
        return point.clone()


def _broadcast(output: Any, point: Any) -> Any:
    """The output in the shape of the point, to which it is added: a transform may return less."""
    if isinstance(output, tuple):
        return tuple(map(_broadcast, output, point))
    return output if output.shape == point.shape else output.expand_as(point)


_REQUIRES_GRAD = Tensor.requires_grad.__get__  # type: ignore[attr-defined]


class _ByRows(TorchFunctionMode):
    """Operations in forms that are fast within vmap.

    Linear layers on tokens are one product, since PyTorch would repeat stacked weights for each row. Attention takes
    the layers as rows or, under other transforms than vmap, is made of matrix products, which have rules for them.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == _REQUIRES_GRAD:  # a batch within vmap says no
            return innermost(args[0]).requires_grad
        if func is F.scaled_dot_product_attention:
            # masks of other classes, such as torch.nn.attention.bias, hold no values
            plain = all(type(each) in (Tensor, nn.Parameter) for each in (*args[:4], *kwargs.values())
                        if isinstance(each, Tensor))  # fmt: skip
            if plain and only_mapped() and not torch.compiler.is_compiling():
                return attend_by_layers(*args, **kwargs)
            with sdpa_kernel(SDPBackend.MATH):
                return func(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            with self:
                return multi_head_attention(*args, **kwargs)
        if func is F.linear:
            return _linear(*args, **kwargs)
        return func(*args, **kwargs)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if input.ndim < 3:
        return F.linear(input, weight, bias)
    return F.linear(input.flatten(0, -2), weight, bias).unflatten(0, input.shape[:-1])


def stacked(transforms: Sequence[nn.Module]) -> Stack | ProximalStack:
    """The transforms of a network as one; `UnlikeError` where they are not alike."""
    if all(isinstance(transform, ProximalStep) for transform in transforms):
        return ProximalStack(transforms)  # type: ignore[arg-type]
    return Stack(transforms)
