"""Steps of an optimisation replayed as CUDA graphs: small kernels, launched one by one, leave a GPU idle."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")
_PLAIN_CALLS = 3  # before the first capture, as libraries set themselves up; before a later one a single call

_own = threading.local()  # each thread's stream on each device
_log = logging.getLogger(__name__)


def _own_stream(device: torch.device) -> torch.cuda.Stream:
    """One and the same for all levels and runs: libraries keep working memory for every stream that they have seen."""
    streams = _own.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)
    return streams[device]


class Replayed(Generic[Result]):
    """A function without arguments, replayed as a CUDA graph for as long as its ``key`` stays the same.

    The function must neither read from nor write to the host, and everything it works on must stay in place until the
    key changes; its tensors are then updated at each call. Where a capture fails, that is logged and the function is
    called plainly from then on. PyTorch documentation, "CUDA semantics", section "CUDA Graphs".
    """

    def __init__(self, function: Callable[[], Result], device: torch.device):
        self._function = function
        self._stream = _own_stream(device)
        self._key: Hashable = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Result | None = None
        self._plain_calls_left = _PLAIN_CALLS
        self.failed = False

    def __call__(self, key: Hashable) -> Result:
        if key != self._key:
            self._key, self._graph, self._result = key, None, None
            self._plain_calls_left = max(1, self._plain_calls_left)
        if self.failed or self._plain_calls_left:
            self._plain_calls_left -= 1
            return self._on_own_stream()
        if self._graph is None:
            self._capture()
            if self._graph is None:
                return self._on_own_stream()
        self._graph.replay()
        assert self._result is not None
        return self._result

    def _on_own_stream(self) -> Result:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = self._function()
        current.wait_stream(self._stream)
        return result

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._result = self._function()
        except RuntimeError as error:
            self.failed, self._result = True, None
            _log.warning("CUDA graphs are not used, steps run one kernel at a time: %s", str(error).splitlines()[0])
        else:
            self._graph = graph
