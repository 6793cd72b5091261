"""The z-score of many small gradients on a CPU at once: a call of PyTorch costs more than they do."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_znorm.backends._memory import Figures, are_trusted, in_order_of_memory

_ELEMENTS = 1 << 17  # of a matrix
_MANY = 16  # gradients of one size are worth a matrix of their own, without padding


def normalize_together_(gradients: Sequence[Tensor], eps: float, scale: float) -> list[Figures | None]:
    """Normalize gradients of one dtype as rows of matrices.

    Args:
        gradients: Dense, real, non-empty tensors of float32, float16 or bfloat16 on the CPU.
        eps: Added to the standard deviation.
        scale: By which the gradients and the results are multiplied.

    Returns:
        Of each gradient mean, standard deviation and cosine; ``None`` of those that are left to the reference.

    """
    figures: list[Figures | None] = [None] * len(gradients)
    flats = {position: flat for position, flat in enumerate(map(in_order_of_memory, gradients)) if flat is not None}
    for batch in _batches({position: flat.numel() for position, flat in flats.items()}):
        found = _normalize_rows_([flats[position] for position in batch], eps, scale)
        for position, these in zip(batch, found, strict=True):
            figures[position] = these
    return figures


def _normalize_rows_(flats: list[Tensor], eps: float, scale: float) -> list[Figures | None]:
    """Normalize flat gradients, the largest first; in two passes over float32 that a cache holds."""
    sizes = tuple([flat.numel() for flat in flats])
    count, inside = _padding(sizes)
    values = (torch.stack(flats) if inside is None else pad_sequence(flats, batch_first=True)).float()
    offset = values.sum(dim=1, keepdim=True).div_(count)
    values.sub_(offset)
    if inside is not None:
        values.mul_(inside)
    rest = values.sum(dim=1, keepdim=True) / count
    squares = torch.linalg.vector_norm(values, dim=1, keepdim=True).double().square_().div_(count)
    mean, variance = offset.double() + rest, squares - rest * rest
    std = variance.sqrt()
    factor = 1 / (std / scale + eps)
    values.mul_(factor.float()).sub_(rest.mul(factor).float())
    figures = torch.cat([mean / scale, std / scale, std / torch.hypot(mean, std)], dim=1).tolist()
    rows = _rows(values, sizes)
    trusted = are_trusted(rest, variance).flatten().tolist()
    if all(trusted):
        torch._foreach_copy_(flats, rows)
        return list(map(tuple, figures))
    found: list[Figures | None] = []
    edits: tuple[list[Tensor], list[Tensor]] = ([], [])
    for flat, row, (mean_, std_, cosine), is_trusted in zip(flats, rows, figures, trusted, strict=True):
        found.append((mean_, std_, cosine) if is_trusted else _judge_constant(mean_, std_, row))
        if found[-1] is not None and len(flat) > 1:
            edits[0].append(flat)
            edits[1].append(row)
    if edits[0]:
        torch._foreach_copy_(*edits)
    return found


def _judge_constant(mean: float, std: float, row: Tensor) -> Figures | None:
    """Return the figures of a gradient whose deviations from its mean are all exactly 0, ``None`` of any other."""
    if std != 0 or row.any():
        return None
    return mean, 0.0, 1.0 if mean == 0 or len(row) == 1 else 0.0


def _rows(values: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    if sizes[0] == sizes[-1]:
        return list(values.unbind())
    width = values.shape[1]
    return [values.as_strided((size,), (1,), row * width) for row, size in enumerate(sizes)]


@lru_cache(maxsize=256)
def _padding(sizes: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    """Return the sizes as a column, and a matrix that is 1 inside of gradients where there is padding."""
    count = torch.tensor(sizes, dtype=torch.float64).unsqueeze(1)
    return count, None if sizes[0] == sizes[-1] else (torch.arange(sizes[0]) < count).float()


def _batches(sizes: Mapping[int, int]) -> Iterator[list[int]]:
    """Group gradients of one size where there are many, else of sizes that differ by less than a factor of two."""
    mixed: list[int] = []
    largest = 0
    for size, group in groupby(sorted(sizes, key=sizes.__getitem__, reverse=True), key=sizes.__getitem__):
        alike = list(group)
        if len(alike) >= _MANY:
            limit = max(1, _ELEMENTS // size)
            yield from (alike[start : start + limit] for start in range(0, len(alike), limit))
            continue
        if mixed and (2 * size <= largest or (len(mixed) + len(alike)) * largest > _ELEMENTS):
            yield mixed
            mixed = []
        largest = largest if mixed else size
        mixed += alike
    if mixed:
        yield mixed
