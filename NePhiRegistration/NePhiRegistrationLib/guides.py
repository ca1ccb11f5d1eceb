"""What is known of a pair beyond its volumes, as nodes of a scene, and the engine's files of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import scene as nodes
from .checks import landmark_problem, mask_problem
from .i18n import tr as _


@dataclass
class Guides:
    """Each may be None. Masks are label maps or segmentations, of which a segment ID may name one segment.

    Regions that correspond are two segmentations, matched by the names of their segments, or two label maps, matched by
    their numbers.
    """

    fixed_landmarks: object = None  # vtkMRMLMarkupsFiducialNode; they steer, row by row
    moving_landmarks: object = None
    landmarks_sd_mm: float = 1.0  # how exactly they were placed
    fixed_labels: object = None  # regions that correspond
    moving_labels: object = None
    fixed_excluded: object = None  # regions to ignore, such as lesions
    moving_excluded: object = None
    fixed_excluded_segment: str = ""
    moving_excluded_segment: str = ""
    rigid: object = None  # over the fixed volume; each connected part moves as a rigid body
    rigid_segment: str = ""
    volume_kept: object = None  # over the fixed volume; no volume changes there
    volume_kept_segment: str = ""

    def problems(self) -> Iterator[str]:
        """Why they cannot be used, in words; "" where they can."""
        if reason := landmark_problem(self.fixed_landmarks, self.moving_landmarks):
            yield _("Guiding landmarks: {reason}").format(reason=reason)
        yield mask_problem(_("fixed region to leave out"), self.fixed_excluded, self.fixed_excluded_segment)
        yield mask_problem(_("moving region to leave out"), self.moving_excluded, self.moving_excluded_segment)
        yield mask_problem(_("rigid region"), self.rigid, self.rigid_segment)
        yield mask_problem(_("region that keeps its volume"), self.volume_kept, self.volume_kept_segment)
        yield self._label_problem()

    def _label_problem(self) -> str:
        pair = (self.fixed_labels, self.moving_labels)
        if pair == (None, None):
            return ""
        if None in pair:
            return _("Corresponding regions are needed in both volumes: choose a label map for each, or none.")
        for role, labels in zip((_("fixed regions"), _("moving regions")), pair, strict=True):
            if reason := mask_problem(role, labels, ""):
                return reason
        kinds = {_is_segmentation(labels) for labels in pair}
        if len(kinds) == 2:
            return _("Corresponding regions must be two segmentations or two label maps, not one of each.")
        if kinds == {True}:
            fixed, moving = (nodes.label_names(labels) for labels in pair)
            alone = sorted(set(fixed.values()) ^ set(moving.values()))
            if alone:
                text = _("Corresponding regions must have the same names in both volumes; {names} is in only one.")
                return text.format(names=", ".join(alone[:3]))
        return ""

    def write(self, fixed, moving, folder: Path) -> list[str]:
        """The engine's arguments for files written into ``folder``, on the voxels of the two volumes.

        Raises OSError and FrameError as ``scene`` does.
        """
        arguments: list[str] = []
        if self.fixed_landmarks is not None:
            pair = (folder / "fixed_guide.csv", folder / "moving_guide.csv")
            for points, path in zip((self.fixed_landmarks, self.moving_landmarks), pair, strict=True):
                nodes.write_points(points, path)
            arguments += ["--guide-landmarks", *map(str, pair)]
        if self.fixed_labels is not None:
            arguments += ["--guide-labels", *self._write_labels(fixed, moving, folder)]
        masks = (
            ("--fixed-exclude", self.fixed_excluded, fixed, self.fixed_excluded_segment),
            ("--moving-exclude", self.moving_excluded, moving, self.moving_excluded_segment),
            ("--rigid-mask", self.rigid, fixed, self.rigid_segment),
            ("--volume-mask", self.volume_kept, fixed, self.volume_kept_segment),
        )
        for option, mask, volume, segment in masks:
            if mask is not None:
                path = folder / f"{option[2:].replace('-', '_')}.nrrd"
                nodes.write_labels(mask, volume, path, segment)
                arguments += [option, str(path)]
        return arguments

    def _write_labels(self, fixed, moving, folder: Path) -> list[str]:
        paths = [folder / "fixed_labels.nrrd", folder / "moving_labels.nrrd"]
        number_of: Callable[[str], int] | None = None
        if _is_segmentation(self.fixed_labels):
            numbers = {name: i for i, name in enumerate(sorted(nodes.label_names(self.fixed_labels).values()), 1)}
            number_of = numbers.__getitem__
        for labels, volume, path in zip((self.fixed_labels, self.moving_labels), (fixed, moving), paths, strict=True):
            nodes.write_labels(labels, volume, path, number_of=number_of)
        return list(map(str, paths))


def _is_segmentation(labels) -> bool:
    return bool(labels.IsA("vtkMRMLSegmentationNode"))
