/* test_kvdb_harm.c - the store survives kills, full disks and other processes, and notices damage.
 */
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "base/rng.h"
#include "kvdb_fixture.h"

/* ---- kills, full disks, other processes ---- */

#define BIG 30000

/* Artifacts numbered from 0, with contents that follow from the number. */
static void make_content(int i, char bytes[BIG])
{
    vqkvc_rng rng = vqkvc_rng_make(7, (uint64_t)i);
    for (int j = 0; j < BIG; j++)
        bytes[j] = (char)vqkvc_rng_u64(&rng);
}

static vqkvc_code put_numbered(kvdb *db, const char *kind, int i, vqkvc_err *err)
{
    char recipe[32], bytes[BIG];
    snprintf(recipe, sizeof recipe, "number %d", i);
    make_content(i, bytes);
    kvdb_artifact a = {.kind = kind, .recipe = recipe};
    return kvdb_put_artifact(db, &a, bytes, sizeof bytes, err);
}

/* How many artifacts are there, counted from number 0; all of them are whole. */
static int count_numbered(kvdb *db, const char *kind)
{
    vqkvc_arena arena = {0};
    vqkvc_buf buf = {0};
    vqkvc_err err = {0};
    int found = 1, i;
    for (i = 0; found; i++) {
        char recipe[32], bytes[BIG];
        kvdb_artifact a;
        snprintf(recipe, sizeof recipe, "number %d", i);
        OK(kvdb_find_artifact(db, kind, recipe, &arena, &a, &found, &err));
        if (!found)
            break;
        make_content(i, bytes);
        OK(kvdb_get_blob(db, &a.content, &buf, &err));
        cr_assert(buf.len == BIG && memcmp(buf.data, bytes, BIG) == 0);
    }
    vqkvc_arena_free(&arena);
    free(buf.data);
    return i;
}

/* In a forked child: puts artifacts first, first + 1, ... until it is killed or has put n. */
static void put_in_child(const char *kind, int first, int n)
{
    vqkvc_err err = {0};
    kvdb *db;
    if (kvdb_open(&db, path, KVDB_READ_WRITE, &err) != VQKVC_OK) {
        fprintf(stderr, "%s\n", err.msg);
        _exit(1);
    }
    db->chunk_bytes = 7000;
    for (int i = first; i < first + n; i++) {
        if (put_numbered(db, kind, i, &err) != VQKVC_OK) {
            fprintf(stderr, "%s\n", err.msg);
            _exit(2);
        }
    }
    kvdb_close(db);
    _exit(0);
}

static pid_t start_child(const char *kind, int first, int n)
{
    pid_t child = fork();
    cr_assert_geq(child, 0);
    if (child == 0)
        put_in_child(kind, first, n);
    return child;
}

Test(kvdb, a_kill_at_any_moment_leaves_whole_rows)
{
    vqkvc_rng rng = vqkvc_rng_make(3, 0);
    int n = 0, grew = 0;
    for (int round = 0; round < 24; round++) {
        /* The first rounds hit the making of the file, where little time goes by. */
        useconds_t longest = round < 8 ? 8000 : 40000;
        pid_t child = start_child("capture-shard", n, 1 << 20);
        usleep((useconds_t)vqkvc_rng_below(&rng, longest));
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        kvdb *db = open_store(KVDB_READ_WRITE);
        int now = count_numbered(db, "capture-shard");
        cr_assert_geq(now, n, "what was stored stays stored");
        grew += now > n;
        n = now;
        expect_clean(db);
        kvdb_close(db);
    }
    cr_assert_gt(grew, 4, "the children got to put something");
}

Test(kvdb, a_full_disk_fails_the_put_and_nothing_else)
{
    kvdb *db = open_store(KVDB_READ_WRITE);
    vqkvc_err err = {0};
    OK(put_numbered(db, "capture", 0, &err));
    kvdb_close(db);
    pid_t child = fork();
    cr_assert_geq(child, 0);
    if (child == 0) {
        struct rlimit limit = {200000, 200000};
        signal(SIGXFSZ, SIG_IGN);
        if (setrlimit(RLIMIT_FSIZE, &limit) != 0 ||
            kvdb_open(&db, path, KVDB_READ_WRITE, &err) != VQKVC_OK)
            _exit(1);
        int i = 1;
        while (i < 100 && put_numbered(db, "capture", i, &err) == VQKVC_OK)
            i++;
        kvdb_close(db);
        _exit(err.code == VQKVC_E_STORE && strstr(err.msg, path) != NULL && i > 1 ? 0 : 2);
    }
    int status;
    waitpid(child, &status, 0);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", status);
    db = open_store(KVDB_READ_WRITE);
    int n = count_numbered(db, "capture");
    cr_assert(n >= 2 && n < 100, "%d", n);
    expect_clean(db);
    OK(put_numbered(db, "capture", n, &err));
    cr_assert_eq(count_numbered(db, "capture"), n + 1);
    kvdb_close(db);
}

