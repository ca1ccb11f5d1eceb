"""Results whose true error is known, right ones and wrong ones, to calibrate and to judge what NePhi says of itself.

``CALIBRATION`` comes of generated breathing (``nephi breathe``) of two CTs and of procedural chests, ``JUDGED`` of the
pairs with landmarks and of other seeds; they share no pair, but some share a patient (``Case.subjects``). The model is
fitted to both, but for some (``Case.teaches``). A case is registered once; its result is kept in a folder.
"""

from __future__ import annotations

import pickle
import tempfile
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nephi.both import Both, complete
from nephi.errors import NephiError
from nephi.images.align import align
from nephi.images.hounsfield import hounsfield
from nephi.images.masks import lung_mask
from nephi.registration import register
from nephi.result import Registration
from nephi.settings import PRESETS
from nephi.space.affine import Affine
from nephi.space.grid import Grid
from nephi.synthetic.breathing import BreathingSettings, breathe
from nephi.synthetic.chest import procedural
from nephi.synthetic.phantom import make_phantom

from .pairs import PAIRS, data_folder, read_landmarks

POINTS = 300  # at which the error of a generated pair is known


@dataclass(frozen=True)
class Pair:
    """Images, masks (None: none given) and points that belong together (n, d); no points where nothing does."""

    images: Both[sitk.Image]
    masks: Both[sitk.Image | None]
    points_lps_mm: Both[np.ndarray] | None


@dataclass(frozen=True)
class Case:
    """A pair, named, and the state that its registration is left in."""

    pair: str
    state: str

    @property
    def name(self) -> str:
        return f"{self.pair} {self.state}"

    @property
    def file(self) -> str:
        return self.name.replace("|", " on ").replace(">", "-")

    @property
    def kind(self) -> str:
        """What the pair comes of, to sum up by: a set of data or a generator."""
        return self.pair.split(":")[0].rstrip("0123456789")

    @property
    def subjects(self) -> frozenset[str]:
        """Whom the images show: people, or a seed of a procedural chest or phantom."""
        return frozenset(_subject(name) for name in self.pair.split("|"))

    @property
    def teaches(self) -> bool:
        """Whether its result takes part in the calibration: NePhi ships no numbers fitted to data without free use."""
        return not self.subjects & _NOT_FREE

    @property
    def landmarks(self) -> bool:
        """Whether the error is known at landmarks of a pair that was not generated here."""
        return self.pair in PAIRS or self.pair.startswith("popi:")


_PEOPLE = {  # both breath-holds are generated from one CT
    "breathhold_case01": "LUNG1-003", "breathhold_case02": "LUNG1-003", "popi": "POPI", "popi_phase00": "POPI",
    "fnndsc": "FNNDSC",
}  # fmt: skip
_NOT_FREE = {"LUNG1-003"}  # NSCLC-Radiomics, CC BY-NC


def _subject(name: str) -> str:
    kind, _, seed = name.partition(":")
    if kind == "coarse":
        kind = _coarse_base(int(seed))
    return _PEOPLE.get(kind, f"{kind}:{seed}")


# ---- pairs -------------------------------------------------------------------------------------------------------


def _image(path: str, kind=sitk.sitkFloat32) -> sitk.Image:
    return sitk.ReadImage(str(data_folder() / path), kind)


_COARSE_MM = (5.0, 5.0, 6.0)


def _coarse_base(seed: int) -> str:
    return ("fnndsc", "chest")[seed % 2]


