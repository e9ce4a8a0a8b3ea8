// What must hold of the arguments before a kernel, which checks nothing, gets them.
#pragma once

#include <string>

#include "operations.h"
#include "views.h"

namespace mainspring {

std::int64_t rows_of(const auto& array, const char* name) {
  if (array.ndim() != 2) refuse(std::string(name) + " must have 2 dimensions");
  return std::int64_t(array.shape(0));
}

std::int64_t length_of(const auto& array, const char* name) {
  if (array.ndim() != 1) refuse(std::string(name) + " must have 1 dimension");
  return std::int64_t(array.shape(0));
}

inline void check_range(const std::int32_t* values, std::int64_t count, std::int64_t end,
                        const char* name) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (values[i] < 0 || values[i] >= end) {
      refuse(std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(values[i]) +
             ", not in [0, " + std::to_string(end) + ")");
    }
  }
}

inline void check_sequences(const Attention& a, std::int64_t rows) {
  if (a.starts[0] != 0 || a.starts[a.sequences] != rows) {
    refuse("starts must begin with 0 and end with the number of rows");
  }
  for (std::int64_t s = 0; s < a.sequences; ++s) {
    const std::int64_t fresh = std::int64_t(a.starts[s + 1]) - a.starts[s];
    const std::int64_t length = a.lengths[s];
    if (fresh < 0 || fresh > length) {
      refuse("starts must ascend, by no more than a sequence's length");
    }
    const std::int64_t used = (length + kBlock - 1) / kBlock;
    if (used > a.table_width) refuse("tables are too narrow for lengths");
    check_range(a.tables + s * a.table_width, used, a.cache.blocks, "tables");
  }
}

inline void check_sampling(const Sample& s) {
  for (std::int64_t row = 0; row < s.rows; ++row) {
    if (!(s.temperature[row] >= 0.0f) || s.top_k[row] < 0 || !(s.top_p[row] >= 0.0f) ||
        !(s.min_p[row] >= 0.0f) || !(s.uniform[row] >= 0.0 && s.uniform[row] < 1.0)) {
      refuse("temperature, top_k, top_p and min_p must not be negative; uniform is in [0, 1)");
    }
  }
}

}  // namespace mainspring
