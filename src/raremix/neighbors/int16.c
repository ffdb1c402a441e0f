/* Nearest rows by a product of 16-bit integers, twice as fast as one of floats where AVX2 is the
 * widest there is: one instruction multiplies sixteen pairs where a float one multiplies eight.
 *
 * A row x is kept as s * z with integers z, and how far that is from x is measured for every row:
 *     |q.b - s_q s_b z_q.z_b| <= |q| |e_b| + |e_q| |b|    (Cauchy and Schwarz, e = x - s z)
 * so that
 *     key = |b|^2 - 2 s_q s_b z_q.z_b - 2 |q| |e_b| - 2 |e_q| |b|
 * is no larger than |q - b|^2 - |q|^2. Lists keep the rows of least key: whatever is left out has a
 * distance of at least |q|^2 + the largest key kept. Nothing here is a guess.
 *
 * The integer sum cannot overflow: a row is scaled to a length of at most LONGEST, and the product
 * of two such lengths, which bounds every partial sum, is below 2^31.
 *
 * No threads are made here; the caller splits the work and calls from its own.
 */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define NARROW 6 /* rows in a panel of queries: with WIDE, what fits the sixteen registers */
#define WIDE 16  /* rows in a panel of the bank */
#define LONGEST 46000.0
#define HIGHEST 32767.0f
#define AVX2 __attribute__((target("avx2,fma")))

typedef struct {
    const int16_t *panels; /* panel, pair of dimensions, row of the panel, two dimensions */
    const float *scale;    /* s */
    const float *length;   /* |x|, rounded up */
    const float *error;    /* |x - s z|, rounded up */
    const float *square;   /* |x|^2, rounded down; infinite for the rows that fill up a panel */
} Packed;

typedef struct {
    float key;
    int32_t row;
} Candidate;

/* Room for the best `keep` rows of each query, and for newcomers until the next clearing. */
typedef struct {
    Candidate *candidates;
    int32_t *count;
    float *limit; /* keys from here on are not among the best */
    int32_t keep, room;
} Lists;

int32_t supported(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

int32_t room_for(int32_t keep) { return keep + keep / 4 + 32; }

AVX2 static float total(__m256 x) {
    float v[8];
    _mm256_storeu_ps(v, x);
    return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

AVX2 static float highest(__m256 x) {
    float v[8], best = 0;
    _mm256_storeu_ps(v, x);
    for (int l = 0; l < 8; l++) best = v[l] > best ? v[l] : best;
    return best;
}

/* Pairs of dimensions in a panel: an even number, with zeros where the row ends. */
static inline int64_t pairs_of(int64_t dim) { return (dim + 3) / 4 * 2; }

/* Shift `count` rows by the centre and pack them at `places`, or from row `first` on. `work` has
 * room for 2 * pairs_of(dim) + 16 floats. */
AVX2 void pack(const float *rows, int64_t stride, int64_t count, int64_t dim, const float *centre,
               int64_t width, int64_t first, const int64_t *places, int16_t *panels, float *scale,
               float *length, float *error, float *square, float *work) {
    int64_t pairs = pairs_of(dim);
    for (int64_t i = 0; i < count; i++) {
        const float *x = rows + i * stride;
        int64_t place = places ? places[i] : first + i;
        int32_t *out = (int32_t *)panels + (place / width) * pairs * width + place % width;
        double sum = 0, missed = 0;
        __m256 top = _mm256_setzero_ps(), sign = _mm256_set1_ps(-0.0f);
        for (int64_t from = 0; from < dim; from += 256) { /* short float sums, long double ones */
            int64_t to = from + 256 < dim ? from + 256 : dim, k = from;
            __m256 part = _mm256_setzero_ps();
            float rest = 0;
            for (; k + 8 <= to; k += 8) {
                __m256 v = _mm256_sub_ps(_mm256_loadu_ps(x + k), _mm256_loadu_ps(centre + k));
                _mm256_storeu_ps(work + k, v);
                part = _mm256_fmadd_ps(v, v, part);
                top = _mm256_max_ps(top, _mm256_andnot_ps(sign, v));
            }
            for (; k < to; k++) {
                work[k] = x[k] - centre[k];
                rest += work[k] * work[k];
                top = _mm256_max_ps(top, _mm256_set1_ps(fabsf(work[k])));
            }
            sum += (double)total(part) + rest;
        }
        for (int64_t k = dim; k < 2 * pairs + 16; k++) work[k] = 0;
        double size = sqrt(sum);
        float s = (float)fmax(size / LONGEST, highest(top) / HIGHEST);
        float inverse = s > 0 ? 1.0f / s : 0.0f;
        __m256 up = _mm256_set1_ps(inverse), down = _mm256_set1_ps(-s);
        for (int64_t from = 0; from < 2 * pairs; from += 256) {
            int64_t to = from + 256 < 2 * pairs ? from + 256 : 2 * pairs;
            __m256 part = _mm256_setzero_ps();
            for (int64_t k = from; k < to; k += 16) { /* beyond the end there are zeros */
                __m256 v = _mm256_loadu_ps(work + k), w = _mm256_loadu_ps(work + k + 8);
                __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(v, up));
                __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(w, up));
                /* Packing clips to 16 bits, which only the last rounding could exceed, and
                   leaves the halves crosswise. */
                __m256i z = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
                a = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(z));
                b = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(z, 1));
                v = _mm256_fmadd_ps(_mm256_cvtepi32_ps(a), down, v);
                w = _mm256_fmadd_ps(_mm256_cvtepi32_ps(b), down, w);
                part = _mm256_fmadd_ps(v, v, _mm256_fmadd_ps(w, w, part));
                int32_t twos[8];
                _mm256_storeu_si256((__m256i *)twos, z);
                int64_t left = (to - k) / 2;
                for (int64_t p = 0; p < 8 && p < left; p++) out[(k / 2 + p) * width] = twos[p];
            }
            missed += total(part);
        }
        /* Some thirty roundings of 2^-24 in all, of the sums here and of the keys in fill_key. */
        scale[place] = s;
        length[place] = (float)(size * (1 + 0x1p-19));
        error[place] = (float)(sqrt(missed) * (1 + 0x1p-14) + size * 0x1p-20);
        square[place] = (float)(sum * (1 - 0x1p-19));
    }
}

