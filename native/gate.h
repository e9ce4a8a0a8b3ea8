// Gated activations: function(gate) * up.
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

template <class Function>
void gate_row(const float* gate, const float* up, std::int64_t width, float* y,
              const Function& function) {
  std::int64_t i = 0;
  for (; i + lanes <= width; i += lanes) store(y + i, function(load(gate + i)) * load(up + i));
  if (i < width) {
    const int left = int(width - i);
    store_part(y + i, function(load_part(gate + i, left)) * load_part(up + i, left), left);
  }
}

// Calls body with the activation's function.
template <class Body>
inline void with_function(Activation activation, const Body& body) {
  if (activation == Activation::silu) {
    body([](Float v) { return silu(v); });
  } else {
    body([](Float v) { return gelu_tanh(v); });
  }
}

}  // namespace mainspring::MAINSPRING_ISA
