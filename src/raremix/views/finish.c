/* From the bytes of a resized crop to a normalised view, in one go.
 *
 * Rows go one at a time through all changes that need no other row, so that they stay in the first
 * cache. Only contrast, which needs the mean of the whole view, and the blur part the way.
 *
 * Loops are plain C of independent steps, which compilers turn into vector instructions. */

#include <math.h>

#include "views.h"

#define LANES 8

typedef struct {
    float *restrict red, *restrict green, *restrict blue;
} Row;

#define UNIT(x) ((x) < 0.0f ? 0.0f : (x) > 1.0f ? 1.0f : (x))
#define GRAY(r, g, b) (0.2989f * (r) + 0.587f * (g) + 0.114f * (b))

FAST static void scale_row(Row row, int n, float factor) {
    for (int i = 0; i < n; i++) {
        float r = row.red[i] * factor, g = row.green[i] * factor, b = row.blue[i] * factor;
        row.red[i] = r > 1.0f ? 1.0f : r;
        row.green[i] = g > 1.0f ? 1.0f : g;
        row.blue[i] = b > 1.0f ? 1.0f : b;
    }
}

FAST static void spread_row(Row row, int n, float factor, float offset) {
    for (int i = 0; i < n; i++) {
        float r = row.red[i] * factor + offset;
        float g = row.green[i] * factor + offset;
        float b = row.blue[i] * factor + offset;
        row.red[i] = UNIT(r);
        row.green[i] = UNIT(g);
        row.blue[i] = UNIT(b);
    }
}

FAST static void saturate_row(Row row, int n, float factor) {
    for (int i = 0; i < n; i++) {
        float r = row.red[i], g = row.green[i], b = row.blue[i];
        float gray = (1.0f - factor) * GRAY(r, g, b);
        r = r * factor + gray;
        g = g * factor + gray;
        b = b * factor + gray;
        row.red[i] = UNIT(r);
        row.green[i] = UNIT(g);
        row.blue[i] = UNIT(b);
    }
}

/* The closed form of adjust_hue in pixels.py. */
FAST static void turn_row(Row row, int n, float turn) {
    const float to_red = turn + 1.0f + 5.0f / 6, to_green = turn + 1.0f + 3.0f / 6;
    const float to_blue = turn + 1.0f + 1.0f / 6;
    for (int i = 0; i < n; i++) {
        float r = row.red[i], g = row.green[i], b = row.blue[i];
        float most = r > g ? r : g, least = r < g ? r : g;
        most = most > b ? most : b;
        least = least < b ? least : b;
        float chroma = most - least;
        float hue = (g + b - r - least) / (chroma > 1e-12f ? chroma : 1e-12f);
        hue = (hue + 1.0f) * (1.0f / 6);
        hue = g >= b ? hue : -hue;
        float red = hue + to_red, green = hue + to_green, blue = hue + to_blue;
        red -= (float)(int32_t)red;
        green -= (float)(int32_t)green;
        blue -= (float)(int32_t)blue;
        red = 2.0f - 6.0f * fabsf(red - 1.0f / 3);
        green = 2.0f - 6.0f * fabsf(green - 1.0f / 3);
        blue = 2.0f - 6.0f * fabsf(blue - 1.0f / 3);
        row.red[i] = most - chroma * UNIT(red);
        row.green[i] = most - chroma * UNIT(green);
        row.blue[i] = most - chroma * UNIT(blue);
    }
}

FAST static void gray_row(Row row, int n) {
    for (int i = 0; i < n; i++) {
        float gray = GRAY(row.red[i], row.green[i], row.blue[i]);
        row.red[i] = row.green[i] = row.blue[i] = gray;
    }
}

FAST static double gray_sum(Row row, int n) {
    float part[LANES] = {0};
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            part[j] += GRAY(row.red[i + j], row.green[i + j], row.blue[i + j]);
    double sum = 0.0;
    for (; i < n; i++) sum += GRAY(row.red[i], row.green[i], row.blue[i]);
    for (int j = 0; j < LANES; j++) sum += part[j];
    return sum;
}

FAST static void change_row(Row row, int n, const Finish *finish, int first, int last, float mean) {
    for (int at = first; at < last; at++) {
        float factor = finish->factor[at];
        switch (finish->kind[at]) {
        case BRIGHTNESS: scale_row(row, n, factor); break;
        case CONTRAST: spread_row(row, n, factor, (1.0f - factor) * mean); break;
        case SATURATION: saturate_row(row, n, factor); break;
        default: turn_row(row, n, factor);
        }
    }
}

FAST static void open_row(const uint8_t *source, int64_t channel, Row row, int n) {
    for (int i = 0; i < n; i++) {
        row.red[i] = (float)source[i] / 255.0f;
        row.green[i] = (float)source[i + channel] / 255.0f;
        row.blue[i] = (float)source[i + 2 * channel] / 255.0f;
    }
}

