// One block of the KV cache as bytes, for what keeps it elsewhere.
#pragma once

#include <algorithm>
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

// The values of tokens from `begin` on. They are multiplied by zero until they are computed, and
// those of another sequence could be NaN.
inline void clear_values(const Cache& cache, std::int64_t layer, std::int64_t block,
                         std::int64_t head, std::int64_t begin) {
  const std::int64_t wide = cache.wide();
  std::byte* values = cache.values(layer, block, head);
  if (cache.format == Format::int8) {
    float* scales = cache.scales(layer, block, head) + kBlock;
    std::fill(scales + begin, scales + kBlock, 0.0f);
  } else if (cache.format == Format::bf16) {
    auto* pairs = reinterpret_cast<std::uint16_t*>(values) + begin / 2 * wide * 2;
    auto* end = reinterpret_cast<std::uint16_t*>(values) + kBlock * wide;
    if (begin % 2 != 0) {
      for (std::int64_t i = 0; i < wide; ++i) pairs[i * 2 + 1] = 0;
      pairs += wide * 2;
    }
    std::fill(pairs, end, std::uint16_t{0});
  } else {
    std::fill(values + 4 * begin * wide, values + 4 * kBlock * wide, std::byte{0});
  }
}

inline void copy_block(const Cache& cache, std::int64_t source, std::int64_t block,
                       std::int64_t tokens) {
  check_block(cache, source);
  check_block(cache, block);
  if (source == block) refuse("a block cannot be copied to itself");
  if (tokens < 1 || tokens > kBlock) refuse("tokens must be 1 to 32");
  const nb::gil_scoped_release release;
  for (std::int64_t layer = 0; layer < cache.layers; ++layer) {
    std::memcpy(cache.keys(layer, block, 0), cache.keys(layer, source, 0),
                std::size_t(cache.layer_bytes()));
    for (std::int64_t head = 0; head < cache.heads; ++head) {
      clear_values(cache, layer, block, head, tokens);
    }
  }
}

}  // namespace mainspring
