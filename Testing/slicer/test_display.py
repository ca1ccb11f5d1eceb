"""What slice and 3D views show, drawn offscreen: each test looks at pixels that must change."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import slicer
from helpers import put_under, volume_node
from NePhiRegistrationLib import compared, deformation, display, maps
from saving import save_scene
from slicer.util import arrayFromVolume, arrayFromVolumeModified, vtkMatrixFromArray
from views import ThreeDView
from vtk.util.numpy_support import vtk_to_numpy

YELLOW = np.array([255, 242, 0])


@pytest.fixture
def view(finished, coronal):
    """The fixed volume alone, fitted; whatever a test shows is taken back."""
    outputs = finished.outputs
    display.show_comparison(outputs.fixed, outputs.warped, "")
    coronal.fit()
    yield coronal
    display.show_grid(outputs.forward, outputs.fixed, False)
    display.show_jacobian(outputs, False)
    maps.show_fields_disagreement(outputs, False)
    display.show_comparison(outputs.fixed, outputs.warped, "")


def colored(pixels: np.ndarray) -> np.ndarray:
    """Where a pixel is not grey."""
    return np.ptp(pixels.astype(int), axis=-1) > 30


def near(pixels: np.ndarray, color, tolerance: int = 12) -> np.ndarray:
    return (np.abs(pixels.astype(int) - color) <= tolerance).all(-1)


def voxel_centre(node, index_zyx) -> np.ndarray:
    """A voxel's centre in RAS mm."""
    return (display.nodes.ijk_to_world(node) @ [*index_zyx[::-1], 1.0])[:3]


