/* kvdb.h - the store: one SQLite file with everything that calibration made, and from what.
 *
 * This is the only door; nothing else sees SQL. Large contents live in `blob`, keyed by the hash of
 * their bytes (content-addressed). Everything that was computed is an artifact with a *recipe*: a
 * text that names how and from which inputs it was made ("kmeans k=16 ... from=<hash>"). A build
 * asks for a recipe before it computes, which makes every step resumable. Each put is one
 * transaction: after kill -9 at any moment the store opens, and holds whole rows only. */
#ifndef KVDB_KVDB_H
#define KVDB_KVDB_H

#include <stddef.h>
#include <stdint.h>

#include "base/hash.h"
#include "base/memory.h"
#include "base/status.h"

typedef struct kvdb kvdb;

typedef enum kvdb_mode { KVDB_READ_ONLY, KVDB_READ_WRITE } kvdb_mode;

/* Opens path, creating it in KVDB_READ_WRITE; migrates an older schema in one transaction, refuses
 * a newer one and a file that is no vqkvc store with a message that says so. WAL,
 * synchronous=NORMAL, a busy timeout. */
vqkvc_code kvdb_open(kvdb **db, const char *path, kvdb_mode mode, vqkvc_err *err);
void kvdb_close(kvdb *db);

/* ---- blobs ---- */

/* Stores n bytes under their hash (nothing happens if they are there); *hash out. */
vqkvc_code kvdb_put_blob(kvdb *db, const void *bytes, size_t n, vqkvc_hash *hash, vqkvc_err *err);
/* Reads a blob into buf and checks its hash. */
vqkvc_code kvdb_get_blob(kvdb *db, const vqkvc_hash *hash, vqkvc_buf *buf, vqkvc_err *err);

/* ---- rows ---- */

typedef struct kvdb_model {
    vqkvc_hash weights; /* key */
    const char *name, *arch;
    const char *geometry_json;
} kvdb_model;

/* What a row was made from and where its bytes are. One table serves captures, bases, codebooks,
 * adapters, grids, plans and headers: they differ by kind. */
typedef struct kvdb_artifact {
    const char *kind;   /* "capture", "capture-shard", "sensitivity", "loss", "basis", "codebook",
                           "predictor", "grid", "report", "request", "cost-model", "plan", "header" */
    const char *recipe; /* unique together with kind */
    vqkvc_hash content; /* blob */
    vqkvc_hash model;   /* weights hash, or "" for what belongs to no model */
    const char *error_measure; /* what `error` is: "relative weighted mse"; "" for none */
    double error;
    size_t n_parents;
    const vqkvc_hash
        *parents; /* recipe hashes (kvdb_recipe_hash) of the artifacts it was made from */
    /* filled in by kvdb_find_artifact and kvdb_list */
    int64_t id;
    size_t n_bytes;
} kvdb_artifact;

typedef struct kvdb_evaluation {
    vqkvc_hash plan;   /* recipe hash of the plan artifact */
    vqkvc_hash text;   /* of the evaluation tokens */
    const char *label; /* "auto2", "higgs2", ... */
    const char *result_json;
} kvdb_evaluation;

vqkvc_hash kvdb_recipe_hash(const char *kind, const char *recipe);

vqkvc_code kvdb_put_model(kvdb *db, const kvdb_model *model, vqkvc_err *err);
/* Stores bytes and row in one transaction; a row of the same kind and recipe is replaced. content,
 * id and n_bytes of *a are filled in. */
vqkvc_code kvdb_put_artifact(kvdb *db, kvdb_artifact *a, const void *bytes, size_t n,
                             vqkvc_err *err);
/* *found = 0 and VQKVC_OK if there is none. Strings live in arena. */
vqkvc_code kvdb_find_artifact(kvdb *db, const char *kind, const char *recipe, vqkvc_arena *arena,
                              kvdb_artifact *a, int *found, vqkvc_err *err);
/* Whether a recipe of this kind begins so: where the rest of it is dear to know. */
vqkvc_code kvdb_has_artifact(kvdb *db, const char *kind, const char *beginning, int *found,
                             vqkvc_err *err);
vqkvc_code kvdb_put_evaluation(kvdb *db, const kvdb_evaluation *e, vqkvc_err *err);
/* Appends the result of the evaluation with the key plan, text and label of *e (result_json is not
 * looked at). *found = 0 and VQKVC_OK if there is none. */
vqkvc_code kvdb_find_evaluation(kvdb *db, const kvdb_evaluation *e, vqkvc_buf *result_json,
                                int *found, vqkvc_err *err);

/* ---- for people ---- */

/* What `vqkvc db ls`, `db show ID` and `db verify` print, as text or JSON. ID: a row id ("a12",
 * "m1", "e3") or an unambiguous beginning of a hash. */
vqkvc_code kvdb_ls(kvdb *db, int json, vqkvc_buf *out, vqkvc_err *err);
vqkvc_code kvdb_show(kvdb *db, const char *id, int json, vqkvc_buf *out, vqkvc_err *err);
/* Checks SQLite's own integrity, every blob's hash, and that every reference leads somewhere.
 * Fails with VQKVC_E_STORE after having listed all that is wrong in out. */
vqkvc_code kvdb_verify(kvdb *db, vqkvc_buf *out, vqkvc_err *err);
/* Deletes artifact rows that no plan, header or evaluation leads to, and blobs without rows. */
vqkvc_code kvdb_gc(kvdb *db, vqkvc_buf *out, vqkvc_err *err);
/* The newest header of a model: for `vqkvc eval --db` and scripts. */
vqkvc_code kvdb_export(kvdb *db, const char *id, vqkvc_buf *bytes, vqkvc_err *err);

#endif