static int mirrored(int at, int length) {
    if (at < 0) at = -at;
    return at < length ? at : 2 * (length - 1) - at;
}

/* line and out may be the same. */
FAST static void close_row(const float *line, float *out, int n, int solarized, float mean,
                           float std) {
    if (solarized)
        for (int i = 0; i < n; i++) {
            float x = line[i], y = 1.0f - x;
            out[i] = ((x < y ? x : y) - mean) / std;
        }
    else
        for (int i = 0; i < n; i++) out[i] = (line[i] - mean) / std;
}

FAST static void blur_line(const float *restrict padded, float *restrict out, int n, int radius,
                           const float *weights) {
    for (int i = 0; i < n; i++) out[i] = padded[i + radius] * weights[0];
    for (int k = 1; k <= radius; k++) {
        const float *restrict left = padded + radius - k, *restrict right = padded + radius + k;
        float weight = weights[k];
        for (int i = 0; i < n; i++) out[i] += (left[i] + right[i]) * weight;
    }
}

/* Weights of a Gaussian and its mirror image, the middle one first; returns the radius. */
static int gauss(float sigma, int reach, int length, float *weights) {
    if (reach == 0) reach = (int)ceil(3.0 * (double)sigma);
    int radius = reach < length - 1 ? reach : length - 1;
    double raw[LONGEST + 1], total = 0.0;
    for (int k = 0; k <= radius; k++) {
        double share = k / (double)sigma;
        raw[k] = exp(-0.5 * share * share);
        total += k ? 2.0 * raw[k] : raw[k];
    }
    for (int k = 0; k <= radius; k++) weights[k] = (float)(raw[k] / total);
    return radius;
}

FAST static void blur_and_close(float *plane, int height, int width, const Finish *finish, int c,
                                float *scratch) {
    float across[LONGEST + 1], along[LONGEST + 1];
    const int wide = gauss(finish->sigma, finish->radius, width, across);
    const int high = gauss(finish->sigma, finish->radius, height, along);
    float *padded = scratch + (int64_t)height * width, *sums = padded + width + 2 * wide;
    for (int y = 0; y < height; y++) {
        const float *from = plane + (int64_t)y * width;
        for (int i = 0; i < wide; i++) padded[i] = from[wide - i];
        for (int i = 0; i < width; i++) padded[wide + i] = from[i];
        for (int i = 0; i < wide; i++) padded[wide + width + i] = from[width - 2 - i];
        blur_line(padded, scratch + (int64_t)y * width, width, wide, across);
    }
    for (int y = 0; y < height; y++) {
        const float *middle = scratch + (int64_t)y * width;
        for (int i = 0; i < width; i++) sums[i] = middle[i] * along[0];
        for (int k = 1; k <= high; k++) {
            const float *up = scratch + (int64_t)mirrored(y - k, height) * width;
            const float *down = scratch + (int64_t)mirrored(y + k, height) * width;
            const float weight = along[k];
            for (int i = 0; i < width; i++) sums[i] += (up[i] + down[i]) * weight;
        }
        close_row(sums, plane + (int64_t)y * width, width, finish->solarized, finish->mean[c],
                  finish->std[c]);
    }
}

FAST void finish_view(const uint8_t *source, int64_t channel, int32_t size, const Finish *finish,
                      float *out, float *scratch) {
    const int height = size, width = size;
    const int64_t plane = (int64_t)height * width;
    int split = 0; /* changes before the first contrast */
    while (split < finish->changes && finish->kind[split] != CONTRAST) split++;
    const int parted = split < finish->changes;
    double sum = 0.0;
    for (int y = 0; y < height; y++) {
        float *start = out + (int64_t)y * width;
        Row row = {start, start + plane, start + 2 * plane};
        open_row(source + (int64_t)y * width, channel, row, width);
        change_row(row, width, finish, 0, split, 0.0f);
        if (parted) sum += gray_sum(row, width);
        else if (finish->grayscale) gray_row(row, width);
    }
    if (parted) {
        const float mean = (float)(sum / (double)plane);
        for (int y = 0; y < height; y++) {
            float *start = out + (int64_t)y * width;
            Row row = {start, start + plane, start + 2 * plane};
            change_row(row, width, finish, split, finish->changes, mean);
            if (finish->grayscale) gray_row(row, width);
        }
    }
    for (int c = 0; c < 3; c++) {
        if (finish->sigma > 0.0f) {
            blur_and_close(out + c * plane, height, width, finish, c, scratch);
            continue;
        }
        for (int y = 0; y < height; y++) {
            float *at = out + c * plane + (int64_t)y * width;
            close_row(at, at, width, finish->solarized, finish->mean[c], finish->std[c]);
        }
    }
}
