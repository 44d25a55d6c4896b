"""The one error of the protocol: a code of src/base/errors.ts and a text that is safe to show. `bulkhead.ray.exceptions` maps codes to Ray's classes."""

from __future__ import annotations


class BulkheadError(Exception):
    """What the cluster or the client refuses."""

    def __init__(self, code: str, message: str, stack: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.stack = stack

    def __reduce__(self) -> tuple[type[BulkheadError], tuple[str, str, str]]:
        return BulkheadError, (self.code, self.message, self.stack)
