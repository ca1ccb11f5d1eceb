"""The determinant of small matrices of any number type; separate, so that measuring transforms needs no PyTorch."""

from __future__ import annotations

from typing import Any


def determinant(columns: Any) -> Any:
    """Determinant (...) of 2 or 3 columns (d, ...), or rows: these have the same. Tensors, arrays or numbers.

    By the rule, which is faster than a decomposition of many small matrices and does not wait for a GPU.
    """
    if len(columns) == 2:
        (a, c), (b, d) = columns
        return a * d - b * c
    (a, b, c), second, third = columns
    minors = [second[(k + 1) % 3] * third[(k + 2) % 3] - second[(k + 2) % 3] * third[(k + 1) % 3] for k in range(3)]
    return a * minors[0] + b * minors[1] + c * minors[2]
