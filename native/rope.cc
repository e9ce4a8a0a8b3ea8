// Rotary position embedding.
#include "isa.h"
#include "rows.h"
#include "vec.h"

namespace mainspring::MAINSPRING_ISA {

namespace {

void rotate(float* first, float* second, const float* cosines, const float* sines,
            std::int64_t half) {
  std::int64_t i = 0;
  for (; i + lanes <= half; i += lanes) {
    const Float a = load(first + i), b = load(second + i);
    const Float c = load(cosines + i), s = load(sines + i);
    store(first + i, a * c - b * s);
    store(second + i, b * c + a * s);
  }
  for (; i < half; ++i) {
    const float a = first[i], b = second[i];
    first[i] = a * cosines[i] - b * sines[i];
    second[i] = b * cosines[i] + a * sines[i];
  }
}

void rotate_pairs(float* pairs, const float* cosines, const float* sines, std::int64_t half) {
  for (std::int64_t i = 0; i < half; ++i) {
    const float a = pairs[2 * i], b = pairs[2 * i + 1];
    pairs[2 * i] = a * cosines[i] - b * sines[i];
    pairs[2 * i + 1] = b * cosines[i] + a * sines[i];
  }
}

}  // namespace

void rope(const Context& context, float* x, const float* table, const std::int32_t* positions,
          std::int64_t rows, std::int64_t stride, std::int64_t heads, std::int64_t head,
          std::int64_t half, bool paired) {
  each_row(context, rows, heads * head, [&](std::int64_t row) {
    const float* cosines = table + positions[row] * 2 * half;
    for (std::int64_t h = 0; h < heads; ++h) {
      float* part = x + row * stride + h * head;
      if (paired) {
        rotate_pairs(part, cosines, cosines + half, half);
      } else {
        rotate(part, part + half, cosines, cosines + half, half);
      }
    }
  });
}

}  // namespace mainspring::MAINSPRING_ISA
