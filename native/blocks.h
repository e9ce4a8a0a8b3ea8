// One block of the KV cache as bytes, for what keeps it elsewhere.
#pragma once

#include <cstring>

#include "operations.h"
#include "views.h"

namespace mainspring {

inline void check_block(const Cache& cache, std::int64_t block) {
  if (block < 0 || block >= cache.blocks) refuse("block must be one of the cache's");
}

// The block's bytes of all layers, layer by layer.
inline void read_block(const Cache& cache, std::int64_t block, const InOut& into) {
  auto* to = view<std::uint8_t>(into, "into", {cache.block_bytes()});
  check_block(cache, block);
  const nb::gil_scoped_release release;
  for (std::int64_t layer = 0; layer < cache.layers; ++layer) {
    std::memcpy(to + layer * cache.layer_bytes(), cache.keys(layer, block, 0),
                std::size_t(cache.layer_bytes()));
  }
}

inline void write_block(const Cache& cache, std::int64_t block, const Input& from) {
  const auto* bytes = view<std::uint8_t>(from, "data", {cache.block_bytes()});
  check_block(cache, block);
  const nb::gil_scoped_release release;
  for (std::int64_t layer = 0; layer < cache.layers; ++layer) {
    std::memcpy(cache.keys(layer, block, 0), bytes + layer * cache.layer_bytes(),
                std::size_t(cache.layer_bytes()));
  }
}

}  // namespace mainspring
