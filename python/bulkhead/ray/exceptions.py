"""`ray.exceptions`. Some classes are here for programs that name them: nothing in Bulkhead raises them (docs/ray-compatibility.md)."""

from ..ray_errors import (
    ActorAlreadyExistsError, ActorDiedError, ActorHandleNotFoundError, ActorPlacementGroupRemoved, ActorUnavailableError, ActorUnschedulableError,
    AsyncioActorExit, AuthenticationError, CrossLanguageError, GetTimeoutError, LocalRayletDiedError, NodeDiedError, ObjectFetchTimedOutError,
    ObjectFreedError, ObjectLostError, ObjectReconstructionFailedError, ObjectRefStreamEndOfStreamError, ObjectStoreFullError, OutOfDiskError,
    OutOfMemoryError, OwnerDiedError, PendingCallsLimitExceeded, PermissionDeniedError, PlasmaObjectNotAvailable, QuotaExceededError, RayActorError,
    RayError, RaySystemError, RayTaskError, ReferenceCountingAssertionError, RpcError, RuntimeEnvSetupError, TaskCancelledError,
    TaskPlacementGroupRemoved, TaskUnschedulableError, UnserializableException, UserCodeException, WorkerCrashedError,
)

__all__ = [
    "ActorAlreadyExistsError", "ActorDiedError", "ActorHandleNotFoundError", "ActorPlacementGroupRemoved", "ActorUnavailableError",
    "ActorUnschedulableError", "AsyncioActorExit", "AuthenticationError", "CrossLanguageError", "GetTimeoutError", "LocalRayletDiedError",
    "NodeDiedError", "ObjectFetchTimedOutError", "ObjectFreedError", "ObjectLostError", "ObjectReconstructionFailedError",
    "ObjectRefStreamEndOfStreamError", "ObjectStoreFullError", "OutOfDiskError", "OutOfMemoryError", "OwnerDiedError", "PendingCallsLimitExceeded",
    "PermissionDeniedError", "PlasmaObjectNotAvailable", "QuotaExceededError", "RayActorError", "RayError", "RaySystemError", "RayTaskError",
    "ReferenceCountingAssertionError", "RpcError", "RuntimeEnvSetupError", "TaskCancelledError", "TaskPlacementGroupRemoved",
    "TaskUnschedulableError", "UnserializableException", "UserCodeException", "WorkerCrashedError",
]
