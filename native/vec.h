// The vector type of one instruction set, in that set's own namespace.
//
// Every kernel is written once over `Float` and `Int` (`lanes` numbers of 32 bits, GNU vectors, so
// + - * & | << >> and comparisons are the compiler's) and compiled once for each set with
// MAINSPRING_ISA naming the namespace. Nothing compiled with one set's flags may be shared with
// another: a linker that merges two inline functions would run AVX-512 on a CPU without it.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(MAINSPRING_ISA_AVX512)
#include "vec_avx512.h"
#elif defined(MAINSPRING_ISA_AVX2)
#include "vec_avx2.h"
#else
#include "vec_portable.h"
#endif

#if defined(__clang__)
#define MAINSPRING_UNROLL _Pragma("unroll")
#else
#define MAINSPRING_UNROLL _Pragma("GCC unroll 16")
#endif

namespace mainspring::MAINSPRING_ISA {

template <class To, class From>
inline To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

inline Float load(const float* p) { return bits_as<Float>(*reinterpret_cast<const Packed*>(p)); }
inline Int load(const std::int32_t* p) { return bits_as<Int>(*reinterpret_cast<const Packed*>(p)); }
inline void store(float* p, Float v) { *reinterpret_cast<Packed*>(p) = bits_as<Packed>(v); }
inline void store(std::int32_t* p, Int v) { *reinterpret_cast<Packed*>(p) = bits_as<Packed>(v); }
inline Float broadcast(float x) { return x - Float{}; }
inline Int broadcast(std::int32_t x) { return x - Int{}; }
inline Float to_float(Int v) { return __builtin_convertvector(v, Float); }
inline Float select(Int mask, Float yes, Float no) {
  return bits_as<Float>((mask & bits_as<Int>(yes)) | (~mask & bits_as<Int>(no)));
}
inline Float absolute(Float x) { return bits_as<Float>(bits_as<Int>(x) & 0x7fffffff); }

// The first `count` < lanes numbers, the rest `fill`; and back.
inline Float load_part(const float* p, int count, float fill = 0.0f) {
  Float v = broadcast(fill);
  std::memcpy(&v, p, sizeof(float) * unsigned(count));
  return v;
}
inline void store_part(float* p, Float v, int count) {
  std::memcpy(p, &v, sizeof(float) * unsigned(count));
}

// 0, 1, 2, ...
inline Int iota() {
  Int v{};
  for (int i = 0; i < lanes; ++i) v[i] = i;
  return v;
}

// e^x within 2 ulp; 0 or subnormal below -87.3 (0 for -inf), finite above 88; NaN stays NaN.
// Cephes' reduction x = n ln 2 + r with |r| <= ln 2 / 2 and a polynomial in r.
inline Float exp(Float x) {
  const Float bounded = max(broadcast(-150.0f), min(broadcast(88.0f), x));
  const Float n = nearest(bounded * broadcast(1.44269504f));
  Float r = fma(n, broadcast(-0.693359375f), bounded);
  r = fma(n, broadcast(2.12194440e-4f), r);
  Float p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  return scaled(fma(p, r * r, r) + 1.0f, n);
}

// 2^x for x <= 0, in half the work of exp: 0 below -150; NaN stays NaN. Cephes' polynomial.
inline Float exp2(Float x) {
  const Float bounded = max(broadcast(-150.0f), x);
  const Float n = nearest(bounded);
  const Float r = bounded - n;
  Float p = broadcast(1.535336188319500e-4f);
  p = fma(p, r, broadcast(1.339887440266574e-3f));
  p = fma(p, r, broadcast(9.618437357674640e-3f));
  p = fma(p, r, broadcast(5.550332471162809e-2f));
  p = fma(p, r, broadcast(2.402264791363012e-1f));
  p = fma(p, r, broadcast(6.931472028550421e-1f));
  return scaled(fma(p, r, broadcast(1.0f)), n);
}

// tanh x within 2 ulp: a polynomial near 0 (Cephes), by e^2x elsewhere.
inline Float tanh(Float x) {
  const Float size = absolute(x);
  const Float square = x * x;
  Float p = broadcast(-5.70498872745e-3f);
  p = fma(p, square, broadcast(2.06390887954e-2f));
  p = fma(p, square, broadcast(-5.37397155531e-2f));
  p = fma(p, square, broadcast(1.33314422036e-1f));
  p = fma(p, square, broadcast(-3.33332819422e-1f));
  const Float near = fma(p * square, x, x);
  const Float far = 1.0f - 2.0f / (exp(size + size) + 1.0f);
  const Int sign = bits_as<Int>(x) & std::int32_t(0x80000000);
  const Float signed_far = bits_as<Float>(bits_as<Int>(far) | sign);
  return select(size < 0.625f, near, signed_far);
}

}  // namespace mainspring::MAINSPRING_ISA
