#include "launcher/cloud_init.h"

#include <boost/json/parse.hpp>
#include <catch2/catch.hpp>

#include "launcher/failure.h"

using namespace qvm;

namespace {

/// Why it is refused; empty where it is not.
std::string problem_of(std::string_view user_data) {
    try {
        check_user_data(user_data);
    } catch (const Failure& failure) {
        return failure.what();
    }
    return {};
}

std::string text_of(const std::vector<images::SeedFile>& files, const std::string& name) {
    for (const auto& file : files)
        if (file.name == name) return file.text;
    return "none";
}

}  // namespace

TEST_CASE("the seed names the machine, lets keys in and leaves the user's data as it is") {
    const auto files = seed_files({.instance_id = "qvm-1",
                                   .hostname = "web",
                                   .mac = "52:54:00:00:00:01",
                                   .ssh_keys = {"ssh-ed25519 AAAA \"me\""},
                                   .boot_command = {"sh", "-c", "\"$1\"\n"},
                                   .user_data = "#!/bin/sh\necho\n"});
    CHECK(text_of(files, "user-data") == "#!/bin/sh\necho\n");
    CHECK(boost::json::parse(text_of(files, "meta-data")) ==
          boost::json::parse(R"({"instance-id": "qvm-1", "local-hostname": "web",
                                 "public-keys": ["ssh-ed25519 AAAA \"me\""]})"));
    CHECK(text_of(files, "vendor-data") ==
          "#cloud-config\n"
          R"({"disable_root":false,"bootcmd":[["sh","-c","\"$1\"\n"]]})"
          "\n");
    CHECK(boost::json::parse(text_of(files, "network-config"))
              .at_pointer("/ethernets/nic0/match/macaddress") == "52:54:00:00:00:01");
}

TEST_CASE("a seed without a NIC leaves the network to cloud-init, and there is always user data") {
    const auto files = seed_files({.instance_id = "qvm-1", .hostname = "web"});
    CHECK(text_of(files, "network-config") == "none");
    CHECK(text_of(files, "user-data") == "#cloud-config\n{}\n");
    CHECK(text_of(files, "meta-data").find("public-keys") == std::string::npos);
}

TEST_CASE("user data is what cloud-init takes for it") {
    for (const auto* good :
         {"#cloud-config\npackages: [vim]\n", "\n #Cloud-Config\n{}\n", "#!/bin/sh\n: [\n",
          "#cloud-config-archive\n- x\n", "Content-Type: multipart/mixed\n\n",
          "#include\nhttp://a\n", "## template: jinja\n#cloud-config\n{% if 1 %}\n",
          "#cloud-config\n# nothing\n", "\x1f\x8b gzip"})
        CHECK(problem_of(good) == "");
    CHECK(problem_of("") == "is empty");
    CHECK(problem_of(" \n") == "is empty");
    CHECK(problem_of("packages: [vim]\n") == "does not begin as cloud-init's user data does");
    CHECK(problem_of("#cloud-config\n- a\n") == "is no YAML mapping: 'KEY: VALUE' lines");
    CHECK(problem_of("#cloud-config\na: b\nc: d: e\n") ==
          "line 3: mapping values are not allowed in this context");
    CHECK(problem_of("#cloud-config\na: [\n").starts_with("line 3: "));
    CHECK(problem_of("#cloud-config\n\ta: b\n").starts_with("line 2: "));
}

TEST_CASE("public keys are read as authorized_keys has them") {
    CHECK(parse_public_keys("# mine\nssh-ed25519 A a\r\n\nno-pty ecdsa-sha2-nistp256 B") ==
          std::vector<std::string>{"ssh-ed25519 A a", "no-pty ecdsa-sha2-nistp256 B"});
    CHECK_THROWS_WITH(parse_public_keys("\n#\n"), "has no key");
    CHECK_THROWS_WITH(parse_public_keys("hello\n"), "is no public key of OpenSSH's");
    CHECK_THROWS_WITH(parse_public_keys("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n"),
                      "is a private key");
}
