#!/bin/bash
# Compiles emitted CUDA headers for every GPU that they are made for, and keeps what the assembler
# says of each kernel in $BUILD/cuda/kernels.txt: registers, stack, spills, shared memory. Fails
# where one spills. Skips, and says so, where nvcc is not installed.
#
#   scripts/cuda.sh [SM...]        (80 86 89 90 100 120; make cuda CUDA_SM="80 90" CUDA_PLANS="q4_0 auto2")
set -euo pipefail
cd "$(dirname "$0")/.."
build=${BUILD:-build}
out=$build/cuda
table=$out/kernels.txt
targets=("$@")
((${#targets[@]} > 0)) || targets=(80 86 89 90 100 120)
if ! command -v nvcc >/dev/null; then
    echo "make cuda: nvcc is not installed: skipped"
    exit 0
fi
mkdir -p "$out"

# Plans that between them have every way to attend, at the shape of a large model: 32 query heads and
# 8 KV heads of 128 channels. Of auto: the default (shared streams, block frame), own streams alone,
# and keys that are rebuilt.
read -ra plans <<<"${CUDA_PLANS:-q4_0 q8_0 higgs2 kivi2 auto2 own2 pre2}"
emit() { # NAME OPTION...
    local name=$1
    shift
    "$build/vqkvc" build -q --simulate 2x32x8x128 --n-tokens 2048 --sample 1024 --no-db --target cuda \
        --prefix "${name}_kv" -o "$out/$name.cuh" "$@" >/dev/null
}
for plan in "${plans[@]}"; do
    case $plan in
    auto2) emit auto2 --bits 2 ;;
    own2) emit own2 --bits 2 --max-scan 2 --layers-shared 1 ;;
    pre2) emit pre2 --bits 2 --frame pre --max-scan none --layers-shared 1 ;;
    *) emit "$plan" --scheme "$plan" ;;
    esac
done

# Shared memory is asked for at launch, so that the assembler does not know of it.
shared_bytes() {
    cat >"$out/shared.cpp" <<END
#define ${1^^}_KV_CUDA_IMPLEMENTATION
#include "$1.cuh"
#include <stdio.h>
namespace $1_kv_cuda {
unsigned char $1_kv__shared[1];
}
int main()
{
    using namespace $1_kv_cuda;
    printf("%d %zu %d %zu\n", decode_rows, sizeof(shared<decode_rows>), prefill_rows,
           sizeof(shared<prefill_rows>));
}
END
    g++ -std=c++17 -w -fsanitize=address -I"$out" -Itests/cuda_shim "$out/shared.cpp" -o "$out/shared"
    "$out/shared"
}

printf '%-8s %-6s %-18s %9s %6s %7s %7s\n' scheme target kernel registers stack spills shared >"$table"
for scheme in "${plans[@]}"; do
    printf '#define %s_KV_CUDA_IMPLEMENTATION\n#include "%s.cuh"\n' "${scheme^^}" "$scheme" \
        >"$out/$scheme.cu"
    shared=$(shared_bytes "$scheme")
    for sm in "${targets[@]}"; do
        echo "  NVCC  $scheme.cuh sm_$sm"
        nvcc -std=c++17 -O3 -arch="sm_$sm" -Werror all-warnings -Wno-deprecated-gpu-targets -Xptxas -v \
            -Xcompiler -Wall,-Wextra,-Wshadow,-Wconversion -cubin -o "$out/$scheme.cubin" \
            "$out/$scheme.cu" 2>"$out/ptxas.log" || { cat "$out/ptxas.log" >&2; exit 1; }
        awk -v scheme="$scheme" -v sm="$sm" -v shared="$shared" '
            /Compiling entry function/ {
                name = $0
                sub(/_kernel.*/, "", name)
                sub(/.*[0-9]/, "", name)
                rows = ""
                if (match($0, /kernelILi[0-9]+/))
                    rows = substr($0, RSTART + 9, RLENGTH - 9)
            }
            /bytes stack frame/ { stack = $1; spills = $5 + $9 }
            /Used [0-9]+ registers/ {
                split(shared, of, " ")
                bytes = rows == "" ? 0 : rows == of[1] ? of[2] : of[4]
                printf "%-8s sm_%-3s %-18s %9d %6d %7d %7d\n", scheme, sm,
                    name (rows != "" ? "<" rows ">" : ""), $5, stack, spills, bytes
            }' "$out/ptxas.log" >>"$table"
    done
done
cat "$table"
if awk 'NR > 1 && $6 > 0 { bad = 1 } END { exit !bad }' "$table"; then
    echo "make cuda: a kernel spills registers" >&2
    exit 1
fi