def lung_pixels(view, finished) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the lungs' voxel centres in the view's slice."""
    mask = arrayFromVolume(finished.job.fixed_mask)
    z, x = np.nonzero(mask[:, mask.shape[1] // 2])
    display.jump(finished.scene, voxel_centre(finished.job.fixed, tuple(n // 2 for n in mask.shape)))
    points = [voxel_centre(finished.job.fixed, (k, mask.shape[1] // 2, i)) for k, i in zip(z, x, strict=True)]
    return tuple(np.array([view.pixel_of(point) for point in points]).T)


@pytest.fixture
def planted(finished):
    """The Jacobian volume with a box of folds, one of exactly 0 and one just above, undone afterwards."""
    volume = finished.outputs.jacobian
    array = arrayFromVolume(volume)
    before = array.copy()
    array[:] = 1.0
    compared = arrayFromVolume(finished.outputs.fields_disagreement)
    mask = compared.copy()
    compared[:] = 1.0  # everywhere
    boxes = {}
    for value, x in ((-0.3, 8), (0.0, 20), (0.02, 32), (0.5, 44), (1.6, 56)):
        array[20:30, 20:36, x - 3 : x + 3] = value
        boxes[value] = voxel_centre(volume, (25, 28, x))
    arrayFromVolumeModified(volume)
    yield boxes
    array[:], compared[:] = before, mask
    arrayFromVolumeModified(volume)


def test_folds_are_loud_and_only_folds(finished, view, planted):
    plain = view.pixels()
    assert not colored(plain).any()
    display.show_jacobian(finished.outputs, True, opacity=1.0, legend=False)
    display.jump(finished.scene, planted[0.02])
    shown = view.pixels()
    color = {value: shown[view.pixel_of(point)].astype(int) for value, point in planted.items()}
    assert near(color[-0.3], YELLOW) and near(color[0.0], YELLOW)
    assert not near(color[0.02], YELLOW, 60)
    assert color[0.5][2] > color[0.5][0] + 80  # smaller: blue
    assert color[1.6][0] > color[1.6][2] + 80  # larger: red
    neutral = shown[view.pixel_of(planted[-0.3] + (0, 0, 60))].astype(int)
    assert np.ptp(neutral) < 12  # no change: no colour
    pixel_mm = view.node.GetFieldOfView()[0] / 400
    boxes_mm2 = 2 * (6 * 5) * (10 * 5)  # two of the boxes, 6 x 10 voxels of 5 mm as seen from the front
    assert near(shown, YELLOW).sum() * pixel_mm**2 == pytest.approx(boxes_mm2, rel=0.05)


def test_overlay_opacity_and_off(finished, view, planted):
    display.jump(finished.scene, planted[-0.3])
    row, column = view.pixel_of(planted[-0.3])
    plain = view.pixels()
    display.show_jacobian(finished.outputs, True, opacity=1.0, legend=False)
    full = view.pixels()
    display.show_jacobian(finished.outputs, True, opacity=0.5, legend=False)
    half = view.pixels()
    mixed = (plain[row, column].astype(int) + full[row, column]) / 2
    assert np.abs(half[row, column] - mixed).max() <= 2
    display.show_jacobian(finished.outputs, False)
    assert not colored(view.pixels()).any()


def test_legend_appears_and_goes(finished, view):
    outputs = finished.outputs
    display.show_jacobian(outputs, True, opacity=0.0, legend=False)
    without = view.pixels()
    display.show_jacobian(outputs, True, opacity=0.0, legend=True)
    with_legend = view.pixels()
    changed = (with_legend != without).any(-1)
    assert changed[:, 280:].sum() > 500 and not changed[:, :200].any()  # at the right
    bar = with_legend[changed]
    assert near(bar, YELLOW).sum() > 50  # what a fold looks like is in the legend
    assert ((bar[:, 0].astype(int) - bar[:, 2]) > 80).sum() > 50 and (
        (bar[:, 2].astype(int) - bar[:, 0]) > 80
    ).sum() > 50
    display.show_jacobian(outputs, True, opacity=0.0, legend=False)
    assert np.array_equal(view.pixels(), without)


@pytest.mark.parametrize("mode", display.GRID_MODES)
def test_grid_lines_on_and_off_in_a_slice(finished, view, mode):
    outputs = finished.outputs
    plain = view.pixels()
    display.show_grid(outputs.forward, outputs.fixed, True, mode, 20.0)
    shown = view.pixels()
    assert colored(shown).sum() > 400
    display.show_grid(outputs.forward, outputs.fixed, True, mode, 20.0, in_2d=False, in_3d=True)
    assert np.array_equal(view.pixels(), plain)
    display.show_grid(outputs.forward, outputs.fixed, False)
    assert np.array_equal(view.pixels(), plain)


def test_grid_spacing_changes_how_many_lines(finished, view):
    outputs = finished.outputs
    counts = []
    for spacing_mm in (40.0, 20.0, 10.0):
        display.show_grid(outputs.forward, outputs.fixed, True, "grid", spacing_mm)
        counts.append(colored(view.pixels()).sum())
    assert counts[0] < 0.7 * counts[1] and counts[1] < 0.7 * counts[2]


def test_shown_deformation_goes_from_fixed_to_moving_without_the_rigid_shift(finished):
    outputs, phantom = finished.outputs, finished.phantom
    node = deformation.make(outputs.forward)
    assert deformation.make(outputs.forward) is node and not node.GetSaveWithScene()
    to_ras = np.array([-1.0, -1.0, 1.0])
    fixed = phantom.fixed_landmarks_lps_mm * to_ras
    motion = phantom.moving_landmarks_lps_mm * to_ras - fixed
    shown = np.array([node.GetTransformToParent().TransformPoint(p) for p in fixed.tolist()]) - fixed
    # the phantom moves by the scanners' offset and by breathing; what is shown differs from it by one shift only
    assert np.linalg.norm((shown - motion).std(0)) < 3 < np.linalg.norm((shown - motion).mean(0))
    assert np.linalg.norm(shown, axis=1).mean() < np.linalg.norm(motion, axis=1).mean() / 2


def test_grid_in_the_3d_view(finished):
    outputs = finished.outputs
    view = ThreeDView(finished.views, (300, 300))
    bounds = [0.0] * 6
    outputs.fixed.GetRASBounds(bounds)
    view.look_at(bounds)
    empty = view.pixels()
    display.show_grid(outputs.forward, outputs.fixed, True, "grid", 40.0, in_2d=False, in_3d=True)
    assert (view.pixels() != empty).any(-1).mean() > 0.05
    display.show_grid(outputs.forward, outputs.fixed, True, "grid", 40.0, in_2d=True, in_3d=False)
    assert np.array_equal(view.pixels(), empty)
    display.show_grid(outputs.forward, outputs.fixed, False)
    view.close()


def test_checkerboard_shows_both_images_in_turn(finished, view):
    """Against a volume that is darker everywhere, so that each square tells whose it is."""
    fixed = finished.outputs.fixed
    other = volume_node(finished.scene, finished.phantom.fixed, "dark")
    arrayFromVolume(other)[:] = -1150
    other.CreateDefaultDisplayNodes()
    display.nodes.show_like(other, fixed)
    display.jump(finished.scene, voxel_centre(fixed, (28, 28, 32)))
    bright = view.pixels()
    display.show_comparison(fixed, other, "checkerboard", squares_mm=60.0)
    board = view.pixels()
    image = bright.max(-1) > 60
    dark = (board.max(-1) < 30)[image].mean()
    same = (np.abs(board.astype(int) - bright).max(-1) <= 2)[image].mean()
    assert 0.35 < dark < 0.65 and 0.35 < same < 0.65 and dark + same > 0.85
    display.show_comparison(fixed, other, "")
    assert np.array_equal(view.pixels(), bright)
    assert display.nodes.of_class(finished.scene, "vtkMRMLScalarVolumeNode")[-1] is other  # its volume is gone
    finished.scene.RemoveNode(other)


def _comparison(finished):
    """What the slice view has in its background."""
    scene = finished.scene
    composite = scene.GetNthNodeByClass(0, "vtkMRMLSliceCompositeNode")
    return scene.GetNodeByID(composite.GetBackgroundVolumeID())


def test_checkerboard_holds_the_values_of_both(finished, view):
    """Of CTs as they are, so that window and level and the values under the cursor mean what they say."""
    fixed, warped = finished.outputs.fixed, finished.outputs.warped
    display.show_comparison(fixed, warped, "checkerboard", squares_mm=20.0)
    made = _comparison(finished)
    values, a, b = (arrayFromVolume(volume).astype(float) for volume in (made, fixed, warped))
    squares = np.indices(values.shape) // 4  # 20 mm of 5 mm voxels
    assert np.abs(values - np.where(squares.sum(0) % 2 == 0, a, b)).max() <= 0.5
    window, shown = fixed.GetDisplayNode(), made.GetDisplayNode()
    assert (shown.GetWindow(), shown.GetLevel()) == (window.GetWindow(), window.GetLevel())
    assert display.nodes.is_map(made) and not made.GetSaveWithScene()


def test_images_of_other_units_are_compared_by_their_windows(finished, view):
    """The same image, ten times as bright, as two MR scanners may give it."""
    fixed, other = (finished.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode") for _ in range(2))
    values = np.random.default_rng(0).uniform(0, 100, (9, 10, 11))
    for volume, scale in ((fixed, 1.0), (other, 10.0)):
        slicer.util.updateVolumeFromArray(volume, scale * values)
        volume.CreateDefaultDisplayNodes()
        volume.GetDisplayNode().SetAutoWindowLevel(False)
        volume.GetDisplayNode().SetWindowLevelMinMax(0, scale * 80)
    display.show_comparison(fixed, other, "difference")
    assert np.abs(arrayFromVolume(_comparison(finished))).max() < 1e-3
    for node in (fixed, other):
        display.nodes.remove(finished.scene, node)


def test_difference_has_a_legend_with_its_unit(finished, view):
    display.show_comparison(finished.outputs.fixed, finished.outputs.warped, "difference")
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(_comparison(finished))
    assert legend.GetVisibility() and legend.GetTitleText() == "Difference (HU)"
    display.show_comparison(finished.outputs.fixed, finished.outputs.warped, "checkerboard")
    assert not legend.GetVisibility()


def test_difference_is_flat_where_the_registration_is_right(finished, view):
    fixed, warped, moving = finished.outputs.fixed, finished.outputs.warped, finished.job.moving
    lungs = arrayFromVolume(finished.job.fixed_mask) != 0

    def spread(other):
        display.show_comparison(fixed, other, "difference")
        shown = arrayFromVolume(_comparison(finished))
        expected = display.nodes.resampled(other, fixed).astype(float) - arrayFromVolume(fixed)
        assert np.abs(shown - expected).max() <= 0.5  # in HU, as Data Probe shows it
        return np.abs(shown[lungs].astype(float)).mean(), view.pixels()

    (after, picture), (before, _) = spread(warped), spread(moving)
    assert after < before / 2
    assert abs(float(np.median(picture[picture.max(-1) > 0])) - 127) <= 2


def test_flicker_shows_one_and_then_the_other(finished, view):
    fixed, warped = finished.outputs.fixed, finished.outputs.warped
    alone = view.pixels()
    display.show_comparison(fixed, warped, "flicker", opacity=0.0)
    assert np.array_equal(view.pixels(), alone)
    display.flicker(finished.scene)
    other = view.pixels()
    assert (np.abs(other.astype(int) - alone).max(-1) > 10).mean() > 0.005
    display.flicker(finished.scene)
    assert np.array_equal(view.pixels(), alone)


def test_fields_disagreement_colours_the_lungs_only(finished, view):
    maps.show_fields_disagreement(finished.outputs, True, opacity=1.0, legend=False)
    shown = view.pixels()
    share = colored(shown).mean()
    assert 0.02 < share < 0.6
    outside = view.pixel_of(voxel_centre(finished.outputs.fixed, (28, 28, 2)))
    assert not colored(shown)[outside]


def test_jacobian_colours_what_was_compared_only(finished, view):
    """The voxels' own values stay as the engine wrote them."""
    outputs, mask = finished.outputs, arrayFromVolume(finished.job.fixed_mask) != 0
    before = arrayFromVolume(outputs.jacobian).copy()
    display.show_jacobian(outputs, True, opacity=1.0, legend=False)
    shown = arrayFromVolume(display.find_masked_jacobian(finished.scene))
    drawn = shown > display._NOT_COMPARED
    assert 2 * (drawn & mask).sum() / (drawn.sum() + mask.sum()) > 0.93  # Dice, of 5 mm voxels by a 4 mm map
    np.testing.assert_allclose(shown[drawn], 100 * before[drawn] - 100, atol=1e-3)  # in percent
    np.testing.assert_array_equal(arrayFromVolume(outputs.jacobian), before)
    jacobian = colored(view.pixels())
    display.show_jacobian(outputs, False)
    assert display.find_masked_jacobian(finished.scene) is None
    maps.show_fields_disagreement(outputs, True, opacity=1.0, legend=False)
    consistency = colored(view.pixels())
    assert jacobian.sum() > 500 and not (jacobian & ~_grown(consistency)).any()


