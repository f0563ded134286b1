/* test_base.c - properties of compiler/base/: status, memory, hash, file, log, embed. Numbers are
 * in test_numbers.c, algebra and geometry in test_matrix.c. */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <criterion/criterion.h>

#include "base/embed.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/status.h"

/* ---- status ---------------------------------------------------------------------------------- */

static vqkvc_code fails_twice(vqkvc_err *err)
{
    VQKVC_TRY(VQKVC_OK);
    VQKVC_TRY(vqkvc_fail(err, VQKVC_E_FORMAT, "field %d", 7));
    return vqkvc_fail(err, VQKVC_E_IO, "never reached");
}

Test(status, the_first_error_wins)
{
    vqkvc_err err = {0};
    cr_assert_eq(fails_twice(&err), VQKVC_E_FORMAT);
    cr_assert_eq(vqkvc_fail(&err, VQKVC_E_MEMORY, "later"), VQKVC_E_FORMAT);
    cr_assert_eq(err.code, VQKVC_E_FORMAT);
    cr_assert_str_eq(err.msg, "field 7");
}

Test(status, a_prefix_goes_before_the_message)
{
    vqkvc_err err = {0};
    vqkvc_fail(&err, VQKVC_E_FORMAT, "bad count");
    vqkvc_err_prefix(&err, "layer %d", 3);
    vqkvc_err_prefix(&err, "a.gguf");
    cr_assert_str_eq(err.msg, "a.gguf: layer 3: bad count");
}

Test(status, long_messages_are_cut_and_terminated)
{
    static char text[4000];
    vqkvc_err err = {0};
    memset(text, 'x', sizeof text - 1);
    vqkvc_fail(&err, VQKVC_E_IO, "%s", text);
    cr_assert_eq(strlen(err.msg), sizeof err.msg - 1);
    vqkvc_err_prefix(&err, "%s", text);
    cr_assert_lt(strlen(err.msg), sizeof err.msg);
    cr_assert(strstr(err.msg, "x: x") != NULL);
}

Test(status, every_code_has_words_and_a_nonzero_exit_status)
{
    cr_assert_eq(vqkvc_exit_status(VQKVC_OK), 0);
    for (int code = VQKVC_E_FAILED; code <= VQKVC_E_INTERRUPTED; code++) {
        cr_assert_neq(vqkvc_exit_status((vqkvc_code)code), 0);
        cr_assert_str_neq(vqkvc_code_words((vqkvc_code)code), "unknown status");
    }
}

/* ---- memory ---------------------------------------------------------------------------------- */

static int is_zero(const unsigned char *p, size_t n)
{
    while (n > 0 && p[n - 1] == 0)
        n--;
    return n == 0;
}

Test(memory, arena_hands_out_aligned_zeroed_disjoint_memory)
{
    enum { COUNT = 600 };
    vqkvc_arena arena = {0};
    vqkvc_err err = {0};
    unsigned char *p[COUNT];
    size_t n[COUNT];
    for (int i = 0; i < COUNT; i++) {
        n[i] = i == 300 ? 1u << 20 : (size_t)(i * 7 % 501);
        p[i] = vqkvc_arena_alloc(&arena, n[i], 1, &err);
        cr_assert_not_null(p[i]);
        cr_assert_eq((uintptr_t)p[i] % 64, 0);
        cr_assert(is_zero(p[i], n[i]));
        memset(p[i], i % 255 + 1, n[i]);
    }
    for (int i = 0; i < COUNT; i++)
        for (size_t j = 0; j < n[i]; j++)
            cr_assert_eq(p[i][j], i % 255 + 1, "allocation %d was overwritten at byte %zu", i, j);
    vqkvc_arena_free(&arena);
    cr_assert_null(arena.head);
    vqkvc_arena_free(&arena);
}

