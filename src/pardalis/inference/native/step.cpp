// Decoding steps on a CPU: from the token that was read to the token that is drawn, in one call.
//
// It does what pardalis.inference.steps does in float32 for the same model, cache and slots, and in
// the same words; a prompt is a step of many tokens after which nothing is drawn. Matrices of 32, 16
// or 8 bits stay where they are, row by row, so nothing is packed or copied. Vectors are those of GCC
// and Clang, as wide as the processor for which this file is compiled.
//
//   product      rows of a matrix times some vectors
//   norm, rotate, attend, activate   the parts of a layer
//   Draw         the sampler, with the counted noise of pardalis.inference.sampling
//   Workers      threads that sleep between calls; Barrier: where they wait for each other
//   Step         a whole step, which several threads run together
//
// Sums of a product have one order, whatever stands beside it in the batch.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <thread>
#include <unistd.h>
#include <utility>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// ── vectors ──────────────────────────────────────────────────────────────────────────────────────

#if defined(__AVX512F__)
constexpr int LANES = 16, TOKENS = 4;
#elif defined(__AVX2__)
constexpr int LANES = 8, TOKENS = 3;
#else
constexpr int LANES = 4, TOKENS = 4;
#endif
constexpr int ROWS = 8;      // of a matrix that are multiplied together; TOKENS: vectors, likewise
constexpr int AT_ONCE = 64;  // vectors that stay in the cache while all rows are read

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));
typedef int16_t Shorts __attribute__((vector_size(4 * LANES))), HalfShorts __attribute__((vector_size(2 * LANES)));

static inline Floats load(const float * p) { Floats v; memcpy(&v, p, sizeof v); return v; }
static inline Ints load(const int32_t * p) { Ints v; memcpy(&v, p, sizeof v); return v; }
static inline void store(float * p, Floats v) { memcpy(p, &v, sizeof v); }
static inline void store(int32_t * p, Ints v) { memcpy(p, &v, sizeof v); }
static inline Floats load(const int8_t * p) {  // compilers need to be told how, here and below
#if defined(__AVX512F__)
  return __builtin_convertvector((Ints) _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) p)), Floats);
#elif defined(__AVX2__)
  return __builtin_convertvector((Ints) _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *) p)), Floats);
#else
  Bytes v; memcpy(&v, p, sizeof v);
  return __builtin_convertvector(__builtin_convertvector(__builtin_convertvector(v, HalfShorts), Ints), Floats);
#endif
}
enum BFloat : uint16_t {};  // the upper half of a float
static inline Floats load(const BFloat * p) {
#if defined(__AVX512F__)
  Ints v = (Ints) _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) p));
#elif defined(__AVX2__)
  Ints v = (Ints) _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) p));
#else
  typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
  Halves h; memcpy(&h, p, sizeof h);
  Ints v = __builtin_convertvector(h, Ints);
#endif
  v <<= 16;
  return (Floats) v;
}
template <typename T> static inline Floats load_part(const T * p, int n) {
  T part[LANES] = {}; memcpy(part, p, n * sizeof(T)); return load(part);
}
// For products of integers: 8 bits widened to 16, and the sums of pairs of products, whichever two are a pair.
static inline Shorts widened(const int8_t * p) {
#if defined(__AVX512BW__)
  return (Shorts) _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *) p));
#elif defined(__AVX2__)
  return (Shorts) _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *) p));
#else
  typedef int8_t TwiceBytes __attribute__((vector_size(2 * LANES)));
  TwiceBytes v; memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, Shorts);
#endif
}
static inline Ints sums_of_pairs(Shorts a, Shorts b) {
#if defined(__AVX512BW__)
  return (Ints) _mm512_madd_epi16((__m512i) a, (__m512i) b);
#elif defined(__AVX2__)
  return (Ints) _mm256_madd_epi16((__m256i) a, (__m256i) b);
#else
  HalfShorts x[2], y[2]; memcpy(x, &a, sizeof a); memcpy(y, &b, sizeof b);
  auto of = [&](int i) { return __builtin_convertvector(x[i], Ints) * __builtin_convertvector(y[i], Ints); };
  return of(0) + of(1);
#endif
}
static inline Floats all(float x) { Floats v; for (int i = 0; i < LANES; i++) v[i] = x; return v; }
static inline Ints all(int32_t x) { Ints v; for (int i = 0; i < LANES; i++) v[i] = x; return v; }

// Adds the halves of each group of lanes, the groups of a first: half as many lanes for each sum.
constexpr int half_of(int i, int group) {
  int half = group / 2, to = i / half, groups = LANES / group;
  return (to < groups ? to * group : LANES + (to - groups) * group) + i % half;
}
template <int G, size_t... I> static inline Floats fold(Floats a, Floats b, std::index_sequence<I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, half_of(I, G)...) +
         __builtin_shufflevector(a, b, (half_of(I, G) + G / 2)...);
#else
  return __builtin_shuffle(a, b, Ints{half_of(I, G)...}) +
         __builtin_shuffle(a, b, Ints{(half_of(I, G) + G / 2)...});
#endif
}
template <int N, int G = LANES> __attribute__((always_inline)) static inline void sums(Floats * v, float * out) {  // of N vectors
  if constexpr (G == 1) {
    for (int i = 0; i < (N + LANES - 1) / LANES; i++)
      memcpy(out + i * LANES, &v[i], 4 * std::min(LANES, N - i * LANES));
  } else {
    constexpr int vectors = (N * G + LANES - 1) / LANES, rest = (N * (G / 2) + LANES - 1) / LANES;
    for (int i = 0; i < rest; i++)
      v[i] = fold<G>(v[2 * i], v[std::min(2 * i + 1, vectors - 1)], std::make_index_sequence<LANES>());
    sums<N, G / 2>(v, out);
  }
}
static inline float sum(Floats v) { float s; sums<1>(&v, &s); return s; }
static inline float largest(Floats v) {
  float m = v[0];
  for (int i = 1; i < LANES; i++) m = std::max(m, v[i]);
  return m;
}

static inline Floats exponential(Floats x) {  // Cephes' polynomial; 0 becomes 1, and nothing infinite
  x = x < -87.f ? all(-87.f) : x;
  x = x > 88.f ? all(88.f) : x;
  const float shift = 12582912.f;  // rounds to an integer
  Floats n = (x * 1.44269504f + shift) - shift;
  Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f; p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f; p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.f;
  Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
  Floats scale; memcpy(&scale, &power, sizeof scale);
  return p * scale;
}
template <typename F> static inline void each(int n, F && f) {  // f(first, lanes) over n numbers
  int i = 0;
  for (; i + LANES <= n; i += LANES) f(i, LANES);
  if (i < n) f(i, n - i);
}
static inline Floats load(const float * p, int lanes) {
  return lanes == LANES ? load(p) : load_part(p, lanes);
}
static inline void store(float * p, Floats v, int lanes) {
  if (lanes == LANES) store(p, v); else memcpy(p, &v, 4 * lanes);
}

// ── what Python describes (pardalis/inference/native/structs.py) ─────────────────────────────────