/* The dot products of NARROW rows with WIDE rows over an even number of pairs. In assembly, since compilers spill the sums. */
AVX2 static inline void dot_tile(const int16_t *q, const int16_t *b, int64_t pairs,
                                 __m256i dots[NARROW][2]) {
    __m256i zero = _mm256_setzero_si256();
    __m256i c0 = zero, c1 = zero, c2 = zero, c3 = zero, c4 = zero, c5 = zero;
    __m256i d0 = zero, d1 = zero, d2 = zero, d3 = zero, d4 = zero, d5 = zero;
#define ROW(offset, c, d)                                 \
    "vpbroadcastd " #offset "(%[q]), %%ymm14\n\t"         \
    "vpmaddwd %%ymm12, %%ymm14, %%ymm15\n\t"              \
    "vpmaddwd %%ymm13, %%ymm14, %%ymm14\n\t"              \
    "vpaddd %%ymm15, %[" #c "], %[" #c "]\n\t"            \
    "vpaddd %%ymm14, %[" #d "], %[" #d "]\n\t"
    __asm__ volatile(
        "1:\n\t"
        "vmovdqa (%[b]), %%ymm12\n\t"
        "vmovdqa 32(%[b]), %%ymm13\n\t"
        ROW(0, c0, d0) ROW(4, c1, d1) ROW(8, c2, d2) ROW(12, c3, d3) ROW(16, c4, d4) ROW(20, c5, d5)
        "vmovdqa 64(%[b]), %%ymm12\n\t"
        "vmovdqa 96(%[b]), %%ymm13\n\t"
        ROW(24, c0, d0) ROW(28, c1, d1) ROW(32, c2, d2) ROW(36, c3, d3) ROW(40, c4, d4)
        ROW(44, c5, d5)
        "add $128, %[b]\n\t"
        "add $48, %[q]\n\t"
        "sub $2, %[n]\n\t"
        "jnz 1b\n\t"
        : [q] "+r"(q), [b] "+r"(b), [n] "+r"(pairs), [c0] "+x"(c0), [c1] "+x"(c1), [c2] "+x"(c2),
          [c3] "+x"(c3), [c4] "+x"(c4), [c5] "+x"(c5), [d0] "+x"(d0), [d1] "+x"(d1), [d2] "+x"(d2),
          [d3] "+x"(d3), [d4] "+x"(d4), [d5] "+x"(d5)
        :
        : "ymm12", "ymm13", "ymm14", "ymm15", "memory", "cc");
#undef ROW
    dots[0][0] = c0, dots[1][0] = c1, dots[2][0] = c2, dots[3][0] = c3, dots[4][0] = c4;
    dots[0][1] = d0, dots[1][1] = d1, dots[2][1] = d2, dots[3][1] = d3, dots[4][1] = d4;
    dots[5][0] = c5, dots[5][1] = d5;
}

