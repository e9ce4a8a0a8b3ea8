// AVX-512 with F, BW, VL, DQ, VNNI and BF16.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace mainspring::MAINSPRING_ISA {

inline constexpr int lanes = 16;
using Float = float __attribute__((vector_size(64)));
using Int = std::int32_t __attribute__((vector_size(64)));
using Packed = std::int32_t __attribute__((vector_size(64), aligned(4), may_alias));

// Registers: 24 accumulators, 4 weights, 1 activation of 32.
inline constexpr int tile_rows = 6;
inline constexpr int tile_vecs = 4;
// Up to so many rows, writing out int4 weights as int8 costs more than it saves.
inline constexpr int narrow_rows = 4;

inline Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
// If either is NaN, the second.
inline Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
inline Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
inline Int round_even(Float v) { return Int(_mm512_cvtps_epi32(v)); }
inline Float nearest(Float v) {
  return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// x * 2^n for a whole n.
inline Float scaled(Float x, Float n) { return _mm512_scalef_ps(x, n); }
inline Int widened(const std::int8_t* p) {
  return Int(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

// One bit a lane, and what is done where it is set.
using Mask = __mmask16;
inline Mask at_least(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline Mask between(Float v, Float low, Float high) {  // low <= v < high
  return Mask(at_least(v, low) & ~at_least(v, high));
}
inline bool none(Mask mask) { return mask == 0; }
inline bool has(Mask mask, int lane) { return (mask >> lane & 1) != 0; }
inline Float add_where(Mask mask, Float sum, Float v) {
  return _mm512_mask_add_ps(sum, mask, sum, v);
}
inline int count(Mask mask) { return __builtin_popcount(mask); }

// Folds halves: the order is the same wherever it is used.
inline float sum(Float v) {
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
inline float largest(Float v) {
  const __m256 a = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

inline std::int32_t sum(Int v) { return _mm512_reduce_add_epi32(__m512i(v)); }
inline std::int32_t largest(Int v) { return _mm512_reduce_max_epi32(__m512i(v)); }

// Two bfloat16 in each 32 bits.
struct BFloat16 {
  using Element = std::uint16_t;
  using Accumulator = Float;
  using Weights = __m512bh;
  using Activation = __m512bh;
  static constexpr int width = 2;

  static Weights weights(const std::byte* p) { return __m512bh(_mm512_loadu_si512(p)); }
  static Activation activation(const Element* p) {
    std::int32_t pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return __m512bh(_mm512_set1_epi32(pair));
  }
  static Float dot(Activation x, Weights w, Float sum) { return _mm512_dpbf16_ps(sum, w, x); }
  static void put(Element* p, Float v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), __m256i(_mm512_cvtneps_pbh(v)));
  }
};

// Four products of u8 weights (128 too large) and s8 activations in each 32 bits.
struct Int8 {
  using Element = std::int8_t;
  using Accumulator = Int;
  using Weights = Int;
  using Activation = Int;
  static constexpr int width = 4;

  static Weights weights(const std::byte* p) { return Int(_mm512_loadu_si512(p)); }
  static Weights split(Int quads) { return quads; }
  static Activation activation(const Element* p) {
    std::int32_t quad;
    __builtin_memcpy(&quad, p, sizeof quad);
    return Int(_mm512_set1_epi32(quad));
  }
  static Int dot(Activation x, Weights w, Int sum) {
    return Int(_mm512_dpbusd_epi32(__m512i(sum), __m512i(w), __m512i(x)));
  }
  // `lanes` integers of the size of a byte.
  static void put(Element* p, Int v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(__m512i(v)));
  }
};

// The same weights and activations of 15 bits, in the order 0 2 1 3, so that one 32-bit word meets
// the even bytes and the next the odd ones.
struct Int8By15 {
  using Element = std::int16_t;
  using Accumulator = Int;
  struct Weights {
    Int even, odd;
  };
  struct Activation {
    Int even, odd;
  };
  static constexpr int width = 4;

  static Weights weights(const std::byte* p) {
    const __m512i quads = _mm512_loadu_si512(p);
    return {Int(quads) & 0x00ff00ff, Int(_mm512_srli_epi16(quads, 8))};
  }
  static Activation activation(const Element* p) {
    std::int32_t even, odd;
    __builtin_memcpy(&even, p, sizeof even);
    __builtin_memcpy(&odd, p + 2, sizeof odd);
    return {Int(_mm512_set1_epi32(even)), Int(_mm512_set1_epi32(odd))};
  }
  static Int dot(const Activation& x, const Weights& w, Int sum) {
    const __m512i even = _mm512_dpwssd_epi32(__m512i(sum), __m512i(w.even), __m512i(x.even));
    return Int(_mm512_dpwssd_epi32(even, __m512i(w.odd), __m512i(x.odd)));
  }
  // `lanes` integers of 15 bits.
  static void put(Element* p, Int v) {
    const __m512i order = _mm512_castsi256_si512(
        _mm256_setr_epi16(0, 4, 2, 6, 8, 12, 10, 14, 16, 20, 18, 22, 24, 28, 26, 30));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_castsi512_si256(_mm512_permutexvar_epi16(order, __m512i(v))));
  }
};

}  // namespace mainspring::MAINSPRING_ISA
