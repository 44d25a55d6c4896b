"""`ray.exceptions`."""

from ..ray_errors import (
    ActorDiedError, ActorUnavailableError, ActorUnschedulableError, CrossLanguageError, GetTimeoutError, NodeDiedError, ObjectLostError, OutOfMemoryError,
    PendingCallsLimitExceeded, PermissionDeniedError, QuotaExceededError, RayActorError, RayError, RaySystemError, RayTaskError, RuntimeEnvSetupError, TaskCancelledError,
    TaskUnschedulableError, WorkerCrashedError,
)

__all__ = [
    "ActorDiedError", "ActorUnavailableError", "ActorUnschedulableError", "CrossLanguageError", "GetTimeoutError", "NodeDiedError", "ObjectLostError", "OutOfMemoryError",
    "PendingCallsLimitExceeded", "PermissionDeniedError", "QuotaExceededError", "RayActorError", "RayError", "RaySystemError", "RayTaskError", "RuntimeEnvSetupError",
    "TaskCancelledError", "TaskUnschedulableError", "WorkerCrashedError",
]
