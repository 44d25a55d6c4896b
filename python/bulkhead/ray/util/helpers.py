"""`ray.util.as_completed` and `map_unordered`."""

from __future__ import annotations

from typing import Any, Iterable, Iterator, Sequence

from ... import api


def as_completed(refs: Sequence[Any], *, chunk_size: int = 10, yield_obj_refs: bool = False) -> Iterator[Any]:
    """Results, or refs, in the order in which they are there."""
    if chunk_size < 1:
        raise ValueError("`chunk_size` must be >= 1")
    left = list(refs)
    while left:
        done, left = api.wait(left, num_returns=1)
        yield from done if yield_obj_refs else api.get(done)


def map_unordered(fn: Any, items: Iterable[Any], *, backpressure_size: int | None = 100, chunk_size: int = 10, yield_obj_refs: bool = False) -> Iterator[Any]:
    """Of `fn.remote(item)` for each item, no more than `backpressure_size` at a time."""
    if backpressure_size is not None and backpressure_size < chunk_size:
        raise ValueError("backpressure_size must be >= chunk_size, or None")
    running: list[Any] = []
    for item in items:
        if backpressure_size is not None and len(running) >= backpressure_size:
            done, running = api.wait(running, num_returns=1)
            yield from done if yield_obj_refs else api.get(done)
        running.append(fn.remote(item))
    yield from as_completed(running, chunk_size=chunk_size, yield_obj_refs=yield_obj_refs)
