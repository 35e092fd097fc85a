"""The implicit layers of a model over its training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt

from ..diagnostics.arrays import as_array
from ..samples import Sample
from .style import as_rows, logarithmic, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS: tuple[tuple[str, str, Callable[[Sample], float]], ...] = (
    ("Largest relative residual", "‖f(z) − z‖ / ‖f(z)‖", lambda sample: sample.residual),
    ("Work, forward and backward", "evaluations per row", lambda s: s.evaluations + s.backward_evaluations),
    ("Spectral radius of ∂f/∂z", "largest of the rows sampled", lambda sample: sample.spectral_radius),
    ("Gradient beside the exact one", "cosine", lambda sample: sample.gradient_cosine),
)


def plot_monitor(samples: Iterable[Sample | Mapping[str, Any]], *, ax: Axes | None = None) -> Axes:
    """Residual, evaluations, spectral radius and gradient cosine of each layer against the steps of training.

    Args:
        samples: those of a `Monitor`, or those that `read_samples` reads from its file, or their columns as dicts.
        ax: where to draw; None: a new figure.

    Returns:
        The axes; the four panels within it are `ax.child_axes`.
    """
    layers: dict[str, list[Sample]] = {}
    for sample in as_rows(Sample, samples):
        layers.setdefault(sample.layer, []).append(sample)
    if not layers:
        raise ValueError("there are no samples to draw")
    if ax is None:
        ax = plt.subplots(figsize=(9.6, 6.0), layout="constrained")[1]
    ax.set_axis_off()
    ax.set_title("Implicit layers in training", pad=24)
    panels = [ax.inset_axes((left, bottom, 0.44, 0.41)) for bottom in (0.59, 0) for left in (0, 0.56)]
    for panel, (title, label, figure_of) in zip(panels, _PANELS, strict=True):
        for number, (layer, its) in enumerate(layers.items()):
            steps, figures = as_array([sample.step for sample in its]), as_array(list(map(figure_of, its)))
            panel.plot(steps, figures, **looks(number), label=layer)
        panel.set(title=title, ylabel=label)
    for panel in panels[2:]:
        panel.set_xlabel("training step")
    logarithmic(panels[0], "y")
    low, high = panels[0].get_ylim()
    if panels[0].get_yscale() == "log" and high < 10 * low:  # a span below a power of ten has no readable ticks
        panels[0].set_ylim(low / 10, 10 * high)
    panels[1].set_ylim(0, 1.1 * panels[1].get_ylim()[1])
    panels[2].axhline(1, color="0.4", linewidth=1, linestyle=(0, (1, 1)))
    panels[3].set_ylim(min(0.95, panels[3].get_ylim()[0]), 1.02)  # a cosine of 1 up to rounding is a line at 1
    if len(layers) > 3:  # beside the panels, which would have no room left
        ax.legend(*panels[0].get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(1.02, 1))
    else:
        panels[0].legend()
    return ax