def _breathing(base: str, seed: int, spacing_mm=None) -> Pair:
    """Generated breathing of a CT or of a procedural chest, at a spacing that the seed chooses."""
    spacings = (1.8, 2.2, 2.6, 3.0, (1.8, 1.8, 3.0), (2.6, 2.6, 5.0))
    settings = BreathingSettings(spacing_mm=spacing_mm or spacings[seed % len(spacings)])
    if base == "chest":
        image, lungs = procedural(seed)
    else:
        image, lungs = _image(f"train_ct/{base}.nii.gz"), _image(f"train_ct/{base}_mask.nii.gz", sitk.sitkUInt8)
    pair = breathe(image, lungs, seed, settings)
    fixed = _of_mask(pair.fixed_mask, seed)
    return Pair(
        Both(pair.fixed, pair.moving), Both(pair.fixed_mask, pair.moving_mask), Both(fixed, pair.forward(fixed))
    )


def _of_mask(mask: sitk.Image, seed: int) -> np.ndarray:
    rng, grid = np.random.default_rng(seed + 1000), Grid.of(mask)
    inside = np.flatnonzero(sitk.GetArrayViewFromImage(mask))
    index_zyx = np.unravel_index(rng.choice(inside, POINTS), grid.shape)
    return grid.to_lps_mm(np.stack(index_zyx[::-1], -1) + rng.uniform(-0.5, 0.5, (POINTS, grid.dimension)))


def _phantom(seed: int, **options) -> Pair:
    p = make_phantom(seed=seed, **options)
    points = _of_mask(p.fixed_mask, seed)
    return Pair(Both(p.fixed, p.moving), Both(p.fixed_mask, p.moving_mask), Both(points, p.forward(points)))


def _measured(name: str) -> Pair:
    files = PAIRS[name]
    points = Both(*(read_landmarks(data_folder() / f) for f in (files.fixed_landmarks, files.moving_landmarks)))
    points = points.map(lambda p: p[: len(p) - files.dropped_landmarks])
    masks = Both(files.fixed_mask, files.moving_mask).map(lambda f: None if f is None else _image(f, sitk.sitkUInt8))
    return Pair(Both(_image(files.fixed), _image(files.moving)), masks, points)


def _popi(fixed: str, moving: str) -> Pair:
    def scan(phase: str) -> sitk.Image:
        return _image(f"popi_4dct/phase{phase}_5x5x6mm.nii.gz")

    points = (read_landmarks(data_folder() / f"popi_4dct/phase{p}_landmarks_lps_mm.csv")[:-1] for p in (fixed, moving))
    return Pair(Both(scan(fixed), scan(moving)), Both(None, None), Both(*points))


def _brain(seed: int) -> Pair:
    """A brain and itself under a smooth map of known size, darker and noisier."""
    image, rng = _image(f"brain_mr/oasis_condlapirn_{'AB'[seed % 2]}.nii.gz"), np.random.default_rng(seed)
    grid = Grid.of(image)
    spline = sitk.BSplineTransformInitializer(image, [5, 6, 6], 3)
    spline.SetParameters(rng.normal(0, 5, len(spline.GetParameters())).tolist())
    fixed = grid.resample(image, spline)
    array = 0.8 * sitk.GetArrayFromImage(fixed)
    fixed = grid.image((array + (array > 0) * rng.normal(0, 0.02 * array.max(), array.shape)).astype(np.float32))
    points = _of_mask(sitk.Cast(fixed > 0, sitk.sitkUInt8), seed)
    moved = np.array([spline.TransformPoint(p) for p in points.tolist()])
    return Pair(Both(fixed, image), Both(None, None), Both(points, moved))


def _unrelated(fixed: str, moving: str) -> Pair:
    """Two people's scans."""
    a, b = pair(fixed), pair(moving)
    return Pair(Both(a.images.fixed, b.images.moving), Both(a.masks.fixed, b.masks.moving), None)


