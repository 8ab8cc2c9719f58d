// The names of CUDA C for a C++ compiler: generated kernels are compiled with this file in front of them, and run on
// the CPU by the simulator, one fiber a CUDA thread. What a name does is in scheduler.cpp and memory.cpp.
#pragma once

extern "C" {
#define CUDASIM_MATH_1(name) float name##f(float); double name(double);
#define CUDASIM_MATH_2(name) float name##f(float, float); double name(double, double);
CUDASIM_MATH_1(exp) CUDASIM_MATH_1(exp2) CUDASIM_MATH_1(expm1) CUDASIM_MATH_1(log) CUDASIM_MATH_1(log2)
CUDASIM_MATH_1(log1p) CUDASIM_MATH_1(tanh) CUDASIM_MATH_1(sin) CUDASIM_MATH_1(cos) CUDASIM_MATH_1(tan)
CUDASIM_MATH_1(sinh) CUDASIM_MATH_1(cosh) CUDASIM_MATH_1(asin) CUDASIM_MATH_1(acos) CUDASIM_MATH_1(atan)
CUDASIM_MATH_1(sqrt) CUDASIM_MATH_1(cbrt) CUDASIM_MATH_1(erf) CUDASIM_MATH_1(erfc) CUDASIM_MATH_1(fabs)
CUDASIM_MATH_1(floor) CUDASIM_MATH_1(ceil) CUDASIM_MATH_1(trunc) CUDASIM_MATH_1(round) CUDASIM_MATH_1(rint)
CUDASIM_MATH_2(pow) CUDASIM_MATH_2(fmax) CUDASIM_MATH_2(fmin) CUDASIM_MATH_2(fmod) CUDASIM_MATH_2(copysign)
CUDASIM_MATH_2(atan2) CUDASIM_MATH_2(hypot)
float fmaf(float, float, float);
double fma(double, double, double);
}
#define isnan(x) __builtin_isnan(x)
#define isinf(x) __builtin_isinf(x)
#define isfinite(x) __builtin_isfinite(x)
#define signbit(x) __builtin_signbit(x)

