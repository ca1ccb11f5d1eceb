"""Reading, checking and writing images; masks; the intensity window."""

from __future__ import annotations

import gzip
import os
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from .errors import NephiError
from .space import Grid

CT_WINDOW = (-1000.0, 200.0)
LUNG_THRESHOLD_HU = -400.0
_HIGHEST_LABEL = 1000  # beyond it an image was taken for a label map
_NOT_FINITE = "{role}: the image holds NaN or infinite values; replace them first"
_SMALLEST = 8  # voxels a side below which there is nothing to register


def read_image(path: str | Path, role: str = "image") -> sitk.Image:
    """A scalar 2D or 3D image from NIfTI, NRRD, MetaImage, ... or a folder with one DICOM series.

    Raises NephiError where the file is missing, unreadable, 4D, colour, tiny, constant or not finite.
    """
    path = Path(path)
    if not path.exists():
        raise NephiError(f"{role}: no such file or folder: {path}")
    try:
        with _quiet():
            image = _read_dicom(path, role) if path.is_dir() else sitk.ReadImage(str(path))
    except RuntimeError:
        raise NephiError(f"{role}: cannot read {path} as an image (NIfTI, NRRD, MetaImage or a DICOM folder)") from None
    if path.name.endswith((".nii", ".nii.gz")) and _nifti_not_finite(path):
        raise NephiError(_NOT_FINITE.format(role=role))
    return check_image(image, role)


def _nifti_not_finite(path: Path) -> bool:
    """Whether a NIfTI-1 file holds NaN or infinite values, which ITK reads as 0 without a word."""
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    with (gzip.open if zipped else open)(path, "rb") as file:
        header = file.read(352)
        order = "<" if header[:4] == (348).to_bytes(4, "little") else ">"
        kind = {16: "f4", 64: "f8"}.get(int(np.frombuffer(header, f"{order}i2", 1, 70)[0]))
        if kind is None or len(header) < 352:
            return False
        file.seek(int(np.frombuffer(header, f"{order}f4", 1, 108)[0]))
        while part := file.read(2**24):
            values = np.frombuffer(part[: len(part) // 8 * 8], order + kind)
            if not np.isfinite(values).all():
                return True
    return False


def _read_dicom(folder: Path, role: str) -> sitk.Image:
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not series:
        raise NephiError(f"{role}: no DICOM series in folder {folder}")
    if len(series) > 1:
        raise NephiError(f"{role}: {len(series)} DICOM series in {folder}; put the one to use in a folder of its own")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series[0]))
    return reader.Execute()


def _quiet():
    """SimpleITK's own warnings off: what matters is raised as one line."""

    class Quiet:
        def __enter__(self):
            self.before = sitk.ProcessObject.GetGlobalWarningDisplay()
            sitk.ProcessObject.SetGlobalWarningDisplay(False)

        def __exit__(self, *_):
            sitk.ProcessObject.SetGlobalWarningDisplay(self.before)

    return Quiet()


def check_image(image: sitk.Image, role: str) -> sitk.Image:
    """The image itself, a one-slice 3D image as it is; raises NephiError where it can't be registered."""
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise NephiError(
            f"{role}: a colour or vector image ({image.GetNumberOfComponentsPerPixel()} components a "
            "voxel); give a scalar one"
        )
    if image.GetDimension() not in (2, 3):
        raise NephiError(f"{role}: the image is {image.GetDimension()}D; give one 2D or 3D volume")
    if min(image.GetSize()) < _SMALLEST:
        raise NephiError(
            f"{role}: {'x'.join(map(str, image.GetSize()))} voxels is too small; at least {_SMALLEST} a side are needed"
        )
    array = sitk.GetArrayViewFromImage(image)
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        raise NephiError(_NOT_FINITE.format(role=role))
    if low == high:
        raise NephiError(f"{role}: every voxel has the same value {low:g}; there is nothing to register")
    return image


def check_mask(mask: sitk.Image, image: sitk.Image, role: str) -> sitk.Image:
    """The mask as 0/1 bytes; raises NephiError where it is empty or lies on another grid."""
    if mask.GetDimension() != image.GetDimension() or not Grid.of(mask).same_as(Grid.of(image)):
        raise NephiError(
            f"{role}: the mask does not lie on its image's grid (size, spacing, origin, direction); "
            "resample it to the image first"
        )
    if mask.GetNumberOfComponentsPerPixel() != 1:
        raise NephiError(f"{role}: the mask has several components a voxel; give a scalar one")
    if mask.GetPixelID() != sitk.sitkUInt8 or sitk.GetArrayViewFromImage(mask).max() > 1:
        mask = sitk.Cast(mask != 0, sitk.sitkUInt8)
    if not sitk.GetArrayViewFromImage(mask).any():
        raise NephiError(f"{role}: the mask is empty")
    return mask


def mask_box(mask: sitk.Image) -> tuple[slice, ...]:
    """The box of a mask that is not 0, as slices of its array (z first)."""
    array = sitk.GetArrayViewFromImage(mask)
    planes = np.flatnonzero([plane.any() for plane in array])
    box = [slice(int(planes[0]), int(planes[-1]) + 1)]
    flat = np.bitwise_or.reduce(array[box[0]], axis=0)
    for axis in range(flat.ndim):
        rows = np.flatnonzero(flat.any(tuple(a for a in range(flat.ndim) if a != axis)))
        box.append(slice(int(rows[0]), int(rows[-1]) + 1))
    return tuple(box)


def read_mask(path: str | Path, image: sitk.Image, role: str) -> sitk.Image:
    return check_mask(_read_file(path, role), image, role)


