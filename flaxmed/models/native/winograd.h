// 3x3 convolutions of stride 1, and their gradients, with 4 multiplications where 9 are needed:
// Winograd's F(2x2, 3x3).
//
// A. Lavin, S. Gray, Fast algorithms for convolutional neural networks, CVPR 2016, section 4.1: a
// square of 2x2 outputs is A' [(G g G') . (B' d B)] A, of a kernel g of 3x3 and inputs d of 4x4. What
// is in round brackets is computed once for all squares, or for all output channels; the product
// between them is a matrix product over the channels for each of 16 elements.

#ifndef FLAXMED_WINOGRAD_H_
#define FLAXMED_WINOGRAD_H_

#include "tile.h"

namespace flaxmed {
namespace {

constexpr int kElements = 16;                     // of a transformed square
constexpr int64_t kSquareFloats = 8 * 1024;       // squares of a block times input channels, about
constexpr int64_t kFewestSquares = 8 * kPixels;   // fewer do not pay for the kernel's transform

// Whether a convolution is done this way. Squares that reach beyond the output are done in vain.
bool SuitsWinograd(const Window& g, const Image& in, const Image& out) {
  const int64_t squares = out.n * CeilDiv(out.h, 2) * CeilDiv(out.w, 2);
  return g.kh == 3 && g.kw == 3 && g.stride == 1 && in.c >= kVector && squares >= kFewestSquares &&
         3 * out.n * out.h * out.w >= 2 * 4 * squares;
}

// How a kernel lies in memory: from one element to the next along each of its four axes.
struct Steps {
  int64_t row, column, in, out;
};

// G g G' of one panel: `to` is [kElements][c][kChannels]; channels beyond `width` become zero.
void TransformKernel(const float* kernel, const Steps& steps, int64_t c, int64_t width, float* to) {
  for (int64_t k = 0; k < c; ++k, to += kChannels) {
    float g[3][3][kChannels] = {};
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j) {
        const float* from = kernel + i * steps.row + j * steps.column + k * steps.in;
        if (steps.out == 1)
          std::copy_n(from, width, g[i][j]);
        else
          for (int64_t m = 0; m < width; ++m) g[i][j][m] = from[m * steps.out];
      }
    for (int half = 0; half < kChannels; half += kVector) {
      Vector rows[4][3];
      for (int j = 0; j < 3; ++j) {
        const Vector g0 = Load(g[0][j] + half), g1 = Load(g[1][j] + half), g2 = Load(g[2][j] + half);
        rows[0][j] = g0;
        rows[1][j] = 0.5f * ((g0 + g2) + g1);
        rows[2][j] = 0.5f * ((g0 + g2) - g1);
        rows[3][j] = g2;
      }
      for (int i = 0; i < 4; ++i) {
        const Vector* r = rows[i];
        float* element = to + 4 * i * c * kChannels + half;
        Store(element, r[0]);
        Store(element + c * kChannels, 0.5f * ((r[0] + r[2]) + r[1]));
        Store(element + 2 * c * kChannels, 0.5f * ((r[0] + r[2]) - r[1]));
        Store(element + 3 * c * kChannels, r[2]);
      }
    }
  }
}

// B' d B of one square, all channels: `pixels` are its 4x4 inputs, elements `step` apart in `to`.
void TransformSquare(const float* const* pixels, int64_t c, float* to, int64_t step) {
  for (int64_t first = 0; first < c; first += kVector) {
    const int64_t k = std::min(first, c - kVector);  // the last vector overlaps the one before
    Vector rows[4][4];
    for (int j = 0; j < 4; ++j) {
      Vector d[4];
      for (int i = 0; i < 4; ++i) d[i] = Load(pixels[4 * i + j] + k);
      rows[0][j] = d[0] - d[2];
      rows[1][j] = d[1] + d[2];
      rows[2][j] = d[2] - d[1];
      rows[3][j] = d[1] - d[3];
    }
    for (int i = 0; i < 4; ++i) {
      const Vector* d = rows[i];
      float* element = to + 4 * i * step + k;
      Store(element, d[0] - d[2]);
      Store(element + step, d[1] + d[2]);
      Store(element + 2 * step, d[2] - d[1]);
      Store(element + 3 * step, d[1] - d[3]);
    }
  }
}

// A' m A of one square and panel: elements of `from` are `step` apart; out is [2][2] vectors' places.
void TransformBack(const float* from, int64_t step, Vector (&out)[2][2][2]) {
  for (int half = 0; half < 2; ++half) {
    Vector rows[2][4];
    for (int j = 0; j < 4; ++j) {
      Vector m[4];
      for (int i = 0; i < 4; ++i) m[i] = Load(from + (4 * i + j) * step + half * kVector);
      rows[0][j] = m[0] + m[1] + m[2];
      rows[1][j] = m[1] - m[2] - m[3];
    }
    for (int i = 0; i < 2; ++i) {
      const Vector* m = rows[i];
      out[i][0][half] = m[0] + m[1] + m[2];
      out[i][1][half] = m[1] - m[2] - m[3];
    }
  }
}

struct Squares {
  int64_t rows, columns;
  int64_t per_image() const { return rows * columns; }
};

// The inputs of a block's squares transformed: `to` is [kElements][count][c].
void TransformInput(const float* x, const Image& in, const Window& g, const Squares& squares,
                    int64_t first, int64_t count, const float* zeros, float* to) {
  for (int64_t s = 0; s < count; ++s) {
    const int64_t image = (first + s) / squares.per_image(), at = (first + s) % squares.per_image();
    const int64_t row = 2 * (at / squares.columns) - g.top;
    const int64_t column = 2 * (at % squares.columns) - g.left;
    const float* pixels[kElements];
    for (int64_t i = 0; i < 4; ++i)
      for (int64_t j = 0; j < 4; ++j) {
        const int64_t u = row + i, v = column + j;
        const bool inside = u >= 0 && u < in.h && v >= 0 && v < in.w;
        pixels[4 * i + j] = inside ? x + ((image * in.h + u) * in.w + v) * in.c : zeros;
      }
    TransformSquare(pixels, in.c, to + s * in.c, count * in.c);
  }
}

// The products of a block and a panel, `from` [kElements][count][kChannels], to outputs.
void StoreSquares(const float* from, const Squares& squares, int64_t first, int64_t count,
                  const Finish& finish, const Image& out, float* y) {
  for (int64_t s = 0; s < count; ++s) {
    const int64_t image = (first + s) / squares.per_image(), at = (first + s) % squares.per_image();
    const int64_t row = 2 * (at / squares.columns), column = 2 * (at % squares.columns);
    Vector values[2][2][2];
    TransformBack(from + s * kChannels, count * kChannels, values);
    for (int64_t i = 0; i < std::min<int64_t>(2, out.h - row); ++i)
      for (int64_t j = 0; j < std::min<int64_t>(2, out.w - column); ++j) {
        float* to = y + ((image * out.h + row + i) * out.w + column + j) * out.c;
        finish(values[i][j], to);
      }
  }
}

void WinogradConvolve(ffi::ThreadPool& pool, const float* x, const Image& in, const float* kernel,
                      const Steps& steps, const Ending& ending, float* y, const Image& out,
                      const Window& g) {
  const int64_t c = in.c, panels = CeilDiv(out.c, kChannels), panel_size = kElements * c * kChannels;
  float* transformed = Scratch(kShared, panels * panel_size);
  Parallel(pool, panels, [&](int64_t p) {
    const int64_t o = p * kChannels;
    TransformKernel(kernel + o * steps.out, steps, c, std::min<int64_t>(kChannels, out.c - o),
                    transformed + p * panel_size);
  });

  const Squares squares{CeilDiv(out.h, 2), CeilDiv(out.w, 2)};
  const int64_t all = out.n * squares.per_image();
  int64_t size = std::max<int64_t>(2, kSquareFloats / c / kPixels) * kPixels;
  size = std::min(size, CeilDiv(CeilDiv(all, 2 * pool.num_threads()), kPixels) * kPixels);
  std::vector<Run> runs;
  AddRun(0, c, runs);
  Parallel(pool, CeilDiv(all, size), [&](int64_t block) {
    const int64_t first = block * size, count = std::min(size, all - first);
    float* inputs = Scratch(kImages, kElements * size * c + c);
    float* zeros = inputs + kElements * size * c;
    std::fill_n(zeros, c, 0.0f);
    TransformInput(x, in, g, squares, first, count, zeros, inputs);
    float* products = Scratch(kGradients, kElements * size * kChannels);
    std::vector<int64_t> at(count), to(count);
    for (int64_t s = 0; s < count; ++s) at[s] = s * c, to[s] = s * kChannels;
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t o = p * kChannels;
      for (int64_t e = 0; e < kElements; ++e)
        Multiply(inputs + e * count * c, at, runs,
                 {transformed + p * panel_size + e * c * kChannels}, {},
                 products + e * count * kChannels, to, kChannels);
      StoreSquares(products, squares, first, count,
                   {ending.from(o), std::min<int64_t>(kChannels, out.c - o)}, out, y + o);
    }
  });
}

