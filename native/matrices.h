// Matrices as Python gives them: what may become a Weight.
#pragma once

#include <algorithm>
#include <memory>
#include <new>
#include <optional>
#include <string>

#include "operations.h"
#include "views.h"

namespace mainspring {

using OptionalInput = std::optional<Input>;

inline Format format_of(const std::string& name) {
  if (name == "float32") return Format::float32;
  if (name == "bf16") return Format::bf16;
  if (name == "int8") return Format::int8;
  if (name == "int4") return Format::int4;
  if (name == "q8") return Format::q8;
  if (name == "q4") return Format::q4;
  refuse("format must be float32, bf16, int8, int4, q8 or q4, not " + name);
}

inline const char* format_name(Format format) {
  constexpr const char* names[] = {"float32", "bf16", "int8", "int4", "q8", "q4"};
  return names[int(format)];
}

inline Source source_of(const Input& matrix) {
  if (matrix.dtype() == nb::dtype<float>()) return Source::float32;
  if (matrix.dtype() == nb::dtype<std::uint16_t>()) return Source::bf16;
  constexpr nb::dlpack::dtype half{std::uint8_t(nb::dlpack::dtype_code::Float), 16, 1};
  if (matrix.dtype() == half) return Source::float16;
  refuse("matrix must be float32, float16 or uint16 (the bits of bfloat16)");
}

inline void check_codes(const std::int8_t* codes, std::int64_t count, Format format) {
  if (format != Format::q4 && format != Format::int4) return;
  const int zero = format == Format::q4 ? 0 : 8;
  int outside = 0;
  for (std::int64_t i = 0; i < count; ++i) outside |= std::uint8_t(codes[i] + zero);
  if (outside > 15) {
    refuse("codes must be " + std::to_string(-zero) + " to " + std::to_string(15 - zero));
  }
}

// Refuses unless they have the shapes and the ranges of `format`.
inline Codes codes_of(const Input& codes, const Input& scales, const OptionalInput& mins,
                      Format format) {
  if (format < Format::int8) refuse("format must be int8, int4, q8 or q4");
  if ((format == Format::q4) != mins.has_value()) {
    refuse("mins belong to format q4, and only there");
  }
  const auto* values = view<std::int8_t>(codes, "codes", {any, any});
  const auto n = std::int64_t(codes.shape(0)), k = std::int64_t(codes.shape(1));
  const std::int64_t groups = (k + code_group(format) - 1) / code_group(format);
  check_codes(values, n * k, format);
  return {values, view<float>(scales, "scales", {n, groups}),
          mins ? view<float>(*mins, "mins", {n, groups}) : nullptr};
}

// A Weight of unknown numbers.
inline std::shared_ptr<Weight> blank_weight(std::int64_t n, std::int64_t k,
                                            const OptionalInput& bias, Format format) {
  constexpr std::int64_t limit = std::int64_t{1} << 31;
  if (n < 1 || k < 1 || n >= limit || k >= limit) refuse("n and k must be 1 to 2147483647");
  const float* bias_data = bias ? view<float>(*bias, "bias", {n}) : nullptr;
  auto weight = std::make_shared<Weight>(Weight{n, k, format, {}, {}});
  std::size_t bytes = 0;
  if (__builtin_mul_overflow(weight->panels(), weight->panel_bytes(), &bytes)) {
    throw std::bad_alloc();
  }
  weight->data = Buffer(bytes, Buffer::Pages::huge);
  if (bias_data != nullptr) {
    weight->bias = Buffer(sizeof(float) * std::size_t(n), Buffer::Pages::small);
    std::copy(bias_data, bias_data + n, weight->bias.as<float>());
  }
  return weight;
}

}  // namespace mainspring