/* Put the `keep` least of n candidates first and return the largest key among them. */
static float clear_out(Candidate *list, int32_t n, int32_t keep) {
    int32_t low = 0, high = n - 1, wanted = keep - 1;
    while (low < high) {
        float pivot = list[low + (high - low) / 2].key;
        int32_t i = low, j = high;
        while (i <= j) {
            while (list[i].key < pivot) i++;
            while (list[j].key > pivot) j--;
            if (i <= j) {
                Candidate held = list[i];
                list[i++] = list[j];
                list[j--] = held;
            }
        }
        if (wanted <= j)
            high = j;
        else if (wanted >= i)
            low = i;
        else
            break;
    }
    return list[wanted].key;
}

static inline void push(Lists *lists, int64_t owner, float key, int32_t row) {
    if (!(key < lists->limit[owner])) return;
    Candidate *list = lists->candidates + owner * lists->room;
    int32_t n = lists->count[owner];
    list[n].key = key;
    list[n].row = row;
    if (++n == lists->room) {
        lists->limit[owner] = clear_out(list, n, lists->keep);
        n = lists->keep;
    }
    lists->count[owner] = n;
}

/* One row against WIDE of the other side: their keys, and which lie under the limits. The squares
 * are those of the candidates, whichever side they are on; the rest of a key is symmetric. */
AVX2 static inline int fill_key(const Packed *one, int64_t row, const Packed *many, int64_t from,
                                const __m256i dots[2], const __m256 squares[2],
                                const __m256 limits[2], float keys[WIDE]) {
    __m256 length = _mm256_set1_ps(-2.0f * one->length[row]);
    __m256 error = _mm256_set1_ps(-2.0f * one->error[row]);
    __m256 scale = _mm256_set1_ps(-2.0f * one->scale[row]);
    int under = 0;
    for (int h = 0; h < 2; h++) {
        int64_t at = from + 8 * h;
        __m256 key = _mm256_fmadd_ps(length, _mm256_loadu_ps(many->error + at), squares[h]);
        key = _mm256_fmadd_ps(error, _mm256_loadu_ps(many->length + at), key);
        __m256 scales = _mm256_mul_ps(scale, _mm256_loadu_ps(many->scale + at));
        key = _mm256_fmadd_ps(scales, _mm256_cvtepi32_ps(dots[h]), key);
        under |= _mm256_movemask_ps(_mm256_cmp_ps(key, limits[h], _CMP_LT_OQ)) << (8 * h);
        _mm256_storeu_ps(keys + 8 * h, key);
    }
    return under;
}

static int by_key(const void *x, const void *y) {
    const Candidate *a = x, *b = y;
    if (a->key != b->key) return a->key < b->key ? -1 : 1;
    return a->row < b->row ? -1 : a->row > b->row;
}

/* The kept candidates of rows [from, to), least key first; missing ones are (infinity, -1). */
void finish(Lists *lists, int64_t from, int64_t to, float *keys, int32_t *rows) {
    int32_t keep = lists->keep;
    for (int64_t i = from; i < to; i++, keys += keep, rows += keep) {
        Candidate *list = lists->candidates + i * lists->room;
        int32_t n = lists->count[i];
        if (n > keep) {
            clear_out(list, n, keep);
            n = keep;
        }
        qsort(list, n, sizeof(Candidate), by_key);
        for (int32_t j = 0; j < keep; j++) {
            keys[j] = j < n ? list[j].key : INFINITY;
            rows[j] = j < n ? list[j].row : -1;
        }
    }
}

/* Queries [q_from, q_to) against bank rows [b_from, b_to). The lists are those of the queries from
 * q_from on. `tile` queries stay in the second cache and `chunk` bank rows in the third. */
AVX2 void search(const Packed *queries, int64_t q_from, int64_t q_to, const Packed *bank,
                 int64_t b_from, int64_t b_to, int64_t dim, int64_t tile, int64_t chunk,
                 Lists *lists) {
    int64_t pairs = pairs_of(dim);
    for (int64_t c = b_from; c < b_to; c += chunk)
        for (int64_t t = q_from; t < q_to; t += tile)
            for (int64_t b = c; b < b_to && b < c + chunk; b += WIDE)
                for (int64_t q = t; q < q_to && q < t + tile; q += NARROW) {
                    __m256i dots[NARROW][2];
                    dot_tile(queries->panels + q * pairs * 2, bank->panels + b * pairs * 2, pairs,
                             dots);
                    for (int r = 0; r < NARROW && q + r < q_to; r++) {
                        int64_t own = q + r - q_from;
                        __m256 limit = _mm256_set1_ps(lists->limit[own]);
                        __m256 limits[2] = {limit, limit};
                        __m256 squares[2] = {_mm256_loadu_ps(bank->square + b),
                                             _mm256_loadu_ps(bank->square + b + 8)};
                        float keys[WIDE];
                        int under =
                            fill_key(queries, q + r, bank, b, dots[r], squares, limits, keys);
                        for (; under; under &= under - 1) {
                            int l = __builtin_ctz(under);
                            push(lists, own, keys[l], (int32_t)(b + l));
                        }
                    }
                }
}

