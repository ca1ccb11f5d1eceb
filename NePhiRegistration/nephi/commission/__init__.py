"""Commissioning: the accuracy of NePhi on this machine, with digital phantoms whose maps are known exactly."""
