"""The implicit layers of a model over its training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt

from ..diagnostics.arrays import as_array
from ..samples import Sample
from .style import as_rows, logarithmic, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS: tuple[tuple[str, str, Callable[[Sample], float]], ...] = (
    ("Largest relative residual", "‖f(z) − z‖ / ‖f(z)‖", lambda sample: sample.residual),
    ("Work, forward and backward", "evaluations a row", lambda s: s.evaluations + s.backward_evaluations),
    ("Spectral radius of ∂f/∂z", "largest over the rows looked at", lambda sample: sample.spectral_radius),
    ("Gradient beside the exact one", "cosine", lambda sample: sample.gradient_cosine),
)


def plot_monitor(samples: Iterable[Sample | Mapping[str, Any]], *, ax: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """Residual, evaluations, spectral radius and gradient cosine of each layer against the steps of training.

    Args:
        samples: of a `Monitor`, or what `read_samples` finds in its file, or their columns as dicts.
        ax: four axes; None: a new figure.
    """
    own = ax is None
    if ax is None:
        figure, grid = plt.subplots(2, 2, figsize=(9.6, 6.0), layout="constrained", sharex=True)
        figure.suptitle("Implicit layers in training")
        ax = list(grid.flat)
    if len(ax) != len(_PANELS):
        raise ValueError(f"plot_monitor draws {len(_PANELS)} panels: ax has {len(ax)} axes")
    layers: dict[str, list[Sample]] = {}
    for sample in as_rows(Sample, samples):
        layers.setdefault(sample.layer, []).append(sample)
    if not layers:
        raise ValueError("there are no samples to draw")
    for panel, (title, label, figure_of) in zip(ax, _PANELS, strict=True):
        for number, (layer, its) in enumerate(layers.items()):
            steps, figures = as_array([sample.step for sample in its]), as_array(list(map(figure_of, its)))
            panel.plot(steps, figures, **looks(number), label=layer)
        panel.set(title=title, ylabel=label, xlabel="training step")
    logarithmic(ax[0], "y")
    ax[1].set_ylim(bottom=0)
    ax[2].axhline(1, color="0.4", linewidth=1, linestyle=(0, (1, 1)))
    ax[3].set_ylim(min(0.95, ax[3].get_ylim()[0]), 1.02)  # a cosine that is 1 but for rounding is a line at 1
    if own and len(layers) > 3:  # beside the panels, which would hold too little else
        ax[0].figure.legend(*ax[0].get_legend_handles_labels(), loc="outside right upper")
    else:
        ax[0].legend()
    for panel in ax[:2] if own else ():  # the panels below say it
        panel.set_xlabel("")
    return ax
