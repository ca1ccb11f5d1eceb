"""Python packages the engine needs beyond what Slicer has: looked for, and offered, when Apply is pressed."""

from __future__ import annotations

from importlib.util import find_spec

import slicer

TORCH = ">=2.4"
OTHERS = {"safetensors": "safetensors>=0.4"}  # import name and requirement


def ensure() -> str:
    """Install what is missing if the user agrees; why the registration can't run yet, or ""."""
    return _ensure_torch() or _ensure_others()


def _ensure_torch() -> str:
    if find_spec("torch") is not None:
        return ""
    try:
        import PyTorchUtils
    except ImportError:
        return (
            "The registration needs PyTorch: install the extension PyTorch from the Extensions Manager, "
            "restart Slicer and press Apply again."
        )
    try:
        torch = PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True, torchVersionRequirement=TORCH)
    except Exception as error:  # whatever an installer meets: no network, no space, no wheel
        return f"PyTorch could not be installed: {error}"
    return "" if torch is not None else "The registration needs PyTorch, which was not installed."


def _ensure_others() -> str:
    missing = [requirement for name, requirement in OTHERS.items() if find_spec(name) is None]
    if not missing:
        return ""
    try:
        try:
            from slicer.packaging import pip_ensure  # Slicer 5.11 and later
        except ImportError:
            text = f"The registration needs the Python package {', '.join(missing)}. Install it now?"
            if not slicer.util.confirmOkCancelDisplay(text):
                return f"The registration needs the Python package {', '.join(missing)}."
            slicer.util.pip_install(missing)
        else:
            pip_ensure(missing, requester="NePhi")
    except Exception as error:  # declined, or whatever an installer meets
        return f"The Python package {', '.join(missing)} could not be installed: {error}"
    return ""
