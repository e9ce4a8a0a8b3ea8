// One step of attention: 64 tokens (two cache blocks, aligned to 64) and the queries of a tile.
//
// What a step does to a query depends on the query's own position only, never on the other rows of
// its tile: a prompt gives the same bits in one piece and in many.
#pragma once

#include <type_traits>

#include "cache.h"
#include "softmax.h"
#include "tile.h"

namespace mainspring::MAINSPRING_ISA {

inline constexpr int kStep = 2 * kBlock;

// Rows first .. first + rows - 1 of one sequence, for one KV head.
struct Item {
  std::int64_t sequence;
  std::int64_t first;
  int rows;
  std::int64_t kv_head;
};

// The query vectors of an item, in the format of the keys.
template <class F>
struct Queries {
  alignas(64) typename F::Element q[kMaxGroup * kMaxHead];  // [query][wide]
  std::int64_t position[kMaxGroup];
  float step[kMaxGroup];           // int8: score = integers * step, in powers of two
  std::int32_t offset[kMaxGroup];  // int8: what keys + 128 add to a sum
};

// Scores are powers of two instead of e.
inline constexpr float kLog2E = 1.44269504f;

// The format of the softmax weights beside values in F.
template <class F>
using WeightsOf = std::conditional_t<F::width == 4, Int8By15, F>;

// What a register tile has of a step.
template <class F>
struct Scores {
  alignas(64) float score[tile_rows * kStep];
  alignas(64) typename WeightsOf<F>::Element weight[tile_rows * kStep];
  float highest[tile_rows];
  float fade[tile_rows];           // what the earlier steps' output is multiplied by
  float gain[tile_rows];           // int8: and what this step's is
  std::int32_t offset[tile_rows];  // int8: what values + 128 add to a sum
};

// The tokens of a step that a query sees: [from, to).
struct Span {
  int from, to;
  bool operator==(const Span&) const = default;
};

// Where a step's keys and values are. A second block that the sequence does not have is never
// counted; the first stands in for it.
struct Step {
  std::int64_t base;
  const std::byte *low_keys, *high_keys, *low_values, *high_values;
  const float *low_scales, *high_scales;  // int8: of the keys, then of the values
};

inline Step step_at(const Attention& a, const Item& item, std::int64_t base) {
  const std::int64_t low = block_of(a, item.sequence, base / kBlock);
  const bool both = base + kBlock < a.lengths[item.sequence];
  const std::int64_t high = both ? block_of(a, item.sequence, base / kBlock + 1) : low;
  return {base, a.cache.keys(a.layer, low, item.kv_head), a.cache.keys(a.layer, high, item.kv_head),
          a.cache.values(a.layer, low, item.kv_head), a.cache.values(a.layer, high, item.kv_head),
          a.cache.scales(a.layer, low, item.kv_head), a.cache.scales(a.layer, high, item.kv_head)};
}

inline Span seen_by(const Attention& a, std::int64_t position, std::int64_t base) {
  const std::int64_t last = position - base, oldest = a.window > 0 ? last - a.window + 1 : 0;
  return {oldest > 0 ? int(oldest) : 0, last + 1 < kStep ? int(last + 1) : kStep};
}

inline bool covers(Span span, int at) { return span.from <= at && span.to >= at + lanes; }
inline Int inside(Span span, int at) {
  const Int token = iota() + at;
  return (token >= span.from) & (token < span.to);
}

// int8: the scales of the values that a query sees, so that a weight times `ratio` is an integer of
// 15 bits and that times `step` the weight of the value's integer.
struct ValueScales {
  alignas(64) float ratio[kStep];
  float step;
  Span span{0, 0};

  // Of the largest that is seen and no other: what comes after a query must not change it.
  void set(const Step& at, Span seen) {
    if (span == seen) return;
    span = seen;
    for (int i = 0; i < kStep; i += lanes) {
      const float* scales = i < kBlock ? at.low_scales + i : at.high_scales + i - kBlock;
      const Float scale = load(scales + kBlock);
      store(ratio + i, covers(seen, i) ? scale : select(inside(seen, i), scale, Float{}));
    }
    const Scale scale = scale_of(ratio, kStep, 32767.0f);
    step = scale.step;
    const Float inverse = broadcast(scale.inverse);
    for (int i = 0; i < kStep; i += lanes) {
      store(ratio + i, scale.inverse == 0.0f ? Float{} : load(ratio + i) * inverse);
    }
  }
};

inline void load_query(const Attention& a, const float* q, int i, Queries<Int8>& to) {
  std::int32_t integers[kMaxHead];
  to.step[i] = turned(q, a.cache.head, integers) * (a.scale * kLog2E);
  Int8::Element* into = to.q + i * a.cache.wide();
  std::int32_t sum = 0;
  for (std::int64_t j = 0; j < a.cache.head; j += lanes) Int8::put(into + j, load(integers + j));
  for (std::int64_t j = 0; j < a.cache.head; ++j) sum += integers[j];
  to.offset[i] = -128 * sum;
}

template <class F>
void load_query(const Attention& a, const float* q, int i, Queries<F>& to) {
  typename F::Element* into = to.q + i * a.cache.wide();
  const std::int64_t head = a.cache.head;
  std::int64_t j = 0;
  for (; j + lanes <= head; j += lanes) F::put(into + j, load(q + j));
  if (j < head) F::put(into + j, load_part(q + j, int(head - j)));
}

// Where a sum over a head becomes a score.
template <class F>
struct Finish {
  const Attention& a;
  const Queries<F>& queries;
  const Step& step;

