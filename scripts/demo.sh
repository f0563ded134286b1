#!/bin/bash
# The main job on a real model: from examples/models/ref7m.gguf to a header, a table of what the
# header costs, and text generated with an fp16 and with the compressed cache. `make demo` builds
# the compiler and calls this. Ends at the first failure and says in which step.
set -Eeuo pipefail
cd "$(dirname "$0")/.."
build=${BUILD:-build}
demo=$build/demo
vqkvc=$build/vqkvc
model=examples/models/ref7m.gguf
header=$demo/ref7m_kv.h
tokens=tests/data/ref7m_tokens.i32
books=${VQKV_DATA:-../shared/data}/eval_books.txt
step=start
# Threads that wait by spinning slow each other down manyfold where another process is at work.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

title() {
    step=$1
    printf '\n== %s (%d s so far)\n\n' "$1" "$SECONDS"
}

# Shows a command as it would be typed, and runs it.
run() {
    printf '$ %s\n' "${*@Q}" | sed "s/'\([A-Za-z0-9_.,/=+-]*\)'/\1/g"
    "$@"
}

trap 'echo "demo: failed in the step \"$step\"" >&2' ERR

if [[ ! -x $vqkvc ]]; then
    echo "demo: $vqkvc is missing; 'make demo' builds it first" >&2
    exit 1
fi
mkdir -p "$demo" "$build/examples"
# From nothing: the store would remember an earlier run's work.
rm -f "$header" "$demo"/vqkvc.db*

title "a codec for the model: calibrate on the model's own text, fit, plan, emit"
run "$vqkvc" build "$model" --self --prefix ref7m_kv --db "$demo/vqkvc.db" -o "$header"

title "what it costs, measured through the header on text that it has not seen"
if [[ -r $books ]]; then
    run "$vqkvc" eval "$model" --header "$header" --db "$demo/vqkvc.db" --text "$books" --windows 4
else
    run "$vqkvc" eval "$model" --header "$header" --db "$demo/vqkvc.db" --tokens "$tokens" \
        --windows 1 --context 512
fi

title "the header in the smallest program (examples/minimal.c), on vectors of the model"
run make -s "BUILD=$build" "$build/examples/minimal" "$build/examples/vectors"
run "$build/examples/vectors" "$model" "$tokens" "$demo/vectors.f32"
run "$build/examples/minimal" "$demo/vectors.f32"

title "text behind 512 tokens of a book, fp16 and compressed cache: the likeliest token each time"
run make -s "BUILD=$build" "$build/examples/generate"
run "$build/examples/generate" --context "$tokens" --cache both -n 48

title "the same, sampled"
echo "(One token that differs, and the texts part for good: the table above is the measure.)"
run "$build/examples/generate" --context "$tokens" --cache both -n 96 --temperature 0.7 --seed 1

step=end
printf '\nThe demo took %d s. The header is %s.\n' "$SECONDS" "$header"
