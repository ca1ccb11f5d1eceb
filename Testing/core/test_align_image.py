"""Alignment, reading of images, masks, windows."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from geometry import rotation
from nephi.both import Both
from nephi.errors import NephiError
from nephi.files import image as images
from nephi.images import hounsfield, masks
from nephi.images.align import align
from nephi.images.slices import Slices
from nephi.measure.quality import dice
from nephi.space.affine import Affine
from nephi.space.grid import Grid

MATRIX = np.array([[1.1, 0.1, 0.0], [-0.05, 0.9, 0.2], [0.0, 0.1, 1.0]])


def test_affine_inverse_and_itk_transform():
    affine = Affine(MATRIX, np.array([5.0, -3.0, 2.0]))
    points = np.random.default_rng(0).normal(size=(20, 3)) * 50
    np.testing.assert_allclose(affine.inverse()(affine(points)), points, atol=1e-9)
    expected = [affine.transform().TransformPoint(p) for p in points.tolist()]
    np.testing.assert_allclose(affine(points), expected, atol=1e-9)
    np.testing.assert_array_equal(Affine.identity(3)(points), points)


def ellipsoid(d: int, axes: np.ndarray, centre_lps_mm, radii_mm, spacing_mm) -> sitk.Image:
    """A mask on a grid of its own; the radii lie along the LPS directions ``axes``."""
    turn = axes @ rotation(d, 25.0, seed=3)  # the grid is turned against the ellipsoid
    size = np.array([72, 60, 64][:d])
    step = turn * np.array(spacing_mm)
    origin = np.asarray(centre_lps_mm) - step @ (size - 1) / 2
    grid = Grid(tuple(map(int, size)), tuple(spacing_mm), tuple(origin), tuple(turn.ravel()))
    points = grid.slab_lps_mm(0, grid.shape[0])
    inside = ((((points - centre_lps_mm) @ axes) / radii_mm) ** 2).sum(-1) < 1
    return grid.image(inside.reshape(grid.shape).astype(np.uint8))


@pytest.mark.parametrize("d", [2, 3])
def test_moments_find_a_scaling_along_the_fixed_axes(d):
    axes = rotation(d, 40.0)
    radii, scale = np.array([40.0, 30.0, 25.0][:d]), np.array([1.2, 0.8, 1.1][:d])
    here, there = np.array([10.0, -20.0, 5.0][:d]), np.array([70.0, 30.0, -40.0][:d])
    # moments are taken along the axes of the fixed grid: let them be those of the ellipsoid
    fixed = ellipsoid(d, axes, here, radii, (1.6, 1.7, 1.8)[:d])
    grid = Grid.of(fixed)
    straight = Grid(grid.size, grid.spacing_mm, tuple(here - axes * grid.spacing_mm @ (np.array(grid.size) - 1) / 2),
                    tuple(axes.ravel()))  # fmt: skip
    fixed = straight.resample(fixed, interpolator=sitk.sitkNearestNeighbor)
    moving = ellipsoid(d, axes, there, radii * scale, (1.5, 1.4, 1.9)[:d])
    start = align(Both(fixed, moving), Both(fixed, moving), "moments")
    affine, how = start.affine, start.method
    assert how == "moments"
    np.testing.assert_allclose(affine.matrix, axes @ np.diag(scale) @ axes.T, atol=0.02)
    np.testing.assert_allclose(affine(here), there, atol=0.5)
    centres = align(Both(fixed, moving), Both(fixed, moving), "centres").affine
    np.testing.assert_allclose(centres.matrix, np.eye(d), atol=1e-12)
    np.testing.assert_allclose(centres(here), there, atol=0.5)
    assert align(Both(fixed, moving), Both(fixed, moving), "auto").method == "moments"


def blank(origin_mm=(0.0, 0.0, 0.0)) -> sitk.Image:
    image = sitk.GaussianSource(sitk.sitkFloat32, (32, 32, 32), (6.0, 7.0, 8.0), (16, 16, 16))
    image.SetOrigin(origin_mm)
    return image


def test_moments_need_masks():
    with pytest.raises(NephiError, match="needs a mask"):
        align(Both(blank(), blank()), Both(None, None), "moments")


def test_affine_by_mutual_information_finds_a_shift():
    rng = np.random.default_rng(0)
    texture = sitk.GetImageFromArray(rng.normal(size=(40, 40, 40)).astype(np.float32))
    fixed = sitk.SmoothingRecursiveGaussian(texture, 2.0)
    moving = sitk.Image(fixed)
    moving.SetOrigin((1.5, -1.0, 0.5))  # points of the fixed image lie here in the moving one
    start = align(Both(fixed, moving), Both(None, None), "affine")
    affine, how = start.affine, start.method
    centre = np.full(3, 19.5)
    assert how == "affine"
    np.testing.assert_allclose(affine(centre) - centre, (1.5, -1.0, 0.5), atol=0.2)


@pytest.mark.parametrize("suffix", [".tfm", ".h5", ".txt", ".mat"])
def test_a_linear_transform_file_is_taken_as_it_is(suffix, tmp_path):
    given = sitk.AffineTransform(3)
    given.SetMatrix(MATRIX.ravel())
    given.SetCenter((10.0, 20.0, 30.0))
    given.SetTranslation((1.0, 2.0, 3.0))
    path = str(tmp_path / f"given{suffix}")
    sitk.WriteTransform(given, path)
    start = align(Both(blank(), blank()), Both(None, None), path)
    affine, how = start.affine, start.method
    assert how == "given"
    point = (3.0, -7.0, 11.0)
    np.testing.assert_allclose(affine(point), given.TransformPoint(point), atol=1e-6)


def test_transform_files_that_cannot_be_used(tmp_path):
    warp = sitk.DisplacementFieldTransform(sitk.Image((8, 8, 8), sitk.sitkVectorFloat64, 3))
    singular = sitk.AffineTransform(3)
    singular.SetMatrix((1.0, 0, 0, 0, 1, 0, 0, 0, 1e-9))
    for name, transform in (("warp.h5", warp), ("flat.tfm", sitk.AffineTransform(2)), ("singular.tfm", singular)):
        sitk.WriteTransform(transform, str(tmp_path / name))
    (tmp_path / "junk.tfm").write_text("junk")
    for name, match in (
        ("warp.h5", "not linear"),
        ("flat.tfm", "is 2D"),
        ("singular.tfm", "cannot be inverted"),
        ("junk.tfm", "cannot read"),
        ("none.tfm", "neither one of"),
    ):
        with pytest.raises(NephiError, match=match):
            align(Both(blank(), blank()), Both(None, None), str(tmp_path / name))


# ---- images --------------------------------------------------------------------------------------------


def write_dicom(image: sitk.Image, folder, uid: str = "1.2.826.0.1.3680043.2.1125.1") -> None:
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    axes = np.reshape(image.GetDirection(), (3, 3))
    for z in range(image.GetDepth()):
        part = image[:, :, z]
        tags = {
            "0008|0060": "CT", "0020|000e": uid, "0020|000d": "1.2.3", "0008|0018": f"{uid}.{z + 1}",
            "0020|0032": "\\".join(map(str, image.TransformIndexToPhysicalPoint((0, 0, z)))),
            "0020|0037": "\\".join(f"{v:g}" for v in [*axes[:, 0], *axes[:, 1]]),
            "0020|0013": str(z), "0028|1053": "1", "0028|1052": "-1024", "0018|0050": str(image.GetSpacing()[2]),
        }  # fmt: skip
        for key, value in tags.items():
            part.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{uid}-{50 - z}.dcm"))  # names in another order than the slices
        writer.Execute(part)


def test_dicom_folder_is_read_in_place(tmp_path):
    rng = np.random.default_rng(0)
    image = sitk.GetImageFromArray(rng.integers(-1000, 500, (10, 12, 14)).astype(np.int16))
    image.SetSpacing((0.8, 0.9, 2.5))
    image.SetOrigin((-30.0, 12.0, -200.0))
    write_dicom(image, tmp_path)
    back = images.read_image(tmp_path, "fixed image")
    assert Grid.of(back).same_as(Grid.of(image))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(image))
    write_dicom(image, tmp_path, uid="1.2.826.0.1.3680043.2.1125.2")
    with pytest.raises(NephiError, match="2 DICOM series.*--series"):
        images.read_image(tmp_path, "fixed image")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NephiError, match="no DICOM series"):
        images.read_image(tmp_path / "empty", "fixed image")


@pytest.mark.parametrize("name", ["fixed", "moving"])
def test_lungs_of_the_phantom_are_found(phantom_3d, name):
    image, truth = getattr(phantom_3d, name), getattr(phantom_3d, f"{name}_mask")
    found = masks.lung_mask(image)
    assert Grid.of(found).same_as(Grid.of(image))
    assert dice(sitk.GetArrayFromImage(found) > 0, sitk.GetArrayFromImage(truth) > 0) > 0.9


def smaller(image: sitk.Image, factor: float) -> sitk.Image:
    image = sitk.Image(image)
    image.SetSpacing([s * factor for s in image.GetSpacing()])
    image.SetOrigin([o * factor for o in image.GetOrigin()])
    return image


def test_a_small_body_is_treated_as_a_large_one(phantom_3d):
    """Voxels of 20 micrometres: lungs are found, and the affine alignment is the large one's, scaled."""
    factor = 0.02 / phantom_3d.fixed.GetSpacing()[0]
    found = masks.lung_mask(smaller(phantom_3d.fixed, factor))
    assert dice(sitk.GetArrayFromImage(found) > 0, sitk.GetArrayFromImage(phantom_3d.fixed_mask) > 0) > 0.9
    small = [smaller(image, factor) for image in (phantom_3d.fixed, phantom_3d.moving)]
    small_masks = [smaller(mask, factor) for mask in (phantom_3d.fixed_mask, phantom_3d.moving_mask)]
    affine = align(Both(*small), Both(*small_masks), "affine").affine
    fixed, moving = phantom_3d.fixed_landmarks_lps_mm * factor, phantom_3d.moving_landmarks_lps_mm * factor
    before = np.linalg.norm(fixed - moving, axis=1).mean()
    assert np.linalg.norm(affine(fixed) - moving, axis=1).mean() < before


