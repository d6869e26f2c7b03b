"""How far updates lie apart, piece by piece: one Gram matrix of the whole model. Pieces are the smaller, the more parties there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from medmesh.contracts.plan import TensorSignature
from medmesh.federated.aggregation.algorithm import Update
from medmesh.federated.streams import Reader, elements, pieces


def gram(updates: Sequence[Update], shared: Mapping[str, TensorSignature], origin: Reader | None) -> np.ndarray:
    """[n, n] inner products of the updates, less `origin` where it is given: nearby models then keep their digits."""
    total = np.zeros((len(updates), len(updates)))
    for name in sorted(shared):
        for start, count in pieces(elements(shared[name]), len(updates)):
            stack = np.stack([update.file.read(name, start, count) for update in updates])
            if origin is not None:
                stack -= origin.read(name, start, count)
            # einsum adds in one order whatever the machine's cores: a repeated aggregation gives the same bits.
            total += np.einsum("ic,jc->ij", stack, stack)
    return total


def squared_distances(products: np.ndarray) -> np.ndarray:
    """[n, n] squared Euclidean distances of a Gram matrix."""
    squares = np.diag(products)
    made: np.ndarray = np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0)
    return made


def cosines(products: np.ndarray) -> np.ndarray:
    """[n, n] cosines of a Gram matrix."""
    lengths = np.sqrt(np.maximum(np.diag(products), 1e-300))
    made: np.ndarray = products / (lengths[:, None] * lengths[None, :])
    return made
