// Choosing tokens without sorting the vocabulary.
#include "isa.h"
#include "ranking.h"

namespace mainspring::MAINSPRING_ISA {

namespace {

std::int32_t draw(const Ranking& ranking, std::int32_t top_k, float top_p, float min_p,
                  double uniform) {
  // Every filter keeps a head of the ranking, so the shortest head decides.
  Place kept = ranking.all();
  if (top_k > 0 && top_k < kept.count) kept = ranking.by_count(top_k);
  if (top_p < 1.0f) {
    const Place head = ranking.by_mass(double(top_p) * kept.mass, false);
    if (head.count < kept.count) kept = head;
  }
  if (min_p > 0.0f) {
    const Place head = ranking.by_weight(min_p);
    // The likeliest always stays, also when min_p is above 1.
    if (head.count < kept.count) kept = head.count > 0 ? head : ranking.by_count(1);
  }
  const Place found = ranking.by_mass(uniform * kept.mass, true);
  return found.count <= kept.count ? found.id : ranking.by_count(kept.count).id;
}

}  // namespace

void sample(const Context& context, const Sample& s) {
  const Scratch<float> weights(context.arena, context.pool.threads() * s.vocabulary);
  const Scratch<Candidate> candidates(context.arena, context.pool.threads() * s.vocabulary);
  parallel(context.pool, s.rows, [&](std::int64_t row, int thread) {
    const float* logits = s.logits + row * s.vocabulary;
    const Best best = best_of(logits, s.vocabulary);
    if (!best.finite) {
      s.chosen[row] = -1;
    } else if (s.temperature[row] == 0.0f) {
      s.chosen[row] = best.id;
    } else {
      const Ranking ranking(logits, s.vocabulary, best.value, s.temperature[row],
                            weights.data() + thread * s.vocabulary,
                            candidates.data() + thread * s.vocabulary);
      s.chosen[row] = draw(ranking, s.top_k[row], s.top_p[row], s.min_p[row], s.uniform[row]);
    }
  });
}

void log_probabilities(const Context& context, const LogProbabilities& l) {
  const Scratch<float> weights(context.arena, context.pool.threads() * l.vocabulary);
  const Scratch<Candidate> candidates(context.arena, context.pool.threads() * l.vocabulary);
  parallel(context.pool, l.rows, [&](std::int64_t row, int thread) {
    const float* logits = l.logits + row * l.vocabulary;
    const Best best = best_of(logits, l.vocabulary);
    if (!best.finite) {
      l.value[row] = __builtin_nanf("");
      for (std::int64_t i = 0; i < l.top; ++i) {
        l.best[row * l.top + i] = std::int32_t(i);
        l.best_value[row * l.top + i] = __builtin_nanf("");
      }
      return;
    }
    const Ranking ranking(logits, l.vocabulary, best.value, 1.0f,
                          weights.data() + thread * l.vocabulary,
                          candidates.data() + thread * l.vocabulary);
    const double log_total = __builtin_log(ranking.all().mass) + double(best.value);
    l.value[row] = float(double(logits[l.ids[row]]) - log_total);
    ranking.head(int(l.top), l.best + row * l.top);
    for (std::int64_t i = 0; i < l.top; ++i) {
      const float logit = logits[l.best[row * l.top + i]];
      l.best_value[row * l.top + i] = float(double(logit) - log_total);
    }
  });
}

}  // namespace mainspring::MAINSPRING_ISA
