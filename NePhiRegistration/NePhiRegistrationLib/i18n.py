"""Slicer's translation of texts, where Slicer's application is.

Import it as ``from .i18n import tr as _``: Slicer takes the context from the file that calls it, and its tools find
texts by the name ``_``, so that it must not be wrapped.
"""

import contextlib
import sys


def tr(text: str) -> str:
    return text


if "slicer" in sys.modules:  # the application has imported it long before; elsewhere nothing is translated
    with contextlib.suppress(ImportError):  # slicer-core has no translations
        from slicer.i18n import tr


__all__ = ["tr"]
