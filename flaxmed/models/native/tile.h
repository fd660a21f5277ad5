// What convolutions are made of: vectors, shapes, and a product of pixels and a panel of the kernel.

#ifndef FLAXMED_TILE_H_
#define FLAXMED_TILE_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "threads.h"

namespace flaxmed {
namespace {

// A vector, and how many pixels a tile has: as many sums as leave a few registers for operands.
#if defined(__AVX512F__)
constexpr int kVector = 16, kPixels = 12;  // 24 of 32 registers
#elif defined(__AVX2__)
constexpr int kVector = 8, kPixels = 6;  // 12 of 16
#elif defined(__aarch64__)
constexpr int kVector = 4, kPixels = 12;  // 24 of 32
#else
constexpr int kVector = 4, kPixels = 6;
#endif
constexpr int64_t kLine = 16;                // floats of a cache line
constexpr int kChannels = 2 * kVector;       // output channels of a tile
constexpr int64_t kTerms = 256;              // summed in a row, see Tile

typedef float Vector __attribute__((vector_size(kVector * sizeof(float)), aligned(4)));

inline Vector Load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
inline void Store(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t FloorDiv(int64_t a, int64_t b) { return a / b - (a % b < 0); }

// --- Shapes --------------------------------------------------------------------------------------

struct Image {
  int64_t n, h, w, c;
  int64_t size() const { return h * w * c; }
};

Image ImageOf(ffi::Span<const int64_t> d) { return {d[0], d[1], d[2], d[3]}; }

struct Window {
  int64_t kh, kw, stride, top, left;
};

// --- The tile: pixels times output channels ------------------------------------------------------

// A run of values that each pixel contributes, from an offset of its own position on, and the first
// of the kernel's rows that multiply them.
struct Run {
  int64_t offset, length, row;
};

// Long runs in pieces. Without a row, the rows are those after the last run's.
void AddRun(int64_t offset, int64_t length, std::vector<Run>& runs, int64_t row = -1) {
  if (row < 0) row = runs.empty() ? 0 : runs.back().row + runs.back().length;
  const int64_t pieces = CeilDiv(length, kTerms);
  for (int64_t i = 0; i < pieces; ++i) {
    const int64_t first = length * i / pieces;
    runs.push_back({offset + first, length * (i + 1) / pieces - first, row + first});
  }
}

// What happens to a tile's sums before they are stored: nothing, or times `factor`, plus `shift`,
// and then, perhaps, a ReLU; or they are added to what is there.
struct Ending {
  const float *factor = nullptr, *shift = nullptr;
  bool relu = false, add = false;

  // The ending of the channels from `first` on.
  Ending from(int64_t first) const {
    if (factor == nullptr) return *this;
    return {factor + first, shift + first, relu, add};
  }
};
constexpr Ending kAdd{nullptr, nullptr, false, true};

// Stores sums of one panel after their ending, whose constants are read once for all pixels.
class Finish {
 public:
  Finish(const Ending& ending, int64_t channels)
      : scales_(ending.factor != nullptr), relu_(ending.relu), add_(ending.add), channels_(channels) {
    if (!scales_) return;
    std::memcpy(factor_, ending.factor, channels * sizeof(float));
    std::memcpy(shift_, ending.shift, channels * sizeof(float));
  }

  void operator()(Vector (&sum)[2], float* out) const {
    if (scales_)
      for (int half = 0; half < 2; ++half) {
        Vector& value = sum[half];
        value = value * factor_[half] + shift_[half];
        if (relu_) value = value < 0 ? Vector{} : value;  // what is not a number stays so
      }
    if (add_)
      for (int half = 0; half < 2; ++half) sum[half] += Load(out + half * kVector);
    if (channels_ == kChannels) {
      Store(out, sum[0]);
      Store(out + kVector, sum[1]);
    } else {
      std::memcpy(out, sum, channels_ * sizeof(float));
    }
  }

 private:
  bool scales_, relu_, add_;  // to add, a panel must be whole
  int64_t channels_;
  Vector factor_[2] = {}, shift_[2] = {};
};

// A panel of the kernel: rows of kChannels output channels, `step` apart; and what to ask the memory
// for meanwhile, as large as the panel.
struct Panel {
  const float* values;
  int64_t step = kChannels;
  const float* ahead = nullptr;
};

// out[p][:] = sum over all values k of all runs: x[at[p] + run.offset + k] * panel[run.row + k][:]
//
// The error of a sum grows with the number of terms that are added to it one by one: a kernel of
// 3x3x512 has 4,608. So some terms make a sum of their own, and these sums are added up.
template <int kCount>
void Tile(const float* x, const int64_t* at, const std::vector<Run>& runs, const Panel& rows,
          const Ending& ending, float* const* out, int64_t channels) {
  Vector sum[kCount][2] = {}, total[kCount][2];
  bool several = false;  // sums, which `total` adds up
  // Where the sums will go is asked of the memory now, so that it is there when they are done.
  for (int p = 0; p < kCount; ++p)
    for (int64_t c = 0; c < channels; c += kLine) __builtin_prefetch(out[p] + c, 1);
  const float* ahead = rows.ahead;
  int64_t terms = 0;
  for (const Run& run : runs) {
    if (terms + run.length > kTerms) {
      for (int p = 0; p < kCount; ++p)
        for (int half = 0; half < 2; ++half)
          total[p][half] = several ? total[p][half] + sum[p][half] : sum[p][half],
          sum[p][half] = Vector{};
      several = true;
      terms = 0;
    }
    terms += run.length;
    const float* panel = rows.values + run.row * rows.step;
    const float* pixel[kCount];
    for (int p = 0; p < kCount; ++p) pixel[p] = x + at[p] + run.offset;
    for (int64_t k = 0; k < run.length; ++k, panel += rows.step) {
      if (ahead != nullptr) {
        for (int64_t c = 0; c < kChannels; c += kLine) __builtin_prefetch(ahead + c);
        ahead += kChannels;
      }
      const Vector first = Load(panel), second = Load(panel + kVector);
#pragma GCC unroll 16
      for (int p = 0; p < kCount; ++p) {
        sum[p][0] += pixel[p][k] * first;
        sum[p][1] += pixel[p][k] * second;
      }
    }
  }
  if (several)
    for (int p = 0; p < kCount; ++p)
      for (int half = 0; half < 2; ++half) sum[p][half] += total[p][half];
  const Finish finish(ending, channels);
  for (int p = 0; p < kCount; ++p) finish(sum[p], out[p]);
}

// A table of the function for 1, 2, ... kPixels rows.
template <int... kRows>
constexpr auto Tiles(std::integer_sequence<int, kRows...>) {
  return std::array{Tile<kRows + 1>...};
}
constexpr auto kTiles = Tiles(std::make_integer_sequence<int, kPixels>());

// Pixels at `at`, whose outputs are at out + to[p], times one panel.
void Multiply(const float* x, const std::vector<int64_t>& at, const std::vector<Run>& runs,
              Panel panel, const Ending& ending, float* out, const std::vector<int64_t>& to,
              int64_t channels) {
  for (size_t p = 0; p < at.size(); p += kPixels) {
    const int count = static_cast<int>(std::min<size_t>(kPixels, at.size() - p));
    float* rows[kPixels];
    for (int i = 0; i < count; ++i) rows[i] = out + to[p + i];
    kTiles[count - 1](x, at.data() + p, runs, panel, ending, rows, channels);
    panel.ahead = nullptr;
  }
}

// Copies `count` floats, mostly kMost, and zeros behind them until there are kMost.
template <int kMost>
inline void CopyFew(const float* from, int64_t count, float* to) {
  if (count == kMost) {  // a copy of known length is a few instructions
    std::memcpy(to, from, kMost * sizeof(float));
  } else {
    std::copy_n(from, count, to);
    std::fill_n(to + count, kMost - count, 0.0f);
  }
}

// --- The tile of a kernel gradient ----------------------------------------------------------------

// to[i][:] += sum over pixels p: x[at[p] + i] * panel[p][:]
template <int kCount>
void OuterTile(const float* x, const int64_t* at, int64_t pixels, const float* panel, float* to,
               int64_t to_step, int64_t channels) {
  Vector sum[kCount][2] = {};
  for (int i = 0; i < kCount; ++i)
    for (int64_t c = 0; c < channels; c += kLine) __builtin_prefetch(to + i * to_step + c, 1);
  for (int64_t p = 0; p < pixels; ++p, panel += kChannels) {
    const float* values = x + at[p];
    const Vector first = Load(panel), second = Load(panel + kVector);
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) {
      sum[i][0] += values[i] * first;
      sum[i][1] += values[i] * second;
    }
  }
  for (int i = 0; i < kCount; ++i, to += to_step) {
    if (channels == kChannels) {
      Store(to, Load(to) + sum[i][0]);
      Store(to + kVector, Load(to + kVector) + sum[i][1]);
    } else {
      const float* row = reinterpret_cast<const float*>(sum[i]);
      for (int64_t k = 0; k < channels; ++k) to[k] += row[k];
    }
  }
}

// A table of the function for 1, 2, ... kPixels rows.
template <int... kRows>
constexpr auto OuterTiles(std::integer_sequence<int, kRows...>) {
  return std::array{OuterTile<kRows + 1>...};
}
constexpr auto kOuterTiles = OuterTiles(std::make_integer_sequence<int, kPixels>());

constexpr int64_t kPixelsPerPass = 256;  // of a kernel gradient's sums before they are stored

// Values of an image that meet the same gradients, of all pixels of a pass: side by side, where there
// are so many panels of gradients that reading them from far apart would cost more.
constexpr int64_t kPanelsToCopy = 4;

}  // namespace
}  // namespace flaxmed

#endif  // FLAXMED_TILE_H_
