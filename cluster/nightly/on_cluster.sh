#!/bin/sh
# Stands for `clipmill` in nightly.sh where runs are sent to a Ray cluster that stays:
#
#     CLIPMILL=/opt/clipmill/on_cluster.sh CLUSTER=http://HEAD:8265 INPUT=... OUTPUT=... nightly.sh --preset standard
#
# A run that is still at work on OUTPUT, as after a while in which the cluster could not be reached, is followed to its end, and
# nothing is sent. Exit codes are those of the run. Everything but `run` is done here.
set -u
: "${CLUSTER:?say where the dashboard of Ray is, such as http://HEAD:8265}" "${OUTPUT:?say where the tables are}"
PROGRAM=${PROGRAM:-clipmill}

[ "${1:-}" = run ] || exec "$PROGRAM" "$@"
shift
state=$("$PROGRAM" submit --address "$CLUSTER" --output "$OUTPUT" --status --json 2>/dev/null)
case $state in
  *'"state": "running"'* | *'"state": "waiting"'*)
    exec "$PROGRAM" submit --address "$CLUSTER" --output "$OUTPUT" --follow --log-format json ;;
esac
exec "$PROGRAM" submit --address "$CLUSTER" "$@"
