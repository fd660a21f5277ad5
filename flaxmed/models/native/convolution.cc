// Convolutions of float32 images on a CPU, and their gradients, for XLA to call.
//
// Images are [n, h, w, c], kernels [kh, kw, c, o] (depthwise: [kh, kw, 1, c]). A convolution is a
// product of matrices whose left factor, the patches, is never written: the product is computed in
// tiles of a few pixels times two vectors of output channels, and a tile reads each pixel's patch
// where it lies, in a copy of a few images (or of a few rows of one) with its border of zeros that
// stays in the cache. The tiles are those of K. Goto, R. A. van de Geijn, Anatomy of
// high-performance matrix multiplication, ACM TOMS 34 (2008): the sums stay in registers.
//
// The result does not depend on which thread did what: every output is summed by one task in one
// order, and the kernel gradient's parts, one per range of images, are added in the order of ranges.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "depthwise.h"
#include "threads.h"
#include "tile.h"
#include "winograd.h"

namespace flaxmed {
namespace {

constexpr int64_t kCached = 48 * 1024;       // floats of a block of images: 192 KB, in the L2 cache

// What a task computes: all rows of a few images, or a few rows of one.
struct Block {
  int64_t image, images, row, rows;
};

// Blocks that fit in the cache, a row of an image's output taking `floats` there. Images of fewer
// pixels than `pixels` come together until they have as many: few tiles are then cut off, and what a
// block reads of the kernel, or adds to its gradient, serves many pixels.
std::vector<Block> Blocks(const Image& out, int64_t floats, int64_t pixels, int64_t threads) {
  int64_t rows = std::max<int64_t>(1, kCached / floats), images = 1;
  if (rows >= out.h || out.h * out.w < pixels) {
    images = std::max(rows / out.h, CeilDiv(pixels, out.h * out.w));
    images = std::max<int64_t>(1, std::min(images, CeilDiv(out.n, threads)));
    rows = out.h;
  }
  rows = CeilDiv(out.h, CeilDiv(out.h, rows));  // of about equal size
  std::vector<Block> blocks;
  for (int64_t i = 0; i < out.n; i += images)
    for (int64_t r = 0; r < out.h; r += rows)
      blocks.push_back({i, std::min(images, out.n - i), r, std::min(rows, out.h - r)});
  return blocks;
}

// Into how many tasks a block's panels are divided: where blocks are few, threads that are done early
// would wait for those that have one more.
int64_t SharesOfPanels(const std::vector<Block>& blocks, int64_t panels, int64_t threads) {
  return std::min(panels, CeilDiv(kTasksPerThread * threads, blocks.size()));
}

// A part of some images with zeros around them: rows and columns from (row, column) on.
struct Part {
  int64_t row, rows, column, columns;
  int64_t size(int64_t c) const { return rows * columns * c; }
};

void CopyPart(const float* from, const Image& image, const Block& block, const Part& part,
              float* to) {
  const int64_t c = image.c;
  const int64_t left = std::clamp<int64_t>(-part.column, 0, part.columns);
  const int64_t end = std::clamp<int64_t>(image.w - part.column, left, part.columns);
  for (int64_t i = 0; i < block.images; ++i) {
    const float* whole = from + (block.image + i) * image.size();
    for (int64_t r = part.row; r < part.row + part.rows; ++r, to += part.columns * c) {
      if (r < 0 || r >= image.h) {
        std::fill_n(to, part.columns * c, 0.0f);
        continue;
      }
      std::fill_n(to, left * c, 0.0f);
      std::copy_n(whole + (r * image.w + part.column + left) * c, (end - left) * c, to + left * c);
      std::fill_n(to + end * c, (part.columns - end) * c, 0.0f);
    }
  }
}

// The input under the rows of a block of a convolution's output.
Part InputOf(const Window& g, const Image& out, const Block& block) {
  return {block.row * g.stride - g.top, (block.rows - 1) * g.stride + g.kh, -g.left,
          (out.w - 1) * g.stride + g.kw};
}

// What a block reads: a copy of its part with a border or, where a window is one pixel and there is
// no border, the images themselves.
struct Source {
  const float* values;
  Part part;  // of one image; from there to the next it is part.size()
};

Source InputOf(const float* x, const Image& in, const Window& g, const Image& out,
               const Block& block) {
  const bool inside = (out.h - 1) * g.stride < in.h && (out.w - 1) * g.stride < in.w;
  if (g.kh == 1 && g.kw == 1 && g.top == 0 && g.left == 0 && inside) {
    const int64_t row = block.row * g.stride;
    return {x + block.image * in.size() + row * in.w * in.c, {row, in.h, 0, in.w}};
  }
  const Part part = InputOf(g, out, block);
  float* copy = Scratch(kImages, block.images * part.size(in.c));
  CopyPart(x, in, block, part, copy);
  return {copy, part};
}

// Where each output pixel's window begins in such a part.
std::vector<int64_t> Corners(const Window& g, const Image& out, const Block& block,
                             const Part& part, int64_t c) {
  std::vector<int64_t> at;
  at.reserve(block.images * block.rows * out.w);
  for (int64_t i = 0; i < block.images; ++i)
    for (int64_t u = 0; u < block.rows; ++u)
      for (int64_t v = 0; v < out.w; ++v)
        at.push_back(i * part.size(c) + (u * part.columns + v) * g.stride * c);
  return at;
}

// --- Dense convolution ---------------------------------------------------------------------------

// Copies a panel of a matrix of so many rows and columns, with zeros where columns end.
void PackPanel(const float* matrix, int64_t rows, int64_t columns, int64_t panel, float* to) {
  constexpr int64_t kAhead = 32;  // rows far apart are not foreseen by the processor
  const int64_t first = panel * kChannels, width = std::min<int64_t>(kChannels, columns - first);
  const float* from = matrix + first;
  for (int64_t row = 0; row < rows; ++row, from += columns, to += kChannels) {
    for (int64_t c = 0; c < kChannels; c += kLine) __builtin_prefetch(from + kAhead * columns + c);
    CopyFew<kChannels>(from, width, to);
  }
}

// All panels, one behind the other.
const float* Pack(ffi::ThreadPool& pool, const float* matrix, int64_t rows, int64_t columns) {
  const int64_t panels = CeilDiv(columns, kChannels);
  float* packed = Scratch(kShared, panels * rows * kChannels);
  Parallel(pool, panels, [&](int64_t panel) {
    PackPanel(matrix, rows, columns, panel, packed + panel * rows * kChannels);
  });
  return packed;
}

// Where there are few pixels, most of the work is to read the kernel. Each thread reads some of its
// rows, one after the other, and multiplies all pixels by them; the threads' sums are added up.
constexpr int64_t kFewPixels = 64;
constexpr int64_t kRowsInCache = 64 * 1024;  // floats: 256 KB, and as much on the way

template <class Read>
void ConvolveFewPixels(ffi::ThreadPool& pool, const Read& read, const Image& in, const float* kernel,
                       const Ending& ending, float* y, const Image& out, const Window& g) {
  const Block all{0, out.n, 0, out.h};
  const int64_t panels = CeilDiv(out.c, kChannels), width = panels * kChannels;
  const int64_t pixels = out.n * out.h * out.w, length = g.kw * in.c;
  const int64_t most = std::clamp<int64_t>(kRowsInCache / out.c, 32, kTerms);
  const int64_t per_row = CeilDiv(length, most), pieces = g.kh * per_row;
  const int64_t ranges = std::min<int64_t>(pool.num_threads(), pieces);
  float* sums = Scratch(kShared, ranges * pixels * width);
  const auto channels = [&](int64_t panel) {
    return std::min<int64_t>(kChannels, out.c - panel * kChannels);
  };
  Parallel(pool, ranges, [&](int64_t range) {
    const auto [images, part] = read(all);
    const auto at = Corners(g, out, all, part, in.c);
    std::vector<int64_t> to(pixels);
    for (int64_t p = 0; p < pixels; ++p) to[p] = p * width;
    float* sum = sums + range * pixels * width;
    std::fill_n(sum, pixels * width, 0.0f);
    for (int64_t piece = pieces * range / ranges; piece < pieces * (range + 1) / ranges; ++piece) {
      const int64_t i = piece / per_row, first = piece % per_row * most;
      const int64_t rows = std::min(most, length - first);
      const float* from = kernel + (i * length + first) * out.c;
      const std::vector<Run> runs{{i * part.columns * in.c + first, rows, 0}};
      for (int64_t p = 0; p < panels; ++p) {
        // Meanwhile the next rows are asked for.
        Panel panel{from + p * kChannels, out.c, from + rows * out.c + p * rows * kChannels};
        if (channels(p) < kChannels) {
          float* packed = Scratch(kGradients, most * kChannels);
          PackPanel(from, rows, out.c, p, packed);
          panel = {packed};
        }
        Multiply(images, at, runs, panel, kAdd, sum + p * kChannels, to, kChannels);
      }
    }
  });
  Parallel(pool, panels, [&](int64_t p) {
    const Finish finish(ending.from(p * kChannels), channels(p));
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      Vector total[2] = {};
      for (int64_t range = 0; range < ranges; ++range)
        for (int half = 0; half < 2; ++half)
          total[half] += Load(sums + (range * pixels + pixel) * width + p * kChannels + half * kVector);
      finish(total, y + pixel * out.c + p * kChannels);
    }
  });
}

// read(block) gives what a block reads.
template <class Read>
void Convolve(ffi::ThreadPool& pool, const Read& read, const Image& in, const float* kernel,
              const Ending& ending, float* y, const Image& out, const Window& g) {
  if (out.n * out.h * out.w <= kFewPixels)
    return ConvolveFewPixels(pool, read, in, kernel, ending, y, out, g);
  const int64_t depth = g.kh * g.kw * in.c, panels = CeilDiv(out.c, kChannels);
  const float* packed = Pack(pool, kernel, depth, out.c);

  const int64_t row = InputOf(g, out, {0, 1, 0, 1}).columns * g.stride * in.c + out.w * out.c;
  const auto blocks = Blocks(out, row, 8 * kPixels, pool.num_threads());
  const int64_t shares = SharesOfPanels(blocks, panels, pool.num_threads());
  Parallel(pool, blocks.size() * shares, [&](int64_t task) {
    const Block& block = blocks[task / shares];
    const auto [images, part] = read(block);
    std::vector<Run> runs;  // the taps of a row lie side by side
    for (int64_t i = 0; i < g.kh; ++i) AddRun(i * part.columns * in.c, g.kw * in.c, runs);
    const auto at = Corners(g, out, block, part, in.c);
    std::vector<int64_t> to(at.size());
    for (size_t p = 0; p < to.size(); ++p) to[p] = p * out.c;
    float* first = y + block.image * out.size() + block.row * out.w * out.c;
    const int64_t share = task % shares;
    for (int64_t p = panels * share / shares; p < panels * (share + 1) / shares; ++p) {
      const int64_t c = p * kChannels;
      Multiply(images, at, runs, {packed + p * depth * kChannels}, ending.from(c), first + c, to,
               std::min<int64_t>(kChannels, out.c - c));
    }
  });
}

// Of a tiny map most windows reach far beyond it: 5 of 9 taps at 2x2. The pixels at one place of all
// images share the taps that do not, and only these are computed.
constexpr int64_t kTinyMap = 9;

bool SuitsPlaces(const Window& g, const Image& in, const Image& out) {
  return out.h * out.w <= kTinyMap && out.n >= kPixels && (g.kh > 1 || g.kw > 1) &&
         (out.h - 1) * g.stride + g.kh > in.h;
}

void ConvolvePlaces(ffi::ThreadPool& pool, const float* x, const Image& in, const float* kernel,
                    const Ending& ending, float* y, const Image& out, const Window& g) {
  const int64_t depth = g.kh * g.kw * in.c, panels = CeilDiv(out.c, kChannels);
  const float* packed = Pack(pool, kernel, depth, out.c);
  std::vector<int64_t> at(out.n), to(out.n);
  for (int64_t n = 0; n < out.n; ++n) at[n] = n * in.size(), to[n] = n * out.size();
  Parallel(pool, out.h * out.w * panels, [&](int64_t task) {
    const int64_t place = task % (out.h * out.w), panel = task / (out.h * out.w);
    const int64_t row = place / out.w * g.stride - g.top, column = place % out.w * g.stride - g.left;
    const int64_t first = std::max<int64_t>(0, -column), last = std::min(g.kw, in.w - column);
    std::vector<Run> runs;
    for (int64_t i = std::max<int64_t>(0, -row); i < std::min(g.kh, in.h - row); ++i)
      if (first < last)
        AddRun(((row + i) * in.w + column + first) * in.c, (last - first) * in.c, runs,
               (i * g.kw + first) * in.c);
    const int64_t c = panel * kChannels;
    Multiply(x, at, runs, {packed + panel * depth * kChannels}, ending.from(c), y + place * out.c + c,
             to, std::min<int64_t>(kChannels, out.c - c));
  });
}

void Convolve(ffi::ThreadPool& pool, const Buffer& x, const Buffer& kernel, const Ending& ending,
              Result& y, const Window& g) {
  const Image in = ImageOf(x.dimensions()), out = ImageOf(y->dimensions());
  const float *images = x.typed_data(), *k = kernel.typed_data();
  if (SuitsPlaces(g, in, out))
    return ConvolvePlaces(pool, images, in, k, ending, y->typed_data(), out, g);
  if (SuitsWinograd(g, in, out))
    return WinogradConvolve(pool, images, in, k, {3 * in.c * out.c, in.c * out.c, out.c, 1}, ending,
                            y->typed_data(), out, g);
  const auto read = [&](const Block& block) { return InputOf(images, in, g, out, block); };
  Convolve(pool, read, in, k, ending, y->typed_data(), out, g);
}

ffi::Error Forward(ffi::ThreadPool pool, Buffer x, Buffer kernel, Result y, int64_t stride,
                   int64_t top, int64_t left) {
  const Window g{kernel.dimensions()[0], kernel.dimensions()[1], stride, top, left};
  Convolve(pool, x, kernel, {}, y, g);
  return ffi::Error::Success();
}

ffi::Error ForwardAndScale(ffi::ThreadPool pool, Buffer x, Buffer kernel, Buffer factor,
                           Buffer shift, Result y, int64_t stride, int64_t top, int64_t left,
                           int64_t relu) {
  const Window g{kernel.dimensions()[0], kernel.dimensions()[1], stride, top, left};
  Convolve(pool, x, kernel, {factor.typed_data(), shift.typed_data(), relu != 0}, y, g);
  return ffi::Error::Success();
}

// `to` [columns][kChannels] is `from` [rows][columns] transposed, with zeros behind its rows. By a few
// columns at a time, so that what is written there stays in the cache.
void Transpose(const float* from, int64_t rows, int64_t columns, float* to) {
  constexpr int64_t kColumns = 64;
  if (rows < kChannels) std::fill_n(to, columns * kChannels, 0.0f);
  for (int64_t first = 0; first < columns; first += kColumns)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = first; j < std::min(columns, first + kColumns); ++j)
        to[j * kChannels + i] = from[i * columns + j];
}

