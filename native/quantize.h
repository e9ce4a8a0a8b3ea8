// Symmetric integers of a group of floats.
#pragma once

#include "vec.h"

namespace mainspring::MAINSPRING_ISA {

struct Scale {
  float step;     // value = integer * step; NaN if the group holds NaN or infinity
  float inverse;  // 1 / step, or 0 for a group of zeros
};

// Groups below this are zeros: 1 / step would overflow.
inline constexpr float kSmallest = 1e-30f;

inline Scale scale_of_largest(float size, float limit) {
  // Comparing is false for NaN: a poisoned row must stay visible, not turn into some integer.
  if (!(size < __builtin_inff())) return {__builtin_nanf(""), 0.0f};
  const float step = size / limit;
  return step < kSmallest ? Scale{0.0f, 0.0f} : Scale{step, 1.0f / step};
}

// `count` is a multiple of `lanes`.
inline Scale scale_of(const float* x, int count, float limit) {
  // As integers, magnitudes order like floats, with NaN above infinity.
  Int size{};
  for (int i = 0; i < count; i += lanes) {
    const Int magnitude = bits_as<Int>(load(x + i)) & 0x7fffffff;
    size = size > magnitude ? size : magnitude;
  }
  return scale_of_largest(bits_as<float>(largest(size)), limit);
}

inline Int quantized(Float x, Scale scale, std::int32_t limit) {
  const Float bounded = max(broadcast(-float(limit)), min(broadcast(float(limit)),
                                                          x * broadcast(scale.inverse)));
  return round_even(scale.inverse == 0.0f ? Float{} : bounded);
}

}  // namespace mainspring::MAINSPRING_ISA
