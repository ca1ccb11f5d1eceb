"""Steps of an optimisation replayed as CUDA graphs: small kernels, launched one by one, leave a GPU idle."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

_Result = TypeVar("_Result")
_PLAIN_CALLS = 3  # before the first capture, as libraries set themselves up; before a later one a single call

_log = logging.getLogger(__name__)


class Replayed:
    """A function without arguments, replayed as a CUDA graph for as long as its ``key`` stays the same.

    The function must neither read from nor write to the host, and everything it works on must stay in place until the
    key changes; its tensors are then updated at each call. Where a capture fails, that is logged and the function is
    called plainly from then on. PyTorch documentation, "CUDA semantics", section "CUDA Graphs".
    """

    def __init__(self, function: Callable[[], _Result], device: torch.device):
        self._function = function
        self._stream = torch.cuda.Stream(device)
        self._key: Hashable = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: _Result | None = None
        self._plain_calls_left = _PLAIN_CALLS
        self.failed = False

    def __call__(self, key: Hashable) -> _Result:
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
        return self._result

    def _on_own_stream(self) -> _Result:
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
