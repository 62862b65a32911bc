// Time steps of the OTTT neuron as one kernel, and its surrogate's derivative as another.
//
// The formulas are those of lif.py, trace.py and ndot.py, written in the same order of operations.
// Each number is read and written once, in the dtype of its tensor; the arithmetic in between is
// float32, or float64 for tensors of float64. Between two steps membrane and trace stay where they
// are, in registers.
//
// SCALAR   double, float, Half or BFloat16: input, membrane, spike, gradient
// TRACE    double, float, Half, BFloat16 or Packed: how the trace is stored
//
// HARD, DECAY_INPUT, SURROGATE, NDOT and TAU may be given as constants; what is not is read from
// the arguments. A constant spares registers, and a division by a power of two.
//
// The file needs no header of CUDA. Without NVRTC it is plain C++: a loop in the place of a grid of
// threads, in which the compiler takes several neurons at once, as a processor's vectors hold them.

#ifndef HARD
#define HARD lif.hard
#endif
#ifndef DECAY_INPUT
#define DECAY_INPUT lif.decay_input
#endif
#ifndef SURROGATE
#define SURROGATE lif.surrogate
#endif
#ifndef NDOT
#define NDOT lif.ndot
#endif
#ifndef TAU
#define TAU lif.tau
#endif

typedef long long Index;

#ifdef __CUDACC_RTC__
#define DEVICE __device__ __forceinline__
#define KERNEL(name, Arguments) extern "C" __global__ void name(const Arguments call)
#define EACH(i, count)                                                              \
    for (Index i = Index(blockIdx.x) * blockDim.x + threadIdx.x; i < (count);       \
         i += Index(gridDim.x) * blockDim.x)
#else
#include <cmath>
#include <cstring>
#define DEVICE inline
#define KERNEL(name, Arguments) extern "C" void name(const Arguments& call)
#define EACH(i, count)                                                              \
    _Pragma("omp parallel for num_threads(call.layout.threads)")                    \
    for (Index i = 0; i < (count); ++i)
#endif

// Numbers

struct Half { unsigned short bits; };
struct BFloat16 { unsigned short bits; };
struct Packed { unsigned char bits; };

template <class T> struct RealOf { typedef float type; };
template <> struct RealOf<double> { typedef double type; };
typedef RealOf<SCALAR>::type Real;

DEVICE double read(double x) { return x; }
DEVICE float read(float x) { return x; }

