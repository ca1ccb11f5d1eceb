"""What the result that is shown was applied to: files opened for it, shown over the views, saved as files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nephi.errors import NephiError
from NePhiRegistrationLib import display
from NePhiRegistrationLib import scene as nodes
from NePhiRegistrationLib.applying import apply_to
from NePhiRegistrationLib.outputs import Outputs

from . import dicom
from .files import plain
from .roles import IMAGES, POINTS, USES, Kind
from .views import Views

_FOLDER = "applied"  # in that of a saved result
_WRITERS = {  # ending and writer; of all others those of images
    "vtkMRMLSegmentationNode": (".seg.nrrd", nodes.write_segmentation),
    "vtkMRMLMarkupsFiducialNode": (".csv", nodes.write_points),
    "vtkMRMLModelNode": (".vtp", nodes.write_model),
}


@dataclass(eq=False)
class Made:
    """A node in the fixed, or ``backwards`` in the moving scan, as the result whose transform has the ID brings it."""

    node: Any
    result: str
    backwards: bool
    shown: bool = False

    @property
    def name(self) -> str:
        return self.node.GetName()

    @property
    def is_scan(self) -> bool:
        return not self.is_labels and self.node.IsA("vtkMRMLScalarVolumeNode")

    @property
    def is_labels(self) -> bool:
        return self.node.IsA("vtkMRMLLabelMapVolumeNode")

    @property
    def has_segments(self) -> bool:
        return self.is_labels or self.node.IsA("vtkMRMLSegmentationNode")

    @property
    def _writer(self) -> tuple[str, Callable[[Any, Path], None]]:
        return _WRITERS.get(self.node.GetClassName(), (".nii.gz", nodes.write_image_file))

    @property
    def file_name(self) -> str:
        return plain(self.name) + self._writer[0]

    def write(self, path: Path) -> None:
        """Raises OSError."""
        self._writer[1](self.node, path)


class Applied:
    """``again()`` shows in the views what is chosen to be shown of the result, ``leave(fixed)`` takes it away.

    All but what also belongs to the fixed scan, where that is what is shown.
    """

    def __init__(self, server: Any, views: Views, again: Callable[[], None], leave: Callable[[bool], None]):
        self.state, self.views, self._again, self._leave = server.state, views, again, leave
        self.outputs: Outputs | None = None
        self.made: dict[str, Made] = {}  # by the node's ID
        for name in ("show_made", "remove_made"):
            server.trigger(name)(getattr(self, name))

    @property
    def scans(self) -> list[Any]:
        return [made.node for made in self.made.values() if made.is_scan]

    @property
    def takes_the_views(self) -> bool:
        """Whether something is shown instead of the chosen display of the result."""
        return any(made.shown and _takes_the_views(made) for made in self.of_result())

    def of_result(self) -> list[Made]:
        return [made for made in self.made.values() if self.outputs and made.result == self.outputs.forward.GetID()]

    async def add(self, role: str, path: Path, name: str, series: tuple[str, ...]) -> None:
        """What a file or DICOM folder holds, in the other scan. Raises NephiError and FrameError; nothing is left."""
        outputs, backwards = self.outputs, self.state.apply_to == "moving"
        if outputs is None:
            raise NephiError("there is no result to apply")
        lies_in = outputs.fixed if backwards else outputs.moving
        source = await self._load(role, path, stem(name), series, lies_in)
        try:
            if self.outputs != outputs:
                raise NephiError("another result was chosen meanwhile")
            node = apply_to(outputs, source, backwards)
            dicom.carry(source, node)
        finally:
            nodes.remove(self.views.scene, source)
        target = outputs.moving if backwards else outputs.fixed
        node.SetName(self.views.scene.GenerateUniqueName(f"{stem(name)} on {stem(target.GetName())}"))
        self.made[node.GetID()] = Made(node, outputs.forward.GetID(), backwards)
        self.show_made(node.GetID(), True)

    async def _load(self, role: str, path: Path, name: str, series: tuple[str, ...], lies_in: Any) -> Any:
        from . import loading

        kind, words = USES[role].kind, USES[role].text.lower()
        if kind is Kind.SCAN:
            image = await asyncio.to_thread(loading.read_scan, path, words, series)
            node = loading.scan_node(self.views.scene, image, name)
            dicom.remember(node, path, series)
            return node
        if kind is Kind.POINTS:
            return loading.points_node(self.views.scene, path, lies_in)
        if kind is Kind.SURFACE:
            return loading.surface_node(self.views.scene, path)
        dicom.check_frame(path, lies_in)
        return loading.labels_node(self.views.scene, path, None, words, one_by_one=True)

    def show(self, outputs: Outputs | None) -> None:
        """Another result is shown: what this one was applied to is listed, and not yet in the views."""
        for made in self.made.values():
            self._draw(made, False)
        self.outputs = outputs
        self._tell()

    def leave_views(self) -> bool:
        """The views are to show something else: whether anything stood in its place. What lies over it stays."""
        leaving = [made for made in self.of_result() if made.shown and _takes_the_views(made)]
        for made in leaving:
            self._draw(made, False)
        if leaving:
            self._tell()
        return bool(leaving)

    def forget(self) -> None:
        for made in self.made.values():
            nodes.remove(self.views.scene, made.node)
        self.made.clear()
        self._tell()

    # actions of the user

    def show_made(self, key: str, on: bool) -> None:
        made = self.made.get(key)
        if made is None or made not in self.of_result():
            return
        if not on:
            self._draw(made, False)
            if _takes_the_views(made):
                self._again()
        else:
            self._make_room_for(made)
            self._draw(made, True)
        self._tell()

    def remove_made(self, key: str) -> None:
        if key in self.made:
            self.show_made(key, False)
            nodes.remove(self.views.scene, self.made.pop(key).node)
            self._tell()

    def write(self, folder: Path) -> None:
        """All data that the result was applied to, beside its own files."""
        found = self.of_result()
        if found:
            (folder / _FOLDER).mkdir(exist_ok=True)
        for made in found:
            made.write(folder / _FOLDER / made.file_name)

    def _make_room_for(self, made: Made) -> None:
        """One scan is shown at a time, one label map, and only what lies in the same scan."""
        for other in self.of_result():
            if other.shown and (
                other.backwards != made.backwards
                or (other.is_labels and made.is_labels)
                or (other.is_scan and made.is_scan)
            ):
                if _takes_the_views(other):
                    self._again()
                self._draw(other, False)

    def _draw(self, made: Made, on: bool) -> None:
        made.shown, scene = on, self.views.scene
        outputs = self.outputs
        if on and outputs is not None and _takes_the_views(made):
            below = outputs.moving if made.backwards else outputs.fixed
            self._leave(not made.backwards)
            display.show_comparison(below, made.node if made.is_scan else None, display.FADE if made.is_scan else "")
            self.state.meaning = f"{made.name}, over the {'moving' if made.backwards else 'fixed'} scan."
        if made.is_labels:
            display.show_labels(scene, made.node, on)
        elif not made.is_scan:
            made.node.GetDisplayNode().SetVisibility(on)
            if made.node.IsA("vtkMRMLModelNode"):
                made.node.GetDisplayNode().SetVisibility2D(on)
            if on and made.node.IsA("vtkMRMLMarkupsNode"):
                display.jump(scene, made.node.GetNthControlPointPositionWorld(0))
        self.views.render()

    def _tell(self) -> None:
        listed = [
            {"key": key, "name": made.name, "shown": made.shown, "file": made.file_name}
            for key, made in self.made.items()
            if made in self.of_result()
        ]
        with self.state:
            self.state.applied = listed


def _takes_the_views(made: Made) -> bool:
    """Whether it is shown in the place of what is chosen to be shown of the result, not over it."""
    return made.is_scan or made.backwards


def stem(name: str) -> str:
    """The name of a file without the suffixes of its format."""
    endings = (".seg.nrrd", ".seg.nhdr", ".mrk.json", ".dcm", *IMAGES, *POINTS, *Kind.SURFACE.endings)
    known = sorted((ending for ending in endings if name.lower().endswith(ending)), key=len)
    return name[: -len(known[-1])] or name if known else name
