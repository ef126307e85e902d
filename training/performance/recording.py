"""Recordings: work on a device that runs again as it ran once, on the same tensors, without Python between its operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

Work = Callable[[], Tensor]
"""Reads and writes tensors of fixed places; its answer is a new one each time."""


class Recording(Protocol):
    """Work that was recorded."""

    output: Tensor
    """The answer of the last ``replay``; the next one overwrites it."""

    def replay(self) -> None:
        """Does the work on what the fixed places hold now."""


class GraphRecorder(Protocol):
    """Makes recordings on one device."""

    def capture(self, work: Work) -> Recording:
        """Records ``work``. Whatever cannot be recorded raises."""


class EagerRecorder:
    """Records nothing and works anew each time: what surrounds recordings can so be run anywhere."""

    def capture(self, work: Work) -> Recording:
        return _Again(work)


class _Again:
    def __init__(self, work: Work):
        self._work, self.output = work, work()

    def replay(self) -> None:
        self.output.copy_(self._work())


class CudaRecorder:
    """CUDA graphs with one memory pool; none of their answers is kept while another one is replayed."""

    def __init__(self) -> None:
        self._pool: Any = None

    def capture(self, work: Work) -> Recording:
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # What other threads (a server's, say) ask of the device meanwhile is none of the recording's.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = work()
        graph.replay()  # the capture itself computes nothing
        return _CudaRecording(graph, output)


class _CudaRecording:
    def __init__(self, graph: torch.cuda.CUDAGraph, output: Tensor):
        self._graph, self.output = graph, output

    def replay(self) -> None:
        self._graph.replay()
