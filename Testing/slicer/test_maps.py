"""Maps in mm over the fixed volume: coloured where the images were compared, on scales of what is there."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
from helpers import points_in, transformed
from NePhiRegistrationLib import display, maps
from slicer.util import arrayFromVolume, arrayFromVolumeModified


@pytest.fixture
def view(finished, coronal):
    outputs = finished.outputs
    display.show_comparison(outputs.fixed, outputs.warped, "")
    coronal.fit()
    bounds = [0.0] * 6
    outputs.fixed.GetRASBounds(bounds)
    display.jump(finished.scene, [(low + high) / 2 for low, high in zip(bounds[::2], bounds[1::2], strict=True)])
    yield coronal
    maps.show_error(outputs, False)
    maps.show_displacement(outputs, False)
    display.show_comparison(outputs.fixed, outputs.warped, "")


@pytest.fixture
def halves(finished):
    """The error map with 1 mm in the right half and 3 mm in the left one, where it has values; undone afterwards."""
    volume = finished.outputs.error_map
    values = arrayFromVolume(volume)
    before = values.copy()
    middle = values.shape[2] // 2
    values[:, :, :middle][before[:, :, :middle] > 0] = 3.0
    values[:, :, middle:][before[:, :, middle:] > 0] = 11.0
    arrayFromVolumeModified(volume)
    yield volume
    values[:] = before
    arrayFromVolumeModified(volume)


def shown(finished, attribute: int) -> np.ndarray:
    return arrayFromVolume(display.own_volume(finished.scene, display.MADE_OVERLAYS[attribute]))


def colours(pixels: np.ndarray) -> tuple[int, int]:
    """Pixels that are rather blue, and rather red or yellow."""
    difference = pixels[..., 2].astype(int) - pixels[..., 0]
    return int((difference > 30).sum()), int((difference < -30).sum())


def test_colours_change_at_the_tolerance(finished, view, halves):
    """5 mm voxels: that much is tolerated."""
    outputs = finished.outputs
    assert maps.error_tolerance_mm(outputs) == 5.0
    maps.show_error(outputs, True, opacity=1.0, legend=False)
    within, beyond = colours(view.pixels())
    assert within > 1000 and beyond > 1000 and 0.5 < within / beyond < 2
    maps.show_error(outputs, True, opacity=1.0, legend=False, beyond_only=True)
    within_after, beyond_after = colours(view.pixels())
    assert within_after == 0 and beyond_after == pytest.approx(beyond, rel=0.05)
    text = maps.error_text(outputs)
    assert "tolerance of 5 mm" in text and "10 mm and more" in text and "TG-132" in text
    values = arrayFromVolume(halves)
    assert f" {100 * (values > 5).sum() / (values > 0).sum():.0f} % " in text


def test_error_is_coloured_in_the_mask_with_its_own_values(finished, view, halves):
    """Up to the mask's border: next to it the zeros outside must not make the error less."""
    maps.show_error(finished.outputs, True)
    values = shown(finished, 1)
    inside = values > 0
    assert values[inside].min() > 2.9 and values[inside].max() < 11.1
    made = display.own_volume(finished.scene, display.MADE_OVERLAYS[1])
    coloured_ml = inside.sum() * np.prod(made.GetSpacing()) / 1000
    assert coloured_ml == pytest.approx(finished.outputs.report["volume"]["fixed_ml"], rel=0.2)
    maps.show_error(finished.outputs, False)
    assert display.own_volume(finished.scene, display.MADE_OVERLAYS[1]) is None


def test_error_legend_names_the_tolerance(finished, view):
    maps.show_error(finished.outputs, True)
    made = display.own_volume(finished.scene, display.MADE_OVERLAYS[1])
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(made)
    assert legend.GetVisibility() and "5 mm tolerated" in legend.GetTitleText()
    assert legend.GetNumberOfLabels() % 2 == 1  # one of them stands at the tolerance, in the middle
    assert display.nodes.is_map(made) and not made.GetSaveWithScene()


def test_result_without_an_error_map(finished, view):
    outputs = finished.outputs
    before, outputs.error_map = outputs.error_map, None
    plain = view.pixels()
    maps.show_error(outputs, True)
    assert np.array_equal(view.pixels(), plain) and "no map" in maps.error_text(outputs)
    outputs.error_map = before


def test_displacement_is_the_motion_without_the_rigid_part(finished, view):
    outputs, phantom = finished.outputs, finished.phantom
    maps.show_displacement(outputs, True, opacity=1.0, legend=False)
    made = display.own_volume(finished.scene, display.MADE_OVERLAYS[2])
    values = arrayFromVolume(made)
    assert colours(view.pixels()) != (0, 0)
    assert made.GetDisplayNode().GetWindowLevelMax() == np.ceil(np.percentile(values[values >= 0], 99))
    points = points_in(phantom.fixed)
    moved = np.linalg.norm(transformed(outputs.forward, points) - points, axis=1)
    assert values[values >= 0].mean() < moved.mean()  # the scanners' offset is taken away
    display.clear(finished.scene, outputs.fixed)
    assert display.own_volume(finished.scene, display.MADE_OVERLAYS[2]) is None
