"""The panel's part in which a result is used: on other nodes, in a paper, as DICOM."""

from __future__ import annotations

import qt
import slicer
from nephi.errors import NephiError

from . import dicom_export
from . import scene as nodes
from .applying import apply_to
from .i18n import tr as _
from .methods import methods_text
from .waiting import wait_cursor


class ApplyPanel:
    def __init__(self, ui):
        self.ui = ui
        self.outputs = None
        ui.ontoFixedButton.connect("clicked(bool)", lambda _checked: self._apply(backwards=False))
        ui.ontoMovingButton.connect("clicked(bool)", lambda _checked: self._apply(backwards=True))
        ui.methodsButton.connect("clicked(bool)", self._copy_methods)
        ui.dicomButton.connect("clicked(bool)", self._export_dicom)
        ui.reportButton.connect("clicked(bool)", self._open_report)

    def update(self, outputs) -> None:
        ui, self.outputs = self.ui, outputs
        if outputs is None:
            return
        there = outputs.page is not None
        ui.reportButton.enabled = there
        ui.reportButton.toolTip = (
            _("Open the report with pictures in the web browser.")
            if there
            else _("There is no report with pictures: tick it above Apply before a registration.")
        )
        reason = dicom_export.problem(outputs)
        ui.dicomButton.enabled = not reason
        ui.dicomButton.toolTip = reason or _(
            "Write the registration as DICOM objects (Deformable Spatial Registration), one for each direction."
        )

    def _apply(self, backwards: bool) -> None:
        node = self.ui.applySelector.currentNode()
        if node is None:
            slicer.util.errorDisplay(_("Choose what the result is to be applied to."))
            return
        try:
            with wait_cursor():
                made = apply_to(self.outputs, node, backwards)
        except nodes.FrameError as error:
            slicer.util.errorDisplay(_("{name} {reason}").format(name=node.GetName(), reason=error))
            return
        slicer.util.showStatusMessage(_("Made {name}.").format(name=made.GetName()), 5000)

    def _open_report(self, _checked: bool = False) -> None:
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(self.outputs.page)))

    def _copy_methods(self, _checked: bool = False) -> None:
        slicer.app.clipboard().setText(methods_text(self.outputs.report))
        slicer.util.showStatusMessage(_("The text for the methods section is in the clipboard."), 5000)

    def _series(self, volume):
        database = getattr(slicer, "dicomDatabase", None)  # there once the module DICOM has been set up
        if database is None:
            raise NephiError(_("Slicer's DICOM database is not open: open the module DICOM first."))
        return dicom_export.from_database(volume, database.fileForInstance)

    def _export_dicom(self, _checked: bool = False) -> None:
        folder = qt.QFileDialog.getExistingDirectory(None, _("Folder for the DICOM registration"))
        if not folder:
            return
        try:
            if reason := dicom_export.problem(self.outputs):
                raise NephiError(reason)
            with wait_cursor():
                written = dicom_export.export(self.outputs, folder, self._series)
        except (NephiError, OSError) as error:
            slicer.util.errorDisplay(_("The registration could not be written: {reason}").format(reason=error))
            return
        names = ", ".join(path.name for path in written)
        slicer.util.infoDisplay(_("Saved {names} in {folder}.").format(names=names, folder=folder))