Test(memory, sizes_that_overflow_are_refused)
{
    static const struct {
        size_t n, size;
    } cases[] = {{SIZE_MAX, 2},
                 {SIZE_MAX / 2, 2},
                 {(size_t)1 << 33, (size_t)1 << 33},
                 {SIZE_MAX - 63, 1},
                 {SIZE_MAX, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        vqkvc_arena arena = {0};
        vqkvc_err err = {0}, again = {0};
        cr_assert_null(vqkvc_alloc(cases[i].n, cases[i].size, &err));
        cr_assert_eq(err.code, VQKVC_E_MEMORY);
        cr_assert_null(vqkvc_arena_alloc(&arena, cases[i].n, cases[i].size, &again));
        cr_assert_eq(again.code, VQKVC_E_MEMORY);
    }
}

Test(memory, nothing_is_a_valid_allocation)
{
    vqkvc_err err = {0};
    void *p = vqkvc_alloc(0, 8, &err);
    cr_assert_not_null(p);
    free(p);
    p = vqkvc_alloc(SIZE_MAX, 0, &err);
    cr_assert_not_null(p);
    free(p);
}

Test(memory, arena_strings_are_copies)
{
    vqkvc_arena arena = {0};
    vqkvc_err err = {0};
    char source[] = "abcdef";
    char *copy = vqkvc_arena_strndup(&arena, source, 3, &err);
    source[0] = 'X';
    cr_assert_str_eq(copy, "abc");
    cr_assert_str_eq(vqkvc_arena_printf(&arena, &err, "%s-%d", copy, 5), "abc-5");
    vqkvc_arena_free(&arena);
}

Test(memory, buf_grows_and_stays_terminated)
{
    vqkvc_buf buf = {0};
    for (int i = 0; i < 5000; i++) {
        vqkvc_buf_printf(&buf, "%04d", i);
        vqkvc_buf_puts(&buf, ";");
        cr_assert_eq(buf.len, (size_t)5 * (i + 1));
        cr_assert_eq(buf.data[buf.len], '\0');
    }
    cr_assert(memcmp(buf.data, "0000;0001;", 10) == 0);
    cr_assert_str_eq(buf.data + buf.len - 10, "4998;4999;");
    vqkvc_buf_put(&buf, "\0x", 2);
    cr_assert_eq(buf.len, 25002);
    free(buf.data);
}

Test(memory, buf_remembers_a_failure)
{
    vqkvc_buf buf = {0};
    vqkvc_buf_puts(&buf, "kept");
    vqkvc_buf_put(&buf, NULL, SIZE_MAX - 2);
    cr_assert(buf.failed);
    vqkvc_buf_puts(&buf, "ignored");
    vqkvc_buf_printf(&buf, "%d", 1);
    cr_assert(buf.failed);
    cr_assert_str_eq(buf.data, "kept");
    free(buf.data);
}

/* ---- hash ------------------------------------------------------------------------------------ */

Test(hash, known_value_of_nothing)
{
    cr_assert_str_eq(vqkvc_hash_bytes("", 0).hex, "99aa06d3014798d86001c324468d497f");
    cr_assert_str_eq(vqkvc_hash_text("").hex, "99aa06d3014798d86001c324468d497f");
}

Test(hash, every_bit_counts_and_alignment_does_not)
{
    unsigned char bytes[301], moved[302];
    for (size_t n = 1; n < sizeof bytes; n += 37) {
        memset(bytes, 'a', n);
        vqkvc_hash whole = vqkvc_hash_bytes(bytes, n);
        memcpy(moved + 1, bytes, n);
        cr_assert_str_eq(vqkvc_hash_bytes(moved + 1, n).hex, whole.hex);
        for (size_t bit = 0; bit < 8 * n; bit += 5) {
            bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
            cr_assert_str_neq(vqkvc_hash_bytes(bytes, n).hex, whole.hex);
            bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
        }
    }
    cr_assert_str_eq(vqkvc_hash_text("kind=pca").hex, vqkvc_hash_bytes("kind=pca", 8).hex);
}

/* ---- file ------------------------------------------------------------------------------------ */

/* A directory for one test; path_in() names files in it, remove_directory() ends it. */
static char directory[64];

static void make_directory(void)
{
    snprintf(directory, sizeof directory, "/tmp/vqkvc_test_XXXXXX");
    cr_assert_not_null(mkdtemp(directory));
}

/* The path of a file in the directory; static memory, one path at a time. */
static const char *path_in(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return path;
}

static int count_entries(void)
{
    int n = 0;
    DIR *d = opendir(directory);
    for (struct dirent *e = readdir(d); e != NULL; e = readdir(d))
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static void remove_directory(void)
{
    unlink(path_in("file"));
    cr_assert_eq(rmdir(directory), 0, "something was left behind in %s", directory);
}

Test(file, what_is_written_is_read_back, .init = make_directory, .fini = remove_directory)
{
    static char bytes[200000];
    vqkvc_err err = {0};
    vqkvc_buf buf = {0};
    vqkvc_map map;
    const char *path = path_in("file");
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)(i * i >> 3);
    cr_assert_eq(vqkvc_write_file(path, "old", 3, &err), VQKVC_OK);
    cr_assert_eq(vqkvc_write_file(path, bytes, sizeof bytes, &err), VQKVC_OK);
    cr_assert_eq(count_entries(), 1);
    cr_assert_eq(vqkvc_read_file(path, sizeof bytes, &buf, &err), VQKVC_OK);
    cr_assert_eq(buf.len, sizeof bytes);
    cr_assert(memcmp(buf.data, bytes, sizeof bytes) == 0);
    cr_assert_eq(vqkvc_map_open(&map, path, &err), VQKVC_OK);
    cr_assert_eq(map.size, sizeof bytes);
    cr_assert(memcmp(map.data, bytes, sizeof bytes) == 0);
    vqkvc_map_close(&map);
    vqkvc_map_close(&map);
    cr_assert_eq(vqkvc_read_file(path, sizeof bytes - 1, &buf, &err), VQKVC_E_FORMAT);
    free(buf.data);
}

Test(file, permissions_follow_the_umask, .init = make_directory, .fini = remove_directory)
{
    vqkvc_err err = {0};
    struct stat st;
    umask(027);
    cr_assert_eq(vqkvc_write_file(path_in("file"), "x", 1, &err), VQKVC_OK);
    cr_assert_eq(stat(path_in("file"), &st), 0);
    cr_assert_eq(st.st_mode & 0777, 0640);
}

/* A limit on the size of files stands in for a full disk: write() comes up short, then fails. */
Test(file, a_full_disk_leaves_the_old_file_alone, .init = make_directory, .fini = remove_directory)
{
    static const char bytes[100000];
    struct rlimit limit, small;
    vqkvc_err err = {0}, later = {0};
    vqkvc_buf buf = {0};
    const char *path = path_in("file");
    cr_assert_eq(vqkvc_write_file(path, "old", 3, &err), VQKVC_OK);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &limit);
    small = limit;
    small.rlim_cur = 65536;
    setrlimit(RLIMIT_FSIZE, &small);
    vqkvc_code code = vqkvc_write_file(path, bytes, sizeof bytes, &err);
    setrlimit(RLIMIT_FSIZE, &limit);
    cr_assert_eq(code, VQKVC_E_IO);
    cr_assert(strstr(err.msg, path) != NULL, "the message does not name the file: %s", err.msg);
    cr_assert_eq(count_entries(), 1, "a temporary file was left behind");
    cr_assert_eq(vqkvc_read_file(path, 100, &buf, &later), VQKVC_OK);
    cr_assert_str_eq(buf.data, "old");
    free(buf.data);
}