void NormaliseRelu(const float* __restrict x, const float* __restrict scale,
                   const float* __restrict bias, int64_t c, float* __restrict y) {
  for (int64_t k = 0; k < c; ++k) {
    const float value = x[k] * scale[k] + bias[k];
    y[k] = value < 0 ? 0 : value;  // what is not a number stays so
  }
}

// A 1x1 convolution and its ending, of several images' channels side by side after their own scale,
// shift and ReLU: neither the concatenation nor its normalisation is ever written.
ffi::Error NormConvNorm(ffi::ThreadPool pool, Buffer scale, Buffer bias, Buffer kernel,
                        Buffer factor, Buffer shift, ffi::RemainingArgs features, Result y) {
  const Image out = ImageOf(y->dimensions());
  const Image in{out.n, out.h, out.w, kernel.dimensions()[2]};
  std::vector<std::pair<const float*, int64_t>> pieces;  // values and channels
  for (size_t i = 0; i < features.size(); ++i) {
    const auto piece = features.get<Buffer>(i);
    if (!piece.has_value()) return piece.error();
    pieces.emplace_back(piece->typed_data(), piece->dimensions()[3]);
  }
  const auto read = [&](const Block& block) {
    const int64_t first = (block.image * in.h + block.row) * in.w;
    const int64_t pixels = block.images * block.rows * in.w;
    float* copy = Scratch(kImages, pixels * in.c);
    float* to = copy;
    for (int64_t p = first; p < first + pixels; ++p) {
      const float *factors = scale.typed_data(), *shifts = bias.typed_data();
      for (const auto& [values, c] : pieces) {
        NormaliseRelu(values + p * c, factors, shifts, c, to);
        factors += c, shifts += c, to += c;
      }
    }
    return Source{copy, {block.row, block.rows, 0, in.w}};
  };
  const Ending ending{factor.typed_data(), shift.typed_data(), true};
  Convolve(pool, read, in, kernel.typed_data(), ending, y->typed_data(), out, {1, 1, 1, 0, 0});
  return ffi::Error::Success();
}

