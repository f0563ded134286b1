/* fuzz_kvdb.c - any bytes as a store: open, list, show, verify, get, migrate, put, gc. */
#include <string.h>
#include <sys/stat.h>

#include "calib_db/kvdb_internal.h"
#include "fuzz.h"

/* A store needs a folder, for its logs; in memory if there is one. */
typedef struct place {
    char folder[64], path[80];
} place;

static place make_place(void)
{
    place p;
    struct stat st;
    int in_memory = stat("/dev/shm", &st) == 0 && access("/dev/shm", W_OK) == 0;
    snprintf(p.folder, sizeof p.folder, "%s/vqkvc_fuzz_XXXXXX", in_memory ? "/dev/shm" : "/tmp");
    if (mkdtemp(p.folder) == NULL)
        abort();
    snprintf(p.path, sizeof p.path, "%s/f.db", p.folder);
    return p;
}

static void remove_place(const place *p)
{
    static const char *const name[] = {"", "-wal", "-shm", "-journal"};
    for (size_t i = 0; i < sizeof name / sizeof name[0]; i++) {
        char file[96];
        snprintf(file, sizeof file, "%s%s", p->path, name[i]);
        unlink(file);
    }
    if (rmdir(p->folder) != 0)
        abort(); /* a store makes no other files */
}

static void write_bytes(const place *p, const uint8_t *data, size_t size)
{
    FILE *file = fopen(p->path, "wb");
    if (file == NULL || fwrite(data, 1, size, file) != size || fclose(file) != 0)
        abort();
}

/* What the bytes do not say must not come out: a blob that is handed out has its hash. */
static void read_everything(kvdb *db)
{
    static const char *const id[] = {"a1", "a2", "a3", "m1", "e1", "0", "f"};
    static const char *const recipe[] = {"tokens=16", "pca", "auto"};
    static const char *const kind[] = {"capture", "basis", "plan"};
    vqkvc_buf out = {0}, bytes = {0};
    vqkvc_arena arena = {0};
    for (int json = 0; json < 2; json++) {
        kvdb_ls(db, json, &out, &(vqkvc_err){0});
        for (size_t i = 0; i < sizeof id / sizeof id[0]; i++) {
            kvdb_show(db, id[i], json, &out, &(vqkvc_err){0});
            kvdb_export(db, id[i], &bytes, &(vqkvc_err){0});
        }
    }
    for (int i = 0; i < 3; i++) {
        kvdb_artifact a;
        int found;
        if (kvdb_find_artifact(db, kind[i], recipe[i], &arena, &a, &found, &(vqkvc_err){0}) ==
                VQKVC_OK &&
            found && kvdb_get_blob(db, &a.content, &bytes, &(vqkvc_err){0}) == VQKVC_OK &&
            strcmp(vqkvc_hash_bytes(bytes.data, bytes.len).hex, a.content.hex) != 0)
            abort();
    }
    kvdb_verify(db, &out, &(vqkvc_err){0});
    vqkvc_arena_free(&arena);
    free(out.data);
    free(bytes.data);
}

static void fill(kvdb *db, int with_evaluation, vqkvc_err *err)
{
    vqkvc_hash weights = vqkvc_hash_text("w");
    vqkvc_hash parent[2] = {kvdb_recipe_hash("capture", "tokens=16"),
                            kvdb_recipe_hash("basis", "pca")};
    char bytes[6000];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)(i * i >> 3);
    kvdb_model m = {weights, "toy", "llama", "{\"n_layers\": 2}"};
    kvdb_artifact capture = {.kind = "capture", .recipe = "tokens=16", .model = weights};
    kvdb_artifact basis = {.kind = "basis",
                           .recipe = "pca",
                           .model = weights,
                           .error_measure = "mse",
                           .error = 0.25,
                           .n_parents = 1,
                           .parents = parent};
    kvdb_artifact plan = {.kind = "plan", .recipe = "auto", .n_parents = 2, .parents = parent};
    kvdb_evaluation e = {kvdb_recipe_hash("plan", "auto"), weights, "auto2", "{\"kl\": 0.5}"};
    kvdb_put_model(db, &m, err);
    if (err->code == VQKVC_OK)
        kvdb_put_artifact(db, &capture, bytes, sizeof bytes, err);
    if (err->code == VQKVC_OK)
        kvdb_put_artifact(db, &basis, bytes, 100, err);
    if (err->code == VQKVC_OK)
        kvdb_put_artifact(db, &plan, bytes, 10, err);
    if (err->code == VQKVC_OK && with_evaluation)
        kvdb_put_evaluation(db, &e, err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    place p = make_place();
    kvdb *db;
    vqkvc_buf out = {0};
    write_bytes(&p, data, size);
    if (kvdb_open(&db, p.path, KVDB_READ_ONLY, &(vqkvc_err){0}) == VQKVC_OK)
        read_everything(db);
    kvdb_close(db);
    if (kvdb_open(&db, p.path, KVDB_READ_WRITE, &(vqkvc_err){0}) == VQKVC_OK) {
        fill(db, 1, &(vqkvc_err){0});
        read_everything(db);
        kvdb_gc(db, &out, &(vqkvc_err){0});
    }
    kvdb_close(db);
    remove_place(&p);
    free(out.data);
    return 0;
}

/* 0: three artifacts; 1: with an evaluation; 2: of the older schema. */
size_t fuzz_seed(int i, uint8_t *dst, size_t cap)
{
    if (i > 2)
        return 0;
    place p = make_place();
    vqkvc_err err = {0};
    kvdb *db;
    size_t n = 0;
    kvdb_open(&db, p.path, KVDB_READ_WRITE, &err);
    if (err.code == VQKVC_OK)
        fill(db, i == 1, &err);
    if (err.code == VQKVC_OK && i == 2)
        kvdb_sql_exec(db->sql, "go back to version 1",
                      "DROP INDEX artifact_by_content; DROP INDEX artifact_parent_by_parent; "
                      "PRAGMA user_version = 1",
                      &err);
    kvdb_close(db);
    FILE *file = err.code == VQKVC_OK ? fopen(p.path, "rb") : NULL;
    if (file != NULL) {
        n = fread(dst, 1, cap, file);
        fclose(file);
    }
    remove_place(&p);
    return n;
}
