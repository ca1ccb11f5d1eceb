"""Python packages that the engine needs beyond Slicer's: checked, and offered for installation, when Apply is pressed.

They are installed by separate processes, so that Slicer stays usable meanwhile and PyTorch is not loaded into it.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import slicer

from .i18n import tr as _

TORCH = ">=2.4"
OTHERS = {"safetensors": ">=0.4"}
_LIGHT_THE_TORCH = "light-the-torch>=0.5"  # finds the build of PyTorch for the graphics card; the PyTorch extension's
MISSING, BROKEN, OLD, READY = "missing", "broken", "old", "ready"


def problem() -> str:
    """Why the registration can't run and installing packages would not help; empty otherwise."""
    found = state("torch", TORCH)
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
    if found == MISSING:
        try:
            import PyTorchUtils  # noqa: F401 with which it can be uninstalled again
        except ImportError:
            return _(
                "The registration needs PyTorch: install the extension PyTorch from the Extensions Manager, "
                "restart Slicer and press Apply again."
            )
    return ""


def missing() -> list[str]:
    """Names of the packages to be installed before the registration can run."""
    needed = {"torch": TORCH, **OTHERS}
    return [name for name, required in needed.items() if state(name, required) != READY]


def confirm(names: list[str]) -> bool:
    """Ask the user whether to install these."""
    if "torch" in names:
        text = _(
            "The registration needs PyTorch. Up to 3 GB are downloaded and installed, for your graphics card or the "
            "CPU. It takes several minutes. You can continue to work in Slicer meanwhile.\n\nInstall it now?"
        )
    else:
        text = _("The registration needs the Python packages {names}.\n\nInstall them now?")
        text = text.format(names=", ".join(names))
    return slicer.util.confirmOkCancelDisplay(text)


class Installation:
    """Packages that are being installed, one after the other; its callbacks come from Slicer's event loop."""

    def __init__(self, names: list[str]):
        self.running, self.error = True, ""
        self.log: list[str] = []
        self._steps = _steps(names)
        self._next()

    @property
    def text(self) -> str:
        """What is going on, in one line."""
        last = self.log[-1].strip()[:80] if self.log else ""
        return _("Installing Python packages: {line}").format(line=last or "...")

    def _next(self) -> None:
        if not self._steps:
            importlib.invalidate_caches()
            self.running = False
            return
        module, arguments = self._steps.pop(0)
        try:
            slicer.util.executePythonModule(
                module, arguments, blocking=False, logCallback=self.log.append, completedCallback=self._done
            )
        except (OSError, RuntimeError) as error:  # without PythonSlicer
            self._fail(str(error))

    def _done(self, code: int) -> None:
        if code == 0:
            self._next()
        else:
            self._fail(next((line for line in reversed(self.log) if line.strip()), _("no reason was given")))

    def _fail(self, reason: str) -> None:
        self.running = False
        self.error = _("The Python packages could not be installed: {reason}").format(reason=reason)


def _steps(names: list[str]) -> list[tuple[str, list[str]]]:
    """Python modules to run, with their arguments."""
    steps: list[tuple[str, list[str]]] = []
    if "torch" in names:
        if find_spec("light_the_torch") is None:
            steps.append(("pip", ["install", _LIGHT_THE_TORCH]))
        steps.append(("light_the_torch", ["install", f"torch{TORCH}", "torchvision"]))  # as PyTorchUtils does
    others = [f"{name}{OTHERS[name]}" for name in names if name in OTHERS]
    return [*steps, *([("pip", ["install", *others])] if others else [])]


def state(name: str, requirement: str) -> str:
    """MISSING, BROKEN (by an interrupted installation or removal), OLD or READY; nothing is imported."""
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
