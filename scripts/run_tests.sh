#!/bin/bash
# Runs test programs one after another and adds up what they report.
#
#   scripts/run_tests.sh build/tests/test_a build/tests/test_b ...
#
# One line a program, the details of a failure below it; the whole output stays in PROGRAM.log. The
# last line is "N passed, N failed, N skipped". A program that dies, hangs, or is reported by a
# sanitizer counts as a failure whatever its own summary says: Criterion passes a test that leaks.
set -uo pipefail

# Seconds a program may take.
limit=${TEST_TIMEOUT:-600}
passed=0 failed=0 skipped=0 running=

# timeout(1) puts a program into a process group of its own, which an interrupt here does not reach.
stop() {
    [[ -n $running ]] && kill "$running" 2>/dev/null
    exit 130
}
trap stop INT TERM

run_one() {
    local bin=$1 log=$1.log start end status summary ok=0 bad=0 skip verdict
    start=$(date +%s%N)
    timeout -k 5 "$limit" "$bin" --verbose --color=never -j1 >"$log" 2>&1 </dev/null &
    running=$!
    wait "$running"
    status=$?
    end=$(date +%s%N)
    summary=$(grep -a '^\[====\] Synthesis:' "$log" | tail -n 1)
    if [[ $summary =~ Passing:\ ([0-9]+)\ \|\ Failing:\ ([0-9]+) ]]; then
        ok=${BASH_REMATCH[1]} bad=${BASH_REMATCH[2]}
    fi
    skip=$(grep -ac '^\[SKIP\]' "$log")
    verdict=ok
    if ((status == 124 || status == 137)); then
        verdict="FAILED: longer than $limit s"
    elif [[ -z $summary ]]; then
        verdict="FAILED: no summary, exit status $status"
    elif grep -aqE 'ERROR: (Address|Leak)Sanitizer|: runtime error:' "$log"; then
        verdict="FAILED: sanitizer report"
    elif ((status != 0 || bad > 0)); then
        verdict=FAILED
    fi
    [[ $verdict != ok ]] && ((bad == 0)) && bad=1
    printf '%-28s %4d passed %3d failed %3d skipped %7d ms  %s\n' "$(basename "$bin")" "$ok" \
        "$bad" "$skip" $(((end - start) / 1000000)) "$verdict"
    grep -a '^\[SKIP\]' "$log" | sed 's/^/    /'
    [[ $verdict == ok ]] || grep -avE '^\[(RUN |PASS|SKIP)\]' "$log" | tail -n 60 | sed 's/^/    /'
    passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skip))
}

if (($# == 0)); then
    echo "run_tests.sh: no test programs" >&2
    exit 1
fi
for bin in "$@"; do
    run_one "$bin"
done
echo "$passed passed, $failed failed, $skipped skipped"
((failed == 0))