// Input pixel (u, v) got to output ((u + top - i) / stride, (v + left - j) / stride) through tap
// (i, j), where that divides: pixels of equal remainders (a phase) share their taps.
ffi::Error InputGradient(ffi::ThreadPool pool, Buffer dy, Buffer kernel, Result dx, int64_t stride,
                         int64_t top, int64_t left) {
  const Image in = ImageOf(dx->dimensions()), out = ImageOf(dy.dimensions());
  const Window g{kernel.dimensions()[0], kernel.dimensions()[1], stride, top, left};
  // With stride 1 it is a convolution of dy with the kernel turned round.
  const Window back{g.kh, g.kw, stride, g.kh - 1 - top, g.kw - 1 - left};
  if (SuitsWinograd(back, out, in)) {
    const int64_t plane = in.c * out.c;
    WinogradConvolve(pool, dy.typed_data(), out, kernel.typed_data() + 8 * plane,
                     {-3 * plane, -plane, 1, out.c}, {}, dx->typed_data(), in, back);
    return ffi::Error::Success();
  }
  struct Phase {
    int64_t row, column, panels;
    std::vector<std::pair<int64_t, int64_t>> taps;  // in steps back from the phase's own pixel
  };
  const int64_t panels = CeilDiv(in.c, kChannels);
  std::vector<Phase> phases;
  int64_t size = 0;
  for (int64_t a = 0; a < stride; ++a)
    for (int64_t b = 0; b < stride; ++b) {
      Phase phase{a, b, size, {}};
      for (int64_t i = a; i < g.kh; i += stride)
        for (int64_t j = b; j < g.kw; j += stride)
          phase.taps.emplace_back((i - a) / stride, (j - b) / stride);
      size += panels * phase.taps.size() * out.c * kChannels;
      phases.push_back(phase);
    }
  const float* k = kernel.typed_data();
  float* packed = Scratch(kShared, size);
  Parallel(pool, panels * phases.size(), [&](int64_t task) {
    const Phase& phase = phases[task / panels];
    const int64_t c = task % panels * kChannels, width = std::min<int64_t>(kChannels, in.c - c);
    float* to = packed + phase.panels + task % panels * phase.taps.size() * out.c * kChannels;
    for (auto [down, across] : phase.taps) {
      const int64_t tap = (phase.row + down * stride) * g.kw + phase.column + across * stride;
      Transpose(k + (tap * in.c + c) * out.c, width, out.c, to);
      to += out.c * kChannels;
    }
  });

  const int64_t back_rows = (g.kh - 1) / stride, back_columns = (g.kw - 1) / stride;
  const int64_t first_column = FloorDiv(left, stride) - back_columns;
  const int64_t columns = FloorDiv(in.w - 1 + left, stride) - first_column + 1;
  const int64_t row = columns * out.c / stride + in.w * in.c;
  const auto blocks = Blocks(in, row, 8 * kPixels * stride * stride, pool.num_threads());
  const int64_t shares = SharesOfPanels(blocks, panels, pool.num_threads());
  Parallel(pool, blocks.size() * shares, [&](int64_t task) {
    const Block& block = blocks[task / shares];
    const int64_t share = task % shares;
    const int64_t first = FloorDiv(block.row + top, stride);
    const int64_t last = FloorDiv(block.row + block.rows - 1 + top, stride);
    Part part{first - back_rows, last - first + back_rows + 1, first_column, columns};
    const float* gradients = dy.typed_data() + block.image * out.size();
    const bool inside = columns == out.w && (in.h - 1) / stride < out.h;
    if (g.kh == 1 && g.kw == 1 && top == 0 && left == 0 && inside) {
      part = {0, out.h, 0, out.w};
    } else {
      float* copy = Scratch(kImages, block.images * part.size(out.c));
      CopyPart(dy.typed_data(), out, block, part, copy);
      gradients = copy;
    }
    float* to = dx->typed_data() + block.image * in.size() + block.row * in.w * in.c;
    std::vector<int64_t> at, where;
    for (const Phase& phase : phases) {
      at.clear(), where.clear();
      for (int64_t i = 0; i < block.images; ++i)
        for (int64_t u = 0; u < block.rows; ++u) {
          const int64_t down = FloorDiv(block.row + u + top, stride);
          if (block.row + u + top - down * stride != phase.row) continue;
          const int64_t from = down - part.row;
          for (int64_t v = (phase.column - left % stride + stride) % stride; v < in.w; v += stride) {
            const int64_t column = FloorDiv(v + left, stride) - first_column;
            at.push_back(i * part.size(out.c) + (from * part.columns + column) * out.c);
            where.push_back(i * in.size() + (u * in.w + v) * in.c);
          }
        }
      std::vector<Run> runs;
      for (auto [down, across] : phase.taps)
        AddRun(-(down * part.columns + across) * out.c, out.c, runs);
      const int64_t depth = phase.taps.size() * out.c;
      for (int64_t p = panels * share / shares; p < panels * (share + 1) / shares; ++p)
        Multiply(gradients, at, runs, {packed + phase.panels + p * depth * kChannels}, {},
                 to + p * kChannels, where, std::min<int64_t>(kChannels, in.c - p * kChannels));
    }
  });
  return ffi::Error::Success();
}

