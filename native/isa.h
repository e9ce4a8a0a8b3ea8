// The kernels of one instruction set; see operations.h for what they do.
#pragma once

#include "operations.h"

namespace mainspring::MAINSPRING_ISA {

void pack(const Context&, const void* matrix, Source, Weight&);
void pack_codes(const Context&, const Codes&, Weight&);
void linear(const Context&, const float* x, std::int64_t rows, const Weight&, float* y);
void gated_linear(const Context&, const float* x, std::int64_t rows, const Weight&, Activation,
                  float* y);
void add_low_rank(const Context&, const LowRankSum&);
void gate(const Context&, const float* x, std::int64_t rows, std::int64_t width, Activation,
          float* y);
void embedding(const Context&, const std::int32_t* ids, std::int64_t rows, const Weight&, float* y);
void rms_norm(const Context&, float* x, const float* add, const float* gain, float eps,
              std::int64_t rows, std::int64_t width, float* y);
void head_norm(const Context&, float* x, const float* gain, float eps, std::int64_t rows,
               std::int64_t stride, std::int64_t heads, std::int64_t head);
void rope(const Context&, float* x, const float* table, const std::int32_t* positions,
          std::int64_t rows, std::int64_t stride, std::int64_t heads, std::int64_t head,
          std::int64_t half, bool paired);
void softcap(const Context&, float* x, std::int64_t count, float cap);
void attention(const Context&, const Attention&);
void sample(const Context&, const Sample&);
void log_probabilities(const Context&, const LogProbabilities&);
double int8_rate(const Context&, double seconds);
double read_rate(const Context&, const std::byte* data, std::int64_t bytes);

}  // namespace mainspring::MAINSPRING_ISA
