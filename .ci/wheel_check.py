"""Run by .ci/wheel in the fresh environment: what the installed package holds; writes a small pair into the folder."""

import sys
from importlib.resources import files
from pathlib import Path

import nephi
from nephi.learning.model import Model

assert Path(sys.prefix) in Path(nephi.__file__).parents, f"{nephi.__file__} is not the installed package"
package = files("nephi")
assert (package / "py.typed").is_file(), "py.typed is missing"
for name in nephi.__all__:
    getattr(nephi, name)
weights = sorted(path.name.removesuffix(".safetensors") for path in (package / "learning" / "weights").iterdir())
assert {"lung", "lung-m", "shapes2d-hollow", "shapes2d-solid"} <= set(weights), weights
for name in weights:
    Model.load(name)
nephi.make_phantom(size=(64, 56, 56), spacing_mm=5.0).write(sys.argv[1])
print(f"nephi {nephi.__version__} with the models {', '.join(weights)}")
