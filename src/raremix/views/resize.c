/* Cuts a box out of an image of bytes and resizes it, antialiased, bicubic or bilinear.
 *
 * Down the columns first: a weighted sum of whole lines needs no shuffling, and leaves fewer lines
 * for the pass along them. For that pass, GROUP lines are turned so that their pixels of one column
 * are neighbours, and it is a weighted sum of vectors again. Both passes take source pixels by twos,
 * as one instruction multiplies and adds a pair.
 *
 * Between the passes stand 16 bits with 6 of them behind the point, not clipped to the range of a
 * byte. So the bytes that come out are those of a resize in floats, but for ties.
 *
 * Weights as in Pillow and torch: Keys' cubic with a = -1/2, or the tent, stretched by the scale
 * where the image shrinks, cut off at the border of the box and made to sum to 1. */

#include <immintrin.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "views.h"

#define FRACTION 6   /* bits behind the point between the passes */
#define MOST_BITS 15 /* of a weight behind the point: more may overflow 32 bits along a line */
#define GROUP 16     /* lines of the result that are made together */
#define STRIP 96     /* bytes of a line that are summed together: 32 pixels of three channels */
#define TURNED 24    /* of which this many are turned together */
#define BESIDE 8     /* pixels of a line of the result that are written together */

/* For each pixel of the result, the source pixels it is made of, by twos. */
typedef struct {
    int most, bits;   /* pairs of weights there is room for; bits behind the point of a weight */
    int32_t *first;   /* number of the first pair */
    int32_t *count;   /* how many pairs */
    int16_t *weights; /* 2 * most for each pixel */
} Axis;

static void free_axis(Axis *axis) {
    free(axis->first);
    free(axis->weights);
}

FAST static double weigh(double first, double shrink, int bilinear, int n, double *out) {
    double sum = 0.0;
    for (int k = 0; k < n; k++) {
        double x = fabs((k + first) * shrink);
        double cubic_near = (1.5 * x - 2.5) * x * x + 1.0;
        double cubic_far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0;
        double cubic = x < 1.0 ? cubic_near : x < 2.0 ? cubic_far : 0.0;
        double tent = x < 1.0 ? 1.0 - x : 0.0;
        out[k] = bilinear ? tent : cubic;
    }
    for (int k = 0; k < n; k++) sum += out[k];
    return sum;
}

static void swap_pixels(Axis *axis, int i, int j) {
    const int32_t first = axis->first[i], count = axis->count[i];
    axis->first[i] = axis->first[j];
    axis->count[i] = axis->count[j];
    axis->first[j] = first;
    axis->count[j] = count;
    int16_t *a = axis->weights + (int64_t)i * 2 * axis->most;
    int16_t *b = axis->weights + (int64_t)j * 2 * axis->most;
    for (int k = 0; k < 2 * axis->most; k++) {
        const int16_t kept = a[k];
        a[k] = b[k];
        b[k] = kept;
    }
}

