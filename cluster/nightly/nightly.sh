#!/bin/sh
# One night: annotate what is new, check the tables, and end with a code that whoever started it can act on.
#
#     INPUT=s3://footage/news/ OUTPUT=s3://tables/news nightly.sh --preset standard
#
# What follows on the command line goes to `clipmill run`. Two nights never overlap: a run that is still at work keeps the
# next one out (75, as sysexits.h has it: try again later). Exit codes are those of clipmill otherwise; 4 (stopped early, the next
# run goes on) is tried once more here, since most outages of a store are short.
set -u
: "${INPUT:?say what to annotate}" "${OUTPUT:?say where the tables are}"
CLIPMILL=${CLIPMILL:-clipmill}
LOCK=${LOCK:-/tmp/clipmill-$(printf %s "$OUTPUT" | cksum | cut -d' ' -f1).lock}

exec 9>"$LOCK"
flock -n 9 || { echo "the run before is still at work on $OUTPUT" >&2; exit 75; }

"$CLIPMILL" run --input "$INPUT" --output "$OUTPUT" --log-format json "$@"
code=$?
if [ "$code" -eq 4 ]; then
  sleep "${RETRY_AFTER_S:-600}"
  "$CLIPMILL" run --input "$INPUT" --output "$OUTPUT" --log-format json "$@"
  code=$?
fi
if [ "$code" -eq 0 ] || [ "$code" -eq 3 ]; then
  "$CLIPMILL" verify "$OUTPUT" || exit 1
fi
exit "$code"
