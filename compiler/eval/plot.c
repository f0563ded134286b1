#include "eval/plot.h"

#include <math.h>
#include <string.h>

#define LEAST_Y 1e-9
#define LEAST_X 1e-3

enum {
    WIDTH = 760,
    HEIGHT = 460,
    LEFT = 76,
    RIGHT = 24,
    TOP = 44,
    BOTTOM = 56,
    N_COLOURS = 4 /* of families; more begin again */
};

/* The ranges of the axes: whole powers of two in x, of ten in y. */
typedef struct frame {
    int x_first, x_last; /* log2 */
    int y_first, y_last; /* log10 */
} frame;

static const char *const STYLE =
    "<style>\n"
    "text{font-family:sans-serif;font-size:12px;fill:#24292f}\n"
    ".title{font-size:14px;font-weight:bold}\n"
    ".grid{stroke:#d0d7de;stroke-width:1}\n"
    ".axis{stroke:#57606a;stroke-width:1;fill:none}\n"
    ".line{stroke-width:2;fill:none}\n"
    ".f0{stroke:#0969da}.f1{stroke:#bf3989}.f2{stroke:#1a7f37}.f3{stroke:#9a6700}\n"
    ".p0{fill:#0969da}.p1{fill:#bf3989}.p2{fill:#1a7f37}.p3{fill:#9a6700}\n"
    ".alone{fill:#57606a}\n"
    "@media (prefers-color-scheme:dark){\n"
    "text{fill:#e6edf3}.grid{stroke:#30363d}.axis{stroke:#8d96a0}.alone{fill:#8d96a0}\n"
    ".f0{stroke:#58a6ff}.f1{stroke:#f778ba}.f2{stroke:#3fb950}.f3{stroke:#d29922}\n"
    ".p0{fill:#58a6ff}.p1{fill:#f778ba}.p2{fill:#3fb950}.p3{fill:#d29922}\n"
    "}\n"
    "</style>\n";

static void put_escaped(vqkvc_buf *out, const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text == '&')
            vqkvc_buf_puts(out, "&amp;");
        else if (*text == '<')
            vqkvc_buf_puts(out, "&lt;");
        else if (*text == '>')
            vqkvc_buf_puts(out, "&gt;");
        else if ((unsigned char)*text < ' ')
            vqkvc_buf_puts(out, "?"); /* XML 1.0 has no way to write most of them */
        else
            vqkvc_buf_put(out, text, 1);
    }
}

static double log_x(const vqkvc_plot_point *p)
{
    return log2(fmax(p->x, LEAST_X));
}

static double log_y(const vqkvc_plot_point *p)
{
    return log10(fmax(p->y, LEAST_Y));
}

static frame find_frame(const vqkvc_plot_point *points, int n)
{
    double x0 = n > 0 ? log_x(&points[0]) : 0, x1 = x0, y0 = n > 0 ? log_y(&points[0]) : 0, y1 = y0;
    for (int i = 1; i < n; i++) {
        x0 = fmin(x0, log_x(&points[i]));
        x1 = fmax(x1, log_x(&points[i]));
        y0 = fmin(y0, log_y(&points[i]));
        y1 = fmax(y1, log_y(&points[i]));
    }
    frame f = {(int)floor(x0), (int)ceil(x1), (int)floor(y0), (int)ceil(y1)};
    f.x_last += f.x_last == f.x_first;
    f.y_last += f.y_last == f.y_first;
    return f;
}

/* Pixels of a logarithm on an axis. */
static double pixel_x(const frame *f, double x)
{
    return LEFT + (WIDTH - LEFT - RIGHT) * (x - f->x_first) / (f->x_last - f->x_first);
}

static double pixel_y(const frame *f, double y)
{
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - f->y_first) / (f->y_last - f->y_first);
}

static void put_text(vqkvc_buf *out, const char *attributes, double x, double y, const char *text)
{
    vqkvc_buf_printf(out, "<text x=\"%.1f\" y=\"%.1f\"%s>", x, y, attributes);
    put_escaped(out, text);
    vqkvc_buf_puts(out, "</text>\n");
}