/* The weights of one axis of a crop; 0, or -1 for want of memory. */
FAST static int make_axis(Axis *axis, int length, int size, int flipped, int bilinear) {
    const double scale = (double)length / size, stretch = scale > 1.0 ? scale : 1.0;
    const double support = (bilinear ? 1.0 : 2.0) * stretch;
    const int most = (int)ceil(support) * 2 + 1;
    axis->most = most / 2 + 2;
    axis->first = malloc(2 * sizeof(int32_t) * (size_t)size);
    axis->count = axis->first + size;
    axis->weights = calloc((size_t)size * 2 * axis->most, sizeof(int16_t));
    double *exact = malloc(sizeof(double) * (size_t)size * most), greatest = 0.0;
    if (!axis->first || !axis->weights || !exact) {
        free_axis(axis);
        free(exact);
        return -1;
    }
    for (int i = 0; i < size; i++) {
        const double centre = (i + 0.5) * scale;
        int from = (int)(centre - support + 0.5), to = (int)(centre + support + 0.5);
        from = from < 0 ? 0 : from;
        to = to > length ? length : to;
        double *row = exact + (int64_t)i * most;
        const double sum = weigh(from - centre + 0.5, 1.0 / stretch, bilinear, to - from, row);
        for (int k = 0; k < to - from; k++) {
            row[k] /= sum;
            greatest = fabs(row[k]) > greatest ? fabs(row[k]) : greatest;
        }
        axis->first[i] = from;
        axis->count[i] = to - from;
    }
    axis->bits = MOST_BITS;
    while (greatest * (1 << axis->bits) >= 32766.0) axis->bits--;
    const int one = 1 << axis->bits;
    for (int i = 0; i < size; i++) {
        const double *row = exact + (int64_t)i * most;
        const int odd = axis->first[i] % 2, n = axis->count[i];
        int16_t *weights = axis->weights + (int64_t)i * 2 * axis->most + odd;
        int sum = 0, largest = 0;
        for (int k = 0; k < n; k++) {
            weights[k] = (int16_t)lrint(row[k] * one);
            sum += weights[k];
            largest = row[k] > row[largest] ? k : largest;
        }
        weights[largest] += (int16_t)(one - sum); /* an even image stays as it is */
        axis->first[i] /= 2;
        axis->count[i] = (odd + n + 1) / 2;
    }
    for (int i = 0; flipped && i < size / 2; i++) swap_pixels(axis, i, size - 1 - i);
    free(exact);
    return 0;
}

FAST static inline __m256i broadcast_pair(const int16_t *weights) {
    int32_t both;
    memcpy(&both, weights, sizeof both);
    return _mm256_set1_epi32(both);
}

/* Two lines of a strip as pairs of 16-bit numbers. */
FAST static void pair_lines(const uint8_t *upper, const uint8_t *lower, __m256i *out) {
    for (int i = 0; i < STRIP / 16; i++) {
        const __m128i a = _mm_loadu_si128((const __m128i *)(upper + 16 * i));
        const __m128i b = _mm_loadu_si128((const __m128i *)(lower + 16 * i));
        out[2 * i] = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b));
        out[2 * i + 1] = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b));
    }
}

/* The weighted sum of some paired lines of a strip. */
FAST static void sum_down(const __m256i *pairs, int count, const int16_t *weights, int bits,
                          int16_t *out) {
    enum { PARTS = STRIP / 8 };
    const int shift = bits - FRACTION;
    __m256i sum[PARTS];
    for (int i = 0; i < PARTS; i++) sum[i] = _mm256_set1_epi32(1 << (shift - 1));
    for (int k = 0; k < count; k++, pairs += PARTS) {
        const __m256i by = broadcast_pair(weights + 2 * k);
        for (int i = 0; i < PARTS; i++)
            sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(pairs[i], by));
    }
    for (int i = 0; i < PARTS; i += 2) {
        const __m256i low = _mm256_srai_epi32(sum[i], shift);
        const __m256i high = _mm256_srai_epi32(sum[i + 1], shift);
        const __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xD8);
        _mm256_storeu_si256((__m256i *)(out + 8 * i), both);
    }
}

/* Eight columns of GROUP lines, `line` numbers apart, each to one vector. */
FAST static inline void turn_eight(const int16_t *from, int line, __m256i *out) {
    __m256i a[8], b[8];
    for (int r = 0; r < 8; r++)
        a[r] = _mm256_inserti128_si256(
            _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(from + r * line))),
            _mm_loadu_si128((const __m128i *)(from + (r + 8) * line)), 1);
    for (int r = 0; r < 4; r++) {
        b[2 * r] = _mm256_unpacklo_epi16(a[2 * r], a[2 * r + 1]);
        b[2 * r + 1] = _mm256_unpackhi_epi16(a[2 * r], a[2 * r + 1]);
    }
    for (int r = 0; r < 2; r++) /* b: columns 0-3 and 4-7 of lines 01, 23, 45, 67 */
        for (int half = 0; half < 2; half++) {
            a[4 * r + 2 * half] = _mm256_unpacklo_epi32(b[4 * r + half], b[4 * r + 2 + half]);
            a[4 * r + 2 * half + 1] = _mm256_unpackhi_epi32(b[4 * r + half], b[4 * r + 2 + half]);
        }
    for (int c = 0; c < 4; c++) { /* a: columns 01, 23, 45, 67 of lines 0123, then of 4567 */
        out[2 * c] = _mm256_unpacklo_epi64(a[c], a[4 + c]);
        out[2 * c + 1] = _mm256_unpackhi_epi64(a[c], a[4 + c]);
    }
}

