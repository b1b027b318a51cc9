#pragma once

#include <functional>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// The parts of build_debian(); not for callers outside this library.
namespace qvm::images {

/// What mmdebstrap is at, from what it and the programs that it runs write. Pure.
class DebianProgress {
  public:
    explicit DebianProgress(std::function<void(std::string_view)> report)
        : report_(std::move(report)) {}

    /// The next piece of its standard error.
    void feed(std::string_view piece);

  private:
    void read_line(std::string_view line);
    void count(std::string_view what, unsigned done, unsigned of);

    std::function<void(std::string_view)> report_;
    std::string rest_;      ///< a line's beginning
    std::string reported_;  ///< what was told last
    const char* which_ = "the essential packages";
    unsigned packages_ = 0;  ///< that apt is at
    unsigned downloaded_ = 0;
    unsigned installed_ = 0;  ///< of two steps each: unpacked and set up
};

/// Why mmdebstrap failed: the first error that it or apt wrote; empty if there is none. Pure.
std::string debian_error(std::string_view standard_error);

/// What `apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)'` prints, and another
/// suite: the apt source for that from the same place, "deb URI SUITE main". Nothing where none of
/// the host's is a distribution's own. Pure.
std::optional<std::string> source_of_suite(std::string_view targets, const std::string& suite);

/// The version of the newest kernel in /boot, of the names there, that has an initramfs:
/// vmlinuz-VERSION, initrd.img-VERSION. Pure.
std::optional<std::string> newest_kernel(const std::set<std::string>& names);

/// A file of the guest's, by its path in the tree.
struct DebianFile {
    std::string_view path;
    std::string_view text;
};
extern const std::vector<DebianFile> debian_files;
/// Links, to what they lead.
extern const std::vector<DebianFile> debian_links;

}  // namespace qvm::images
