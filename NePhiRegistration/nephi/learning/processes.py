"""Training by several processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from ..errors import NephiError
from ..fitting.fit import Adam

_PATIENCE = timedelta(hours=12)  # for another process: the first prepares many pairs and validates alone


def join(device: torch.device) -> tuple[int, int, torch.device]:
    """This process's number and how many there are, as set by a launcher (torchrun, accelerate), and its device."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        if device.type == "cuda":
            number, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if number >= gpus:
                raise NephiError(f"there are more processes than the {gpus} GPUs of this machine; start one per GPU")
            device = torch.device("cuda", number)
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    return int(os.environ.get("RANK", "0")), world, device


def wait() -> None:
    """For all other processes to come here; raises NephiError where one of them has ended."""
    with _together():
        torch.distributed.barrier()


def average(adam: Adam, world: int) -> None:
    """The gradients' mean over all processes, in one message; raises NephiError where one of them has ended."""
    if world == 1:
        return
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in adam.parameters]
    flat = torch.cat([g.reshape(-1) for g in grads])
    with _together():
        torch.distributed.all_reduce(flat)
    flat /= world
    for p, part in zip(adam.parameters, flat.split([g.numel() for g in grads]), strict=True):
        p.grad = part.view_as(p)


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise NephiError("another process of the training has ended; see its output for the reason") from error
