// Python's side of matrices of low rank: what is given is checked and copied.
#pragma once

#include <algorithm>
#include <tuple>
#include <vector>

#include "checks.h"

namespace mainspring {

using PythonUse = std::tuple<Input, const LowRank*, std::int64_t>;  // rows, matrix, first column

// The numbers of `down` [rows, width], its rows `stride` apart.
template <class T>
Buffer padded_rows(const Input& matrix, std::int64_t rows, std::int64_t width,
                   std::int64_t stride) {
  const T* from = view<T>(matrix, "down", {rows, width});
  Buffer buffer(sizeof(T) * std::size_t(rows * stride), Buffer::Pages::huge);
  for (std::int64_t i = 0; i < rows; ++i) {
    std::copy(from + i * width, from + (i + 1) * width, buffer.as<T>() + i * stride);
  }
  return buffer;
}

// The numbers of `up` [r, n] in panels.
template <class T>
Buffer panels(const Input& matrix, std::int64_t r, std::int64_t n, std::int64_t stride) {
  const T* from = view<T>(matrix, "up", {r, n});
  Buffer buffer(sizeof(T) * std::size_t(r * stride), Buffer::Pages::huge);
  for (std::int64_t i = 0; i < r; ++i) {
    for (std::int64_t c = 0; c < n; c += kPanel) {
      const std::int64_t end = c + kPanel < n ? c + kPanel : n;
      std::copy(from + i * n + c, from + i * n + end, buffer.as<T>() + c * r + i * kPanel);
    }
  }
  return buffer;
}

// down [k, r] and up [r, n], both float32 or both the bits of bfloat16.
inline std::shared_ptr<LowRank> low_rank(const Input& down, const Input& up) {
  if (down.ndim() != 2 || up.ndim() != 2) refuse("down and up must have 2 dimensions");
  LowRank m{std::int64_t(up.shape(1)), std::int64_t(down.shape(0)), std::int64_t(down.shape(1)),
            Format::float32, {}, {}};
  if (m.n < 1 || m.k < 1 || m.r < 1) refuse("down and up must not be empty");
  if (down.dtype() == nb::dtype<float>()) {
    m.down = padded_rows<float>(down, m.k, m.r, m.wide());
    m.up = panels<float>(up, m.r, m.n, m.stride());
  } else {
    m.format = Format::bf16;
    m.down = padded_rows<std::uint16_t>(down, m.k, m.r, m.wide());
    m.up = panels<std::uint16_t>(up, m.r, m.n, m.stride());
  }
  return std::make_shared<LowRank>(std::move(m));
}

// The uses as pointers, every bound checked against x [rows, k] and y [rows, n].
inline std::vector<LowRankUse> checked_uses(const std::vector<PythonUse>& given, std::int64_t rows,
                                            std::int64_t k, std::int64_t n) {
  std::vector<LowRankUse> uses;
  uses.reserve(given.size());
  for (const auto& [places, matrix, first] : given) {
    if (matrix == nullptr) refuse("a use must have a matrix");
    if (matrix->k != k) refuse("x must be as wide as the matrix");
    if (first < 0 || first > n - matrix->n) refuse("the matrix must fit into y at its first column");
    const std::int64_t count = length_of(places, "rows");
    const auto* at = view<std::int32_t>(places, "rows", {count});
    check_range(at, count, rows, "rows");
    uses.push_back({at, count, matrix, first});
  }
  return uses;
}

}  // namespace mainspring
