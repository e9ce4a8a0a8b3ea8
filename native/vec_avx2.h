// AVX2 with FMA.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace mainspring::MAINSPRING_ISA {

inline constexpr int lanes = 8;
using Float = float __attribute__((vector_size(32)));
using Int = std::int32_t __attribute__((vector_size(32)));
using Packed = std::int32_t __attribute__((vector_size(32), aligned(4), may_alias));

// Registers: 8 accumulators, 4 halves of weights, 2 of activations of 16.
inline constexpr int tile_rows = 4;
inline constexpr int tile_vecs = 2;

inline Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
// If either is NaN, the second.
inline Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
inline Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
inline Int round_even(Float v) { return Int(_mm256_cvtps_epi32(v)); }

// The sums of neighbouring 16-bit products.
inline Int multiply_pairs(Int a, Int b) {
  return Int(_mm256_madd_epi16(__m256i(a), __m256i(b)));
}

}  // namespace mainspring::MAINSPRING_ISA

#include "vec_pairs.h"
