/* What a capture leaves of its files: where a search for bits measures. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "capture/source.h"

enum { FILES = 2, IDS = 1500, WINDOW = 64, VOCAB = 4000 };

static const vqkvc_log quiet = {.level = -1};

static vqkvc_model *model;
static char paths[FILES][64];

/* No id occurs twice in all files, so that an id says where it is from. */
static void write_files(void)
{
    vqkvc_err err = {0};
    int32_t ids[IDS];
    cr_assert_eq(vqkvc_model_open(&model, "examples/models/ref7m.gguf", 0, &err), VQKVC_OK, "%s",
                 err.msg);
    for (int file = 0; file < FILES; file++) {
        snprintf(paths[file], sizeof paths[file], "/tmp/vqkvc_spare_%ld_%d.i32", (long)getpid(),
                 file);
        for (int i = 0; i < IDS; i++)
            ids[i] = 3 + file * IDS + i;
        cr_assert_eq(vqkvc_write_file(paths[file], ids, sizeof ids, &err), VQKVC_OK, "%s", err.msg);
    }
}

static void remove_files(void)
{
    for (int file = 0; file < FILES; file++)
        unlink(paths[file]);
    vqkvc_model_close(model);
}

TestSuite(spare, .init = write_files, .fini = remove_files);

static vqkvc_source source_of(int n_tokens, int random_windows)
{
    vqkvc_err err = {0};
    vqkvc_source s;
    const char *const files[FILES] = {paths[0], paths[1]};
    vqkvc_capture_params p = {
        .n_tokens = n_tokens, .window = WINDOW, .random_windows = random_windows, .seed = 3};
    cr_assert_eq(vqkvc_source_ids(&s, model, files, FILES, &p, &quiet, &err), VQKVC_OK, "%s",
                 err.msg);
    return s;
}

static int cut(const vqkvc_source *s, int n_windows, int context, int32_t *windows)
{
    vqkvc_err err = {0};
    int found;
    cr_assert_eq(vqkvc_source_spare(s, n_windows, context, windows, &found, &err), VQKVC_OK);
    return found;
}

/* Windows hold no id of the capture, none twice, and run on within one file; longer ones than the
 * capture's are possible. */
Test(spare, windows_are_of_what_the_capture_left)
{
    for (int i = 0; i < 4; i++) {
        enum { N = 3, CONTEXT = 100 };
        unsigned char seen[VOCAB] = {0};
        int32_t windows[N * CONTEXT];
        vqkvc_source s = source_of(i < 2 ? 640 : 1000, i % 2);
        for (int64_t t = 0; t < s.start[s.n_seq]; t++)
            seen[s.ids[t]] = s.ids[t] != s.bos;
        cr_assert(cut(&s, N, CONTEXT, windows));
        for (int w = 0; w < N; w++) {
            const int32_t *x = windows + w * CONTEXT;
            cr_expect(s.bos < 0 || x[0] == s.bos);
            for (int t = s.bos >= 0; t < CONTEXT; t++) {
                cr_expect_not(seen[x[t]], "window %d, token %d: id %d", w, t, (int)x[t]);
                seen[x[t]] = 1;
                cr_expect(t < 2 || x[t] == x[t - 1] + 1, "id %d follows %d", (int)x[t],
                          (int)x[t - 1]);
                cr_expect((x[t] - 3) / IDS == (x[CONTEXT - 1] - 3) / IDS, "across files");
            }
        }
        vqkvc_source_free(&s);
    }
}

/* A capture of everything leaves nothing, and other files another rest. */
Test(spare, nothing_is_found_where_nothing_is_left)
{
    int32_t window[WINDOW];
    vqkvc_source all = source_of(FILES * IDS * 2, 0), some = source_of(640, 0);
    cr_expect_not(cut(&all, 1, WINDOW, window));
    cr_expect(cut(&some, 1, WINDOW, window));
    cr_expect_not(cut(&some, 1, IDS, window), "no run is that long");
    cr_expect_str_neq(all.spare_hash.hex, some.spare_hash.hex);
    vqkvc_source_free(&all);
    vqkvc_source_free(&some);
}
