"""Commissioning: how NePhi does on this machine with digital phantoms whose truth is known exactly."""
