/* Makes the views of some images from the rows of numbers that were drawn for them. */

#include <stdlib.h>
#include <string.h>

#include "views.h"

int32_t supported(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static void read_finish(const float *row, const float *mean, const float *std, Finish *finish) {
    finish->changes = 0;
    for (int i = 0; i < 4 && row[JITTER + 2 * i] >= 0.0f; i++, finish->changes++) {
        finish->kind[i] = (int32_t)row[JITTER + 2 * i];
        finish->factor[i] = row[JITTER + 2 * i + 1];
    }
    finish->grayscale = row[GRAYSCALE] > 0.0f;
    finish->solarized = row[SOLARIZED] > 0.0f;
    finish->sigma = row[SIGMA];
    finish->radius = (int32_t)row[RADIUS];
    memcpy(finish->mean, mean, sizeof finish->mean);
    memcpy(finish->std, std, sizeof finish->std);
}

/* Stage one: rows (n, views, COLUMNS) to bytes (3, size, size) each. Returns 0, or -1 for want of
 * memory. */
int32_t cut_views(const Images *images, int64_t n, int64_t views, const float *rows,
                  const Views *out) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t v = 0; v < views; v++) {
            const float *row = rows + (i * views + v) * COLUMNS;
            const int32_t left = (int32_t)row[LEFT], top = (int32_t)row[TOP];
            const Crop crop = {
                images->start + i * images->image + top * images->line + left * images->step,
                images->line, images->plane, images->channels, images->step,
                (int32_t)row[BOTTOM] - top, (int32_t)row[RIGHT] - left,
            };
            const int32_t size = (int32_t)row[SIZE];
            uint8_t *at = (uint8_t *)out->start[v] + i * out->image[v];
            if (resize_crop(&crop, size, row[FLIPPED] > 0.0f, row[BILINEAR] > 0.0f, at)) return -1;
            if (images->channels == 1)
                for (int c = 1; c < 3; c++)
                    memcpy(at + (int64_t)c * size * size, at, (size_t)size * size);
        }
    return 0;
}

/* Whether all blurs of some rows reach no farther than finish.c can. */
static int within_reach(const float *rows, int64_t n) {
    for (const float *row = rows; row < rows + n * COLUMNS; row += COLUMNS)
        if (3.0 * (double)row[SIGMA] > LONGEST || row[RADIUS] > LONGEST) return 0;
    return 1;
}

/* Stage two: the bytes of stage one to normalised floats (3, size, size) each. Returns 0, -1 for want
 * of memory, or 1 if a blur reaches too far, and then nothing is done. */
int32_t finish_views(int64_t n, int64_t views, const float *rows, const Views *from,
                     const float *mean, const float *std, const Views *out) {
    if (!within_reach(rows, n * views)) return 1;
    for (int64_t v = 0; v < views; v++) {
        float *scratch = NULL;
        int32_t room = 0;
        for (int64_t i = 0; i < n; i++) {
            const float *row = rows + (i * views + v) * COLUMNS;
            const int32_t size = (int32_t)row[SIZE];
            if (row[SIGMA] > 0.0f && size > room) {
                free(scratch);
                scratch = malloc(sizeof(float) * (size_t)(size + 4) * (size_t)size);
                if (!scratch) return -1;
                room = size;
            }
            Finish finish;
            read_finish(row, mean, std, &finish);
            finish_view((const uint8_t *)from->start[v] + i * from->image[v],
                        (int64_t)size * size, size, &finish,
                        (float *)out->start[v] + i * out->image[v], scratch);
        }
        free(scratch);
    }
    return 0;
}

int32_t make_views(const Images *images, int64_t n, int64_t views, const float *rows,
                   const float *mean, const float *std, const Views *out) {
    if (!within_reach(rows, n * views)) return 1;
    int64_t most = 0;
    for (int64_t at = 0; at < n * views; at++)
        most = rows[at * COLUMNS + SIZE] > most ? (int64_t)rows[at * COLUMNS + SIZE] : most;
    uint8_t *bytes = malloc((size_t)(3 * most * most) + 1);
    int32_t failed = bytes == NULL;
    for (int64_t i = 0; i < n && !failed; i++)
        for (int64_t v = 0; v < views && !failed; v++) {
            const float *row = rows + (i * views + v) * COLUMNS;
            const int64_t none = 0;
            void *start[2] = {bytes, (float *)out->start[v] + i * out->image[v]};
            const Views cut = {start, &none}, made = {start + 1, &none};
            Images one = *images;
            one.start += i * images->image;
            failed = cut_views(&one, 1, 1, row, &cut) ||
                     finish_views(1, 1, row, &cut, mean, std, &made);
        }
    free(bytes);
    return failed ? -1 : 0;
}
