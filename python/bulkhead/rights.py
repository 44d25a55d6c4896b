"""How a process in a sandbox becomes one that tenants' code may run in. Must never: return with a right left."""

from __future__ import annotations

import ctypes
import os

TENANT_UID = 65_534
_PR_CAPBSET_DROP = 24
_libc = ctypes.CDLL(None)


def give_up_rights() -> None:
    """From here on a user without rights, who can get none back."""
    for capability in range(64):
        # Of the bounding set too; numbers that the kernel does not know end it.
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break
    os.setgroups([])
    os.setresgid(TENANT_UID, TENANT_UID, TENANT_UID)
    os.setresuid(TENANT_UID, TENANT_UID, TENANT_UID)
