"""Lungs of CTs that are not in Hounsfield units, by their shape; what is no CT has none."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from nephi.both import Both
from nephi.errors import collected_notices
from nephi.images.hounsfield import looks_like_ct
from nephi.images.lungs import find_lungs
from nephi.images.masks import lung_mask
from nephi.measure.quality import dice
from nephi.preprocessing import preprocess
from nephi.space.grid import Grid


def windowed(low: float, high: float, top: float, whole: bool):
    def change(hu: np.ndarray) -> np.ndarray:
        values = top * np.clip((hu - low) / (high - low), 0, 1)
        return np.round(values) if whole else values

    return change


UNITS = {
    "8 bits of lungs": windowed(-1350, 150, 255, True),
    "8 bits": windowed(-1000, 400, 255, True),
    "0 to 1": windowed(-1000, 500, 1, False),
    "16 bits": windowed(-1024, 1500, 65535, True),
    "1/cm": lambda hu: 0.2 * (1 + np.clip(hu, -1000, 3000) / 1000),
    "standardised": lambda hu: (hu - hu.mean()) / hu.std(),
    "8 bits of soft tissue": windowed(-160, 240, 255, True),
}


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("unit", UNITS)
def test_lungs_are_found_in_any_unit(unit, inverted, phantom_3d):
    image = phantom_3d.fixed
    noise = np.random.default_rng(0).normal(0, 25, Grid.of(image).shape)
    values = UNITS[unit](sitk.GetArrayFromImage(image) + noise)
    values = values.max() - values if inverted else values
    stored = Grid.of(image).image(values.astype(np.float32))
    assert not looks_like_ct(stored)
    found = find_lungs(stored)
    assert found is not None and Grid.of(found).same_as(Grid.of(image))
    truth = sitk.GetArrayFromImage(lung_mask(image)) != 0
    assert dice(sitk.GetArrayFromImage(found) != 0, truth) > 0.9


def test_lungs_are_found_on_a_canvas_of_a_far_value(phantom_3d):
    stored = (sitk.Cast(phantom_3d.fixed, sitk.sitkFloat64) + 1000) / 1500
    found = find_lungs(sitk.ConstantPad(stored, [8] * 3, [8] * 3, -1))
    assert found is not None
    inner = sitk.GetArrayFromImage(found)[8:-8, 8:-8, 8:-8] != 0
    assert dice(inner, sitk.GetArrayFromImage(phantom_3d.fixed_mask) != 0) > 0.85


def test_lungs_in_hounsfield_units_are_found_by_these(phantom_3d):
    found, known = (sitk.GetArrayFromImage(find(phantom_3d.moving)) for find in (find_lungs, lung_mask))
    np.testing.assert_array_equal(found, known)


def head(background: float = 0.0) -> np.ndarray:
    """A brain in a skull as an MR shows it, with two dark ventricles side by side."""
    z, y, x = (np.indices((80, 80, 80)) - 39.5) / 40

    def ball(cx: float, cz: float, rx: float, ry: float, rz: float) -> np.ndarray:
        return ((x - cx) / rx) ** 2 + (y / ry) ** 2 + ((z - cz) / rz) ** 2 < 1

    out = np.full(x.shape, background)
    for value, part in ((900, ball(0, 0, 0.85, 0.95, 0.9)), (60, ball(0, 0, 0.75, 0.85, 0.8))):
        out[part] = value
    brain, cortex = ball(0, 0, 0.68, 0.78, 0.73), ball(0, 0, 0.55, 0.62, 0.6)
    out[brain], out[cortex] = 350, 550
    for side in (-1, 1):
        out[ball(side * 0.14, 0.05, 0.08, 0.35, 0.18)] = 90
    noise = np.random.default_rng(1).normal(0, 25, (2, *out.shape))
    return np.hypot(out + noise[0], noise[1])


@pytest.mark.parametrize("skull", [True, False])
@pytest.mark.parametrize("change", [lambda v: v, lambda v: v.max() - v, np.sqrt, lambda v: np.clip(v, 120, 600)])
def test_a_head_has_no_lungs(change, skull):
    values = head()
    if not skull:
        z, y, x = (np.indices(values.shape) - 39.5) / 40
        values[(x / 0.68) ** 2 + (y / 0.78) ** 2 + (z / 0.73) ** 2 >= 1] = 0
    image = sitk.GetImageFromArray(change(values).astype(np.float32))
    image.SetSpacing((2.5, 2.5, 2.5))
    assert find_lungs(image) is None


def test_lungs_found_by_their_shape_are_told_and_used(phantom_3d):
    p = phantom_3d
    images = Both(p.fixed, p.moving).map(lambda image: sitk.Cast(image, sitk.sitkFloat32))
    moving = (images.moving + 1000) / 1500
    with collected_notices() as notes:
        placed = preprocess(Both(images.fixed, moving), Both(None, None), "auto", None, True, lambda phase: None)
    assert placed.found == ("fixed", "moving") and None not in placed.masks
    assert len([note for note in notes if "lungs of the moving image" in note and "by their shape" in note]) == 1
    gaps = placed.alignment.affine(p.fixed_landmarks_lps_mm) - p.moving_landmarks_lps_mm
    assert np.linalg.norm(gaps, axis=1).mean() < 15
