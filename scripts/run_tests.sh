#!/bin/bash
# Runs test programs, TEST_JOBS at a time (default: as many as there are cores), and adds up what
# they report.
#
#   scripts/run_tests.sh build/tests/test_a build/tests/test_b ...
#
# One line a program as it ends, the details of a failure below it; the whole output stays in
# PROGRAM.log. The last line is "N passed, N failed, N skipped". A program that dies, hangs, or is
# reported by a sanitizer counts as a failure whatever its own summary says: Criterion passes a test
# that leaks.
set -uo pipefail

# Seconds a program may take, on a busy machine too.
limit=${TEST_TIMEOUT:-1800}
jobs=${TEST_JOBS:-$(nproc)}
passed=0 failed=0 skipped=0
# A thread each, since as many programs run as there are cores. Tests of threads ask for theirs.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# timeout(1) puts a program into a process group of its own, which an interrupt here does not reach.
stop() {
    local running
    running=$(jobs -p)
    [[ -n $running ]] && kill $running 2>/dev/null
    exit 130
}
trap stop INT TERM

# The program's exit status and milliseconds are left in PROGRAM.status.
start_one() {
    local bin=$1 start end status running
    trap 'kill "$running" 2>/dev/null; exit 130' TERM
    start=$(date +%s%N)
    timeout -k 5 "$limit" "$bin" --verbose --color=never -j1 >"$bin.log" 2>&1 </dev/null &
    running=$!
    wait "$running"
    status=$?
    end=$(date +%s%N)
    echo "$status $(((end - start) / 1000000))" >"$bin.status"
}

report_one() {
    local bin=$1 log=$1.log status ms summary ok=0 bad=0 skip verdict
    read -r status ms <"$bin.status"
    rm -f "$bin.status"
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
        "$bad" "$skip" "$ms" "$verdict"
    grep -a '^\[SKIP\]' "$log" | sed 's/^/    /'
    [[ $verdict == ok ]] || grep -avE '^\[(RUN |PASS|SKIP)\]' "$log" | tail -n 60 | sed 's/^/    /'
    passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skip))
}

if (($# == 0)); then
    echo "run_tests.sh: no test programs" >&2
    exit 1
fi
# Reports whatever has ended.
report_ended() {
    local bin
    for bin in "$@"; do
        [[ -s $bin.status ]] && report_one "$bin"
    done
}

for bin in "$@"; do
    rm -f "$bin.status"
done
for bin in "$@"; do
    while (($(jobs -rp | wc -l) >= jobs)); do
        wait -n
        report_ended "$@"
    done
    start_one "$bin" &
done
wait
report_ended "$@"
echo "$passed passed, $failed failed, $skipped skipped"
((failed == 0))
