/* What the parts of the kernel of views share. */

#ifndef RAREMIX_VIEWS_H
#define RAREMIX_VIEWS_H

#include <stdint.h>

#define FAST __attribute__((target("avx2,fma")))
#define LONGEST 511 /* reach of a blur in pixels; pixels.py makes longer ones */

/* The columns of a row, as in rows.py. */
enum { LEFT, TOP, RIGHT, BOTTOM, SIZE, FLIPPED, BILINEAR, GRAYSCALE, SIGMA, RADIUS, SOLARIZED, JITTER };
#define COLUMNS (JITTER + 8)

enum { BRIGHTNESS, CONTRAST, SATURATION, HUE };

/* A part of an image in bytes: pixel x of line y begins at start[y * line + x * step]. The channels
 * of a pixel are either neighbours (step = channels) or lie in planes of their own (step = 1). */
typedef struct {
    const uint8_t *start;
    int64_t line, plane; /* plane: from a channel to the next where step is 1 */
    int32_t channels, step;
    int32_t height, width;
} Crop;

/* To (channels, size, size) bytes, mirrored left to right or not. Returns 0, or -1 for want of
 * memory. */
int resize_crop(const Crop *crop, int32_t size, int flipped, int bilinear, uint8_t *out);

typedef struct {
    int32_t changes; /* how many of the four below */
    int32_t kind[4];
    float factor[4];
    int32_t grayscale;
    int32_t solarized;
    float sigma;    /* of the blur, in pixels; 0 for none */
    int32_t radius; /* its reach; 0 for three sigma */
    float mean[3];
    float std[3];
} Finish;

/* source: the bytes of channel c at source + c * channel, lines without gaps. out: (3, size, size)
 * floats. scratch: (size + 4) * size floats, of use to a blur, whose reach is at most LONGEST. */
void finish_view(const uint8_t *source, int64_t channel, int32_t size, const Finish *finish,
                 float *out, float *scratch);

/* One image after the other, `image` bytes apart; the rest as in Crop. */
typedef struct {
    const uint8_t *start;
    int64_t image, line, plane;
    int32_t channels, step;
} Images;

/* Where view v of image i goes, or comes from: at start[v] + i * image[v]. */
typedef struct {
    void *const *start;
    const int64_t *image;
} Views;

/* Both stages, with the results of the second. */
int32_t make_views(const Images *images, int64_t n, int64_t views, const float *rows,
                   const float *mean, const float *std, const Views *out);

#endif