Test(file, writing_into_a_missing_directory_fails, .init = make_directory, .fini = remove_directory)
{
    vqkvc_err err = {0};
    cr_assert_eq(vqkvc_write_file(path_in("none/file"), "x", 1, &err), VQKVC_E_IO);
    cr_assert(strstr(err.msg, "none/file") != NULL);
    cr_assert_eq(count_entries(), 0);
}

/* rename() onto a directory fails: the temporary name must go. */
Test(file, a_failed_rename_leaves_nothing, .init = make_directory)
{
    vqkvc_err err = {0};
    cr_assert_eq(mkdir(path_in("sub"), 0777), 0);
    cr_assert_eq(vqkvc_write_file(path_in("sub"), "x", 1, &err), VQKVC_E_IO);
    cr_assert_eq(count_entries(), 1);
    rmdir(path_in("sub"));
    remove_directory();
}

Test(file, an_empty_file_maps_to_nothing, .init = make_directory, .fini = remove_directory)
{
    vqkvc_err err = {0};
    vqkvc_map map;
    vqkvc_buf buf = {0};
    const char *path = path_in("file");
    cr_assert_eq(vqkvc_write_file(path, "", 0, &err), VQKVC_OK);
    cr_assert_eq(vqkvc_map_open(&map, path, &err), VQKVC_OK);
    cr_assert_null(map.data);
    cr_assert_eq(map.size, 0);
    vqkvc_map_close(&map);
    cr_assert_eq(vqkvc_read_file(path, 0, &buf, &err), VQKVC_OK);
    cr_assert_str_eq(buf.data, "");
    free(buf.data);
}

