"""Whole files of every kind that NePhi reads, and NePhi's own way to read them, as plain values."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nephi
import numpy as np
import SimpleITK as sitk
import torch
from nephi.cli.batch import finished_report
from nephi.config import decode, read_json
from nephi.files.cases import Case
from nephi.files.cases import read_pairs as nephi_read_pairs
from nephi.files.image import read_image as nephi_read_image
from nephi.files.image import read_volume as nephi_read_volume
from nephi.files.landmarks import read_landmarks as nephi_read_landmarks
from nephi.files.landmarks import write_landmarks
from nephi.files.masks import read_mask as nephi_read_mask
from nephi.files.regions import read_regions as nephi_read_regions
from nephi.files.transform import read_affine as nephi_read_affine
from nephi.files.transform import read_transform as nephi_read_transform
from nephi.fitting.fit import Adam
from nephi.learning import dataset
from nephi.learning import state as training_state
from nephi.learning.model import Model
from nephi.learning.settings import ModelSettings, PublishedSettings, TrainSettings, check_training
from nephi.measure.report import Folds, LandmarkError, Report, Summary
from nephi.result import Registration
from nephi.settings import PRESETS, Features, IntensitySettings, Level, MindSettings, NeuralSettings, Sampling, load
from nephi.synthetic.phantom import make_phantom

from .pool import kept_folder

Make = Callable[[Path, np.random.Generator], Path]
SHORT = replace(
    PRESETS["fast"],
    align="none",
    levels=(Level(0.0, Features(8.0, 2), 2.0),),
    similarity=MindSettings(),
    fit=replace(PRESETS["fast"].fit, iterations=2),
)
SMALL_FIELD = NeuralSettings(width=16, frequencies=8, global_code=6, local_code=5)
SMALL_MODEL = ModelSettings(
    dimension=2,
    field=SMALL_FIELD,
    encoder=PublishedSettings(size=32, channels=(8, 16), hidden=16, local_level=1),
    features=Features(4.0, 1),
    similarity=IntensitySettings("mse", Sampling(0.0, 64, 64)),
)
TRAINING = TrainSettings(data="pairs.csv", model=SMALL_MODEL)
GRID = sitk.Image((14, 12, 10), sitk.sitkInt16)
GRID.SetSpacing((0.8, 0.9, 2.5))
GRID.SetOrigin((-30.0, 12.0, -200.0))


def textured(rng: np.random.Generator, pixel: str = "i2") -> sitk.Image:
    image = sitk.GetImageFromArray(rng.integers(-1000, 500, GRID.GetSize()[::-1]).astype(pixel))
    image.CopyInformation(GRID)
    return image


def plain(image: sitk.Image) -> dict[str, Any]:
    return {
        "spacing_mm": np.array(image.GetSpacing()),
        "origin_lps_mm": np.array(image.GetOrigin()),
        "direction": np.array(image.GetDirection()),
        "voxels": sitk.GetArrayFromImage(image).astype(float),
    }


def image(suffix: str, packed: bool = False) -> Make:
    def make(folder: Path, rng: np.random.Generator) -> Path:
        path = folder / f"scan{suffix}"
        sitk.WriteImage(textured(rng, str(rng.choice(["i2", "f4"]))), str(path), packed)
        return path

    return make


def png(folder: Path, rng: np.random.Generator) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(rng.integers(0, 255, (20, 24)).astype("u1")), str(folder / "scan.png"))
    return folder / "scan.png"


def tif(folder: Path, rng: np.random.Generator) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(rng.integers(0, 255, (20, 24)).astype("u1")), str(folder / "scan.tif"))
    return folder / "scan.tif"


def dicom(folder: Path, rng: np.random.Generator) -> Path:
    """The file in the middle of a series of eight."""
    volume, uid = textured(rng)[:, :, :8], "1.2.826.0.1.3680043.2.1125.1"
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    (folder / "series").mkdir()
    for k in range(8):
        part = volume[:, :, k]
        for key, value in {
            "0008|0060": "CT", "0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0008|0018": f"{uid}.{k}", "0020|000e": uid,
            "0020|000d": "1.2.3", "0020|0013": str(k + 1), "0020|0037": "1\\0\\0\\0\\1\\0", "0028|1052": "-24",
            "0028|1053": "1",
            "0020|0032": "\\".join(f"{v:.4f}" for v in volume.TransformIndexToPhysicalPoint((0, 0, k))),
        }.items():  # fmt: skip
            part.SetMetaData(key, value)
        writer.SetFileName(str(folder / "series" / f"{k}.dcm"))
        writer.Execute(part)
    return folder / "series" / "4.dcm"


def read_image(path: Path) -> Any:
    return plain(nephi_read_image(path))


def read_volume(path: Path) -> Any:
    return plain(nephi_read_volume(path))


def read_image_beside(path: Path) -> Any:
    return plain(nephi_read_image(path.parent))


def mask(suffix: str) -> Make:
    def make(folder: Path, rng: np.random.Generator) -> Path:
        mask = sitk.Cast(textured(rng) > 0, sitk.sitkUInt8)
        name = "regions.mha" if suffix == ".mha" else f"mask{suffix}"
        sitk.WriteImage(mask, str(folder / name))
        return folder / name

    return make


def read_mask(path: Path) -> Any:
    return plain(nephi_read_mask(path, GRID, "mask"))


def read_regions(path: Path) -> Any:
    return plain(nephi_read_regions(path, GRID))


def landmarks(name: str) -> Make:
    def make(folder: Path, rng: np.random.Generator) -> Path:
        points = np.round(np.array(GRID.GetOrigin()) + rng.uniform(1, 8, (7, 3)), 3)
        path = folder / f"points{name}"
        index = "\n".join(" ".join(map(str, row)) for row in rng.integers(1, 10, (7, 3)))
        words = "\n".join(" ".join(map(str, row)) for row in points.tolist())
        if name == "elastix.txt":
            path.write_text(f"point\n7\n{words}\n", encoding="utf-8")
        elif name == "dirlab.txt":
            path.write_text(index + "\n", encoding="utf-8")
        elif name == ".vtk":
            head = "# vtk DataFile Version 3.0\npoints\nASCII\nDATASET POLYDATA\nPOINTS 7 float\n"
            path.write_text(head + words + "\n", encoding="utf-8")
        elif name == "3 columns.csv":
            path.write_text("\n".join(",".join(map(str, row)) for row in points.tolist()) + "\n", encoding="utf-8")
        else:
            write_landmarks(path, points)
        return path

    return make


def read_landmarks(path: Path) -> Any:
    return nephi_read_landmarks(path, GRID)


def transform(name: str) -> Make:
    def make(folder: Path, rng: np.random.Generator) -> Path:
        path = folder / name
        affine = sitk.AffineTransform(3)
        affine.SetMatrix((np.eye(3) + rng.normal(0, 0.05, (3, 3))).ravel().tolist())
        affine.SetTranslation(rng.normal(0, 5, 3).tolist())
        made: sitk.Transform = affine
        if name.startswith("field"):
            field = sitk.GetImageFromArray(rng.normal(0, 1, (5, 6, 7, 3)), isVector=True)
            if name.endswith(".nrrd"):
                sitk.WriteImage(field, str(path))
                return path
            made = sitk.DisplacementFieldTransform(field)
        elif name.startswith("rigid"):
            made = sitk.Euler3DTransform((1.0, 2.0, 3.0), 0.1, 0.2, 0.05, rng.normal(0, 5, 3).tolist())
        elif name.startswith("composite"):
            made = sitk.CompositeTransform([affine, sitk.TranslationTransform(3, rng.normal(0, 5, 3).tolist())])
        elif name.startswith("bspline"):
            spline = sitk.BSplineTransformInitializer(GRID, [2, 2, 2])
            spline.SetParameters(rng.normal(0, 1, len(spline.GetParameters())).tolist())
            made = spline
        sitk.WriteTransform(made, str(path))
        return path

    return make


_PROBES = np.random.default_rng(3).uniform(0, 4, (12, 3))


def through(transform: sitk.Transform) -> np.ndarray:
    return np.array([transform.TransformPoint(p) for p in _PROBES.tolist()])


def read_transform(path: Path) -> Any:
    if path.name.endswith(".nrrd"):
        made = nephi_read_transform(path, 3)
        field = sitk.DisplacementFieldTransform(made).GetDisplacementField()
        return plain(field)
    return through(nephi_read_transform(path, 3))


def read_affine(path: Path) -> Any:
    return nephi_read_affine(str(path), 3)(_PROBES)


def settings(folder: Path, rng: np.random.Generator) -> Path:
    (folder / "settings.json").write_text(SHORT.to_json(), encoding="utf-8")
    return folder / "settings.json"


def read_settings(path: Path) -> Any:
    return json.loads(load(path).to_json())


def train_settings(folder: Path, rng: np.random.Generator) -> Path:
    (folder / "train.json").write_text(json.dumps(asdict(TRAINING), indent=1), encoding="utf-8")
    return folder / "train.json"


def read_train_settings(path: Path) -> Any:
    made = decode(TrainSettings(), read_json(path))
    check_training(made)
    return json.loads(json.dumps(asdict(made)))


def pairs(folder: Path, rng: np.random.Generator) -> Path:
    cells = (f"p{i},a{i}/f.nii.gz,a{i}/m.nii.gz,a{i}/k.nii.gz,1.2.{i} 1.2.9" for i in range(6))
    rows = ["name,fixed,moving,fixed_mask,series", *cells]
    (folder / "pairs.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "pairs.csv"


def read_pairs(path: Path) -> Any:
    return [[case.name, list(case.series), {k: os.path.relpath(v, path.parent) for k, v in case.files.items()}]
            for case in nephi_read_pairs(path)]  # fmt: skip


@functools.cache
def registered() -> Registration:
    phantom = make_phantom((48, 40), 4.0, dimension=2)
    return nephi.register(phantom.fixed, phantom.moving, settings=SHORT, auto_mask=False, device="cpu")


def registration(folder: Path, rng: np.random.Generator) -> Path:
    registered().save(folder / "registration.safetensors")
    return folder / "registration.safetensors"


def read_registration(path: Path) -> Any:
    found = Registration.load(path)
    points = registered().fixed_grid.slab_lps_mm(3, 5)
    grids = [asdict(grid) for grid in (found.fixed_grid, found.moving_grid)]
    return {"forward": found.forward(points), "inverse": found.inverse(points), "grids": grids,
            "settings": json.loads(found.settings.to_json())}  # fmt: skip


def model(folder: Path, rng: np.random.Generator) -> Path:
    torch.manual_seed(1)
    Model(SMALL_MODEL, torch.Generator().manual_seed(1)).save(folder / "model.safetensors")
    return folder / "model.safetensors"


def read_model(path: Path) -> Any:
    found = Model.load(path)
    return {"settings": asdict(found.settings), **{k: v.numpy() for k, v in found.state_dict().items()}}


def _training() -> tuple[Model, Adam]:
    torch.manual_seed(1)
    model = Model(SMALL_MODEL, torch.Generator().manual_seed(1))
    return model, Adam(model.parameters(), TRAINING.fit)


def state(folder: Path, rng: np.random.Generator) -> Path:
    training_state.save_state(folder / "resume.safetensors", *_training(), {"score": 0.5, "step": 3}, TRAINING)
    return folder / "resume.safetensors"


def read_state(path: Path) -> Any:
    model, adam = _training()
    best = training_state.load_state(path, model, adam, TRAINING)
    return {"best": best, "done": adam.done, **{k: v.numpy() for k, v in model.state_dict().items()}}


@functools.cache
def _case() -> tuple[Path, Case]:
    folder = kept_folder()
    make_phantom((48, 40), 4.0, dimension=2).write(folder)
    (folder / "pairs.csv").write_text("name,fixed,moving\np,fixed.nii.gz,moving.nii.gz\n", encoding="utf-8")
    return folder, Case("p", {"fixed": folder / "fixed.nii.gz", "moving": folder / "moving.nii.gz"})


def cache(folder: Path, rng: np.random.Generator) -> Path:
    return dataset._kept(_case()[1], SMALL_MODEL, folder)


def read_cache(path: Path) -> Any:
    """As a training does: opened, and made anew where it is damaged."""
    pairs = dataset.Pairs(_case()[0] / "pairs.csv", SMALL_MODEL, path.parent)
    sample = pairs[0]
    return {
        "images": [part.numpy() for part in (sample.intensities.fixed, sample.intensities.moving)],
        "spacing": sample.spacing_cube,
    }


def log(folder: Path, rng: np.random.Generator) -> Path:
    entries = [json.dumps({"step": i + 1, "loss": float(rng.random())}) for i in range(20)]
    (folder / "log.jsonl").write_text("\n".join(entries) + "\n", encoding="utf-8")
    return folder / "log.jsonl"


def read_log(path: Path) -> Any:
    if path.is_file():  # what it was is stated later
        path = Path(shutil.copy(path, path.with_suffix(".copy")))
    training_state.keep_log(path, 12)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


_INPUTS = {"auto_mask": True}


def report(folder: Path, rng: np.random.Generator) -> Path:
    summary = Summary(*rng.random(4).tolist(), 7)
    made = Report(Folds(0.0, 0, "mask", True), {"min": 0.5, "mean": 1.0},
                  tre_mm=LandmarkError(summary, summary, summary),
                  inverse_consistency_mm=summary, fields_disagreement_mm=summary,
                  settings=json.loads(SHORT.to_json()), inputs=_INPUTS,
                  time_s={"wall": 2.0, "cpu": 3.0}, warnings=["one"])  # fmt: skip
    (folder / "report.json").write_text(made.to_json(), encoding="utf-8")
    return folder / "report.json"


def read_report(path: Path) -> Any:
    """As a batch does, which registers the pair again where the report is damaged (None)."""
    from nephi.cli import batch

    found = finished_report(path.parent, Case("p", {}), SHORT, True)
    if found is None:
        return None
    batch._line(batch.pair_row(Case("p", {}), "done", found))
    return found.to_dict()