def _grown(pixels: np.ndarray, by: int = 8) -> np.ndarray:
    """About one voxel of the coarser map."""
    grown = pixels.copy()
    for axis in (0, 1):
        for shift in range(-by, by + 1):
            grown |= np.roll(pixels, shift, axis)
    return grown | np.roll(grown, by, 0) | np.roll(grown, -by, 0)


def test_jacobian_of_an_image_without_a_mask_is_all_coloured(finished, view):
    outputs = finished.outputs
    text = outputs.report_text.GetText()
    report = outputs.report
    del report["volume"]
    outputs.report_text.SetText(json.dumps(report))
    display.show_jacobian(outputs, True, opacity=1.0, legend=False)
    shown = arrayFromVolume(display.find_masked_jacobian(finished.scene))
    outputs.report_text.SetText(text)
    np.testing.assert_allclose(shown, 100 * arrayFromVolume(outputs.jacobian) - 100, atol=1e-3)


def test_scales_are_those_of_the_mask(finished, view):
    """Far outside, where nothing was compared, values may be anything."""
    outputs = finished.outputs
    deformation.remove_all(finished.scene)
    grid = outputs.forward.GetTransformFromParentAs("vtkOrientedGridTransform", False)
    inside = compared.at_points(outputs, deformation._points_ras_mm(grid))
    assert 0.02 < inside.mean() < 0.6
    vectors = vtk_to_numpy(grid.GetDisplacementGrid().GetPointData().GetScalars())
    before = vectors.copy()
    node = deformation.make(outputs.forward)
    scale = node.GetDisplayNode().GetColorMap().GetRange()
    deformation.remove_all(finished.scene)
    vectors[~inside] += 500.0
    again = deformation.make(outputs.forward).GetDisplayNode()
    vectors[:] = before
    assert again.GetColorMap().GetRange() == pytest.approx(scale) and scale[1] < 60
    assert float(again.GetContourLevelsMmAsString().split()[-1]) < 60
    deformation.remove_all(finished.scene)

    errors = arrayFromVolume(outputs.fields_disagreement)
    before = errors.copy()
    errors[errors > 0] = 2.5
    place = tuple(np.argwhere(errors > 0)[0])
    errors[place] = 90.0  # a single one
    maps.show_fields_disagreement(outputs, True)
    made = display.own_volume(finished.scene, display.MADE_OVERLAYS[3])
    assert made.GetDisplayNode().GetWindowLevelMax() == 3.0
    errors[:] = before


