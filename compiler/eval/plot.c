#include "eval/plot.h"

#include <math.h>
#include <string.h>

#define LEAST_Y 1e-6
#define LEAST_X 1e-3

enum {
    PANEL = 250, /* width of what lies inside a panel's axes */
    HEIGHT = 480,
    LEFT = 64, /* of each panel */
    LEGEND = 132,
    TOP = 66,
    BOTTOM = 56,
    N_COLOURS = 8, /* further families have them again, with other marks and broken lines */
    N_MARKS = 4,
    MAX_FAMILIES = 64
};

/* The ranges of the axes: whole powers of two in x, of ten in y. */
typedef struct frame {
    int left;            /* pixels */
    int x_first, x_last; /* log2 */
    int y_first, y_last; /* log10 */
} frame;

typedef struct families {
    int n, main; /* main -1: none */
    const char *names[MAX_FAMILIES];
} families;

static const char *const STYLE =
    "<style>\n"
    "text{font-family:sans-serif;font-size:12px;fill:#24292f}\n"
    ".title{font-size:15px;font-weight:bold}\n"
    ".main{font-weight:bold}\n"
    ".grid{stroke:#d0d7de;stroke-width:1}\n"
    ".axis{stroke:#57606a;stroke-width:1;fill:none}\n"
    ".line{stroke-width:1.5;fill:none}\n"
    ".thick{stroke-width:3}\n"
    ".broken{stroke-dasharray:5 3}\n"
    ".f0{stroke:#0969da}.f1{stroke:#cf222e}.f2{stroke:#1a7f37}.f3{stroke:#bc4c00}"
    ".f4{stroke:#8250df}.f5{stroke:#9a6700}.f6{stroke:#bf3989}.f7{stroke:#57606a}\n"
    ".p0{fill:#0969da}.p1{fill:#cf222e}.p2{fill:#1a7f37}.p3{fill:#bc4c00}"
    ".p4{fill:#8250df}.p5{fill:#9a6700}.p6{fill:#bf3989}.p7{fill:#57606a}\n"
    "@media (prefers-color-scheme:dark){\n"
    "text{fill:#e6edf3}.grid{stroke:#30363d}.axis{stroke:#8d96a0}\n"
    ".f0{stroke:#58a6ff}.f1{stroke:#ff7b72}.f2{stroke:#3fb950}.f3{stroke:#f0883e}"
    ".f4{stroke:#bc8cff}.f5{stroke:#d29922}.f6{stroke:#f778ba}.f7{stroke:#8d96a0}\n"
    ".p0{fill:#58a6ff}.p1{fill:#ff7b72}.p2{fill:#3fb950}.p3{fill:#f0883e}"
    ".p4{fill:#bc8cff}.p5{fill:#d29922}.p6{fill:#f778ba}.p7{fill:#8d96a0}\n"
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

/* One frame for all panels, so that they compare. */
static frame find_frame(const vqkvc_plot_panel *panels, int n_panels)
{
    double x0 = INFINITY, x1 = -INFINITY, y0 = INFINITY, y1 = -INFINITY;
    for (int k = 0; k < n_panels; k++)
        for (int i = 0; i < panels[k].n; i++) {
            const vqkvc_plot_point *p = &panels[k].points[i];
            x0 = fmin(x0, log_x(p));
            x1 = fmax(x1, log_x(p));
            y0 = fmin(y0, log_y(p));
            y1 = fmax(y1, log_y(p));
        }
    if (x1 < x0)
        x0 = x1 = y0 = y1 = 0;
    frame f = {LEFT, (int)floor(x0), (int)ceil(x1), (int)floor(y0), (int)ceil(y1)};
    f.x_last += f.x_last == f.x_first;
    f.y_last += f.y_last == f.y_first;
    return f;
}

/* Pixels of a logarithm on an axis. */
static double pixel_x(const frame *f, double x)
{
    return f->left + PANEL * (x - f->x_first) / (f->x_last - f->x_first);
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

/* ---- families ---- */

static int find_family(const families *all, const char *name)
{
    for (int i = 0; i < all->n; i++)
        if (strcmp(all->names[i], name) == 0)
            return i;
    return -1;
}

/* The main family comes first and has the first colour; the others in order of their points. */
static void gather_families(const vqkvc_plot *plot, const vqkvc_plot_panel *panels, int n_panels,
                            families *all)
{
    *all = (families){.n = 0, .main = -1};
    for (int pass = plot->main_family != NULL ? 0 : 1; pass < 2; pass++)
        for (int k = 0; k < n_panels; k++)
            for (int i = 0; i < panels[k].n; i++) {
                const char *name = panels[k].points[i].family;
                if ((pass == 0 && strcmp(name, plot->main_family) != 0) ||
                    find_family(all, name) >= 0 || all->n == MAX_FAMILIES)
                    continue;
                all->main = pass == 0 ? all->n : all->main;
                all->names[all->n++] = name;
            }
}

static void put_mark(vqkvc_buf *out, int family, double x, double y, double size)
{
    int mark = family % N_COLOURS % N_MARKS + family / N_COLOURS;
    vqkvc_buf_printf(out, "<path class=\"p%d\" d=\"", family % N_COLOURS);
    switch (mark % N_MARKS) {
    case 0: /* disc */
        vqkvc_buf_printf(out, "M%.1f %.1fa%.1f %.1f 0 1 0 %.1f 0a%.1f %.1f 0 1 0 %.1f 0", x - size,
                         y, size, size, 2 * size, size, size, -2 * size);
        break;
    case 1: /* square */
        vqkvc_buf_printf(out, "M%.1f %.1fh%.1fv%.1fh%.1fz", x - size, y - size, 2 * size, 2 * size,
                         -2 * size);
        break;
    case 2: /* triangle */
        vqkvc_buf_printf(out, "M%.1f %.1fl%.1f %.1fh%.1fz", x, y - 1.2 * size, 1.2 * size,
                         2.2 * size, -2.4 * size);
        break;
    default: /* diamond */
        vqkvc_buf_printf(out, "M%.1f %.1fl%.1f %.1fl%.1f %.1fl%.1f %.1fz", x, y - 1.3 * size,
                         1.3 * size, 1.3 * size, -1.3 * size, 1.3 * size, -1.3 * size, -1.3 * size);
    }
    vqkvc_buf_puts(out, "\"/>\n");
}

static void begin_line(vqkvc_buf *out, const families *all, int family)
{
    vqkvc_buf_printf(out, "<path class=\"line f%d%s%s\" d=\"", family % N_COLOURS,
                     family == all->main ? " thick" : "", family >= N_COLOURS ? " broken" : "");
}

/* ---- a panel ---- */

static void put_axes(const vqkvc_plot_panel *panel, const frame *f, vqkvc_buf *out)
{
    int right = f->left + PANEL;
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
                         f->left, y, right, y, f->left - 6, y + 4, e);
    }
    vqkvc_buf_printf(out, "<path class=\"axis\" d=\"M%d %dV%dH%d\"/>\n", f->left, TOP,
                     HEIGHT - BOTTOM, right);
    put_text(out, " text-anchor=\"middle\"", (f->left + right) / 2.0, TOP - 10, panel->title);
    put_text(out, " text-anchor=\"middle\"", (f->left + right) / 2.0, HEIGHT - 14, panel->x_title);
}

