// The Python module mainspring.kernels._native: checks every argument, then calls the kernels.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <optional>
#include <tuple>

#include "blocks.h"
#include "checks.h"
#include "cpu.h"
#include "dequantize.h"
#include "low_rank.h"
#include "matrices.h"
#include "views.h"

namespace mainspring {

namespace {

using Floats = nb::ndarray<nb::numpy, float>;
using Integers = nb::ndarray<nb::numpy, std::int32_t>;

constexpr std::size_t kArenaLimit = std::size_t{96} << 20;

Activation activation_of(const std::string& name) {
  if (name == "silu") return Activation::silu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  if (name == "clamped_silu") return Activation::clamped_silu;
  refuse("activation must be silu, gelu_tanh or clamped_silu, not " + name);
}

void dequantize(const std::string& name, const Input& data, const InOut& out) {
  const BlockFormat* format = block_format(name);
  if (format == nullptr) refuse(name.substr(0, 100) + " is no block format");
  const std::int64_t bytes = length_of(data, "data"), blocks = bytes / format->bytes;
  if (bytes % format->bytes) refuse("data must hold whole blocks");
  check<std::uint8_t>(data, "data", {bytes});
  check<float>(out, "out", {blocks * format->values});
  const auto* from = static_cast<const std::uint8_t*>(data.data());
  auto* to = static_cast<float*>(out.data());
  nb::gil_scoped_release release;
  for (std::int64_t i = 0; i < blocks; ++i) {
    format->read(from + i * format->bytes, to + i * format->values);
  }
}

class Kernels {
 public:
  Kernels(const Operations& operations, int threads)
      : operations_(operations), pool_(threads), arena_(std::make_shared<Arena>(kArenaLimit)) {}

  std::string name() const { return operations_.name; }
  int threads() const { return pool_.threads(); }

  std::shared_ptr<Weight> weight(const Input& matrix, const OptionalInput& bias,
                                 const std::string& format) {
    const std::int64_t n = rows_of(matrix, "matrix"), k = std::int64_t(matrix.shape(1));
    const Source source = source_of(matrix);
    if (n == 0 || k == 0) refuse("matrix must not be empty");
    if (source == Source::float32) {
      check<float>(matrix, "matrix", {n, k});
    } else if (k > 1 && (matrix.stride(1) != 1 || (n > 1 && matrix.stride(0) != k))) {
      refuse("matrix must be C-contiguous");
    }
    auto weight = blank(n, k, bias, format);
    if (weight->coded()) refuse("format " + format + " is of coded_weight: it chooses no codes");
    const nb::gil_scoped_release release;
    operations_.pack(context(), matrix.data(), source, *weight);
    return weight;
  }

  std::shared_ptr<Weight> coded_weight(const Input& codes, const Input& scales,
                                       const OptionalInput& mins, const OptionalInput& bias,
                                       const std::string& format) {
    const std::int64_t n = rows_of(codes, "codes"), k = std::int64_t(codes.shape(1));
    const Codes from = codes_of(codes, scales, mins, format_of(format));
    auto weight = blank(n, k, bias, format);
    const nb::gil_scoped_release release;
    operations_.pack_codes(context(), from, *weight);
    return weight;
  }

  std::shared_ptr<Weight> blank(std::int64_t n, std::int64_t k, const OptionalInput& bias,
                                const std::string& format) {
    return blank_weight(n, k, bias, format_of(format));
  }

  Floats linear(const Input& x, const Weight& weight) {
    const std::int64_t rows = rows_of(x, "x");
    const float* from = view<float>(x, "x", {rows, weight.k});
    Result<float> y(arena_, {rows, weight.n});
    compute([&] { operations_.linear(context(), from, rows, weight, y.data()); });
    return y.array();
  }

  Floats gated_linear(const Input& x, const Weight& weight, const std::string& activation) {
    const std::int64_t rows = rows_of(x, "x");
    const float* from = view<float>(x, "x", {rows, weight.k});
    if (weight.n % 2 != 0) refuse("weight must have two halves of equal height");
    const Activation which = activation_of(activation);
    Result<float> y(arena_, {rows, weight.n / 2});
    compute([&] { operations_.gated_linear(context(), from, rows, weight, which, y.data()); });
    return y.array();
  }

  void add_low_rank(const InOut& y, const Input& x, const std::vector<PythonUse>& given) {
    const std::int64_t rows = rows_of(x, "x"), k = std::int64_t(x.shape(1));
    const float* from = view<float>(x, "x", {rows, k});
    float* to = view<float>(y, "y", {rows, any});
    const auto n = std::int64_t(y.shape(1));
    const std::vector<LowRankUse> uses = checked_uses(given, rows, k, n);
    const LowRankSum sum{from, k, to, n, uses.data(), std::int64_t(uses.size())};
    compute([&] { operations_.add_low_rank(context(), sum); });
  }

