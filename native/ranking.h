// The order of a row of logits (likeliest first, lower id first of equals), searched, not sorted.
#pragma once

#include <algorithm>

#include "vec.h"

namespace mainspring::MAINSPRING_ISA {

struct Best {
  float value;
  std::int32_t id;
  bool finite;  // false: the largest is infinite, or something is NaN
};

struct Candidate {
  float logit;
  std::int32_t id;
};

// The head of the ranking that ends with token `id`: how many tokens, and their weight together.
struct Place {
  std::int64_t count;
  double mass;
  std::int32_t id;
};

inline Best best_of(const float* logits, std::int64_t count) {
  Float most = broadcast(-__builtin_inff());
  Int nan{};
  std::int64_t i = 0;
  const auto see = [&](Float x) {
    nan |= x != x;
    most = max(x, most);
  };
  for (; i + lanes <= count; i += lanes) see(load(logits + i));
  if (i < count) see(load_part(logits + i, int(count - i), -__builtin_inff()));
  bool poisoned = false;
  for (int lane = 0; lane < lanes; ++lane) poisoned |= nan[lane] != 0;
  const float value = largest(most);
  if (poisoned || !(absolute(broadcast(value))[0] < __builtin_inff())) return {value, 0, false};
  std::int64_t id = 0;
  while (logits[id] != value) ++id;
  return {value, std::int32_t(id), true};
}

// Weights are e^((logit - best) / temperature), float32, added in float64: the likeliest has 1.
class Ranking {
 public:
  // `weights` and `candidates` have room for `count`.
  Ranking(const float* logits, std::int64_t count, float best, float temperature, float* weights,
          Candidate* candidates)
      : logits_(logits), count_(count), best_(best), weights_(weights), candidates_(candidates) {
    temperature_ = temperature < 1e-30f ? 1e-30f : temperature;
    weigh();
  }

  Place all() const { return {count_, total_, -1}; }

  // The first `count` >= 1 tokens.
  Place by_count(std::int64_t count) const {
    return find([&](std::int64_t n, double) { return n >= count; });
  }

  // The shortest head, of one token at least, whose mass is >= `mass` (or, `beyond`, > `mass`).
  Place by_mass(double mass, bool beyond) const {
    return find([&](std::int64_t, double m) { return beyond ? m > mass : m >= mass; });
  }

  // All tokens of at least this weight.
  Place by_weight(float least) const {
    Level level{0.0f, 0, 0.0};
    measure_weights(least, level);
    return {level.count, level.mass, -1};
  }

  // The ids of the first `count` tokens.
  void head(int count, std::int32_t* ids) const {
    if (count == 0) return;
    const std::int64_t found = extract(logits_[by_count(count).id], __builtin_inff());
    std::sort(candidates_, candidates_ + found, before);
    for (int i = 0; i < count; ++i) ids[i] = candidates_[i].id;
  }

 private:
  static constexpr int kLevels = 7;
  static constexpr int kRun = 1024;       // float32 sums are this short
  static constexpr int kFew = 512;        // candidates worth sorting
  static constexpr int kMaxPasses = 32;

  // What lies at or above a logit.
  struct Level {
    float logit;
    std::int64_t count;
    double mass;
  };

  static bool before(const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  }

  void weigh() {
    const Float inverse = broadcast(1.0f / temperature_), best = broadcast(best_);
    for (std::int64_t run = 0; run < count_; run += kRun) {
      const std::int64_t end = run + kRun < count_ ? run + kRun : count_;
      Float sums{};
      std::int64_t i = run;
      for (; i + lanes <= end; i += lanes) {
        const Float w = exp((load(logits_ + i) - best) * inverse);
        store(weights_ + i, w);
        sums += w;
      }
      if (i < end) {
        const int left = int(end - i);
        const Float w = exp((load_part(logits_ + i, left, -__builtin_inff()) - best) * inverse);
        store_part(weights_ + i, w, left);
        sums += w;
      }
      total_ += double(sum(sums));
    }
  }

