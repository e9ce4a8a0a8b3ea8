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
// Up to so many rows, writing out int4 weights as int8 costs more than it saves.
inline constexpr int narrow_rows = 1;

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
inline Float nearest(Float v) { return (v + 12582912.0f) - 12582912.0f; }
// x * 2^n for a whole n <= 127; 0 where 2^n would be subnormal.
inline Float scaled(Float x, Float n) {
  const Int exponent = round_even(n) + 127;
  return x * Float((exponent & (exponent > 0)) << 23);
}
inline Int widened(const std::int8_t* p) { return Int{p[0], p[1], p[2], p[3]}; }

// All bits of a lane or none, and what is done where they are set.
using Mask = Int;
inline Mask at_least(Float a, Float b) { return a >= b; }
inline Mask between(Float v, Float low, Float high) { return (v >= low) & (v < high); }
inline bool none(Mask mask) { return (mask[0] | mask[1] | mask[2] | mask[3]) == 0; }
inline bool has(Mask mask, int lane) { return mask[lane] != 0; }
inline Float add_where(Mask mask, Float sum, Float v) { return sum + Float(mask & Int(v)); }
inline int count(Mask mask) { return -(mask[0] + mask[1] + mask[2] + mask[3]); }

// Folds halves: the order is the same wherever it is used.
inline float sum(Float v) { return (v[0] + v[2]) + (v[1] + v[3]); }
inline float largest(Float v) {
  const float even = v[0] > v[2] ? v[0] : v[2], odd = v[1] > v[3] ? v[1] : v[3];
  return even > odd ? even : odd;
}

// The sums of neighbouring 16-bit products, each of which fits 16 bits: |activation| <= 127 and
// 0 <= weight <= 255.
inline Int multiply_pairs(Int a, Int b) {
  const Int products = Int(Short(a) * Short(b));
  return ((products << 16) >> 16) + (products >> 16);
}
// The same where they fit 32 bits only.
inline Int multiply_wide_pairs(Int a, Int b) {
  return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
}

}  // namespace mainspring::MAINSPRING_ISA

#include "vec_pairs.h"