struct Matrix {
  const void * values; const float * scale, * bias;  // of each row; either may be null
  const int64_t * index;  // rows in another order; null: as they are
  int64_t rows, width, kind;
};
enum { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2 };  // kinds
struct Norm { int64_t kind, groups; const float * scale, * shift; double eps; };
enum { NONE = 0, RMS = 1, LAYER = 2 };
struct Layer {
  Norm attention_norm, feed_forward_norm, q_norm, k_norm;  // groups of the last two: of heads, or 0
  Norm memory_norm;  // of what the other trunk is, if keys and values are made from it
  Matrix q, k, v, o, gate, up, down;  // gate without rows: an MLP; up without rows: none
  int64_t trunk, crosses, placement;
  double skip, branch;
};
enum { GELU = 0, GELU_TANH = 1, RELU = 2 };
enum { PRE = 0, REORDERED = 1, POST = 2 };
struct Model {
  int64_t width, n_layers, heads, kv_heads, head_width, hidden, activation, n_trunks;
  double embedding_scale;
  Norm embedding_norm, norms[2];  // the latter at the end of each trunk
  Matrix embedding, combine;  // combine makes one vector of those of two trunks
  const float * positions[2], * cosines, * sines;  // positions of each trunk, or cosines and sines
  int64_t n_positions;
  const Layer * layers;
  Matrix image, text;  // the head, in the order of the writable ids
  const int64_t * writable; const int32_t * hashed;
  const int64_t * range_start, * range_stop, * ends;
  int64_t n_ends, begin_image, eos, codes_per_image;
};
struct Sampling { const float * temperature; const int64_t * top_k; const float * top_p; const int64_t * seed; };
struct Batch {
  int64_t n, n_conditional, n_steps, window, table_width, inside_images, slots_stride;
  int64_t * states; const int64_t * slots; const int64_t * table;
  float * const * keys; float * const * values;
  const int64_t * text, * max_images, * one_turn, * one_gap, * guided, * branched_image;
  Sampling text_sampling, image_sampling;
  const int64_t * conditional, * unconditional, * image_conditional;  // null: no branches
  const float * scale_text, * scale_image, * alpha; const int64_t * k;
  const uint8_t * classifier_free, * contrastive;
  int64_t * codes, * guesses; int64_t codes_width, grid_width;  // null: no window
  int64_t * generated; float * hidden;  // hidden: null, or (steps, tokens, width)
  const int64_t * ids, * positions;  // of a prompt, which is one window, and after which nothing is chosen; or null
};
enum { PHASE, CODES_LEFT, IMAGES, TURNS, BUDGET, LAST, POSITION, FIELDS };
enum { START = 0, TEXT = 1, IMAGE = 2, DONE = 3 };
enum { R_BOS, R_TEXT, R_TEXT_OR_IMAGE, R_GAP, R_GAP_OR_IMAGE, R_BEGIN_IMAGE, R_CODE, R_END_IMAGE, R_EOS, R_NOTHING };

// ── products ─────────────────────────────────────────────────────────────────────────────────────

// How a row of T is multiplied by a vector of Other: STEP numbers at once, added to a Sum.
template <typename T> struct Terms {
  typedef float Other; typedef Floats Sum;
  static constexpr int STEP = LANES;
  static Floats row(const T * p) { return load(p); }
  static Floats other(const float * p) { return load(p); }
  static void add(Sum & sum, Floats a, Floats b) { sum += a * b; }
  static Floats whole(Sum sum) { return sum; }
};
template <> struct Terms<int8_t> {
  typedef int16_t Other; typedef Ints Sum;
  static constexpr int STEP = 2 * LANES;
  static Shorts row(const int8_t * p) { return widened(p); }
  static Shorts other(const int16_t * p) { Shorts v; memcpy(&v, p, sizeof v); return v; }
  static void add(Sum & sum, Shorts a, Shorts b) { sum += sums_of_pairs(a, b); }
  static Floats whole(Sum sum) { return __builtin_convertvector(sum, Floats); }
};
template <typename F, typename T> static inline auto last_of(F && of, const T * p, int n) {
  T part[2 * LANES] = {}; memcpy(part, p, n * sizeof(T)); return of(part);
}

// Vectors that a matrix is multiplied by. For 8-bit integers each is rounded to 16-bit integers and a scale, the
// largest with which no sum of a lane overflows (32,767; at a width of 28,672 about 4,700 on AVX2).
class Vectors {
  std::vector<int16_t> values; std::vector<const int16_t *> starts;
  bool are_rounded = false;

  static float round(const float * x, int width, int64_t limit, int16_t * to) {  // returns the scale
    Floats most = all(0.f), bad = all(0.f);
    each(width, [&](int i, int lanes) {
      const Floats v = load(x + i, lanes), size = v < 0.f ? -v : v;
      most = size > most ? size : most;
      bad += v * 0.f;  // of what is not finite: NaN
    });
    const float top = largest(most), scale = top > 0 ? limit / top : 0;
    if (sum(bad) != 0) { memset(to, 0, 2 * width); return std::numeric_limits<float>::quiet_NaN(); }
    each(width, [&](int i, int lanes) {
      const Floats shifted = load(x + i, lanes) * scale + 12582912.f;  // whose low bits are the integer
      Ints bits; memcpy(&bits, &shifted, sizeof bits);
      const auto v = __builtin_convertvector(bits, HalfShorts);
      memcpy(to + i, &v, 2 * lanes);
    });
    return top / limit;
  }

 public:
  const float * const * x; int n, width;
  std::vector<float> scales;

  void reserve(int64_t count, int64_t widest) { values.resize(count * widest); starts.resize(count); scales.resize(count); }
  Vectors & set(const float * const * from, int count, int wide) {
    x = from; n = count; width = wide; are_rounded = false;
    return *this;
  }
  const int16_t * const * rounded() {
    if (are_rounded) return starts.data();  // without a write, since several threads may ask
    const int64_t products = (width + Terms<int8_t>::STEP - 1) / Terms<int8_t>::STEP * 2;  // that a lane adds
    const int64_t limit = std::min<int64_t>(32767, INT32_MAX / (127 * products));
    for (int t = 0; t < n; t++) {
      starts[t] = values.data() + (int64_t) t * width;
      scales[t] = round(x[t], width, limit, values.data() + (int64_t) t * width);
    }
    are_rounded = true;
    return starts.data();
  }
};

// Meanwhile, what follows some of the rows in memory is fetched: Ahead of them, from row `from` on.
template <typename T, int R, int B, int Ahead = 0>
static inline void tile(const T * const * w, const typename Terms<T>::Other * const * x, int width, float * out, int from = 0) {
  typedef Terms<T> Of;
  const T * next[Ahead + 1];
  for (int k = 0; k < Ahead; k++) next[k] = w[(from + k) % R] + width;
  typename Of::Sum acc[R * B] = {};
  int i = 0;
  for (; i + Of::STEP <= width; i += Of::STEP) {
    decltype(Of::other(x[0])) xs[B];
    for (int b = 0; b < B; b++) xs[b] = Of::other(x[b] + i);
    for (int k = 0; k < Ahead; k++) __builtin_prefetch(next[k] + i, 0, 2);
    for (int r = 0; r < R; r++) {
      const auto row = Of::row(w[r] + i);
      for (int b = 0; b < B; b++) Of::add(acc[b * R + r], row, xs[b]);
    }
  }
  Floats total[R * B];  // compilers keep an array in registers only if its address goes nowhere
  for (int k = 0; k < R * B; k++) total[k] = Of::whole(acc[k]);
  if (i < width) {
    for (int r = 0; r < R; r++) {
      const auto row = last_of(Of::row, w[r] + i, width - i);
      for (int b = 0; b < B; b++) {
        typename Of::Sum rest = {};
        Of::add(rest, row, last_of(Of::other, x[b] + i, width - i));
        total[b * R + r] += Of::whole(rest);
      }
    }
  }
  sums<R * B>(total, out);
}

// ROWS rows times B of the vectors: emit(vector, values of the rows).
template <typename T, int B, int Ahead, typename Emit>
static inline void rows_times(const T * const * w, const typename Terms<T>::Other * const * x, int b, int width, Emit && emit) {
  float out[ROWS * B], part[4 * B];
  for (int r = 0; r < ROWS; r += 4) {
    tile<T, 4, B, Ahead>(w + r, x + b, width, part, b / B * Ahead);
    for (int j = 0; j < B; j++) memcpy(out + j * ROWS + r, part + 4 * j, 16);
  }
  for (int j = 0; j < B; j++) emit(b + j, out + j * ROWS);
}