// --- The kernel's gradient -----------------------------------------------------------------------
//
// By the transposes of the above it is G' [sum over squares (B' d B) . (A e A')] G, of the gradients
// e of a square's 2x2 outputs: again 16 products where there are 36.

// A e A' of one square and `width` channels, of which the rest of the panel becomes zero; `pixels` are
// its 2x2 gradients, elements `step` apart in `to`.
void TransformGradient(const float* const (&pixels)[2][2], int64_t width, float* to, int64_t step) {
  float padded[2][2][kChannels] = {};
  for (int half = 0; half < kChannels; half += kVector) {
    Vector e[2][2];
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j) {
        const float* from = pixels[i][j];
        if (width < kChannels) {
          if (half == 0) std::copy_n(from, width, padded[i][j]);
          from = padded[i][j];
        }
        e[i][j] = Load(from + half);
      }
    Vector rows[4][2];
    for (int j = 0; j < 2; ++j) {
      rows[0][j] = e[0][j];
      rows[1][j] = e[0][j] + e[1][j];
      rows[2][j] = e[0][j] - e[1][j];
      rows[3][j] = -e[1][j];
    }
    for (int i = 0; i < 4; ++i) {
      float* element = to + 4 * i * step + half;
      Store(element, rows[i][0]);
      Store(element + step, rows[i][0] + rows[i][1]);
      Store(element + 2 * step, rows[i][0] - rows[i][1]);
      Store(element + 3 * step, -rows[i][1]);
    }
  }
}

