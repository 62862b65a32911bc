// Scaled weight standardization and its gradient, one row (output channel) after the other.
//
// The formulas are those of standardize.py. A row is read from memory once, and again while it is
// in the cache. Sums are of vectors, and of some thousand numbers each in double.
//
// SCALAR   float or double
//
// Where the standardized weight has a row as [places, channels], the weight has it as
// [channels, places]; for places = 1 both lie alike.

#include <cmath>
#include <cstring>
#include <vector>

typedef long long Index;
typedef SCALAR Vector __attribute__((vector_size(64)));

enum { WIDTH = sizeof(Vector) / sizeof(SCALAR), VECTORS = 4, STEP = WIDTH * VECTORS };
enum { BLOCK = 64 * STEP };

static inline void load(Vector& to, const SCALAR* from) { memcpy(&to, from, sizeof to); }
static inline void load(SCALAR& to, const SCALAR* from) { to = *from; }

// The sum over i of term(i, one), n numbers; term gives as many as fit in `one`, which it may use.
template <class Term> static inline double sum(Index n, Term term) {
    double total = 0;
    Index i = 0;
    while (i + STEP <= n) {
        const Index end = i + BLOCK < n ? i + BLOCK : n;
        Vector parts[VECTORS] = {}, one;
        for (; i + STEP <= end; i += STEP)
            for (int k = 0; k < VECTORS; ++k) parts[k] += term(i + k * WIDTH, one);
        const Vector part = (parts[0] + parts[1]) + (parts[2] + parts[3]);
        for (int k = 0; k < WIDTH; ++k) total += part[k];
    }
    SCALAR one;
    for (; i < n; ++i) total += term(i, one);
    return total;
}

static double sum_of(Index n, const SCALAR* x) {
    return sum(n, [=](Index i, auto one) { load(one, x + i); return one; });
}

static double sum_of_squares(Index n, const SCALAR* x, SCALAR mean) {
    return sum(n, [=](Index i, auto one) { load(one, x + i); one -= mean; return one * one; });
}

static double sum_of_products(Index n, const SCALAR* x, const SCALAR* y) {
    return sum(n, [=](Index i, auto one) {
        auto other = one;
        load(one, x + i);
        load(other, y + i);
        return one * other;
    });
}

// [outer, inner] -> [inner, outer]
static void transpose(SCALAR* to, const SCALAR* from, Index outer, Index inner) {
    for (Index k = 0; k < inner; ++k)
        for (Index i = 0; i < outer; ++i) to[k * outer + i] = from[i * inner + k];
}

// weight, made and unit [rows, n], gain and std [rows]. `unit` is the result without the gain, or
// null, as `gain` may be.
extern "C" void forward(const SCALAR* weight, const SCALAR* gain, SCALAR* made, SCALAR* unit,
                        SCALAR* std, double eps, Index rows, Index n, Index places, Index threads) {
#pragma omp parallel for num_threads(threads)
    for (Index row = 0; row < rows; ++row) {
        const SCALAR* from = weight + row * n;
        SCALAR* to = made + row * n;
        if (places > 1) {
            transpose(to, from, n / places, places);
            from = to;
        }
        const SCALAR mean = sum_of(n, from) / n;
        const double of_row = std::sqrt(sum_of_squares(n, from, mean) / (n - 1) * n + eps);
        const SCALAR factor = unit || !gain ? 1 / of_row : gain[row] / of_row;
        std[row] = of_row;
        for (Index i = 0; i < n; ++i) to[i] = (from[i] - mean) * factor;
        if (unit) {
            memcpy(unit + row * n, to, n * sizeof(SCALAR));
            for (Index i = 0; i < n; ++i) to[i] *= gain[row];
        }
    }
}

// grad, kept and grad_weight [rows, n], scale and back [rows]:
// along = sum(grad kept), grad_weight = scale (grad - mean(grad)) + back along kept
// `grad_weight` may be null, or `grad`.
extern "C" void backward(const SCALAR* grad, const SCALAR* kept, const SCALAR* scale,
                         const SCALAR* back, SCALAR* grad_weight, SCALAR* along, Index rows,
                         Index n, Index places, Index threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<SCALAR> room(places > 1 ? n : 0);
#pragma omp for
        for (Index row = 0; row < rows; ++row) {
            const SCALAR *g = grad + row * n, *w = kept + row * n;
            along[row] = sum_of_products(n, g, w);
            if (!grad_weight) continue;
            const SCALAR mean = sum_of(n, g) / n, of_g = scale[row], of_w = back[row] * along[row];
            SCALAR *out = grad_weight + row * n, *to = places > 1 ? room.data() : out;
            for (Index i = 0; i < n; ++i) to[i] = (g[i] - mean) * of_g + w[i] * of_w;
            if (places > 1) transpose(out, to, places, n / places);
        }
    }
}
