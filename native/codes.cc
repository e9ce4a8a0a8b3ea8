// Integers that somebody else chose, with their scales, into the layouts of `Weight`.
#include "isa.h"
#include "vec.h"

namespace mainspring::MAINSPRING_ISA {

namespace {

// `count` codes of a row as bytes of `depth`, each with `zero` added, then zeros.
void read(const std::int8_t* from, int count, int depth, int zero, std::uint8_t* bytes) {
  for (int i = 0; i < depth; ++i) bytes[i] = std::uint8_t((i < count ? from[i] : 0) + zero);
}

void put_bytes(const std::uint8_t* bytes, int depth, int column, std::byte* group) {
  for (int i = 0; i < depth; i += 4) {
    std::memcpy(group + i * kPanel + column * 4, bytes + i, 4);
  }
}

void put_halves(const std::uint8_t* bytes, int depth, int column, std::byte* group) {
  for (int i = 0; i < depth; i += 8) {
    for (int j = 0; j < 4; ++j) {
      const int low = bytes[i + j] & 15, high = bytes[i + j + 4] & 15;
      group[(i / 2) * kPanel + column * 4 + j] = std::byte(low | high << 4);
    }
  }
}

// Where column `column` of a group goes: its codes, then what they are multiplied with.
void put_column(Format format, const std::uint8_t* bytes, int depth, int column, const float* scales,
                const float* mins, std::byte* group) {
  const int parts = depth / kSubgroup;
  const bool wide = format == Format::int8 || format == Format::q8;
  wide ? put_bytes(bytes, depth, column, group) : put_halves(bytes, depth, column, group);
  std::byte* after = group + depth * kPanel / (wide ? 1 : 2);
  if (format == Format::int4) {
    for (int part = 0; part < parts; ++part) after[part * kPanel + column] = std::byte{1};
    after += parts * kPanel;
  }
  auto* to = reinterpret_cast<float*>(after) + column;
  const int count = format == Format::q8 || format == Format::q4 ? parts : 1;
  for (int i = 0; i < count; ++i) to[i * kPanel] = scales == nullptr ? 0.0f : scales[i];
  if (format != Format::q4) return;
  for (int i = 0; i < count; ++i) to[(parts + i) * kPanel] = mins == nullptr ? 0.0f : mins[i];
}

}  // namespace

void pack_codes(const Context& context, const Codes& codes, Weight& weight) {
  const std::int64_t shared = code_group(weight.format);
  const std::int64_t width = (weight.k + shared - 1) / shared;
  const int zero = weight.format == Format::q4 ? 0 : weight.format == Format::int4 ? 8 : 128;
  parallel(context.pool, weight.panels(), [&](std::int64_t panel, int) {
    for (std::int64_t g = 0; g < weight.groups(); ++g) {
      const int depth = weight.depth(g);
      const std::int64_t left = weight.k - g * kGroup;
      auto* group = const_cast<std::byte*>(weight.group(panel, g));
      for (int column = 0; column < kPanel; ++column) {
        const std::int64_t n = panel * kPanel + column;
        const bool there = n < weight.n;  // outputs past n are zeros
        const std::int64_t at = n * width + g * kGroup / shared;
        std::uint8_t bytes[kGroup];
        read(there ? codes.values + n * weight.k + g * kGroup : nullptr,
             there ? int(left < kGroup ? left : kGroup) : 0, depth, zero, bytes);
        put_column(weight.format, bytes, depth, column, there ? codes.scales + at : nullptr,
                   there && codes.mins != nullptr ? codes.mins + at : nullptr, group);
      }
    }
  });
}

}  // namespace mainspring::MAINSPRING_ISA
