"""The peers, one function each: prepared files in, displacement fields (LPS mm, fixed -> moving) out.

python -m benchmarks.runners METHOD PREPARED OUT [--threads N] [--seed N] [--networks DIR] [--quick]

Runs in the peers' Python, in a process of its own, so each package is imported only by its own function.
Settings are those their authors recommend or published for lung CT; docs/benchmarks.md lists them with their
sources. The methods of ``baselines`` are written here, next to nephi, whose package has to be on the path.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import SimpleITK as sitk


@dataclass(frozen=True)
class Job:
    """One run: where the prepared files lie, where the result goes."""

    prepared: Path
    out: Path
    threads: int
    seed: int
    quick: bool  # a few iterations: to see that everything works, not to measure
    networks: Path | None = None  # where train_baselines.py has left the weights of the learned ones

    def path(self, name: str) -> str:
        return str(self.prepared / f"{name}.nii.gz")

    @property
    def settings(self) -> dict:
        return json.loads((self.prepared / "prepared.json").read_text())

    @property
    def masked(self) -> bool:
        return self.settings["masked"]

    def windowed(self, name: str) -> sitk.Image:
        """An image clamped to the intensity window of the pair."""
        low, high = self.settings["window"]
        return sitk.Clamp(sitk.ReadImage(self.path(name), sitk.sitkFloat32), sitk.sitkFloat32, low, high)

    def write(self, displacement: sitk.Image, name: str = "displacement") -> None:
        sitk.WriteImage(sitk.Cast(displacement, sitk.sitkVectorFloat32), str(self.out / f"{name}.mha"))


def greedy(job: Job, use_masks: bool = True, metric: str = "NCC 2x2x2") -> None:
    """greedy, NCC of radius 2 or NMI, three levels; -wp 0 keeps the warp from being rounded to a tenth voxel.

    Only the fixed mask: the moving mask (-mm) on top helped no pair and made breathhold_case01 worse.
    """
    from picsl_greedy import Greedy3D

    iterations = "2x2x0" if job.quick else "100x60x30"
    command = "-i fixed moving " + ("-gm mask " if use_masks and job.masked else "")
    command += f"-m {metric} -n {iterations} -wp 0 -threads {job.threads} -seed {job.seed} "
    images = {name: sitk.ReadImage(job.path(name), sitk.sitkFloat32) for name in ("fixed", "moving")}
    if "-gm" in command:
        images["mask"] = sitk.ReadImage(job.path("fixed_mask"), sitk.sitkFloat32)
    program = Greedy3D()  # given images, not paths: its command line has no quoting
    program.execute(command + "-o forward -oinv inverse", **images, forward=None, inverse=None)
    job.write(program["forward"])
    job.write(program["inverse"], "inverse_displacement")


def convexadam(job: Job, use_masks: bool = False) -> None:
    """convexAdam on MIND features with the defaults of its package; masked: both images times their mask."""
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt

    torch.set_num_threads(job.threads)
    images = {name: sitk.GetArrayFromImage(job.windowed(name)) - job.settings["window"][0]
              for name in ("fixed", "moving")}  # fmt: skip
    if use_masks:
        for name in images:
            images[name] *= sitk.GetArrayFromImage(sitk.ReadImage(job.path(f"{name}_mask"))) > 0
    voxels = convex_adam_pt(
        images["fixed"], images["moving"], selected_niter=5 if job.quick else 80, dtype=torch.float32,
        device=torch.device("cpu"))  # fmt: skip
    grid = sitk.ReadImage(job.path("fixed"))
    step = np.reshape(grid.GetDirection(), (3, 3)) * np.array(grid.GetSpacing())
    displacement = sitk.GetImageFromArray((voxels[..., ::-1] @ step.T).astype(np.float32), isVector=True)
    displacement.CopyInformation(grid)
    job.write(displacement)


def ants_syn(job: Job, use_masks: bool = True, full_resolution: int = 20) -> None:
    """ANTs SyN, the deformable stage of antsRegistrationSyN.sh with cross-correlation of radius 2.

    Without iterations at full resolution its levels are those of antsRegistrationSyNQuick.sh.
    """
    import ants

    masks = {}
    if use_masks and job.masked:
        masks = {"mask": ants.image_read(job.path("fixed_mask")),
                 "moving_mask": ants.image_read(job.path("moving_mask"))}  # fmt: skip
    for name in ("fixed", "moving"):
        sitk.WriteImage(job.windowed(name), str(job.out / f"{name}.nii"))
    ants.registration(
        ants.image_read(str(job.out / "fixed.nii")), ants.image_read(str(job.out / "moving.nii")),
        type_of_transform="SyNOnly", initial_transform="Identity", outprefix=str(job.out / "ants"),
        syn_metric="CC", syn_sampling=2, grad_step=0.1, flow_sigma=3, total_sigma=0,
        reg_iterations=(2, 2, 0, 0) if job.quick else (100, 70, 50, full_resolution),
        write_composite_transform=True, random_seed=job.seed, **masks)  # fmt: skip
    grid = sitk.ReadImage(job.path("fixed"))
    for prefix, name in (("ants", "displacement"), ("antsInverse", "inverse_displacement")):
        transform = sitk.ReadTransform(str(job.out / f"{prefix}Composite.h5"))
        job.write(sitk.TransformToDisplacementField(
            transform, sitk.sitkVectorFloat32, grid.GetSize(), grid.GetOrigin(), grid.GetSpacing(),
            grid.GetDirection()), name)  # fmt: skip


ELASTIX = {
    "Registration": ["MultiMetricMultiResolutionRegistration"],
    "NumberOfResolutions": ["5"],
    "FixedImagePyramid": ["FixedRecursiveImagePyramid"],
    "MovingImagePyramid": ["MovingRecursiveImagePyramid"],
    "Interpolator": ["LinearInterpolator"],
    "Metric": ["AdvancedNormalizedCorrelation", "TransformBendingEnergyPenalty"],
    "UseMultiThreadingForMetrics": ["false"],  # itk-elastix 0.25.4 crashes with the penalty otherwise
    "UseRelativeWeights": ["true"],
    "Metric0RelativeWeight": ["1.0"],
    "Metric1RelativeWeight": ["0.05"],
    "Optimizer": ["AdaptiveStochasticGradientDescent"],
    "MaximumNumberOfIterations": ["1000"],
    "AutomaticParameterEstimation": ["true"],
    "UseAdaptiveStepSizes": ["true"],
    "Transform": ["BSplineTransform"],
    "FinalGridSpacingInPhysicalUnits": ["10.0"] * 3,
    "GridSpacingSchedule": [str(factor) for factor in (8, 8, 4, 2, 1) for _ in "xyz"],
    "ImageSampler": ["RandomCoordinate"],
    "NumberOfSpatialSamples": ["2000"],
    "NewSamplesEveryIteration": ["true"],
    "MaximumNumberOfSamplingAttempts": ["50"],
    "ErodeMask": ["false"],
    "UseDirectionCosines": ["true"],
    "Resampler": ["DefaultResampler"],
    "ResampleInterpolator": ["FinalLinearInterpolator"],
    "WriteResultImage": ["false"],
}


def elastix(job: Job, metric: str = ELASTIX["Metric"][0]) -> None:
    """elastix: the first B-spline stage of Staring et al. (EMPIRE10, Par0011), with both masks."""
    import itk

    for name in ("fixed", "moving"):
        sitk.WriteImage(job.windowed(name), str(job.out / f"{name}.mha"))
    fixed, moving = (itk.imread(str(job.out / f"{name}.mha"), itk.F) for name in ("fixed", "moving"))
    # Published shrink factors 16 to 1; less along an axis too short to keep 8 voxels.
    most = [max(1, size // 8) for size in job.settings["size"]]
    schedule = [str(min(shrink, limit)) for shrink in (16, 8, 4, 2, 1) for limit in most]
    parameters = itk.ParameterObject.New()
    changed = {"RandomSeed": [str(job.seed)], "ImagePyramidSchedule": schedule}
    changed["Metric"] = [metric, *ELASTIX["Metric"][1:]]
    if job.quick:
        changed["MaximumNumberOfIterations"] = ["10"]
    parameters.AddParameterMap(ELASTIX | changed)
    masks = {}
    if job.masked:
        masks = {f"{n}_mask": itk.imread(job.path(f"{n}_mask"), itk.UC) for n in ("fixed", "moving")}
    _, found = itk.elastix_registration_method(
        fixed, moving, parameter_object=parameters, number_of_threads=job.threads, log_to_console=False,
        output_directory=str(job.out), log_to_file=True, **masks)  # fmt: skip
    field = itk.transformix_deformation_field(moving, found, output_directory=str(job.out))
    displacement = sitk.GetImageFromArray(itk.array_from_image(field), isVector=True)
    displacement.CopyInformation(sitk.ReadImage(job.path("fixed")))
    job.write(displacement)


def regix(job: Job) -> None:
    """Regix: elastix on its MIND-SSC features, the B-spline stage of its preset ct_mr_abdomen at elastix' nodes."""
    from regix import RegistrationPipeline, load_preset

    kind = "CT" if job.settings["window"][0] <= -900 else "MR"
    config = load_preset("ct_mr_abdomen")
    stage = [one for one in config.stages if one.type == "bspline"][0]
    fewer = {"max_iterations": 10} if job.quick else {}
    config = config.with_overrides(
        fixed_modality=kind, moving_modality=kind, features={"enabled": True, "provider": "mind"},
        organs={"targets": [], "fixed_mask": job.path("fixed_mask"), "moving_mask": job.path("moving_mask"),
                "backend": "external"} if job.masked else {"targets": []},
        init={"mode": "identity"}, runtime={"threads": job.threads, "seed": job.seed, "log_level": "WARNING"},
        stages=[{**stage.model_dump(), "final_grid_spacing_mm": 10.0, **fewer}])  # fmt: skip
    names = [job.path(name) for name in ("fixed", "moving")]
    found = RegistrationPipeline(config).compute(*names, registered_image=False, qc=False)
    transform, grid = found.applied_transform.as_sitk_transform(), sitk.ReadImage(job.path("fixed"))
    job.write(sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat32, grid.GetSize(), grid.GetOrigin(), grid.GetSpacing(),
        grid.GetDirection()))  # fmt: skip


