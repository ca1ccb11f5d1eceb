"""The surface of a mask, to be seen in the 3D view."""

from __future__ import annotations

import numpy as np
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from . import scene as nodes

_COLOR, _OPACITY = (0.92, 0.72, 0.65), 0.4


def surface_model(scene, inside: np.ndarray, ijk_to_world: np.ndarray, name: str):
    """A translucent model of a mask (z, y, x), smoothed; ``ijk_to_world`` as in ``scene``, in RAS mm (4, 4)."""
    image = vtk.vtkImageData()
    padded = np.pad(inside.astype(np.uint8), 1)
    image.SetDimensions(padded.shape[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(padded.ravel(), deep=True))
    surface = vtk.vtkFlyingEdges3D()
    surface.SetInputData(image)
    surface.SetValue(0, 0.5)
    surface.ComputeScalarsOff()
    surface.ComputeNormalsOff()
    smooth = vtk.vtkWindowedSincPolyDataFilter()
    smooth.SetInputConnection(surface.GetOutputPort())
    smooth.SetNumberOfIterations(15)
    smooth.SetPassBand(0.1)
    place = vtk.vtkTransform()
    place.SetMatrix(ijk_to_world.ravel().tolist())
    place.Translate(-1, -1, -1)  # of the padding
    moved = vtk.vtkTransformPolyDataFilter()
    moved.SetTransform(place)
    moved.SetInputConnection(smooth.GetOutputPort())
    normals = vtk.vtkPolyDataNormals()
    normals.SetInputConnection(moved.GetOutputPort())
    normals.Update()
    model = nodes.add(scene, "vtkMRMLModelNode", name)
    model.SetAndObservePolyData(normals.GetOutput())
    model.CreateDefaultDisplayNodes()
    display = model.GetDisplayNode()
    display.SetColor(*_COLOR)
    display.SetOpacity(_OPACITY)
    display.SetVisibility2D(False)
    display.SetSliceIntersectionThickness(2)
    return model
