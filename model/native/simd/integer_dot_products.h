// Dot products of integers in one instruction. Included by kernel files only.
//
// SMOE_DOT_BYTES: the instruction set has dot_bytes. SMOE_UNSIGNED_BY_SIGNED: it multiplies unsigned bytes by signed
// ones (x86's VNNI, ARM's I8MM); else both are signed. SMOE_VNNI: it has dot_pairs.
#pragma once

#include "simd/vec.h"

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define SMOE_VNNI 1
#else
#define SMOE_VNNI 0
#endif

#if SMOE_VNNI || defined(__ARM_FEATURE_MATMUL_INT8)
#define SMOE_UNSIGNED_BY_SIGNED 1
#else
#define SMOE_UNSIGNED_BY_SIGNED 0
#endif

#if SMOE_UNSIGNED_BY_SIGNED || defined(__ARM_FEATURE_DOTPROD)
#define SMOE_DOT_BYTES 1
#else
#define SMOE_DOT_BYTES 0
#endif

namespace smoe {
namespace SMOE_ISA {

#if defined(__AVX2__) && !SMOE_VNNI
constexpr bool SUMS_OF_16_BITS = true;  // maddubs adds up pairs of products in 16 bits
#else
constexpr bool SUMS_OF_16_BITS = false;
#endif

// True if sums of products of bytes that fit into 16 bits are multiplied by dot_pairs, in one instruction instead of
// three, in the formats that gain: some do on Intel's CPUs only (decision 124). With 8 lanes it was not measured.
constexpr bool SHORT_BYTE_SUMS = SMOE_VNNI && LANES == 16;

#if SMOE_DOT_BYTES

// Return sums + the products of four bytes of w and four signed bytes of x per lane. Bytes of w: unsigned with
// SMOE_UNSIGNED_BY_SIGNED, else signed.
inline Words dot_bytes(Words sums, Words w, Words x) {
#if defined(__AVX512VNNI__)
    return (Words)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)w, (__m512i)x);
#elif defined(__AVXVNNI__)
    return (Words)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)w, (__m256i)x);
#elif defined(__ARM_FEATURE_MATMUL_INT8)
    return (Words)vusdotq_s32((int32x4_t)sums, (uint8x16_t)w, (int8x16_t)x);
#else
    return (Words)vdotq_s32((int32x4_t)sums, (int8x16_t)w, (int8x16_t)x);
#endif
}

#endif

#if SMOE_VNNI

// Return sums + the products of two signed 16-bit integers per lane.
inline Words dot_pairs(Words sums, Words a, Words b) {
#if defined(__AVX512VNNI__)
    return (Words)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#else
    return (Words)_mm256_dpwssd_avx_epi32((__m256i)sums, (__m256i)a, (__m256i)b);
#endif
}

#endif

#if defined(__AVX2__)

// The sums of AVX2 are written in assembly that changes their registers. From intrinsics GCC adds to another register
// and copies it back, or adds products up in another order and keeps them in memory meanwhile.

// Return sums + products.
inline Words add_to(Words sums, Words products) {
    asm("vpaddd %1, %0, %0" : "+x"(sums) : "x"(products));
    return sums;
}

// Return sums + the products of bytes, in 16 bits: two unsigned bytes of w and two signed ones of x per sum.
inline Words add_byte_pairs(Words sums, Words w, Words x) {
    Words products;
    asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sums), "=&x"(products) : "x"(w), "x"(x));
    return sums;
}

// Return sums + the products of two signed 16-bit integers per lane. The sums may be in memory.
inline Words add_word_pairs(Words sums, Words a, Words b) {
    Words result;
    asm("vpmaddwd %3, %2, %0\n\tvpaddd %1, %0, %0" : "=&x"(result) : "xm"(sums), "x"(a), "x"(b));
    return result;
}

#endif

}  // namespace SMOE_ISA
}  // namespace smoe
