"""A served folder with a small pair, the command that serves it, and a browser; skipped where there are none."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

_CHROMIUM = Path("/usr/bin/chromium")


def pytest_collection_modifyitems(items):
    missing = [name for name in ("trame_slicer", "playwright") if find_spec(name) is None]
    missing += [] if _CHROMIUM.exists() else [str(_CHROMIUM)]
    if missing:
        skip = pytest.mark.skip(reason=f"{', '.join(missing)} not installed: see docs/app.md for this environment")
        for item in items:
            if item.path.parent == Path(__file__).parent and "browser" in getattr(item, "fixturenames", ()):
                item.add_marker(skip)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """``scans`` with a pair, masks and landmarks, ``dicom`` with a series, a damaged file, a link that leads out."""
    import SimpleITK as sitk
    from nephi.files.landmarks import write_landmarks
    from nephi.synthetic.phantom import make_phantom

    root = tmp_path_factory.mktemp("served")
    scans, outside = root / "scans", tmp_path_factory.mktemp("outside")
    scans.mkdir()
    phantom = make_phantom(size=(64, 56, 56), spacing_mm=5.0)
    for name in ("fixed", "moving", "fixed_mask", "moving_mask"):
        sitk.WriteImage(getattr(phantom, name), str(scans / f"{name}.nii.gz"))
    for name in ("fixed", "moving"):
        write_landmarks(scans / f"{name}.csv", getattr(phantom, f"{name}_landmarks_lps_mm")[::20])
    _write_series(phantom.fixed, root / "dicom")
    (root / "damaged.nii.gz").write_bytes(b"no image")
    sitk.WriteImage(phantom.fixed, str(outside / "secret.nii.gz"))
    (root / "away.nii.gz").symlink_to(outside / "secret.nii.gz")
    (root / "elsewhere").symlink_to(outside)
    return root


def _write_series(image, folder: Path) -> None:
    import SimpleITK as sitk

    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    image = sitk.Cast(image, sitk.sitkInt16)
    for k in range(image.GetDepth()):
        one = image[:, :, k]
        x, y, z = image.TransformIndexToPhysicalPoint((0, 0, k))
        tags = {"0008|0060": "CT", "0020|000e": "1.2.3", "0020|000d": "1.2", "0020|0052": "1.4"}
        tags |= {"0020|0032": f"{x}\\{y}\\{z}", "0020|0037": "1\\0\\0\\0\\1\\0", "0020|0013": str(k)}
        tags |= {"0008|0018": f"1.2.3.{k + 1}"}
        for key, value in tags.items():
            one.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{k}.dcm"))
        writer.Execute(one)


@pytest.fixture(scope="module")
def app(folder, tmp_path_factory):
    from browser import App

    running = App(folder, tmp_path_factory.mktemp("temporary"))
    yield running
    if running.process.poll() is None:
        running.end()


@pytest.fixture(scope="module")
def browser():
    from browser import Browser

    chromium = Browser()
    yield chromium
    chromium.close()
