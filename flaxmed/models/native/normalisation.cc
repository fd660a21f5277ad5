// Batch normalisation in training, with or without a ReLU after it, and its gradients.
//
// Both directions read their images twice, once for sums per channel and once to write, which is as
// little as there can be. Rows of padding, whose mask is 0, enter no statistic.
//
// Sums are taken in float32 over a few pixels, which stay in the cache, and added up in float64;
// variances are merged from those of the parts: T. F. Chan, G. H. Golub, R. J. LeVeque, Algorithms
// for computing the sample variance, The American Statistician 37, 242 (1983).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "threads.h"

namespace flaxmed {
namespace {

constexpr int64_t kPassValues = 4096;  // floats of a pass over a few pixels: 16 KB, in the L1 cache

struct Shape {
  int64_t n, pixels, c;  // images, pixels of one, channels
};

Shape ShapeOf(ffi::Span<const int64_t> d) { return {d[0], d[1] * d[2], d[3]}; }

// Calls f(first pixel, pixels) for passes over the pixels of range `range` whose mask is not 0.
template <class F>
void Passes(const Shape& s, const float* mask, int64_t range, int64_t ranges, const F& f) {
  const int64_t step = std::max<int64_t>(1, kPassValues / s.c), all = s.n * s.pixels;
  for (int64_t p = all * range / ranges, end = all * (range + 1) / ranges; p < end;) {
    const int64_t image = p / s.pixels;
    const int64_t count = std::min({step, end - p, (image + 1) * s.pixels - p});
    if (mask == nullptr || mask[image] != 0) f(p, count);
    p += count;
  }
}

int64_t Ranges(const ffi::ThreadPool& pool, const Shape& s) {
  return std::min<int64_t>(pool.num_threads(), std::max<int64_t>(1, s.n * s.pixels / 64));
}

// Mean and sum of squared deviations of the values of each channel.
struct Moments {
  double count = 0;
  std::vector<double> mean, squares;
  explicit Moments(int64_t c) : mean(c, 0.0), squares(c, 0.0) {}

