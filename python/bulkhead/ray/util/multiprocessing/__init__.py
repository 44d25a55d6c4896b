"""`ray.util.multiprocessing`: the standard library's Pool, over actors."""

from multiprocessing import TimeoutError

from .pool import Pool

__all__ = ["Pool", "TimeoutError"]
