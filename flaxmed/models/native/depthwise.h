// Depthwise 3x3 convolutions of stride 1, and their gradients: in tiles of 2x4 output pixels, which
// read each of the 4x6 pixels under them once for all nine taps.

#ifndef FLAXMED_DEPTHWISE_H_
#define FLAXMED_DEPTHWISE_H_

#include <type_traits>

#include "tile.h"

namespace flaxmed {
namespace {

constexpr int kTaps = 9, kTileRows = 2, kTileColumns = 4;

// A vector of channels or, of fewer channels than one has, a single one.
template <class V>
V Get(const float* from) {
  V value;
  std::memcpy(&value, from, sizeof(V));
  return value;
}

template <class V>
constexpr int64_t kLanes = sizeof(V) / sizeof(float);

// Calls f(k, n) for the n-th vector of channels, from k on; the last overlaps the one before.
template <class V, class F>
void Channels(int64_t c, const F& f) {
  for (int64_t first = 0, n = 0; first < c; first += kLanes<V>, ++n)
    f(std::min(first, c - kLanes<V>), n);
}

// The pixels under a tile, row by row; those outside the image are all the same zeros.
struct Pixels {
  const float* at[(kTileRows + 2) * (kTileColumns + 2)];

  template <int kColumns>
  const float* get(int row, int column) const {
    return at[row * (kColumns + 2) + column];
  }
};

// Calls f(value, u, v, tap) for all that output (u, v) of a tile takes through its taps, a value once
// loaded for all of them.
template <class V, int kRows, int kColumns, class F>
inline __attribute__((always_inline)) void EachTap(const Pixels& pixels, int64_t k, const F& f) {
#pragma GCC unroll 4
  for (int i = 0; i < kRows + 2; ++i)
#pragma GCC unroll 6
    for (int j = 0; j < kColumns + 2; ++j) {
      const V value = Get<V>(pixels.get<kColumns>(i, j) + k);
#pragma GCC unroll 2
      for (int u = 0; u < kRows; ++u)
#pragma GCC unroll 4
        for (int v = 0; v < kColumns; ++v)
          if (i - u >= 0 && i - u < 3 && j - v >= 0 && j - v < 3)
            f(value, u, v, 3 * (i - u) + j - v);
    }
}

// The outputs of a tile at y, rows of which are `step` apart.
template <class V, int kRows, int kColumns>
void ConvolveTile(const Pixels& pixels, int64_t c, const float* kernel, float* y, int64_t step) {
  Channels<V>(c, [&](int64_t k, int64_t) {
    V taps[kTaps], sum[kRows][kColumns] = {};
    for (int t = 0; t < kTaps; ++t) taps[t] = Get<V>(kernel + t * c + k);
    EachTap<V, kRows, kColumns>(pixels, k, [&](V value, int u, int v, int tap) {
      sum[u][v] += value * taps[tap];
    });
    for (int u = 0; u < kRows; ++u)
      for (int v = 0; v < kColumns; ++v)
        std::memcpy(y + u * step + v * c + k, &sum[u][v], sizeof(V));
  });
}

// Adds a tile's part of the kernel's gradient to sums [vector of channels][tap]; its output gradients
// are at dy.
template <class V, int kRows, int kColumns>
void GradientTile(const Pixels& pixels, int64_t c, const float* dy, float* sums, int64_t step) {
  Channels<V>(c, [&](int64_t k, int64_t n) {
    float* to = sums + n * kTaps * kLanes<V>;
    V sum[kTaps], gradient[kRows][kColumns];
    for (int t = 0; t < kTaps; ++t) sum[t] = Get<V>(to + t * kLanes<V>);
    for (int u = 0; u < kRows; ++u)
      for (int v = 0; v < kColumns; ++v) gradient[u][v] = Get<V>(dy + u * step + v * c + k);
    EachTap<V, kRows, kColumns>(pixels, k, [&](V value, int u, int v, int tap) {
      sum[tap] += value * gradient[u][v];
    });
    for (int t = 0; t < kTaps; ++t) std::memcpy(to + t * kLanes<V>, &sum[t], sizeof(V));
  });
}

// The rows of output images by twos.
int64_t Bands(const Image& out) { return CeilDiv(out.h, kTileRows); }

// Calls f(pixels, rows, columns, offset of the first output) for the tiles of the bands [first, last).
template <class F>
void Tiles(const float* x, const Image& in, const Window& g, const Image& out, int64_t first,
           int64_t last, const F& f) {
  float* zeros = Scratch(kImages, in.c);
  std::fill_n(zeros, in.c, 0.0f);
  for (int64_t band = first; band < last; ++band) {
    const int64_t n = band / Bands(out), row = band % Bands(out) * kTileRows;
    const int64_t rows = std::min<int64_t>(kTileRows, out.h - row);
    for (int64_t column = 0; column < out.w; column += kTileColumns) {
      const int64_t columns = std::min<int64_t>(kTileColumns, out.w - column);
      Pixels pixels;
      const float** at = pixels.at;
      for (int64_t u = row - g.top; u < row - g.top + rows + 2; ++u)
        for (int64_t v = column - g.left; v < column - g.left + columns + 2; ++v) {
          const bool inside = u >= 0 && u < in.h && v >= 0 && v < in.w;
          *at++ = inside ? x + n * in.size() + (u * in.w + v) * in.c : zeros;
        }
      f(pixels, rows, columns, n * out.size() + (row * out.w + column) * out.c);
    }
  }
}

// The functions for tiles of 1 or 2 rows and 1 to 4 columns.
#define FLAXMED_TILES(function)                                                          \
  {{function<V, 1, 1>, function<V, 1, 2>, function<V, 1, 3>, function<V, 1, 4>},         \
   {function<V, 2, 1>, function<V, 2, 2>, function<V, 2, 3>, function<V, 2, 4>}}

template <class V>
void DepthwiseConvolve(ffi::ThreadPool& pool, const float* x, const Image& in, const float* kernel,
                       const Window& g, float* y, const Image& out) {
  static constexpr decltype(&ConvolveTile<V, 1, 1>) tiles[kTileRows][kTileColumns] =
      FLAXMED_TILES(ConvolveTile);
  const int64_t all = out.n * Bands(out);
  const int64_t tasks = std::min(all, kTasksPerThread * pool.num_threads());
  Parallel(pool, tasks, [&](int64_t task) {
    Tiles(x, in, g, out, all * task / tasks, all * (task + 1) / tasks,
          [&](const Pixels& pixels, int64_t rows, int64_t columns, int64_t at) {
            tiles[rows - 1][columns - 1](pixels, in.c, kernel, y + at, out.w * out.c);
          });
  });
}

// The sums of a few rows are added up, and those of ranges of rows, one per thread, in their order.
template <class V>
void DepthwiseKernelGradient(ffi::ThreadPool& pool, const float* dy, const Image& out,
                             const float* x, const Image& in, const Window& g, float* dk) {
  static constexpr decltype(&GradientTile<V, 1, 1>) tiles[kTileRows][kTileColumns] =
      FLAXMED_TILES(GradientTile);
  const int64_t c = in.c, size = kTaps * CeilDiv(c, kLanes<V>) * kLanes<V>;
  const int64_t all = out.n * Bands(out), ranges = std::min<int64_t>(pool.num_threads(), all);
  const int64_t few = std::max<int64_t>(1, kPixelsPerPass / (kTileRows * out.w));
  float* totals = Scratch(kShared, ranges * size);
  Parallel(pool, ranges, [&](int64_t range) {
    float* sums = Scratch(kGradients, size);
    float* total = totals + range * size;
    std::fill_n(total, size, 0.0f);
    const int64_t end = all * (range + 1) / ranges;
    for (int64_t first = all * range / ranges; first < end; first += few) {
      std::fill_n(sums, size, 0.0f);
      Tiles(x, in, g, out, first, std::min(end, first + few),
            [&](const Pixels& pixels, int64_t rows, int64_t columns, int64_t at) {
              tiles[rows - 1][columns - 1](pixels, c, dy + at, sums, out.w * c);
            });
      for (int64_t i = 0; i < size; ++i) total[i] += sums[i];
    }
  });
  Channels<V>(c, [&](int64_t k, int64_t n) {
    for (int64_t t = 0; t < kTaps; ++t) {
      V sum = {};
      for (int64_t range = 0; range < ranges; ++range)
        sum += Get<V>(totals + range * size + (n * kTaps + t) * kLanes<V>);
      std::memcpy(dk + t * c + k, &sum, sizeof(V));
    }
  });
}

#undef FLAXMED_TILES

}  // namespace
}  // namespace flaxmed

#endif  // FLAXMED_DEPTHWISE_H_
