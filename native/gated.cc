// Gated activations and the soft cap.
#include "isa.h"
#include "rows.h"
#include "vec.h"

namespace mainspring::MAINSPRING_ISA {

namespace {

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

}  // namespace

void gated(const Context& context, const float* x, Activation activation, std::int64_t rows,
           std::int64_t width, float* y) {
  each_row(context, rows, 4 * width, [&](std::int64_t row) {
    const float* gate = x + row * 2 * width;
    float* to = y + row * width;
    if (activation == Activation::silu) {
      gate_row(gate, gate + width, width, to, [](Float v) { return silu(v); });
    } else {
      gate_row(gate, gate + width, width, to, [](Float v) { return gelu_tanh(v); });
    }
  });
}

void softcap(const Context& context, float* x, std::int64_t count, float cap) {
  constexpr std::int64_t piece = 4096;
  each_row(context, (count + piece - 1) / piece, 4 * piece, [&](std::int64_t part) {
    const std::int64_t end = (part + 1) * piece < count ? (part + 1) * piece : count;
    std::int64_t i = part * piece;
    for (; i + lanes <= end; i += lanes) {
      store(x + i, broadcast(cap) * tanh(load(x + i) / broadcast(cap)));
    }
    if (i < end) {
      const int left = int(end - i);
      store_part(x + i, broadcast(cap) * tanh(load_part(x + i, left) / broadcast(cap)), left);
    }
  });
}

}  // namespace mainspring::MAINSPRING_ISA
