#!/bin/bash
# What may be in the repository: size, absolute paths of somebody's machine, executable bits.
set -euo pipefail
cd "$(dirname "$0")/.."
max_bytes=$((20 * 1000 * 1000))
failures=0

report() {
    echo "$1"
    failures=$((failures + 1))
}

total=0
while read -r -d '' file; do
    [[ -f $file ]] || continue # deleted, but not committed yet
    total=$((total + $(stat -c %s "$file")))
    case $file in
    scripts/*.sh | .ci/run) [[ -x $file ]] || report "$file: is a program, but not executable" ;;
    *) [[ ! -x $file ]] || report "$file: is executable, but no program" ;;
    esac
done < <(git ls-files -z)
((total <= max_bytes)) || report "the tracked files hold $total bytes, over $max_bytes"

# -I leaves binary files out: a model's bytes may spell anything.
if found=$(git grep -nIE '(^|[^A-Za-z0-9_.-])/(work|root)/'); then
    report "paths of one machine in tracked files:"$'\n'"$found"
fi

((failures == 0)) || exit 1
echo "repository: $(git ls-files | wc -l) files, $total bytes, in order"