// Rows [first, stop) of a matrix that are multiplied together: ROWS of them, far apart, then those that
// follow each. The processor fetches so many sequences of addresses by itself, and faster than a single one.
struct Rows {
  const int64_t first, stop, apart;
  Rows(int64_t a, int64_t z) : first(a), stop(z), apart((z - a + ROWS - 1) / ROWS) {}
  int64_t row(int64_t r, int j) const { return std::min(r + j * apart, stop - 1); }
};

// Rows [first, stop) times n vectors, into columns of y.
template <typename T>
static void product_of(const Matrix & m, int64_t first, int64_t stop, const typename Terms<T>::Other * const * x, const float * scales, int n, float * y, int64_t stride) {
  const T * values = (const T *) m.values;
  const Rows rows(first, stop);
  const int width = (int) m.width;
  const T * w[ROWS];
  int64_t at[ROWS];
  float factor[ROWS], bias[ROWS];
  for (int64_t r = first; r < first + rows.apart; r++) {
    for (int j = 0; j < ROWS; j++) at[j] = rows.row(r, j);
    for (int j = 0; j < ROWS; j++) w[j] = values + (m.index ? m.index[at[j]] : at[j]) * width;
    if (m.scale) for (int j = 0; j < ROWS; j++) factor[j] = m.scale[at[j]];
    if (m.bias) for (int j = 0; j < ROWS; j++) bias[j] = m.bias[at[j]];
    auto emit = [&](int b, float * v) {  // a row that is repeated has the same value
      if (m.scale) for (int j = 0; j < ROWS; j++) v[j] *= factor[j] * (scales ? scales[b] : 1);
      if (m.bias) for (int j = 0; j < ROWS; j++) v[j] += bias[j];
      float * to = y + b * stride;
      for (int j = 0; j < ROWS; j++) to[at[j]] = v[j];
    };
    int b = 0;
    // The more often rows are read again, the less of the next ones is fetched each time.
    if (n >= 4 * TOKENS) for (; n - b >= TOKENS; b += TOKENS) rows_times<T, TOKENS, 1>(w, x, b, width, emit);
    else if (n >= 2 * TOKENS) for (; n - b >= TOKENS; b += TOKENS) rows_times<T, TOKENS, 2>(w, x, b, width, emit);
    else if (n >= TOKENS) { rows_times<T, TOKENS, 4>(w, x, b, width, emit); b += TOKENS; }
    else if (n >= 2) { rows_times<T, 2, 4>(w, x, b, width, emit); b += 2; }
    for (; n - b >= 2; b += 2) rows_times<T, 2, 0>(w, x, b, width, emit);
    for (; b < n; b++) {
      float out[ROWS];
      tile<T, ROWS, 1>(w, x + b, width, out);
      emit(b, out);
    }
  }
}
static void product_to(const Matrix & m, int64_t first, int64_t stop, Vectors & of, float * y, int64_t stride) {
  const int16_t * const * rounded = m.kind == INT8 ? of.rounded() : nullptr;
  for (int b = 0; b < of.n; b += AT_ONCE, y += AT_ONCE * stride) {
    const int count = std::min(AT_ONCE, of.n - b);
    switch (m.kind) {
      case FLOAT32: product_of<float>(m, first, stop, of.x + b, nullptr, count, y, stride); break;
      case BFLOAT16: product_of<BFloat>(m, first, stop, of.x + b, nullptr, count, y, stride); break;
      default: product_of<int8_t>(m, first, stop, rounded + b, of.scales.data() + b, count, y, stride);
    }
  }
}
template <typename T> static inline void row_of(const Matrix & m, int64_t row, float * y) {
  const T * from = (const T *) m.values + row * m.width;
  const float scale = m.scale ? m.scale[row] : 1;
  each((int) m.width, [&](int i, int lanes) {
    store(y + i, (lanes == LANES ? load(from + i) : load_part(from + i, lanes)) * scale, lanes);
  });
}
static inline void row_to(const Matrix & m, int64_t row, float * y) {
  switch (m.kind) {
    case FLOAT32: return row_of<float>(m, row, y);
    case BFLOAT16: return row_of<BFloat>(m, row, y);
    default: return row_of<int8_t>(m, row, y);
  }
}
// The rows of one of several threads, in whole blocks.
static inline void part_of(int64_t n, int thread, int threads, int64_t & first, int64_t & stop) {
  int64_t blocks = (n + ROWS - 1) / ROWS;
  first = std::min(n, blocks * thread / threads * ROWS);
  stop = std::min(n, blocks * (thread + 1) / threads * ROWS);
}

// ── parts of a layer ─────────────────────────────────────────────────────────────────────────────

