"""Eigenvalues and norms of Jacobians that are known in closed form, or from dense linear algebra."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm as normalised

from implicit.diagnostics import eigenvalues, spectral_norm, spectral_radius, spectrum
from solvers import ConvergenceError

close = partial(torch.testing.assert_close, check_device=False)  # figures are on the processor


def rotation(modulus, angle=0.7, dtype=torch.float64):
    c, s = modulus * math.cos(angle), modulus * math.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=dtype)


def linear(matrix):
    return lambda z, *_: z @ matrix.T


def padded(block, dim):
    """The block in a matrix of a size for ARPACK, the rest small and diagonal, all far from normal."""
    matrix = torch.diag(torch.linspace(0.01, 0.5, dim, dtype=block.dtype))
    matrix[: len(block), : len(block)] = block
    change = torch.eye(dim, dtype=block.dtype) + 0.3 * torch.diag(torch.ones(dim - 1, dtype=block.dtype), 1)
    return change @ matrix @ torch.linalg.inv(change)


@pytest.mark.parametrize("modulus", [0.9, 1.2])
@pytest.mark.parametrize("skew", [0.0, 50.0])
def test_rotations_have_their_modulus_however_far_from_normal(modulus, skew):
    change = torch.tensor([[1.0, skew], [0.0, 1.0]], dtype=torch.float64)
    matrix = change @ rotation(modulus) @ torch.linalg.inv(change)
    z = torch.randn(3, 2, dtype=torch.float64)
    close(spectral_radius(linear(matrix), z), torch.full((3,), modulus, dtype=torch.float64))
    angles = eigenvalues(linear(matrix), z, k=2).angle().abs()
    close(angles, torch.full((3, 2), 0.7, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("modulus", [0.9, 1.2])
def test_large_states_go_through_arnoldi_and_find_complex_pairs(modulus, dtype):
    matrix, z = padded(rotation(modulus, dtype=dtype), 200), torch.zeros(2, 200, dtype=dtype)
    expected = modulus * np.exp(1j * np.array([0.7, -0.7]))
    values = eigenvalues(linear(matrix), z, k=2)
    assert values.dtype == torch.complex128
    for row in values.cpu().numpy():
        np.testing.assert_allclose(sorted(row, key=np.imag), sorted(expected, key=np.imag), rtol=1e-4)
    np.testing.assert_allclose(spectral_radius(linear(matrix), z), modulus, rtol=1e-4)
    three = eigenvalues(linear(matrix), z, k=3)[0].cpu().numpy()
    np.testing.assert_allclose(abs(three), [modulus, modulus, 0.5], rtol=1e-3)


@pytest.mark.parametrize("dim", [50, 150])
def test_gaussian_matrices_agree_with_dense_linear_algebra(dim):
    matrices = torch.randn(3, dim, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) / dim**0.5
    z = torch.zeros(3, dim, dtype=torch.float64)

    def f(z, matrix):
        return torch.einsum("bij,bj->bi", matrix, z)

    exact = np.linalg.eigvals(matrices.cpu().numpy())
    exact = np.take_along_axis(exact, np.argsort(-abs(exact), axis=1), axis=1)
    np.testing.assert_allclose(abs(eigenvalues(f, z, (matrices,), k=5).cpu().numpy()), abs(exact[:, :5]), rtol=1e-5)
    np.testing.assert_allclose(spectral_radius(f, z, (matrices,)), abs(exact[:, 0]), rtol=1e-5)
    np.testing.assert_allclose(
        spectral_norm(f, z, (matrices,)), np.linalg.norm(matrices.cpu().numpy(), 2, axis=(1, 2)), rtol=1e-5
    )


@pytest.mark.parametrize("dim", [4, 160])
def test_jacobians_are_taken_at_each_rows_own_point_and_images_keep_their_shape(dim):
    z = torch.linspace(0.1, 2, 3 * dim, dtype=torch.float64).view(3, 2, dim // 2)
    slopes = (1 - torch.tanh(0.8 * z).square()).flatten(1) * 0.8
    expected = slopes.sort(dim=1, descending=True).values[:, :2]
    values = eigenvalues(lambda z: torch.tanh(0.8 * z), z, k=2)
    close(values.real, expected, rtol=1e-5, atol=0)
    close(spectral_norm(lambda z: torch.tanh(0.8 * z), z), expected[:, 0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("dim", [4, 160])
def test_rows_that_are_not_finite_are_nan_and_leave_the_others_alone(dim):
    z = torch.zeros(3, dim)
    z[1, 0] = float("nan")
    radius = spectral_radius(lambda z: 0.5 * torch.sin(z), z)
    assert radius.isnan().tolist() == [False, True, False]
    close(radius[[0, 2]], torch.full((2,), 0.5, dtype=torch.float64), rtol=1e-5, atol=0)
    assert spectral_norm(lambda z: 0.5 * torch.sin(z), z).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("dim", [4, 160])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_does_not_matter(dim, scale):
    factors = scale * torch.linspace(0.1, 1, dim, dtype=torch.float64)
    for measure in (spectral_norm, spectral_radius):
        assert measure(lambda z: factors * z, torch.ones(1, dim).double()).item() == pytest.approx(scale, rel=1e-5)


@pytest.mark.parametrize("dim", [4, 160])
def test_constant_maps_and_empty_batches(dim):
    for measure in (spectral_norm, spectral_radius):
        assert measure(lambda z, x: x, torch.ones(2, dim), (torch.ones(2, dim),)).tolist() == [0, 0]
    assert eigenvalues(lambda z: z, torch.ones(0, dim), k=2).shape == (0, 2)


def test_half_precision_and_tuples_and_modules_under_spectral_norm():
    z = (torch.zeros(2, 3, dtype=torch.float16), torch.zeros(2, 5, dtype=torch.float16))
    values = spectral_radius(lambda z: (0.5 * z[0], 0.25 * z[1]), z)
    close(values, torch.full((2,), 0.5, dtype=torch.float64))
    cell = normalised(nn.Linear(6, 6)).train()
    before = [buffer.clone() for buffer in cell.buffers()]
    with torch.no_grad():
        assert spectral_norm(cell, torch.zeros(2, 6)).shape == (2,)
    assert len(before) == 2
    assert cell.weight.requires_grad
    assert not any(parameter.grad is not None for parameter in cell.parameters())


def test_what_cannot_be_answered_is_refused_in_words(monkeypatch):
    monkeypatch.setattr(spectrum, "LARGEST", 128)
    with pytest.raises(ValueError, match=r"k=9 must be an integer from 1 to 8"):
        eigenvalues(lambda z: z, torch.zeros(2, 8), k=9)
    with pytest.raises(ValueError, match=r"k=199 must be an integer from 1 to 198"):
        eigenvalues(lambda z: z, torch.zeros(2, 200), k=199)
    with pytest.raises(ConvergenceError, match=r"row 0 .*No convergence.*float64, or look"):
        spectral_radius(lambda z: z.roll(1, 1), torch.zeros(1, 130))  # 130 eigenvalues of one modulus


def test_where_arnoldi_finds_nothing_the_dense_jacobian_is_looked_at():
    z = torch.zeros(2, 300, dtype=torch.float64)
    close(spectral_radius(lambda z: 0.7 * z.roll(1, 1), z), torch.full((2,), 0.7).double())
    orthogonal = torch.linalg.qr(torch.randn(300, 300, dtype=torch.float64)).Q
    moduli = eigenvalues(lambda z: 1.1 * z @ orthogonal, z, k=5).abs()
    close(moduli, torch.full((2, 5), 1.1).double())
    defective = 0.5 * torch.eye(200, dtype=torch.float64) + torch.diag(torch.ones(199).double(), 1)
    radius = spectral_radius(lambda z: z @ defective.T, torch.zeros(1, 200).double())
    assert 0.5 <= radius.item() < 1.6  # its pseudospectrum is the disc of radius 1 about 0.5


@pytest.mark.parametrize("dim", [6, 140])
def test_inference_mode_changes_no_number(dim):
    factors = torch.linspace(0.1, 0.9, dim, dtype=torch.float64)
    with torch.inference_mode():
        z, x = torch.zeros(2, dim, dtype=torch.float64), torch.ones(2, dim, dtype=torch.float64)
        for measure in (spectral_radius, spectral_norm):
            found = measure(lambda z, x: factors * torch.sin(z) + x, z, (x,))
            close(found, torch.full((2,), 0.9).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dim", [6, 140])
def test_a_map_that_hides_its_derivative_is_refused(dim):
    @torch.no_grad()
    def hidden(z):
        return 0.5 * z

    for f in (hidden, lambda z: torch.from_numpy(0.5 * z.detach().cpu().numpy()).to(z)):
        with pytest.raises(ValueError, match="f depends on z, but its image has no graph"):
            spectral_radius(f, torch.ones(1, dim))


def test_jacobians_smaller_than_the_root_of_the_least_number_have_a_radius():
    z = torch.zeros(1, 200, dtype=torch.float64)
    assert spectral_radius(lambda z: 1e-200 * z, z).item() == pytest.approx(1e-200)
