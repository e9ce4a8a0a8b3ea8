// The block formats of GGUF files: how many numbers share how many bytes, and what they are.
#pragma once

#include <cstdint>
#include <string>

namespace mainspring {

struct BlockFormat {
  const char* name;
  std::int64_t values;  // numbers of a block
  std::int64_t bytes;
  void (*read)(const std::uint8_t* block, float* out);
};

// nullptr for a name that is none of them.
const BlockFormat* block_format(const std::string& name);

}  // namespace mainspring