@lru_cache(maxsize=2)
def pair(name: str) -> Pair:
    """By its name: ``fnndsc:3`` is seed 3 of a base, ``a|b`` two people, others are pairs of the benchmark."""
    if "|" in name:
        return _unrelated(*name.split("|"))
    kind, _, rest = name.partition(":")
    if kind == "phantom":
        return _phantom(int(rest))
    if kind == "phantom2d":
        return _phantom(int(rest), dimension=2)
    if kind == "popi":
        return _popi(*rest.split(">"))
    if kind == "brain":
        return _brain(int(rest))
    if kind == "brains":
        a, b = (_image(f"brain_mr/oasis_condlapirn_{letter}.nii.gz") for letter in rest)
        return Pair(Both(a, b), Both(None, None), None)
    if kind == "coarse":
        return _breathing(_coarse_base(int(rest)), int(rest), _COARSE_MM)
    if rest:
        return _breathing(kind, int(rest))
    return _measured(name)


# ---- states ------------------------------------------------------------------------------------------------------


def _start(pair: Pair) -> Affine:
    """A good alignment, to be spoilt."""
    images = pair.images.map(hounsfield, Both("fixed", "moving"))
    masks = complete(*pair.masks) or complete(*images.map(lung_mask)) if images.fixed.GetDimension() == 3 else None
    return align(images, masks or Both(None, None), "auto").affine


def _spoilt(affine: Affine, grid: Grid, shift_mm=(0, 0, 0), turn_deg=0.0, axis=0, mirror=False) -> Affine:
    """The alignment after a turn about the image's centre and a shift, or in a mirror."""
    d, centre = grid.dimension, grid.corners_lps_mm().mean(0)
    matrix = np.eye(d)
    if turn_deg:
        c, s = np.cos(np.deg2rad(turn_deg)), np.sin(np.deg2rad(turn_deg))
        i, j = [a for a in range(3) if a != (axis if d == 3 else 2)]
        matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    if mirror:
        matrix[0] *= -1
    inner = Affine(matrix, centre - matrix @ centre + np.array(shift_mm[:d]))
    return Affine(affine.matrix @ inner.matrix, affine(inner.offset_mm))


_SPOILT: dict[str, dict] = {
    "shifted": {"shift_mm": (18, 14, -24)},
    "shifted a little": {"shift_mm": (-9, 8, 10)},
    "shifted far": {"shift_mm": (45, 0, 40)},
    "turned": {"turn_deg": 20.0, "axis": 0},
    "turned across": {"turn_deg": 25.0, "axis": 2},
    "mirrored": {"mirror": True},
}
_FEW = {"few steps": 40, "very few steps": 12, "no steps": 0}


def _noisy(image: sitk.Image, seed: int) -> sitk.Image:
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    return Grid.of(image).image(array + np.random.default_rng(seed).normal(0, 200, array.shape).astype(np.float32))


