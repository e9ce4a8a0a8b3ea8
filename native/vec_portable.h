// Vectors of 16 bytes, which every target has: SSE2, NEON.
#pragma once

#include <cstdint>

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace mainspring::MAINSPRING_ISA {

inline constexpr int lanes = 4;
using Float = float __attribute__((vector_size(16)));
using Int = std::int32_t __attribute__((vector_size(16)));
using Short = std::int16_t __attribute__((vector_size(16)));
using Packed = std::int32_t __attribute__((vector_size(16), aligned(4), may_alias));

inline constexpr int tile_rows = 4;
inline constexpr int tile_vecs = 2;

#if defined(__aarch64__)
inline Float fma(Float a, Float b, Float c) {
  return Float(vfmaq_f32(float32x4_t(c), float32x4_t(a), float32x4_t(b)));
}
#else
inline Float fma(Float a, Float b, Float c) { return a * b + c; }
#endif

inline Float choose(Int mask, Float yes, Float no) {
  return Float((mask & Int(yes)) | (~mask & Int(no)));
}
// If either is NaN, the second.
inline Float max(Float a, Float b) { return choose(a > b, a, b); }
inline Float min(Float a, Float b) { return choose(a < b, a, b); }

// Adding 1.5 * 2^23 leaves the integer, rounded to even, in the low bits. |v| < 2^22.
inline Int round_even(Float v) { return Int(v + 12582912.0f) - 0x4b400000; }

// The sums of neighbouring 16-bit products, each of which fits 16 bits: |activation| <= 127 and
// 0 <= weight <= 255.
inline Int multiply_pairs(Int a, Int b) {
  const Int products = Int(Short(a) * Short(b));
  return ((products << 16) >> 16) + (products >> 16);
}

}  // namespace mainspring::MAINSPRING_ISA

#include "vec_pairs.h"