static inline void norm_group(int64_t kind, double eps, const float * x, float * y, int n) {
  Floats total = all(0.f);
  float mean = 0;
  if (kind == LAYER) {
    each(n, [&](int i, int lanes) { total += load(x + i, lanes); });
    mean = sum(total) / n;
    total = all(0.f);
  }
  each(n, [&](int i, int lanes) {
    Floats v = load(x + i, lanes) - mean;
    if (lanes < LANES) for (int j = lanes; j < LANES; j++) v[j] = 0;
    total += v * v;
  });
  float scale = 1.f / std::sqrt(sum(total) / n + (float) eps);
  each(n, [&](int i, int lanes) { store(y + i, (load(x + i, lanes) - mean) * scale, lanes); });
}
static inline void affine(const Norm & m, float * y, int n) {
  if (m.scale) each(n, [&](int i, int lanes) { store(y + i, load(y + i, lanes) * load(m.scale + i, lanes), lanes); });
  if (m.shift) each(n, [&](int i, int lanes) { store(y + i, load(y + i, lanes) + load(m.shift + i, lanes), lanes); });
}
static inline void norm(const Norm & m, const float * x, float * y, int n) {
  if (m.kind == NONE) { if (x != y) memcpy(y, x, 4 * n); return; }
  int size = n / (int) m.groups;
  for (int g = 0; g < m.groups; g++) norm_group(m.kind, m.eps, x + g * size, y + g * size, size);
  affine(m, y, n);
}
// Heads are normalised by themselves, or in groups of heads; only the heads of one task are written.
static inline void norm_heads(const Norm & m, const float * x, int heads, int width, int first, int n, float * y) {
  memcpy(y, x + (int64_t) first * width, 4 * n * width);
  if (m.kind == NONE) return;
  for (int h = 0; h < n; h++) {
    float * out = y + h * width;
    if (m.groups == 0) {
      norm_group(m.kind, m.eps, out, out, width);
    } else {
      int size = heads / (int) m.groups * width, start = (first + h) * width / size * size;
      Floats total = all(0.f);
      each(size, [&](int i, int lanes) { Floats v = load(x + start + i, lanes); total += v * v; });
      float scale = 1.f / std::sqrt(sum(total) / size + (float) m.eps);
      each(width, [&](int i, int lanes) { store(out + i, load(out + i, lanes) * scale, lanes); });
    }
    Norm own = m;
    own.scale = m.scale ? m.scale + (int64_t) (first + h) * width : nullptr;
    own.shift = m.shift ? m.shift + (int64_t) (first + h) * width : nullptr;
    affine(own, out, width);
  }
}
static inline void rotate(const Model & m, int64_t position, const float * x, float * y) {
  int width = (int) m.head_width, half = width / 2;
  if (!m.cosines) { memcpy(y, x, 4 * width); return; }
  int64_t at = std::min(position, m.n_positions - 1) * width;
  const float * c = m.cosines + at, * s = m.sines + at;
  each(half, [&](int i, int lanes) {
    Floats a = load(x + i, lanes), b = load(x + half + i, lanes);
    store(y + i, a * load(c + i, lanes) + b * load(s + i, lanes), lanes);
    store(y + half + i, b * load(c + half + i, lanes) + a * load(s + half + i, lanes), lanes);
  });
}
static inline float scaled_to(float * x, float scale, int n) {  // returns the largest
  Floats most = all(-std::numeric_limits<float>::infinity());
  int i = 0;
  for (; i + LANES <= n; i += LANES) {
    Floats v = load(x + i) * scale;
    store(x + i, v);
    most = v > most ? v : most;
  }
  float top = largest(most);
  for (; i < n; i++) { x[i] *= scale; top = std::max(top, x[i]); }
  return top;
}
// Where ROWS entries from `p` of a sequence begin, and those after them; the last is repeated.
struct Entries {
  const float * at[ROWS], * next[ROWS];
  int count;
  Entries(const float * buffer, int64_t stride, const int64_t * entries, int64_t p, int64_t n) {
    count = (int) std::min<int64_t>(ROWS, n - p);
    for (int j = 0; j < ROWS; j++) {
      at[j] = buffer + entries[std::min(p + j, n - 1)] * stride;
      next[j] = buffer + entries[std::min(p + j + ROWS, n - 1)] * stride;
    }
  }
  void fetch_next(int from, int width) const {
    for (int j = 0; j < ROWS; j++) for (int i = 0; i < width; i += 16) __builtin_prefetch(next[j] + from + i);
  }
};
// The attention of B tokens of a sequence, one after the other, by the query heads of key heads [first, stop).
// Token t attends to entries [0, n + t), at most [0, most). Each of its heads has a row of scores, with room
// for most rounded up. All heads of an entry are read together, as they lie, for all tokens.
template <int B>
static void attend(const Model & m, const float * q, const float * keys, const float * values, const int64_t * entries, int64_t n, int64_t most, int first, int stop, float * scores, int64_t row, float * out, int64_t out_stride) {
  const int width = (int) m.head_width, group = (int) (m.heads / m.kv_heads), heads = (stop - first) * group;
  const int64_t stride = m.kv_heads * width, last = std::min(n + B - 1, most);
  const float scale = 1.f / std::sqrt((float) width);
  for (int64_t p = 0; p < last; p += ROWS) {
    const Entries of(keys, stride, entries, p, last);
    for (int h = first; h < stop; h++) {
      const float * w[ROWS], * x[B];
      for (int j = 0; j < ROWS; j++) w[j] = of.at[j] + h * width;
      of.fetch_next(h * width, width);
      for (int head = (h - first) * group; head < (h - first + 1) * group; head++) {
        for (int t = 0; t < B; t++) x[t] = q + (t * heads + head) * width;
        auto emit = [&](int t, float * v) { memcpy(scores + (t * heads + head) * row + p, v, 4 * ROWS); };
        if constexpr (B == 1) tile<float, ROWS, 1>(w, x, width, scores + head * row + p);
        else rows_times<float, B, 0>(w, x, 0, width, emit);
      }
    }
  }
  for (int k = 0; k < B * heads; k++) {
    const int seen = (int) std::min(n + k / heads, most);
    float * of = scores + k * row;
    const float top = scaled_to(of, scale, seen);
    Floats total = all(0.f);
    each(seen, [&](int i, int lanes) {
      Floats e = exponential(load(of + i, lanes) - top);
      if (lanes < LANES) for (int j = lanes; j < LANES; j++) e[j] = 0;
      store(of + i, e, lanes);
      total += e;
    });
    const float inverse = 1.f / sum(total);
    each(seen, [&](int i, int lanes) { store(of + i, load(of + i, lanes) * inverse, lanes); });
    for (int64_t i = seen; i < last; i++) of[i] = 0;  // of later tokens
  }
  for (int t = 0; t < B; t++) memset(out + t * out_stride, 0, sizeof(float) * heads * width);
  for (int64_t p = 0; p < last; p += ROWS) {
    const Entries of(values, stride, entries, p, last);
    for (int h = first; h < stop; h++) {
      of.fetch_next(h * width, width);
      for (int head = (h - first) * group; head < (h - first + 1) * group; head++) {
        const float * weight = scores + head * row + p;
        float * y = out + head * width;
        each(width, [&](int i, int lanes) {
          Floats total[B];
          for (int t = 0; t < B; t++) total[t] = load(y + t * out_stride + i, lanes);
          for (int j = 0; j < of.count; j++) {
            const Floats v = load(of.at[j] + h * width + i, lanes);
            for (int t = 0; t < B; t++) total[t] += v * weight[t * heads * row + j];
          }
          for (int t = 0; t < B; t++) store(y + t * out_stride + i, total[t], lanes);
        });
      }
    }
  }
}
static inline void activate(int64_t kind, float * x, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    float v = x[i];
    if (kind == RELU) x[i] = v > 0 || v != v ? v : 0;
    else if (kind == GELU) x[i] = 0.5f * v * (1 + std::erf(v * 0.70710678f));
    else x[i] = 0.5f * v * (1 + std::tanh(0.79788456f * (v + 0.044715f * v * v * v)));
  }
}

// ── the sampler ──────────────────────────────────────────────────────────────────────────────────

constexpr float EXCLUDED = -1e30f, MAX_DISTANCE = 31.f;
constexpr int TOGETHER = 128;  // candidates whose largest logit decides for which there is noise
constexpr int32_t ONE = 0x3F800000;
constexpr int FINE_BITS = 13, FINE = 1 << FINE_BITS, COARSE = ((0x42000000 - ONE) >> FINE_BITS) + 1;

// The choice among the candidates of one token; candidates come in parts, in any order.
struct Draw {
  int64_t start, stop;  // allowed candidates
  float temperature, top_p, best; int64_t top_k, chosen; int32_t summand, factor;

  void begin(int64_t first, int64_t end, float t, int64_t k, float p, int64_t seed, int64_t index) {
    start = first; stop = end; temperature = t; top_k = t > 0 ? k : 0; top_p = t > 0 ? p : 1;
    best = -std::numeric_limits<float>::infinity(); chosen = first;
    auto scrambled = [](uint64_t x, int bits) { return x ^ (uint64_t) ((int64_t) x >> bits); };
    uint64_t x = (uint64_t) seed + (uint64_t) index * (uint64_t) -0x61C8864680B583EBLL;
    x = scrambled(x, 30) * (uint64_t) -0x40A7B892E31B1A47LL;
    x = scrambled(x, 27) * (uint64_t) -0x6B2FB644ECCEEE15LL;
    x = scrambled(x, 31);
    summand = (int32_t) x; factor = (int32_t) (x >> 32) | 1;
  }
  bool needs_all() const { return top_k > 0 || top_p < 1; }

