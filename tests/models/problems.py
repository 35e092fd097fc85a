"""Known functions, their gradients in NumPy and their minimisers by scikit-learn."""

import numpy as np
import pytest
import scipy.special
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

WIDTH, ROWS, DEPTH = 5, 3, 12
COEFFICIENT = 0.4  # of the regulariser


def data():
    generator = np.random.default_rng(1)
    matrix = generator.standard_normal((20, WIDTH))
    labels = np.where(generator.random(20) < 0.5, -1.0, 1.0)
    start = generator.standard_normal((ROWS, WIDTH))
    mixing = generator.standard_normal((WIDTH, WIDTH))
    return matrix, labels, start, mixing / np.linalg.norm(mixing, 2)


A, LABELS, START, MIXING = data()


def least_squares(z):
    """Gradient of ½‖Az − b‖² + ½‖z‖² for each row."""
    return (z @ A.T - LABELS) @ A + z


def logistic(z):
    """Gradient of Σ log(1 + exp(−b·Az)) + ½‖z‖² for each row."""
    return -(LABELS * scipy.special.expit(-LABELS * (z @ A.T))) @ A + z


def log_cosh(z):
    """Gradient of Σ log cosh(Bz), ‖B‖ = 1, times a coefficient."""
    return COEFFICIENT * np.tanh(z @ MIXING.T) @ MIXING


LARGEST = np.linalg.norm(A, 2) ** 2 + 1
CURVATURE = {least_squares: LARGEST, logistic: np.linalg.norm(A, 2) ** 2 / 4 + 1}
by_problem = pytest.mark.parametrize("gradient", [least_squares, logistic])


class Step(nn.Module):
    """`−s∇f`, by autograd from f itself."""

    def __init__(self, gradient, s):
        super().__init__()
        self.s = s
        matrix, labels, mixing = torch.tensor(A), torch.tensor(LABELS), torch.tensor(MIXING)
        self.gradient = torch.func.grad(
            {
                least_squares: lambda z: ((z @ matrix.T - labels).square().sum() + z.square().sum()) / 2,
                logistic: lambda z: nn.functional.softplus(-labels * (z @ matrix.T)).sum() + z.square().sum() / 2,
                log_cosh: lambda z: COEFFICIENT * (z @ mixing.T).cosh().log().sum(),
            }[gradient]
        )

    def forward(self, z):
        return -self.s * self.gradient(z)


def minimiser(gradient):
    if gradient is least_squares:
        return Ridge(alpha=1.0, fit_intercept=False, solver="cholesky").fit(A, LABELS).coef_
    model = LogisticRegression(C=1.0, fit_intercept=False, solver="newton-cholesky", tol=1e-12)
    return model.fit(A, LABELS).coef_[0]
