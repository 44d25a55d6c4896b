"""Ray's class hierarchy of errors, by the codes of Bulkhead."""

from __future__ import annotations

from typing import Any


class RayError(Exception):
    """Super class of all errors of this package."""


class CrossLanguageError(RayError):
    """An error value of another language, of a class that Python does not have."""

    def __init__(self, message: str, name: str = "Error", stack: str | None = None) -> None:
        super().__init__(message)
        self.name = name
        self.stack = stack

    def __str__(self) -> str:
        return f"{self.name}: {self.args[0]}"

    def __reduce__(self) -> tuple[Any, ...]:
        return CrossLanguageError, (self.args[0], self.name, self.stack)


class TaskCancelledError(RayError):
    """A task was cancelled."""


class RayTaskError(RayError):
    """A task threw. What it threw is `cause`; where it can be, the error raised is of its class too, as in Ray."""

    def __init__(self, function_name: str = "", traceback_str: str = "", cause: BaseException | None = None, **_: Any) -> None:
        super().__init__(traceback_str or function_name)
        self.function_name = function_name
        self.traceback_str = traceback_str
        self.cause = cause

    def __str__(self) -> str:
        return self.traceback_str

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.function_name, self.traceback_str, self.cause)

    def as_instanceof_cause(self) -> RayTaskError:
        """This error as one of the cause's class too, so that `except ValueError` catches it."""
        cause = self.cause
        if cause is None or isinstance(cause, RayTaskError):
            return self
        of = type(cause)
        if issubclass(RayTaskError, of):
            return self

        def __init__(self: Any, *_: Any) -> None:
            RayTaskError.__init__(self, outer.function_name, outer.traceback_str, cause)
            self.args = cause.args

        def __getattr__(self: Any, name: str) -> Any:
            return getattr(cause, name)

        outer = self
        try:
            made = type(f"RayTaskError({of.__name__})", (RayTaskError, of), {"__init__": __init__, "__getattr__": __getattr__, "__str__": RayTaskError.__str__})
            return made()  # type: ignore[no-any-return]
        except TypeError:
            return self


def _again(name: str, trace: str, cause: BaseException | None) -> RayTaskError:
    return RayTaskError(name, trace, cause).as_instanceof_cause()


class WorkerCrashedError(RayError):
    """The worker died while it ran the task."""


class RayActorError(RayError):
    """An actor died or cannot be reached."""


class ActorDiedError(RayActorError):
    pass


class ActorUnavailableError(RayActorError):
    pass


class RaySystemError(RayError):
    pass


class OutOfMemoryError(RayError):
    pass


class NodeDiedError(RayError):
    pass


class ObjectLostError(RayError):
    pass


class GetTimeoutError(RayError, TimeoutError):
    """A call to get() timed out."""


class PendingCallsLimitExceeded(RayError):
    pass


class TaskUnschedulableError(RayError):
    pass


class ActorUnschedulableError(RayError):
    pass


class RuntimeEnvSetupError(RayError):
    pass


class LocalRayletDiedError(RayError):
    pass


class AuthenticationError(RayError):
    pass


class UserCodeException(RayError):
    pass


class UnserializableException(RayError):
    pass


class ObjectStoreFullError(RayError):
    pass


class OutOfDiskError(RayError):
    pass


class RpcError(RayError):
    pass


class PlasmaObjectNotAvailable(RayError):
    pass


class AsyncioActorExit(RayError):
    pass


class ObjectFetchTimedOutError(ObjectLostError):
    pass


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    pass


class ObjectFreedError(ObjectLostError):
    pass


class OwnerDiedError(ObjectLostError):
    pass


class ObjectReconstructionFailedError(ObjectLostError):
    pass


class TaskPlacementGroupRemoved(RayError):
    pass


class ActorPlacementGroupRemoved(RayError):
    pass


class ObjectRefStreamEndOfStreamError(RayError):
    pass


class ActorAlreadyExistsError(ValueError, RayError):
    """A named actor was made whose name is taken."""


class ActorHandleNotFoundError(ValueError, RayError):
    pass


class PermissionDeniedError(RayError, PermissionError):
    """Not permitted, or not there: Bulkhead does not tell which. Not in Ray, which permits everything."""


class QuotaExceededError(RayError):
    """The tenant's quota or budget is used up. Not in Ray."""


_CLASSES: dict[str, type[RayError]] = {
    "WORKER_DIED": WorkerCrashedError, "OUT_OF_MEMORY": OutOfMemoryError, "TIMEOUT": GetTimeoutError, "CANCELLED": TaskCancelledError, "DENIED": PermissionDeniedError,
    "QUOTA_EXCEEDED": QuotaExceededError, "OBJECT_LOST": ObjectLostError, "ACTOR_DIED": ActorDiedError, "ACTOR_UNAVAILABLE": ActorUnavailableError,
    "RESOURCE_EXHAUSTED": PendingCallsLimitExceeded, "UNAUTHENTICATED": PermissionDeniedError, "LAYER_MISSING": RuntimeEnvSetupError, "ENVIRONMENT_FAILED": RuntimeEnvSetupError,
}


def error_of(code: str, message: str, stack: str, cause: BaseException | None) -> BaseException:
    """What is raised for a failure as the cluster tells it."""
    if code == "TASK_FAILED":
        return RayTaskError(message, stack or message, cause).as_instanceof_cause()
    if code == "INVALID_ARGUMENT":
        return ValueError(message)
    of = _CLASSES.get(code, RaySystemError)
    return of(f"{message}\n{stack}" if stack else message)
