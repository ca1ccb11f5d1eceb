"""What the commands of ``nephi`` do. torch and SimpleITK are imported inside, so that ``--help`` answers at once."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from .errors import NephiError
from .inputs import fingerprints
from .progress import Progress
from .settings import Settings, check, decode, load, preset, read_json


def settings_from(options) -> Settings:
    """Preset, then settings file, then single flags."""
    settings = preset(options.preset or "balanced")
    if options.settings:
        settings = load(options.settings, settings)
        if options.preset and settings.preset != options.preset:
            raise NephiError(f"--preset {options.preset} and the settings file's preset '{settings.preset}' differ")
    given = {k: getattr(options, k) for k in ("align", "model") if getattr(options, k)}
    settings = replace(settings, **given)
    changes = {k: getattr(options, k) for k in ("iterations", "seed") if getattr(options, k) is not None}
    settings = replace(settings, fit=replace(settings.fit, **changes))
    check(settings)
    return settings


def register_command(options) -> int:
    started = time.perf_counter(), 0.0  # processor time counts from the start of the process
    settings = settings_from(options)
    if options.preview is not None and not options.preview > 0:
        raise NephiError(f"--preview {options.preview:g}: give the seconds between two previews, above 0")
    tell = Progress(options.progress)
    from .image import read_image, read_mask, read_regions
    from .landmarks import read_landmarks
    from .output import Preview, prepare_folder, write_all
    from .registration import limit_threads, register

    limit_threads(options.threads)
    tell("reading", 0.0, {})
    # taken before they are read: a file that changes while it is read will not look like the one used
    inputs = fingerprints(vars(options), not options.no_auto_mask, settings.align, model=settings.model)
    fixed, moving = read_image(options.fixed, "fixed image"), read_image(options.moving, "moving image")
    masks = {
        f"{role}_mask": read_mask(path, image, f"{role} mask") if path else None
        for role, path, image in (("fixed", options.fixed_mask, fixed), ("moving", options.moving_mask, moving))
    }
    landmarks = _landmark_pair(options, fixed, moving, read_landmarks)
    regions = read_regions(options.regions, fixed) if options.regions else None
    folder = prepare_folder(options.output)
    with Preview(folder, options.preview, tell) if options.preview else contextlib.nullcontext() as preview:
        result = register(
            fixed,
            moving,
            **masks,
            settings=settings,
            auto_mask=not options.no_auto_mask,
            device=options.device,
            progress=tell,
            preview=preview,
        )
        report = write_all(
            result,
            fixed,
            moving,
            folder,
            landmarks=landmarks,
            regions=regions,
            names=(str(options.fixed), str(options.moving)),
            inputs=inputs,
            started=started,
            pictures=not options.no_report,
            progress=tell,
        )
    if options.progress in ("bar", "none"):
        print(summary_lines(report, folder))
    return 0


def batch_command(options) -> int:
    settings = settings_from(options)
    if options.jobs < 1:
        raise NephiError(f"--jobs {options.jobs}: at least 1 pair at a time")
    from .batch import SUMMARY, read_pairs, run_batch

    pairs, output = read_pairs(options.pairs), Path(options.output)
    try:
        rows = run_batch(
            pairs,
            output,
            settings,
            jobs=options.jobs,
            auto_mask=not options.no_auto_mask,
            device=options.device,
            threads=options.threads,
            pictures=not options.no_report,
            tell=lambda line: print(line, flush=True),
        )
    except OSError as error:
        raise NephiError(f"cannot write to output folder {output}: {error.strerror}") from None
    except KeyboardInterrupt:
        print("nephi: interrupted; the same command goes on with the pairs that are not finished", file=sys.stderr)
        return 130
    failed = sum(row["status"] != "done" for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} pairs done; {output / SUMMARY}")
    return 1 if failed else 0


def devices_command(options) -> int:
    from .registration import devices

    print(json.dumps(devices()))
    return 0


def _landmark_pair(options, fixed, moving, read_landmarks):
    paths = options.fixed_landmarks, options.moving_landmarks
    if not any(paths):
        return None
    if not all(paths):
        raise NephiError("landmarks are needed for both images: give --fixed-landmarks and --moving-landmarks")
    a, b = read_landmarks(paths[0], fixed), read_landmarks(paths[1], moving)
    if a.shape != b.shape:
        raise NephiError(
            f"{len(a)} fixed and {len(b)} moving landmarks: row i of one file must match row i of the other"
        )
    if a.shape[1] != fixed.GetDimension():
        raise NephiError(f"the landmarks are {a.shape[1]}D, the images {fixed.GetDimension()}D")
    return a, b


def summary_lines(report: dict, folder: Path) -> str:
    """What a person reads at the end of a run."""
    lines = []
    if "tre_mm" in report:
        before, after = report["tre_mm"]["before"], report["tre_mm"]["after"]
        lines.append(
            f"TRE          {before['mean']:.2f} mm after alignment -> {after['mean']:.2f} mm mean, "
            f"{after['median']:.2f} median, {after['p95']:.2f} 95th percentile, {after['max']:.2f} max"
        )
    folds = report["folds"]
    lines.append(
        f"folds        {folds['count']} voxels ({folds['percent']:.4f} %) in the {folds['where'].split(',')[0]}"
    )
    jacobian = report["jacobian"]
    lines.append(f"|J|          {jacobian['min']:.2f} min, {jacobian['mean']:.2f} mean, {jacobian['max']:.2f} max")
    lines.append(f"inverse      {report['inverse_consistency_mm']['mean']:.2f} mm mean inconsistency")
    if "dice" in report:
        lines.append(f"Dice         {report['dice']['before']:.3f} -> {report['dice']['after']:.3f} (masks)")
    lines.append(f"time         {report['time_s']['wall']:.1f} s ({report['time_s']['cpu']:.1f} s of processor time)")
    lines += [f"note         {text}" for text in report["warnings"]]
    lines.append(
        f"written to   {folder}/report.html" if (folder / "report.html").exists() else f"written to   {folder}"
    )
    return "\n".join(lines)


def _model(path: str):
    from .result import Registration

    path = Path(path)
    return Registration.load_model(path / "model.safetensors" if path.is_dir() else path)


def _output_file(path: str) -> Path:
    path = Path(path)
    if not path.parent.is_dir():
        raise NephiError(f"output folder {path.parent} does not exist")
    return path


_POINT_FILES = (".csv", ".fcsv", ".json", ".txt", ".pts", ".vtk")


def warp_command(options) -> int:
    import SimpleITK as sitk

    from .image import read_image, write_image
    from .landmarks import read_landmarks, write_landmarks
    from .output import displacement_transform, transform_grid
    from .space import Grid

    result, target = _model(options.result), _output_file(options.output)
    if Path(options.input).suffix.lower() in _POINT_FILES:
        # points go from where they are marked: fixed points forward, moving ones through the inverse
        points = read_landmarks(options.input)
        write_landmarks(target, (result.inverse if options.inverse else result.forward)(points))
        return 0
    image = read_image(options.input, "input image")
    grid = result.moving_grid if options.inverse else result.fixed_grid
    if options.reference:
        grid = Grid.of(read_image(options.reference, "reference image"))
    if image.GetDimension() != grid.dimension:
        raise NephiError(f"the input image is {image.GetDimension()}D, the registration {grid.dimension}D")
    coarse, displacement, _ = transform_grid(result, grid, options.inverse)
    interpolator = sitk.sitkNearestNeighbor if options.labels else sitk.sitkLinear
    outside = 0 if options.labels else sitk.GetArrayViewFromImage(image).min()
    write_image(grid.resample(image, displacement_transform(displacement, coarse), interpolator, outside), target)
    return 0


def jacobian_command(options) -> int:
    from .image import read_image, read_mask, write_image
    from .space import Grid

    result, target = _model(options.result), _output_file(options.output)
    reference = read_image(options.reference, "reference image") if options.reference else None
    grid = Grid.of(reference) if reference is not None else result.fixed_grid
    mask = None
    if options.mask:
        if reference is None:
            import SimpleITK as sitk

            reference = sitk.Image(result.fixed_grid.size, sitk.sitkUInt8)
            reference.SetOrigin(grid.origin_lps_mm)
            reference.SetSpacing(grid.spacing_mm)
            reference.SetDirection(grid.direction)
        mask = read_mask(options.mask, reference, "mask")
    write_image(grid.image(result.dense_jacobian(grid, mask)), target)
    return 0


def evaluate_command(options) -> int:
    from .evaluate import evaluate
    from .image import read_image, read_mask
    from .landmarks import read_landmarks

    fixed = read_image(options.fixed, "fixed image")
    moving = read_image(options.moving, "moving image") if options.moving else None
    masks = {"fixed_mask": None, "moving_mask": None}
    if options.fixed_mask:
        masks["fixed_mask"] = read_mask(options.fixed_mask, fixed, "fixed mask")
    if options.moving_mask:
        if moving is None:
            raise NephiError("--moving-mask needs --moving")
        masks["moving_mask"] = read_mask(options.moving_mask, moving, "moving mask")
    if moving is None and options.moving_landmarks:
        read_landmarks(options.moving_landmarks)  # voxel indices need their own image: this says so
    landmarks = _landmark_pair(options, fixed, fixed if moving is None else moving, read_landmarks)
    text = json.dumps(evaluate(options.transform, fixed, options.inverse, landmarks=landmarks, **masks), indent=2)
    if options.output:
        _output_file(options.output).write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    return 0


def demo_command(options) -> int:
    started = time.perf_counter(), 0.0
    settings = preset(options.preset)
    settings = replace(settings, fit=replace(settings.fit, seed=options.seed))
    tell = Progress(options.progress)
    from .output import prepare_folder, write_all
    from .phantom import make_phantom
    from .registration import limit_threads, register

    limit_threads()
    folder = prepare_folder(options.output)
    tell("phantom", 0.0, {})
    phantom = make_phantom(seed=options.seed)
    phantom.write(folder)
    result = register(
        phantom.fixed,
        phantom.moving,
        fixed_mask=phantom.fixed_mask,
        moving_mask=phantom.moving_mask,
        settings=settings,
        device=options.device,
        progress=tell,
    )
    report = write_all(
        result,
        phantom.fixed,
        phantom.moving,
        folder,
        landmarks=(phantom.fixed_landmarks_lps_mm, phantom.moving_landmarks_lps_mm),
        names=("phantom, exhale", "phantom, inhale"),
        started=started,
        progress=tell,
    )
    print(summary_lines(report, folder))
    return 0


def train_command(options) -> int:
    from .output import prepare_folder
    from .registration import choose_device, limit_threads
    from .train import MODEL, RESUME, TrainSettings, train

    settings = TrainSettings()
    if options.settings:
        settings = decode(settings, read_json(options.settings))
    named = ("data", "validation", "start", "coarse")
    named = {k: getattr(options, k) for k in named if getattr(options, k)}
    changes = {k: getattr(options, k) for k in ("iterations", "seed") if getattr(options, k) is not None}
    settings = replace(settings, fit=replace(settings.fit, **changes), **named)
    if not settings.data:
        raise NephiError("there is nothing to train on: give --data, or data in the settings file")
    limit_threads(options.threads)
    folder = prepare_folder(options.output)
    device, tell = choose_device(options.device), Progress(options.progress)
    try:
        best = train(settings, folder, device, resume=options.resume, progress=tell)
    except KeyboardInterrupt:
        there = (folder / RESUME).is_file()
        print(f"nephi: interrupted; {'--resume goes on' if there else 'too early to resume'}", file=sys.stderr)
        return 130
    if best:  # of several processes, the first
        print("  ".join(f"{name} {value:.4g}" for name, value in best.items()))
        print(f"written to   {folder / MODEL}")
    return 0


def breathe_command(options) -> int:
    from .breathing import generate
    from .image import read_image, read_mask
    from .output import prepare_folder

    if options.masks and len(options.masks) != len(options.ct):
        raise NephiError(f"{len(options.ct)} CTs and {len(options.masks)} masks: give one for each CT, or none")
    templates = []
    for k, path in enumerate(options.ct):
        image = read_image(path, "CT")
        templates.append((image, read_mask(options.masks[k], image, "mask") if options.masks else None))
    print(generate(prepare_folder(options.output), options.count, options.seed, templates))
    return 0
