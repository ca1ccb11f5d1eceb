"""A generated breathing chest, so that a first registration needs no files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import slicer

from . import scene as nodes
from .i18n import tr as _

CATEGORY, NAME = "NePhi", "BreathingPhantom"


def register(thumbnail: Path) -> None:
    """Offer the phantom in Slicer's module Sample Data; nothing happens where that module is not loaded."""
    try:
        from SampleData import SampleDataLogic
    except ImportError:
        return
    SampleDataLogic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName=NAME,
        uris=f"generated:{NAME}",  # required, though nothing is downloaded
        fileNames=f"{NAME}.nrrd",
        loadFiles=False,
        customDownloader=load,
        thumbnailFileName=str(thumbnail),
    )


def load(_source=None) -> list:
    """The phantom's nodes, with the exhale volume in the slice views, as Sample Data shows files."""
    made = add_phantom(slicer.mrmlScene)
    slicer.util.setSliceViewerLayers(background=made[0], foreground=None, label=None, fit=True)
    return made


def add_phantom(scene, size=None, spacing_mm=None) -> list:
    """Exhale (fixed) and inhale (moving) volume with lung masks and landmarks as new nodes of the scene.

    size (x, y, z) and spacing are as in ``nephi.synthetic.phantom.make_phantom``.
    """
    from nephi.synthetic.phantom import make_phantom

    return add_nodes(scene, make_phantom(size, spacing_mm))


def add_nodes(scene, phantom) -> list:
    """The same from a phantom that is there."""
    import SimpleITK as sitk

    made = []
    with tempfile.TemporaryDirectory(prefix="nephi-") as folder:
        path = Path(folder) / "image.nrrd"
        for part, class_name, name in (
            ("fixed", "vtkMRMLScalarVolumeNode", _("Exhale (phantom)")),
            ("moving", "vtkMRMLScalarVolumeNode", _("Inhale (phantom)")),
            ("fixed_mask", "vtkMRMLLabelMapVolumeNode", _("Exhale lungs")),
            ("moving_mask", "vtkMRMLLabelMapVolumeNode", _("Inhale lungs")),
        ):
            sitk.WriteImage(getattr(phantom, part), str(path))
            node = nodes.add(scene, class_name, name)
            nodes.read_volume(path, node)
            node.CreateDefaultDisplayNodes()
            made.append(node)
    for volume in made[:2]:
        display = volume.GetDisplayNode()
        display.SetAutoWindowLevel(False)
        display.SetWindowLevelMinMax(-1000, 300)
    for name, points_lps_mm in (
        (_("Exhale landmarks"), phantom.fixed_landmarks_lps_mm),
        (_("Inhale landmarks"), phantom.moving_landmarks_lps_mm),
    ):
        markups = nodes.add(scene, "vtkMRMLMarkupsFiducialNode", name)
        markups.CreateDefaultDisplayNodes()
        display = markups.GetDisplayNode()
        if display is not None:
            display.SetVisibility(False)
        for i, (x, y, z) in enumerate(np.asarray(points_lps_mm).tolist(), 1):
            markups.AddControlPoint((-x, -y, z), str(i))
        made.append(markups)
    return made