// Adds up what `part(block, to)` adds to `to`: by ranges of blocks, one per thread, in their order.
template <class F>
void SumOverRanges(ffi::ThreadPool& pool, const std::vector<Block>& blocks, float* sum,
                   int64_t size, const F& part) {
  const int64_t count = blocks.size(), ranges = std::min<int64_t>(pool.num_threads(), count);
  float* parts = Scratch(kShared, ranges * size);
  Parallel(pool, ranges, [&](int64_t range) {
    float* to = parts + range * size;
    std::fill_n(to, size, 0.0f);
    for (int64_t b = count * range / ranges; b < count * (range + 1) / ranges; ++b)
      part(blocks[b], to);
  });
  const int64_t tasks = pool.num_threads();
  Parallel(pool, tasks, [&](int64_t task) {
    for (int64_t i = size * task / tasks; i < size * (task + 1) / tasks; ++i) {
      float total = 0;
      for (int64_t range = 0; range < ranges; ++range) total += parts[range * size + i];
      sum[i] = total;
    }
  });
}

constexpr int64_t kPixelsPerRow = 5;
// The kernel's gradient by rows of a window, in pieces of kPixels values.
struct Pieces {
  int64_t rows, width;  // kh, and kw * c
  int64_t per_row() const { return CeilDiv(width, kPixels); }
  int64_t count() const { return rows * per_row(); }
};

