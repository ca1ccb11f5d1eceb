"""What the engine reports, in the panel's words."""

from __future__ import annotations

from .i18n import tr as _

_STAGES = {
    "starting": _("Starting"),
    "reading": _("Reading the volumes"),
    "masks": _("Preparing the masks"),
    "alignment": _("Aligning"),
    "prediction": _("Predicting the motion"),
    "features": _("Computing image features"),
    "optimising": _("Optimising"),
    "transforms": _("Computing the transforms"),
    "warping": _("Warping the moving volume"),
    "Jacobian determinant": _("Computing the volume change"),
    "measures": _("Measuring the result"),
    "forward-backward difference": _("Comparing both directions"),
    "writing": _("Writing the result"),
    "report": _("Writing the report"),
    "done": _("Done"),
    "expected error": _("Estimating the error"),
}
_OPTIONS = {  # the engine's messages name options of its command line
    "with --fixed-mask": "as fixed mask",
    "with --moving-mask": "as moving mask",
    "--align moments": "the initial alignment by centre and size of the masks",
    "--align centres": "the initial alignment centre to centre",
    "--device cpu": "the CPU",
}
_NOTICES = ("mask was found by a threshold", "The prediction of model", "as Slicer writes segmentations")


def stage_text(stage: str) -> str:
    """What the engine is doing; a stage that is not known here as the engine calls it."""
    return _STAGES.get(stage, stage[:1].upper() + stage[1:])


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{round(seconds)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def in_panel_words(text: str) -> str:
    """A message for users of the command line, for one who has no options to give."""
    for option, words in _OPTIONS.items():
        text = text.replace(option, words)
    return text


def is_notice(text: str) -> bool:
    """Whether an entry of the report's ``warnings`` only describes how an ordinary run proceeded."""
    return any(words in text for words in _NOTICES)


def failure(code: int, log: list[str]) -> str:
    """What went wrong, in one line for the user, from the exit code and the log."""
    said = [line for line in log if line.startswith("nephi: ")]
    if said:
        return in_panel_words(said[-1].removeprefix("nephi: "))
    text = "\n".join(log)
    last = next((line for line in reversed(log) if line.strip()), "")
    if "No module named 'torch'" in text:
        return _("PyTorch is not installed for the engine: install it with the PyTorch extension.")
    if "No module named" in last:
        return _("A Python package of the engine is missing: {name}.").format(name=last.partition(": ")[2] or last)
    if "import torch" in text and ("ImportError" in last or "OSError" in last or "DLL" in last):
        text = _("PyTorch is installed but cannot be loaded: reinstall it with the module PyTorch Utils. ({reason})")
        return text.format(reason=last)
    if "OutOfMemoryError" in text or "CUDA out of memory" in text:
        return _("The graphics card ran out of memory: choose the CPU or another card, or a faster preset.")
    if code in (-9, 137):
        return _("The engine was stopped by the system, most likely because memory ran out: choose a faster preset.")
    text = _("The engine stopped unexpectedly (exit code {code}): {reason}")
    return text.format(code=code, reason=last or _("it reported nothing"))
