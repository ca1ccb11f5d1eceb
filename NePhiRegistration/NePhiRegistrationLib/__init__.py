"""What the NePhi module does with a MRML scene; imports neither qt nor slicer.app."""