// Adds to the pieces [first, last) of a kernel's gradient what one block gives.
void AddToKernelGradient(const float* dy, const Image& out, const float* x, const Image& in,
                         const Window& g, const Block& block, int64_t first, int64_t last,
                         float* to) {
  const Pieces pieces{g.kh, g.kw * in.c};
  const int64_t panels = CeilDiv(out.c, kChannels);
  std::array<int64_t, kPixelsPerPass> side_by_side;
  for (int64_t p = 0; p < kPixelsPerPass; ++p) side_by_side[p] = p * kPixels;
  const auto [images, part] = InputOf(x, in, g, out, block);
  const auto at = Corners(g, out, block, part, in.c);
  const float* gradient = dy + block.image * out.size() + block.row * out.w * out.c;
  float* packed = Scratch(kGradients, kPixelsPerPass * (panels * kChannels + kPixels));
  float* values = packed + kPixelsPerPass * panels * kChannels;
  for (int64_t p = 0; p < static_cast<int64_t>(at.size()); p += kPixelsPerPass) {
    const int64_t pixels = std::min<int64_t>(kPixelsPerPass, at.size() - p);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t c = panel * kChannels, count = std::min<int64_t>(kChannels, out.c - c);
      float* row = packed + panel * kPixelsPerPass * kChannels;
      for (int64_t q = 0; q < pixels; ++q, row += kChannels)
        CopyFew<kChannels>(gradient + (p + q) * out.c + c, count, row);
    }
    for (int64_t piece = first; piece < last; ++piece) {
      const int64_t i = piece / pieces.per_row(), k = piece % pieces.per_row() * kPixels;
      const int64_t count = std::min<int64_t>(kPixels, pieces.width - k);
      const float* from = images + i * part.columns * in.c + k;
      const int64_t* where = at.data() + p;
      if (panels >= kPanelsToCopy) {
        for (int64_t q = 0; q < pixels; ++q)
          CopyFew<kPixels>(from + where[q], count, values + q * kPixels);
        from = values;
        where = side_by_side.data();
      }
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t c = panel * kChannels;
        kOuterTiles[count - 1](from, where, pixels, packed + panel * kPixelsPerPass * kChannels,
                               to + (i * pieces.width + k) * out.c + c, out.c,
                               std::min<int64_t>(kChannels, out.c - c));
      }
    }
  }
}

