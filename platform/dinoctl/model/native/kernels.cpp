/* The branches of a transformer block on the CPU in fp32, a chunk of rows at a time.
 *
 * What `model.fused` does with one tensor operation after the other, each over its own share of memory and each with a
 * meeting of all threads, a thread does here for a chunk of rows that stays in its cache: norm, product, activation,
 * product, residual. Threads meet once a branch. Matrix products are the BLAS's own (`sgemm_`, handed in by
 * `dinoctl_use`), called from one thread each.
 *
 * Matrices are row-major and dense. A branch works on `n` rows; `rows` tells where they lie in the residual (NULL: they
 * are all rows of it) and `scale` what each counts (NULL: 1). Work is divided into `slots`, one a thread, always in the
 * same way, and what is summed over rows is summed slot by slot, so that equal inputs give equal bits. Sums over rows
 * (gradients of parameters) therefore have a leading dimension of slots. `scratch` is room for `slots` times the floats
 * that `dinoctl_scratch` tells.
 */

#include <cmath>
#include <cstdint>

using i64 = std::int64_t;
using gemm_fn = void (*)(const char *, const char *, const int *, const int *, const int *, const float *, const float *,
                         const int *, const float *, const int *, const float *, float *, const int *);
using threads_fn = int (*)(int);

static gemm_fn sgemm;
static threads_fn limit_threads;

/* The BLAS's sgemm_, and its function that limits the threads of the calling thread (NULL: it has none). */
extern "C" void dinoctl_use(gemm_fn product, threads_fn threads) {
    sgemm = product;
    limit_threads = threads;
}

/* C (m, n) = A B + beta C, where A (m, k) may come as its transpose and B (k, n) as its; ld: distance between rows. */
static void gemm(int transpose_a, int transpose_b, i64 m, i64 n, i64 k, float alpha, const float *a, i64 lda,
                 const float *b, i64 ldb, float beta, float *c, i64 ldc) {
    const int rows = (int)m, columns = (int)n, inner = (int)k, la = (int)lda, lb = (int)ldb, lc = (int)ldc;
    /* The BLAS reads by columns: the transpose of the whole equation. */
    sgemm(transpose_b ? "T" : "N", transpose_a ? "T" : "N", &columns, &rows, &inner, &alpha, b, &lb, a, &la, &beta, c,
          &lc);
}

/* e^x for x <= 0 to about 1 unit in the last place, not below e^-80 (denormal numbers are slow); NaN stays NaN. Written
 * so that compilers vectorise it. */
static inline float exp_(float x) {
    x = x < -80.0f ? -80.0f : x;
    const float whole = rintf(x * 1.44269504f);
    const float rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * rest + 1.3981999507e-3f;
    p = p * rest + 8.3334519073e-3f;
    p = p * rest + 4.1665795894e-2f;
    p = p * rest + 1.6666665459e-1f;
    p = p * rest + 5.0000001201e-1f;
    p = p * rest * rest + rest + 1.0f;
    union {
        int32_t bits;
        float value;
    } power = {((int32_t)whole + 127) << 23};
    return p * power.value;
}

/* The normal distribution's function at x, given e^(-x^2 / 2) (Abramowitz & Stegun 7.1.26, error below 1e-7). */
static inline float normal_cdf(float x, float bell) {
    const float z = fabsf(x) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * z);
    const float tail =
        0.5f * bell * t *
        (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    return x < 0 ? tail : 1.0f - tail;
}

static inline float sigmoid(float x) {
    const float e = exp_(-fabsf(x)), inverse = 1.0f / (1.0f + e), below = x < -80.0f ? 0.0f : e * inverse;
    return x < 0 ? below : inverse;
}

static void gelu_row(i64 width, const float *__restrict x, const float *__restrict bias, float *__restrict out) {
    for (i64 j = 0; j < width; j++) {
        const float value = x[j] + bias[j];
        out[j] = value * normal_cdf(value, exp_(-0.5f * value * value));
    }
}

