"""Rough run time and memory, before the run, and the time by stages.

Fitted to runs of 2D and 3D pairs with every preset on two CPU cores; within a factor of two on other computers, most of
which a run itself corrects (see ``timetable``). On a GPU the times are those of an H100; nothing else was measured.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from ..files.folder import DEFAULT_OUTPUTS
from ..files.packing import QUICK
from ..settings import BODY_MM, FieldSettings, NeuralSettings, Settings

_REGION_MM3 = 15e6  # lungs with a margin: what is worked on of a larger volume
_MASK_PART = 0.3  # of it lies in the lungs
_LIBRARIES_MB = 480.0
_BYTES_A_VOXEL = 5.0  # of both images and their masks, and of what is made of them in parts
_BYTES_A_WORK_VOXEL = 45.0  # of the working grid: features of both images, before and after a change of stage
_BYTES_AN_ACTIVATION = 60.0
_TRANSFORM_MM, _JACOBIAN_MM, _CONSISTENCY_MM = 5.0, 3.0, 4.0  # between the points at which maps are evaluated
_BEGINNING = ("start", "reading", "masks", "alignment", "prediction", "features", "optimising")  # what register does
# seconds on a CPU: of the imports, per voxel of both images that are searched for masks, of the check and the search of
# an alignment, of an iteration, and per multiplication of the network at a point in the optimisation, in a map and in
# an exact determinant; per voxel of both images at each level; of the measures, and of theirs per voxel of one image
_START_S, _MASKS_S = 2.0, 8e-9
_CHECK_S, _SEARCH_S, _ITERATION_S, _FIT_PRODUCT_S = 0.7, 1.5, 0.0165, 2e-10
_FEATURES_S, _MAP_PRODUCT_S, _JACOBIAN_PRODUCT_S = 3e-7, 2.1e-10, 3.2e-10
_PAGE_S, _PICTURES_S = 0.25, 1.2e-8  # of the report, and per voxel of one image
_AVERAGING_S, _MEASURES_S, _COUNTING_S = 1.2e-9, 0.35, 4e-9
# of packed files, by the package that packs them: per voxel of both images, read; of one, warped and written; of one of
# floats, written
_READING_S, _WARPING_S, _FLOATS_S = (1.15e-8, 4.7e-8, 1.8e-9) if QUICK else (1.65e-8, 6.0e-8, 1.3e-8)
# of a map that a model predicts alone, without a network: per node of the transforms, determinant, point of the map
_SPLINE_S, _SPLINE_JACOBIAN_S, _SPLINE_POINT_S = 1.1e-6, 2.5e-6, 2.8e-6
_SMOOTH_S = 2.6e-6  # per node of the transforms of fields that are smoothed
# of determinants: of each where maps are smoothed, read from a grid at once, of all, and per voxel of one image
_SMOOTH_JACOBIAN_S, _DETERMINANTS_S, _SPREADING_S = 8e-8, 0.08, 5e-9
# of the lungs of an adult: the expected error, and how far the map is smoothed, per voxel of both images besides
_TRUST_S, _SMOOTHING_S, _SMOOTHING_VOXEL_S, _USUAL_DETERMINANTS = 1.4, 0.65, 5e-9, 1.6e5
_AROUND = 1.3  # of the optimisation within, on the other side of a border that slides
_MODEL_S = {"lung": 2.9, "lung-m": 8.0}  # its prediction alone
_OTHER_MODEL_S = 10.0
# of the refinement: per node and round, at nodes, at voxels and where these are nodes, and per node of start and end
_DENSE_S, _DENSE_FINE_S, _DENSE_VOXELS_S, _DENSE_ENDS_S = 1.1e-6, 2.0e-6, 4.0e-6, 1e-5
# on a GPU: of the imports and the first use of the device, of an iteration, and what is left of other work there
_GPU_START_S, _GPU_ITERATION_S, _GPU_PART = 7.0, 1.7e-3, 0.05


@dataclass(frozen=True)
class Estimate:
    """Wall-clock seconds and peak memory: of the process on a CPU, of the device on a GPU."""

    seconds: float
    memory_mb: float


@dataclass(frozen=True)
class _Work:
    """Counts that time and memory follow from."""

    voxels: int  # of both images
    fixed_voxels: int
    levels: list[float]  # voxels of the working grids
    points: int  # compared at a step
    products: int  # multiplications of the network at a point
    dense: tuple[float, ...]  # nodes of the refinement, and these times each kind of its rounds
    nodes: float  # of the transforms' grids, both together
    determinants: float
    disagreement: float  # points of its map

    @classmethod
    def of(cls, settings: Settings, fixed_size, fixed_spacing_mm, moving_size) -> _Work:
        d = len(fixed_size)
        sides_mm = [n * s for n, s in zip(fixed_size, fixed_spacing_mm, strict=True)]
        volume, voxel = math.prod(sides_mm), math.prod(fixed_spacing_mm)
        voxels = math.prod(fixed_size) + math.prod(moving_size)
        region = min(volume, _REGION_MM3) if d == 3 else volume
        scale, own_mm = min(1.0, max(sides_mm) / BODY_MM), voxel ** (1 / d)
        finest_mm = settings.similarity.finest * own_mm
        levels = [region / max(level.features.spacing_mm * scale, finest_mm) ** d for level in settings.levels]
        mask = (_MASK_PART if d == 3 else 1.0) * region

        dense = settings.dense
        refined = region / (2 * max(dense.spacing_mm * scale, own_mm)) ** d

        def points(spacing_mm: float, of_mm: float) -> float:
            return of_mm / max(voxel, (spacing_mm * scale) ** d)

        return cls(
            voxels,
            math.prod(fixed_size),
            levels,
            settings.similarity.points.count(int(max(levels))),
            _network(settings.field)[0],
            (any(dense.all_rounds) * refined, *(rounds * refined for rounds in dense.all_rounds)),
            2 * points(_TRANSFORM_MM, volume),
            points(_JACOBIAN_MM, mask),
            points(_CONSISTENCY_MM, mask),
        )


def stages(
    settings: Settings,
    fixed_size: tuple[int, ...],
    fixed_spacing_mm: tuple[float, ...],
    moving_size: tuple[int, ...],
    device: str = "cpu",
    outputs: Collection[str] = DEFAULT_OUTPUTS,
    masks: bool = False,
) -> dict[str, float]:
    """Expected wall-clock seconds of each stage of a run, in their order; ``masks``: given, not to be found."""
    w = _Work.of(settings, fixed_size, fixed_spacing_mm, moving_size)
    gpu = device.startswith("cuda")
    part = _GPU_PART if gpu else 1.0
    step = _GPU_ITERATION_S if gpu else _ITERATION_S + _FIT_PRODUCT_S * w.points * w.products
    predicted = settings.model is not None and not settings.fit.iterations
    node, determinant, point = (
        (_SPLINE_S, _SPLINE_JACOBIAN_S, _SPLINE_POINT_S)
        if predicted
        else (_MAP_PRODUCT_S * w.products, _JACOBIAN_PRODUCT_S * w.products, 1.8 * _MAP_PRODUCT_S * w.products)
    )
    if settings.smooth:
        node, determinant = min(node, _SMOOTH_S), min(determinant, _SMOOTH_JACOBIAN_S)
    first, *later = (part * (_FEATURES_S * level + _AVERAGING_S * w.voxels) for level in w.levels)
    chest = min(1.0, w.determinants / _USUAL_DETERMINANTS)
    smoothing = chest * (_SMOOTHING_S + _SMOOTHING_VOXEL_S * w.voxels) if settings.smooth else 0.0
    around = 1 + _AROUND * settings.sliding
    find = len(fixed_size) == 3 and not masks
    exact = w.fixed_voxels * (_MASK_PART if len(fixed_size) == 3 else 1.0) if "exact-jacobian" in outputs else 0.0
    jacobian = not {"jacobian", "exact-jacobian"}.isdisjoint(outputs)
    floats = jacobian + ("log-jacobian" in outputs) + 2 * ("ventilation" in outputs)  # volumes of them
    found = {
        "start": _GPU_START_S if gpu else _START_S,
        "reading": _READING_S * w.voxels,
        "masks": _MASKS_S * w.voxels * find,
        "alignment": _CHECK_S + _SEARCH_S * find,
        "prediction": part * (_MODEL_S.get(settings.model, _OTHER_MODEL_S) if settings.model else 0.0),
        # of a prediction alone it is only found how far it is smoothed, which is told as part of the features
        "features": part * smoothing if predicted else first,
        "optimising": settings.fit.iterations * step * around
        + (not predicted) * (sum(later) + part * smoothing + (around - 1) * sum((first, *later)))
        + part * _refining(w),
        "transforms": part * node * w.nodes,
        "Jacobian determinant": part * determinant * max(w.determinants, exact)
        + _DETERMINANTS_S
        + _SPREADING_S * w.fixed_voxels,
        "measures": _MEASURES_S + _COUNTING_S * w.fixed_voxels,
        "writing": _FLOATS_S * w.fixed_voxels * floats,
        "expected error": _TRUST_S * chest,
        "warping": _WARPING_S * w.fixed_voxels * (not {"warped", "report"}.isdisjoint(outputs)),
        "forward-backward difference": part * point * w.disagreement * ("disagreement" in outputs),
        "report": (_PAGE_S + _PICTURES_S * w.fixed_voxels) * ("report" in outputs),
    }
    return {name: seconds for name, seconds in found.items() if seconds}


def _refining(w: _Work) -> float:
    seconds = _DENSE_ENDS_S, _DENSE_S, _DENSE_FINE_S, _DENSE_VOXELS_S
    return sum(each * nodes for each, nodes in zip(seconds, w.dense, strict=True))


def beginning(expected: dict[str, float]) -> dict[str, float]:
    """The stages that ``register`` itself goes through, without the start of the process and the reading of files."""
    return {name: expected[name] for name in _BEGINNING[2:] if name in expected}


def estimate(
    settings: Settings,
    fixed_size: tuple[int, ...],
    fixed_spacing_mm: tuple[float, ...],
    moving_size: tuple[int, ...],
    moving_spacing_mm: tuple[float, ...],
    device: str = "cpu",
    outputs: Collection[str] = DEFAULT_OUTPUTS,
) -> Estimate:
    """Rough cost of registering images of these sizes (voxels) and spacings, x first, lungs to be found in 3D."""
    w = _Work.of(settings, fixed_size, fixed_spacing_mm, moving_size)
    _, activations = _network(settings.field)
    memory = _BYTES_A_WORK_VOXEL * max(w.levels) + _BYTES_AN_ACTIVATION * w.points * activations
    if not device.startswith("cuda"):
        memory += 1e6 * _LIBRARIES_MB + _BYTES_A_VOXEL * w.voxels
    seconds = stages(settings, fixed_size, fixed_spacing_mm, moving_size, device, outputs)
    return Estimate(sum(seconds.values()), memory / 1e6)


def _network(field: FieldSettings) -> tuple[int, int]:
    """Multiplications and activations of a point; fields without a network read their code, and no more is known."""
    if not isinstance(field, NeuralSettings):
        return field.local_code, field.local_code
    f = field
    products = 2 * f.frequencies * 2 * f.width + f.local_code * f.width + 2 * f.hidden_layers * f.width**2
    return products, 2 * f.frequencies + 4 * f.width
