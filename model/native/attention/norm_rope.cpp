// RMSNorm, rotary angles, rotation, and writes to the KV cache. Compiled once per instruction set.
#include "attention/norm_rope.h"

#include "attention/attention.h"
#include "attention/kv_row.h"
#include "attention/kv_store.h"
#include "simd/vec.h"
#include "simd/vec_tail.h"

namespace smoe {
namespace SMOE_ISA {
namespace {

// Sum of x^2 over one row. Number i goes to accumulator i / LANES mod 4, so that four additions are in flight.
template <class T>
float sum_of_squares(const T* x, int64_t dim) {
    Vec chains[4] = {};
    int64_t i = 0;
    for (; i + 4 * LANES <= dim; i += 4 * LANES)
        for (int chain = 0; chain < 4; ++chain) {
            const Vec part = load(x + i + chain * LANES);
            chains[chain] = fma(part, part, chains[chain]);
        }
    for (int chain = 0; i < dim; i += LANES, ++chain) {
        const Vec part = load_first(x + i, dim - i);
        chains[chain] = fma(part, part, chains[chain]);
    }
    return sum((chains[0] + chains[1]) + (chains[2] + chains[3]));
}

template <class T>
void normalize(const NormArgs& args, int64_t first, int64_t last) {
    const T* weight = static_cast<const T*>(args.weight);
    for (int64_t row = first; row < last; ++row) {
        const T* x = static_cast<const T*>(args.x) + row * args.dim;
        T* y = static_cast<T*>(args.y) + row * args.dim;
        const float mean = sum_of_squares(x, args.dim) / static_cast<float>(args.dim);
        const float scale = 1.0f / __builtin_sqrtf(mean + args.eps);
        for (int64_t i = 0; i < args.dim; i += LANES) {
            const int64_t n = args.dim - i;
            store_first(y + i, load_first(x + i, n) * scale * load_first(weight + i, n), n);
        }
    }
}

template <class T>
void add_numbers(T* x, const T* y, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i += LANES)
        store_first(x + i, load_first(x + i, last - i) + load_first(y + i, last - i), last - i);
}

// Rotate the pairs (i, i + K/2) of one head.
template <class T, class To>
void rotate(const T* from, To* to, const float* cos, const float* sin, int64_t num_pairs) {
    for (int64_t i = 0; i < num_pairs; i += LANES) {
        const int64_t n = num_pairs - i;
        const Vec a = load_first(from + i, n), b = load_first(from + num_pairs + i, n);
        const Vec c = load_first(cos + i, n), s = load_first(sin + i, n);
        store_first(to + i, a * c - b * s, n);
        store_first(to + num_pairs + i, b * c + a * s, n);
    }
}

template <class T, class Query, class Number>
void rotate_rows(const RotationArgs& args, int64_t first, int64_t last) {
    const int64_t H = args.num_heads, G = args.num_kv_heads, K = args.head_dim, num_pairs = K / 2;
    float* spare = args.spare + first * 2 * K;
    StorePrefetcher prefetcher(args, first, true, H);
    for (int64_t row = first; row < last; ++row) {
        const T* from = static_cast<const T*>(args.qkv) + row * (H + 2 * G) * K;
        const float* cos = args.cos + row * num_pairs;
        const float* sin = args.sin + row * num_pairs;
        auto* q = static_cast<Query*>(args.q) + row * H * K;
        for (int64_t head = 0; head < H; ++head) {
            rotate(from + head * K, q + head * K, cos, sin, num_pairs);
            prefetcher.step();
        }
        prefetcher.finish();
        prefetcher = row + 1 < last ? StorePrefetcher(args, row + 1, false, G + H) : StorePrefetcher();
        const CacheRows<T, Number> k(args, args.k_cache, row, true, spare), v(args, args.v_cache, row, false, spare);
        for (int64_t head = 0; head < G; ++head) {
            T* rotated = k.target(head);
            rotate(from + (H + head) * K, rotated, cos, sin, num_pairs);
            k.write(head, rotated);
            v.write(head, from + (H + G + head) * K);
            prefetcher.step();
        }
    }
}

struct SinCos {
    double sin;
    double cos;
};

// Range reduction: x = n pi/2 + r with |r| <= pi/4, pi/2 in two parts, the first of 33 bits (Cody & Waite 1980).
// Polynomials of fdlibm (k_sin.c, k_cos.c) on r; their error is far below a float's last place.
SinCos sin_cos(double x) {
    constexpr double TO_INTEGER = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
    const double n = (x * 6.36619772367581382433e-01 + TO_INTEGER) - TO_INTEGER;
    const double r = (x - n * 1.57079632673412561417e+00) - n * 6.07710050650619224932e-11;
    const double z = r * r;
    double s = 1.58969099521155010221e-10;
    s = s * z - 2.50507602534068634195e-08;
    s = s * z + 2.75573137070700676789e-06;
    s = s * z - 1.98412698298579493134e-04;
    s = s * z + 8.33333333332248946124e-03;
    s = s * z - 1.66666666666666324348e-01;
    s = r + r * z * s;
    double c = -1.13596475577881948265e-11;
    c = c * z + 2.08757232129817482790e-09;
    c = c * z - 2.75573143513906633035e-07;
    c = c * z + 2.48015872894767294178e-05;
    c = c * z - 1.38888888888741095749e-03;
    c = c * z + 4.16666666666666019037e-02;
    c = (1.0 - 0.5 * z) + z * z * c;
    switch (static_cast<int64_t>(n) & 3) {
        case 0: return {s, c};
        case 1: return {c, -s};
        case 2: return {-s, -c};
        default: return {-c, s};
    }
}

}  // namespace

void add(int dtype, void* x, const void* y, int64_t first, int64_t last) {
    if (dtype == BFLOAT16)
        add_numbers(static_cast<uint16_t*>(x), static_cast<const uint16_t*>(y), first, last);
    else
        add_numbers(static_cast<float*>(x), static_cast<const float*>(y), first, last);
}

void rms_norm(const NormArgs& args, int64_t first, int64_t last) {
    if (args.dtype == BFLOAT16)
        normalize<uint16_t>(args, first, last);
    else
        normalize<float>(args, first, last);
}

void rope_and_store_kv(const RotationArgs& args, int64_t first, int64_t last) {
    with_kv_number(args.kv_dtype, [&](auto number) {
        using Number = decltype(number);
        if (args.dtype == BFLOAT16) return rotate_rows<uint16_t, uint16_t, Number>(args, first, last);
        if (args.q_dtype == BFLOAT16) return rotate_rows<float, uint16_t, Number>(args, first, last);
        rotate_rows<float, float, Number>(args, first, last);
    });
}

void rotary_angles(int64_t position, const float* inverse_frequency, int64_t num_pairs, float factor, float* cos,
                   float* sin) {
    for (int64_t i = 0; i < num_pairs; ++i) {
        const float angle = static_cast<float>(position) * inverse_frequency[i];
        const SinCos exact = sin_cos(angle);
        cos[i] = static_cast<float>(exact.cos) * factor;
        sin[i] = static_cast<float>(exact.sin) * factor;
    }
}

}  // namespace SMOE_ISA
}  // namespace smoe
