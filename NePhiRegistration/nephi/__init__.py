"""NePhi: deformable registration with neural deformation fields (Tian et al., ECCV 2024).

result = nephi.register(fixed, moving, fixed_mask=..., moving_mask=...)  # SimpleITK images
result.forward(points_lps_mm)  # fixed -> moving
nephi.warp(result, moving)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:  # for type checkers and editors; at run time a name is loaded when it is first used
    from .errors import NephiError as NephiError
    from .files.image import read_image as read_image
    from .files.landmarks import read_landmarks as read_landmarks
    from .fitting.guidance import Guidance as Guidance
    from .fitting.regularity import Regulariser as Regulariser
    from .fitting.similarity import Similarity as Similarity
    from .learning.dataset import tensors_of as tensors_of
    from .learning.encoder import Encoder as Encoder
    from .learning.model import Model as Model
    from .learning.pair_tensors import PairTensors as PairTensors
    from .learning.settings import ENCODERS as ENCODERS
    from .learning.settings import EncoderSettings as EncoderSettings
    from .learning.settings import MatchingSettings as MatchingSettings
    from .learning.settings import ModelSettings as ModelSettings
    from .learning.settings import PublishedSettings as PublishedSettings
    from .learning.settings import TrainSettings as TrainSettings
    from .learning.train import train as train
    from .maps.code import Code as Code
    from .maps.fields import Fields as Fields
    from .maps.maps import Map as Map
    from .measure.evaluate import evaluate as evaluate
    from .registration import register as register
    from .result import Registration as Registration
    from .result import transform as transform
    from .result import warp as warp
    from .settings import FIELDS as FIELDS
    from .settings import PRESETS as PRESETS
    from .settings import REGULARISERS as REGULARISERS
    from .settings import SIMILARITIES as SIMILARITIES
    from .settings import FieldSettings as FieldSettings
    from .settings import Settings as Settings
    from .synthetic.phantom import make_phantom as make_phantom

_HOMES = {
    "NephiError": "errors",
    "Guidance": "fitting.guidance",
    "Regulariser": "fitting.regularity",
    "Similarity": "fitting.similarity",
    "tensors_of": "learning.dataset",
    "Encoder": "learning.encoder",
    "PairTensors": "learning.pair_tensors",
    "ENCODERS": "learning.settings",
    "EncoderSettings": "learning.settings",
    "MatchingSettings": "learning.settings",
    "ModelSettings": "learning.settings",
    "PublishedSettings": "learning.settings",
    "TrainSettings": "learning.settings",
    "Code": "maps.code",
    "Fields": "maps.fields",
    "Map": "maps.maps",
    "FIELDS": "settings",
    "FieldSettings": "settings",
    "REGULARISERS": "settings",
    "SIMILARITIES": "settings",
    "read_image": "files.image",
    "read_landmarks": "files.landmarks",
    "Model": "learning.model",
    "train": "learning.train",
    "evaluate": "measure.evaluate",
    "register": "registration",
    "Registration": "result",
    "transform": "result",
    "warp": "result",
    "PRESETS": "settings",
    "Settings": "settings",
    "make_phantom": "synthetic.phantom",
}
__all__ = [
    "ENCODERS",
    "FIELDS",
    "PRESETS",
    "REGULARISERS",
    "SIMILARITIES",
    "Code",
    "Encoder",
    "EncoderSettings",
    "FieldSettings",
    "Fields",
    "Guidance",
    "Map",
    "MatchingSettings",
    "Model",
    "ModelSettings",
    "NephiError",
    "PublishedSettings",
    "Registration",
    "Regulariser",
    "PairTensors",
    "Settings",
    "Similarity",
    "TrainSettings",
    "__version__",
    "evaluate",
    "make_phantom",
    "read_image",
    "read_landmarks",
    "register",
    "tensors_of",
    "train",
    "transform",
    "warp",
]


def __getattr__(name: str) -> Any:
    """Public names are loaded when first used, so that ``nephi --help`` need not wait for torch."""
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module 'nephi' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
