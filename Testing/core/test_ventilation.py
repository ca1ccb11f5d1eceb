"""Ventilation by the map and by the densities: what is put into a phantom comes out again."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from nephi.both import Both
from nephi.measure.ventilation import Densities, log_jacobian, regional_ventilation
from nephi.report.ventilation import Ventilation
from nephi.space.grid import Grid

WHOLE = (slice(0, 24), slice(0, 20), slice(0, 20))
GRID = Grid((20, 20, 24), (4.0, 4.0, 4.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))


def scan(density_below: float, density_above: float, noise_hu: float) -> sitk.Image:
    """A box of lung in tissue; the lung's air is 1 - density, in two halves along z."""
    hu = np.full(GRID.shape, 40.0)
    hu[3:12, 3:17, 3:17] = -1000 * (1 - density_below)
    hu[12:21, 3:17, 3:17] = -1000 * (1 - density_above)
    hu += noise_hu * np.random.default_rng(1).standard_normal(hu.shape)
    return GRID.image(hu.astype(np.int16))


def halves() -> np.ndarray:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[3:12, 3:17, 3:17], labels[12:21, 3:17, 3:17] = 1, 2
    return labels


@pytest.mark.parametrize("noise_hu", [3.0, 25.0])
def test_a_breath_of_known_size_is_found_by_both_formulas(noise_hu):
    """Half of the lung gains 40 %, the other 10 %; the map is a shift, the volumes are in |J| alone."""
    gain = {1: 1.4, 2: 1.1}
    fixed = scan(0.28, 0.22, noise_hu)
    moving = scan(0.28 / gain[1], 0.22 / gain[2], noise_hu)
    moving.SetOrigin((30.0, -20.0, 10.0))
    jacobian = np.ones(GRID.shape, np.float32)
    for label, size in gain.items():
        jacobian[halves() == label] = size
    mask = GRID.image((halves() > 0).astype(np.uint8))
    shift = sitk.TranslationTransform(3, (30.0, -20.0, 10.0))
    densities = Densities.of(Both(fixed, moving), shift, mask, WHOLE)
    ventilation = densities.ventilation(GRID.spacing_mm)
    assert np.isnan(ventilation[halves() == 0]).all() and np.isfinite(ventilation[halves() > 0]).all()
    rows = regional_ventilation(jacobian, densities, ventilation, halves(), GRID.voxel_volume_mm3)
    for row, (label, density) in zip(rows, {1: 0.28, 2: 0.22}.items(), strict=True):
        air = 1 - density
        assert row["ventilation_jacobian"] == pytest.approx(gain[label] - 1)
        # all that is gained is air; the tissue is as much as before
        assert row["air_moving_ml"] / row["air_fixed_ml"] - 1 == pytest.approx((gain[label] - 1) / air, rel=0.03)
        assert row["ventilation_hu"] == pytest.approx(
            (gain[label] - 1) / air, rel=0.15
        )  # the halves mix where they meet
        inner = ventilation[{1: slice(4, 8), 2: slice(16, 20)}[label], 5:15, 5:15].mean()
        assert inner == pytest.approx((gain[label] - 1) / air, rel=0.02 + noise_hu / 200)
        assert row["mass_ratio"] == pytest.approx(1, abs=0.02)


def test_without_a_breath_there_is_no_ventilation_and_the_mass_grows_with_the_map():
    image, mask = scan(0.28, 0.22, 3.0), GRID.image((halves() > 0).astype(np.uint8))
    ventilation = Ventilation.of(Both(image, image), sitk.Transform(3, sitk.sitkIdentity), WHOLE, mask)
    rows = ventilation.of_regions(
        [{"label": 1}, {"label": 2}], np.full(GRID.shape, 1.2, np.float32), GRID.image(halves())
    )
    for row in rows:
        assert row["ventilation_hu"] == pytest.approx(0, abs=1e-6) and row["mass_ratio"] == pytest.approx(1.2)
    assert [row["label"] for row in rows] == [1, 2]


def test_what_is_dense_has_no_ventilation_of_its_own():
    """A vessel of 60 HU through the lung: unknown in it, and the region's number is that of the lung around it."""
    images = [sitk.GetArrayFromImage(scan(density, density, 3.0)) for density in (0.25, 0.2)]
    for array in images:
        array[:, 8:12, 8:12] = 55 + np.arange(16).reshape(4, 4)
    mask = GRID.image((halves() > 0).astype(np.uint8))
    ventilation = Ventilation.of(Both(*map(GRID.image, images)), sitk.Transform(3, sitk.sitkIdentity), WHOLE, mask)
    assert np.isnan(ventilation.specific[10, 9:11, 9:11]).all()
    away = ventilation.specific[10, 4:6, 4:6]
    assert away == pytest.approx((1.25 - 1) / 0.75, rel=0.15)


def test_other_images_than_cts_have_no_densities():
    other = GRID.image(np.random.default_rng(0).uniform(0, 1, GRID.shape).astype(np.float32))
    mask = GRID.image((halves() > 0).astype(np.uint8))
    assert Ventilation.of(Both(scan(0.3, 0.3, 3.0), other), sitk.Transform(3, sitk.sitkIdentity), WHOLE, mask) is None


def test_the_logarithm_is_finite_where_the_map_folds():
    found = log_jacobian(np.array([0.5, 1.0, 2.0, 0.0, -1.0], np.float32))
    assert found[0] == -found[2] and found[1] == 0 and np.isfinite(found).all() and (found[3:] < -20).all()
