/* schemes.h - the table of schemes: what each is called, takes and is made by.
 *
 * A new scheme is one line of VQKVC_SCHEME_LIST, its maker in schemes.c and, if it has options of
 * its own, their rows in options_scheme.c under a mark of options.h. The choice of --scheme, help,
 * recipes, the canonical command line, `vqkvc eval --schemes` and `vqkvc suite` follow from that.
 */
#ifndef VQKVC_COMMAND_SCHEMES_H
#define VQKVC_COMMAND_SCHEMES_H

#include <jansson.h>

#include "calib_db/kvdb.h"
#include "capture/capture.h"
#include "capture/source.h"
#include "command/options.h"
#include "model/model.h"
#include "plan/plan.h"

/* Name, the rate that may stand behind it in lists ("" for none), whether it takes a capture, marks
 * of its own options, maker, check of its options, one line of help. The first row by FIRST, all
 * others by X. */
#define VQKVC_SCHEME_LIST(FIRST, X)                                                                \
    FIRST("auto", "", 1, VQKVC_GIVEN_BITS | VQKVC_GIVEN_AUTO, vqkvc_fit_auto,                      \
          vqkvc_fit_auto_check,                                                                    \
          "ours: learned bases, streams shared by layers, nibbles by dynamic programming")         \
    X("vqkv", "2.75", 1, VQKVC_GIVEN_VQKV, make_vqkv, check_vqkv,                                  \
      "VQKV: residual codebooks of whole head vectors, 2.75 bits")                                 \
    X("f16", "", 0, 0, make_preset, no_check, "the exact cache, in fp16")                          \
    X("q8_0", "", 0, 0, make_preset, no_check,                                                     \
      "llama.cpp's q8_0: 8 bits, a scale for 32 channels")                                         \
    X("q4_0", "", 0, 0, make_preset, no_check,                                                     \
      "llama.cpp's q4_0: 4 bits, a scale for 32 channels")                                         \
    X("higgs2", "", 0, 0, make_preset, no_check, "HIGGS: Hadamard and a Gaussian grid, 2 bits")    \
    X("higgs3", "", 0, 0, make_preset, no_check, "the same at 3 bits")                             \
    X("higgs4", "", 0, 0, make_preset, no_check, "the same at 4 bits")                             \
    X("kivi2", "", 0, 0, make_preset, no_check,                                                    \
      "KIVI: ranges of channels for K, of tokens for V, 2 bits")                                   \
    X("kivi4", "", 0, 0, make_preset, no_check, "the same at 4 bits")                              \
    X("turbo2", "", 0, 0, make_preset, no_check,                                                   \
      "TurboQuant: random rotation and scalar levels, 2 bits")                                     \
    X("turbo3", "", 0, 0, make_preset, no_check, "the same at 3 bits")                             \
    X("turbo4", "", 0, 0, make_preset, no_check, "the same at 4 bits")                             \
    X("nsn2", "", 0, 0, make_preset, no_check,                                                     \
      "NSNQuant: normalise, shift, normalise, Gaussian grid, 2 bits")                              \
    X("kvquant2", "", 1, VQKVC_GIVEN_KVQUANT, make_kvquant, no_check,                              \
      "KVQuant: non-uniform levels, un-rotated keys, 2 bits")                                      \
    X("kvquant3", "", 1, VQKVC_GIVEN_KVQUANT, make_kvquant, no_check, "the same at 3 bits")        \
    X("kvquant4", "", 1, VQKVC_GIVEN_KVQUANT, make_kvquant, no_check, "the same at 4 bits")        \
    X("svdq", "1.25", 1, VQKVC_GIVEN_SVDQ, make_svdq, check_svdq,                                  \
      "SVDq: singular vectors of un-rotated keys, mixed bits; values of another scheme")           \
    X("aqua", "", 1, VQKVC_GIVEN_BITS | VQKVC_GIVEN_HEADS | VQKVC_GIVEN_AQUA, make_aqua,           \
      check_aqua, "AQUA-KV: predicted from the layer below, HIGGS for the rest; bits 2, 3 or 4")   \
    X("anchor", "", 1, VQKVC_GIVEN_BITS | VQKVC_GIVEN_HEADS | VQKVC_GIVEN_ANCHOR, make_anchor,     \
      check_anchor, "ours: predicted from every n-th layer, nothing rebuilt; bits 2, 3 or 4")

/* What a plan is made from. */
typedef struct vqkvc_scheme_input {
    const vqkvc_options *options;
    vqkvc_model *model; /* NULL: an imported dump */
    const vqkvc_geometry *geometry;
    const vqkvc_capture *capture; /* of schemes that take one */
    const vqkvc_hash *parent;     /* recipe hash of the capture */
    const vqkvc_source *source;   /* what the capture saw, where a model did */
    kvdb *db;                     /* for fitted parts; may be NULL */
    json_t *report;               /* array that gets what a fit says of itself: report.h */
    const vqkvc_log *log;
} vqkvc_scheme_input;

typedef struct vqkvc_scheme {
    const char *name; /* the word of --scheme */
    const char *rate; /* what may stand behind it in lists: its bits a value */
    int calibrated;   /* it takes a capture */
    unsigned takes;   /* VQKVC_GIVEN_* of the options that are its own */
    /* *plan is overwritten, and empty after a failure. */
    vqkvc_code (*make)(const vqkvc_scheme_input *in, vqkvc_plan *plan, vqkvc_err *err);
    /* Refuses values of options that `make` would refuse after the capture. g: NULL where the model
     * is not known yet. */
    vqkvc_code (*check)(const vqkvc_options *o, const vqkvc_geometry *g, vqkvc_err *err);
    const char *summary;
} vqkvc_scheme;

/* Row i of the table, NULL behind the last. */
const vqkvc_scheme *vqkvc_scheme_at(int i);
/* The scheme of a command line, whose --scheme has been checked by the parser. */
const vqkvc_scheme *vqkvc_scheme_of(const vqkvc_options *o);

/* Sets scheme and rate as a word of a list names them: a scheme ("kivi2"); one with its bits behind
 * it ("auto1.5", where --bits is an option of the scheme, "svdq2"); one with what makes it another
 * behind a hyphen (the percentage of outliers in "kvquant2-1", the values in "svdq-higgs2"). Fails
 * with VQKVC_E_USAGE if there is no such scheme, or it has no such rate. The other options stay as
 * they are. word is not kept. */
vqkvc_code vqkvc_scheme_apply(const char *word, vqkvc_options *o, vqkvc_err *err);

/* Refuses options that belong to other schemes, and values that the scheme cannot do: before a
 * model is read (g NULL), and once its geometry is known. */
vqkvc_code vqkvc_scheme_check(const vqkvc_options *o, const vqkvc_geometry *g, vqkvc_err *err);

/* Appends what a plan depends on besides its source: the scheme and the values of all its options,
 * ";scheme=auto;bits=2;...". */
void vqkvc_scheme_recipe(const vqkvc_options *o, vqkvc_buf *out);

/* Appends the part of a canonical command line that names scheme and options. */
void vqkvc_scheme_canonical(const vqkvc_options *o, vqkvc_buf *out);

#endif
