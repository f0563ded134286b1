#!/bin/bash
# Runs fuzz programs FUZZ_SECONDS each, FUZZ_JOBS at a time; fails if one of them does.
#
#   scripts/run_fuzz.sh build-asan/fuzz/fuzz_a ...
set -uo pipefail

seconds=${FUZZ_SECONDS:-60} seed=${FUZZ_SEED:-1} jobs=${FUZZ_JOBS:-$(nproc)}

run_one() {
    local bin=$1 log=$1.log status
    # A target that stops answering is a finding too.
    timeout --foreground -k 5 $((seconds + 60)) "$bin" -seconds "$seconds" -seed "$seed" \
        >"$log" 2>&1 </dev/null
    status=$?
    if ((status == 0)); then
        printf '%-28s ok  %s\n' "$(basename "$bin")" "$(tail -n 1 "$log")"
        return 0
    fi
    printf '%-28s FAILED (exit status %d), see %s\n' "$(basename "$bin")" "$status" "$log"
    tail -n 40 "$log" | sed 's/^/    /'
    return 1
}

if (($# == 0)); then
    echo "run_fuzz.sh: no fuzz programs" >&2
    exit 1
fi
failures=0 running=0
for bin in "$@"; do
    if ((running == jobs)); then
        wait -n || failures=$((failures + 1))
        running=$((running - 1))
    fi
    run_one "$bin" &
    running=$((running + 1))
done
while ((running > 0)); do
    wait -n || failures=$((failures + 1))
    running=$((running - 1))
done
echo "fuzz: $# targets, $seconds s each, seed $seed, $failures with a finding"
((failures == 0))