  Float scaled(typename F::Accumulator sum, int query, int column) const {
    if constexpr (F::width == 4) {
      const float* scales =
          column < kBlock ? step.low_scales + column : step.high_scales + column - kBlock;
      return to_float(sum) * (load(scales) * broadcast(queries.step[query]));
    } else {
      return sum * broadcast(a.scale * kLog2E);
    }
  }
  Float masked(Float s, int column, Span span) const {
    if (a.softcap > 0.0f) {
      const Float cap = broadcast(a.softcap * kLog2E);
      s = cap * tanh(s / cap);
    }
    return select(inside(span, column), s, broadcast(kNothing));
  }
};

// score[r][0..63] = query r . key, and the highest of each.
template <class F, int rows>
void score(const Finish<F>& finish, int first, const Span (&spans)[rows], std::int64_t wide,
           Scores<F>& scores) {
  constexpr int half = tile_vecs / 2;
  const Queries<F>& queries = finish.queries;
  const int steps = int(finish.a.cache.head + F::width - 1) / F::width;
  bool plain = finish.a.softcap == 0.0f;
  for (const Span& span : spans) plain &= span == Span{0, kStep};
  Float most[rows];
  for (Float& m : most) m = broadcast(kNothing);
  for (int column = 0; column < kBlock; column += half * lanes) {
    typename F::Accumulator t[rows][tile_vecs] = {};
    if constexpr (F::width == 4) {
      MAINSPRING_UNROLL
      for (int r = 0; r < rows; ++r) {
        MAINSPRING_UNROLL
        for (int v = 0; v < tile_vecs; ++v) t[r][v] = broadcast(queries.offset[first + r]);
      }
    }
    multiply<F, rows, tile_vecs>(
        queries.q + first * wide, wide,
        {finish.step.low_keys + column * 4, finish.step.high_keys + column * 4, kBlock * 4}, steps,
        t);
    const auto each = [&](const auto& body) {
      MAINSPRING_UNROLL
      for (int r = 0; r < rows; ++r) {
        MAINSPRING_UNROLL
        for (int v = 0; v < tile_vecs; ++v) {
          const int at = v / half * kBlock + column + v % half * lanes;
          const Float s = body(finish.scaled(t[r][v], first + r, at), at, spans[r]);
          store(scores.score + r * kStep + at, s);
          most[r] = max(s, most[r]);
        }
      }
    };
    if (plain) {
      each([](Float s, int, Span) { return s; });
    } else {
      each([&](Float s, int at, Span span) { return finish.masked(s, at, span); });
    }
  }
  MAINSPRING_UNROLL
  for (int r = 0; r < rows; ++r) scores.highest[r] = largest(most[r]);
}

// Scores become weights relative to the peak; returns their sum, lane by lane.
template <class F>
inline Float weigh(int r, float peak, const ValueScales&, Scores<F>& scores) {
  Float sums{};
  MAINSPRING_UNROLL
  for (int i = 0; i < kStep; i += lanes) {
    const Float p = exp2(load(scores.score + r * kStep + i) - broadcast(peak));
    sums += p;
    F::put(scores.weight + r * kStep + i, p);
  }
  return sums;
}

// The same relative to the highest score of the step, and times the scales of the values, as
// integers of 15 bits. One of 7 would lose the many small weights beside a large one.
inline Float weigh(int r, float, const ValueScales& values, Scores<Int8>& scores) {
  Float sums{};
  Int total{};
  MAINSPRING_UNROLL
  for (int i = 0; i < kStep; i += lanes) {
    const Float p =
        exp2(load(scores.score + r * kStep + i) - broadcast(scores.highest[r]));
    // NaN stays in `sums`; the integer that it becomes would overflow the others' sum.
    const Int whole = round_even(p * load(values.ratio + i)) & (p == p);
    sums += p;
    total += whole;
    Int8By15::put(scores.weight + r * kStep + i, whole);
  }
  scores.offset[r] = -128 * sum(total);
  return sums;
}

// One step of the online softmax for the queries of a register tile.
template <class F, int rows>
void soften(const Step& step, int first, const Span (&spans)[rows], ValueScales& values,
            Scores<F>& scores, const Softmax& seen) {
  for (int r = 0; r < rows; ++r) {
    float& peak = seen.peak[first + r];
    float* total = seen.total + (first + r) * lanes;
    const float highest = scores.highest[r], next = highest > peak ? highest : peak;
    const float fade = scores.fade[r] = power(peak - next);
    peak = next;
    if constexpr (F::width == 4) values.set(step, spans[r]);
    Float fresh = weigh(r, next, values, scores);
    if constexpr (F::width == 4) {
      const float gain = power(highest - next);
      fresh *= broadcast(gain);
      scores.gain[r] = gain * values.step;
    }
    store(total, fma(load(total), broadcast(fade), fresh));
  }
}

// out[r] = out[r] * fade[r] + weights . values, for `vecs` vectors of the head from `column` on.
template <class F, int rows, int vecs>
void gather(const Scores<F>& scores, const Step& step, std::int64_t wide, std::int64_t column,
            float* out) {
  using Weights = WeightsOf<F>;
  const std::int64_t stride = wide * 4;
  constexpr std::int64_t upper = (vecs + 1) / 2 * lanes * 4;
  const std::byte* a = step.low_values + column * 4;
  const std::byte* b = step.high_values + column * 4;
  typename F::Accumulator t[rows][vecs];
  const auto each = [&](const auto& body) {
    MAINSPRING_UNROLL
    for (int r = 0; r < rows; ++r) {
      MAINSPRING_UNROLL
      for (int v = 0; v < vecs; ++v) body(r, out + r * wide + column + v * lanes, t[r][v]);
    }
  };
  each([&](int r, float* to, auto& sum) {
    if constexpr (F::width == 4) {
      sum = broadcast(scores.offset[r]);
    } else {
      sum = load(to) * broadcast(scores.fade[r]);
    }
  });
  multiply<Weights, rows, vecs>(scores.weight, kStep, {a, a + upper, stride}, kBlock / F::width, t);
  multiply<Weights, rows, vecs>(scores.weight + kBlock, kStep, {b, b + upper, stride},
                                kBlock / F::width, t);
  each([&](int r, float* to, auto& sum) {
    if constexpr (F::width == 4) {
      const Float old = load(to) * broadcast(scores.fade[r]);
      store(to, fma(to_float(sum), broadcast(scores.gain[r]), old));
    } else {
      store(to, sum);
    }
  });
}

// Fetches a step's keys and values, some at a time, while the one before it is in use: the blocks
// of a sequence are scattered, so no hardware prefetcher finds them, and all at once would wait for
// each other.
class Fetch {
 public:
  Fetch() = default;
  // All of it in `times` calls of some().
  Fetch(const Attention& a, const Item& item, std::int64_t base, int times)
      : bytes_(a.cache.slot_bytes()), share_((2 * bytes_ / times + 127) / 64 * 64) {
    for (const std::int64_t at : {base, base + kBlock}) {
      if (at >= a.lengths[item.sequence]) return;
      const std::int64_t block = block_of(a, item.sequence, at / kBlock);
      slots_[count_++] = a.cache.keys(a.layer, block, item.kv_head);
    }
  }