static void put_line(const frame *f, const vqkvc_plot_panel *panel, const families *all, int family,
                     vqkvc_buf *out)
{
    const char *move = "M";
    begin_line(out, all, family);
    for (int i = 0; i < panel->n; i++) {
        const vqkvc_plot_point *p = &panel->points[i];
        if (strcmp(p->family, all->names[family]) != 0)
            continue;
        vqkvc_buf_printf(out, "%s%.1f %.1f", move, pixel_x(f, log_x(p)), pixel_y(f, log_y(p)));
        move = "L";
    }
    vqkvc_buf_puts(out, "\"/>\n");
}

/* Points of the main family carry what follows the family's name, such as their rate. */
static void put_points(const frame *f, const vqkvc_plot_panel *panel, const families *all,
                       vqkvc_buf *out)
{
    for (int i = 0; i < panel->n; i++) {
        const vqkvc_plot_point *p = &panel->points[i];
        int family = find_family(all, p->family);
        double x = pixel_x(f, log_x(p)), y = pixel_y(f, log_y(p));
        if (family < 0)
            continue;
        put_mark(out, family, x, y, family == all->main ? 5 : 4);
        size_t skip = strlen(p->family);
        if (family == all->main)
            put_text(out, " class=\"main\" text-anchor=\"end\"", x - 8, y + 14,
                     strncmp(p->label, p->family, skip) == 0 ? p->label + skip : p->label);
    }
}

/* ---- the whole ---- */

/* A family of one is called as its point is. */
static const char *legend_name(const vqkvc_plot_panel *panel, const char *family)
{
    const char *name = family;
    int n = 0;
    for (int i = 0; i < panel->n; i++)
        if (strcmp(panel->points[i].family, family) == 0) {
            name = panel->points[i].label;
            n++;
        }
    return n == 1 ? name : family;
}

static void put_legend(const families *all, const vqkvc_plot_panel *panel, int left, vqkvc_buf *out)
{
    for (int i = 0; i < all->n; i++) {
        double y = TOP + 8 + 19 * i;
        begin_line(out, all, i);
        vqkvc_buf_printf(out, "M%d %.1fh26\"/>\n", left, y);
        put_mark(out, i, left + 13, y, 4);
        put_text(out, i == all->main ? " class=\"main\"" : "", left + 34, y + 4,
                 legend_name(panel, all->names[i]));
    }
}

void vqkvc_plot_svg(const vqkvc_plot *plot, const vqkvc_plot_panel *panels, int n_panels,
                    vqkvc_buf *out)
{
    families all;
    frame f = find_frame(panels, n_panels);
    int width = n_panels * (LEFT + PANEL) + 24 + LEGEND;
    gather_families(plot, panels, n_panels, &all);
    vqkvc_buf_printf(out,
                     "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" "
                     "width=\"%d\" height=\"%d\" role=\"img\">\n<title>",
                     width, HEIGHT, width, HEIGHT);
    put_escaped(out, plot->title);
    vqkvc_buf_printf(out, "</title>\n%s", STYLE);
    put_text(out, " class=\"title\" text-anchor=\"middle\"", (width - LEGEND) / 2.0, 26,
             plot->title);
    vqkvc_buf_printf(out, "<g transform=\"translate(14 %.1f) rotate(-90)\">",
                     (TOP + HEIGHT - BOTTOM) / 2.0);
    put_text(out, " text-anchor=\"middle\"", 0, 0, plot->y_title);
    vqkvc_buf_puts(out, "</g>\n");
    for (int k = 0; k < n_panels; k++) {
        f.left = LEFT + k * (LEFT + PANEL);
        put_axes(&panels[k], &f, out);
        for (int family = all.n - 1; family >= 0; family--)
            put_line(&f, &panels[k], &all, family, out);
        put_points(&f, &panels[k], &all, out);
    }
    put_legend(&all, &panels[0], n_panels * (LEFT + PANEL) + 20, out);
    vqkvc_buf_puts(out, "</svg>\n");
}
