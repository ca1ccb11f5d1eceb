"""What the NePhi module does with a MRML scene.

Only the parts of the panel (``*panel`` and ``waiting``: qt; ``parameters`` and ``several``:
slicer.parameterNodeWrapper) and ``dependencies`` need Slicer's application; everything else runs on slicer-core alone.
"""
