"""Pictures of convergence. Needs matplotlib: `pip install 'implicit-networks[plots]'`."""

try:
    import matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError(
        "implicit.plots needs matplotlib: pip install 'implicit-networks[plots]' (or pip install matplotlib)"
    ) from error

from .convergence import plot_convergence, plot_steps
from .monitoring import plot_monitor
from .spectrum import plot_eigenvalues
from .style import COLOURS, LINES, MARKERS
from .trajectories import plot_trajectories
from .work import plot_gradient_error, plot_work_precision

__all__ = [
    "COLOURS",
    "LINES",
    "MARKERS",
    "plot_convergence",
    "plot_eigenvalues",
    "plot_gradient_error",
    "plot_monitor",
    "plot_steps",
    "plot_trajectories",
    "plot_work_precision",
]