@pytest.mark.parametrize("factor", [0.7, 0.5, 0.38, 0.3])
def test_lungs_of_a_child_are_found(factor, phantom_3d):
    found = masks.lung_mask(smaller(phantom_3d.fixed, factor))
    assert dice(sitk.GetArrayFromImage(found) > 0, sitk.GetArrayFromImage(phantom_3d.fixed_mask) > 0) > 0.9


@pytest.mark.parametrize("kind", ["affine", "auto"])
def test_any_number_of_threads_gives_the_same_bits(kind, phantom_2d):
    """Sums of a similarity must not depend on how its points are shared out."""
    before, found = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads(), []
    try:
        for threads in (1, 2, 4, 4):
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
            affine = align(Both(phantom_2d.fixed, phantom_2d.moving), Both(None, None), kind).affine
            found.append(affine.matrix.tobytes() + np.asarray(affine.offset_mm).tobytes())
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    assert len(set(found)) == 1


@pytest.mark.parametrize("spacing_mm", [2.0, 3.0])
def test_clefts_of_a_lung_are_closed_by_their_width_in_mm(spacing_mm):
    """A cleft up to twice the 6 mm of the closing is a vessel or a fissure; a wider one is not lung."""
    n = int(180 / spacing_mm)
    z, y, x = (axis * spacing_mm for axis in np.indices((n, n, n)))
    lung = (abs(x - 90) < 55) & (abs(y - 90) < 55) & (abs(z - 90) < 60)
    narrow, wide = (y < 90) & (abs(x - 60) <= 3), (y < 90) & (abs(x - 115) <= 12)
    image = sitk.GetImageFromArray(np.where(lung & ~narrow & ~wide, -800, 40).astype(np.int16))
    image.SetSpacing([spacing_mm] * 3)
    found = sitk.GetArrayFromImage(masks.lung_mask(image)) > 0
    deep = lung & (y > 60) & (y < 80) & (abs(z - 90) < 40)
    assert found[narrow & deep].mean() > 0.9
    assert found[wide & deep & (abs(x - 115) < 6)].mean() < 0.1