def _made(case: Case) -> tuple[Pair, Registration]:
    given, settings = pair(case.pair), PRESETS["fast"]
    if case.state in PRESETS:
        settings = PRESETS[case.state]
    elif case.state in _FEW:
        settings = replace(settings, fit=replace(settings.fit, iterations=_FEW[case.state]))
    elif case.state == "noise":
        given = replace(given, images=Both(_noisy(given.images.fixed, 1), _noisy(given.images.moving, 2)))
    elif case.state == "cut":  # the lower half of one, the upper half of the other
        fixed, moving = given.images
        n, m = fixed.GetSize()[2], moving.GetSize()[2]
        given = replace(given, images=Both(fixed[:, :, : n // 2], moving[:, :, m // 2 :]), masks=Both(None, None))
    masks = given.masks if case.state not in ("no masks", "cut") else Both(None, None)
    with tempfile.TemporaryDirectory() as folder:
        if case.state in _SPOILT:
            wrong = _spoilt(_start(given), Grid.of(given.images.fixed), **_SPOILT[case.state])
            path = str(Path(folder) / "start.tfm")
            sitk.WriteTransform(wrong.transform(), path)
            settings = replace(settings, align=path)
        made = register(*given.images, fixed_mask=masks.fixed, moving_mask=masks.moving, settings=settings)
    return given, made


def result(case: Case, cache: Path) -> tuple[Pair, Registration] | None:
    """The pair and its registration, from the cache if it is there; None where NePhi refused to register it."""
    file = cache / f"{case.file}.pickle"
    if not file.exists():
        try:
            found = _made(case)
        except NephiError as error:
            print(f"{case.name}: {error}", flush=True)
            found = None
        cache.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps(found))
    return pickle.loads(file.read_bytes())


# ---- which cases -------------------------------------------------------------------------------------------------


def _cases(pairs: str, states: str) -> list[Case]:
    """Every pair in every state; names are separated by commas."""
    return [Case(a.strip(), b.strip()) for a in pairs.split(",") for b in states.split(",")]


_WRONG = ("few steps", "shifted", "turned across", "very few steps", "shifted a little", "turned", "mirrored",
          "no steps", "noise", "no masks", "balanced")  # fmt: skip


def _in_turn(pairs: list[str], each: int) -> list[Case]:
    """Every pair registered as it should be, and in ``each`` other states, which follow each other in turn."""
    cases = []
    for i, name in enumerate(pairs):
        states = [_WRONG[(each * i + j) % len(_WRONG)] for j in range(each)]
        cases += [Case(name, state) for state in ("fast", *states)]
    return cases


CALIBRATION = [
    *_in_turn(["fnndsc:1", "chest:2", "popi_phase00:3", "chest:4", "fnndsc:5", "chest:6", "popi_phase00:7", "phantom:8",
               "fnndsc:9", "chest:10"], 3),
    *_cases("fnndsc:1|chest:2, chest:4|popi_phase00:3, chest:6|fnndsc:5, popi_phase00:7|fnndsc:9, chest:10|chest:2",
            "fast"),
    *_in_turn(["coarse:11", "coarse:12", "coarse:14", "coarse:15"], 2),
    # in part right, in part wrong: what hides best
    *_cases("fnndsc:1, popi_phase00:3, chest:4, fnndsc:5, popi_phase00:7, phantom:8, fnndsc:9, coarse:11, coarse:12",
            "turned"),
    *_cases("chest:2, popi_phase00:3, chest:4, chest:6, popi_phase00:7, chest:10, coarse:14, coarse:15",
            "turned across"),
]  # fmt: skip
_HOLDS = "breathhold_case01, breathhold_case02"
_PHASES = "popi:60>00, popi:60>20, popi:60>30, popi:60>40, popi:60>50, popi:60>70, popi:60>90"
_BACK = "popi:10>60, popi:00>50, popi:20>70, popi:50>10, popi:90>40, popi:30>00"
_SEEDS = ", ".join(f"{base}:{seed}" for seed in range(201, 213) for base in [("fnndsc", "chest")[seed % 2]])
JUDGED = [
    *_cases(_HOLDS, "fast, balanced, shifted, few steps, very few steps, turned across, mirrored, no steps, no masks"),
    *_cases("lung_ct_followup", "fast, balanced, shifted a little, turned, no steps, mirrored"),
    *_cases("popi:60>10", "fast, balanced, shifted, turned, very few steps, no steps, mirrored, cut"),
    *_cases(_PHASES, "fast"),
    *_cases(_BACK, "fast, mirrored"),
    *_cases("popi:10>60, popi:00>50, popi:50>10", "no steps"),
    *_cases(_SEEDS, "fast, shifted a little, no steps, mirrored"),
    *_cases("phantom:221, phantom:222, phantom:223", "fast, shifted, no steps, mirrored"),
    *_cases("breathhold_case01|fnndsc:201, breathhold_case02|popi:60>10, popi:60>10|breathhold_case01, "
            "fnndsc:203|breathhold_case02, breathhold_case01|chest:202, chest:204|breathhold_case01, "
            "lung_ct_followup|breathhold_case01, chest:206|fnndsc:203, fnndsc:205|chest:208", "fast, no masks"),
    *_cases(_HOLDS, "cut"),
]  # fmt: skip