  Floats gate(const Input& x, const std::string& activation) {
    const std::int64_t rows = rows_of(x, "x"), width = std::int64_t(x.shape(1)) / 2;
    const float* from = view<float>(x, "x", {rows, 2 * width});
    const Activation which = activation_of(activation);
    Result<float> y(arena_, {rows, width});
    compute([&] { operations_.gate(context(), from, rows, width, which, y.data()); });
    return y.array();
  }

  Floats embedding(const Input& ids, const Weight& weight) {
    const std::int64_t rows = length_of(ids, "ids");
    const auto* from = view<std::int32_t>(ids, "ids", {rows});
    check_range(from, rows, weight.n, "ids");
    Result<float> y(arena_, {rows, weight.k});
    compute([&] { operations_.embedding(context(), from, rows, weight, y.data()); });
    return y.array();
  }

  Floats rms_norm(const InOut& x, const Input& gain, float eps, const OptionalInput& add) {
    const std::int64_t rows = rows_of(x, "x"), width = std::int64_t(x.shape(1));
    float* from = view<float>(x, "x", {rows, width});
    const float* scale = view<float>(gain, "gain", {width});
    const float* more = add ? view<float>(*add, "add", {rows, width}) : nullptr;
    Result<float> y(arena_, {rows, width});
    compute([&] {
      operations_.rms_norm(context(), from, more, scale, eps, rows, width, y.data());
    });
    return y.array();
  }

  void head_norm(const InOut& x, const Input& gain, float eps, std::int64_t first,
                 std::int64_t heads) {
    const std::int64_t rows = rows_of(x, "x"), width = std::int64_t(x.shape(1));
    const std::int64_t head = length_of(gain, "gain");
    float* from = view<float>(x, "x", {rows, width});
    const float* scale = view<float>(gain, "gain", {head});
    if (first < 0 || heads < 0 || first + heads > width / (head > 0 ? head : 1)) {
      refuse("first and heads must name heads that x has");
    }
    compute([&] {
      operations_.head_norm(context(), from + first * head, scale, eps, rows, width, heads, head);
    });
  }

  void rope(const InOut& x, const Input& table, const Input& positions, std::int64_t heads,
            std::int64_t head, std::int64_t first, bool paired) {
    const std::int64_t rows = rows_of(x, "x"), width = std::int64_t(x.shape(1));
    float* from = view<float>(x, "x", {rows, width});
    const auto* angles = view<float>(table, "table", {any, 2, any});
    const auto* where = view<std::int32_t>(positions, "positions", {rows});
    const std::int64_t half = std::int64_t(table.shape(2));
    if (heads < 0 || head < 1 || heads > width / head) refuse("heads * head must fit into x");
    if (first < 0 || first > head) refuse("first must be a number of the head");
    if (2 * half > head - first) refuse("table must not be wider than head / 2");
    check_range(where, rows, std::int64_t(table.shape(0)), "positions");
    compute([&] {
      operations_.rope(context(), from + first, angles, where, rows, width, heads, head, half,
                       paired);
    });
  }

  void softcap(const InOut& x, float cap) {
    const std::int64_t rows = rows_of(x, "x"), width = std::int64_t(x.shape(1));
    float* from = view<float>(x, "x", {rows, width});
    if (!(cap > 0.0f)) refuse("cap must be greater than 0");
    compute([&] { operations_.softcap(context(), from, rows * width, cap); });
  }

  std::shared_ptr<Cache> cache(std::int64_t layers, std::int64_t blocks, std::int64_t heads,
                               std::int64_t head, const std::string& dtype) {
    if (dtype != "float32" && dtype != "bf16" && dtype != "int8") {
      refuse("dtype must be float32, bf16 or int8");
    }
    if (layers < 1 || blocks < 1 || heads < 1) refuse("layers, blocks and heads must be positive");
    if (head < 2 || head > kMaxHead || head % 2 != 0) {
      refuse("head must be even, 2 to " + std::to_string(kMaxHead));
    }
    constexpr std::int64_t limit = std::int64_t{1} << 31;
    if (layers >= limit || blocks >= limit || heads >= limit) refuse("the cache is too large");
    auto cache = std::make_shared<Cache>(Cache{layers, blocks, heads, head, format_of(dtype), {}});
    std::size_t bytes = 0;
    if (__builtin_mul_overflow(std::size_t(layers * blocks), std::size_t(heads), &bytes) ||
        __builtin_mul_overflow(bytes, std::size_t(cache->slot_bytes()), &bytes)) {
      refuse("the cache is too large");
    }
    cache->data = Buffer(bytes, Buffer::Pages::small);
    return cache;
  }