def read_regions(path: str | Path, image: sitk.Image, role: str = "regions") -> sitk.Image:
    """A label map (0: no region) on the image's grid, as integers; raises NephiError where it is none."""
    labels = _read_file(path, role)
    check_mask(labels, image, role)
    array = sitk.GetArrayViewFromImage(labels)
    if array.min() < 0 or array.max() > _HIGHEST_LABEL or (array != np.floor(array)).any():
        raise NephiError(f"{role}: {path} is no label map: whole numbers from 0 to {_HIGHEST_LABEL} are expected")
    return sitk.Cast(labels, sitk.sitkUInt16)


def _read_file(path: str | Path, role: str) -> sitk.Image:
    path = Path(path)
    if not path.exists():
        raise NephiError(f"{role}: no such file: {path}")
    try:
        with _quiet():
            return sitk.ReadImage(str(path))
    except RuntimeError:
        raise NephiError(f"{role}: cannot read {path} as an image") from None


def looks_like_ct(image: sitk.Image) -> bool:
    """Hounsfield units by their range: air well below zero and nothing far below -4000."""
    array = sitk.GetArrayViewFromImage(image)[:: max(1, image.GetSize()[-1] // 16)]
    low, high = np.percentile(array[..., ::4, ::4], (1, 99.5))
    return bool(-4096 <= low <= -500 and high > -200)


def choose_window(image: sitk.Image, mask: sitk.Image | None = None) -> tuple[float, float]:
    """Intensities to map to 0..1: -1000..200 HU for CT, else the 1st to 99th percentile of what is not zero."""
    if looks_like_ct(image):
        return CT_WINDOW
    array = sitk.GetArrayViewFromImage(image)
    step = tuple(slice(None, None, max(1, n // 128)) for n in array.shape)
    values = array[step][sitk.GetArrayViewFromImage(mask)[step] != 0] if mask is not None else array[step]
    values = values if values.size else array  # a small mask may slip through the steps
    values = values[values != 0] if (values != 0).any() else values
    low, high = (float(v) for v in np.percentile(values, (1, 99)))
    return (low, high) if low < high else (float(array.min()), float(array.max()))


def lung_mask(image: sitk.Image, threshold: float = LUNG_THRESHOLD_HU) -> sitk.Image | None:
    """Lungs of a CT by threshold: air inside the body, its two largest parts, vessels filled in.

    Works at about 3 mm and comes back on the image's grid; None where no plausible lung is found
    (less than 200 ml), so that a caller can go on without a mask. The trachea may stay in.
    """
    grid = Grid.of(image)
    d = grid.dimension
    shrink = [max(1, int(3.0 / s)) for s in grid.spacing_mm]
    small = sitk.BinShrink(sitk.Cast(image, sitk.sitkFloat32), shrink)
    air = small < threshold
    # air outside the body touches the sides (not the top and bottom, where a cut lung may end)
    labels = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.BinaryMorphologicalOpening(air, [1] * d)))
    outside = set()
    for axis in range(d - 2, d) if d == 3 else range(d):
        outside.update(np.unique(np.take(labels, [0, -1], axis=axis)))
    inside = sitk.GetImageFromArray((~np.isin(labels, list(outside | {0}))).astype(np.uint8))
    inside.CopyInformation(small)
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(inside), sortByObjectSize=True)
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(parts)
    volumes = [shape.GetPhysicalSize(label) for label in (1, 2) if shape.HasLabel(label)]
    floor = 200e3 if d == 3 else 1000.0
    if not volumes or volumes[0] < floor:
        return None
    two = len(volumes) == 2 and volumes[1] > 0.2 * volumes[0]
    lungs = sitk.Cast(sitk.And(parts >= 1, parts <= (2 if two else 1)), sitk.sitkUInt8)
    radius = [max(1, round(6.0 / s)) for s in small.GetSpacing()]
    lungs = sitk.BinaryMorphologicalClosing(lungs, radius)
    lungs = sitk.BinaryFillhole(lungs)
    smooth = grid.resample(sitk.Cast(lungs, sitk.sitkFloat32)) > 0.5
    return sitk.Cast(smooth, sitk.sitkUInt8)


class Slices:
    """An image on a working grid, resampled a few slices at a time: ``slices[start:stop]`` is float32 (z, y, x).

    The image is averaged first where the grid is coarser. ``transform`` takes points of the grid to points of the
    image; ``outside`` is the value beyond it. So no second image of the grid's size is ever held in memory.
    """

    def __init__(self, image: sitk.Image, grid: Grid, transform: sitk.Transform | None = None, outside: float = 0.0):
        factor = [max(1, int(min(grid.spacing_mm) / s + 0.1)) for s in image.GetSpacing()]
        self._image = sitk.BinShrink(image, factor) if max(factor) > 1 else image
        self._grid, self._transform, self._outside, self._steps = grid, transform, outside, []
        self.shape = grid.shape

    def then(self, step) -> Slices:
        """Adds ``step(values, rows) -> values`` to what is done with slices as they are read."""
        self._steps.append(step)
        return self

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        part = self._grid.slices(start, stop)
        values = sitk.GetArrayFromImage(
            part.resample(self._image, self._transform, sitk.sitkLinear, self._outside, sitk.sitkFloat32)
        )
        for step in self._steps:
            values = step(values, rows)
        return values


def write_image(image: sitk.Image, path: Path) -> None:
    """Write beside the target and put it in place at once, so that no half file appears."""
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".nephi-", suffix=suffix)
    os.close(handle)
    try:
        sitk.WriteImage(image, name, True, 1)
        os.replace(name, path)
    except RuntimeError:
        raise NephiError(f"cannot write {path}: use a known image type such as .nii.gz, .nrrd or .mha") from None
    finally:
        Path(name).unlink(missing_ok=True)
