// Gated activations: two halves of a product become one.
#pragma once

#include "operations.h"
#include "vec.h"

namespace mainspring::MAINSPRING_ISA {

inline Float silu(Float x) { return x / (exp(-x) + 1.0f); }

// 0.5 x (1 + tanh z) as x / (1 + e^-2z), which does not cancel where z is very negative.
inline Float gelu_tanh(Float x) {
  const Float z = fma(x * x * x, broadcast(0.044715f), x) * broadcast(0.7978845608f);
  return x / (exp(-(z + z)) + 1.0f);
}

// The experts of gpt-oss: silu with a steeper sigmoid, both sides bounded, and one more of `up`.
inline Float clamped_silu(Float gate, Float up) {
  const Float bound = broadcast(7.0f);
  gate = min(bound, gate);
  up = max(-bound, min(bound, up));
  return gate / (exp(gate * -1.702f) + 1.0f) * (up + 1.0f);
}

template <class Function>
void gate_row(const float* gate, const float* up, std::int64_t width, float* y,
              const Function& function) {
  std::int64_t i = 0;
  for (; i + lanes <= width; i += lanes) store(y + i, function(load(gate + i), load(up + i)));
  if (i < width) {
    const int left = int(width - i);
    store_part(y + i, function(load_part(gate + i, left), load_part(up + i, left)), left);
  }
}

// Calls body with the activation's function.
template <class Body>
inline void with_function(Activation activation, const Body& body) {
  if (activation == Activation::silu) {
    body([](Float gate, Float up) { return silu(gate) * up; });
  } else if (activation == Activation::gelu_tanh) {
    body([](Float gate, Float up) { return gelu_tanh(gate) * up; });
  } else {
    body([](Float gate, Float up) { return clamped_silu(gate, up); });
  }
}

}  // namespace mainspring::MAINSPRING_ISA