  void some() {
    if (slot_ == count_) return;
    const std::int64_t end = at_ + share_ < bytes_ ? at_ + share_ : bytes_;
    for (; at_ < end; at_ += 64) __builtin_prefetch(slots_[slot_] + at_);
    if (at_ < bytes_) return;
    at_ = 0;
    ++slot_;
  }

 private:
  std::int64_t bytes_ = 0, share_ = 0, at_ = 0;
  const std::byte* slots_[2] = {};
  int count_ = 0, slot_ = 0;
};

// A step for the queries first .. first + rows - 1.
template <class F, int rows>
void attend_tile(const Attention& a, const Step& step, int first, const Queries<F>& queries,
                 ValueScales& values, Fetch& fetch, const Softmax& seen) {
  Scores<F> scores;
  const std::int64_t wide = a.cache.wide();
  Span spans[rows];
  for (int r = 0; r < rows; ++r) spans[r] = seen_by(a, queries.position[first + r], step.base);
  fetch.some();
  score<F, rows>({a, queries, step}, first, spans, wide, scores);
  fetch.some();
  soften<F, rows>(step, first, spans, values, scores, seen);
  fetch.some();
  std::int64_t column = 0;
  float* out = seen.out + first * wide;
  for (; column + tile_vecs * lanes <= wide; column += tile_vecs * lanes) {
    gather<F, rows, tile_vecs>(scores, step, wide, column, out);
  }
  for (; column < wide; column += 2 * lanes) {
    gather<F, rows, 2>(scores, step, wide, column, out);
  }
}

}  // namespace mainspring::MAINSPRING_ISA
