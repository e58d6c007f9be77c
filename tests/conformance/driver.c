// Calls of one kernel, read from standard input; its buffers afterwards, to standard output.
//
//   input   u64 bytes of all input, of them: header u64[7] (see Header), for each buffer
//           u64[2] (bytes, whether its end or its beginning touches the forbidden page),
//           u64[args] the kind of each argument, for each call u64[args] its value, then the
//           buffers one after the other
//   output  the buffers
//
// A pointer's value is a buffer's number plus, in its upper half, how many bytes before the
// buffer it points.  Integers and floats go where AAPCS64 wants them whatever their order: so
// one type of function fits every kernel.  Nothing of a C library is used.
#include <stddef.h>
#include <stdint.h>

enum { POINTER, INTEGER, FLOAT };
enum { MOST_INTEGERS = 32, MOST_FLOATS = 4, MOST_BUFFERS = 16, PAGE = 4096 };
enum { READ = 63, WRITE = 64, EXIT = 93, MPROTECT = 226, MMAP = 222 };

typedef void (*Kernel)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                       uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                       uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                       uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                       uint64_t, uint64_t, uint64_t, uint64_t, float, float, float, float);

#define KERNEL(name) void name(void);
#include "kernels.inc"
#undef KERNEL
#define KERNEL(name) (Kernel)(void *)name,
static const Kernel kernels[] = {
#include "kernels.inc"
};

typedef struct {
  uint64_t bytes, kernel, buffers, args, calls, written, unused;
} Header;

static long sys(long number, long a, long b, long c, long d, long e, long f) {
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = e;
  register long x5 __asm__("x5") = f;
  __asm__ volatile("svc 0"
                   : "+r"(x0)
                   : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                   : "memory");
  return x0;
}

static void fail(int code) {
  for (;;) sys(EXIT, code, 0, 0, 0, 0, 0);
}

static uint8_t *map(size_t bytes) {
  long at = sys(MMAP, 0, (long)bytes, 3, 0x22, -1, 0);
  if (at < 0) fail(10);
  return (uint8_t *)at;
}

static void transfer(long call, int file, uint8_t *at, size_t bytes) {
  while (bytes) {
    long done = sys(call, file, (long)at, (long)bytes, 0, 0, 0);
    if (done <= 0) fail(11);
    at += done;
    bytes -= (size_t)done;
  }
}

typedef struct {
  uint8_t *inside, *at;
  size_t length, bytes;
} Buffer;

// A copy of `from` between pages that cannot be accessed; 0xA5 where it does not fill its own.
static Buffer guarded(const uint8_t *from, size_t bytes, int at_end, int writable) {
  const size_t length = (bytes + PAGE - 1) / PAGE * PAGE + (bytes == 0) * PAGE;
  uint8_t *base = map(length + 2 * PAGE);
  Buffer buffer = {.inside = base + PAGE, .length = length, .bytes = bytes};
  buffer.at = buffer.inside + (at_end ? length - bytes : 0);
  for (size_t i = 0; i < length; i++) ((volatile uint8_t *)buffer.inside)[i] = 0xA5;
  for (size_t i = 0; i < bytes; i++) ((volatile uint8_t *)buffer.at)[i] = from[i];
  if (sys(MPROTECT, (long)base, PAGE, 0, 0, 0, 0)) fail(12);
  if (sys(MPROTECT, (long)(base + PAGE + length), PAGE, 0, 0, 0, 0)) fail(12);
  if (sys(MPROTECT, (long)buffer.inside, (long)length, writable ? 3 : 1, 0, 0, 0)) fail(12);
  return buffer;
}

static int is_intact(const Buffer *buffer) {
  for (const uint8_t *p = buffer->inside; p < buffer->inside + buffer->length; p++)
    if ((p < buffer->at || p >= buffer->at + buffer->bytes) && *p != 0xA5) return 0;
  return 1;
}

static void call(const Header *header, const Buffer *buffers, const uint64_t *kinds,
                 const uint64_t *values) {
  uint64_t n[MOST_INTEGERS];
  float f[MOST_FLOATS];
  size_t integers = 0, floats = 0;
  for (size_t i = 0; i < header->args; i++) {
    if (kinds[i] == FLOAT) {
      if (floats == MOST_FLOATS) fail(13);
      union { uint32_t bits; float value; } u = {(uint32_t)values[i]};
      f[floats++] = u.value;
      continue;
    }
    if (integers == MOST_INTEGERS) fail(13);
    const uint32_t before = (uint32_t)(values[i] >> 32);
    n[integers++] = kinds[i] == INTEGER
                        ? values[i]
                        : (uint64_t)(buffers[(uint32_t)values[i]].at - before);
  }
  for (; integers < MOST_INTEGERS; integers++) ((volatile uint64_t *)n)[integers] = 0;
  for (; floats < MOST_FLOATS; floats++) ((volatile float *)f)[floats] = 0;
  kernels[header->kernel](n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10],
                          n[11], n[12], n[13], n[14], n[15], n[16], n[17], n[18], n[19], n[20],
                          n[21], n[22], n[23], n[24], n[25], n[26], n[27], n[28], n[29], n[30],
                          n[31], f[0], f[1], f[2], f[3]);
}

void _start(void) {
  Header start;
  Buffer buffers[MOST_BUFFERS];
  transfer(READ, 0, (uint8_t *)&start, sizeof start);
  const size_t rest = start.bytes - sizeof start;
  uint8_t *input = map(rest);
  transfer(READ, 0, input, rest);
  if (start.buffers > MOST_BUFFERS) fail(13);
  const uint64_t *shapes = (const uint64_t *)input;
  const uint64_t *kinds = shapes + 2 * start.buffers, *values = kinds + start.args;
  const uint8_t *data = (const uint8_t *)(values + start.args * start.calls);
  for (size_t i = 0; i < start.buffers; i++) {
    const int writable = (int)(start.written >> i & 1);
    buffers[i] = guarded(data, shapes[2 * i], shapes[2 * i + 1] != 0, writable);
    data += shapes[2 * i];
  }
  for (size_t i = 0; i < start.calls; i++)
    call(&start, buffers, kinds, values + i * start.args);
  for (size_t i = 0; i < start.buffers; i++) {
    if (!is_intact(&buffers[i])) fail(14);
    transfer(WRITE, 1, buffers[i].at, buffers[i].bytes);
  }
  fail(0);
}