def fireants(job: Job) -> None:
    """FireANTs, greedy with cross-correlation, as its documentation's first example, on the CPU.

    It fails on axes of fewer than 32 voxels: their last slice is repeated.
    """
    import torch
    from fireants.io import BatchedImages, Image
    from fireants.registration.greedy import GreedyRegistration

    torch.set_num_threads(job.threads)
    images, beyond = [], [max(0, 32 - size) for size in job.settings["size"]]
    for name in ("fixed", "moving"):
        image = sitk.ZeroFluxNeumannPad(job.windowed(name), [0] * 3, beyond)
        sitk.WriteImage(image, str(job.out / f"{name}.nii.gz"))
        images.append(BatchedImages([Image.load_file(str(job.out / f"{name}.nii.gz"), device="cpu")]))
    found = GreedyRegistration(
        scales=[4, 2, 1], iterations=[2, 2, 2] if job.quick else [200, 100, 25], fixed_images=images[0],
        moving_images=images[1], cc_kernel_size=5, deformation_type="compositive", smooth_grad_sigma=1,
        optimizer="adam", optimizer_lr=0.5, progress_bar=False)  # fmt: skip
    found.optimize()
    found.save_as_ants_transforms(str(job.out / "warp.nii.gz"))
    job.write(sitk.Crop(sitk.ReadImage(str(job.out / "warp.nii.gz")), [0] * 3, beyond))