DEVICE float read(BFloat16 x) {
    unsigned bits = unsigned(x.bits) << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

#if defined(__CUDACC_RTC__) || defined(__FLT16_MANT_DIG__)  // older C++ compilers know no Half
DEVICE float read(Half x) {
    float y;
#ifdef __CUDACC_RTC__
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
#else
    _Float16 h;
    memcpy(&h, &x.bits, 2);
    y = h;
#endif
    return y;
}
#endif

DEVICE void write(double& to, double x) { to = x; }
DEVICE void write(float& to, float x) { to = x; }

DEVICE void write(BFloat16& to, float x) {  // to nearest, ties to even
#if defined(__CUDACC_RTC__) && __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#else
    unsigned bits;
    memcpy(&bits, &x, 4);
    to.bits = x == x ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : 0x7fff;
#endif
}

#if defined(__CUDACC_RTC__) || defined(__FLT16_MANT_DIG__)
DEVICE void write(Half& to, float x) {
#ifdef __CUDACC_RTC__
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#else
    _Float16 h = x;
    memcpy(&to.bits, &h, 2);
#endif
}
#endif

// The trace: a[t] = decay a[t-1] + s[t]. That a neuron fired is the top bit of a byte.

enum { FIRED = 128 };

template <class T> DEVICE void advance(T& trace, unsigned char fired, double decay) {
    typename RealOf<T>::type a = read(trace);
    write(trace, a * typename RealOf<T>::type(decay) + typename RealOf<T>::type(fired / FIRED));
}

DEVICE void advance(Packed& trace, unsigned char fired, double decay) {
    trace.bits = (decay > 0 ? trace.bits >> 1 : 0) | fired;
}

// Arguments; lif_launch.py fills them in

struct LIF {
    double tau, trace_decay, v_threshold, v_reset, alpha;
    double tiny;  // what NDOT takes for a membrane of 0
    Index hard, decay_input, surrogate;
    Index ndot;  // the variant of its trace: 0 for another rule's trace, 1 paper, 2 code
};

struct Layout {
    Index threads;  // of a processor
    Index count;    // numbers in a time step; in the backward pass, in all of them
    Index dims;     // 0: all tensors are dense and lie in memory in the same order
    Index size[8];
    Index stride[4][8];  // of the three inputs, and of the outputs, which share theirs
};

struct Forward {
    LIF lif;
    Layout layout;
    Index steps, x_step, step;  // from a time step to the next: in x, and in what each step writes
    // Inputs: x of each step, and the state before the first one.
    const SCALAR *x, *v;
    const TRACE* trace;    // null: none is kept
    const SCALAR* memory;  // of NDOT's trace, laid out like it; else null
    // Of each step; all but the spike may be null, which says that they are not wanted.
    SCALAR *spike, *u, *v_seq;
    TRACE* trace_seq;
    unsigned char* fired;  // the top bit, as in a packed trace
    // Of the last step; may be null.
    SCALAR* v_new;
    TRACE* trace_new;
    SCALAR* memory_new;
};

struct Backward {
    LIF lif;
    Layout layout;
    const SCALAR *grad, *membrane;
    const unsigned char* fired;  // null: the membrane is u[t]; else v[t] after a soft reset
    SCALAR* grad_x;
};

// Memory: neighbours in one access where all tensors are dense, 16 bytes on a GPU. Each is read
// before it is written, so that what is written may take the memory of what is read.

#ifndef LANES
#define LANES int(16 / sizeof(SCALAR))
#endif

#ifdef __CUDACC_RTC__
template <class T, int WIDTH> struct alignas(WIDTH * sizeof(T)) Lanes { T item[WIDTH]; };
#else
template <class T, int WIDTH> struct Lanes { T item[WIDTH]; };
#endif

template <int WIDTH, class T> DEVICE Lanes<T, WIDTH> load(const T* from, Index at) {
    return *reinterpret_cast<const Lanes<T, WIDTH>*>(from + at);
}

template <int WIDTH, class T> DEVICE void store(T* to, Index at, Lanes<T, WIDTH> lanes) {
    *reinterpret_cast<Lanes<T, WIDTH>*>(to + at) = lanes;
}

struct Offsets { Index at[4]; };

DEVICE Offsets offsets(const Layout& layout, Index i) {
    Offsets p = {};
    for (Index d = layout.dims - 1; d >= 0; --d) {
        Index along = i % layout.size[d];
        i /= layout.size[d];
        for (int k = 0; k < 4; ++k) p.at[k] += along * layout.stride[k][d];
    }
    return p;
}

DEVICE Offsets dense(Index i) { return {{i, i, i, i}}; }

// Calls function<WIDTH>(call, offsets) for all elements.
#define OVER(layout, function)                                                             \
    if ((layout).dims == 0) {                                                              \
        const Index whole = (layout).count / LANES;                                        \
        EACH(i, whole) function<LANES>(call, dense(LANES * i));                            \
        EACH(i, (layout).count % LANES) function<1>(call, dense(LANES * whole + i));       \
    } else {                                                                               \
        EACH(i, (layout).count) function<1>(call, offsets(layout, i));                      \
    }

// Charge, fire, reset, trace

DEVICE Real charge(const LIF& lif, Real x, Real v) {
    Real leak = HARD ? v - Real(lif.v_reset) : v;
    return DECAY_INPUT ? v + (x - leak) / Real(TAU) : v - leak / Real(TAU) + x;
}

// NDOT's trace. Paper: a[t] = e[t-1] a[t-1] + s[t], e[t] = v[t] / v[t-1], memory e[t] a[t]. Code:
// a[t] = e[t] a[t-1] + s[t], e[t] = q[t] / q[t-1], memory q = v - v_threshold s.

DEVICE Real clamped(Real e, Real lam) { return e > lam ? lam : e < -lam ? -lam : e; }

template <class T>
DEVICE void advance_ndot(const LIF& lif, T& trace, SCALAR& memory, Real before, Real after, Real s) {
    const Real lam = Real(1.0 - 1.0 / TAU);
    Real a, left;
    if (NDOT == 1) {
        a = read(memory) + s;
        left = clamped(after / (before == 0 ? Real(lif.tiny) : before), lam) * a;
    } else {
        left = after - Real(lif.v_threshold) * s;
        Real e = left / read(memory);
        const bool number = e - e == 0;
        a = (number ? clamped(e, lam) : lam) * read(trace) + s;
    }
    write(trace, a);
    write(memory, left);
}

DEVICE void advance_ndot(const LIF&, Packed&, SCALAR&, Real, Real, Real) {}  // fits no byte

template <int WIDTH> DEVICE void forward(const Forward& call, Offsets p) {
    const LIF& lif = call.lif;
    Index from = p.at[0], to = p.at[3];
    Lanes<SCALAR, WIDTH> x = load<WIDTH>(call.x, from), v = load<WIDTH>(call.v, p.at[1]);
    Lanes<SCALAR, WIDTH> next, spike, u, memory;
    Lanes<Real, WIDTH> before;
    Lanes<TRACE, WIDTH> trace;
    Lanes<unsigned char, WIDTH> fired;
    if (call.trace) trace = load<WIDTH>(call.trace, p.at[2]);
    if (NDOT && call.memory) memory = load<WIDTH>(call.memory, p.at[2]);
    for (Index t = 1; t <= call.steps; ++t) {
        from += call.x_step;
        if (t < call.steps) next = load<WIDTH>(call.x, from);  // while this step is computed
        for (int k = 0; k < WIDTH; ++k) {
            before.item[k] = read(v.item[k]);
            const Real potential = charge(lif, read(x.item[k]), before.item[k]);
            const bool fires = potential >= Real(lif.v_threshold);
            const Real reset = HARD ? Real(lif.v_reset) : potential - Real(lif.v_threshold);
            write(u.item[k], potential);
            write(v.item[k], fires ? reset : potential);
            write(spike.item[k], fires ? Real(1) : Real(0));
            fired.item[k] = fires ? FIRED : 0;
        }
        if (NDOT && call.memory) {
            for (int k = 0; k < WIDTH; ++k)
                advance_ndot(lif, trace.item[k], memory.item[k], before.item[k],
                             read(v.item[k]), read(spike.item[k]));
        } else if (call.trace) {
            for (int k = 0; k < WIDTH; ++k) advance(trace.item[k], fired.item[k], lif.trace_decay);
        }
        store<WIDTH>(call.spike, to, spike);
        if (call.u) store<WIDTH>(call.u, to, u);
        if (call.v_seq) store<WIDTH>(call.v_seq, to, v);
        if (call.trace_seq) store<WIDTH>(call.trace_seq, to, trace);
        if (call.fired) store<WIDTH>(call.fired, to, fired);
        to += call.step;
        x = next;
    }
    if (call.v_new) store<WIDTH>(call.v_new, p.at[3], v);
    if (call.trace_new) store<WIDTH>(call.trace_new, p.at[3], trace);
    if (NDOT && call.memory_new) store<WIDTH>(call.memory_new, p.at[3], memory);
}

KERNEL(lif_forward, Forward) { OVER(call.layout, forward) }

// The surrogate's derivative: grad_x = sigma'(u - v_threshold) grad

enum { SIGMOID, ATAN, PIECEWISE_QUADRATIC, RECT };

DEVICE double exponential(double x) { return exp(x); }
DEVICE double reciprocal(double x) { return 1 / x; }
#ifdef __CUDACC_RTC__
// For results in half precision, a GPU's own approximations, within 2^-17 of the number: in exact
// arithmetic the kernel would wait for its instructions, and not for memory.
enum { HALF = sizeof(SCALAR) == 2 };

DEVICE float exponential(float x) {
    if (!HALF) return expf(x);
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
    return y;
}

DEVICE float reciprocal(float x) {
    if (!HALF) return 1 / x;
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#else
DEVICE float reciprocal(float x) { return 1 / x; }

// A call of expf would take one neuron after the other. exp(x) = 2^n exp(r) with |r| <= ln(2) / 2 and
// exp(r) by its series; n in two halves, so that neither is beyond what a number's exponent holds.
DEVICE float power_of_two(int n) {
    const unsigned bits = unsigned(n + 127) << 23;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

DEVICE float exponential(float x) {
    x = x < -104.0f ? -104.0f : x > 89.0f ? 89.0f : x;
    const float n = nearbyintf(x * 1.44269504f);
    const float r = x - n * 0.693145752f - n * 1.42860677e-6f;  // ln(2), the first part exactly
    float y = 1 / 5040.0f;
    const float inverse[] = {1 / 720.0f, 1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 0.5f, 1.0f, 1.0f};
    for (float factor : inverse) y = y * r + factor;
    const int half = int(n) / 2, rest = int(n) - half;
    return y * power_of_two(half) * power_of_two(rest);
}
#endif

template <int surrogate> DEVICE Real derivative(Real alpha, Real z, Real grad) {
    const Real size = z < 0 ? -z : z;
    switch (surrogate) {
        case SIGMOID: {
            Real s = reciprocal(1 + exponential(-alpha * z));
            return grad * (1 - s) * s * alpha;
        }
        case ATAN: {
            Real y = z * (Real(1.57079632679489661923) * alpha);
            return reciprocal(y * y + 1) * grad * (alpha / 2);
        }
        case PIECEWISE_QUADRATIC: {
            Real slope = alpha - size * (alpha * alpha);
            return slope > 0 ? slope * grad : Real(0);
        }
        default:
            return size < Real(0.5) / alpha ? grad * alpha : Real(0);
    }
}

template <int WIDTH> DEVICE void backward(const Backward& call, Offsets p) {
    const LIF& lif = call.lif;
    const Real v_threshold = lif.v_threshold, alpha = lif.alpha;
    Lanes<SCALAR, WIDTH> grad = load<WIDTH>(call.grad, p.at[0]);
    Lanes<SCALAR, WIDTH> membrane = load<WIDTH>(call.membrane, p.at[1]);
    Lanes<unsigned char, WIDTH> fired;
    Lanes<Real, WIDTH> z, g;
    if (call.fired) {  // a soft reset took v_threshold off where it fired
        fired = load<WIDTH>(call.fired, p.at[2]);
        for (int k = 0; k < WIDTH; ++k)
            z.item[k] = read(membrane.item[k]) - (fired.item[k] & FIRED ? Real(0) : v_threshold);
    } else {
        for (int k = 0; k < WIDTH; ++k) z.item[k] = read(membrane.item[k]) - v_threshold;
    }
    for (int k = 0; k < WIDTH; ++k) g.item[k] = read(grad.item[k]);
#define FOR(which)                                                                       \
    case which:                                                                          \
        for (int k = 0; k < WIDTH; ++k)                                                  \
            g.item[k] = derivative<which>(alpha, z.item[k], g.item[k]);                  \
        break;
    switch (SURROGATE) { FOR(SIGMOID) FOR(ATAN) FOR(PIECEWISE_QUADRATIC) FOR(RECT) }
    for (int k = 0; k < WIDTH; ++k)
        write(grad.item[k], DECAY_INPUT ? g.item[k] / Real(TAU) : g.item[k]);
    store<WIDTH>(call.grad_x, p.at[3], grad);
}

KERNEL(lif_backward, Backward) { OVER(call.layout, backward) }
