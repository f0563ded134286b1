/* recipes.h - plans that `auto` made of the bundled model, for synthetic ones of other shapes. */
#ifndef VQKVC_EVAL_RECIPES_H
#define VQKVC_EVAL_RECIPES_H

#include "plan/allocate.h"
#include "plan/plan.h"

enum {
    VQKVC_RECIPE_LAYERS = 8,
    VQKVC_RECIPE_HEADS = 2,
    VQKVC_RECIPE_DIM = 64,   /* channels of a head that a recipe counts groups for */
    VQKVC_RECIPE_SHARING = 4 /* layers of a shared stream, which has both heads of each */
};

/* Groups of one stream, by the options of vqkvc_allocate_option(); all 0: there is no stream. */
typedef struct vqkvc_recipe_stream {
    short groups[VQKVC_LAYOUT_RUNS];
} vqkvc_recipe_stream;

typedef struct vqkvc_recipe {
    const char *name;
    vqkvc_frame frame; /* of keys */
    /* K and V, layer by layer */
    vqkvc_recipe_stream own[2][VQKVC_RECIPE_LAYERS * VQKVC_RECIPE_HEADS];
    vqkvc_recipe_stream shared[2][VQKVC_RECIPE_LAYERS / VQKVC_RECIPE_SHARING];
} vqkvc_recipe;

/* The recipe whose name is the n characters at `name`, or NULL. */
const vqkvc_recipe *vqkvc_recipe_of(const char *name, size_t n);

#endif
