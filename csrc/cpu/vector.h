// Fixed-width vectors and conversions. They use the compilers' vector extensions, so one source works for every
// instruction set. Only instruction_set.h includes this file, inside the namespace of one instruction set.

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes), aligned(kVectorBytes)));
  typedef T unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
};
template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename T>
constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(T));

template <typename T>
inline Vector<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(p);
}

template <typename T>
inline void store(T* p, Vector<T> v) {
  *reinterpret_cast<typename VectorOf<T>::unaligned*>(p) = v;
}

template <typename T>
inline Vector<T> broadcast(T value) {
  return value - Vector<T>{};  // x - 0 is x for every x, also for signed zeros and NaN
}

template <typename T>
inline Vector<T> maximum(Vector<T> a, Vector<T> b) {
  return a > b ? a : b;
}

// The maximum as torch defines it: NaN if a or b is NaN.
template <typename T>
inline Vector<T> maximum_nan(Vector<T> a, Vector<T> b) {
  return (a > b) | (a != a) ? a : b;
}

// A vector of integers with as many lanes as Vector<T>: the result of a comparison.
template <typename T>
using Integers = decltype(Vector<T>{} > Vector<T>{});

// Loads and stores one byte per lane of Vector<T>.
template <typename T>
struct BytesOf {
  typedef uint8_t type __attribute__((vector_size(kLanes<T>)));
};
template <typename T>
inline Integers<T> load_bytes(const uint8_t* p) {
  typename BytesOf<T>::type bytes;
  __builtin_memcpy(&bytes, p, sizeof(bytes));
  return __builtin_convertvector(bytes, Integers<T>);
}
template <typename T>
inline void store_bytes(uint8_t* p, Integers<T> values) {
  const auto bytes = __builtin_convertvector(values, typename BytesOf<T>::type);
  __builtin_memcpy(p, &bytes, sizeof(bytes));
}
#if NPR_VECTOR_BYTES == 64 || NPR_VECTOR_BYTES == 32  // AVX-512, AVX2: without this, GCC converts byte by byte
template <>
inline Integers<float> load_bytes<float>(const uint8_t* p) {
#if NPR_VECTOR_BYTES == 64
  return (Integers<float>)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  return (Integers<float>)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#endif
}
template <>
inline void store_bytes<float>(uint8_t* p, Integers<float> values) {
#if NPR_VECTOR_BYTES == 64
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)values));
#else
  const __m128i low = _mm256_castsi256_si128((__m256i)values), high = _mm256_extracti128_si256((__m256i)values, 1);
  const __m128i words = _mm_packus_epi32(low, high);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
#endif
}
#endif

// The unsigned integer of a given size, for shuffle masks.
template <int64_t kBytes>
struct IntegerOfSize;
template <>
struct IntegerOfSize<1> {
  using type = uint8_t;
};
template <>
struct IntegerOfSize<4> {
  using type = uint32_t;
};
template <>
struct IntegerOfSize<8> {
  using type = uint64_t;
};

#if defined(__aarch64__)
typedef __fp16 Float16;  // every compiler for aarch64 knows this name
#else
typedef _Float16 Float16;
#endif

struct BFloat16 {
  uint16_t bits;
};

inline uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

// Converts to the type in which the kernels compute.
template <typename T, typename S>
inline T widen(S value) {
  return static_cast<T>(value);
}
template <typename T>
inline T widen(BFloat16 value) {
  return static_cast<T>(float_of(static_cast<uint32_t>(value.bits) << 16));
}

// Rounds to nearest, ties to even. NaN stays a (quiet) NaN.
inline BFloat16 to_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {static_cast<uint16_t>(value != value ? 0x7fc0 : rounded)};
}

// Converts to the type of the result.
template <typename D, typename T>
inline D narrow(T value) {
  if constexpr (sizeof(D) == sizeof(BFloat16) && __is_class(D)) {
    return to_bfloat16(static_cast<float>(value));
  } else {
    return static_cast<D>(value);
  }
}

template <typename D, typename T>
inline void store_narrow(D* out, Vector<T> v) {
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) out[lane] = narrow<D>(static_cast<T>(v[lane]));
}
#ifdef NPR_HAS_BFLOAT16_DOT
template <>
inline void store_narrow<BFloat16, float>(BFloat16* out, Vector<float> v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), (__m256i)_mm512_cvtneps_pbh((__m512)v));
}
#endif

// Memory for one thread and one call. It is set to zero, aligned for vectors, and has room for one more vector at the
// end.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count) { allocate(count); }
  ~Buffer() { free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void allocate(int64_t count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(T) + 64;
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, bytes) != 0) out_of_memory();
    __builtin_memset(memory, 0, bytes);
    data_ = static_cast<T*>(memory);
  }
  operator T*() const { return data_; }

 private:
  T* data_ = nullptr;
};

template <typename Visitor>
inline void visit_type(Type type, const Visitor& visitor) {
  switch (type) {
    case Type::kUInt8: return visitor(uint8_t{});
    case Type::kFloat32: return visitor(float{});
    case Type::kFloat64: return visitor(double{});
    case Type::kBFloat16: return visitor(BFloat16{});
    case Type::kFloat16: return visitor(Float16{});
  }
}
