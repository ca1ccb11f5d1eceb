"""Slicer's translation of texts, where Slicer's application is.

Import it as ``from .i18n import tr as _``: Slicer takes the context from the file that calls it, and its tools find
texts by the name ``_``, so that it must not be wrapped.
"""

try:
    from slicer.i18n import tr
except ImportError:  # slicer-core has none: tests, scripts, a browser

    def tr(text: str) -> str:
        return text


__all__ = ["tr"]
