/* Draws the rows of some images: what draws.py does with numpy, number for number.
 *
 * No instruction may be fused from two here, or the last digits would differ. */

#include <math.h>
#include <stdint.h>

#include "views.h"

#define TRIES 10
#define NUMBERS 51 /* that a view may use; as in draws.py */
enum { FLIP = 40, JITTERED, FACTORS, ORDER = 46, GRAY, BLUR, HOW_BLURRED, SOLAR };

/* What a view is drawn from; the columns of ViewTable.flat. */
typedef struct {
    double scale[2], log_ratio[2], ratio[2], sigma[2], strength[4];
    double flip_p, jitter_p, grayscale_p, blur_p, solarize_p;
    double size, bilinear, radius, place;
} View;

/* Number `at` of the stream of a seed, in [0, 1): SplitMix64, as in seeds.py. */
static double uniform(uint64_t seed, uint64_t at) {
    uint64_t state = seed + (at + 1) * UINT64_C(0x9E3779B97F4A7C15);
    state = (state ^ (state >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    state = (state ^ (state >> 27)) * UINT64_C(0x94D049BB133111EB);
    state ^= state >> 31;
    return (double)(state >> 11) * 0x1p-53;
}

static double between(const double *span, double share) {
    return span[0] + (span[1] - span[0]) * share;
}

/* The exponential in plain steps, which are the same everywhere; libraries differ in last digits. */
static double exponential(double x) {
    const double twos = rint(x * 1.4426950408889634);
    const double rest = x - twos * 0.6931471805599453;
    double sum = 1.0;
    for (int k = 14; k > 0; k--) sum = 1.0 + sum * rest / k;
    return ldexp(sum, (int)twos);
}

static void draw_box(const View *view, uint64_t seed, uint64_t first, double height, double width,
                     float *row) {
    double left, top, box_width, box_height;
    for (int at = 0; at < TRIES; at++) {
        const uint64_t next = first + 4 * (uint64_t)at;
        const double target = height * width * between(view->scale, uniform(seed, next));
        const double ratio = exponential(between(view->log_ratio, uniform(seed, next + 1)));
        box_width = rint(sqrt(target * ratio));
        box_height = rint(sqrt(target / ratio));
        if (box_width > 0 && box_width <= width && box_height > 0 && box_height <= height) {
            top = floor(uniform(seed, next + 2) * (height - box_height + 1));
            left = floor(uniform(seed, next + 3) * (width - box_width + 1));
            goto found;
        }
    }
    box_width = width, box_height = height;
    if (width / height < view->ratio[0]) box_height = fmax(1, rint(width / view->ratio[0]));
    if (width / height > view->ratio[1]) box_width = fmax(1, rint(height * view->ratio[1]));
    top = floor((height - box_height) / 2);
    left = floor((width - box_width) / 2);
found:
    row[LEFT] = (float)left;
    row[TOP] = (float)top;
    row[RIGHT] = (float)(left + box_width);
    row[BOTTOM] = (float)(top + box_height);
}

static void draw_jitter(const View *view, uint64_t seed, uint64_t first, double by, float *row) {
    int left[4] = {BRIGHTNESS, CONTRAST, SATURATION, HUE}, made = 0;
    int order = (int)(uniform(seed, first + ORDER) * 24);
    const int drawn = uniform(seed, first + JITTERED) < view->jitter_p * by;
    for (int at = 0, rest = 6; at < 4; at++) { /* permutation number `order`, in their own order */
        const int chosen = order / rest, kind = left[chosen];
        order %= rest;
        if (at < 3) rest /= 3 - at;
        for (int i = chosen; i < 3 - at; i++) left[i] = left[i + 1];
        if (!drawn || view->strength[kind] <= 0.0) continue;
        const double strength = view->strength[kind] * by;
        double span[2] = {1.0 - strength, 1.0 + strength};
        if (kind == HUE) {
            span[0] = fmax(-strength, -0.5);
            span[1] = fmin(strength, 0.5);
        } else if (span[0] < 0.0) {
            span[0] = 0.0;
        }
        row[JITTER + 2 * made] = (float)kind;
        row[JITTER + 2 * made + 1] = (float)between(span, uniform(seed, first + FACTORS + (uint64_t)kind));
        made++;
    }
    for (; made < 4; made++) {
        row[JITTER + 2 * made] = -1.0f;
        row[JITTER + 2 * made + 1] = 0.0f;
    }
}

/* rows: (n, views, COLUMNS). A seed and a strength for each image; without strengths, 1. */
void draw_rows(const View *views, int64_t count, int64_t n, const int64_t *seeds, int64_t height,
               int64_t width, const double *strengths, float *rows) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t v = 0; v < count; v++, rows += COLUMNS) {
            const View *view = views + v;
            const uint64_t seed = (uint64_t)seeds[i], first = (uint64_t)view->place * NUMBERS;
            const double by = strengths ? strengths[i] : 1.0;
            draw_box(view, seed, first, (double)height, (double)width, rows);
            draw_jitter(view, seed, first, by, rows);
            const double sigma = between(view->sigma, uniform(seed, first + HOW_BLURRED));
            rows[SIZE] = (float)view->size;
            rows[FLIPPED] = uniform(seed, first + FLIP) < view->flip_p;
            rows[BILINEAR] = (float)view->bilinear;
            rows[GRAYSCALE] = uniform(seed, first + GRAY) < view->grayscale_p * by;
            rows[SIGMA] = uniform(seed, first + BLUR) < view->blur_p * by ? (float)sigma : 0.0f;
            rows[RADIUS] = (float)view->radius;
            rows[SOLARIZED] = uniform(seed, first + SOLAR) < view->solarize_p * by;
        }
}
