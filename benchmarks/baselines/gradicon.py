"""GradICON: U-Nets that predict a displacement each way, trained to be each other's inverse up to a shift.

Follows Tian et al., GradICON: Approximate Diffeomorphisms via Gradient Inverse Consistency (CVPR 2023), by its authors'
package ``icon-registration``: networks, composition, local correlation and regulariser are the package's, put together
as in its lung model. Single: one U-Net at full resolution. Multi: four, composed, at a quarter, half, full and full
resolution; the two coarse ones are trained first. Optimised: all weights are fitted to the pair that is registered.

It differs in its size and data (see ``train_baselines.py``: some dozen generated pairs at 48 or 72 voxels per side for
some hundred steps from scratch; published: 899 pairs at 175 per side), in the width of the local correlation, scaled to
the coarser images, and in the learning rates, raised for the fewer steps.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .networks import predict

WEIGHT = 1.5  # of the regulariser
WIDTH_OF_175 = 5.0  # voxels, of the local correlation at 175 voxels per side
STEPS, RATE = 50, 1e-3  # of the optimisation for a pair; published: 50 steps at 2e-5
COARSE_SHARE = 0.92  # of the training of ``multi``: the networks at a quarter and half resolution only
LEAST_SIZE = {False: 17, True: 65}  # five halvings in each U-Net, of a quarter of the size in ``multi``


class GradICON(nn.Module):
    """The package's registration network (17.7 or 70.7 million weights) and its loss, for ``size`` voxels per side."""

    def __init__(self, multi: bool, size: int, similarity=None):
        super().__init__()
        from icon_registration import network_wrappers as wrappers
        from icon_registration.networks import tallUNet2

        if size < LEAST_SIZE[multi]:
            raise SystemExit(f"gradicon: the size {size} must be {LEAST_SIZE[multi]} or more")

        def step() -> nn.Module:
            return wrappers.FunctionFromVectorField(tallUNet2(dimension=3))

        def after_coarser(network: nn.Module) -> nn.Module:
            return wrappers.TwoStepRegistration(wrappers.DownsampleRegistration(network, dimension=3), step())

        network = step()
        self._coarse = ()  # not a part of its own: the same weights
        if multi:
            coarse = after_coarser(network)
            network = wrappers.TwoStepRegistration(after_coarser(coarse), step())
            self._coarse = (with_loss(coarse, similarity, (size + 1) // 2),)
        self.net = with_loss(network, similarity, size)

    def loss(self, moving: Tensor, fixed: Tensor, done: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        if self._coarse and done < COARSE_SHARE:
            found = self._coarse[0](*(F.avg_pool3d(image, 2, ceil_mode=True) for image in (moving, fixed)))
        else:
            found = self.net(moving, fixed)
        terms = {"similarity": found.similarity_loss, "regularity": found.inverse_consistency_loss}
        return found.all_loss, terms

    def displacement(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Both directions (2, 3, z, y, x); the package's coordinates are z first, from 0 to 1."""
        identity = self.net.identity_map
        identity.isIdentity = True
        maps = [self.net.regis_net(*pair)(identity) for pair in ((moving, fixed), (fixed, moving))]
        return 2 * (torch.cat(maps) - identity).flip(1)


def with_loss(network: nn.Module, similarity, size: int) -> nn.Module:
    """The package's loss over a network; ``similarity`` None: local correlation of the published width in mm."""
    import icon_registration
    from icon_registration.losses import GradientICONSparse

    similarity = similarity or icon_registration.LNCC(sigma=max(1, round(WIDTH_OF_175 * size / 175)))
    net = GradientICONSparse(network, similarity, WEIGHT)
    net.assign_identity_map([1, 1, size, size, size])
    return net


def improve(steps: int, network: GradICON, moving: Tensor, fixed: Tensor) -> None:
    adam = torch.optim.Adam(network.parameters(), lr=RATE)
    for _ in range(steps):
        adam.zero_grad()
        network.loss(moving, fixed)[0].backward()
        adam.step()


def run(job, multi: bool, optimised: bool) -> None:
    steps = (2 if job.quick else STEPS) if optimised else 0
    predict(partial(GradICON, multi), "gradicon_multi" if multi else "gradicon", job, partial(improve, steps))
