"""The panel's part in which a result is accepted or rejected."""

from __future__ import annotations

from collections.abc import Callable

import slicer

from .i18n import tr as _
from .review import reviews, sign

_NAME = "NePhiRegistration/reviewer"  # of the application's settings


class ReviewPanel:
    def __init__(self, ui, signed: Callable[[], None]):
        """``signed`` is called after each new review."""
        self.ui, self._signed, self._outputs = ui, signed, None
        ui.reviewerLineEdit.text = str(slicer.app.userSettings().value(_NAME) or "")
        ui.acceptResultButton.connect("clicked(bool)", lambda _checked: self._sign(accepted=True))
        ui.rejectResultButton.connect("clicked(bool)", lambda _checked: self._sign(accepted=False))

    def update(self, outputs) -> None:
        if outputs is not self._outputs:
            self.ui.reviewCommentLineEdit.text = ""
        self._outputs = outputs
        if outputs is not None:
            signed = [review.text for review in reversed(reviews(outputs))]
            self.ui.reviewLabel.text = "\n".join(signed) or _("Nobody has accepted or rejected this result yet.")

    def _sign(self, accepted: bool) -> None:
        name = self.ui.reviewerLineEdit.text
        try:
            made = sign(self._outputs, accepted, name, self.ui.reviewCommentLineEdit.text)
        except ValueError as error:
            slicer.util.errorDisplay(str(error))
            return
        slicer.app.userSettings().setValue(_NAME, made.name)
        self.ui.reviewCommentLineEdit.text = ""
        self._signed()
