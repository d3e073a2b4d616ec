#include "core/tuning.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <stdexcept>

#include "core/isa.h"

namespace btr {
namespace {

// Adding any size to a threshold does not overflow.
constexpr int64_t kMost = int64_t(1) << 60;

struct Row {
  const char* name;
  Threshold Tuning::*member;
  int64_t least;
  int64_t defaults[kIsas];  // in the order of Isa
  const char* selects;
};

constexpr Row kRows[] = {
#define BTR_THRESHOLD(family, name, least, portable, avx2, avx512, neon, selects) \
  {#family "." #name, &Tuning::family##_##name, least, {portable, avx2, avx512, neon}, selects},
#include "core/tuning.inl"
#undef BTR_THRESHOLD
};

const Row& find(const std::string& argument, const std::string& name) {
  std::string known;
  for (const Row& row : kRows) {
    if (name == row.name) return row;
    known += (known.empty() ? "" : ", ") + std::string(row.name);
  }
  throw std::invalid_argument(argument + ": expected a threshold (" + known + "), got '" + name + "'");
}

[[noreturn]] void wrong_value(const std::string& argument, const Row& row, const std::string& given) {
  throw std::invalid_argument(argument + ": expected an integer from " + std::to_string(row.least) + " to 2^60 for " +
                              row.name + ", got '" + given + "'");
}

bool allowed(const Row& row, int64_t value) { return row.least <= value && value <= kMost; }

struct Tables {
  Tuning of[kIsas];

  Tables() {
    for (const Row& row : kRows) set(row, std::nullopt);
    if (const char* text = std::getenv("BTR_TUNING")) override_from(text);
  }

  void set(const Row& row, std::optional<int64_t> value) {
    for (int i = 0; i < kIsas; ++i) (of[i].*row.member).set(value ? *value : row.defaults[i]);
  }

  // name=value, separated by commas
  void override_from(const std::string& text) {
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find(',', begin), text.size());
      const std::string item = text.substr(begin, end - begin);
      const size_t equals = std::min(item.find('='), item.size());
      const Row& row = find("BTR_TUNING", item.substr(0, equals));
      const std::string given = item.substr(std::min(equals + 1, item.size()));
      char* rest = nullptr;
      errno = 0;
      const long long value = std::strtoll(given.c_str(), &rest, 10);
      if (given.empty() || *rest || errno || !allowed(row, value)) wrong_value("BTR_TUNING", row, given);
      set(row, value);
      begin = end + 1;
    }
  }
};

Tables& tables() {
  static Tables value;
  return value;
}

}  // namespace

const Tuning& tuning() { return tables().of[int(isa())]; }

std::vector<ThresholdInfo> list_tuning() {
  std::vector<ThresholdInfo> found;
  const int now = int(isa());
  for (const Row& row : kRows)
    found.push_back({row.name, tables().of[now].*row.member, row.defaults[now], row.least, row.selects});
  return found;
}

void set_tuning(const std::string& name, std::optional<int64_t> value) {
  const Row& row = find("name", name);
  if (value && !allowed(row, *value)) wrong_value("value", row, std::to_string(*value));
  tables().set(row, value);
}

}  // namespace btr
