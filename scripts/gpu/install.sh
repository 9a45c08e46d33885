#!/usr/bin/env bash
# Unpack the archives named (default: base) and run no check.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh" 60 "${@:-base}"
finish