/* A strip of GROUP lines to two vectors for every pair of pixels of a channel. */
FAST static void turn_strip(const int16_t *lines, int channels, int64_t plane, __m256i *out) {
    for (int from = 0; from < STRIP; from += TURNED) {
        __m256i columns[TURNED];
        for (int i = 0; i < TURNED; i += 8) turn_eight(lines + from + i, STRIP, columns + i);
        for (int c = 0; c < channels; c++)
            for (int x = 0; x < TURNED / channels; x += 2) {
                const __m256i a = columns[x * channels + c], b = columns[(x + 1) * channels + c];
                __m256i *to = out + c * plane + from / channels + x;
                to[0] = _mm256_unpacklo_epi16(a, b);
                to[1] = _mm256_unpackhi_epi16(a, b);
            }
    }
}

/* One pixel of GROUP lines, 16 bits each. */
FAST static inline __m256i sum_across(const __m256i *pairs, const Axis *axis, int x) {
    const int shift = axis->bits + FRACTION;
    const int16_t *weights = axis->weights + (int64_t)x * 2 * axis->most;
    const __m256i *at = pairs + 2 * (int64_t)axis->first[x];
    __m256i low = _mm256_set1_epi32(1 << (shift - 1)), high = low;
    for (int k = 0; k < axis->count[x]; k++, at += 2) {
        const __m256i by = broadcast_pair(weights + 2 * k);
        low = _mm256_add_epi32(low, _mm256_madd_epi16(at[0], by));
        high = _mm256_add_epi32(high, _mm256_madd_epi16(at[1], by));
    }
    return _mm256_packs_epi32(_mm256_srai_epi32(low, shift), _mm256_srai_epi32(high, shift));
}

/* All pixels of up to GROUP lines of a channel, in bytes. */
FAST static void write_lines(const __m256i *pairs, const Axis *axis, int size, int lines,
                             uint8_t *out) {
    const __m256i zip = _mm256_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15, 0, 8,
                                         1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
    for (int x = 0; x < size; x += BESIDE) {
        const int wide = size - x < BESIDE ? size - x : BESIDE;
        __m256i two[BESIDE / 2]; /* of each line, two pixels side by side */
        for (int j = 0; j < BESIDE; j += 2) {
            const __m256i a = sum_across(pairs, axis, j < wide ? x + j : x);
            const __m256i b = sum_across(pairs, axis, j + 1 < wide ? x + j + 1 : x);
            two[j / 2] = _mm256_shuffle_epi8(_mm256_packus_epi16(a, b), zip);
        }
        const __m256i a = _mm256_unpacklo_epi16(two[0], two[1]); /* four, of lines 0-3, 8-11 */
        const __m256i b = _mm256_unpackhi_epi16(two[0], two[1]); /* of lines 4-7, 12-15 */
        const __m256i c = _mm256_unpacklo_epi16(two[2], two[3]);
        const __m256i d = _mm256_unpackhi_epi16(two[2], two[3]);
        __m256i eight[4] = {_mm256_unpacklo_epi32(a, c), _mm256_unpackhi_epi32(a, c),
                            _mm256_unpacklo_epi32(b, d), _mm256_unpackhi_epi32(b, d)};
        uint64_t line[GROUP]; /* 0 1 8 9, 2 3 10 11, 4 5 12 13, 6 7 14 15 */
        for (int i = 0; i < 4; i++) {
            _mm_storeu_si128((__m128i *)(line + 2 * i), _mm256_castsi256_si128(eight[i]));
            _mm_storeu_si128((__m128i *)(line + 2 * i + 8), _mm256_extracti128_si256(eight[i], 1));
        }
        if (wide == BESIDE)
            for (int y = 0; y < lines; y++) memcpy(out + (int64_t)y * size + x, line + y, BESIDE);
        else
            for (int y = 0; y < lines; y++)
                memcpy(out + (int64_t)y * size + x, line + y, (size_t)wide);
    }
}

