"""The commands of ``nephi`` that need torch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..both import complete
from ..device import choose_device, devices, limit_threads
from ..errors import NephiError, collected_notices, notice
from ..files.cases import fingerprints
from ..files.dicom_objects import read_series, write_series
from ..files.dicom_segmentations import is_segmentation, read_segmentation, write_segmentation
from ..files.dicom_structures import is_structure_set
from ..files.folder import ResultFolder
from ..files.formats import check_format
from ..files.image import read_image, read_volume, write_image
from ..files.landmarks import read_landmarks, write_landmarks
from ..files.masks import read_mask
from ..files.provenance import hashes
from ..files.writing import output_folder
from ..journal import complete_moves
from ..measure.estimate import stages
from ..measure.report import Report
from ..measure.timetable import Timetable
from ..measure.verdict import read_tolerances
from ..paths import check_spared, output_file
from ..registration import register
from ..report.guidance import guidance_lines
from ..report.preview import Preview
from ..report.write import write_all
from ..result import Registration
from ..settings import preset
from ..space.grid import Grid
from ..synthetic.phantom import make_phantom
from .convert import TransformFile, export
from .evaluate import label_pair, landmark_pair, mask_pair, region_pair
from .guidance import guidance_from
from .options import outputs_from, settings_from
from .progress import Progress, tell_notices
from .structures import warp_structures

_MOST_REGIONS = 20  # most regions listed at the end of a run
_POINT_FILES = (".csv", ".fcsv", ".json", ".txt", ".pts", ".vtk")


def register_command(options) -> int:
    started = options.started, 0.0  # CPU time counts from the start of the process
    check_spared(ResultFolder(Path(options.output)).files, vars(options))
    settings, tolerances = settings_from(options), read_tolerances(options.tolerances)
    if options.preview is not None and not options.preview > 0:
        raise NephiError(f"--preview {options.preview:g}: must be a number of seconds above 0")
    outputs, device = outputs_from(options), choose_device(options.device)
    tell = Timetable({}, Progress(options.progress, started=options.started), options.started)
    limit_threads(options.threads)
    tell("reading", 0.0, {})
    # taken before they are read: a file that changes while it is read will not look like the one used
    series = tuple(options.series)
    inputs = fingerprints(vars(options), not options.no_auto_mask, settings.align, model=settings.model, series=series)
    made_of = hashes(vars(options), settings.align, settings.model)
    with collected_notices() as notices:
        fixed = read_image(options.fixed, "fixed image", series)
        moving = read_image(options.moving, "moving image", series)
        for name in options.also:
            check_format(name, fixed.GetDimension())
        masks = mask_pair(options, fixed, moving)
        landmarks, labels = landmark_pair(options, fixed, moving), label_pair(options, fixed, moving)
        regions = region_pair(options, fixed, moving)
        guidance = guidance_from(options, fixed, moving)
    tell_notices(notices)  # now, before the work begins; they are in the report, too
    sizes, given = (fixed.GetSize(), fixed.GetSpacing(), moving.GetSize()), options.no_auto_mask or complete(*masks)
    tell.expect(stages(settings, *sizes, str(device), outputs, masks=bool(given)))
    with ResultFolder(Path(options.output)).output() as output, contextlib.ExitStack() as stack:
        folder = output.path
        preview = stack.enter_context(Preview(folder, options.preview, tell)) if options.preview else None
        result = register(
            fixed,
            moving,
            fixed_mask=masks.fixed,
            moving_mask=masks.moving,
            settings=settings,
            guidance=guidance,
            auto_mask=not options.no_auto_mask,
            device=options.device,
            progress=tell,
            preview=preview,
        )
        if preview is not None:
            preview.final(result)
        result.notes = (*notices, *result.notes)
        if options.also:
            scratch = stack.enter_context(output.replaced())  # the further formats are part of the result
            export(result, options.also, scratch.path)
        report = write_all(
            result,
            fixed,
            moving,
            scratch.path if options.also else folder,
            landmarks=landmarks,
            labels=labels,
            regions=regions.fixed,
            moving_regions=regions.moving,
            names=(str(options.fixed), str(options.moving)),
            inputs=inputs,
            hashes=made_of,
            started=started,
            outputs=outputs,
            tolerances=tolerances,
            progress=tell,
        )
    if options.progress in ("bar", "none"):
        print(summary_lines(report, folder))
    return 0


def devices_command(options) -> int:
    print(json.dumps(devices()))
    return 0


def summary_lines(report: Report, folder: Path) -> str:
    """The report in a few lines, as printed at the end of a run."""
    lines = []
    if report.tre_mm is not None:
        before, after = report.tre_mm.before, report.tre_mm.after
        lines.append(
            f"TRE          {'' if before is None else f'{before.mean:.2f} mm after alignment -> '}{after.mean:.2f} mm "
            f"mean, {after.median:.2f} median, {after.p95:.2f} 95th percentile, {after.max:.2f} max"
        )
    folds, jacobian = report.folds, report.jacobian
    lines.append(f"folds        {folds.count} voxels ({folds.percent:.4f} %) in the {folds.where}")
    lines.append(f"|J|          {jacobian['min']:.2f} min, {jacobian['mean']:.2f} mean, {jacobian['max']:.2f} max")
    if report.inverse_consistency_mm is not None:
        lines.append(f"inverse      {report.inverse_consistency_mm.mean:.2f} mm mean inconsistency of the transforms")
    if report.fields_disagreement_mm is not None:
        lines.append(f"fields       {report.fields_disagreement_mm.mean:.2f} mm mean forward-backward difference")
    if report.dice is not None:
        start = "" if report.dice.before is None else f"{report.dice.before:.3f} -> "
        lines.append(f"Dice         {start}{report.dice.after:.3f} (masks)")
    lines += [f"{'region':<12} {text}" for text in _regions_in_words(report.regions or [])]
    lines += [f"guided by    {text}" for text in guidance_lines(report.guidance or {})]
    if report.time_s is not None:
        lines.append(f"time         {report.time_s['wall']:.1f} s ({report.time_s['cpu']:.1f} s of CPU time)")
    if report.error_estimate_mm is not None:
        error = report.error_estimate_mm
        text = f"{error.mean:.2f} mm expected on average; upper 95 % limit {error.bound_mean:.2f} mm on average"
        lines.append(f"error        {text}")
    lines += [f"note         {text}" for text in report.warnings]
    if report.verdict is not None:
        first, *more = report.verdict.reasons
        lines += [f"{report.verdict.outcome:<12} {first}", *(f"{'':12} {reason}" for reason in more)]
    page = ResultFolder(folder).page
    lines.append(f"written to   {page if page.exists() else folder}")
    return "\n".join(lines)


def _regions_in_words(rows: list[dict]) -> Iterator[str]:
    if len(rows) > _MOST_REGIONS:
        yield f"{len(rows)} regions are listed in report.json"
        return
    for row in rows:
        text = f"{row.get('name') or row['label']}: {row['volume_fixed_ml']:.0f} -> {row['volume_moving_ml']:.0f} mL "
        text += f"({row['change_percent']:+.1f} %), mean |J| {row['mean_jacobian']:.3f}"
        if row.get("ventilation_hu") is not None:
            text += f", ventilation by density {100 * row['ventilation_hu']:.1f} %"
        if row.get("dice") is not None:
            text += f", Dice {row['dice']:.3f}"
        if row.get("surface_mm") is not None:
            text += f", surfaces {row['surface_mm']:.2f} mm apart"
        yield text


def warp_command(options) -> int:
    path, series = Path(options.result), tuple(options.series)
    complete_moves(path)
    if path.is_dir() or path.suffix == ".safetensors" or not path.exists():
        result: Registration | TransformFile = Registration.load(path)
    else:
        reference = options.reference or options.dicom
        grid = Grid.of(read_volume(reference, "reference image", series)) if reference else None
        result = TransformFile(path, grid, options.inverse)
    if is_structure_set(Path(options.input)):
        warp_structures(result, options)
        return 0
    segmented = is_segmentation(Path(options.input))
    into_folder = options.dicom and not segmented
    target = Path(options.output) if into_folder else output_file(options.output)
    if Path(options.input).suffix.lower() in _POINT_FILES:
        # points go from where they are marked: fixed points forward, moving ones through the inverse
        points = read_landmarks(options.input, result.moving_grid if options.inverse else result.fixed_grid)
        write_landmarks(target, (result.inverse if options.inverse else result.forward)(points))
        return 0
    found = read_segmentation(Path(options.input)) if segmented else None
    image = found.labels if found is not None else read_volume(options.input, "input image", series)
    reference = options.reference or options.dicom
    grid = Grid.of(read_volume(reference, "reference image", series)) if reference else None
    warped = result.warp(image, grid, labels=options.labels or segmented, inverse=options.inverse)
    if found is not None and options.dicom:
        write_segmentation(warped, found.segments, target, read_series(Path(options.dicom), series))
    elif options.dicom:
        fixed, moving = (read_series(Path(folder), series) for folder in (options.dicom, options.input))
        with output_folder(target):
            write_series(warped, target, fixed, moving, "Warped")
    else:
        write_image(warped, target)
    return 0


def jacobian_command(options) -> int:
    result, target = Registration.load(options.result), output_file(options.output)
    series = tuple(options.series)
    reference = read_volume(options.reference, "reference image", series) if options.reference else None
    grid = Grid.of(reference) if reference is not None else result.fixed_grid
    mask = None
    if options.mask:
        reference = grid.image(np.zeros(grid.shape, np.uint8)) if reference is None else reference
        mask = read_mask(options.mask, reference, "mask")
    if not result.fixed_grid.meets(grid):
        notice(
            "The reference does not overlap the fixed image, where the pair was registered; check that it is the "
            "right one."
        )
    write_image(grid.image(result.dense_jacobian(grid, mask)), target)
    return 0


def demo_command(options) -> int:
    started = options.started, 0.0
    settings = preset(options.preset)
    settings = replace(settings, fit=replace(settings.fit, seed=options.seed))
    tell = Timetable({}, Progress(options.progress, started=options.started), options.started)
    limit_threads()
    with ResultFolder(Path(options.output)).output() as output:
        tell("phantom", 0.0, {})
        phantom = make_phantom(seed=options.seed)
        sizes = phantom.fixed.GetSize(), phantom.fixed.GetSpacing(), phantom.moving.GetSize()
        tell.expect(stages(settings, *sizes, str(choose_device(options.device)), masks=True))
        result = register(
            phantom.fixed,
            phantom.moving,
            fixed_mask=phantom.fixed_mask,
            moving_mask=phantom.moving_mask,
            settings=settings,
            device=options.device,
            progress=tell,
        )
        with output.replaced() as scratch:  # the phantom comes with its registration
            phantom.write(scratch.path)
            report = write_all(
                result,
                phantom.fixed,
                phantom.moving,
                scratch.path,
                landmarks=(phantom.fixed_landmarks_lps_mm, phantom.moving_landmarks_lps_mm),
                names=("phantom, exhale", "phantom, inhale"),
                started=started,
                progress=tell,
            )
    print(summary_lines(report, output.path))
    return 0