  Ints hash(const int32_t * hashed) const {  // of each candidate: 31 bits
    typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
    auto times = [](Ints a, uint32_t b) { return (Ints) ((Words) a * b); };
    Ints x = (Ints) ((Words) times(load(hashed), (uint32_t) factor) + (uint32_t) summand);
    x ^= x >> 16; x = times(x, 0x7FEB352Du);
    x ^= x >> 15; x = times(x, (uint32_t) -0x7B935975);
    return x ^ (x >> 16);
  }
  static float noise(int32_t x) {
    float uniform = (float) x * (float) (4.656612873077393e-10 * (1 - 5.960464477539063e-08)) + 1.1641532182693481e-10f;
    return -std::log(-std::log1p(-uniform));
  }
  void take(float value, int64_t candidate) {
    if (value > best || (value == best && candidate < chosen)) { best = value; chosen = candidate; }
  }
  // Candidates [first, first + n) with their logits over the temperature, which may be excluded.
  // hashed has room for a vector beyond the last candidate. Noise is computed where it could win.
  void scaled(const float * z, int64_t first, int64_t n, const int32_t * hashed) {
    for (int64_t i = 0; i < n; i += TOGETHER) some(z + i, first + i, (int) std::min<int64_t>(TOGETHER, n - i), hashed);
  }
  void some(const float * z, int64_t first, int n, const int32_t * hashed) {
    int from = (int) std::clamp<int64_t>(start - first, 0, n), to = (int) std::clamp<int64_t>(stop - first, 0, n);
    if (from >= to) return;
    Floats tops = all(-std::numeric_limits<float>::infinity());
    int i = from;
    for (; i + LANES <= to; i += LANES) { Floats v = load(z + i); tops = v > tops ? v : tops; }
    float top = largest(tops);
    for (; i < to; i++) top = std::max(top, z[i]);
    if (temperature <= 0) {
      if (top > best || (top == best && first + from < chosen))
        for (int j = from; j < to; j++) if (z[j] == top) { take(top, first + j); break; }
      return;
    }
    // A hash x gives -log(-log1p(-x 2^-31)), which is largest for small x, and must reach this.
    double need = (double) best - top, limit = need > 60 ? 0 : -std::expm1(-std::exp(-need));
    int32_t most = !(limit < 0.9999) ? 0x7fffffff : (int32_t) (limit * 2147483648.0 * (1 + 1e-5)) + 16;
    for (i = from; i < to; i += LANES) {
      Ints x = hash(hashed + first + i);
      Ints small = x <= most;
      int32_t any[LANES], hits[LANES];
      store(any, small);
      int32_t found = 0;
      for (int j = 0; j < LANES; j++) found |= any[j];
      if (!found) continue;
      store(hits, x);
      for (int j = 0; j < std::min(LANES, to - i); j++)
        if (any[j]) take(z[i + j] + noise(hits[j]), first + i + j);
    }
  }
  void over_temperature(float * z, int n) const {
    if (temperature > 0 && temperature != 1) each(n, [&](int i, int lanes) { store(z + i, load(z + i, lanes) / std::max(temperature, 1e-6f), lanes); });
  }
  // The candidates from `first` at once: what top-k and top-p exclude becomes very small.
  void exclude(float * z, int64_t first, std::vector<float> & sorted, std::vector<int64_t> & weights, std::vector<int32_t> & bits) {
    float * from = z + (start - first); int64_t n = stop - start;
    if (top_k > 0 && top_k < n) {
      sorted.assign(from, from + n);
      std::nth_element(sorted.begin(), sorted.begin() + (top_k - 1), sorted.end(), std::greater<float>());
      float threshold = sorted[top_k - 1];
      for (int64_t i = 0; i < n; i++) if (threshold > from[i]) from[i] += EXCLUDED;
    }
    if (top_p < 1) {
      float top = -std::numeric_limits<float>::infinity();
      for (int64_t i = 0; i < n; i++) top = std::max(top, from[i]);
      bits.resize(n + LANES); sorted.resize(n + LANES);
      for (int64_t i = 0; i < n; i++) {
        float d = top - from[i];
        sorted[i] = d < MAX_DISTANCE ? d : MAX_DISTANCE;
      }
      for (int64_t i = 0; i < n; i += LANES) {
        Floats d = load(sorted.data() + i), shifted = d + 1.f;
        Ints b; memcpy(&b, &shifted, sizeof b);
        store(bits.data() + i, b - ONE);
        store(sorted.data() + i, exponential(-d));
      }
      auto weight = [&](int64_t i) { return (int64_t) (sorted[i] * 1099511627776.f); };  // 2^40
      auto reach = [&](int64_t wanted) {  // classes whose cumulative weight is below
        int32_t c = 0; int64_t total = 0;
        for (int64_t w : weights) { total += w; if (total >= wanted) break; c++; }
        return c;
      };
      weights.assign(COARSE, 0);
      for (int64_t i = 0; i < n; i++) weights[bits[i] >> FINE_BITS] += weight(i);
      int64_t total = 0;
      for (int64_t w : weights) total += w;
      int64_t wanted = (int64_t) std::ceil((double) total * (double) top_p);
      int32_t begin = reach(wanted) << FINE_BITS;
      weights.assign(FINE + 2, 0);
      for (int64_t i = 0; i < n; i++) weights[std::clamp(bits[i] - begin, -1, FINE) + 1] += weight(i);
      int32_t farthest = begin + reach(wanted) - 1;
      for (int64_t i = 0; i < n; i++) if (bits[i] > farthest) from[i] += EXCLUDED;
    }
  }
};

// ── a step ───────────────────────────────────────────────────────────────────────────────────────

static inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}
static inline bool spin(int & turns) {  // false: it has lasted some microseconds
  relax();
  return ++turns < 1000;
}
// Threads that sleep between calls, so that each keeps its processor. They are never ended: a process
// that ends need not wait for them, and one that was forked has none and makes its own.
class Workers {
  struct Worker {
    std::mutex lock;
    std::condition_variable changed;
    std::atomic<const std::function<void()> *> task{nullptr};
    void run() {
      for (;;) {
        for (int turns = 0; !task.load(std::memory_order_acquire) && spin(turns);) {}
        if (!task.load(std::memory_order_acquire)) {
          std::unique_lock<std::mutex> held(lock);
          changed.wait(held, [&] { return task.load(std::memory_order_acquire) != nullptr; });
        }
        (*task.load(std::memory_order_acquire))();
        task.store(nullptr, std::memory_order_release);
      }
    }
    void start(const std::function<void()> * what) {
      { std::lock_guard<std::mutex> held(lock); task.store(what, std::memory_order_release); }
      changed.notify_one();
    }
    void wait() { for (int turns = 0; task.load(std::memory_order_acquire);) if (!spin(turns)) std::this_thread::yield(); }
  };
  std::mutex lock;
  std::vector<Worker *> idle;
  size_t made = 0;
  pid_t process = getpid();

  static Workers & of_process() {
    static std::mutex lock;
    static Workers * workers = new Workers;
    std::lock_guard<std::mutex> held(lock);
    if (workers->process != getpid()) workers = new Workers;
    return *workers;
  }
  Worker * take() {
    {
      std::lock_guard<std::mutex> held(lock);
      if (!idle.empty()) { Worker * worker = idle.back(); idle.pop_back(); return worker; }
      idle.reserve(++made);  // so that there is room when it comes back
    }
    Worker * worker = new Worker;
    std::thread([worker] { worker->run(); }).detach();
    return worker;
  }

 public:
  // Calls f(0) to f(threads - 1) at the same time; throws, before any call, if there are not enough threads.
  template <typename F> static void together(int threads, F && f) {
    Workers & workers = of_process();
    std::vector<Worker *> taken;
    std::vector<std::function<void()>> tasks;
    auto give_back = [&] {
      std::lock_guard<std::mutex> held(workers.lock);
      for (Worker * each : taken) workers.idle.push_back(each);
    };
    try {
      taken.reserve(threads); tasks.reserve(threads);
      for (int k = 1; k < threads; k++) { tasks.emplace_back([&f, k] { f(k); }); taken.push_back(workers.take()); }
    } catch (...) {
      give_back();
      throw;
    }
    for (size_t k = 0; k < taken.size(); k++) taken[k]->start(&tasks[k]);
    f(0);
    for (Worker * each : taken) each->wait();
    give_back();
  }
};
class Barrier {  // waits shortly without giving the processor away, then gives it away
  std::atomic<int> arrived{0}, round{0};
  const int threads;
 public:
  explicit Barrier(int n) : threads(n) {}
  void wait() {
    if (threads == 1) return;
    int now = round.load(std::memory_order_relaxed);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
      arrived.store(0, std::memory_order_relaxed);
      round.store(now + 1, std::memory_order_release);
      return;
    }
    for (int turns = 0; round.load(std::memory_order_acquire) == now;)
      if (!spin(turns)) std::this_thread::yield();
  }
};

constexpr int PART = 1024;  // rows of the head at once