  Floats attention(const Input& qkv, const Cache& cache, std::int64_t layer, const Input& starts,
                   const Input& lengths, const Input& tables, std::int64_t heads, float scale,
                   std::int64_t window, float softcap, const OptionalInput& sinks) {
    const std::int64_t rows = rows_of(qkv, "qkv"), sequences = length_of(lengths, "lengths");
    if (heads < 1 || heads % cache.heads != 0 || heads / cache.heads > kMaxGroup) {
      refuse("heads must be a multiple of the cache's heads, at most " +
             std::to_string(kMaxGroup) + " times as many");
    }
    if (layer < 0 || layer >= cache.layers) refuse("layer must be one of the cache's");
    if (window < 0) refuse("window must not be negative");
    if (rows_of(tables, "tables") != sequences) refuse("tables must have a row for each sequence");
    Attention a{view<float>(qkv, "qkv", {rows, (heads + 2 * cache.heads) * cache.head}),
                cache,
                layer,
                sequences,
                view<std::int32_t>(starts, "starts", {sequences + 1}),
                view<std::int32_t>(lengths, "lengths", {sequences}),
                view<std::int32_t>(tables, "tables", {sequences, any}),
                std::int64_t(tables.shape(1)),
                heads,
                scale,
                window,
                softcap,
                sinks ? view<float>(*sinks, "sinks", {heads}) : nullptr,
                nullptr};
    check_sequences(a, rows);
    Result<float> out(arena_, {rows, heads * cache.head});
    a.out = out.data();
    compute([&] { operations_.attention(context(), a); });
    return out.array();
  }

  Integers sample(const Input& logits, const Input& temperature, const Input& top_k,
                  const Input& top_p, const Input& min_p, const Input& uniform) {
    const std::int64_t rows = rows_of(logits, "logits");
    const std::int64_t vocabulary = std::int64_t(logits.shape(1));
    if (vocabulary < 1) refuse("logits must not be empty");
    Result<std::int32_t> chosen(arena_, {rows});
    const Sample s{view<float>(logits, "logits", {rows, vocabulary}),
                   rows,
                   vocabulary,
                   view<float>(temperature, "temperature", {rows}),
                   view<std::int32_t>(top_k, "top_k", {rows}),
                   view<float>(top_p, "top_p", {rows}),
                   view<float>(min_p, "min_p", {rows}),
                   view<double>(uniform, "uniform", {rows}),
                   chosen.data()};
    check_sampling(s);
    compute([&] { operations_.sample(context(), s); });
    return chosen.array();
  }

  std::tuple<Floats, Integers, Floats> log_probabilities(const Input& logits, const Input& ids,
                                                         std::int64_t top) {
    const std::int64_t rows = rows_of(logits, "logits");
    const std::int64_t vocabulary = std::int64_t(logits.shape(1));
    if (top < 0 || top > vocabulary) refuse("top must be in [0, vocabulary]");
    const auto* wanted = view<std::int32_t>(ids, "ids", {rows});
    check_range(wanted, rows, vocabulary, "ids");
    Result<float> value(arena_, {rows}), best_value(arena_, {rows, top});
    Result<std::int32_t> best(arena_, {rows, top});
    const LogProbabilities l{view<float>(logits, "logits", {rows, vocabulary}),
                             rows,
                             vocabulary,
                             wanted,
                             top,
                             value.data(),
                             best.data(),
                             best_value.data()};
    compute([&] { operations_.log_probabilities(context(), l); });
    return {value.array(), best.array(), best_value.array()};
  }

  // (bytes a second that all threads read together, int8 operations a second); about 0.1 s.
  std::tuple<double, double> probe() {
    const nb::gil_scoped_release release;
    const Buffer data(std::size_t{128} << 20, Buffer::Pages::huge);
    std::fill(data.as<std::int64_t>(), data.as<std::int64_t>() + data.bytes() / 8, 1);
    double read = 0.0;
    for (int i = 0; i < 3; ++i) {
      const auto bytes = std::int64_t(data.bytes());
      read = std::max(read, operations_.read_rate(context(), data.data(), bytes));
    }
    return {read, operations_.int8_rate(context(), 0.02)};
  }

 private:
  Context context() { return {pool_, *arena_}; }

  template <class Work>
  void compute(const Work& work) {
    const nb::gil_scoped_release release;
    work();
  }

