#!/bin/bash
# Plants one violation of each rule in a small tree and sees include_law.sh report exactly that one.
set -euo pipefail
law=$(cd "$(dirname "$0")" && pwd)/include_law.sh
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
checks=0

# A tree that keeps the law, with what looks like violations in comments and strings.
fresh() {
    rm -rf "${tree:?}"/*
    mkdir -p "$tree"/{compiler/{base,model,capture,fit,plan,eval,command},calib_db,gen,runtime}
    mkdir -p "$tree"/{tests,examples}
    echo '#include <stdio.h>' >"$tree/compiler/base/status.h"
    printf '%s\n' '#include "base/status.h"' '/* exit(1) and printf("") and' ' abort() */' \
        'const char *s = "exit(1) \" abort()"; // puts("")' 'void f(void) { on_exit(1); x_printf(); }' \
        >"$tree/compiler/model/gguf.c"
    echo '#include "status.h"' >"$tree/compiler/base/status.c"
    echo '#include "base/status.h"' >"$tree/compiler/model/model.h"
    echo '#include "model/model.h"' >"$tree/compiler/capture/capture.h"
    echo '#include "capture/capture.h"' >"$tree/compiler/fit/fit.h"
    echo '#include "base/status.h"' >"$tree/calib_db/kvdb.h"
    printf '%s\n' '#include "calib_db/kvdb.h"' '#include <sqlite3.h>' >"$tree/calib_db/sql.c"
    echo '#include "calib_db/kvdb.h"' >"$tree/compiler/plan/plan.h"
    echo '#include "plan/plan.h"' >"$tree/gen/gen.h"
    echo '#include "gen/gen.h"' >"$tree/compiler/eval/eval.h"
    echo '#include "model/model.h"' >>"$tree/compiler/eval/eval.h"
    printf '%s\n' '#include "eval/eval.h"' 'void g(void) { printf("x"); }' \
        >"$tree/compiler/command/cmd_eval.c"
    echo 'int main(void) { exit(0); }' >"$tree/compiler/vqkvc.c"
    echo '#include <immintrin.h>' >"$tree/runtime/vec_avx2.h"
    printf '%s\n' '#include "model_kv.h"' '#include "model/model.h"' >"$tree/examples/generate.c"
    printf '%s\n' '#include "plan/plan.h"' '#include <sqlite3.h>' >"$tree/tests/test_plan.c"
}

die() {
    echo "test_include_law.sh: $1" >&2
    exit 1
}

# expect FILE "TEXT" "MESSAGE": TEXT appended to FILE gives one report, FILE:LINE: ...MESSAGE...
expect() {
    local out line
    fresh
    mkdir -p "$tree/$(dirname "$1")"
    printf '%s\n' "$2" >>"$tree/$1"
    line=$(wc -l <"$tree/$1")
    if out=$("$law" "$tree" 2>&1); then
        die "not reported: $2 in $1"
    fi
    [[ $(wc -l <<<"$out") == 1 && $out == "$1:$line: "*"$3"* ]] ||
        die "wrong report for $2 in $1: $out"
    checks=$((checks + 1))
}

fresh
"$law" "$tree" >/dev/null || die "a lawful tree is reported"

expect compiler/base/status.h '#include "model/model.h"' 'base/ may not include'
expect compiler/base/status.h '# include <model/model.h>' 'base/ may not include'
expect compiler/base/status.h '#include "../model/model.h"' 'base/ may not include'
expect compiler/model/model.h '#include "capture/capture.h"' 'model/ may not include'
expect compiler/capture/capture.h '#include "fit/fit.h"' 'capture/ may not include'
expect compiler/fit/fit.h '#include "calib_db/kvdb.h"' 'fit/ may not include'
expect calib_db/kvdb.h '#include "plan/plan.h"' 'calib_db/ may not include'
expect compiler/plan/plan.h '#include "gen/gen.h"' 'plan/ may not include'
expect gen/gen.h '#include "fit/fit.h"' 'gen/ may not include'
expect gen/gen.h '#include "../calib_db/kvdb.h"' 'gen/ may not include'
expect gen/gen.h '#include "runtime/vec_avx2.h"' 'gen/ may not include'
expect compiler/eval/eval.h '#include "command/../vqkvc.c"' 'eval/ may not include'
expect compiler/model/model.h '#include "missing.h"' 'is not in the tree'
expect compiler/extra/extra.c '#include "base/status.h"' 'does not know the stage'
expect runtime/vec_avx2.h '#include <stdlib.h>' 'libc and intrinsics only'
expect runtime/vec_avx2.h '#include "base/status.h"' 'libc and intrinsics only'
expect runtime/vec_avx2.h '#include <cuda_fp16.h>' 'libc and intrinsics only'
expect runtime/cuda/gpu.cuh '#include <vector>' 'libc and intrinsics only'
expect examples/generate.c '#include "plan/plan.h"' 'examples/ may not include'
expect compiler/plan/plan.h '#include <sqlite3.h>' 'calib_db/ alone'
expect calib_db/store.c '#include <sqlite3.h>' 'included by calib_db/sql.c already'
expect compiler/model/gguf.c 'void h(void) { /* here */ exit(1); }' 'ends the program'
expect compiler/command/cmd_eval.c 'void h(void) { abort (); }' 'ends the program'
expect runtime/vec_avx2.h 'static void h(void) { abort(); }' 'ends the program'
expect compiler/fit/fit.h 'void h(void) { printf("x"); }' 'stdout belongs'
expect calib_db/sql.c 'void h(void) { fputs("x", stdout); }' 'stdout belongs'
expect gen/gen.h 'static long h(void) { return time(0); }' 'pure function'

# The second of two files with one name is named, at its first line.
fresh
echo 'int x;' >"$tree/compiler/fit/gguf.c"
out=$("$law" "$tree" 2>&1) && die "a repeated file name is not reported"
[[ $out == "compiler/model/gguf.c:1: "*"taken by compiler/fit/gguf.c" ]] || die "wrong: $out"

echo "include law, self-test: $((checks + 2)) trees, as expected"
