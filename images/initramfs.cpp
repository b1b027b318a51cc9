#include "images/initramfs.h"

#include <archive.h>
#include <archive_entry.h>
#include <sys/stat.h>

#include <fstream>
#include <memory>
#include <sstream>

#include "images/error.h"

namespace qvm::images {
namespace {

constexpr std::size_t max_kept_bytes = std::size_t{1} << 30;

using ArchiveReader = std::unique_ptr<archive, decltype(&archive_read_free)>;
using ArchiveWriter = std::unique_ptr<archive, decltype(&archive_write_free)>;
using Entry = std::unique_ptr<archive_entry, decltype(&archive_entry_free)>;

[[noreturn]] void fail(archive* a, std::string_view what) {
    const char* reason = archive_error_string(a);
    throw Error(std::string(what) + ": " + (reason ? reason : "unknown error"));
}

void check(archive* a, int status, std::string_view what) {
    if (status < ARCHIVE_WARN) fail(a, what);
}

std::string normal_path(std::string_view path) {
    while (path.starts_with("./")) path.remove_prefix(2);
    while (path.starts_with('/')) path.remove_prefix(1);
    while (path.ends_with('/')) path.remove_suffix(1);
    return std::string(path == "." ? "" : path);
}

std::string read_entry_data(archive* a, std::size_t room) {
    std::string data;
    char buffer[65536];
    for (;;) {
        const auto count = archive_read_data(a, buffer, sizeof buffer);
        if (count < 0) fail(a, "cannot read the archive");
        if (count == 0) return data;
        data.append(buffer, static_cast<std::size_t>(count));
        if (data.size() > room) throw Error("cannot read the archive: it is too large");
    }
}

std::string read_whole_file(const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    std::ostringstream out;
    out << in.rdbuf();
    if (!in || !out) throw Error("cannot read " + path.string());
    return std::move(out).str();
}

Tree with_parents(const Tree& tree) {
    Tree whole = tree;
    for (const auto& [path, node] : tree) {
        for (auto parent = std::filesystem::path(path).parent_path(); !parent.empty();
             parent = parent.parent_path()) {
            whole.try_emplace(parent.string(), Node::directory());
        }
    }
    return whole;
}

Entry make_entry(const std::string& path, const Node& node) {
    Entry entry(archive_entry_new(), archive_entry_free);
    if (!entry) throw std::bad_alloc();
    archive_entry_set_pathname(entry.get(), path.c_str());
    archive_entry_set_mode(entry.get(), node.mode);
    archive_entry_set_uid(entry.get(), 0);
    archive_entry_set_gid(entry.get(), 0);
    archive_entry_set_mtime(entry.get(), 0, 0);
    archive_entry_set_nlink(entry.get(), 1);
    archive_entry_set_size(entry.get(), S_ISREG(node.mode) ? std::ssize(node.data) : 0);
    if (S_ISLNK(node.mode)) archive_entry_set_symlink(entry.get(), node.data.c_str());
    if (S_ISCHR(node.mode)) {
        archive_entry_set_rdevmajor(entry.get(), node.dev_major);
        archive_entry_set_rdevminor(entry.get(), node.dev_minor);
    }
    return entry;
}

void set_compression(archive* a, Compression how) {
    const std::string_view what = "cannot compress the initramfs";
    switch (how) {
        case Compression::none:
            return check(a, archive_write_add_filter_none(a), what);
        case Compression::gzip:
            check(a, archive_write_add_filter_gzip(a), what);
            return check(a, archive_write_set_filter_option(a, "gzip", "timestamp", nullptr), what);
        case Compression::zstd:
            check(a, archive_write_add_filter_zstd(a), what);
            check(a, archive_write_set_filter_option(a, "zstd", "compression-level", "9"), what);
            return;
    }
}

}  // namespace

Node Node::file(std::string bytes, mode_t permissions) {
    return {.mode = S_IFREG | permissions, .data = std::move(bytes)};
}
Node Node::directory(mode_t permissions) {
    return {.mode = S_IFDIR | permissions};
}
Node Node::symlink(std::string target) {
    return {.mode = S_IFLNK | 0777, .data = std::move(target)};
}
Node Node::char_device(unsigned major, unsigned minor, mode_t permissions) {
    return {.mode = S_IFCHR | permissions, .dev_major = major, .dev_minor = minor};
}

Tree read_archive(std::string_view bytes, const Keep& keep) {
    ArchiveReader reader(archive_read_new(), archive_read_free);
    if (!reader) throw std::bad_alloc();
    archive* a = reader.get();
    // By name, not "all": a linked libarchive.a then brings only these.
    archive_read_support_filter_gzip(a);
    archive_read_support_filter_xz(a);
    archive_read_support_filter_zstd(a);
    archive_read_support_format_ar(a);
    archive_read_support_format_cpio(a);
    archive_read_support_format_tar(a);
    check(a, archive_read_open_memory(a, bytes.data(), bytes.size()), "cannot read the archive");

    Tree tree;
    std::size_t room = max_kept_bytes;
    for (archive_entry* entry = nullptr;;) {
        const int status = archive_read_next_header(a, &entry);
        if (status == ARCHIVE_EOF) return tree;
        check(a, status, "cannot read the archive");
        const char* name = archive_entry_pathname(entry);
        const std::string path = normal_path(name ? name : "");
        if (path.empty() || (keep && !keep(path))) continue;
        Node node{.mode = archive_entry_mode(entry)};
        if (const char* target = archive_entry_symlink(entry)) node.data = target;
        if (S_ISREG(node.mode)) node.data = read_entry_data(a, room);
        if (S_ISCHR(node.mode)) {
            node.dev_major = static_cast<unsigned>(archive_entry_rdevmajor(entry));
            node.dev_minor = static_cast<unsigned>(archive_entry_rdevminor(entry));
        }
        room -= node.data.size();
        tree.insert_or_assign(path, std::move(node));
    }
}

Tree read_deb(const std::filesystem::path& deb, const Keep& keep) {
    const auto is_data = [](std::string_view path) { return path.starts_with("data.tar"); };
    const Tree members = read_archive(read_whole_file(deb), is_data);
    if (members.empty()) throw Error(deb.filename().string() + " is not a Debian package");
    return read_archive(members.begin()->second.data, keep);
}

void write_initramfs(const Tree& tree, const std::filesystem::path& output, Compression how) {
    const std::string_view what = "cannot write the initramfs";
    ArchiveWriter writer(archive_write_new(), archive_write_free);
    if (!writer) throw std::bad_alloc();
    archive* a = writer.get();
    check(a, archive_write_set_format_cpio_newc(a), what);
    set_compression(a, how);
    check(a, archive_write_open_filename(a, output.c_str()), what);
    for (const auto& [path, node] : with_parents(tree)) {
        const Entry entry = make_entry(path, node);
        check(a, archive_write_header(a, entry.get()), what);
        if (!S_ISREG(node.mode) || node.data.empty()) continue;
        if (archive_write_data(a, node.data.data(), node.data.size()) != std::ssize(node.data)) {
            fail(a, what);
        }
    }
    check(a, archive_write_close(a), what);
}

}  // namespace qvm::images