static void gelu_row_backward(i64 width, const float *__restrict x, const float *__restrict bias,
                              float *__restrict gradient, float *__restrict out, float *__restrict to_bias) {
    for (i64 j = 0; j < width; j++) {
        const float value = x[j] + bias[j], bell = exp_(-0.5f * value * value), cdf = normal_cdf(value, bell);
        const float to_x = gradient[j] * (cdf + value * 0.39894228f * bell);
        out[j] = value * cdf;
        gradient[j] = to_x;
        to_bias[j] += to_x;
    }
}

static void gate_row(i64 half, const float *__restrict x, const float *__restrict y, const float *__restrict x_bias,
                     const float *__restrict y_bias, float *__restrict out) {
    for (i64 j = 0; j < half; j++) {
        const float gate = x[j] + x_bias[j];
        out[j] = gate * sigmoid(gate) * (y[j] + y_bias[j]);
    }
}

static void gate_row_backward(i64 half, const float *__restrict x, const float *__restrict y,
                              const float *__restrict x_bias, const float *__restrict y_bias,
                              const float *__restrict gradient, float *__restrict out, float *__restrict to_x,
                              float *__restrict to_y, float *__restrict to_x_bias, float *__restrict to_y_bias) {
    for (i64 j = 0; j < half; j++) {
        const float gate = x[j] + x_bias[j], value = y[j] + y_bias[j], s = sigmoid(gate);
        const float to_gate = gradient[j] * value * s * (1.0f + gate * (1.0f - s)), to_value = gradient[j] * gate * s;
        out[j] = gate * s * value;
        to_x[j] = to_gate;
        to_y[j] = to_value;
        to_x_bias[j] += to_gate;
        to_y_bias[j] += to_value;
    }
}

/* Scores of a query, (tokens,), to e^(score - their maximum); returns the maximum and leaves the sum in `sum`. */
static float exponentials(i64 tokens, float *__restrict s, float *sum) {
    float most = s[0], total = 0;
#pragma omp simd reduction(max : most)
    for (i64 j = 0; j < tokens; j++) most = most < s[j] ? s[j] : most;
    for (i64 j = 0; j < tokens; j++) {
        s[j] = exp_(s[j] - most);
        total += s[j];
    }
    *sum = total;
    return most;
}

/* (count, dim) rows of x to their LayerNorm. */
static void norm_rows(i64 count, i64 dim, const float *x, const float *weight, const float *bias, float eps, float *out) {
    for (i64 r = 0; r < count; r++) {
        const float *row = x + r * dim;
        float *to = out + r * dim;
        float sum = 0, squares = 0;
        for (i64 j = 0; j < dim; j++) sum += row[j];
        const float mean = sum / dim;
        for (i64 j = 0; j < dim; j++) squares += (row[j] - mean) * (row[j] - mean);
        const float rstd = 1.0f / sqrtf(squares / dim + eps);
        for (i64 j = 0; j < dim; j++) to[j] = (row[j] - mean) * rstd * weight[j] + bias[j];
    }
}

/* Of a row's LayerNorm: gradient to the row, in place of that to the result; sums of those to weight and bias. */
static void norm_row_backward(i64 dim, const float *row, const float *weight, float eps, float *gradient,
                              float *to_weight, float *to_bias) {
    float sum = 0, squares = 0, along = 0, total = 0;
    for (i64 j = 0; j < dim; j++) sum += row[j];
    const float mean = sum / dim;
    for (i64 j = 0; j < dim; j++) squares += (row[j] - mean) * (row[j] - mean);
    const float rstd = 1.0f / sqrtf(squares / dim + eps);
    for (i64 j = 0; j < dim; j++) {
        const float unit = (row[j] - mean) * rstd, g = gradient[j];
        to_weight[j] += g * unit;
        to_bias[j] += g;
        total += g * weight[j];
        along += g * weight[j] * unit;
    }
    total /= dim;
    along /= dim;
    for (i64 j = 0; j < dim; j++) {
        const float unit = (row[j] - mean) * rstd;
        gradient[j] = rstd * (gradient[j] * weight[j] - total - unit * along);
    }
}