@pytest.mark.parametrize("share, kept", [(1.0, True), (0.4, True), (0.05, False)])
def test_a_second_lung_counts_where_it_is_large_enough(share, kept):
    z, y, x = np.indices((60, 60, 60)) * 3.0
    inside = (abs(y - 90) < 45) & (abs(z - 90) < 60)
    first, second = inside & (abs(x - 55) < 25), inside & (abs(x - 125) < 25) & (z - 30 < 120 * share)
    image = sitk.GetImageFromArray(np.where(first | second, -800, 40).astype(np.int16))
    image.SetSpacing([3.0] * 3)
    found = sitk.GetArrayFromImage(masks.lung_mask(image)) > 0
    assert found[first].mean() > 0.9 and (found[second].mean() > 0.9) == kept
    assert found[~first & ~second].mean() < 0.1


def _beyond_a_circle(image: sitk.Image, value: int) -> sitk.Image:
    array = sitk.GetArrayFromImage(image)
    _, y, x = (2 * index / (n - 1) - 1 for index, n in zip(np.indices(array.shape), array.shape, strict=True))
    array[np.hypot(y, x) > 1] = value
    out = sitk.GetImageFromArray(array)
    out.CopyInformation(image)
    return out


def _tube(image: sitk.Image) -> sitk.Image:
    """A wall all around the patient, the room's air within and beyond."""
    array = sitk.GetArrayFromImage(image)
    array[:, [1, 2, -3, -2]] = 200
    array[:, :, [1, 2, -3, -2]] = 200
    out = sitk.GetImageFromArray(array)
    out.CopyInformation(image)
    return out


