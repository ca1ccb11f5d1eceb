"""What was done and found, as a paragraph for the methods section of a paper. In English, as papers are."""

from __future__ import annotations

_CITATION = "Tian et al., NePhi: neural deformation fields for approximately diffeomorphic medical image registration, "
_CITATION += "ECCV 2024"


def methods_text(report: dict) -> str:
    """Versions, settings and the measured quality; whatever the report does not have is left out."""
    settings, versions = report["settings"], report["versions"]
    fit = settings["fit"]
    text = (
        f"Image pairs were registered with NePhi {versions['nephi']} ({_CITATION}) in 3D Slicer, "
        f"preset '{settings['preset']}' ({settings['similarity']['name'].upper()} similarity, smoothness weight "
        f"{settings['regularity']['weight']:g}, {fit['iterations']} iterations, random seed {fit['seed']}; "
        f"PyTorch {versions['torch']}, {'CPU' if report['device'] == 'cpu' else 'graphics card'})."
    )
    sentences = [text, _masks(report)]
    if "guidance" in report:
        given = ", ".join(name.replace("_", " ") for name in report["guidance"])
        sentences.append(f"The registration was guided by: {given}.")
    if "tre_mm" in report:
        before, after = report["tre_mm"]["before"], report["tre_mm"]["after"]
        sentences.append(
            f"The target registration error at {after['n']:g} landmarks was {after['mean']:.2f} mm on average "
            f"({before['mean']:.2f} mm after the affine alignment) and at most {after['max']:.2f} mm."
        )
    if "dice" in report:
        sentences.append(f"The masks overlapped with a Dice coefficient of {report['dice']['after']:.3f}.")
    jacobian, folds = report["jacobian"], report["folds"]
    sentences.append(
        f"The Jacobian determinant was {jacobian['mean']:.3f} on average ({jacobian['min']:.3f} to "
        f"{jacobian['max']:.3f}); {folds['percent']:.3g} % of the voxels were folded. Forward and inverse field "
        f"differed by {report['fields_disagreement_mm']['mean']:.2f} mm on average."
    )
    if "error_estimate_mm" in report and "verdict" in report:
        estimate, verdict = report["error_estimate_mm"], report["verdict"]
        sentences.append(
            f"The error that is expected from the images alone was {estimate['mean']:.1f} mm on average, with an "
            f"upper 95 % limit of {estimate['bound_mean']:.1f} mm on average; the verdict by the tolerances of "
            f"{verdict['tolerances']['set_by']} was {verdict['outcome']}."
        )
    return " ".join(filter(None, sentences))


def _masks(report: dict) -> str:
    if "volume" not in report:
        return "The whole images were compared, without masks."
    found = any("mask was found by a threshold" in warning for warning in report["warnings"])
    return f"The images were compared within masks{', found by a threshold' if found else ''}."
