/* Makes views of random images by random rows, for a compiler that watches every access to memory. */

#include <stdio.h>
#include <stdlib.h>

#include "views.h"

static int below(int n) { return rand() % n; }

int main(void) {
    const float mean[3] = {0.4f, 0.5f, 0.6f}, std[3] = {0.2f, 0.2f, 0.3f};
    for (int round = 0; round < 4000; round++) {
        srand((unsigned)round);
        const int height = 1 + below(round % 53 ? 70 : 1500), width = 1 + below(round % 50 ? 70 : 1500);
        const int channels = below(3) ? 3 : 1, together = channels == 3 && below(2);
        /* Allocated to the byte, so that not one beyond may be read. */
        uint8_t *image = malloc((size_t)height * width * channels);
        for (int i = 0; i < height * width * channels; i++) image[i] = (uint8_t)rand();
        const Images images = {image, 0, together ? 3 * width : width,
                               together ? 0 : (int64_t)height * width, channels, together ? 3 : 1};
        const int left = below(width), top = below(height), size = 1 + below(60);
        float row[COLUMNS] = {0};
        row[LEFT] = (float)left;
        row[TOP] = (float)top;
        row[RIGHT] = (float)(left + 1 + below(width - left));
        row[BOTTOM] = (float)(top + 1 + below(height - top));
        row[SIZE] = (float)size;
        row[FLIPPED] = (float)below(2);
        row[BILINEAR] = (float)below(2);
        row[GRAYSCALE] = (float)!below(4);
        row[SIGMA] = below(2) ? (float)below(300) / 100 : 0.0f;
        row[RADIUS] = below(3) ? 0.0f : (float)below(12);
        row[SOLARIZED] = (float)below(2);
        const int changes = below(5);
        for (int i = 0; i < 4; i++) {
            row[JITTER + 2 * i] = i < changes ? (float)below(4) : -1.0f;
            row[JITTER + 2 * i + 1] = (float)below(100) / 100 - 0.3f;
        }
        float *out = malloc(sizeof(float) * 3 * (size_t)size * (size_t)size);
        void *start[1] = {out};
        const int64_t none = 0;
        const Views views = {start, &none};
        if (make_views(&images, 1, 1, row, mean, std, &views)) return 1;
        for (int i = 0; i < 3 * size * size; i++)
            if (!(out[i] > -10 && out[i] < 10)) {
                printf("round %d: value %d is %f\n", round, i, out[i]);
                return 1;
            }
        free(out);
        free(image);
    }
    puts("all views are sound");
    return 0;
}
