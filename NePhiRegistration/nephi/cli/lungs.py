"""``nephi lungs``: writes the lungs that a registration would use, to be checked and corrected."""

from __future__ import annotations

import SimpleITK as sitk

from ..errors import NephiError
from ..files.image import read_volume, write_image
from ..images.hounsfield import hounsfield, looks_like_ct
from ..images.left_right import LEFT, RIGHT, UNDIVIDED, right_and_left
from ..images.lungs import find_lungs
from ..paths import output_file

_NAMES = {RIGHT: "right lung", LEFT: "left lung", UNDIVIDED: "lungs"}


def lungs_command(options) -> int:
    target = output_file(options.output)
    image = hounsfield(read_volume(options.image, series=tuple(options.series)), "image")
    found = find_lungs(image) if image.GetDimension() == 3 else None
    if found is None and not (image.GetDimension() == 3 and looks_like_ct(image)):
        raise NephiError(f"{options.image} is not a 3D CT in Hounsfield units, and no pair of lungs was found in it")
    if found is None:
        raise NephiError(f"no lungs were found in {options.image}")
    labels = right_and_left(found)
    write_image(labels, target)
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(labels)
    for label in shape.GetLabels():
        print(f"{label:>3}  {_NAMES[label]:<10}  {shape.GetPhysicalSize(label) / 1e6:.2f} L")
    return 0
