// Root-mean-square norms.
#include "isa.h"
#include "rows.h"
#include "vec.h"

namespace mainspring::MAINSPRING_ISA {

namespace {

float square_sum(const float* x, std::int64_t width) {
  Float total{};
  std::int64_t i = 0;
  for (; i + lanes <= width; i += lanes) {
    const Float v = load(x + i);
    total = fma(v, v, total);
  }
  if (i < width) {
    const Float v = load_part(x + i, int(width - i));
    total = fma(v, v, total);
  }
  return sum(total);
}

// x and y may be the same row.
void norm_row(const float* x, const float* gain, float eps, std::int64_t width, float* y) {
  const float mean = square_sum(x, width) / float(width);
  const float factor = 1.0f / __builtin_sqrtf(mean + eps);
  for (std::int64_t i = 0; i < width; ++i) y[i] = x[i] * factor * gain[i];
}

}  // namespace

void rms_norm(const Context& context, float* x, const float* add, const float* gain, float eps,
              std::int64_t rows, std::int64_t width, float* y) {
  each_row(context, rows, width, [&](std::int64_t row) {
    float* from = x + row * width;
    if (add != nullptr) {
      const float* more = add + row * width;
      for (std::int64_t i = 0; i < width; ++i) from[i] += more[i];
    }
    norm_row(from, gain, eps, width, y + row * width);
  });
}

void head_norm(const Context& context, float* x, const float* gain, float eps, std::int64_t rows,
               std::int64_t stride, std::int64_t heads, std::int64_t head) {
  each_row(context, rows, heads * head, [&](std::int64_t row) {
    for (std::int64_t h = 0; h < heads; ++h) {
      float* part = x + row * stride + h * head;
      norm_row(part, gain, eps, head, part);
    }
  });
}

}  // namespace mainspring::MAINSPRING_ISA
