"""A stand-in for what a scripted module's panel finds in Slicer: PythonQt, ctk and qMRML widgets, the application.

PySide6 draws, slicer-core holds the scene. What works here may still fail in Slicer; what fails here fails there.
"""