static inline void push_shared(Lists *lists, uint8_t *locks, int64_t owner, float key,
                               int32_t row) {
    while (__atomic_test_and_set(locks + owner, __ATOMIC_ACQUIRE)) _mm_pause();
    push(lists, owner, key, row);
    __atomic_clear(locks + owner, __ATOMIC_RELEASE);
}

/* All rows against all others, each product used for both of its rows. Threads that share lists,
 * locks (n bytes of zero) and next_block (zero) share the work. A row is not its own candidate.
 * `block` is a multiple of NARROW and of WIDE; the limits of rows that fill up a panel are minus
 * infinity. */
AVX2 void join_self(const Packed *narrow, const Packed *wide, int64_t n, int64_t dim,
                    int64_t block, Lists *lists, uint8_t *locks, int64_t *next_block) {
    int64_t pairs = pairs_of(dim);
    for (;;) {
        int64_t from = block * __atomic_fetch_add(next_block, 1, __ATOMIC_RELAXED);
        if (from >= n) return;
        int64_t to = from + block < n ? from + block : n;
        for (int64_t b = from; b < n; b += WIDE) {
            int beyond = b >= from + block; /* inside a block each pair is met from both sides */
            for (int64_t q = from; q < to; q += NARROW) {
                __m256i dots[NARROW][2];
                dot_tile(narrow->panels + q * pairs * 2, wide->panels + b * pairs * 2, pairs, dots);
                for (int r = 0; r < NARROW && q + r < to; r++) {
                    int64_t one = q + r;
                    float keys[WIDE];
                    /* A limit read without the lock may be stale: too high, and then push looks
                       at it again. */
                    __m256 limit = _mm256_set1_ps(lists->limit[one]);
                    __m256 limits[2] = {limit, limit};
                    __m256 squares[2] = {_mm256_loadu_ps(wide->square + b),
                                         _mm256_loadu_ps(wide->square + b + 8)};
                    int under = fill_key(narrow, one, wide, b, dots[r], squares, limits, keys);
                    for (; under; under &= under - 1) {
                        int l = __builtin_ctz(under);
                        if (b + l != one) push_shared(lists, locks, one, keys[l], (int32_t)(b + l));
                    }
                    if (!beyond) continue;
                    squares[0] = squares[1] = _mm256_set1_ps(narrow->square[one]);
                    limits[0] = _mm256_loadu_ps(lists->limit + b);
                    limits[1] = _mm256_loadu_ps(lists->limit + b + 8);
                    under = fill_key(narrow, one, wide, b, dots[r], squares, limits, keys);
                    for (; under; under &= under - 1) {
                        int l = __builtin_ctz(under);
                        push_shared(lists, locks, b + l, keys[l], (int32_t)one);
                    }
                }
            }
        }
    }
}

/* Squared distances of every query to the bank rows named for it, from the rows themselves. */
AVX2 void measure(const float *queries, int64_t q_stride, const float *bank, int64_t b_stride,
                  int64_t dim, int64_t count, int64_t candidates, const int64_t *rows,
                  float *squared) {
    for (int64_t i = 0; i < count * candidates; i++) {
        if (i + 4 < count * candidates) { /* the rows lie anywhere in memory */
            const float *later = bank + rows[i + 4] * b_stride;
            for (int line = 0; line < 4; line++) __builtin_prefetch(later + 16 * line);
        }
        const float *x = queries + i / candidates * q_stride, *y = bank + rows[i] * b_stride;
        __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                         _mm256_setzero_ps()};
        int64_t k = 0;
        for (; k + 32 <= dim; k += 32)
            for (int s = 0; s < 4; s++) {
                __m256 d = _mm256_sub_ps(_mm256_loadu_ps(x + k + 8 * s),
                                         _mm256_loadu_ps(y + k + 8 * s));
                sum[s] = _mm256_fmadd_ps(d, d, sum[s]);
            }
        float rest = 0;
        for (; k < dim; k++) rest += (x[k] - y[k]) * (x[k] - y[k]);
        squared[i] = rest + total(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]),
                                                _mm256_add_ps(sum[2], sum[3])));
    }
}
