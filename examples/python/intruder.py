"""The second tenant's program: knows the ids of the first one's data and actor and tries to use them. Possession of an id grants nothing, so each attempt must be denied.
Prints one JSON array; exit code 1 when something came through.

    BULKHEAD_PROFILE=DIR python examples/python/intruder.py FILE    (FILE: written by grid_search.py --ids FILE)
"""

import json
import sys

import bulkhead.ray as ray


@ray.remote
def read(records):
    return records.sum()


def main():
    with open(sys.argv[1]) as file:
        ids = json.load(file)
    ray.init()
    records = ray.ObjectRef(bytes.fromhex(ids["data"]))
    attempts = [
        ("get the records by their id", "object.get", lambda: ray.get(records, timeout=20)),
        ("learn whether they are there", "object.wait", lambda: ray.wait([records], timeout=20)),
        ("let an own task read them", "", lambda: ray.get(read.remote(records), timeout=20)),
        ("find the actor by its name", "", lambda: ray.get_actor(ids["actor"])),
    ]
    told = []
    for what, action, attempt in attempts:
        try:
            attempt()
            told.append({"what": what, "action": action, "denied": False, "how": "it came through"})
        except Exception as refusal:
            told.append({"what": what, "action": action, "denied": isinstance(refusal, (ray.exceptions.PermissionDeniedError, ValueError)), "how": f"{type(refusal).__name__}: {refusal}"[:200]})
    print(json.dumps(told))
    sys.exit(0 if all(one["denied"] for one in told) else 1)


if __name__ == "__main__":
    main()
