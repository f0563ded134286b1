/* toy_emitted.h - the headers of toy plans. */
#ifndef VQKVC_TESTS_TOY_EMITTED_H
#define VQKVC_TESTS_TOY_EMITTED_H

#include "emitted.h"
#include "gen/gen.h"
#include "toy_plans.h"

/* The header of a toy plan; the caller frees out->data. */
static inline void emit(const toy_case *c, const char *prefix, vqkvc_buf *out)
{
    vqkvc_plan plan;
    vqkvc_err err = {0};
    gen_options options = {prefix, "vqkvc emit toy"};
    toy_plan(&plan, c);
    cr_assert_eq(gen_header(&plan, &options, out, &err), VQKVC_OK, "%s: %s", c->name, err.msg);
    vqkvc_plan_free(&plan);
}

/* The same as a file of the directory. */
static inline void emit_file(const toy_case *c, const char *prefix, const char *name)
{
    vqkvc_buf header = {0};
    emit(c, prefix, &header);
    write_text(name, header.data, header.len);
    free(header.data);
}

#endif