ffi::Error KernelGradient(ffi::ThreadPool pool, Buffer dy, Buffer x, Result dk, int64_t stride,
                          int64_t top, int64_t left) {
  const Image in = ImageOf(x.dimensions()), out = ImageOf(dy.dimensions());
  const Window g{dk->dimensions()[0], dk->dimensions()[1], stride, top, left};
  if (SuitsWinograd(g, in, out)) {
    WinogradKernelGradient(pool, x.typed_data(), in, dy.typed_data(), out, g, dk->typed_data());
    return ffi::Error::Success();
  }
  const Pieces pieces{g.kh, g.kw * in.c};
  const int64_t row = InputOf(g, out, {0, 1, 0, 1}).columns * g.stride * in.c + out.w * out.c;
  const auto blocks = Blocks(out, row, kPixelsPerPass, pool.num_threads());
  const auto add = [&](const Block& block, int64_t first, int64_t last, float* to) {
    AddToKernelGradient(dy.typed_data(), out, x.typed_data(), in, g, block, first, last, to);
  };
  // A large kernel, of few pixels, is divided among the threads: a sum per range would be written
  // and read for nothing.
  const int64_t tasks = pool.num_threads();
  if (kPixelsPerRow * g.kh * pieces.width >= out.n * out.h * out.w && pieces.count() >= 8 * tasks) {
    Parallel(pool, tasks, [&](int64_t task) {
      const int64_t first = pieces.count() * task / tasks, last = pieces.count() * (task + 1) / tasks;
      const auto start = [&](int64_t piece) {
        const int64_t k = piece % pieces.per_row() * kPixels;
        return (piece / pieces.per_row() * pieces.width + k) * out.c;
      };
      float* to = dk->typed_data();
      std::fill(to + start(first), to + start(last), 0.0f);
      for (const Block& block : blocks) add(block, first, last, to);
    });
  } else {
    SumOverRanges(pool, blocks, dk->typed_data(), dk->element_count(),
                  [&](const Block& block, float* to) { add(block, 0, pieces.count(), to); });
  }
  return ffi::Error::Success();
}

