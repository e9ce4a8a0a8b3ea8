// Narrow formats on instruction sets without their own dot products: bf16 through float32, int8
// through sums of neighbouring 16-bit products; and what else both lack. Included by vec_avx2.h and
// vec_portable.h.
#pragma once

namespace mainspring::MAINSPRING_ISA {

inline std::int32_t sum(Int v) {
  std::int32_t total = 0;
  for (int i = 0; i < lanes; ++i) total += v[i];
  return total;
}
inline std::int32_t largest(Int v) {
  std::int32_t most = v[0];
  for (int i = 1; i < lanes; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

// Two bfloat16 in each 32 bits; activations are floats that were rounded to bfloat16.
struct BFloat16 {
  using Element = float;
  using Accumulator = Float;
  struct Weights {
    Float even, odd;
  };
  struct Activation {
    Float even, odd;
  };
  static constexpr int width = 2;

  static Weights weights(const std::byte* p) {
    const Int pair = Int(*reinterpret_cast<const Packed*>(p));
    return {Float(pair << 16), Float(pair & std::int32_t(0xffff0000))};
  }
  static Activation activation(const Element* p) { return {p[0] - Float{}, p[1] - Float{}}; }
  static Float dot(const Activation& x, const Weights& w, Float sum) {
    return fma(x.odd, w.odd, fma(x.even, w.even, sum));
  }
  static void put(Element* p, Float v) {
    const Int bits = Int(v);
    const Int rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & std::int32_t(0xffff0000);
    const Int nan = v != v;
    *reinterpret_cast<Packed*>(p) = Packed((nan & 0x7fc00000) | (~nan & rounded));
  }
};

// Four u8 weights (128 too large) in each 32 bits. Activations are 16 bits wide and stand in the
// order 0 2 1 3, so that one 32-bit word meets the even bytes and the next the odd ones.
// 255 * 127 * 2 overflows the 16-bit sums of vpmaddubsw; these 32-bit sums are exact.
struct Int8 {
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
    return split(Int(*reinterpret_cast<const Packed*>(p)));
  }
  static Weights split(Int quads) { return {quads & 0x00ff00ff, (quads >> 8) & 0x00ff00ff}; }
  static Activation activation(const Element* p) {
    std::int32_t even, odd;
    __builtin_memcpy(&even, p, sizeof even);
    __builtin_memcpy(&odd, p + 2, sizeof odd);
    return {even - Int{}, odd - Int{}};
  }
  static Int dot(const Activation& x, const Weights& w, Int sum) {
    return sum + multiply_pairs(w.even, x.even) + multiply_pairs(w.odd, x.odd);
  }
  // `lanes` integers of the size of a byte.
  static void put(Element* p, Int v) {
    constexpr int order[4] = {0, 2, 1, 3};
    for (int i = 0; i < lanes; ++i) p[(i & ~3) + order[i & 3]] = std::int16_t(v[i]);
  }
};

// The same with activations of 15 bits.
struct Int8By15 : Int8 {
  static Int dot(const Activation& x, const Weights& w, Int sum) {
    return sum + multiply_wide_pairs(w.even, x.even) + multiply_wide_pairs(w.odd, x.odd);
  }
};

}  // namespace mainspring::MAINSPRING_ISA
