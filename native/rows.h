// Independent rows over the pool.
#pragma once

#include "operations.h"

namespace mainspring::MAINSPRING_ISA {

// body(row) for each of `rows` rows that cost about `width` numbers each. A region is worth waking
// workers for from some ten thousand numbers.
template <class Body>
inline void each_row(const Context& context, std::int64_t rows, std::int64_t width,
                     const Body& body) {
  if (rows <= 0) return;
  const std::int64_t wanted = 8192 / (width + 1) + 1;
  const std::int64_t piece = rows * width < 32768 ? rows : wanted;
  parallel(context.pool, (rows + piece - 1) / piece, [&](std::int64_t part, int) {
    const std::int64_t end = (part + 1) * piece < rows ? (part + 1) * piece : rows;
    for (std::int64_t row = part * piece; row < end; ++row) body(row);
  });
}

}  // namespace mainspring::MAINSPRING_ISA