def baseline(module: str, **options) -> Callable[[Job], None]:
    """``run`` of a module of ``baselines``."""

    def run(job: Job) -> None:
        import torch

        torch.set_num_threads(job.threads)
        import_module(f"benchmarks.baselines.{module}").run(job, **options)

    return run


METHODS = {
    "greedy": greedy,
    "greedy_nmi": lambda job: greedy(job, metric="NMI"),
    "greedy_unmasked": lambda job: greedy(job, use_masks=False),
    "convexadam": convexadam,
    "convexadam_masked": lambda job: convexadam(job, use_masks=True),
    "ants": ants_syn,
    "ants_unmasked": lambda job: ants_syn(job, use_masks=False),
    "ants_quick": lambda job: ants_syn(job, full_resolution=0),
    "elastix": elastix,
    "elastix_mi": lambda job: elastix(job, "AdvancedMattesMutualInformation"),
    "regix": regix,
    "fireants": fireants,
    "voxel": baseline("voxel"),
    "bspline_tv": baseline("bspline_tv"),
    "idir": baseline("idir"),
    "lapirn": baseline("lapirn"),
    "gradicon": baseline("gradicon", multi=False, optimised=False),
    "gradicon_io": baseline("gradicon", multi=False, optimised=True),
    "gradicon_multi": baseline("gradicon", multi=True, optimised=False),
    "gradicon_multi_io": baseline("gradicon", multi=True, optimised=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--networks", type=Path)
    arguments = vars(parser.parse_args())
    METHODS[arguments.pop("method")](Job(**arguments))


if __name__ == "__main__":
    main()