static void put_axes(const vqkvc_plot *plot, const frame *f, vqkvc_buf *out)
{
    for (int e = f->x_first; e <= f->x_last; e++) {
        double x = pixel_x(f, e);
        vqkvc_buf_printf(out,
                         "<line class=\"grid\" x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\"/>\n"
                         "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g</text>\n",
                         x, TOP, x, HEIGHT - BOTTOM, x, HEIGHT - BOTTOM + 18, exp2(e));
    }
    for (int e = f->y_first; e <= f->y_last; e++) {
        double y = pixel_y(f, e);
        vqkvc_buf_printf(out,
                         "<line class=\"grid\" x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\"/>\n"
                         "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">1e%d</text>\n",
                         LEFT, y, WIDTH - RIGHT, y, LEFT - 8, y + 4, e);
    }
    vqkvc_buf_printf(out, "<path class=\"axis\" d=\"M%d %dV%dH%d\"/>\n", LEFT, TOP, HEIGHT - BOTTOM,
                     WIDTH - RIGHT);
    put_text(out, " class=\"title\" text-anchor=\"middle\"", WIDTH / 2.0, 24, plot->title);
    put_text(out, " text-anchor=\"middle\"", (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 14,
             plot->x_title);
    vqkvc_buf_printf(out, "<g transform=\"translate(20 %.1f) rotate(-90)\">",
                     (TOP + HEIGHT - BOTTOM) / 2.0);
    put_text(out, " text-anchor=\"middle\"", 0, 0, plot->y_title);
    vqkvc_buf_puts(out, "</g>\n");
}

/* The family's number in the order of first points, -1 for none. */
static int family_of(const vqkvc_plot_point *points, int i)
{
    int n = 0;
    if (points[i].family == NULL)
        return -1;
    for (int j = 0; j < i; j++) {
        int is_first = points[j].family != NULL;
        if (is_first && strcmp(points[j].family, points[i].family) == 0)
            return family_of(points, j);
        for (int k = 0; k < j && is_first; k++)
            is_first = points[k].family == NULL || strcmp(points[k].family, points[j].family) != 0;
        n += is_first;
    }
    return n;
}

/* The point of the family that follows x, i itself the latest one: by x, then by index; -1 at the
 * end. i < 0 asks for the first. */
static int next_point(const vqkvc_plot_point *points, int n, int family, int i)
{
    int best = -1;
    for (int j = 0; j < n; j++) {
        int is_behind = i < 0 || points[j].x > points[i].x || (points[j].x == points[i].x && j > i);
        if (is_behind && family_of(points, j) == family &&
            (best < 0 || points[j].x < points[best].x))
            best = j;
    }
    return best;
}

static void put_line(const frame *f, const vqkvc_plot_point *points, int n, int family,
                     vqkvc_buf *out)
{
    int i = next_point(points, n, family, -1);
    if (i < 0)
        return;
    vqkvc_buf_printf(out, "<path class=\"line f%d\" d=\"", family % N_COLOURS);
    for (const char *move = "M"; i >= 0; i = next_point(points, n, family, i), move = "L")
        vqkvc_buf_printf(out, "%s%.1f %.1f", move, pixel_x(f, log_x(&points[i])),
                         pixel_y(f, log_y(&points[i])));
    vqkvc_buf_puts(out, "\"/>\n");
}

/* A family's labels stand below its falling line, others above their points; at the right edge they
 * end at the point. */
static void put_point(const frame *f, const vqkvc_plot_point *p, int family, vqkvc_buf *out)
{
    double x = pixel_x(f, log_x(p)), y = pixel_y(f, log_y(p));
    int below = family >= 0 && y + 16 < HEIGHT - BOTTOM;
    int before = family >= 0 ? x - 60 > LEFT : x + 60 > WIDTH - RIGHT;
    if (family >= 0)
        vqkvc_buf_printf(out, "<circle class=\"p%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"4\"/>\n",
                         family % N_COLOURS, x, y);
    else
        vqkvc_buf_printf(out,
                         "<rect class=\"alone\" x=\"%.1f\" y=\"%.1f\" width=\"8\" height=\"8\"/>\n",
                         x - 4, y - 4);
    put_text(out, before ? " text-anchor=\"end\"" : "", x + (before ? -7 : 7),
             y + (below ? 14 : -6), p->label);
}

void vqkvc_plot_svg(const vqkvc_plot *plot, const vqkvc_plot_point *points, int n, vqkvc_buf *out)
{
    frame f = find_frame(points, n);
    vqkvc_buf_printf(out,
                     "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" "
                     "width=\"%d\" height=\"%d\" role=\"img\">\n<title>",
                     WIDTH, HEIGHT, WIDTH, HEIGHT);
    put_escaped(out, plot->title);
    vqkvc_buf_printf(out, "</title>\n%s", STYLE);
    put_axes(plot, &f, out);
    for (int family = 0; family < n; family++)
        put_line(&f, points, n, family, out);
    for (int i = 0; i < n; i++)
        put_point(&f, &points[i], family_of(points, i), out);
    vqkvc_buf_puts(out, "</svg>\n");
}
