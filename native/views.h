// Python arrays as checked pointers, and results as numpy arrays that own their memory.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>

#include "buffer.h"

namespace mainspring {

namespace nb = nanobind;

using Input = nb::ndarray<nb::ro, nb::device::cpu>;
using InOut = nb::ndarray<nb::device::cpu>;

// A wrong argument: ValueError in Python.
[[noreturn]] inline void refuse(const std::string& text) { throw nb::value_error(text.c_str()); }

template <class T>
constexpr const char* type_name() {
  if constexpr (std::is_same_v<T, float>) return "float32";
  if constexpr (std::is_same_v<T, double>) return "float64";
  if constexpr (std::is_same_v<T, std::int32_t>) return "int32";
  if constexpr (std::is_same_v<T, std::uint8_t>) return "uint8";
  if constexpr (std::is_same_v<T, std::int8_t>) return "int8";
  return "uint16";
}

constexpr std::int64_t any = -1;

// Refuses unless `array` is C-contiguous, of type T and of this shape (`any`: free).
template <class T, class Array>
void check(const Array& array, const char* name, std::initializer_list<std::int64_t> shape) {
  const std::string what(name);
  if (array.dtype() != nb::dtype<T>()) refuse(what + " must be " + type_name<T>());
  if (array.ndim() != shape.size()) {
    refuse(what + " must have " + std::to_string(shape.size()) + " dimensions, not " +
           std::to_string(array.ndim()));
  }
  std::int64_t stride = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    const auto wanted = shape.begin()[i];
    const auto size = std::int64_t(array.shape(i));
    if (wanted != any && size != wanted) {
      refuse(what + " must have " + std::to_string(wanted) + " entries along axis " +
             std::to_string(i) + ", not " + std::to_string(size));
    }
    if (size > 1 && array.size() > 0 && array.stride(i) != stride) {
      refuse(what + " must be C-contiguous");
    }
    stride *= size;
  }
}

template <class T>
const T* view(const Input& array, const char* name, std::initializer_list<std::int64_t> shape) {
  check<T>(array, name, shape);
  return static_cast<const T*>(array.data());
}

template <class T>
T* view(const InOut& array, const char* name, std::initializer_list<std::int64_t> shape) {
  check<T>(array, name, shape);
  return static_cast<T*>(array.data());
}

// A block of the arena that goes back when Python drops the array.
template <class T>
class Result {
 public:
  Result(const std::shared_ptr<Arena>& arena, std::initializer_list<std::int64_t> shape)
      : shape_(shape.begin(), shape.end()) {
    std::int64_t count = 1;
    for (const auto size : shape_) count *= size;
    block_ = std::make_unique<Block>(arena, sizeof(T) * std::size_t(count));
  }

  T* data() const { return static_cast<T*>(block_->memory); }

  // Needs the GIL.
  nb::ndarray<nb::numpy, T> array() {
    T* memory = data();
    const nb::capsule owner(block_.release(),
                            [](void* block) noexcept { delete static_cast<Block*>(block); });
    std::size_t shape[2] = {};
    for (std::size_t i = 0; i < shape_.size(); ++i) shape[i] = std::size_t(shape_[i]);
    return nb::ndarray<nb::numpy, T>(memory, shape_.size(), shape, owner);
  }

 private:
  struct Block {
    Block(const std::shared_ptr<Arena>& from, std::size_t bytes)
        : arena(from), memory(from->take(bytes)) {}
    ~Block() { arena->give(memory); }
    std::shared_ptr<Arena> arena;
    void* memory;
  };

  std::vector<std::int64_t> shape_;
  std::unique_ptr<Block> block_;
};

}  // namespace mainspring
