#!/bin/bash
# The include law: which part of the tree may know which. Prints one "file:line: what" a violation.
#
#   scripts/include_law.sh [root of the tree]
#
# A stage includes base/ and the stages left of it (model, capture, fit, calib_db, plan); gen/ sees
# plan/ and base/ only; runtime/ sees libc and intrinsics only (runtime/cuda/ CUDA's headers as
# well), because its text is spliced into every emitted header. With it go the rules that grep can check: who may end the program, print to
# stdout, or speak SQL, what gen/ may ask of the world, and that file names are unique.
set -euo pipefail
cd "${1:-$(dirname "$0")/..}"

mapfile -t files < <(find compiler calib_db gen runtime examples tests \( -name '*.[ch]' -o -name '*.cuh' \) 2>/dev/null |
    LC_ALL=C sort)
if ((${#files[@]} == 0)); then
    echo "include_law.sh: no sources below $PWD" >&2
    exit 1
fi

awk -v tree="${files[*]}" '
BEGIN {
    n = split(tree, path, " ")
    for (i = 1; i <= n; i++) {
        in_tree[path[i]] = 1
        name = path[i]
        sub(/.*\//, "", name)
        if (name in first)
            report(path[i], 1, "the file name is taken by " first[name])
        else
            first[name] = path[i]
    }
    sees["base"] = "base"
    sees["model"] = "base model"
    sees["capture"] = "base model capture"
    sees["fit"] = "base model capture fit"
    sees["calib_db"] = "base model capture fit calib_db"
    sees["plan"] = "base model capture fit calib_db plan"
    sees["gen"] = "base plan gen"
    sees["eval"] = "base model capture fit calib_db plan gen eval"
    sees["command"] = sees["eval"] " command"
    sees["main"] = sees["command"]
    sees["examples"] = "base model examples"
    runtime_headers = " stddef.h stdint.h string.h math.h immintrin.h arm_neon.h "
}

function report(file, line, what) {
    print file ":" line ": " what
    failures++
}

# The part of the tree that a path belongs to.
function stage_of(file, parts) {
    if (file == "compiler/vqkvc.c")
        return "main"
    split(file, parts, "/")
    return parts[1] == "compiler" ? parts[2] : parts[1]
}

# "a/b/../c" as "a/c".
function normal(file) {
    while (match(file, /[^\/]+\/\.\.\//))
        file = substr(file, 1, RSTART - 1) substr(file, RSTART + RLENGTH)
    gsub(/(^|\/)\.\//, "/", file)
    sub(/^\//, "", file)
    return file
}

# The file of the tree that an include names, searched as the compiler does, or "".
function resolve(from, name, dir, i, candidate) {
    dir = from
    sub(/[^\/]*$/, "", dir)
    split(dir "|compiler/|", where, "|")
    for (i = 1; i <= 3; i++) {
        candidate = normal(where[i] name)
        if (candidate in in_tree)
            return candidate
    }
    return ""
}

# The code of a line: comments, strings and character constants blanked out.
function code_of(line, out, c, two, i, quote) {
    out = ""
    for (i = 1; i <= length(line); i++) {
        c = substr(line, i, 1)
        two = substr(line, i, 2)
        if (in_comment) {
            if (two == "*/") {
                in_comment = 0
                i++
            }
        } else if (two == "/*") {
            in_comment = 1
            out = out " "
            i++
        } else if (two == "//") {
            break
        } else if (c == "\"" || c == "\047") {
            quote = c
            for (i++; i <= length(line) && (c = substr(line, i, 1)) != quote; i++)
                if (c == "\\")
                    i++
            out = out quote quote
        } else {
            out = out c
        }
    }
    return out
}

function check_include(name, target, to) {
    if (name == "sqlite3.h" && stage != "tests") {
        if (stage != "calib_db")
            report(FILENAME, FNR, "sqlite3.h belongs to calib_db/ alone")
        else if (sql_file != "" && sql_file != FILENAME)
            report(FILENAME, FNR, "sqlite3.h is included by " sql_file " already: one file speaks SQL")
        else
            sql_file = FILENAME
    }
    if (stage == "tests")
        return
    if (stage == "runtime") {
        if (FILENAME ~ /^runtime\/cuda\// && name ~ /^cuda_[a-z0-9]+\.h$/)
            return
        if (index(runtime_headers, " " name " ") == 0)
            report(FILENAME, FNR, "runtime/ may include libc and intrinsics only, not " name)
        return
    }
    target = resolve(FILENAME, name)
    if (target == "") {
        # An example includes an emitted header, which is not in the tree.
        if ($0 ~ /"/ && stage != "examples")
            report(FILENAME, FNR, "\"" name "\" is not in the tree")
        return
    }
    to = stage_of(target)
    if (!(stage in sees))
        report(FILENAME, FNR, "the law does not know the stage " stage "/")
    else if (index(" " sees[stage] " ", " " to " ") == 0)
        report(FILENAME, FNR, stage "/ may not include " name " of " to "/")
}

function calls(code, names) {
    return code ~ ("(^|[^A-Za-z0-9_])(" names ")[ \t]*\\(")
}

FNR == 1 {
    stage = stage_of(FILENAME)
    in_comment = 0
}

{
    code = code_of($0)
}

code ~ /^[ \t]*#[ \t]*include/ {
    name = $0
    sub(/^[^<"]*[<"]/, "", name)
    sub(/[>"].*/, "", name)
    check_include(name)
    next
}

stage == "tests" || stage == "examples" {
    next
}

calls(code, "exit|abort|quick_exit|_Exit") && stage != "main" {
    report(FILENAME, FNR, "only compiler/vqkvc.c ends the program")
}

# base/file.c writes to stdout where a command was given "-" as its output.
(calls(code, "printf|vprintf|puts|putchar") || code ~ /(^|[^A-Za-z0-9_])stdout([^A-Za-z0-9_]|$)/) &&
    stage != "main" && stage != "command" && FILENAME != "compiler/base/file.c" {
    report(FILENAME, FNR, "stdout belongs to compiler/command/ and compiler/vqkvc.c")
}

stage == "gen" && calls(code, "time|clock|clock_gettime|gettimeofday|getenv|getcwd|fopen|open") {
    report(FILENAME, FNR, "gen/ is a pure function: no clock, no environment, no files")
}

END {
    if (failures > 0)
        exit 1
    print "include law: " n " files, no violation"
}' "${files[@]}"