class Step {
  const Model & m; const Batch & b; const int threads;
  const int n, window, tokens, width;
  const int64_t n_codes, n_writable;
  Barrier barrier;
  std::vector<int64_t> state[FIELDS], rule, ids, positions;
  std::vector<float> qkv, attended, hidden, up, branch;
  std::unique_ptr<float[]> logits;  // of tokens whose logits are kept; n_writable and a vector each
  std::vector<Draw> draws;  // of each thread and conditional token
  std::vector<int64_t> rows_of_logits;  // of each token; -1: none
  std::vector<int64_t> found;  // codes of a window
  int64_t n_logits = 0;
  struct Own;
  std::vector<Own> owns;

  int64_t rule_of(int i) const {
    if (b.inside_images) return R_CODE;
    int64_t phase = state[PHASE][i], budget = state[BUDGET][i], images = state[IMAGES][i];
    if (phase == DONE) return R_NOTHING;
    if (phase == START) return R_BOS;
    if (phase == IMAGE) {
      if (state[CODES_LEFT][i] <= 0) return R_END_IMAGE;
      return b.guided[i] == 1 && images != b.branched_image[i] ? R_NOTHING : R_CODE;
    }
    if (budget <= 0 || ((b.one_turn[i] == 1 || b.one_gap[i] == 1) && state[TURNS][i] > 0)) return R_NOTHING;
    bool may_open = images < b.max_images[i];
    if (b.text[i] != 1) return may_open ? R_BEGIN_IMAGE : R_NOTHING;
    if (budget == 1) return R_EOS;
    bool image = may_open && budget >= m.codes_per_image + 3;  // one is reserved for eos
    if (b.one_gap[i] == 1) return image ? R_GAP_OR_IMAGE : R_GAP;
    return image ? R_TEXT_OR_IMAGE : R_TEXT;
  }
  void advance(int i, int64_t r, int64_t id) {
    if (r == R_NOTHING) return;
    if (b.inside_images) { advance_codes(i, id, 1); return; }
    bool opens = id == m.begin_image;
    if (opens) state[PHASE][i] = IMAGE;
    if (r == R_END_IMAGE || r == R_BOS) state[PHASE][i] = TEXT;
    if (id == m.eos) state[PHASE][i] = DONE;
    state[CODES_LEFT][i] = opens ? m.codes_per_image : state[CODES_LEFT][i] - (r == R_CODE);
    state[IMAGES][i] += opens;
    for (int e = 0; e < m.n_ends; e++) if (m.ends[e] == id) { state[TURNS][i]++; break; }
    state[BUDGET][i]--; state[LAST][i] = id; state[POSITION][i]++;
  }
  void advance_codes(int i, int64_t id, int64_t count) {
    state[CODES_LEFT][i] -= count; state[BUDGET][i] -= count; state[LAST][i] = id; state[POSITION][i] += count;
  }
  bool forced(int64_t r) const { return m.range_stop[r] - m.range_start[r] <= 1; }
  const Sampling & sampling(int64_t r) const { return r == R_CODE ? b.image_sampling : b.text_sampling; }
  bool is_guided(int i) const { return b.conditional && (b.classifier_free[i] || b.contrastive[i]); }

  // One thread: what every token reads, and what it may write.
  void prepare() {
    const int c = (int) b.n_conditional;
    n_logits = 0;
    if (b.ids) { ids.assign(b.ids, b.ids + tokens); positions.assign(b.positions, b.positions + tokens); return; }
    for (int i = 0; i < n; i++) {
      int owner = i < c ? i : (int) b.conditional[i - c];
      if (i < c) rule[i] = rule_of(i);
      for (int o = 0; o < window; o++) {
        int t = i * window + o;
        ids[t] = o ? b.guesses[owner * (window - 1) + o - 1] : state[LAST][owner];
        positions[t] = state[POSITION][i] + o;
        rows_of_logits[t] = -1;
        if (i >= c) { if (rule[owner] == R_CODE && is_guided(owner)) rows_of_logits[t] = n_logits++; continue; }
        int64_t r = rule[i];
        const Sampling & s = sampling(r);
        for (int k = 0; k < threads; k++)
          draws[(int64_t) k * c * window + t].begin(m.range_start[r], m.range_stop[r], s.temperature[i], s.top_k[i], s.top_p[i], s.seed[i], positions[t] + 1);
        if (!forced(r) && (draws[t].needs_all() || (r == R_CODE && is_guided(i)))) rows_of_logits[t] = n_logits++;
      }
    }
  }

  struct Own {  // of one thread
    std::vector<float> x, h, other, before, scores, q, k, part, sorted; std::vector<const float *> xs, list;
    std::vector<int> which; std::vector<int64_t> weights; std::vector<int32_t> bits;
    Vectors in, listed;  // of xs and of list
  };
  float * stream(Own & own, int64_t trunk, int t) { return own.x.data() + (trunk * tokens + t) * width; }
  float * input(Own & own, int t) { return own.h.data() + (int64_t) t * width; }

