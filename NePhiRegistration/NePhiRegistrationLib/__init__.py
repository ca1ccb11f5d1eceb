"""What the NePhi module does with a MRML scene.

Only ``resultpanel`` (qt), ``parameters`` (slicer.parameterNodeWrapper) and ``dependencies`` need Slicer's application;
everything else runs on slicer-core alone.
"""
