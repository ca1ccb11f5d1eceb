"""What files can be chosen for, and how each is read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

IMAGES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".img", ".hdr")
TRANSFORMS = (".h5", ".hdf5", ".tfm", ".txt", ".mat", ".xfm", ".x5", ".dcm", *IMAGES)
POINTS = (".csv", ".fcsv", ".json", ".txt", ".vtk", ".pts")


class Kind(Enum):
    SCAN = auto()
    MASK = auto()  # one of its segments can be chosen
    LABELS = auto()  # all of its segments count, each by itself
    POINTS = auto()
    TRANSFORM = auto()
    STRUCTURES = auto()  # segments on voxels of their own, also of a DICOM segmentation or structure set
    SURFACE = auto()  # of formats whose readers survive damaged files
    PAIRS = auto()  # a list of pairs
    SETTINGS = auto()
    MODEL = auto()

    @property
    def endings(self) -> tuple[str, ...]:
        """Of the names of such files."""
        own = {Kind.POINTS: POINTS, Kind.TRANSFORM: TRANSFORMS, Kind.STRUCTURES: (*IMAGES, ".dcm")}
        own |= {Kind.SURFACE: (".stl", ".vtp"), Kind.PAIRS: (".csv", ".tsv")}
        own |= {Kind.SETTINGS: (".json",), Kind.MODEL: (".safetensors",)}
        return own.get(self, IMAGES)


@dataclass(frozen=True)
class Role:
    """``side``: the scan that it belongs to, "" for none; ``guide``: the field of ``Guides`` that it fills."""

    text: str
    kind: Kind
    side: str = ""
    guide: str = ""
    hint: str = ""


ROLES = {
    "fixed": Role("Fixed scan", Kind.SCAN, hint="stays as it is; of lungs usually exhale"),
    "moving": Role("Moving scan", Kind.SCAN, hint="is deformed onto it"),
    "fixed_mask": Role("Fixed mask", Kind.MASK, "fixed"),
    "moving_mask": Role("Moving mask", Kind.MASK, "moving"),
    "fixed_landmarks": Role("Landmarks in the fixed scan", Kind.POINTS, "fixed"),
    "moving_landmarks": Role("Landmarks in the moving scan", Kind.POINTS, "moving"),
    "regions": Role("Regions such as lobes, on the fixed scan", Kind.LABELS, "fixed"),
    "moving_regions": Role("The same regions on the moving scan", Kind.LABELS, "moving"),
    "fixed_guide_points": Role("Points in the fixed scan", Kind.POINTS, "fixed", "fixed_landmarks"),
    "moving_guide_points": Role("Points in the moving scan", Kind.POINTS, "moving", "moving_landmarks"),
    "fixed_labels": Role("Regions that correspond, fixed scan", Kind.LABELS, "fixed", "fixed_labels"),
    "moving_labels": Role("Regions that correspond, moving scan", Kind.LABELS, "moving", "moving_labels"),
    "fixed_excluded": Role("Leave out of the fixed scan", Kind.MASK, "fixed", "fixed_excluded", "such as a lesion"),
    "moving_excluded": Role("Leave out of the moving scan", Kind.MASK, "moving", "moving_excluded"),
    "rigid": Role("Moves rigidly", Kind.MASK, "fixed", "rigid", "such as a bone, on the fixed scan"),
    "volume_kept": Role("Keeps its volume", Kind.MASK, "fixed", "volume_kept", "such as a tumour, on the fixed scan"),
    "initial_transform": Role(
        "Initial transform", Kind.TRANSFORM, "moving", hint="fixed to moving points, as of an earlier result"
    ),
    "settings_file": Role("Settings file", Kind.SETTINGS),
    "model_file": Role("Model file", Kind.MODEL),
}
USES = {  # what a result is applied to
    "apply_scan": Role("Scan", Kind.SCAN),
    "apply_labels": Role("Segmentation", Kind.STRUCTURES, hint=", label map or RT structure set"),
    "apply_points": Role("Landmarks", Kind.POINTS, hint=" list"),
    "apply_surface": Role("Surface", Kind.SURFACE, hint=" model (STL, VTP)"),
}
BATCH = "batch_list"
OPENED = ROLES | USES | {BATCH: Role("List of pairs", Kind.PAIRS)}  # what the dialog can be asked for
GROUPS = {  # as they stand together on the page
    "scans": ("fixed", "moving"),
    "masks": ("fixed_mask", "moving_mask"),
    "measured": ("fixed_landmarks", "moving_landmarks", "regions", "moving_regions"),
    "points": ("fixed_guide_points", "moving_guide_points"),
    "guides": tuple(name for name, role in ROLES.items() if role.guide and role.kind is not Kind.POINTS),
    "alignment": ("initial_transform",),
    "settings": ("settings_file",),
    "model": ("model_file",),
}


def picks() -> dict[str, list[dict]]:
    """The groups for the page; ``needs``: what must be there before."""
    return {
        group: [{"role": r, "text": ROLES[r].text, "hint": ROLES[r].hint, "needs": ROLES[r].side} for r in roles]
        for group, roles in GROUPS.items()
    }
