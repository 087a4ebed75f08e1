#!/usr/bin/env bash
# Run the tests, and the linter over the code. Arguments go to pytest: ./test.sh tests/test_apc_model.py -k padding
set -euo pipefail
cd "$(dirname "$0")"
. ./environment.sh
enter_environment requirements-dev.txt

ruff check .
ruff format --check --quiet .
lint-imports --no-logo
# all tests run in a process for each core
[ $# -gt 0 ] || set -- --numprocesses auto --dist loadfile
exec python -m pytest "$@"
