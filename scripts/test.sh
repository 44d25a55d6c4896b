#!/usr/bin/env bash
# The test command: type checks, then every test, real jails included. Arguments go to vitest (`npm test -- test/spec/value.test.ts`).
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/node_modules/.bin:$PATH"
node scripts/system-packages.ts --tests
# Without it the tests of Python say so and test that it is refused.
node src/sandbox/gvisor/build-runsc.ts --if-possible
if [ $# -eq 0 ]; then
  echo 'Type checks'
  tsc -p tsconfig.json
  tsc -p tsconfig.core.json
  echo 'Lint'
  oxlint --type-aware src
fi
exec vitest run "$@"
