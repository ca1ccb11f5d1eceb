"""A folder of a small pair and all that is opened with it, as the tests serve it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nephi.files.dicom_objects import read_series
from nephi.files.dicom_structures import Structure, write_structures
from nephi.files.landmarks import write_landmarks
from nephi.synthetic.phantom import make_phantom


def write_served(root: Path, outside: Path) -> None:
    """Into ``root``, with links to ``outside``.

    ``scans`` holds a pair (the moving scan also as a series), masks, landmarks, labels, segmentations, settings,
    lists of pairs, ``dicom`` a series, ``visit`` two; there are a damaged file, one that Python would import, and links
    that lead out.
    """
    scans = root / "scans"
    scans.mkdir()
    phantom = make_phantom(size=(64, 56, 56), spacing_mm=5.0)
    for name in ("fixed", "moving", "fixed_mask", "moving_mask"):
        sitk.WriteImage(getattr(phantom, name), str(scans / f"{name}.nii.gz"))
    for name in ("fixed", "moving"):
        write_landmarks(scans / f"{name}.csv", getattr(phantom, f"{name}_landmarks_lps_mm")[::20])
    _write_labels(phantom, scans)
    sitk.WriteTransform(sitk.TranslationTransform(3, (1.0, 2.0, 3.0)), str(scans / "shift.tfm"))
    for name, iterations in (("quick", 20), ("endless", 1_000_000)):
        (scans / f"{name}.json").write_text(f'{{"fit": {{"iterations": {iterations}}}}}', encoding="utf-8")
    _write_series(phantom.fixed, root / "dicom")
    _write_series(phantom.moving, scans / "moving", uid="1.2.4")
    _write_structures(root / "dicom", scans / "organs.dcm", phantom.fixed_landmarks_lps_mm.mean(0))
    for k, image in enumerate((phantom.fixed, phantom.moving[:, :, 10:-10]), 1):
        _write_series(image, root / "visit", uid=f"1.2.3.{k}", description=("Thorax 1.0", "Thorax 2.0")[k - 1])
    (root / "damaged.nii.gz").write_bytes(b"no image")
    _write_list(scans / "list")
    away = "name,fixed,moving\nsecret,fixed.nii.gz,../away.nii.gz\n"
    (scans / "pairs away.csv").write_text(away, encoding="utf-8")
    sitk.WriteImage(phantom.fixed, str(outside / "secret.nii.gz"))
    (root / "away.nii.gz").symlink_to(outside / "secret.nii.gz")
    (root / "elsewhere").symlink_to(outside)
    (root / "slicer.py").write_text("raise SystemExit('imported from the folder that is served')", encoding="utf-8")


def _write_list(folder: Path) -> None:
    """``pairs.csv``: of two pairs, one with all its files, coarse as it is registered in a test, and one damaged."""
    folder.mkdir()
    phantom = make_phantom(size=(32, 28, 28), spacing_mm=10.0)
    roles = [f"{side}{what}" for what in ("", "_mask", "_landmarks") for side in ("fixed", "moving")]
    names = [f"{role}.csv" if "landmarks" in role else f"{role}.nii.gz" for role in roles]
    for role, name in zip(roles, names, strict=True):
        if "landmarks" in role:
            write_landmarks(folder / name, getattr(phantom, f"{role}_lps_mm")[::20])
        else:
            sitk.WriteImage(getattr(phantom, role), str(folder / name))
    rows = [["name", *roles], ["whole", *names], ["broken", names[0], "../../damaged.nii.gz"]]
    (folder / "pairs.csv").write_text("\n".join(map(",".join, rows)), encoding="utf-8")


def _write_labels(phantom, folder: Path) -> None:
    """``halves.seg.nrrd``, and of the moving scan ``moving_halves.seg.nrrd``: as Slicer writes a segmentation, with
    names; ``labels.nii.gz``: the fixed one and a lesion, 3."""
    array = sitk.GetArrayFromImage(phantom.fixed_mask).astype("uint8")
    array[:, :, array.shape[2] // 2 :] *= 2
    labels = sitk.GetImageFromArray(array)
    labels.CopyInformation(phantom.fixed)
    with_lesion = sitk.Image(labels)
    z, y, x = (int(places.mean()) for places in np.nonzero(array == 2))
    with_lesion[x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2] = 3
    sitk.WriteImage(with_lesion, str(folder / "labels.nii.gz"))
    _name_halves(labels, ("Right half", "Left half"))
    sitk.WriteImage(labels, str(folder / "halves.seg.nrrd"))
    moving = sitk.GetArrayFromImage(phantom.moving_mask).astype("uint8")
    moving[:, :, : moving.shape[2] // 2] *= 2
    labels = sitk.GetImageFromArray(moving)
    labels.CopyInformation(phantom.moving)
    _name_halves(labels, ("Left half", "Right half"))
    sitk.WriteImage(labels, str(folder / "moving_halves.seg.nrrd"))


def _name_halves(labels, names: tuple[str, str]) -> None:
    for i, name in enumerate(names):
        values = {"ID": f"half{i}", "Name": name, "LabelValue": str(i + 1), "Layer": "0"}
        for key, value in values.items():
            labels.SetMetaData(f"Segment{i}_{key}", value)


def _write_structures(series: Path, path: Path, centre_lps_mm: np.ndarray) -> None:
    """Two boxes that overlap as an RT structure set."""
    corners = np.array([(-40, -40, 0), (40, -40, 0), (40, 40, 0), (-40, 40, 0)], float)
    drawn = [
        Structure(name, [centre_lps_mm.round() + corners + (shift, 0, z) for z in range(-30, 31, 5)])
        for name, shift in (("Target", 0), ("Margin", 30))
    ]
    write_structures(drawn, path, read_series(series))


def _write_series(image, folder: Path, uid: str = "1.2.3", description: str = "Thorax") -> None:
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    image = sitk.Cast(image, sitk.sitkInt16)
    for k in range(image.GetDepth()):
        one = image[:, :, k]
        x, y, z = image.TransformIndexToPhysicalPoint((0, 0, k))
        tags = {"0008|0060": "CT", "0020|000e": uid, "0008|103e": description, "0020|000d": "1.2", "0020|0052": "1.4"}
        tags |= {"0020|0032": f"{x}\\{y}\\{z}", "0020|0037": "1\\0\\0\\0\\1\\0", "0020|0013": str(k)}
        tags |= {"0008|0018": f"{uid}.{k + 1}"}
        for key, value in tags.items():
            one.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{uid}-{k}.dcm"))
        writer.Execute(one)
