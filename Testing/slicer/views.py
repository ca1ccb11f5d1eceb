"""Slice and 3D views of a MRML scene without a window system: Slicer's own displayable managers, drawn offscreen."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")  # read when vtk makes its first window

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

_SLICE_MANAGERS = (
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLTransformsDisplayableManager2D",
    "vtkMRMLColorLegendDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
)
_3D_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLTransformsDisplayableManager3D",
    "vtkMRMLColorLegendDisplayableManager",
)


class Scene:
    """A scene with the logics that views and colours need, as an application would set it up."""

    def __init__(self):
        self.mrml = slicer.vtkMRMLScene()
        self.application = slicer.vtkMRMLApplicationLogic()
        self.application.SetMRMLScene(self.mrml)
        for place in (self.application.SetHomeDirectory, self.application.SetShareDirectory):
            place(str(Path(slicer.__file__).parent))  # where it looks for colour files
        self.colors = slicer.vtkSlicerColorLogic()  # brings the colour legends
        self.colors.SetMRMLApplicationLogic(self.application)
        self.colors.SetMRMLScene(self.mrml)
        self.application.SetColorLogic(self.colors)
        self.slice_logics = vtk.vtkCollection()
        self.application.SetSliceLogics(self.slice_logics)
        self.view_logics = vtk.vtkCollection()
        self.application.SetViewLogics(self.view_logics)


class _View:
    def __init__(self, scene: Scene, size: tuple[int, int]):
        self.scene = scene
        self.window, self.renderer = vtk.vtkRenderWindow(), vtk.vtkRenderer()
        self.window.SetOffScreenRendering(True)
        self.window.SetMultiSamples(0)
        self.window.SetSize(*size)
        self.window.AddRenderer(self.renderer)
        self.interactor = vtk.vtkGenericRenderWindowInteractor()
        self.interactor.SetRenderWindow(self.window)
        self.interactor.Initialize()

    def _manage(self, factory, managers: tuple[str, ...], node) -> None:
        factory.SetMRMLApplicationLogic(self.scene.application)
        for name in managers:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        self.group = factory.InstantiateDisplayableManagers(self.renderer)
        self.group.SetMRMLDisplayableNode(node)

    def _render(self) -> None:
        self.window.Render()

    def pixels(self) -> np.ndarray:
        """What is shown now as RGB bytes (rows from the top, columns, 3)."""
        for _ in range(2):  # a legend appears with the second rendering
            self._render()
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(self.window)
        grab.ReadFrontBufferOff()
        grab.Update()
        image = grab.GetOutput()
        columns, rows, _ = image.GetDimensions()
        return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(rows, columns, -1)[::-1, :, :3].copy()

    def close(self) -> None:
        self.group.SetMRMLDisplayableNode(None)
        self.window.Finalize()


class SliceView(_View):
    """An ``Axial``, ``Coronal`` or ``Sagittal`` slice view, red, green or yellow as in Slicer."""

    def __init__(self, scene: Scene, orientation: str = "Axial", size: tuple[int, int] = (400, 400)):
        super().__init__(scene, size)
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLScene(scene.mrml)
        self.logic.SetMRMLApplicationLogic(scene.application)
        name = {"Axial": "Red", "Coronal": "Green", "Sagittal": "Yellow"}[orientation]
        self.node = self.logic.AddSliceNode(name)
        self.node.SetOrientation(orientation)
        scene.slice_logics.AddItem(self.logic)
        self.renderer.GetActiveCamera().ParallelProjectionOn()
        self.mapper = vtk.vtkImageMapper()
        self.mapper.SetColorWindow(255)
        self.mapper.SetColorLevel(127.5)
        self.actor = vtk.vtkActor2D()
        self.actor.SetMapper(self.mapper)
        self.actor.GetProperty().SetDisplayLocationToBackground()
        self.renderer.AddViewProp(self.actor)
        self._manage(slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance(), _SLICE_MANAGERS, self.node)
        self.logic.ResizeSliceNode(*size)

    def fit(self) -> None:
        """All of the background volume in view, through its middle."""
        self.logic.UpdatePipeline()
        self.logic.FitSliceToVolume(self.logic.GetNthLayerVolumeNode(0), *self.window.GetSize())

    def _render(self) -> None:
        self.logic.UpdatePipeline()
        self.actor.SetVisibility(self.logic.HasInputs())
        self.mapper.SetInputConnection(self.logic.GetImageDataConnection())
        super()._render()

    def pixel_of(self, point_ras_mm) -> tuple[int, int]:
        """Row (from the top) and column of a point that lies in the slice."""
        matrix = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self.node.GetXYToRAS(), matrix)
        x, y, *_ = matrix.MultiplyPoint([*point_ras_mm, 1.0])
        return self.window.GetSize()[1] - 1 - round(y), round(x)


class ThreeDView(_View):
    def __init__(self, scene: Scene, size: tuple[int, int] = (400, 400)):
        super().__init__(scene, size)
        self.logic = slicer.vtkMRMLViewLogic()
        self.logic.SetMRMLScene(scene.mrml)
        self.node = self.logic.AddViewNode("1")
        self.node.SetBoxVisible(False)
        self.node.SetAxisLabelsVisible(False)
        scene.view_logics.AddItem(self.logic)
        self._manage(slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance(), _3D_MANAGERS, self.node)

    def look_at(self, bounds_ras_mm, azimuth: float = 30.0, elevation: float = 15.0) -> None:
        """From the front (anterior), turned by these degrees."""
        camera = self.renderer.GetActiveCamera()
        centre = np.array([(a + b) / 2 for a, b in zip(bounds_ras_mm[::2], bounds_ras_mm[1::2], strict=True)])
        camera.SetFocalPoint(*centre)
        camera.SetPosition(*(centre + (0.0, 1.0, 0.0)))
        camera.SetViewUp(0.0, 0.0, 1.0)
        camera.Azimuth(azimuth)
        camera.Elevation(elevation)
        self.renderer.ResetCamera(bounds_ras_mm)


def write_png(pixels: np.ndarray, path: Path) -> None:
    """RGB bytes (rows from the top, columns, 3)."""
    image = vtk.vtkImageData()
    image.SetDimensions(pixels.shape[1], pixels.shape[0], 1)
    flat = np.ascontiguousarray(pixels[::-1]).reshape(-1, 3)
    image.GetPointData().SetScalars(vtk.util.numpy_support.numpy_to_vtk(flat, deep=True))
    writer = vtk.vtkPNGWriter()
    writer.SetFileName(str(path))
    writer.SetCompressionLevel(9)
    writer.SetInputData(image)
    writer.Write()
