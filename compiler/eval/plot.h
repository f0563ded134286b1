/* plot.h - a picture of a table: error against bits, both on logarithmic axes, as an SVG that needs
 * no font, script or style from elsewhere and suits light and dark pages. Same points, same bytes.
 */
#ifndef VQKVC_EVAL_PLOT_H
#define VQKVC_EVAL_PLOT_H

#include "base/memory.h"

/* label and family are borrowed. Points of one family are joined by a line in the order of x; a
 * point with family NULL stands by itself. */
typedef struct vqkvc_plot_point {
    const char *label, *family;
    double x, y; /* x > 0; a y below 1e-9 is drawn there */
} vqkvc_plot_point;

typedef struct vqkvc_plot {
    const char *title, *x_title, *y_title; /* borrowed */
} vqkvc_plot;

/* Appends the picture of n points, all of them finite. */
void vqkvc_plot_svg(const vqkvc_plot *plot, const vqkvc_plot_point *points, int n, vqkvc_buf *out);

#endif
