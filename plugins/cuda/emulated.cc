// Runs a kernel's workgroups one after the other, for tests: see emulated.h.
//
//   const char *llmir_emulate(kernel, threads, grid_x, grid_y, grid_z, arguments[16])
//
// arguments: pointers, and numbers of 32 bits, each in 64.  Returns what went wrong, or null.
#include <stdlib.h>
#include <ucontext.h>

#include "device.h"

constexpr u32 kMostThreads = 1024;
constexpr u64 kStackBytes = 256 << 10;
enum State { kReady, kAtGroup, kAtWarp, kDone };
typedef void (*Kernel)(u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64);

static EmulatedThread threads[kMostThreads];
static ucontext_t contexts[kMostThreads], scheduler;
static State states[kMostThreads];
static char *stacks;
static Kernel running;
static const u64 *given;
EmulatedThread *emulated_thread;

static void wait_as(State state) {
  const u32 id = emulated_thread->id;
  states[id] = state;
  swapcontext(&contexts[id], &scheduler);
}
void emulated_sync_group() { wait_as(kAtGroup); }
void emulated_sync_warp() { wait_as(kAtWarp); }
const EmulatedThread *emulated_lane(u32 lane) {
  return &threads[emulated_thread->id / kWarp * kWarp + lane];
}

static void fiber() {
  const u64 *a = given;
  running(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13],
          a[14], a[15]);
  states[emulated_thread->id] = kDone;
}

// Those of [from, to) that wait as `state` go on, if all of them do; whether they did.
static bool release(u32 from, u32 to, State state) {
  for (u32 i = from; i < to; i++)
    if (states[i] != state) return false;
  for (u32 i = from; i < to; i++) states[i] = kReady;
  return true;
}

static const char *run_group(u32 count) {
  for (u32 i = 0; i < count; i++) {
    getcontext(&contexts[i]);
    contexts[i].uc_stack.ss_sp = stacks + i * kStackBytes;
    contexts[i].uc_stack.ss_size = kStackBytes;
    contexts[i].uc_link = &scheduler;
    makecontext(&contexts[i], fiber, 0);
    states[i] = kReady;
  }
  for (;;) {
    u32 num_done = 0;
    bool moved = false;
    for (u32 warp = 0; warp < count; warp += kWarp) {
      for (u32 i = warp; i < warp + kWarp; i++) {
        if (states[i] == kReady) {
          emulated_thread = &threads[i];
          swapcontext(&scheduler, &contexts[i]);
          moved = true;
        }
        num_done += states[i] == kDone;
      }
      moved |= release(warp, warp + kWarp, kAtWarp);
    }
    if (num_done == count) return 0;
    moved |= release(0, count, kAtGroup);
    if (!moved) return "threads wait for others that have ended or wait elsewhere";
  }
}

extern "C" const char *llmir_emulate(Kernel kernel, u32 count, u32 x, u32 y, u32 z,
                                     const u64 *arguments) {
  if (count == 0 || count > kMostThreads || count % kWarp) return "whole warps, at most 1024 threads";
  if (!stacks) stacks = (char *)malloc(kMostThreads * kStackBytes);
  if (!stacks) return "no memory for stacks";
  running = kernel;
  given = arguments;
  for (u32 k = 0; k < z; k++)
    for (u32 j = 0; j < y; j++)
      for (u32 i = 0; i < x; i++) {
        for (u32 t = 0; t < count; t++) threads[t] = {t, i, j, k, {}};
        if (const char *wrong = run_group(count)) return wrong;
      }
  return 0;
}