Test(file, only_regular_files_are_read, .init = make_directory, .fini = remove_directory)
{
    const char *paths[] = {directory, "/dev/zero", path_in("missing")};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        vqkvc_err err = {0}, again = {0};
        vqkvc_map map;
        vqkvc_buf buf = {0};
        cr_assert_eq(vqkvc_map_open(&map, paths[i], &err), VQKVC_E_IO);
        cr_assert(strstr(err.msg, paths[i]) != NULL);
        cr_assert_eq(vqkvc_read_file(paths[i], 1000, &buf, &again), VQKVC_E_IO);
        cr_assert(strstr(again.msg, paths[i]) != NULL);
        free(buf.data);
    }
}

/* ---- log and embed --------------------------------------------------------------------------- */

Test(log, the_level_decides_and_stderr_gets_it, .init = make_directory, .fini = remove_directory)
{
    vqkvc_err err = {0};
    vqkvc_buf buf = {0};
    vqkvc_log quiet = {-1}, normal = {0}, verbose = {1};
    vqkvc_progress progress;
    int saved = dup(2), fd = open(path_in("file"), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    dup2(fd, 2);
    vqkvc_say(&quiet, 0, "never");
    vqkvc_say(&normal, 1, "never");
    vqkvc_say(&verbose, 1, "one %d", 1);
    vqkvc_progress_begin(&progress, &quiet, "never", "tokens", 10);
    vqkvc_progress_end(&progress, 10);
    vqkvc_progress_begin(&progress, &normal, "capture", "tokens", 10);
    for (uint64_t i = 0; i < 10; i++)
        vqkvc_progress_step(&progress, i);
    vqkvc_progress_end(&progress, 10);
    dup2(saved, 2);
    cr_assert_eq(vqkvc_read_file(path_in("file"), 4096, &buf, &err), VQKVC_OK);
    cr_assert(strncmp(buf.data, "one 1\ncapture: 10 tokens in ", 28) == 0, "%s", buf.data);
    cr_assert_eq(strchr(buf.data, '\n') + 1, strstr(buf.data, "capture"));
    cr_assert_eq(strchr(strstr(buf.data, "capture"), '\n') + 1, buf.data + buf.len);
    free(buf.data);
}

Test(log, an_interrupt_sets_the_flag)
{
    vqkvc_catch_interrupts();
    cr_assert_not(vqkvc_interrupted());
    raise(SIGINT);
    cr_assert(vqkvc_interrupted());
}

VQKVC_EMBED(vqkvc_test_license, "LICENSE");

Test(embed, a_file_of_the_tree_is_in_the_program)
{
    vqkvc_err err = {0};
    vqkvc_buf buf = {0};
    cr_assert_eq(vqkvc_read_file("LICENSE", 100000, &buf, &err), VQKVC_OK);
    cr_assert_eq((size_t)(vqkvc_test_license_end - vqkvc_test_license), buf.len);
    cr_assert_str_eq(vqkvc_test_license, buf.data);
    free(buf.data);
}