def test_jump_brings_a_point_to_the_middle(finished, view):
    point = voxel_centre(finished.outputs.fixed, (20, 40, 15))
    display.jump(finished.scene, point)
    assert view.node.GetSliceOffset() == pytest.approx(point[1], abs=1e-3)
    row, column = view.pixel_of(point)
    assert abs(row - 200) <= 1 and abs(column - 200) <= 1


def test_live_view_shows_the_moving_image_where_the_transform_puts_it(finished, view):
    """A moving volume under a parent transform: its second node must not lose that."""
    scene, outputs = finished.scene, finished.outputs
    moving = volume_node(scene, finished.phantom.moving, "under a parent")
    turn = np.array([[0, -1, 0, 5], [1, 0, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]], float)
    parent = put_under(moving, turn)
    moving.CreateDefaultDisplayNodes()
    display.nodes.show_like(moving, outputs.fixed)
    display.show_comparison(outputs.fixed, outputs.warped, "flicker", opacity=1.0)
    lungs = lung_pixels(view, finished)
    warped = view.pixels().astype(int)
    live = display.show_live(outputs.forward, outputs.fixed, moving)
    for composite in display._composites(scene):
        composite.SetForegroundOpacity(1.0)
    assert np.abs(view.pixels().astype(int) - warped)[lungs].mean() < 5
    still = scene.AddNewNodeByClass("vtkMRMLGridTransformNode")
    display.hide_live(live)
    live = display.show_live(still, outputs.fixed, moving)
    for composite in display._composites(scene):
        composite.SetForegroundOpacity(1.0)
    assert np.abs(view.pixels().astype(int) - warped)[lungs].mean() > 30
    display.hide_live(live)
    assert moving.GetParentTransformNode() is parent
    matrix = vtkMatrixFromArray(np.eye(4))
    parent.GetMatrixTransformToParent(matrix)
    np.testing.assert_array_equal(slicer.util.arrayFromVTKMatrix(matrix), turn)
    for node in (still, moving, parent):
        display.nodes.remove(scene, node)


def test_what_is_drawn_leaves_nothing_in_a_saved_scene(finished, view, tmp_path):
    """Display nodes, legends and colours of volumes that are not saved would be loaded as those of nothing."""
    outputs = finished.outputs

    def saved() -> list[str]:
        save_scene(finished.scene, tmp_path / "scene.mrml")
        written = (tmp_path / "scene.mrml").read_text(encoding="utf-8")
        kinds = "VolumeDisplay|ColorLegendDisplay|ColorTable|GridTransformDisplay"
        return sorted(re.findall(rf'<((?:{kinds})\s+id="[^"]*"\s+name="[^"]*")', written))

    display.clear(finished.scene, outputs.fixed)
    plain = saved()
    assert any("VolumeDisplay" in entry for entry in plain)
    for show in (
        lambda: maps.show_error(outputs, True),
        lambda: display.show_jacobian(outputs, True),
        lambda: display.show_comparison(outputs.fixed, outputs.warped, "difference"),
        lambda: display.show_grid(outputs.forward, outputs.fixed, True),
    ):
        show()
        view.pixels()
        assert set(saved()) - set(plain) == set()
        display.clear(finished.scene, outputs.fixed)