/* What a crop needs besides: `turned` holds pairs of pixels of GROUP lines, `paired` pairs of source
 * lines of a strip, `rim` those of a strip that ends beyond the image. */
typedef struct {
    __m256i *turned, *paired;
    uint8_t *rim;
} Room;

FAST static void sum_group(const Crop *crop, const uint8_t *source, const Axis *down, int y,
                           int lines, int channels, int64_t plane, const Room *room,
                           __m256i *turned) {
    const int first = down->first[y];
    int last = first;
    for (int i = y; i < y + lines; i++)
        if (down->first[i] + down->count[i] > last) last = down->first[i] + down->count[i];
    const int width = crop->width * channels;
    int16_t summed[GROUP * STRIP];
    for (int x = 0; x < width; x += STRIP) {
        for (int pair = first; pair < last; pair++) {
            const int upper = 2 * pair, lower = upper + 1 < crop->height ? upper + 1 : upper;
            const uint8_t *a = source + upper * crop->line + x, *b = source + lower * crop->line + x;
            if (x + STRIP > width) {
                memcpy(room->rim, a, (size_t)(width - x));
                memcpy(room->rim + STRIP, b, (size_t)(width - x));
                a = room->rim;
                b = room->rim + STRIP;
            }
            pair_lines(a, b, room->paired + (int64_t)(pair - first) * (STRIP / 8));
        }
        for (int i = 0; i < lines; i++)
            sum_down(room->paired + (int64_t)(down->first[y + i] - first) * (STRIP / 8),
                     down->count[y + i], down->weights + (int64_t)(y + i) * 2 * down->most,
                     down->bits, summed + i * STRIP);
        for (int i = lines; i < GROUP; i++) memset(summed + i * STRIP, 0, sizeof(int16_t) * STRIP);
        turn_strip(summed, channels, plane, turned + x / channels);
    }
}

FAST int resize_crop(const Crop *crop, int32_t size, int flipped, int bilinear, uint8_t *out) {
    Axis across, down;
    if (make_axis(&across, crop->width, size, flipped, bilinear)) return -1;
    if (make_axis(&down, crop->height, size, 0, bilinear)) {
        free_axis(&across);
        return -1;
    }
    const int together = crop->step == 1 ? 1 : crop->channels; /* channels that share a line */
    const int64_t plane = crop->width + STRIP;
    int64_t deepest = 0;
    for (int y = 0; y < size; y += GROUP) {
        const int last = y + GROUP < size ? y + GROUP - 1 : size - 1;
        const int64_t deep = down.first[last] + down.count[last] - down.first[y] + 1;
        deepest = deep > deepest ? deep : deepest;
    }
    const size_t turned = (size_t)(plane * crop->channels), paired = (size_t)deepest * (STRIP / 8);
    void *memory = malloc((turned + paired + 1) * sizeof(__m256i) + 2 * STRIP);
    if (memory) {
        Room room;
        room.turned = (__m256i *)(((uintptr_t)memory + 31) / 32 * 32);
        room.paired = room.turned + turned;
        room.rim = (uint8_t *)(room.paired + paired);
        memset(room.rim, 0, 2 * STRIP);
        for (int y = 0; y < size; y += GROUP) {
            const int lines = size - y < GROUP ? size - y : GROUP;
            for (int c = 0; c < crop->channels; c += together)
                sum_group(crop, crop->start + c * crop->plane, &down, y, lines, together, plane,
                          &room, room.turned + c * plane);
            for (int c = 0; c < crop->channels; c++)
                write_lines(room.turned + c * plane, &across, size, lines,
                            out + ((int64_t)c * size + y) * size);
        }
    }
    free_axis(&across);
    free_axis(&down);
    free(memory);
    return memory ? 0 : -1;
}
