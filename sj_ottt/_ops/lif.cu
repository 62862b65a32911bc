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
// The file needs no header of CUDA. Without NVRTC it is plain C++, one loop instead of a grid of
// threads, so that the tests can run it where there is no GPU.

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
#define EACH(i, count) for (Index i = 0; i < (count); ++i)
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

DEVICE void write(Half& to, float x) {
#ifdef __CUDACC_RTC__
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#else
    _Float16 h = x;
    memcpy(&to.bits, &h, 2);
#endif
}

// The trace: a[t] = decay a[t-1] + s[t]

template <class T> DEVICE void advance(T& to, T trace, bool fired, double decay) {
    typename RealOf<T>::type a = read(trace);
    write(to, a * typename RealOf<T>::type(decay) + typename RealOf<T>::type(fired));
}

DEVICE void advance(Packed& to, Packed trace, bool fired, double decay) {
    to.bits = (decay > 0 ? trace.bits >> 1 : 0) | (fired ? 128 : 0);
}

// Arguments; lif_cuda.py fills them in

struct LIF {
    double tau, trace_decay, v_threshold, v_reset, alpha;
    double tiny;  // what NDOT takes for a membrane of 0
    Index hard, decay_input, surrogate;
    Index ndot;  // the variant of its trace: 0 for another rule's trace, 1 paper, 2 code
};

struct Layout {
    Index count;  // numbers in a time step; in the backward pass, in all of them
    Index dims;   // 0: all tensors are dense and lie in memory in the same order
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
    SCALAR *spike, *u;
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

// Memory: 16 bytes of neighbours in one access where all tensors are dense

enum { LANES = 16 / sizeof(SCALAR) };

template <class T, int WIDTH> struct alignas(WIDTH * sizeof(T)) Lanes { T item[WIDTH]; };

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
DEVICE void advance(const LIF& lif, T& trace, SCALAR& memory, Real before, Real after, bool fired) {
    const Real lam = Real(1.0 - 1.0 / TAU);
    Real a, left;
    if (NDOT == 1) {
        a = read(memory) + Real(fired);
        left = clamped(after / (before == 0 ? Real(lif.tiny) : before), lam) * a;
    } else {
        left = after - Real(lif.v_threshold) * Real(fired);
        Real e = left / read(memory);
        const bool number = e - e == 0;
        a = (number ? clamped(e, lam) : lam) * read(trace) + Real(fired);
    }
    write(trace, a);
    write(memory, left);
}

DEVICE void advance(const LIF&, Packed&, SCALAR&, Real, Real, bool) {}  // a ratio fits no byte

template <int WIDTH> DEVICE void forward(const Forward& call, Offsets p) {
    const LIF& lif = call.lif;
    Index from = p.at[0], to = p.at[3];
    Lanes<SCALAR, WIDTH> x = load<WIDTH>(call.x, from), v = load<WIDTH>(call.v, p.at[1]);
    Lanes<SCALAR, WIDTH> next, spike, u, memory;
    Lanes<TRACE, WIDTH> trace;
    Lanes<unsigned char, WIDTH> fired;
    if (call.trace) trace = load<WIDTH>(call.trace, p.at[2]);
    if (NDOT && call.memory) memory = load<WIDTH>(call.memory, p.at[2]);
    for (Index t = 1; t <= call.steps; ++t) {
        from += call.x_step;
        if (t < call.steps) next = load<WIDTH>(call.x, from);  // while this step is computed
        for (int k = 0; k < WIDTH; ++k) {
            const Real before = read(v.item[k]);
            Real potential = charge(lif, read(x.item[k]), before);
            bool fires = potential >= Real(lif.v_threshold);
            Real reset = HARD ? Real(lif.v_reset) : potential - Real(lif.v_threshold);
            write(u.item[k], potential);
            write(v.item[k], fires ? reset : potential);
            write(spike.item[k], Real(fires));
            fired.item[k] = fires ? 128 : 0;
            if (NDOT && call.memory)
                advance(lif, trace.item[k], memory.item[k], before, read(v.item[k]), fires);
            else if (call.trace)
                advance(trace.item[k], trace.item[k], fires, lif.trace_decay);
        }
        store<WIDTH>(call.spike, to, spike);
        if (call.u) store<WIDTH>(call.u, to, u);
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
DEVICE float exponential(float x) { return expf(x); }

DEVICE Real derivative(const LIF& lif, Real z, Real grad) {
    const Real alpha = lif.alpha;
    const Real size = z < 0 ? -z : z;
    switch (SURROGATE) {
        case SIGMOID: {
            Real s = 1 / (1 + exponential(-alpha * z));
            return grad * (1 - s) * s * alpha;
        }
        case ATAN: {
            Real y = z * (Real(1.57079632679489661923) * alpha);
            return 1 / (y * y + 1) * grad * (alpha / 2);
        }
        case PIECEWISE_QUADRATIC: {
            Real slope = alpha - size * (alpha * alpha);
            return slope > 0 ? slope * grad : 0;
        }
        default:
            return size < Real(0.5) / alpha ? grad * alpha : 0;
    }
}

template <int WIDTH> DEVICE void backward(const Backward& call, Offsets p) {
    const LIF& lif = call.lif;
    Lanes<SCALAR, WIDTH> grad = load<WIDTH>(call.grad, p.at[0]);
    Lanes<SCALAR, WIDTH> membrane = load<WIDTH>(call.membrane, p.at[1]);
    Lanes<unsigned char, WIDTH> fired;
    if (call.fired) fired = load<WIDTH>(call.fired, p.at[2]);
    for (int k = 0; k < WIDTH; ++k) {
        bool below = !call.fired || !(fired.item[k] & 128);  // a soft reset took v_threshold off
        Real z = read(membrane.item[k]) - (below ? Real(lif.v_threshold) : Real(0));
        Real grad_x = derivative(lif, z, read(grad.item[k]));
        write(grad.item[k], DECAY_INPUT ? grad_x / Real(TAU) : grad_x);
    }
    store<WIDTH>(call.grad_x, p.at[3], grad);
}

KERNEL(lif_backward, Backward) { OVER(call.layout, backward) }