// --- Depthwise 3x3 convolution, stride 1 ---------------------------------------------------------

void Depthwise(ffi::ThreadPool& pool, const float* x, const Image& in, const float* kernel,
               const Window& g, float* y, const Image& out) {
  (in.c < kVector ? DepthwiseConvolve<float> : DepthwiseConvolve<Vector>)(pool, x, in, kernel, g, y,
                                                                        out);
}

ffi::Error DepthwiseForward(ffi::ThreadPool pool, Buffer x, Buffer kernel, Result y, int64_t stride,
                            int64_t top, int64_t left) {
  Depthwise(pool, x.typed_data(), ImageOf(x.dimensions()), kernel.typed_data(),
            {3, 3, stride, top, left}, y->typed_data(), ImageOf(y->dimensions()));
  return ffi::Error::Success();
}

// The convolution of the gradient with the kernel turned round.
ffi::Error DepthwiseInputGradient(ffi::ThreadPool pool, Buffer dy, Buffer kernel, Result dx,
                                  int64_t stride, int64_t top, int64_t left) {
  const Image in = ImageOf(dx->dimensions());
  float* turned = Scratch(kShared, kTaps * in.c);
  for (int64_t tap = 0; tap < kTaps; ++tap)
    std::copy_n(kernel.typed_data() + (kTaps - 1 - tap) * in.c, in.c, turned + tap * in.c);
  Depthwise(pool, dy.typed_data(), ImageOf(dy.dimensions()), turned, {3, 3, stride, 2 - top, 2 - left},
            dx->typed_data(), in);
  return ffi::Error::Success();
}

