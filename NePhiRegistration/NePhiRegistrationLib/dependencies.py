"""Python packages the engine needs beyond what Slicer has: looked for, and offered, when Apply is pressed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import slicer

from .i18n import tr as _

TORCH = ">=2.4"
OTHERS = {"safetensors": ">=0.4"}
MISSING, BROKEN, OLD, READY = "missing", "broken", "old", "ready"


def ensure() -> str:
    """Install what is missing if the user agrees; why the registration can't run yet, or ""."""
    return _ensure_torch() or _ensure_others()


def state(name: str, requirement: str) -> str:
    """MISSING, BROKEN (an interrupted or removed installation), OLD or READY; nothing is imported."""
    from packaging.specifiers import SpecifierSet  # Slicer has it since 5.11

    spec = find_spec(name)
    try:
        installed = version(name)
    except PackageNotFoundError:
        installed = None
    if spec is None and installed is None:
        return MISSING
    # folders that an unfinished removal leaves behind look like a package without a file of its own
    if spec is None or spec.origin is None or installed is None:
        return BROKEN
    return READY if SpecifierSet(requirement).contains(installed, prereleases=True) else OLD


def _ensure_torch() -> str:
    found = state("torch", TORCH)
    if found == READY:
        return ""
    if found == OLD:
        text = _(
            "PyTorch {installed} is installed, but version {needed} is needed: uninstall it in the module "
            "PyTorch Utils, restart Slicer and press Apply again."
        )
        return text.format(installed=version("torch"), needed=TORCH)
    if found == BROKEN:
        return _(
            "The installation of PyTorch is damaged: uninstall it in the module PyTorch Utils, "
            "restart Slicer and press Apply again."
        )
    try:
        from PyTorchUtils import PyTorchUtilsLogic
    except ImportError:
        return _(
            "The registration needs PyTorch: install the extension PyTorch from the Extensions Manager, "
            "restart Slicer and press Apply again."
        )
    question = _(
        "The registration needs PyTorch. Up to 3 GB are downloaded and installed, for your graphics card or the CPU. "
        "It takes several minutes, and Slicer does not respond in the meantime.\n\nInstall it now?"
    )
    if not slicer.util.confirmOkCancelDisplay(question):
        return _("The registration needs PyTorch, which was not installed.")
    try:
        torch = PyTorchUtilsLogic().installTorch(torchVersionRequirement=TORCH)
    except Exception as error:  # whatever an installer meets: no network, no space, no wheel
        return _("PyTorch could not be installed: {reason}").format(reason=error)
    return "" if torch is not None else _("The registration needs PyTorch, which was not installed.")


def _ensure_others() -> str:
    missing = [f"{name}{required}" for name, required in OTHERS.items() if state(name, required) != READY]
    if not missing:
        return ""
    try:
        from slicer.packaging import pip_ensure

        pip_ensure(missing, requester="NePhi")
    except Exception as error:  # declined, or whatever an installer meets
        text = _("The Python package {names} could not be installed: {reason}")
        return text.format(names=", ".join(missing), reason=error)
    return ""
