#include "launcher/any_disk.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <cerrno>
#include <system_error>

#include "images/contents.h"
#include "images/error.h"
#include "images/unpack.h"
#include "launcher/qemu_img.h"

namespace qvm {

namespace fs = std::filesystem;

namespace {

/// One file on its way to be a disk.
class Conversion {
  public:
    Conversion(const fs::path& path, int draft, const fs::path& directory,
               const AnyDiskOptions& options)
        : path_(path), draft_(draft), directory_(directory), options_(options) {}

    AnyDisk run() {
        auto file = open_unused(path_, false);
        if (images::is_packed(file.fd.get())) unpack(file.fd);
        const auto format = images::check_header(file.fd.get(), options_.trust_backing);
        if (format != "qcow2" && format != "raw") {
            check(file.fd.get(), format);
            convert({{{file.fd.get(), format}}}, file.fd);
        }
        if (format == "raw") images::check_no_cd(file.fd.get());
        auto image = as_image(std::move(file), path_, true, options_.trust_backing);
        if (image.facts.format == "qcow2" && !converted_) check(image.fd.get(), "qcow2");
        if (!image.backing.empty()) {
            convert(chain_of(image), image.fd);
            image =
                as_image({.fd = std::move(image.fd), .facts = {}, .known = std::move(image.known)},
                         path_, true, false);
        }
        return {std::move(image), is_draft_};
    }

  private:
    void unpack(UniqueFd& fd) {
        constexpr std::size_t enough = 512;
        is_draft_ = images::is_whole_disk(images::first_unpacked(fd.get(), enough));
        auto unpacked = is_draft_ ? copy_of_draft() : open_unnamed(directory_);
        if (!unpacked) throw std::system_error(errno, std::generic_category(), "create a file");
        images::unpack(fd.get(), unpacked.get(), headway("unpacking"));
        if (images::is_packed(unpacked.get()))
            throw images::Error("it is compressed twice (gunzip it first)");
        fd = std::move(unpacked);
    }

    void check(int fd, const std::string& format) {
        report("checking", 0);
        check_clusters(fd, format);
    }

    void convert(const ImageChain& chain, UniqueFd& fd) {
        convert_image(chain, draft_, headway("converting"));
        fd = copy_of_draft();
        is_draft_ = converted_ = true;
    }

    static ImageChain chain_of(const ImageFile& image) {
        ImageChain chain{{{image.fd.get(), image.facts.format}}};
        for (std::size_t i = 0; i < image.backing.size(); ++i)
            chain.nodes.push_back({image.backing[i].get(), image.facts.backing[i]});
        return chain;
    }

    [[nodiscard]] UniqueFd copy_of_draft() const {
        return UniqueFd{::fcntl(draft_, F_DUPFD_CLOEXEC, 0)};
    }

    [[nodiscard]] images::Headway headway(std::string_view what) const {
        return [this, what](double part) { report(what, part); };
    }

    void report(std::string_view what, double part) const {
        if (options_.progress) options_.progress(what, part);
    }

    const fs::path& path_;
    int draft_;
    const fs::path& directory_;
    const AnyDiskOptions& options_;
    bool is_draft_ = false;
    bool converted_ = false;
};

}  // namespace

AnyDisk open_any_disk(const fs::path& path, int draft, const fs::path& directory,
                      const AnyDiskOptions& options) {
    return Conversion{path, draft, directory, options}.run();
}

}  // namespace qvm
