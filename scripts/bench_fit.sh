#!/bin/bash
# What the tool itself needs for a large model: seconds, processor seconds and peak memory of every
# stage at the geometry of Llama-3.1-8B, from vectors that are made up (vqkvc capture --simulate);
# then size and compile cost of the headers; then k-means next to faiss's, where that is installed.
# Results, not tests. Arguments: nothing, or the schemes to build.
#   SHAPE, TOKENS, SAMPLE: of the simulated capture; CC_LIMIT: seconds for one compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

vqkvc=${VQKVC:-build/vqkvc}
kmeans=${BENCH_KMEANS:-build/tests/bench_kmeans}
shape=${SHAPE:-32x32x8x128} tokens=${TOKENS:-65536} sample=${SAMPLE:-8192}
cc_limit=${CC_LIMIT:-600}
out=${OUT:-build/bench_fit}
schemes=("$@")
[ ${#schemes[@]} -gt 0 ] || schemes=(higgs2 vqkv auto aqua)
mkdir -p "$out"
rm -f "$out"/fit.db* "$out"/*.h "$out"/*.o
trap 'rm -f "$out"/fit.db* "$out"/*.o' EXIT

# measure NAME COMMAND...: runs it and prints what it took; its output goes to a log.
measure() {
    local name=$1 status=0
    shift
    /usr/bin/time -o "$out/time" -f '%e %U %S %M' "$@" >"$out/$name.log" 2>&1 || status=$?
    if [ $status -ne 0 ]; then
        echo "$name: failed with status $status: $(tail -n 1 "$out/$name.log")"
        return 0
    fi
    tail -n 1 "$out/time" | awk -v name="$name" \
        '{ printf "%s: %.1f s, processors %.1f s, peak %.0f MiB\n", name, $1, $2 + $3, $4 / 1024 }'
}

command -v /usr/bin/time >/dev/null || { echo "bench_fit: needs GNU time (Debian: time)" >&2; exit 1; }
grep -m 1 'model name' /proc/cpuinfo || true
echo "processors: $(nproc), load $(cut -d ' ' -f 1-3 /proc/loadavg); shape $shape, $tokens tokens, $sample kept"

source_options=(--simulate "$shape" --n-tokens "$tokens" --sample "$sample" --db "$out/fit.db")
measure capture "$vqkvc" capture "${source_options[@]}"
echo "store: $(du -ck "$out"/fit.db* | tail -n 1 | cut -f 1) KiB"
for scheme in "${schemes[@]}"; do
    measure "build-$scheme" "$vqkvc" build "${source_options[@]}" --scheme "$scheme" --prefix my_kv \
        -o "$out/$scheme.h" -v
    [ -e "$out/$scheme.h" ] || continue
    echo "header-$scheme: $(stat -c %s "$out/$scheme.h") bytes; $(sed -n 's/^bits a value: //p' "$out/build-$scheme.log")"
    printf '#define MY_KV_IMPLEMENTATION\n#include "%s.h"\n' "$scheme" >"$out/$scheme.c"
    for cc in gcc clang; do
        command -v $cc >/dev/null || continue
        measure "$cc-$scheme" timeout "$cc_limit" $cc -std=c99 -O2 -c "$out/$scheme.c" -o "$out/$scheme.o"
    done
done
if [ -x "$kmeans" ]; then
    "$kmeans"
else
    echo "kmeans: faiss is not installed, nothing to compare with"
fi
