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
// Up to so many rows, writing out int4 weights as int8 costs more than it saves.
inline constexpr int narrow_rows = 1;

inline Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
// If either is NaN, the second.
inline Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
inline Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
inline Int round_even(Float v) { return Int(_mm256_cvtps_epi32(v)); }
inline Float nearest(Float v) {
  return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// x * 2^n for a whole n <= 127; 0 where 2^n would be subnormal.
inline Float scaled(Float x, Float n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  const __m256i bounded = _mm256_max_epi32(exponent, _mm256_setzero_si256());
  return x * Float(_mm256_castsi256_ps(_mm256_slli_epi32(bounded, 23)));
}
inline Int widened(const std::int8_t* p) {
  return Int(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

// All bits of a lane or none, and what is done where they are set.
using Mask = Int;
inline Mask at_least(Float a, Float b) { return a >= b; }
inline Mask between(Float v, Float low, Float high) { return (v >= low) & (v < high); }
inline bool none(Mask mask) { return _mm256_testz_si256(__m256i(mask), __m256i(mask)) != 0; }
inline bool has(Mask mask, int lane) { return mask[lane] != 0; }
inline Float add_where(Mask mask, Float sum, Float v) { return sum + Float(mask & Int(v)); }
inline int count(Mask mask) {
  return __builtin_popcount(unsigned(_mm256_movemask_ps(__m256(mask))));
}

// Folds halves: the order is the same wherever it is used.
inline float sum(Float v) {
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
inline float largest(Float v) {
  const __m128 b = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

// The sums of neighbouring 16-bit products.
inline Int multiply_pairs(Int a, Int b) {
  return Int(_mm256_madd_epi16(__m256i(a), __m256i(b)));
}
inline Int multiply_wide_pairs(Int a, Int b) { return multiply_pairs(a, b); }

}  // namespace mainspring::MAINSPRING_ISA

#include "vec_pairs.h"
