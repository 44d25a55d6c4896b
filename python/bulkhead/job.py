"""A job's program: the driver as a call in a slot of its tenant's sandbox. It has the slot's channel instead of a connection, so that there is no credential in it.

Must never: be imported by process 1 before it forks for a tenant's program, or end the slot because the program ended.
"""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from typing import Any

MAX_EXIT_CODE = 255


class Program:
    """What LOAD_CODE brought for a job: a command line of Python, and the files around it."""

    __slots__ = ("argv",)

    def __init__(self, job: dict[str, Any]) -> None:
        self.argv: list[str] = job["argv"]

    def run(self, home: str) -> int:
        """The exit code that the same command would have had."""
        os.makedirs(home, mode=0o700, exist_ok=True)
        if os.getcwd() == "/tmp":
            os.chdir(home)
        first, *rest = self.argv
        before = sys.argv, sys.path[0]
        try:
            if first == "-c":
                sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
                names: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
                sys.modules["__main__"].__dict__.update(names)
                exec(compile(rest[0], "<string>", "exec"), sys.modules["__main__"].__dict__)
            elif first == "-m":
                sys.argv, sys.path[0] = rest, os.getcwd()
                runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
            else:
                if not os.path.isfile(first):
                    print(f"python: can't open file {first!r}: the job's directory has {sorted(os.listdir('.'))[:20]}", file=sys.stderr)
                    return 2
                sys.argv, sys.path[0] = self.argv, os.path.dirname(os.path.abspath(first))
                runpy.run_path(first, run_name="__main__")
            return 0
        except SystemExit as ended:
            return self._code(ended)
        except BaseException:  # noqa: BLE001 - whatever it was, it is the program's end
            self._show()
            return 1
        finally:
            sys.argv, sys.path[0] = before
            sys.stdout.flush()
            sys.stderr.flush()

    @staticmethod
    def _code(ended: SystemExit) -> int:
        if ended.code is None:
            return 0
        if isinstance(ended.code, int):
            return ended.code & MAX_EXIT_CODE
        print(ended.code, file=sys.stderr)
        return 1

    @staticmethod
    def _show() -> None:
        """As an interpreter shows it, without our own frames."""
        kind, thrown, trace = sys.exc_info()
        here = os.path.dirname(__file__)
        while trace is not None and (trace.tb_frame.f_code.co_filename.startswith(here) or "runpy" in trace.tb_frame.f_code.co_filename):
            trace = trace.tb_next
        traceback.print_exception(kind, thrown, trace)
