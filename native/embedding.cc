// Rows of a packed matrix, dequantized.
#include "isa.h"
#include "vec.h"

namespace mainspring::MAINSPRING_ISA {

namespace {

// Half a byte: number i of a group of column `column`.
inline int nibble(const std::byte* group, int column, int i) {
  const int byte = int(group[(i / 8) * kPanel * 4 + column * 4 + i % 4]);
  return (i % 8 < 4 ? byte : byte >> 4) & 15;
}

inline float int4_value(const std::byte* group, int depth, int column, int i) {
  const auto* multipliers = reinterpret_cast<const std::int8_t*>(group + depth * kPanel / 2);
  return float((nibble(group, column, i) - 8) * multipliers[i / kSubgroup * kPanel + column]);
}

void read_codes(Format format, const std::byte* group, int depth, int column, int count, float* y) {
  const bool packed = format == Format::q4;
  const auto* scales =
      reinterpret_cast<const float*>(group + depth * kPanel / (packed ? 2 : 1)) + column;
  for (int i = 0; i < count; ++i) {
    const float scale = scales[i / kSubgroup * kPanel];
    if (packed) {
      const float least = scales[(depth + i) / kSubgroup * kPanel];
      y[i] = float(nibble(group, column, i)) * scale + least;
    } else {
      y[i] = float(int(group[(i / 4 * kPanel + column) * 4 + i % 4]) - 128) * scale;
    }
  }
}

void read_group(const Weight& weight, const std::byte* group, int depth, int column, int count,
                float* y) {
  const auto* scales = reinterpret_cast<const float*>(
      group + Weight::group_bytes(weight.format, depth) - 4 * kPanel);
  switch (weight.format) {
    case Format::float32:
      for (int i = 0; i < count; ++i) {
        y[i] = reinterpret_cast<const float*>(group)[i * kPanel + column];
      }
      break;
    case Format::bf16:
      for (int i = 0; i < count; ++i) {
        const auto* pairs = reinterpret_cast<const std::uint16_t*>(group);
        const std::uint32_t bits = pairs[(i / 2 * kPanel + column) * 2 + i % 2];
        y[i] = bits_as<float>(bits << 16);
      }
      break;
    case Format::int8:
      for (int i = 0; i < count; ++i) {
        const int value = int(group[(i / 4 * kPanel + column) * 4 + i % 4]) - 128;
        y[i] = float(value) * scales[column];
      }
      break;
    case Format::q8:
    case Format::q4: return read_codes(weight.format, group, depth, column, count, y);
    case Format::int4:
      for (int i = 0; i < count; ++i) y[i] = int4_value(group, depth, column, i) * scales[column];
      break;
  }
}

}  // namespace

void embedding(const Context& context, const std::int32_t* ids, std::int64_t rows,
               const Weight& weight, float* y) {
  const std::int64_t piece = rows < 16 ? rows : 8;
  const std::int64_t parts = rows == 0 ? 0 : (rows + piece - 1) / piece;
  parallel(context.pool, parts, [&](std::int64_t part, int) {
    const std::int64_t end = (part + 1) * piece < rows ? (part + 1) * piece : rows;
    for (std::int64_t row = part * piece; row < end; ++row) {
      for (std::int64_t g = 0; g < weight.groups(); ++g) {
        const std::int64_t left = weight.k - g * kGroup;
        read_group(weight, weight.group(ids[row] / kPanel, g), weight.depth(g), ids[row] % kPanel,
                   int(left < kGroup ? left : kGroup), y + row * weight.k + g * kGroup);
      }
    }
  });
}

}  // namespace mainspring::MAINSPRING_ISA
