#pragma once

namespace qvm {

/// True for as long as this object lives. The variable outlives it.
class Flag {
  public:
    explicit Flag(bool& flag) : flag_(flag) { flag_ = true; }
    Flag(const Flag&) = delete;
    Flag& operator=(const Flag&) = delete;
    ~Flag() { flag_ = false; }

  private:
    bool& flag_;
};

}  // namespace qvm
