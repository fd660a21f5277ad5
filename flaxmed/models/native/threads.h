// What the kernels share: how they use XLA's threads and keep memory.

#ifndef FLAXMED_THREADS_H_
#define FLAXMED_THREADS_H_

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace flaxmed {

namespace ffi = xla::ffi;
using Buffer = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;

constexpr int64_t kTasksPerThread = 16;  // fewer leave threads with unequal work

// Calls f(task) for every task on the threads of the pool and on this one. It waits for tasks, not
// for threads: were all of the pool's busy, waiting like this one, it does them alone.
template <class F>
void Parallel(ffi::ThreadPool& pool, int64_t tasks, const F& f) {
  if (tasks == 1 || pool.num_threads() == 1) {
    for (int64_t task = 0; task < tasks; ++task) f(task);
    return;
  }
  struct Shared {
    std::atomic<int64_t> next{0}, left;
    std::mutex mutex;
    std::condition_variable finished;
  };
  auto shared = std::make_shared<Shared>();
  shared->left = tasks;
  auto work = [shared, tasks, &f] {  // f is gone once no task is left
    for (int64_t task; (task = shared->next++) < tasks;) {
      f(task);
      if (--shared->left == 0) {
        std::lock_guard<std::mutex> lock(shared->mutex);
        shared->finished.notify_all();
      }
    }
  };
  for (int64_t i = 1; i < std::min<int64_t>(pool.num_threads(), tasks); ++i)
    pool.Schedule([work] { work(); });
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->finished.wait(lock, [&] { return shared->left == 0; });
}

// Memory that a thread keeps from call to call: fresh pages cost more than what is written there.
inline float* Scratch(int which, int64_t floats) {
  static thread_local std::array<std::vector<float>, 3> kept;
  if (static_cast<int64_t>(kept[which].size()) < floats) kept[which].resize(floats);
  return kept[which].data();
}
enum { kImages, kGradients, kShared };

}  // namespace flaxmed

#endif  // FLAXMED_THREADS_H_
