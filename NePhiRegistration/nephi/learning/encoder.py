"""What an encoder is: two images in, the latent code of their registration out."""

from __future__ import annotations

from torch import nn

from ..maps.code import Code
from ..maps.fields import Fields
from .pair_tensors import PairTensors


class Encoder(nn.Module):
    """Predicts codes. Subclasses need ``codes``, and are made from EncoderSettings, FieldSettings and the dimension."""

    def codes(self, samples: list[PairTensors], fields: Fields) -> list[Code]:
        """The code of a batch of pairs after each of the encoder's rounds; the last is the prediction.

        ``fields``: those that the code is for. Raises NephiError for a batch that the encoder cannot take.
        """
        raise NotImplementedError