  template <class T>
  void Merge(double n, const T* other_mean, const T* other_squares) {
    if (n == 0) return;
    const double part = n / (count + n), both = count * part;
    for (size_t k = 0; k < mean.size(); ++k) {
      const double difference = other_mean[k] - mean[k];
      mean[k] += difference * part;
      squares[k] += other_squares[k] + difference * difference * both;
    }
    count += n;
  }
};

Moments MomentsOf(ffi::ThreadPool& pool, const float* x, const Shape& s, const float* mask) {
  const int64_t ranges = Ranges(pool, s), c = s.c;
  std::vector<Moments> parts(ranges, Moments(c));
  Parallel(pool, ranges, [&](int64_t range) {
    std::vector<float> mean(c), rest(c), squares(c);
    Passes(s, mask, range, ranges, [&](int64_t first, int64_t count) {
      for (auto* sums : {&mean, &rest, &squares}) std::fill(sums->begin(), sums->end(), 0.0f);
      const float* values = x + first * c;
      for (int64_t p = 0; p < count; ++p)
        for (int64_t k = 0; k < c; ++k) mean[k] += values[p * c + k];
      for (int64_t k = 0; k < c; ++k) mean[k] /= static_cast<float>(count);
      for (int64_t p = 0; p < count; ++p)
        for (int64_t k = 0; k < c; ++k) {
          const float d = values[p * c + k] - mean[k];
          rest[k] += d;
          squares[k] += d * d;
        }
      for (int64_t k = 0; k < c; ++k) {  // what rounding left in the mean
        const float missing = rest[k] / static_cast<float>(count);
        mean[k] += missing;
        squares[k] -= rest[k] * missing;
      }
      parts[range].Merge(static_cast<double>(count), mean.data(), squares.data());
    });
  });
  for (int64_t range = 1; range < ranges; ++range)
    parts[0].Merge(parts[range].count, parts[range].mean.data(), parts[range].squares.data());
  return parts[0];
}

// scale / sqrt(variance + epsilon)
std::vector<float> Factors(const float* scale, const float* variance, float epsilon, int64_t c) {
  std::vector<float> factor(c);
  for (int64_t k = 0; k < c; ++k) factor[k] = scale[k] / std::sqrt(variance[k] + epsilon);
  return factor;
}

template <bool kRelu>
void Normalise(const float* __restrict x, int64_t pixels, int64_t c, const float* __restrict mean, const float* __restrict factor,
               const float* __restrict bias, float* __restrict y) {
  for (int64_t p = 0; p < pixels; ++p, x += c, y += c)
    for (int64_t k = 0; k < c; ++k) {
      const float value = (x[k] - mean[k]) * factor[k] + bias[k];
      y[k] = kRelu && value < 0 ? 0 : value;  // what is not a number stays so
    }
}

ffi::Error Forward(ffi::ThreadPool pool, Buffer x, Buffer scale, Buffer bias, Buffer mask, Result y,
                   Result mean, Result variance, float epsilon, int64_t relu) {
  const Shape s = ShapeOf(x.dimensions());
  const Moments moments = MomentsOf(pool, x.typed_data(), s, mask.typed_data());
  const double count = std::max(1.0, moments.count);
  for (int64_t k = 0; k < s.c; ++k) {
    mean->typed_data()[k] = static_cast<float>(moments.mean[k]);
    variance->typed_data()[k] = static_cast<float>(moments.squares[k] / count);
  }
  const auto factor = Factors(scale.typed_data(), variance->typed_data(), epsilon, s.c);
  const int64_t ranges = Ranges(pool, s);
  Parallel(pool, ranges, [&](int64_t range) {
    const int64_t all = s.n * s.pixels, first = all * range / ranges;
    const int64_t pixels = all * (range + 1) / ranges - first;
    (relu ? Normalise<true> : Normalise<false>)(
        x.typed_data() + first * s.c, pixels, s.c, mean->typed_data(), factor.data(),
        bias.typed_data(), y->typed_data() + first * s.c);
  });
  return ffi::Error::Success();
}

// With g the gradient behind the ReLU and z = (x - mean) / sqrt(variance + epsilon):
//   dbias = sum g,  dscale = sum g z,  dx = factor (g - mask (dbias + z dscale) / count).
// All rows take part in the sums, as mean and variance enter all; only rows that the mask lets
// through moved them.
template <bool kRelu>
void Sum(const float* __restrict dy, const float* __restrict x, int64_t pixels, int64_t c, const float* __restrict mean,
         const float* __restrict factor, const float* __restrict bias, float* __restrict sum, float* __restrict product) {
  for (int64_t p = 0; p < pixels; ++p, x += c, dy += c)
    for (int64_t k = 0; k < c; ++k) {
      const float centred = x[k] - mean[k];
      const float g = kRelu && !(centred * factor[k] + bias[k] > 0) ? 0 : dy[k];
      sum[k] += g;
      product[k] += g * centred;
    }
}

template <bool kRelu>
void InputGradient(const float* __restrict dy, const float* __restrict x, int64_t pixels, int64_t c, const float* __restrict mean,
                   const float* __restrict factor, const float* __restrict bias, const float* __restrict constant,
                   const float* __restrict slope, float* __restrict dx) {
  for (int64_t p = 0; p < pixels; ++p, x += c, dy += c, dx += c)
    for (int64_t k = 0; k < c; ++k) {
      const float centred = x[k] - mean[k];
      const float g = kRelu && !(centred * factor[k] + bias[k] > 0) ? 0 : dy[k];
      dx[k] = factor[k] * g - constant[k] - centred * slope[k];
    }
}

ffi::Error Backward(ffi::ThreadPool pool, Buffer dy, Buffer x, Buffer scale, Buffer bias,
                    Buffer mask, Buffer mean, Buffer variance, Result dx, Result dscale,
                    Result dbias, float epsilon, int64_t relu) {
  const Shape s = ShapeOf(x.dimensions());
  const int64_t c = s.c, ranges = Ranges(pool, s);
  const auto factor = Factors(scale.typed_data(), variance.typed_data(), epsilon, c);
  std::vector<std::vector<double>> sums(ranges), products(ranges);
  Parallel(pool, ranges, [&](int64_t range) {
    sums[range].assign(c, 0.0), products[range].assign(c, 0.0);
    std::vector<float> sum(c), product(c);
    Passes(s, nullptr, range, ranges, [&](int64_t first, int64_t count) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      std::fill(product.begin(), product.end(), 0.0f);
      (relu ? Sum<true> : Sum<false>)(dy.typed_data() + first * c, x.typed_data() + first * c,
                                      count, c, mean.typed_data(), factor.data(),
                                      bias.typed_data(), sum.data(), product.data());
      for (int64_t k = 0; k < c; ++k) sums[range][k] += sum[k], products[range][k] += product[k];
    });
  });
  double count = 0;
  for (int64_t i = 0; i < s.n; ++i) count += mask.typed_data()[i] != 0 ? s.pixels : 0;
  count = std::max(1.0, count);
  std::vector<float> constant(c), slope(c), zeros(c, 0.0f);
  for (int64_t k = 0; k < c; ++k) {
    double sum = 0, product = 0;
    for (int64_t range = 0; range < ranges; ++range) sum += sums[range][k], product += products[range][k];
    const double inverse = 1 / std::sqrt(static_cast<double>(variance.typed_data()[k]) + epsilon);
    dbias->typed_data()[k] = static_cast<float>(sum);
    dscale->typed_data()[k] = static_cast<float>(product * inverse);
    constant[k] = static_cast<float>(factor[k] * sum / count);
    slope[k] = static_cast<float>(factor[k] * product * inverse * inverse / count);
  }
  Parallel(pool, ranges, [&](int64_t range) {
    Passes(s, nullptr, range, ranges, [&](int64_t first, int64_t pixels) {
      const bool counts = mask.typed_data()[first / s.pixels] != 0;
      (relu ? InputGradient<true> : InputGradient<false>)(
          dy.typed_data() + first * c, x.typed_data() + first * c, pixels, c, mean.typed_data(),
          factor.data(), bias.typed_data(), counts ? constant.data() : zeros.data(),
          counts ? slope.data() : zeros.data(), dx->typed_data() + first * c);
    });
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxmed_batch_norm, Forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()  // x
                                  .Arg<Buffer>()  // scale
                                  .Arg<Buffer>()  // bias
                                  .Arg<Buffer>()  // mask
                                  .Ret<Buffer>()  // y
                                  .Ret<Buffer>()  // mean
                                  .Ret<Buffer>()  // variance
                                  .Attr<float>("epsilon")
                                  .Attr<int64_t>("relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxmed_batch_norm_grad, Backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()  // dy
                                  .Arg<Buffer>()  // x
                                  .Arg<Buffer>()  // scale
                                  .Arg<Buffer>()  // bias
                                  .Arg<Buffer>()  // mask
                                  .Arg<Buffer>()  // mean
                                  .Arg<Buffer>()  // variance
                                  .Ret<Buffer>()  // dx
                                  .Ret<Buffer>()  // dscale
                                  .Ret<Buffer>()  // dbias
                                  .Attr<float>("epsilon")
                                  .Attr<int64_t>("relu"));

}  // namespace flaxmed
