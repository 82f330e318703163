#!/bin/sh
# Start-up as a test, for any CI: measures a server, and fails if its restore got slower.
#
#   benches/gate.sh STORED FOLDER COMMAND...
#
# STORED is the file to compare with, kept in the repository; "-" compares with nothing, and is how
# the first one is made. FOLDER receives startup.json, startup.md, startup.svg and startup.html.
# Needs root.
#
# Environment: WARMIMG, the program (default: warmimg); MAX_REGRESSION (default: 10%); OPTIONS,
# further options of `warmimg bench`, such as "--runs 20 --min-speedup 3x --url http://…".
set -eu

if [ $# -lt 3 ]; then
    echo "usage: $0 STORED FOLDER COMMAND..." >&2
    exit 2
fi
stored=$1
folder=$2
shift 2
mkdir -p "$folder"

set -- --export-json "$folder/startup.json" --export-markdown "$folder/startup.md" \
    --export-svg "$folder/startup.svg" --export-html "$folder/startup.html" -- "$@"
if [ "$stored" != - ]; then
    set -- --against "$stored" --max-regression "${MAX_REGRESSION:-10%}" "$@"
fi
# The options are several words.
# shellcheck disable=SC2086
exec "${WARMIMG:-warmimg}" bench ${OPTIONS:-} "$@"
