// The inner loop of every matrix product: a tile of rows x columns kept in registers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "vec.h"

namespace mainspring::MAINSPRING_ISA {

// Formats say how 32 bits of weights meet activations: `width` products in each lane.
struct Float32 {
  using Element = float;
  using Accumulator = Float;
  using Weights = Float;
  using Activation = Float;
  static constexpr int width = 1;

  static Weights weights(const std::byte* p) { return load(reinterpret_cast<const float*>(p)); }
  static Activation activation(const Element* p) { return broadcast(*p); }
  static Float dot(Activation x, Weights w, Float sum) { return fma(x, w, sum); }
  static void put(Element* p, Float v) { store(p, v); }
};

// Where the columns of a tile are: vectors 0 .. vecs / 2 - 1 begin at `low`, the others at `high`
// (two cache blocks, or the halves of a panel); the next step is `stride` bytes on.
struct Columns {
  const std::byte* low;
  const std::byte* high;
  std::int64_t stride;
};

// Weights that will be needed soon, fetched a few lines with each step of a product: in one go, they
// would take all of a core's outstanding misses, and the product would wait behind them.
class Ahead {
 public:
  // From `begin` to `end`, spread evenly over `steps` steps.
  Ahead(const std::byte* begin, const std::byte* end, std::int64_t steps)
      : at_(begin), end_(end), lines_(int(((end - begin) / kLine + steps - 1) / steps)) {}

  void step() {
    for (int line = 0; line < lines_; ++line, at_ += kLine) __builtin_prefetch(at_);
    if (at_ >= end_) lines_ = 0;
  }

 private:
  static constexpr std::int64_t kLine = 64;
  const std::byte* at_;
  const std::byte* end_;
  int lines_;
};

// Where nothing has to be fetched.
struct Nothing {
  void step() {}
};

// sums[r][v] += row r of x (x + r * x_stride) times the columns, over `steps` steps of F::width.
// Each sum is one chain in order of k, so it does not depend on the shape of the tile. Returns
// `ahead` after its steps.
template <class F, int rows, int vecs, class Fetched = Nothing>
inline Fetched multiply(const typename F::Element* x, std::int64_t x_stride, Columns columns,
                        int steps, typename F::Accumulator (&sums)[rows][vecs],
                        Fetched ahead = {}) {
  constexpr int half = (vecs + 1) / 2;
  for (int step = 0; step < steps; ++step) {
    ahead.step();
    typename F::Weights w[vecs];
    MAINSPRING_UNROLL
    for (int v = 0; v < vecs; ++v) {
      w[v] = F::weights(v < half ? columns.low + v * std::int64_t(sizeof(Int))
                                 : columns.high + (v - half) * std::int64_t(sizeof(Int)));
    }
    MAINSPRING_UNROLL
    for (int r = 0; r < rows; ++r) {
      const auto activation = F::activation(x + r * x_stride);
      MAINSPRING_UNROLL
      for (int v = 0; v < vecs; ++v) sums[r][v] = F::dot(activation, w[v], sums[r][v]);
    }
    x += F::width;
    columns.low += columns.stride;
    columns.high += columns.stride;
  }
  return ahead;
}

// Calls body.template operator()<rows>() for rows 1 .. tile_rows.
template <class Body>
inline void with_rows(int rows, const Body& body) {
  static_assert(tile_rows == 4 || tile_rows == 6);
  switch (rows) {
    case 1: return body.template operator()<1>();
    case 2: return body.template operator()<2>();
    case 3: return body.template operator()<3>();
    case 4: return body.template operator()<4>();
    default: break;
  }
  if constexpr (tile_rows == 6) {
    if (rows == 5) return body.template operator()<5>();
    return body.template operator()<6>();
  }
}

// Cuts `rows` into tiles of nearly equal height and calls body(first, count) for each.
template <class Body>
inline void for_tiles(int rows, const Body& body) {
  int left = (rows + tile_rows - 1) / tile_rows;
  for (int first = 0; left > 0; --left) {
    const int count = (rows - first + left - 1) / left;
    body(first, count);
    first += count;
  }
}

}  // namespace mainspring::MAINSPRING_ISA
