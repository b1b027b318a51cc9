#include "images/initramfs.h"

#include <sys/stat.h>

#include <catch2/catch.hpp>

#include "images/error.h"
#include "support.h"

using namespace qvm::images;
using namespace qvm::images::test;

TEST_CASE("an initramfs holds what was put in, and the directories above it") {
    const TemporaryDirectory directory;
    const auto how = GENERATE(Compression::none, Compression::gzip, Compression::zstd);
    Tree tree;
    tree["init"] = Node::file("#!/bin/sh\n", 0755);
    tree["empty"] = Node::file("");
    tree["usr/lib/large"] = Node::file(std::string(300000, 'x'));
    tree["bin"] = Node::symlink("usr/bin");
    tree["dev/console"] = Node::char_device(5, 1);
    write_initramfs(tree, directory / "initrd", how);

    auto expected = tree;
    for (const auto* path : {"dev", "usr", "usr/lib"}) expected[path] = Node::directory();
    CHECK(read_archive(read_file(directory / "initrd")) == expected);

    write_initramfs(tree, directory / "again", how);
    CHECK(read_file(directory / "again") == read_file(directory / "initrd"));
}

TEST_CASE("an initramfs is of the kind that the kernel reads") {
    const TemporaryDirectory directory;
    write_initramfs({{"init", Node::file("x")}}, directory / "initrd", Compression::none);
    CHECK(read_file(directory / "initrd").starts_with("070701"));
}

TEST_CASE("only what is worth keeping is read") {
    const TemporaryDirectory directory;
    write_initramfs({{"a", Node::file("1")}, {"b", Node::file("2")}}, directory / "archive",
                    Compression::gzip);
    const auto tree = read_archive(read_file(directory / "archive"),
                                   [](std::string_view path) { return path == "b"; });
    CHECK(tree == Tree{{"b", Node::file("2")}});
}

TEST_CASE("what is no archive or package is refused") {
    const TemporaryDirectory directory;
    write_file(directory / "x.deb", "not a package");
    CHECK_THROWS_AS(read_archive("nonsense"), Error);
    CHECK_THROWS_AS(read_deb(directory / "x.deb"), Error);
    CHECK_THROWS_AS(read_deb(directory / "missing.deb"), Error);
}
