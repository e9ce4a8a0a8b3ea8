// The gated activation by itself: what gated_linear does to its product, with the same bits.
#include "gate.h"
#include "isa.h"
#include "rows.h"

namespace mainspring::MAINSPRING_ISA {

void gate(const Context& context, const float* x, std::int64_t rows, std::int64_t width,
          Activation activation, float* y) {
  with_function(activation, [&](const auto& function) {
    each_row(context, rows, 4 * width, [&](std::int64_t row) {
      const float* from = x + row * 2 * width;
      gate_row(from, from + width, width, y + row * width, function);
    });
  });
}

}  // namespace mainspring::MAINSPRING_ISA