@pytest.mark.parametrize("value", [-32768, -3024, -2000, -1024, 0, 3071])
def test_lungs_are_found_whatever_surrounds_what_was_scanned(value, phantom_3d):
    truth = phantom_3d.fixed_mask
    padded = [
        sitk.ConstantPad(image, [4] * 3, [4] * 3, fill) for image, fill in ((phantom_3d.fixed, value), (truth, 0))
    ]
    for image, wanted in ((_beyond_a_circle(phantom_3d.fixed, value), truth), padded):
        found = masks.lung_mask(image)
        assert dice(sitk.GetArrayFromImage(found) > 0, sitk.GetArrayFromImage(wanted) > 0) > 0.9


def test_lungs_are_found_in_a_tube_cropped_and_in_any_storage_order(phantom_3d):
    image, truth = phantom_3d.fixed, phantom_3d.fixed_mask
    box = tuple(slice(part.start, part.stop) for part in reversed(masks.mask_box(truth)))
    pairs = [(_tube(image), truth), (image[box], truth[box])]
    low = box[2].start + (box[2].stop - box[2].start) // 3  # lungs cut at the bottom
    for order in ("LPS", "LIP", "PSR", "SAR"):
        pairs.append(tuple(sitk.DICOMOrient(part[:, :, low:], order) for part in (image, truth)))
    for seen, wanted in pairs:
        found = masks.lung_mask(seen)
        assert dice(sitk.GetArrayFromImage(found) > 0, sitk.GetArrayFromImage(wanted) > 0) > 0.9


