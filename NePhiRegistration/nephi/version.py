"""The version: of the package, of the Slicer module and in reports."""

__version__ = "0.1.0"
