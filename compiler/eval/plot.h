/* plot.h - a picture of a table: error against bits, both on logarithmic axes, one panel a text,
 * one line a family of schemes, as an SVG that needs no font, script or style from elsewhere and
 * suits light and dark pages. Same points, same bytes. */
#ifndef VQKVC_EVAL_PLOT_H
#define VQKVC_EVAL_PLOT_H

#include "base/memory.h"

/* label and family are borrowed. Points of one family are joined by a line in the order in which
 * they are given: that of their rates, though bits in all need not rise with them. */
typedef struct vqkvc_plot_point {
    const char *label, *family;
    double x, y; /* x > 0; a y below 1e-6 is drawn there */
} vqkvc_plot_point;

typedef struct vqkvc_plot_panel {
    const char *title, *x_title; /* borrowed */
    int n;
    const vqkvc_plot_point *points; /* [n], all finite */
} vqkvc_plot_panel;

typedef struct vqkvc_plot {
    const char *title, *y_title; /* borrowed */
    const char *main_family;     /* drawn thicker, its points labelled; or NULL */
} vqkvc_plot;

/* Appends the picture of n_panels panels side by side, on the same axes, with one legend. */
void vqkvc_plot_svg(const vqkvc_plot *plot, const vqkvc_plot_panel *panels, int n_panels,
                    vqkvc_buf *out);

#endif