def test_emphysematous_lungs_cut_by_the_field_of_view_are_found(phantom_3d):
    """Nearly as dark as the room's air, at a side of the image, and with the room's air at the others."""
    lungs = sitk.GetArrayFromImage(phantom_3d.fixed_mask) > 0
    array = np.where(lungs, -945, sitk.GetArrayFromImage(phantom_3d.fixed)).astype(np.int16)
    array += np.random.default_rng(0).normal(0, 15, array.shape).astype(np.int16)
    middle = array.shape[2] // 2
    columns = np.flatnonzero(lungs.any((0, 1)))
    part = slice(int(columns[0] + (middle - columns[0]) // 4), None)  # the outer quarter of one lung is not seen
    seen = sitk.GetImageFromArray(array[:, :, part])
    seen.SetSpacing(phantom_3d.fixed.GetSpacing())
    found = masks.lung_mask(seen)
    assert dice(sitk.GetArrayFromImage(found) > 0, lungs[:, :, part]) > 0.9


def _turned(image: sitk.Image, axis: int, outside: float) -> sitk.Image:
    """By 30 degrees about the middle, in a volume with room for it."""
    around = [n // 4 for n in image.GetSize()]
    larger = sitk.ConstantPad(image, around, around, outside)
    angles = [0.0] * 3
    angles[axis] = np.deg2rad(30)
    centre = larger.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in larger.GetSize()])
    return sitk.Resample(larger, sitk.Euler3DTransform(centre, *angles), sitk.sitkLinear, outside)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_cut_lungs_of_a_turned_patient_on_a_table_are_found(axis, phantom_3d):
    """The cut ends in air that pads the scan, and the table's foam is larger than a lung and no darker."""
    lungs = sitk.GetArrayFromImage(phantom_3d.fixed_mask)
    array = sitk.GetArrayFromImage(phantom_3d.fixed)
    planes = np.flatnonzero(lungs.any((1, 2)))
    seen = slice(int(planes[0] + len(planes) // 3), None)
    foam = np.full((array.shape[0], 12, array.shape[2]), -900, array.dtype)
    images = []
    for part in (np.concatenate([array, foam], 1)[seen], np.concatenate([lungs, 0 * foam], 1)[seen]):
        image = sitk.GetImageFromArray(part.astype(np.float32))
        image.SetSpacing(phantom_3d.fixed.GetSpacing())
        images.append(image)
    image, truth = _turned(images[0], axis, -1000), _turned(images[1], axis, 0) > 0.5
    found = masks.lung_mask(image)
    assert dice(sitk.GetArrayFromImage(found) > 0, sitk.GetArrayFromImage(truth) > 0) > 0.9


def _emphysema(pair) -> tuple[sitk.Image, np.ndarray]:
    """Lungs nearly as dark as the room's air, in parts darker, with noise; and where they are (z, y, x)."""
    lungs = sitk.GetArrayFromImage(pair.fixed_mask) > 0
    rng = np.random.default_rng(0)
    array = np.where(lungs, -950.0, sitk.GetArrayFromImage(pair.fixed)) + rng.normal(0, 15, lungs.shape)
    array[lungs & (np.indices(lungs.shape)[0] % 12 < 4)] -= 35
    return Grid.of(pair.fixed).image(array.astype(np.float32)), lungs


@pytest.mark.parametrize("value", [-1500, -2000, -3024, -32768])
@pytest.mark.parametrize("axis", [None, 1])
def test_dark_lungs_that_end_at_what_was_not_scanned_are_found(value, axis, phantom_3d):
    """A circle within the body cuts the lungs, with a value beyond it that no air has; as stored, or turned with it."""
    image, lungs = _emphysema(phantom_3d)
    _, y, x = (2 * index / (n - 1) - 1 for index, n in zip(np.indices(lungs.shape), lungs.shape, strict=True))
    outside = np.hypot(y, x) > 0.5
    assert (lungs & outside).sum() > 0.1 * lungs.sum()
    array = sitk.GetArrayFromImage(image)
    array[outside] = value
    seen, truth = (Grid.of(image).image(a) for a in (array, (lungs & ~outside).astype(np.float32)))
    if axis is not None:
        seen, truth = _turned(seen, axis, -1000), _turned(truth, axis, 0)
    found = masks.lung_mask(seen)
    assert dice(sitk.GetArrayFromImage(found) > 0, sitk.GetArrayFromImage(truth) > 0.5) > 0.9


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("cut_axis", [0, 2])
def test_dark_lungs_that_are_cut_and_then_turned_are_found(cut_axis, axis, phantom_3d):
    """The cut ends in the value of air, which fills what the turned volume never saw."""
    image, lungs = _emphysema(phantom_3d)
    across = np.flatnonzero(lungs.any(tuple(a for a in range(3) if a != cut_axis)))
    part = (slice(None),) * (2 - cut_axis) + (slice(int(across[0] + len(across) // 4), None),)
    seen = _turned(image[part], axis, -1000)
    truth = _turned(Grid.of(image).image(lungs.astype(np.float32))[part], axis, 0)
    found = masks.lung_mask(seen)
    assert dice(sitk.GetArrayFromImage(found) > 0, sitk.GetArrayFromImage(truth) > 0.5) > 0.9


@pytest.mark.parametrize("around", [-1000, -1024, 0, -2000])
def test_lungs_that_were_cut_out_of_the_body_are_found(around, phantom_3d):
    image, lungs = phantom_3d.fixed, sitk.GetArrayFromImage(phantom_3d.fixed_mask) > 0
    alone = Grid.of(image).image(np.where(lungs, sitk.GetArrayFromImage(image), around).astype(np.int16))
    assert hounsfield.looks_like_ct(alone)
    assert dice(sitk.GetArrayFromImage(masks.lung_mask(alone)) > 0, lungs) > 0.9


def test_dense_lungs_that_were_cut_out_of_the_body_are_no_inverted_ct():
    """As after exhalation: inverted, their parenchyma would be soft tissue, and their vessels air."""
    rng, z, y, x = np.random.default_rng(0), *np.indices((48, 48, 48))
    lungs = (abs(x - 24) > 4) & (abs(x - 24) < 18) & (abs(y - 24) < 10) & (abs(z - 24) < 15)
    values = np.full(lungs.shape, -1000.0)
    kind = rng.random(lungs.sum())
    parenchyma, vessels = rng.normal(-640, 130, kind.size), rng.uniform(-150, 450, kind.size)
    values[lungs] = np.select([kind < 0.005, kind < 0.16], [-990.0, vessels], parenchyma)
    assert hounsfield.looks_like_ct(sitk.GetImageFromArray(np.round(values).astype(np.int16)))


@pytest.mark.parametrize("air", [-1000, -985])
@pytest.mark.parametrize("width", [6, 25])
def test_air_around_a_limb_or_a_head_is_no_lung(air, width):
    z, y, x = np.indices((60, 60, 60)) - 30
    array = np.where(np.hypot(x, y) < width / 2, 40.0, air) + np.random.default_rng(0).normal(0, 15, z.shape)
    image = sitk.GetImageFromArray(array.astype(np.float32))
    image.SetSpacing([4.0] * 3)
    assert masks.lung_mask(image) is None


def test_no_lungs_in_a_solid_body():
    body = sitk.Image((40, 40, 40), sitk.sitkInt16) + 40
    assert masks.lung_mask(body) is None


def test_ct_is_known_by_its_numbers(phantom_2d, phantom_3d):
    assert hounsfield.looks_like_ct(phantom_3d.fixed) and hounsfield.looks_like_ct(phantom_2d.moving)
    assert not hounsfield.looks_like_ct(blank() * 1000)  # MR: nothing below zero
    assert not hounsfield.looks_like_ct(sitk.ShiftScale(sitk.Cast(phantom_3d.fixed, sitk.sitkFloat32), 1024.0, 1.0))


def test_window_is_the_cts_or_percentiles(phantom_3d):
    assert masks.choose_window(phantom_3d.fixed) == (-1000.0, 200.0)
    array = np.zeros((20, 20, 20), np.float32)
    array[5:15, 5:15, 5:15] = np.linspace(100, 300, 1000).reshape(10, 10, 10)
    image = sitk.GetImageFromArray(array)
    low, high = masks.choose_window(image)
    assert low == pytest.approx(102, abs=1) and high == pytest.approx(298, abs=1)  # the zeros around do not count
    half = np.zeros_like(array, np.uint8)
    half[5:10, 5:15, 5:15] = 1
    assert masks.choose_window(image, sitk.GetImageFromArray(half))[1] == pytest.approx(199, abs=2)


@pytest.mark.parametrize("far", [-1000.0, -32768.0, 65535.0])
def test_window_is_that_of_what_is_shown_whatever_pads_it(far):
    shown = sitk.GetImageFromArray(np.random.default_rng(0).uniform(1, 200, (24, 24, 24)).astype(np.float32))
    padded = sitk.ConstantPad(shown, [4] * 3, [4] * 3, far)
    assert masks.choose_window(padded) == pytest.approx(masks.choose_window(shown), abs=2)
    assert hounsfield.shown_range(padded) == pytest.approx(hounsfield.shown_range(shown), abs=2)
    assert hounsfield.far_padding(padded) == [far]


def test_the_background_of_an_organ_is_no_far_padding():
    organ = np.zeros((24, 24, 24), np.float32)
    organ[6:18, 6:18, 6:18] = np.random.default_rng(0).uniform(0.3, 1, (12, 12, 12))
    assert hounsfield.far_padding(sitk.GetImageFromArray(organ)) == []


def test_window_with_a_mask_too_small_for_the_steps():
    array = np.random.default_rng(0).uniform(1, 2, (300, 300)).astype(np.float32)
    mask = np.zeros_like(array, np.uint8)
    mask[101, 101] = 1
    low, high = masks.choose_window(sitk.GetImageFromArray(array), sitk.GetImageFromArray(mask))
    assert 1 <= low < high <= 2


def test_slices_average_before_it_gets_coarser():
    array = np.zeros((32, 32, 32), np.float32)
    array[::4] = 1.0  # finer than the working grid, whose voxels lie between
    image = sitk.GetImageFromArray(array)
    grid = Grid((6, 6, 6), (4.0,) * 3, (5.5,) * 3, tuple(np.eye(3).ravel()))
    out = Slices(image, grid)[:]
    np.testing.assert_allclose(out, 0.25, atol=1e-6)


def test_image_is_written_whole_or_not_at_all(tmp_path):
    images.write_image(blank(), tmp_path / "a.nii.gz")
    assert sitk.ReadImage(str(tmp_path / "a.nii.gz")).GetSize() == (32, 32, 32)
    with pytest.raises(NephiError, match="known image type"):
        images.write_image(blank(), tmp_path / "a.unknown")
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


@pytest.mark.parametrize("d", [2, 3])
def test_a_frequent_value_in_a_corner_is_no_padding(d):
    """Whole numbers of tissue repeat often, but seldom side by side; what pads an image goes on from its corner."""
    tissue = np.round(np.random.default_rng(0).normal(-100, 10, (24,) * d))
    assert hounsfield.padding(sitk.GetImageFromArray(tissue)) == []
    one_plane = tissue.copy()
    one_plane[0] = -77
    assert hounsfield.padding(sitk.GetImageFromArray(one_plane)) == [-77]
    canvas = np.pad(tissue, 4, constant_values=0)
    assert hounsfield.padding(sitk.GetImageFromArray(canvas)) == [0]


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_a_ct_whose_negative_numbers_lost_their_sign_is_refused(kind, phantom_3d):
    values = sitk.GetArrayFromImage(phantom_3d.fixed).astype(np.int16)
    wrapped = Grid.of(phantom_3d.fixed).image(values.view(np.uint16).astype(kind))
    with pytest.raises(NephiError, match="moving image: .* without sign"):
        hounsfield.hounsfield(wrapped, "moving")
    other = Grid.of(phantom_3d.fixed).image((values.astype(int) + 1100).astype(np.uint16) * 15)  # as of an MR
    assert hounsfield.hounsfield(other, "moving") is other