  void begin_branch(const Layer & y, const Norm & before, Own & own) {
    for (int t = 0; t < tokens; t++) {
      if (y.placement == PRE) norm(before, stream(own, y.trunk, t), input(own, t), width);
      else memcpy(input(own, t), stream(own, y.trunk, t), 4 * width);
    }
  }
  void end_branch(const Layer & y, const Norm & after, Own & own) {
    const float skip = (float) y.skip, scale = (float) y.branch;
    for (int t = 0; t < tokens; t++) {
      float * x = stream(own, y.trunk, t);
      const float * add = branch.data() + (int64_t) t * width;
      if (y.placement == REORDERED) {  // elsewhere, since all threads read the branch
        norm(after, add, input(own, t), width);
        add = input(own, t);
      }
      each(width, [&](int i, int lanes) { store(x + i, load(x + i, lanes) * skip + load(add + i, lanes) * scale, lanes); });
      if (y.placement == POST) norm(after, x, x, width);
    }
  }
  // What the other trunk is, or was before it attended to this one, in own.list; trunk 0 goes first.
  void other_trunk(const Layer & y, Own & own) {
    if (y.trunk == 0) own.before.assign(own.x.begin(), own.x.begin() + (int64_t) tokens * width);
    for (int t = 0; t < tokens; t++) {
      float * to = own.other.data() + (int64_t) t * width;
      norm(y.memory_norm, y.trunk == 0 ? stream(own, 1, t) : own.before.data() + (int64_t) t * width, to, width);
      own.list[t] = to;
    }
  }
  template <typename F> void share(int thread, int64_t rows, F && f) {
    int64_t first, stop;
    part_of(rows, thread, threads, first, stop);
    if (first < stop) f(first, stop);
  }
  void layer(const Layer & y, int l, Own & own, int thread) {
    const int dq = (int) (m.heads * m.head_width), dkv = (int) (m.kv_heads * m.head_width), hw = (int) m.head_width;
    const int64_t stride = dq + 2 * dkv;
    Vectors & in = own.in.set(own.xs.data(), tokens, width), & list = own.listed;
    begin_branch(y, y.attention_norm, own);
    if (y.crosses) other_trunk(y, own);
    Vectors & from = y.crosses ? list.set(own.list.data(), tokens, width) : in;
    share(thread, y.q.rows, [&](int64_t a, int64_t z) { product_to(y.q, a, z, in, qkv.data(), stride); });
    share(threads - 1 - thread, y.k.rows, [&](int64_t a, int64_t z) { product_to(y.k, a, z, from, qkv.data() + dq, stride); });
    share(thread, y.v.rows, [&](int64_t a, int64_t z) { product_to(y.v, a, z, from, qkv.data() + dq + dkv, stride); });
    barrier.wait();
    const int group = (int) (m.heads / m.kv_heads), kv_heads = (int) m.kv_heads;
    const int parts = n % threads == 0 ? 1 : std::min(threads, kv_heads);  // of the heads of a sequence
    for (int task = thread; task < n * parts; task += threads) {
      const int s = task / parts, part = task % parts;
      const int first = kv_heads * part / parts, stop = kv_heads * (part + 1) / parts;
      const int64_t * entries = b.table + (int64_t) s * b.table_width;
      for (int o = 0; o < window; o++) {
        const int t = s * window + o;
        const float * row = qkv.data() + t * stride;
        const int64_t at = entries[std::min(positions[t], b.table_width - 1)] * dkv;
        for (int h = first; h < stop; h++) {
          norm_heads(y.k_norm, row + dq, kv_heads, hw, h, 1, own.k.data());
          rotate(m, positions[t], own.k.data(), b.keys[l] + at + (int64_t) h * hw);
        }
        memcpy(b.values[l] + at + (int64_t) first * hw, row + dq + dkv + (int64_t) first * hw, 4 * (stop - first) * hw);
      }
      const int heads = (stop - first) * group;
      for (int o = 0; o < window;) {
        const int t = s * window + o, together = window - o >= TOKENS ? TOKENS : 1;
        for (int u = 0; u < together; u++) {
          for (int h = 0; h < heads; h++) {
            norm_heads(y.q_norm, qkv.data() + (t + u) * stride, (int) m.heads, hw, first * group + h, 1, own.k.data());
            rotate(m, positions[t + u], own.k.data(), own.q.data() + (u * heads + h) * hw);
          }
        }
        auto of = together == 1 ? attend<1> : attend<TOKENS>;
        of(m, own.q.data(), b.keys[l], b.values[l], entries, std::min(positions[t] + 1, b.table_width), b.table_width, first, stop,
           own.scores.data(), b.table_width + LANES + ROWS, attended.data() + (int64_t) t * dq + (int64_t) first * group * hw, dq);
        o += together;
      }
    }
    barrier.wait();
    for (int t = 0; t < tokens; t++) own.list[t] = attended.data() + (int64_t) t * dq;
    list.set(own.list.data(), tokens, dq);
    share(thread, width, [&](int64_t a, int64_t z) { product_to(y.o, a, z, list, branch.data(), width); });
    barrier.wait();
    end_branch(y, y.attention_norm, own);
    if (!y.up.rows) return;
    begin_branch(y, y.feed_forward_norm, own);
    in.set(own.xs.data(), tokens, width);
    share(thread, m.hidden, [&](int64_t a, int64_t z) {
      if (y.gate.rows) product_to(y.gate, a, z, in, hidden.data(), m.hidden);
      product_to(y.up, a, z, in, y.gate.rows ? up.data() : hidden.data(), m.hidden);
      for (int t = 0; t < tokens; t++) {
        float * h = hidden.data() + t * m.hidden, * u = up.data() + t * m.hidden;
        if (!y.gate.rows) { activate(m.activation, h + a, z - a); continue; }
        each((int) (z - a), [&](int i, int lanes) {
          Floats g = load(h + a + i, lanes);
          store(h + a + i, g / (exponential(-g) + 1.f) * load(u + a + i, lanes), lanes);
        });
      }
    });
    barrier.wait();
    for (int t = 0; t < tokens; t++) own.list[t] = hidden.data() + t * m.hidden;
    list.set(own.list.data(), tokens, (int) m.hidden);
    share(thread, width, [&](int64_t a, int64_t z) { product_to(y.down, a, z, list, branch.data(), width); });
    barrier.wait();
    end_branch(y, y.feed_forward_norm, own);
  }
  void embed(Own & own) {
    for (int t = 0; t < tokens; t++) {
      float * x = stream(own, 0, t);
      row_to(m.embedding, ids[t], x);
      if (m.embedding_scale != 1) for (int i = 0; i < width; i++) x[i] *= (float) m.embedding_scale;
      norm(m.embedding_norm, x, x, width);
      for (int64_t trunk = m.n_trunks - 1; trunk >= 0; trunk--) {
        float * y = stream(own, trunk, t);
        if (trunk) memcpy(y, x, 4 * width);
        if (!m.positions[trunk]) continue;
        const float * p = m.positions[trunk] + std::min(positions[t], m.n_positions - 1) * width;
        for (int i = 0; i < width; i++) y[i] += p[i];
      }
    }
  }
  // The hidden states, from what the trunks are after their last layer.
  void end(Own & own, int thread) {
    if (m.n_trunks == 1) {
      for (int t = 0; t < tokens; t++) norm(m.norms[0], stream(own, 0, t), input(own, t), width);
      return;
    }
    for (int t = 0; t < tokens; t++) {
      float * both = own.other.data() + (int64_t) t * 2 * width;
      for (int k = 0; k < 2; k++) norm(m.norms[k], stream(own, k, t), both + k * width, width);
      own.list[t] = both;
    }
    barrier.wait();  // until all have read the last branch
    own.listed.set(own.list.data(), tokens, 2 * width);
    share(thread, width, [&](int64_t a, int64_t z) { product_to(m.combine, a, z, own.listed, branch.data(), width); });
    barrier.wait();
    memcpy(own.h.data(), branch.data(), 4 * (int64_t) tokens * width);
  }
  // The head's product over a part of the vocabulary, for all tokens that may write ids of it.
  void head(const Matrix & matrix, int64_t offset, bool codes, Own & own, int thread) {
    const int c = (int) b.n_conditional;
    own.which.clear();
    int64_t first = n_writable, stop = 0;
    for (int t = 0; t < tokens; t++) {
      int i = t / window, owner = i < c ? i : (int) b.conditional[i - c];
      int64_t r = rule[owner];
      if (forced(r) || (r == R_CODE) != codes || (i >= c && rows_of_logits[t] < 0)) continue;
      first = std::min(first, m.range_start[r]); stop = std::max(stop, m.range_stop[r]);
      own.list[own.which.size()] = own.h.data() + (int64_t) t * width;
      own.which.push_back(t);
    }
    if (own.which.empty()) return;
    Draw * draw = draws.data() + (int64_t) thread * c * window;
    const int count = (int) own.which.size();
    own.listed.set(own.list.data(), count, width);
    share(thread, stop - first, [&](int64_t a, int64_t z) {
      for (int64_t at = first + a; at < first + z; at += PART) {
        const int size = (int) std::min<int64_t>(PART, first + z - at);
        product_to(matrix, at - offset, at - offset + size, own.listed, own.part.data() - (at - offset), PART);
        for (int j = 0; j < count; j++) {
          const int t = own.which[j];
          float * z_ = own.part.data() + j * PART;
          if (rows_of_logits[t] >= 0) { memcpy(logits.get() + rows_of_logits[t] * (n_writable + LANES) + at, z_, 4 * size); continue; }
          draw[t].over_temperature(z_, size);
          draw[t].scaled(z_, at, size, m.hashed);
        }
      }
    });
  }
  void guide(int i, int o, float * z, Own & own) {
    const float * u = logits_of((int) (b.n_conditional + b.unconditional[i]), o);
    const float * v = logits_of((int) (b.n_conditional + b.image_conditional[i]), o);
    if (b.contrastive[i]) {
      own.sorted.assign(z, z + n_codes);
      int64_t k = std::clamp<int64_t>(b.k[i], 1, n_codes);
      std::nth_element(own.sorted.begin(), own.sorted.begin() + (k - 1), own.sorted.end(), std::greater<float>());
      float threshold = own.sorted[k - 1] + std::log(b.alpha[i]);
      for (int64_t j = 0; j < n_codes; j++) z[j] = z[j] - u[j] + (threshold > z[j] ? EXCLUDED : 0.f);
    } else {
      const float image = b.scale_image[i], text = b.scale_text[i];
      each((int) n_codes, [&](int j, int lanes) {
        Floats base = load(u + j, lanes), other = load(v + j, lanes);
        store(z + j, (base + (other - base) * image) + (load(z + j, lanes) - other) * text, lanes);
      });
    }
  }
  float * logits_of(int sequence, int o) { return logits.get() + rows_of_logits[sequence * window + o] * (n_writable + LANES); }