  // Fills in count and mass of `levels`, of which all have finite or infinite logits.
  void measure(Level* levels) const {
    std::int64_t counts[kLevels] = {};
    for (std::int64_t run = 0; run < count_; run += kRun) {
      const std::int64_t end = run + kRun < count_ ? run + kRun : count_;
      Float masses[kLevels] = {};
      std::int64_t i = run;
      for (; i + lanes <= end; i += lanes) {
        const Float x = load(logits_ + i), w = load(weights_ + i);
        MAINSPRING_UNROLL
        for (int j = 0; j < kLevels; ++j) {
          const Mask above = at_least(x, broadcast(levels[j].logit));
          counts[j] += mainspring::MAINSPRING_ISA::count(above);
          masses[j] = add_where(above, masses[j], w);
        }
      }
      for (int j = 0; j < kLevels; ++j) levels[j].mass += double(sum(masses[j]));
      for (; i < end; ++i) {
        for (int j = 0; j < kLevels; ++j) {
          if (!(logits_[i] >= levels[j].logit)) continue;
          counts[j] += 1;
          levels[j].mass += double(weights_[i]);
        }
      }
    }
    for (int j = 0; j < kLevels; ++j) levels[j].count = counts[j];
  }

  void measure_weights(float least, Level& level) const {
    for (std::int64_t run = 0; run < count_; run += kRun) {
      const std::int64_t end = run + kRun < count_ ? run + kRun : count_;
      Float masses{};
      std::int64_t i = run;
      for (; i + lanes <= end; i += lanes) {
        const Float w = load(weights_ + i);
        const Mask kept = at_least(w, broadcast(least));
        level.count += mainspring::MAINSPRING_ISA::count(kept);
        masses = add_where(kept, masses, w);
      }
      float mass = sum(masses);
      for (; i < end; ++i) {
        if (weights_[i] < least) continue;
        level.count += 1;
        mass += weights_[i];
      }
      level.mass += double(mass);
    }
  }

  // Tokens with low <= logit < high, in order of id; returns how many.
  std::int64_t extract(float low, float high) const {
    std::int64_t found = 0;
    std::int64_t i = 0;
    for (; i + lanes <= count_; i += lanes) {
      const Mask inside = between(load(logits_ + i), broadcast(low), broadcast(high));
      if (none(inside)) continue;
      for (int lane = 0; lane < lanes; ++lane) {
        if (has(inside, lane)) {
          candidates_[found++] = {logits_[i + lane], std::int32_t(i + lane)};
        }
      }
    }
    for (; i < count_; ++i) {
      if (logits_[i] >= low && logits_[i] < high) {
        candidates_[found++] = {logits_[i], std::int32_t(i)};
      }
    }
    return found;
  }

  // The levels to measure inside (low, high): first around the temperature below the best, wider
  // and wider; once both ends are known, evenly.
  void split(const Level& low, const Level& high, int pass, Level* levels) const {
    const bool open = !(low.logit > -__builtin_inff());
    float width = temperature_ * 0.5f;
    for (int i = 0; i < pass; ++i) width *= 128.0f;
    for (int j = 0; j < kLevels; ++j) {
      const float top = high.logit < __builtin_inff() ? high.logit : best_;
      const float step = float(j + 1) / float(kLevels + 1);
      const float logit = open ? best_ - width * float(1 << j) : top - (top - low.logit) * step;
      levels[j] = {logit, 0, 0.0};
    }
  }

  // The shortest non-empty head for which reached(count, mass).
  template <class Reached>
  Place find(const Reached& reached) const {
    Level low{-__builtin_inff(), count_, total_}, high{__builtin_inff(), 0, 0.0};
    for (int pass = 0; pass < kMaxPasses && low.count - high.count > kFew; ++pass) {
      Level levels[kLevels];
      split(low, high, pass, levels);
      measure(levels);
      const Level old_low = low, old_high = high;
      for (int j = 0; j < kLevels; ++j) {
        if (levels[j].count > 0 && reached(levels[j].count, levels[j].mass)) {
          low = levels[j];
          break;
        }
        high = levels[j];
      }
      if (low.logit == old_low.logit && high.logit == old_high.logit) break;
    }
    return walk(low, high, reached);
  }

  template <class Reached>
  Place walk(const Level& low, const Level& high, const Reached& reached) const {
    const std::int64_t found = extract(low.logit, high.logit);
    std::sort(candidates_, candidates_ + found, before);
    Place place{high.count, high.mass, -1};
    for (std::int64_t i = 0; i < found; ++i) {
      ++place.count;
      place.mass += double(weights_[candidates_[i].id]);
      place.id = candidates_[i].id;
      if (reached(place.count, place.mass)) break;
    }
    return place;
  }

  const float* logits_;
  std::int64_t count_;
  float best_;
  float temperature_;
  float* weights_;
  Candidate* candidates_;
  double total_ = 0.0;
};

}  // namespace mainspring::MAINSPRING_ISA