ffi::Error DepthwiseGradient(ffi::ThreadPool pool, Buffer dy, Buffer x, Result dk, int64_t stride,
                             int64_t top, int64_t left) {
  const Image in = ImageOf(x.dimensions()), out = ImageOf(dy.dimensions());
  (in.c < kVector ? DepthwiseKernelGradient<float> : DepthwiseKernelGradient<Vector>)(
      pool, dy.typed_data(), out, x.typed_data(), in, {3, 3, stride, top, left}, dk->typed_data());
  return ffi::Error::Success();
}

auto Signature() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Buffer>()
      .Arg<Buffer>()
      .Ret<Buffer>()
      .Attr<int64_t>("stride")
      .Attr<int64_t>("top")
      .Attr<int64_t>("left");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxmed_conv, Forward, Signature());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxmed_conv_norm, ForwardAndScale,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()  // x
                                  .Arg<Buffer>()  // kernel
                                  .Arg<Buffer>()  // factor
                                  .Arg<Buffer>()  // shift
                                  .Ret<Buffer>()
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("top")
                                  .Attr<int64_t>("left")
                                  .Attr<int64_t>("relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxmed_norm_conv_norm, NormConvNorm,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()  // scale, before the convolution
                                  .Arg<Buffer>()  // bias
                                  .Arg<Buffer>()  // kernel
                                  .Arg<Buffer>()  // factor, after it
                                  .Arg<Buffer>()  // shift
                                  .RemainingArgs()
                                  .Ret<Buffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxmed_conv_input_grad, InputGradient, Signature());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxmed_conv_kernel_grad, KernelGradient, Signature());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxmed_depthwise, DepthwiseForward, Signature());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxmed_depthwise_input_grad, DepthwiseInputGradient, Signature());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxmed_depthwise_kernel_grad, DepthwiseGradient, Signature());

}  // namespace flaxmed