static void add_rows(i64 count, i64 width, const float *x, float *sum) {
    for (i64 r = 0; r < count; r++)
        for (i64 j = 0; j < width; j++) sum[j] += x[r * width + j];
}

/* Rows of the residual's gradient that belong to a chunk, each times its scale; the rows themselves where they lie. */
static const float *gathered(i64 first, i64 count, i64 dim, const float *gradient, const i64 *rows, const float *scale,
                             float *room) {
    if (!rows) return gradient + first * dim;
    for (i64 r = 0; r < count; r++) {
        const float *from = gradient + rows[first + r] * dim, by = scale ? scale[first + r] : 1.0f;
        for (i64 j = 0; j < dim; j++) room[r * dim + j] = from[j] * by;
    }
    return room;
}

/* total = x + bias + A W' of a chunk, W (dim, k), or with rows: total[rows] += scale (A W' + bias). */
static void add_product(i64 first, i64 count, i64 k, i64 dim, const float *a, const float *weight, const float *bias,
                        const float *x, const i64 *rows, const float *scale, float *total, float *room) {
    if (!rows) {
        float *to = total + first * dim;
        for (i64 r = 0; r < count; r++)
            for (i64 j = 0; j < dim; j++) to[r * dim + j] = x[(first + r) * dim + j] + bias[j];
        gemm(0, 1, count, dim, k, 1, a, k, weight, k, 1, to, dim);
        return;
    }
    gemm(0, 1, count, dim, k, 1, a, k, weight, k, 0, room, dim);
    for (i64 r = 0; r < count; r++) {
        float *to = total + rows[first + r] * dim;
        const float by = scale ? scale[first + r] : 1.0f;
        for (i64 j = 0; j < dim; j++) to[j] += by * (room[r * dim + j] + bias[j]);
    }
}

/* Joined gradient of residual and branch: joined = gradient + branch, or with rows joined[rows] += branch. */
static void join(i64 first, i64 count, i64 dim, const float *branch, const float *gradient, const i64 *rows,
                 float *joined) {
    for (i64 r = 0; r < count; r++) {
        const i64 row = rows ? rows[first + r] : first + r;
        const float *from = rows ? joined : gradient;
        for (i64 j = 0; j < dim; j++) joined[row * dim + j] = from[row * dim + j] + branch[r * dim + j];
    }
}

/* Calls body(slot) on as many threads as there are slots, with a BLAS that keeps to the thread it is called from. */
template <class Body>
static void for_slots(i64 slots, Body body) {
#pragma omp parallel for num_threads((int)slots) schedule(static, 1)
    for (i64 slot = 0; slot < slots; slot++) {
        const int before = limit_threads ? limit_threads(1) : 0;
        body(slot);
        if (limit_threads) limit_threads(before);
    }
}

/* Calls body(slot, first, count) for the chunks of rows of each slot, in order. */
template <class Body>
static void for_chunks(i64 slots, i64 chunk, i64 n, Body body) {
    for_slots(slots, [=](i64 slot) {
        const i64 end = n * (slot + 1) / slots;
        for (i64 first = n * slot / slots; first < end; first += chunk)
            body(slot, first, end - first < chunk ? end - first : chunk);
    });
}