// Types --------------------------------------------------------------------------------------------------------------

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) longlong2 { long long x, y; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

// Where things live --------------------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
// Every __shared__ variable lies in one section: the scheduler poisons it for each block, and swaps it between the
// blocks of a cooperative launch. g++ puts those of templates elsewhere, so templates take shared memory as an argument.
#define __shared__ static __attribute__((section("cuda_shared")))
#define CUDASIM 1
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(cudasim_dynamic_shared())

// Threads ------------------------------------------------------------------------------------------------------------

extern "C" {
uint3 cudasim_thread();
uint3 cudasim_block();
dim3 cudasim_block_size();
dim3 cudasim_grid_size();
void* cudasim_dynamic_shared();
void cudasim_block_barrier(int line);
int cudasim_block_vote(int predicate, int kind, int line);
void cudasim_warp_barrier(unsigned mask, int line);
void cudasim_grid_barrier(int line);
unsigned long cudasim_shuffle(unsigned mask, unsigned long value, int mode, int argument, int width, int line);
unsigned cudasim_vote(unsigned mask, int predicate, int line);
void cudasim_atomic(const void* address, int size);
void cudasim_fence();
long long cudasim_clock();
}
#define threadIdx cudasim_thread()
#define blockIdx cudasim_block()
#define blockDim cudasim_block_size()
#define gridDim cudasim_grid_size()
#define warpSize 32
#define __syncthreads() cudasim_block_barrier(__LINE__)
#define __syncthreads_or(p) cudasim_block_vote(p, 0, __LINE__)
#define __syncthreads_and(p) cudasim_block_vote(p, 1, __LINE__)
#define __syncthreads_count(p) cudasim_block_vote(p, 2, __LINE__)
#define __syncwarp(...) cudasim_warp_barrier(cudasim_mask(__VA_ARGS__), __LINE__)
#define GRID_BARRIER(words) ((void)(words), cudasim_grid_barrier(__LINE__))
#define __threadfence() cudasim_fence()
#define __threadfence_block() ((void)0)
#define clock64() cudasim_clock()
inline unsigned cudasim_mask(unsigned mask = 0xffffffffu) { return mask; }

template <class T>
inline T cudasim_shuffled(unsigned mask, T value, int mode, int argument, int line, int width = 32) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most eight bytes");
  unsigned long bits = 0;
  __builtin_memcpy(&bits, &value, sizeof value);
  bits = cudasim_shuffle(mask, bits, mode, argument, width, line);
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
#define CUDASIM_LANE(...) CUDASIM_LANE_(__VA_ARGS__, 32)
#define CUDASIM_LANE_(argument, width, ...) argument, __LINE__, width
#define __shfl_sync(mask, value, ...) cudasim_shuffled(mask, value, 0, CUDASIM_LANE(__VA_ARGS__))
#define __shfl_up_sync(mask, value, ...) cudasim_shuffled(mask, value, 1, CUDASIM_LANE(__VA_ARGS__))
#define __shfl_down_sync(mask, value, ...) cudasim_shuffled(mask, value, 2, CUDASIM_LANE(__VA_ARGS__))
#define __shfl_xor_sync(mask, value, ...) cudasim_shuffled(mask, value, 3, CUDASIM_LANE(__VA_ARGS__))
#define __ballot_sync(mask, p) cudasim_vote(mask, p, __LINE__)
#define __any_sync(mask, p) (cudasim_vote(mask, p, __LINE__) != 0)
#define __all_sync(mask, p) (cudasim_vote(mask, p, __LINE__) == (mask))

// Fibers switch only at barriers, so reading and writing in one go is atomic; the checker is told that it is meant so.
template <class T> struct cudasim_same { typedef T type; };
#define CUDASIM_ATOMIC(name, result)                                                                       \
  template <class T>                                                                                       \
  __attribute__((no_sanitize("thread"), noinline)) T name(T* address, typename cudasim_same<T>::type value) { \
    cudasim_atomic(address, sizeof(T));                                                                    \
    T old = *address;                                                                                      \
    *address = result;                                                                                     \
    return old;                                                                                            \
  }
CUDASIM_ATOMIC(atomicAdd, old + value)
CUDASIM_ATOMIC(atomicSub, old - value)
CUDASIM_ATOMIC(atomicMax, old > value ? old : value)
CUDASIM_ATOMIC(atomicMin, old < value ? old : value)
CUDASIM_ATOMIC(atomicExch, value)
CUDASIM_ATOMIC(atomicOr, old | value)
template <class T>
__attribute__((no_sanitize("thread"), noinline)) T atomicCAS(T* address, T expected, typename cudasim_same<T>::type value) {
  cudasim_atomic(address, sizeof(T));
  T old = *address;
  if (old == expected) *address = value;
  return old;
}

// Arithmetic ---------------------------------------------------------------------------------------------------------

inline float __int_as_float(int bits) { float x; __builtin_memcpy(&x, &bits, 4); return x; }
inline int __float_as_int(float x) { int bits; __builtin_memcpy(&bits, &x, 4); return bits; }
inline double __longlong_as_double(long long bits) { double x; __builtin_memcpy(&x, &bits, 8); return x; }
inline long long __double_as_longlong(double x) { long long bits; __builtin_memcpy(&bits, &x, 8); return bits; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long)a * b >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
template <class T> inline T __ldg(const T* address) { return *address; }
template <class T> inline T __ldcs(const T* address) { return *address; }
template <class T> inline void __stcs(T* address, T value) { *address = value; }
template <class T> inline T min(T a, typename cudasim_same<T>::type b) { return b < a ? b : a; }
template <class T> inline T max(T a, typename cudasim_same<T>::type b) { return a < b ? b : a; }

// Launching ----------------------------------------------------------------------------------------------------------
// A launch hands over an array of addresses of arguments, as the driver's does. CUDASIM_EXPORT gives each kernel a
// function that unpacks it and one that tells the kinds of the parameters.

template <class T> struct cudasim_kind { static constexpr char letter = sizeof(T) == 8 ? 'l' : sizeof(T) == 4 ? 'i' : 'b'; };
template <class T> struct cudasim_kind<T*> { static constexpr char letter = 'p'; };
template <> struct cudasim_kind<float> { static constexpr char letter = 'f'; };
template <> struct cudasim_kind<double> { static constexpr char letter = 'd'; };
template <int... I> struct cudasim_sequence {};
template <int N, int... I> struct cudasim_count : cudasim_count<N - 1, N - 1, I...> {};
template <int... I> struct cudasim_count<0, I...> { typedef cudasim_sequence<I...> type; };
template <class... A, int... I>
__attribute__((no_sanitize("thread"))) void cudasim_call(void (*kernel)(A...), void** arguments, cudasim_sequence<I...>) {
  kernel(*(A*)arguments[I]...);
}
template <class... A> inline const char* cudasim_kinds(void (*)(A...)) {
  static const char letters[] = {cudasim_kind<A>::letter..., 0};
  return letters;
}
template <class... A> struct cudasim_pack {};
template <class... A>
__attribute__((no_sanitize("thread"))) void cudasim_unpack(void (*kernel)(A...), void** arguments) {
  cudasim_call(kernel, arguments, typename cudasim_count<sizeof...(A)>::type{});
}
#define CUDASIM_EXPORT(kernel)                                                                                       \
  extern "C" __attribute__((no_sanitize("thread", "undefined"))) void cudasim_run_##kernel(void** arguments) {       \
    cudasim_unpack(kernel, arguments);                                                                               \
  }                                                                                                                  \
  extern "C" const char* cudasim_kinds_##kernel() { return cudasim_kinds(kernel); }
#define CUDASIM_MODULE()                                                                                             \
  extern "C" char __start_cuda_shared[] __attribute__((weak)), __stop_cuda_shared[] __attribute__((weak));           \
  extern "C" char __ehdr_start[], _end[];                                                                            \
  extern "C" void cudasim_image(char** places) {                                                                     \
    places[0] = __start_cuda_shared;                                                                                 \
    places[1] = __stop_cuda_shared;                                                                                  \
    places[2] = __ehdr_start;                                                                                        \
    places[3] = _end;                                                                                                \
  }