Test(kvdb, processes_put_at_the_same_time)
{
    static const char *const kind[] = {"basis", "codebook", "predictor"};
    pid_t child[3];
    for (int i = 0; i < 3; i++)
        child[i] = start_child(kind[i], 0, 25);
    for (int i = 0; i < 3; i++) {
        int status;
        waitpid(child[i], &status, 0);
        cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", status);
    }
    kvdb *db = open_store(KVDB_READ_ONLY);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(count_numbered(db, kind[i]), 25);
    expect_clean(db);
    kvdb_close(db);
}

Test(kvdb, a_locked_file_is_named_after_the_wait)
{
    vqkvc_err err = {0};
    kvdb *first = open_store(KVDB_READ_WRITE), *second = open_store(KVDB_READ_WRITE);
    kvdb_sql_set_timeout(second->sql, 50);
    OK(kvdb_begin(first, &err));
    REFUSED(put_numbered(second, "basis", 0, &refusal),
            "locked by another process (waited 0.05 s)");
    REFUSED(put_numbered(second, "basis", 0, &refusal), path);
    OK(kvdb_end(first, &err));
    OK(put_numbered(second, "basis", 0, &err));
    kvdb_close(first);
    kvdb_close(second);
}

/* ---- damage ---- */

/* kvdb_verify() fails, and lists words. */
static void expect_fault(kvdb *db, const char *words)
{
    vqkvc_err err = {0};
    vqkvc_buf out = {0};
    cr_assert_eq(kvdb_verify(db, &out, &err), VQKVC_E_STORE);
    cr_assert_not_null(strstr(out.data, words), "'%s' lacks '%s'", out.data, words);
    free(out.data);
}

/* Flips one bit of the first place in the file that holds these words. */
static void damage(const char *words)
{
    vqkvc_buf file = read_all();
    char *at = memmem(file.data, file.len, words, strlen(words));
    cr_assert_not_null(at);
    at[3] ^= 1;
    write_all(file.data, file.len);
    free(file.data);
}

Test(kvdb, a_flipped_bit_is_found_named_and_mended_by_a_new_put)
{
    vqkvc_hash hash = vqkvc_hash_text("basis bytes");
    vqkvc_buf buf = {0};
    kvdb *db = open_store(KVDB_READ_WRITE);
    fill(db);
    kvdb_close(db);
    damage("basis bytes");
    db = open_store(KVDB_READ_WRITE);
    REFUSED(kvdb_get_blob(db, &hash, &buf, &refusal), hash.hex);
    REFUSED(kvdb_export(db, "a2", &buf, &refusal), "damaged");
    cr_assert_eq(buf.len, 0, "damaged bytes are not handed out");
    expect_fault(db, hash.hex);
    expect_fault(db, "a2 basis pca layer=3");
    put(db, "basis", "pca layer=3", "capture", "tokens=4096 seed=1", "basis bytes");
    expect_clean(db);
    kvdb_close(db);
    free(buf.data);
}

Test(kvdb, verify_lists_all_that_is_wrong)
{
    kvdb *db = open_store(KVDB_READ_WRITE);
    fill(db);
    kvdb_close(db);
    run_sql(
        "PRAGMA foreign_keys = OFF;"
        "DELETE FROM blob_chunk WHERE bytes = CAST('plan bytes' AS BLOB);"
        "DELETE FROM model; UPDATE artifact SET recipe = 'forged' WHERE id = 5;"
        "DELETE FROM artifact WHERE id = 1;"
        "UPDATE blob SET n = 1000000000000 WHERE n = 11;"
        "INSERT INTO blob_chunk VALUES ('stray', 0, x'00');"
        "UPDATE evaluation SET plan = 'gone'; UPDATE artifact SET content = 'lost' WHERE id = 4");
    db = open_store(KVDB_READ_ONLY);
    expect_fault(db, "has 0 bytes instead of 10");
    expect_fault(db, "a2: its model");
    expect_fault(db, "a5: the recipe has another hash");
    expect_fault(db, "the parent of");
    expect_fault(db, "claims 1000000000000 bytes");
    expect_fault(db, "blob stray: chunk 0 has no blob");
    expect_fault(db, "e1: its plan gone is missing");
    expect_fault(db, "a4: its blob lost is missing");
    kvdb_close(db);
}
