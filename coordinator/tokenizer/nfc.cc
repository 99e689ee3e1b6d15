// SPDX-License-Identifier: Apache-2.0
#include "coordinator/tokenizer/nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "kernels/base/check.h"

namespace trireme {
namespace {

constexpr int kDecomposedMax = 32;  // Unicode's longest decomposition has 18 code points

std::vector<utf8proc_int32_t> decompose(std::string_view text, int form) {
  std::vector<utf8proc_int32_t> points;
  points.reserve(text.size() + 1);
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  for (size_t at = 0; at < text.size();) {
    utf8proc_int32_t point = 0;
    const auto length =
        utf8proc_iterate(bytes + at, static_cast<utf8proc_ssize_t>(text.size() - at), &point);
    CHECK(length > 0, "valid UTF-8");
    at += static_cast<size_t>(length);
    utf8proc_int32_t parts[kDecomposedMax];
    int boundary_class = 0;
    const auto count = utf8proc_decompose_char(
        point, parts, kDecomposedMax, static_cast<utf8proc_option_t>(form), &boundary_class);
    CHECK(count > 0 && count <= kDecomposedMax, "a decomposition");
    points.insert(points.end(), parts, parts + count);
  }
  return points;
}

int combining_class(utf8proc_int32_t point) {
  return utf8proc_get_property(point)->combining_class;
}

// utf8proc's own reordering takes quadratic time on a long run of marks.
void order_marks(std::vector<utf8proc_int32_t>& points) {
  for (auto at = points.begin(); at != points.end();) {
    const auto end = std::find_if(at, points.end(), [](auto p) { return combining_class(p) == 0; });
    std::stable_sort(at, end,
                     [](auto a, auto b) { return combining_class(a) < combining_class(b); });
    at = std::find_if(end, points.end(), [](auto p) { return combining_class(p) != 0; });
  }
}

// form: of the decomposition.
std::string compose(std::string_view text, int form) {
  const bool ascii = std::all_of(text.begin(), text.end(), [](char c) { return (c & 0x80) == 0; });
  if (ascii) return std::string(text);
  std::vector<utf8proc_int32_t> points = decompose(text, form);
  order_marks(points);
  const auto count =
      utf8proc_normalize_utf32(points.data(), static_cast<utf8proc_ssize_t>(points.size()),
                               static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  CHECK(count >= 0, "normalisation of code points");
  std::string result;
  for (utf8proc_ssize_t i = 0; i < count; ++i) {
    utf8proc_uint8_t bytes[4];
    const auto length = utf8proc_encode_char(points[i], bytes);
    result.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(length));
  }
  return result;
}

}  // namespace

std::string to_nfc(std::string_view text) { return compose(text, UTF8PROC_DECOMPOSE); }

std::string to_nfkc(std::string_view text) {
  return compose(text, UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT);
}

}  // namespace trireme