// The gradients of a block's squares transformed: `to` is [kElements][panels][count][kChannels].
void TransformGradients(const float* dy, const Image& out, const Squares& squares, int64_t first,
                        int64_t count, const float* zeros, float* to) {
  const int64_t panels = CeilDiv(out.c, kChannels);
  for (int64_t s = 0; s < count; ++s) {
    const int64_t image = (first + s) / squares.per_image(), at = (first + s) % squares.per_image();
    const int64_t row = 2 * (at / squares.columns), column = 2 * (at % squares.columns);
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t o = p * kChannels;
      const float* pixels[2][2];
      for (int64_t i = 0; i < 2; ++i)
        for (int64_t j = 0; j < 2; ++j) {
          const int64_t u = row + i, v = column + j;
          const bool inside = u < out.h && v < out.w;
          pixels[i][j] = inside ? dy + ((image * out.h + u) * out.w + v) * out.c + o : zeros;
        }
      TransformGradient(pixels, std::min<int64_t>(kChannels, out.c - o),
                        to + (p * count + s) * kChannels, panels * count * kChannels);
    }
  }
}

// sums[e][k][:] += sum over squares s: inputs[e][s][k] * gradients[e][s][:]
void AddProducts(const float* inputs, const float* gradients, int64_t count, int64_t c,
                 const Image& out, float* values, float* sums) {
  const int64_t panels = CeilDiv(out.c, kChannels);
  std::array<int64_t, kPixelsPerPass> at;
  for (int64_t s = 0; s < count; ++s) at[s] = s * (panels >= kPanelsToCopy ? kPixels : c);
  for (int64_t e = 0; e < kElements; ++e, inputs += count * c)
    for (int64_t k = 0; k < c; k += kPixels) {
      const int64_t rows = std::min<int64_t>(kPixels, c - k);
      const float* from = inputs + k;
      if (panels >= kPanelsToCopy) {
        for (int64_t s = 0; s < count; ++s)
          CopyFew<kPixels>(from + s * c, rows, values + s * kPixels);
        from = values;
      }
      for (int64_t p = 0; p < panels; ++p)
        kOuterTiles[rows - 1](from, at.data(), count, gradients + (e * panels + p) * count * kChannels,
                              sums + (e * c + k) * out.c + p * kChannels, out.c,
                              std::min<int64_t>(kChannels, out.c - p * kChannels));
    }
}

