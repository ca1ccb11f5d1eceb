"""What the tests on slicer-core share: the phantom, an empty scene, and one finished registration."""

from __future__ import annotations

import pytest
import slicer
from helpers import Finished
from nephi.synthetic.phantom import make_phantom
from views import SliceView


@pytest.fixture(scope="session")
def phantom():
    return make_phantom(size=(64, 56, 56), spacing_mm=5.0)


@pytest.fixture
def scene():
    return slicer.vtkMRMLScene()


@pytest.fixture(scope="session")
def finished(phantom) -> Finished:
    return Finished(phantom)


@pytest.fixture(scope="session")
def coronal(finished) -> SliceView:
    """One for all: a second view of the same slice node would draw its layers in the first one's place."""
    view = SliceView(finished.views, "Coronal")
    yield view
    view.close()