extern "C" {

/* out (n, p) = norm(x) W' + bias, W (p, dim). Scratch: chunk * dim. */
void dinoctl_norm_linear(i64 slots, i64 chunk, i64 n, i64 dim, i64 p, float eps, const float *x, const float *norm_weight,
                         const float *norm_bias, const float *weight, const float *bias, float *out, float *scratch) {
    for_chunks(slots, chunk, n, [=](i64 slot, i64 first, i64 count) {
        float *normed = scratch + slot * chunk * dim, *to = out + first * p;
        norm_rows(count, dim, x + first * dim, norm_weight, norm_bias, eps, normed);
        gemm(0, 1, count, p, dim, 1, normed, dim, weight, dim, 0, to, p);
        for (i64 r = 0; r < count; r++)
            for (i64 j = 0; j < p; j++) to[r * p + j] += bias[j];
    });
}

/* Scratch: 2 * chunk * dim. */
void dinoctl_norm_linear_backward(i64 slots, i64 chunk, i64 n, i64 dim, i64 p, float eps, const float *x,
                                  const i64 *rows, const float *norm_weight, const float *norm_bias,
                                  const float *weight, const float *to_out, const float *gradient, float *joined,
                                  float *to_norm_weight, float *to_norm_bias, float *to_weight, float *to_bias,
                                  float *scratch) {
    for_chunks(slots, chunk, n, [=](i64 slot, i64 first, i64 count) {
        const float more = first > n * slot / slots ? 1.0f : 0.0f;
        float *normed = scratch + slot * 2 * chunk * dim, *branch = normed + chunk * dim;
        const float *given = to_out + first * p;
        norm_rows(count, dim, x + first * dim, norm_weight, norm_bias, eps, normed);
        gemm(1, 0, p, dim, count, 1, given, p, normed, dim, more, to_weight + slot * p * dim, dim);
        add_rows(count, p, given, to_bias + slot * p);
        gemm(0, 0, count, dim, p, 1, given, p, weight, dim, 0, branch, dim);
        for (i64 r = 0; r < count; r++)
            norm_row_backward(dim, x + (first + r) * dim, norm_weight, eps, branch + r * dim, to_norm_weight + slot * dim,
                              to_norm_bias + slot * dim);
        join(first, count, dim, branch, gradient, rows, joined);
    });
}

/* total (T, dim) = x + a W' + bias, a (n, k). Scratch: chunk * dim. */
void dinoctl_add_linear(i64 slots, i64 chunk, i64 n, i64 k, i64 dim, const float *a, const float *weight,
                        const float *bias, const float *x, const i64 *rows, const float *scale, float *total,
                        float *scratch) {
    for_chunks(slots, chunk, n, [=](i64 slot, i64 first, i64 count) {
        add_product(first, count, k, dim, a + first * k, weight, bias, x, rows, scale, total,
                    scratch + slot * chunk * dim);
    });
}

/* Scratch: chunk * dim. */
void dinoctl_add_linear_backward(i64 slots, i64 chunk, i64 n, i64 k, i64 dim, const float *a, const float *weight,
                                 const i64 *rows, const float *scale, const float *gradient, float *to_a,
                                 float *to_weight, float *to_bias, float *scratch) {
    for_chunks(slots, chunk, n, [=](i64 slot, i64 first, i64 count) {
        const float more = first > n * slot / slots ? 1.0f : 0.0f;
        const float *part = gathered(first, count, dim, gradient, rows, scale, scratch + slot * chunk * dim);
        gemm(1, 0, dim, k, count, 1, part, dim, a + first * k, k, more, to_weight + slot * dim * k, k);
        add_rows(count, dim, part, to_bias + slot * dim);
        gemm(0, 0, count, k, dim, 1, part, dim, weight, k, 0, to_a + first * k, k);
    });
}

/* The activation of rows whose inner product is `inner` (without its bias): GELU of `width` values, or with `gated`
 * silu of the first half times the second. */
static void activate(i64 count, i64 width, bool gated, const float *inner, const float *bias, float *out) {
    const i64 half = width / 2;
    for (i64 r = 0; r < count; r++) {
        const float *row = inner + r * width;
        if (gated)
            gate_row(half, row, row + half, bias, bias + half, out + r * half);
        else
            gelu_row(width, row, bias, out + r * width);
    }
}

/* The activation again, into `out`, and from the gradient to it that to the inner product: without a gate in place of
 * the former, else into `to_inner`. Adds the sum over rows to `to_bias`. */
static void activate_backward(i64 count, i64 width, bool gated, const float *inner, const float *bias, float *gradient,
                              float *out, float *to_inner, float *to_bias) {
    const i64 half = width / 2;
    for (i64 r = 0; r < count; r++) {
        const float *row = inner + r * width;
        if (gated)
            gate_row_backward(half, row, row + half, bias, bias + half, gradient + r * half, out + r * half,
                              to_inner + r * width, to_inner + r * width + half, to_bias, to_bias + half);
        else
            gelu_row_backward(width, row, bias, gradient + r * width, out + r * width, to_bias);
    }
}

/* total = x + outer(activation(inner(norm(source)))); inner (width, dim), outer (dim, out_width), where out_width is
 * width, or half of it if gated. `stored` (n, width) receives the inner product without bias, or is NULL.
 * Scratch: chunk * (dim + width + out_width). */
void dinoctl_feed_forward(i64 slots, i64 chunk, i64 n, i64 dim, i64 width, i64 gated, float eps, const float *source,
                          const float *x, const i64 *rows, const float *scale, const float *norm_weight,
                          const float *norm_bias, const float *inner, const float *inner_bias, const float *outer,
                          const float *outer_bias, float *stored, float *total, float *scratch) {
    const i64 out_width = gated ? width / 2 : width;
    for_chunks(slots, chunk, n, [=](i64 slot, i64 first, i64 count) {
        float *normed = scratch + slot * chunk * (dim + width + out_width);
        float *active = normed + chunk * dim;
        float *hidden = stored ? stored + first * width : active + chunk * out_width;
        norm_rows(count, dim, source + first * dim, norm_weight, norm_bias, eps, normed);
        gemm(0, 1, count, width, dim, 1, normed, dim, inner, dim, 0, hidden, width);
        activate(count, width, gated, hidden, inner_bias, active);
        add_product(first, count, out_width, dim, active, outer, outer_bias, x, rows, scale, total, normed);
    });
}

/* Scratch: chunk * (3 * dim + 2 * width + 2 * out_width). */
void dinoctl_feed_forward_backward(i64 slots, i64 chunk, i64 n, i64 dim, i64 width, i64 gated, float eps,
                                   const float *source, const i64 *rows, const float *scale, const float *norm_weight,
                                   const float *norm_bias, const float *inner, const float *inner_bias,
                                   const float *outer, const float *stored, const float *gradient, float *joined,
                                   float *to_norm_weight, float *to_norm_bias, float *to_inner, float *to_inner_bias,
                                   float *to_outer, float *to_outer_bias, float *scratch) {
    const i64 out_width = gated ? width / 2 : width;
    for_chunks(slots, chunk, n, [=](i64 slot, i64 first, i64 count) {
        const float more = first > n * slot / slots ? 1.0f : 0.0f;
        float *normed = scratch + slot * chunk * (3 * dim + 2 * width + 2 * out_width);
        float *branch = normed + chunk * dim;
        float *room = branch + chunk * dim;
        float *active = room + chunk * dim;
        float *to_active = active + chunk * out_width;
        float *to_hidden = gated ? to_active + chunk * out_width : to_active;
        float *again = to_active + chunk * (out_width + width);
        const float *part = gathered(first, count, dim, gradient, rows, scale, room);
        const float *hidden = stored ? stored + first * width : again;
        norm_rows(count, dim, source + first * dim, norm_weight, norm_bias, eps, normed);
        if (!stored) gemm(0, 1, count, width, dim, 1, normed, dim, inner, dim, 0, again, width);
        gemm(0, 0, count, out_width, dim, 1, part, dim, outer, out_width, 0, to_active, out_width);
        activate_backward(count, width, gated, hidden, inner_bias, to_active, active, to_hidden,
                          to_inner_bias + slot * width);
        gemm(1, 0, dim, out_width, count, 1, part, dim, active, out_width, more, to_outer + slot * dim * out_width,
             out_width);
        add_rows(count, dim, part, to_outer_bias + slot * dim);
        gemm(1, 0, width, dim, count, 1, to_hidden, width, normed, dim, more, to_inner + slot * width * dim, dim);
        gemm(0, 0, count, dim, width, 1, to_hidden, width, inner, dim, 0, branch, dim);
        for (i64 r = 0; r < count; r++)
            norm_row_backward(dim, source + (first + r) * dim, norm_weight, eps, branch + r * dim,
                              to_norm_weight + slot * dim, to_norm_bias + slot * dim);
        join(first, count, dim, branch, gradient, rows, joined);
    });
}

/* Softmax attention of one group of crops inside a packed qkv (n, 3 dim): out (n, dim), and for the backward pass the
 * logarithms of the softmax's sums (heads, n). The group begins at row `start`. A thread takes a head of a crop at a
 * time, `block` queries at once. Scratch: block * (stride + 1), where stride is the number
 * of tokens rounded up to a multiple of 16. */
void dinoctl_attention(i64 slots, i64 block, i64 start, i64 crops, i64 tokens, i64 heads, i64 width, i64 n, float by,
                       const float *qkv, float *out, float *sums, float *scratch) {
    const i64 dim = heads * width, ld = 3 * dim, items = crops * heads, stride = (tokens + 15) / 16 * 16;
    for_slots(slots, [=](i64 slot) {
        float *scores = scratch + slot * block * (stride + 1), *totals = scores + block * stride;
        for (i64 item = slot; item < items; item += slots) {
            const i64 row = start + item / heads * tokens, head = item % heads;
            const float *q = qkv + row * ld + head * width, *k = q + dim, *v = k + dim;
            for (i64 first = 0; first < tokens; first += block) {
                const i64 count = tokens - first < block ? tokens - first : block;
                float *to = out + (row + first) * dim + head * width;
                gemm(0, 1, count, tokens, width, by, q + first * ld, ld, k, ld, 0, scores, stride);
                for (i64 r = 0; r < count; r++) {
                    float most = exponentials(tokens, scores + r * stride, totals + r);
                    sums[head * n + row + first + r] = most + std::log(totals[r]);
                }
                gemm(0, 0, count, width, tokens, 1, scores, stride, v, ld, 0, to, dim);
                for (i64 r = 0; r < count; r++)
                    for (i64 j = 0; j < width; j++) to[r * dim + j] /= totals[r];
            }
        }
    });
}

/* Gradient to qkv (n, 3 dim). Scratch: 2 * block * stride. */
void dinoctl_attention_backward(i64 slots, i64 block, i64 start, i64 crops, i64 tokens, i64 heads, i64 width, i64 n,
                                float by, const float *qkv, const float *out, const float *sums, const float *to_out,
                                float *to_qkv, float *scratch) {
    const i64 dim = heads * width, ld = 3 * dim, items = crops * heads, stride = (tokens + 15) / 16 * 16;
    for_slots(slots, [=](i64 slot) {
        float *p = scratch + slot * 2 * block * stride, *to_p = p + block * stride;
        for (i64 item = slot; item < items; item += slots) {
            const i64 row = start + item / heads * tokens, head = item % heads;
            const float *q = qkv + row * ld + head * width, *k = q + dim, *v = k + dim;
            float *to_q = to_qkv + row * ld + head * width, *to_k = to_q + dim, *to_v = to_k + dim;
            for (i64 first = 0; first < tokens; first += block) {
                const i64 count = tokens - first < block ? tokens - first : block;
                const float *o = out + (row + first) * dim + head * width;
                const float *given = to_out + (row + first) * dim + head * width;
                const float more = first ? 1.0f : 0.0f;
                gemm(0, 1, count, tokens, width, by, q + first * ld, ld, k, ld, 0, p, stride);
                gemm(0, 1, count, tokens, width, by, given, dim, v, ld, 0, to_p, stride);
                for (i64 r = 0; r < count; r++) {
                    float *probability = p + r * stride, *gradient = to_p + r * stride, along = 0;
                    const float sum = sums[head * n + row + first + r];
                    for (i64 j = 0; j < width; j++) along += o[r * dim + j] * given[r * dim + j];
                    along *= by;
                    for (i64 j = 0; j < tokens; j++) {
                        probability[j] = exp_(probability[j] - sum);
                        gradient[j] = probability[j] * (gradient[j] - along);
                    }
                }
                gemm(1, 0, tokens, width, count, 1, p, stride, given, dim, more, to_v, ld);
                gemm(0, 0, count, width, tokens, 1, to_p, stride, k, ld, 0, to_q + first * ld, ld);
                gemm(1, 0, tokens, width, count, 1, to_p, stride, q + first * ld, ld, more, to_k, ld);
            }
        }
    });
}

}  // extern "C"