// G' m G of `count` neighbouring places, of the sum of m over all parts, which lie `size` apart;
// elements of m and taps of dk are `step` apart.
void TransformKernelBack(const float* parts, int64_t ranges, int64_t size, int64_t step,
                         int64_t count, float* dk) {
  for (int64_t k = 0; k < count; k += kVector) {
    const int64_t width = std::min<int64_t>(kVector, count - k);
    Vector m[kElements] = {}, rows[3][4];
    for (int64_t range = 0; range < ranges; ++range)
      for (int e = 0; e < kElements; ++e) {
        Vector part = {};
        std::memcpy(&part, parts + range * size + e * step + k, width * sizeof(float));
        m[e] += part;
      }
    for (int j = 0; j < 4; ++j) {
      const Vector sum = 0.5f * (m[4 + j] + m[8 + j]);
      rows[0][j] = m[j] + sum;
      rows[1][j] = 0.5f * (m[4 + j] - m[8 + j]);
      rows[2][j] = sum + m[12 + j];
    }
    for (int i = 0; i < 3; ++i) {
      const Vector* r = rows[i];
      const Vector sum = 0.5f * (r[1] + r[2]);
      const Vector taps[3] = {r[0] + sum, 0.5f * (r[1] - r[2]), sum + r[3]};
      for (int j = 0; j < 3; ++j)
        std::memcpy(dk + (3 * i + j) * step + k, &taps[j], width * sizeof(float));
    }
  }
}

void WinogradKernelGradient(ffi::ThreadPool& pool, const float* x, const Image& in, const float* dy,
                            const Image& out, const Window& g, float* dk) {
  const Squares squares{CeilDiv(out.h, 2), CeilDiv(out.w, 2)};
  const int64_t all = out.n * squares.per_image(), threads = pool.num_threads();
  const int64_t panels = CeilDiv(out.c, kChannels), plane = in.c * out.c;
  const int64_t size = std::min(kPixelsPerPass, CeilDiv(all, threads));
  const int64_t blocks = CeilDiv(all, size), ranges = std::min(threads, blocks);
  float* parts = Scratch(kShared, ranges * kElements * plane);
  Parallel(pool, ranges, [&](int64_t range) {
    float* sums = parts + range * kElements * plane;
    std::fill_n(sums, kElements * plane, 0.0f);
    const int64_t wide = std::max(in.c, panels * kChannels);
    float* inputs = Scratch(kImages, kElements * size * in.c + wide);
    float* zeros = inputs + kElements * size * in.c;
    std::fill_n(zeros, wide, 0.0f);
    float* gradients = Scratch(kGradients, size * (kElements * panels * kChannels + kPixels));
    float* values = gradients + size * kElements * panels * kChannels;
    for (int64_t b = blocks * range / ranges; b < blocks * (range + 1) / ranges; ++b) {
      const int64_t first = b * size, count = std::min(size, all - first);
      TransformInput(x, in, g, squares, first, count, zeros, inputs);
      TransformGradients(dy, out, squares, first, count, zeros, gradients);
      AddProducts(inputs, gradients, count, in.c, out, values, sums);
    }
  });
  Parallel(pool, in.c, [&](int64_t k) {
    TransformKernelBack(parts + k * out.c, ranges, kElements * plane, plane, out.c, dk + k * out.c);
  });
}

}  // namespace
}  // namespace flaxmed

#endif  // FLAXMED_WINOGRAD_H_