  const Operations& operations_;
  Pool pool_;
  std::shared_ptr<Arena> arena_;
};

// By name; ValueError if this CPU cannot run it.
std::shared_ptr<Kernels> load(const std::string& isa, int threads) {
  if (threads < 1 || threads > 512) refuse("threads must be 1 to 512");
  for (const Operations* operations : usable_operations()) {
    if (isa == operations->name) return std::make_shared<Kernels>(*operations, threads);
  }
  refuse("this CPU cannot run " + isa);
}

std::vector<std::string> usable() {
  std::vector<std::string> names;
  for (const Operations* operations : usable_operations()) names.emplace_back(operations->name);
  return names;
}

}  // namespace

NB_MODULE(_native, m) {
  using namespace nb::literals;
  m.def("usable", usable);
  m.def("load", load, "isa"_a, "threads"_a);
  m.def("dequantize", dequantize, "format"_a, "data"_a, "out"_a.noconvert());
  nb::class_<Weight>(m, "Weight")
      .def_ro("n", &Weight::n)
      .def_ro("k", &Weight::k)
      .def_prop_ro("format", [](const Weight& w) { return format_name(w.format); })
      .def_prop_ro("nbytes", [](const Weight& w) { return w.data.bytes() + w.bias.bytes(); })
      .def_prop_ro(
          "memory",
          [](const Weight& w) {
            return nb::ndarray<nb::numpy, std::uint8_t>(w.data.data(), {w.data.bytes()}, nb::find(w));
          },
          nb::rv_policy::reference_internal);
  nb::class_<Cache>(m, "Cache")
      .def_ro("blocks", &Cache::blocks)
      .def_prop_ro("nbytes", [](const Cache& c) { return c.data.bytes(); })
      .def_prop_ro("block_bytes", &Cache::block_bytes)
      .def("read_block", read_block, "block"_a, "into"_a.noconvert())
      .def("write_block", write_block, "block"_a, "data"_a)
      .def("copy_block", copy_block, "source"_a, "block"_a, "tokens"_a);
  nb::class_<LowRank>(m, "LowRank").def_prop_ro("nbytes", [](const LowRank& matrix) {
    return matrix.down.bytes() + matrix.up.bytes();
  });
  nb::class_<Kernels>(m, "Kernels")
      .def_prop_ro("name", &Kernels::name)
      .def_prop_ro("threads", &Kernels::threads)
      .def_prop_ro("layout", [](const Kernels&) { return kLayout; })
      .def("weight", &Kernels::weight, "matrix"_a, "bias"_a = nb::none(), nb::kw_only(),
           "format"_a)
      .def("coded_weight", &Kernels::coded_weight, "codes"_a, "scales"_a, "mins"_a = nb::none(),
           "bias"_a = nb::none(), nb::kw_only(), "format"_a)
      .def("blank", &Kernels::blank, "n"_a, "k"_a, "bias"_a = nb::none(), nb::kw_only(), "format"_a)
      .def("linear", &Kernels::linear, "x"_a, "weight"_a)
      .def("gated_linear", &Kernels::gated_linear, "x"_a, "weight"_a, "activation"_a)
      .def_static("low_rank", low_rank, "down"_a, "up"_a)
      .def("add_low_rank", &Kernels::add_low_rank, "y"_a.noconvert(), "x"_a, "uses"_a)
      .def("gate", &Kernels::gate, "x"_a, "activation"_a)
      .def("embedding", &Kernels::embedding, "ids"_a, "weight"_a)
      .def("rms_norm", &Kernels::rms_norm, "x"_a.noconvert(), "gain"_a, "eps"_a, nb::kw_only(),
           "add"_a = nb::none())
      .def("head_norm", &Kernels::head_norm, "x"_a.noconvert(), "gain"_a, "eps"_a, nb::kw_only(),
           "first"_a, "heads"_a)
      .def("rope", &Kernels::rope, "x"_a.noconvert(), "table"_a, "positions"_a, nb::kw_only(),
           "heads"_a, "head"_a, "first"_a = 0, "paired"_a = false)
      .def("softcap", &Kernels::softcap, "x"_a.noconvert(), "cap"_a)
      .def("cache", &Kernels::cache, "layers"_a, "blocks"_a, "heads"_a, "head"_a, "dtype"_a)
      .def("attention", &Kernels::attention, "qkv"_a, "cache"_a, "layer"_a, "starts"_a,
           "lengths"_a, "tables"_a, nb::kw_only(), "heads"_a, "scale"_a, "window"_a = 0,
           "softcap"_a = 0.0f, "sinks"_a = nb::none())
      .def("sample", &Kernels::sample, "logits"_a, "temperature"_a, "top_k"_a, "top_p"_a,
           "min_p"_a, "uniform"_a)
      .def("log_probabilities", &Kernels::log_probabilities, "logits"_a, "ids"_a, "top"_a)
      .def("probe", &Kernels::probe);
}

}  // namespace mainspring
