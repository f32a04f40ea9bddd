// SPDX-License-Identifier: Apache-2.0
#include "races.h"

#include <algorithm>

namespace shim::races {

namespace {

struct Word {
  unsigned writer, written;  // by whom, and when
  Clock read;                // when by whom
  unsigned storer;           // the thread that stored it, if
  bool unfenced;             // since then that has not called fence()
};

std::array<Clock, kMostWarps + 1> clocks;
std::vector<Word> words;
std::vector<unsigned> unfenced[kMostWarps * kWarp];  // the words that a thread has stored
bool used;

void join(Clock& into, const Clock& from) {
  for (size_t i = 0; i < into.size(); ++i) into[i] = std::max(into[i], from[i]);
}

template <class Visit>
const char* each(unsigned address, unsigned bytes, const Visit& visit) {
  used = true;
  if (words.empty()) words.resize(ditn::cuda::kMostShared / 4);
  if (address % 4 || bytes % 4) return "an access is not to whole words of shared memory";
  if (address + bytes > shared_size) return "an access is beyond the shared memory that was asked for";
  for (unsigned i = address / 4; i < (address + bytes) / 4; ++i) {
    if (const char* wrong = visit(i)) return wrong;
  }
  return nullptr;
}

const char* read_word(unsigned agent, Word& word) {
  if (word.written > clocks[agent][word.writer]) return "a race: a read, and a write that did not happen before it";
  word.read[agent] = clocks[agent][agent];
  return nullptr;
}

const char* write_word(unsigned agent, Word& word) {
  if (word.written > clocks[agent][word.writer]) return "a race: two writes";
  for (unsigned other = 0; other < word.read.size(); ++other) {
    if (word.read[other] > clocks[agent][other]) return "a race: a write, and a read that did not happen before it";
  }
  word.writer = agent;
  word.written = clocks[agent][agent];
  return nullptr;
}

}  // namespace

void start(unsigned warps) {
  for (Clock& clock : clocks) clock = {};
  for (unsigned i = 0; i < warps; ++i) clocks[i][i] = 1;
  clocks[kCopies][kCopies] = 1;
  if (!used) return;
  std::fill(words.begin(), words.end(), Word{});
  for (auto& stored : unfenced) stored.clear();
  used = false;
}

void meet(const std::vector<unsigned>& threads) {
  Clock joined{};
  const auto each_warp = [&](const auto& visit) {
    for (unsigned thread : threads) {
      if (thread % kWarp == 0) visit(thread / kWarp);
    }
  };
  each_warp([&](unsigned warp) { join(joined, clocks[warp]); });
  each_warp([&](unsigned warp) {
    clocks[warp] = joined;
    ++clocks[warp][warp];
  });
}

void release(unsigned warp, Clock& clock) {
  join(clock, clocks[warp]);
  ++clocks[warp][warp];
}

void acquire(unsigned warp, const Clock& clock) { join(clocks[warp], clock); }

const char* read(unsigned agent, unsigned address, unsigned bytes) {
  return each(address, bytes, [&](unsigned i) { return read_word(agent, words[i]); });
}

const char* read_by_tensor_cores(unsigned agent, unsigned address, unsigned bytes) {
  return each(address, bytes, [&](unsigned i) {
    return words[i].unfenced ? "wgmma reads what was stored without a fence.proxy.async" : read_word(agent, words[i]);
  });
}

const char* write(unsigned agent, unsigned thread, unsigned address, unsigned bytes) {
  return each(address, bytes, [&](unsigned i) {
    words[i].storer = thread;
    words[i].unfenced = true;
    unfenced[thread].push_back(i);
    return write_word(agent, words[i]);
  });
}

void fence(unsigned thread) {
  for (unsigned i : unfenced[thread]) words[i].unfenced &= words[i].storer != thread;
  unfenced[thread].clear();
}

const char* copy(unsigned warp, unsigned address, unsigned bytes, Clock& done) {
  join(clocks[kCopies], clocks[warp]);
  ++clocks[kCopies][kCopies];
  done = clocks[kCopies];
  return each(address, bytes, [&](unsigned i) {
    words[i].unfenced = false;
    return write_word(kCopies, words[i]);
  });
}

}  // namespace shim::races