  // The tokens whose logits are kept, each by one thread.
  void choose(Own & own, int thread) {
    for (int t = 0; t < b.n_conditional * window; t++) {
      if (rows_of_logits[t] < 0 || rows_of_logits[t] % threads != thread) continue;
      const int i = t / window;
      float * z = logits_of(i, t % window);
      Draw & d = draws[t];
      if (rule[i] == R_CODE && is_guided(i)) guide(i, t % window, z, own);
      const int size = (int) (d.stop - d.start);
      d.over_temperature(z + d.start, size);
      d.exclude(z, 0, own.sorted, own.weights, own.bits);
      d.scaled(z + d.start, d.start, size, m.hashed);
    }
  }
  int64_t written(int t) {  // the id that all threads together chose
    const int64_t c = b.n_conditional * window;
    Draw & d = draws[t];
    if (rows_of_logits[t] < 0) for (int k = 1; k < threads; k++) d.take(draws[k * c + t].best, draws[k * c + t].chosen);
    return m.writable[d.chosen];
  }
  void finish(int step) {
    const int c = (int) b.n_conditional;
    if (window > 1) { for (int i = 0; i < c; i++) accept(i, step); }
    else for (int i = 0; i < c; i++) {
      int64_t r = rule[i], id = r == R_NOTHING ? -1 : forced(r) ? m.writable[m.range_start[r]] : written(i);
      b.generated[(int64_t) i * b.n_steps + step] = id;
      advance(i, r, id);
    }
    for (int i = c; i < n && window == 1; i++) {
      int owner = (int) b.conditional[i - c];
      if (b.inside_images) advance_codes(i, state[LAST][owner], 1);
      else state[POSITION][i] += rule[owner] == R_CODE;
    }
  }
  // Of a window: the codes up to and including the first wrong guess; see SpeculationWindow.
  void accept(int i, int step) {
    const int c = (int) b.n_conditional;
    int64_t * guesses = b.guesses + (int64_t) i * (window - 1), * codes = b.codes + i * b.codes_width;
    int64_t * out = b.generated + ((int64_t) i * b.n_steps + step) * window;
    const int64_t left = state[CODES_LEFT][i], done = m.codes_per_image - left, last = b.codes_width - 1;
    for (int o = 0; o < window; o++) found[o] = written(i * window + o);
    int64_t count = 1;
    while (count < window && found[count - 1] == guesses[count - 1]) count++;
    count = std::min(count, left);
    for (int o = 0; o < window; o++) out[o] = o < count ? found[o] : -1;
    for (int o = 0; o < window; o++) codes[std::min(done + o, last)] = found[o];
    for (int o = 0; o + 1 < window; o++) {
      int64_t place = done + count + o;
      guesses[o] = codes[place < done + window ? std::min(place, last) : std::clamp<int64_t>(place - b.grid_width, 0, last)];
    }
    int64_t id = count > 0 ? found[count - 1] : state[LAST][i];
    advance_codes(i, id, count);
    for (int j = c; j < n; j++) if (b.conditional[j - c] == i) advance_codes(j, id, count);
  }

  void run(int thread) {
    Own & own = owns[thread];
    for (int step = 0; step < b.n_steps; step++) {
      if (thread == 0) prepare();
      barrier.wait();
      const bool keeps_logits = n_logits > 0;  // thread 0 may be at the next step before others have looked
      embed(own);
      for (int l = 0; l < m.n_layers; l++) layer(m.layers[l], l, own, thread);
      end(own, thread);
      if (b.hidden && thread == 0) memcpy(b.hidden + (int64_t) step * tokens * width, own.h.data(), 4 * (int64_t) tokens * width);
      if (b.ids) return;
      head(m.image, 0, true, own, thread);
      head(m.text, n_codes, false, own, thread);
      barrier.wait();
      if (keeps_logits) { choose(own, thread); barrier.wait(); }
      if (thread == 0) finish(step);
    }
  }

 public:
  Step(const Model & model, const Batch & batch, int n_threads)
      : m(model), b(batch), threads(n_threads), n((int) batch.n), window((int) batch.window),
        tokens(n * window), width((int) model.width), n_codes(model.image.rows),
        n_writable(model.image.rows + model.text.rows), barrier(n_threads) {
    for (auto & field : state) field.resize(n);
    for (int f = 0; f < FIELDS && !b.ids; f++) for (int i = 0; i < n; i++) state[f][i] = b.states[f * b.slots_stride + b.slots[i]];
    rule.resize(n); ids.resize(tokens); positions.resize(tokens); rows_of_logits.resize(tokens); found.resize(window);
    const int64_t dq = m.heads * m.head_width, dkv = m.kv_heads * m.head_width;
    qkv.resize(tokens * (dq + 2 * dkv)); attended.resize(tokens * dq);
    hidden.resize(tokens * m.hidden); up.resize(tokens * m.hidden); branch.resize((int64_t) tokens * width);
    draws.resize((int64_t) threads * b.n_conditional * window);
    if (!b.ids) logits.reset(new float[tokens * (n_writable + LANES)]);  // not set, so not touched before it is needed
    owns.resize(threads);
    for (Own & own : owns) {  // all memory is taken here, since a thread cannot report that it has none
      own.x.resize(m.n_trunks * tokens * width); own.h.resize((int64_t) tokens * width);
      if (m.n_trunks > 1) { own.other.resize((int64_t) tokens * 2 * width); own.before.resize((int64_t) tokens * width); }
      own.scores.resize((window < TOKENS ? 1 : TOKENS) * m.heads * (b.table_width + LANES + ROWS)); own.q.resize(TOKENS * dq); own.k.resize(m.head_width);
      if (!b.ids) own.part.resize((int64_t) tokens * PART + LANES);
      own.list.resize(tokens); own.which.reserve(tokens);
      for (int t = 0; t < tokens; t++) own.xs.push_back(own.h.data() + (int64_t) t * width);
      if (m.embedding.kind == INT8) {  // as all matrices then are
        own.in.reserve(tokens, width);
        own.listed.reserve(tokens, std::max({m.n_trunks * width, dq, m.hidden}));
      }
      own.sorted.reserve(n_writable + LANES); own.bits.reserve(n_writable + LANES); own.weights.reserve(FINE + 2);
    }
  }
  void run_all() {
    Workers::together(threads, [this](int thread) { run(thread); });
    for (int f = 0; f < FIELDS && !b.ids; f++) for (int i = 0; i < n; i++) b.states[f * b.slots_stride + b.slots[i]] = state[f][i];
  }
};

extern "C" int pardalis_decode(const Model * model, const Batch * batch, int64_t threads) {
  try {
    Step(*model, *batch, (int) threads).run_all();
    return 0;
  } catch (...) {
    return 1;
  }
}
extern "C" int pardalis_product(const Matrix * m, const float * x, int64_t n, float * y, int64_t threads) {
  try {
    std::vector<const float *> xs(n);
    for (int64_t t = 0; t < n; t++) xs[t] = x + t * m->width;
    Vectors of;
    if (m->kind == INT8) of.reserve(n, m->width);
    of.set(xs.data(), (int) n, (int) m->width);
    if (m->kind == INT8) of.rounded();
    Workers::together((int) threads, [&](int thread) {
      int64_t first, stop;
      part_of(m->rows, thread, (int) threads, first, stop);
      product_to(*m, first, stop, of, y, m->rows);
    });
    return 0;
  } catch (...) {
    return 1;
  }
}
template <typename T> static bool is_finite(const T * x, int64_t n) {
  Floats bad = all(0.f);
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) bad += load(x + i) * 0.f;
  if (i < n) bad += load_part(x + i, (int) (n - i)) * 0.f;
  return sum(bad) == 0;
}
extern "C" int pardalis_finite(const Matrix * m) {
  const int64_t n = m->rows * m->width;
  return m->kind == BFLOAT16 ? is_finite((const BFloat *) m->values, n) : is_finite((const float *) m->values, n);
}
extern "C" int64_t pardalis_lanes() { return LANES; }
